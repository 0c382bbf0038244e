"""Builds models of the Qwen3 architecture from scratch: random weights, then a warm-up in which they learn to copy.

The warm-up trains on random tokens that are repeated. It forms the attention heads that later carry a value from the
user's request into the JSON of a call; without it a tiny model needs many times more steps on the task. It stands in
for pre-training.
"""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM, Trainer

from star import distributed
from star.config.models import Architecture, Scratch
from star.config.training import Precision
from star.modeling.models import load_model, save_model_atomically
from star.modeling.precision import computes_in_bf16
from star.modeling.training import IGNORE_INDEX, LogMetrics, seed_everything, supervised_arguments, train


def scratch_model(architecture: Architecture, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model of the given sizes with random weights and tied embeddings, for the tokenizer's vocabulary."""
    seed_everything(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        **architecture.model_dump(),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def build_base(
    architecture: Architecture,
    scratch: Scratch,
    *,
    tokenizer: PreTrainedTokenizerBase,
    state: Path,
    label: str,
    seed: int,
    precision: Precision = "auto",
    log_metrics: LogMetrics,
) -> PreTrainedModel:
    """Builds a model from scratch and trains it on the copy warm-up. Collective.

    Args:
        state: folder for checkpoints, from which a killed warm-up resumes, and for the finished base, which is not
            built twice.
        label: text beside the progress bar.
    """
    finished = state / "base"
    # Rank 0 decides for all ranks, because all of them must train or none.
    if distributed.broadcast_from_rank0((finished / "config.json").is_file()):
        return load_model(finished, precision=precision, training=True)
    model = scratch_model(architecture, tokenizer, seed=seed)
    bf16 = computes_in_bf16(precision, model.config)
    assert scratch.warmup.steps is not None  # noqa: S101 - the configuration requires it
    # As many rows as the steps read, so that no row repeats.
    count = scratch.warmup.steps * scratch.warmup.batch_size
    arguments = supervised_arguments(scratch.warmup, folder=state / "warmup", seed=seed, bf16=bf16, sequences=count)
    rows = CopyRows(count, span=scratch.warmup_span, vocab_size=len(tokenizer), seed=seed)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    train(trainer, phase="warmup", label=label, state=state, log_metrics=log_metrics)
    save_model_atomically(model, tokenizer, finished)
    return model


class CopyRows(Dataset):
    """Sequences to copy: `span` random tokens, then the same tokens twice more, each time rotated by a random offset.

    With span 4, for example `a b c d  c d a b  b c d a`. The loss starts at the second token of the first repetition,
    because nothing predicts the first. As the offsets differ, what to copy lies at every distance, and a head must find
    it by content, as it will have to in a prompt. Row i is drawn from (seed, i) alone.
    """

    def __init__(self, count: int, *, span: int, vocab_size: int, seed: int) -> None:
        self.count, self.span, self.vocab_size, self.seed = count, span, vocab_size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # A generator per row, so that no row depends on the order in which rows are read.
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        # The ids below 3 are SPECIAL_TOKENS, which end or pad a sequence.
        span = torch.randint(3, self.vocab_size, (self.span,), generator=draw)
        first, second = torch.randint(0, self.span, (2,), generator=draw).tolist()
        row = torch.cat([span, span.roll(first), span.roll(second)])
        labels = row.clone()
        labels[: self.span + 1] = IGNORE_INDEX
        return {"input_ids": row, "labels": labels}
