"""Samples completions from a model, and computes the hidden states that predict a completion.

Rollout, extraction and evaluation use it.

Shapes: B sequences of a batch, L padded length, T completion tokens of one sequence, H hidden, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from star.chat import prompt_opening
from star.errors import InputError
from star.modeling.decoding import PromptReading, decode
from star.modeling.entropy import EntropyMeter
from star.modeling.tokenizer import ids_without_token


@dataclass(frozen=True)
class Sample:
    """One completion.

    Attributes:
        text: the completion without its end token, from the opening that its prompt holds on.
        token_ids: the sampled tokens, the end token included. Those of the opening are the prompt's.
        finished: whether it ended with an end token before the limit of tokens.
    """

    text: str
    token_ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Sequence:
    """A prompt and a completion as tokens; its length is that of both."""

    prompt_ids: list[int]
    completion_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    reading: PromptReading | None = None,
    meter: EntropyMeter | None = None,
) -> list[list[Sample]]:
    """Samples `samples` completions per prompt. The same seed and the same batch of prompts give the same completions.

    An id that is no token is never sampled.

    Args:
        prompts: rendered prompts, generated as one padded batch.
        temperature: 0 is greedy.
        reading: one for all calls with these prompts, which are then read once.
        meter: measures the entropies.

    Raises:
        InputError: the model's generation_config.json asks for what cannot be done.
    """
    # Seeded per call: a batch's samples must not depend on earlier batches, which a resumed run skips.
    torch.manual_seed(seed)
    model.eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    # A head has rows for ids that are no token. Such an id has no text, and would be trained on as if it were an answer.
    if padding := ids_without_token(tokenizer, rows=model.get_output_embeddings().weight.shape[0]):
        sampling["suppress_tokens"] = padding
    causal_model: Any = model  # the type PreTrainedModel lacks `generate`, which every causal language model has
    try:
        output = causal_model.generate(
            **batch,
            **sampling,
            custom_generate=partial(decode, reading=reading),
            logits_processor=LogitsProcessorList([meter] if meter else []),
            num_beams=1,  # a model's own settings may ask for any number of beams
            num_return_sequences=samples,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,  # a model saved by a training may disable it; then each token would read the whole prompt again
            return_dict_in_generate=False,
        )
    except (ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise InputError(
            f"the model does not generate with its own generation_config.json: {reason}; correct or delete that file"
        ) from error
    # `generate` pads finished rows up to the longest one, so each is cut at its own end.
    ends = end_tokens(model, tokenizer)
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    openings = [prompt_opening(prompt) for prompt in prompts for _ in range(samples)]
    completions = [
        _cut_at_end_token(ids, ends, tokenizer, opening=opening) for ids, opening in zip(rows, openings, strict=True)
    ]
    return [completions[start : start + samples] for start in range(0, len(completions), samples)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the tokens that end a completion of this model."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    return {*ends, tokenizer.eos_token_id}


def _cut_at_end_token(ids: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase, *, opening: str) -> Sample:
    stop = next((index for index, token in enumerate(ids) if token in ends), None)
    body = ids if stop is None else ids[:stop]
    kept = ids if stop is None else ids[: stop + 1]
    text = tokenizer.decode(body, skip_special_tokens=False)
    assert isinstance(text, str)  # noqa: S101 - a list only for a batch
    return Sample(opening + text, kept, stop is not None)


def batches_by_length(lengths: ArrayLike, *, batch_tokens: int) -> Iterator[np.ndarray]:
    """Yields batches of indices of sequences of similar length.

    A batch, padded to its longest sequence, has at most `batch_tokens` tokens, unless a single sequence is longer.

    Args:
        lengths: of all sequences, in tokens.
    """
    # In ascending order of length, so the last one that is added is the longest and sets the padded size.
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end, length in enumerate(lengths[order]):
        if end > start and (end + 1 - start) * length > batch_tokens:
            yield order[start:end]
            start = end
    if len(order):
        yield order[start:]


@torch.inference_mode()
def completion_hidden_states(model: PreTrainedModel, sequences: list[Sequence], *, pad_id: int) -> list[torch.Tensor]:
    """Makes one forward pass over a batch.

    Returns:
        Per sequence, the last hidden states [T, H] that predict its completion tokens: those at the last prompt token
        and at all completion tokens but the last.
    """
    longest = max(len(sequence) for sequence in sequences)
    rows = [sequence.prompt_ids + sequence.completion_ids for sequence in sequences]
    # Padded on the right: positions stay as they are, and causal attention never reads the padding.
    input_ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=model.device)
    attention_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    hidden_BLH = model.get_decoder()(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return [hidden_BLH[i, len(s.prompt_ids) - 1 : len(s) - 1] for i, s in enumerate(sequences)]


@torch.inference_mode()
def policy_entropy(model: PreTrainedModel, sequences: list[Sequence], *, pad_id: int, batch_tokens: int) -> list[float]:
    """Per sequence, the entropy of the next-token distribution in nats, averaged over the completion tokens."""
    model.eval()
    # The head is applied per sequence: logits of a whole batch [B, L, V] would need far more memory.
    head = model.get_output_embeddings()
    entropies = [0.0] * len(sequences)
    for batch in batches_by_length(list(map(len, sequences)), batch_tokens=batch_tokens):
        for index, hidden_TH in zip(
            batch, completion_hidden_states(model, [sequences[i] for i in batch], pad_id=pad_id), strict=True
        ):
            # In float32, because bf16 has too few digits for a sum over the vocabulary.
            logprobs_TV = torch.log_softmax(head(hidden_TH).float(), dim=-1)
            entropies[index] = float(-(logprobs_TV.exp() * logprobs_TV).sum(-1).mean())
    return entropies
