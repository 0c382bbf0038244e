"""Sampling from a model, and one forward pass over what was sampled: the two things rollout, extraction and evaluation share.

T completion tokens, H hidden.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sample:
    """One completion: its tokens with the end token, its text without, and whether it ended before the limit."""

    text: str
    token_ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Sequence:
    """A prompt and a completion as tokens."""

    prompt_ids: list[int]
    completion_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@torch.inference_mode()
def generate(
    model, tokenizer, prompts: list[str], *, samples: int, temperature: float, max_new_tokens: int, seed: int
) -> list[list[Sample]]:
    """Samples `samples` completions for each prompt; temperature 0 is greedy. The same seed gives the same samples."""
    torch.manual_seed(seed)
    model.eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    output = model.generate(
        **batch,
        **sampling,
        num_return_sequences=samples,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,  # a model saved from a training may say otherwise: every token would read the whole prompt again
    )
    ends = end_tokens(model, tokenizer)
    completions = [_cut(ids, ends, tokenizer) for ids in output[:, batch["input_ids"].shape[1] :].tolist()]
    return [completions[start : start + samples] for start in range(0, len(completions), samples)]


def end_tokens(model, tokenizer) -> set[int]:
    """The tokens that end a completion for this model."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    return {*ends, tokenizer.eos_token_id}


def _cut(ids: list[int], ends: set[int], tokenizer) -> Sample:
    stop = next((index for index, token in enumerate(ids) if token in ends), None)
    body = ids if stop is None else ids[:stop]
    kept = ids if stop is None else ids[: stop + 1]
    return Sample(tokenizer.decode(body, skip_special_tokens=False), kept, stop is not None)


def batches_by_length(sequences: Iterable[Sequence], *, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length, so many together that the padded batch stays within `batch_tokens` (at least one)."""
    lengths = [len(sequence) for sequence in sequences]
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def completion_hidden(model, sequences: list[Sequence], *, pad_id: int) -> list[torch.Tensor]:
    """One forward pass over a batch: for each sequence the hidden states that predict its completion tokens, [T, H]."""
    longest = max(len(sequence) for sequence in sequences)
    rows = [sequence.prompt_ids + sequence.completion_ids for sequence in sequences]
    input_ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=model.device)
    attention_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    hidden_BLH = model.get_decoder()(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return [hidden_BLH[i, len(s.prompt_ids) - 1 : len(s) - 1] for i, s in enumerate(sequences)]


@torch.inference_mode()
def policy_entropy(model, sequences: list[Sequence], *, pad_id: int, batch_tokens: int) -> list[float]:
    """Mean entropy of the next-token distribution over each sequence's completion, in nats."""
    model.eval()
    head = model.get_output_embeddings()
    entropies = [0.0] * len(sequences)
    for batch in batches_by_length(sequences, batch_tokens=batch_tokens):
        for index, hidden_TH in zip(
            batch, completion_hidden(model, [sequences[i] for i in batch], pad_id=pad_id), strict=True
        ):
            logprobs_TV = torch.log_softmax(head(hidden_TH).float(), dim=-1)
            entropies[index] = float(-(logprobs_TV.exp() * logprobs_TV).sum(-1).mean())
    return entropies
