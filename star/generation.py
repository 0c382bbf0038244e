"""Sampling from a model, and one forward pass over what was sampled: the two things rollout, extraction and evaluation share.

T completion tokens, H hidden, B completions of a batch, L padded length, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from transformers import DynamicCache


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
    """Samples `samples` completions for each prompt; temperature 0 is greedy. The same seed gives the same samples.

    A prompt is read once for all its samples, and a completion that has ended leaves the batch: what is left goes on faster.
    """
    torch.manual_seed(seed)
    model.eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    mask_BL, cache = batch["attention_mask"], DynamicCache(config=model.config)
    step = partial(model, past_key_values=cache, use_cache=True, logits_to_keep=1)
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    logits_BV = step(input_ids=batch["input_ids"], attention_mask=mask_BL, position_ids=positions_BL).logits[:, -1]
    logits_BV, mask_BL = logits_BV.repeat_interleave(samples, 0), mask_BL.repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    ends = end_tokens(model, tokenizer)
    made: list[list[int]] = [[] for _ in range(len(mask_BL))]
    rows = list(range(len(made)))  # of `made`, that the batch still holds
    for left in reversed(range(max_new_tokens)):
        tokens_B = _choose(logits_BV.float(), temperature)
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            made[row].append(token)
        going = [place for place, row in enumerate(rows) if made[row][-1] not in ends]
        if not going or not left:
            break
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            kept = torch.tensor(going, device=model.device)
            tokens_B, mask_BL = tokens_B[kept], mask_BL[kept]
            cache.batch_select_indices(kept)
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)
        positions_B1 = mask_BL.sum(1, keepdim=True) - 1
        logits_BV = step(input_ids=tokens_B[:, None], attention_mask=mask_BL, position_ids=positions_B1).logits[:, -1]
    completions = [_cut(ids, ends, tokenizer) for ids in made]
    return [completions[start : start + samples] for start in range(0, len(completions), samples)]


def _choose(logits_BV: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature == 0:
        return logits_BV.argmax(1)
    return torch.multinomial(torch.softmax(logits_BV / temperature, dim=1), 1)[:, 0]


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
