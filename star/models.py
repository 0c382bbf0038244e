"""Models: loaded from a folder or the Hugging Face hub, or built from scratch with the Qwen3 architecture.

A model from scratch first learns to copy: random tokens, then the same tokens again. That forms the heads which later carry a value from
the user's request into the JSON of a call; without it a tiny model needs many times more task steps. It stands for pre-training.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Trainer
from transformers.utils import logging as transformers_logging

from star import ranks
from star.config import Architecture, Lora, ModelFolder, Scratch
from star.errors import InputError
from star.training import Log, seed_everything, supervised_arguments, train

transformers_logging.disable_progress_bar()  # a bar for every file loaded or saved would drown ours


def load_tokenizer(model: str | Path, *, revision: str | None = None):
    """The tokenizer of a model folder or hub id, padding on the left, as generation needs it."""
    tokenizer = _load(AutoTokenizer, model, revision=revision)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: str | Path, *, revision: str | None = None, training: bool = False, lora: Lora | None = None):
    """The causal language model of a folder or hub id; safetensors only, no remote code.

    fp32 on a CPU and for training (steps of 3e-7 vanish in bf16 weights; the trainer computes in bf16), else bf16 on a GPU.

    Args:
        lora: adapters to train, in fp32, on every linear layer; the weights themselves stay as they are, in bf16 on a GPU.
    """
    whole = training and lora is None
    dtype = torch.bfloat16 if torch.cuda.is_available() and not whole else torch.float32
    loaded = _load(AutoModelForCausalLM, model, revision=revision, dtype=dtype, use_safetensors=True)
    loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    return with_adapters(loaded, lora) if lora else loaded


def with_adapters(model, lora: Lora):
    """The model with low-rank adapters on every linear layer but the head; only they are trained, and they start as nothing."""
    from peft import LoraConfig, get_peft_model

    targets = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**targets))


def base_source(base: ModelFolder | str) -> Path | str:
    """Where a pretrained base of the configuration is loaded from."""
    return Path(base.path) if isinstance(base, ModelFolder) else base


def _load(auto: Any, model: str | Path, *, revision: str | None, **arguments: Any):
    needed = "tokenizer.json" if auto is AutoTokenizer else "config.json"
    if isinstance(model, Path) and not (model / needed).is_file():
        raise InputError(f"{model} is not a model folder (no {needed}): give a Hugging Face model folder or id")
    try:
        return auto.from_pretrained(str(model), revision=revision, trust_remote_code=False, **arguments)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model {model} cannot be loaded: {reason}; give a folder, or an id this machine can download"
        ) from error


def save_model(model, tokenizer, folder: Path) -> None:
    """Writes a plain Hugging Face folder: safetensors weights (adapters merged in), config, tokenizer with its chat template."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def keep_model(model, tokenizer, folder: Path) -> None:
    """Writes a model folder whole or not at all; of several processes the first one does, and the others wait for it."""
    if ranks.is_first():
        unfinished = folder.with_name(f"{folder.name}.partial")
        save_model(model, tokenizer, unfinished)
        unfinished.rename(folder)
    ranks.meet()


def count_parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def scratch_model(architecture: Architecture, tokenizer, *, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model of the given sizes with random weights, embeddings tied, for the tokenizer's vocabulary."""
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
    architecture: Architecture, scratch: Scratch, *, tokenizer, state: Path, label: str, seed: int, log: Log
):
    """A model from scratch after its copy warm-up.

    Args:
        state: folder for checkpoints, from which a killed warm-up goes on.
    """
    finished = state / "base"
    if ranks.told_by_first((finished / "config.json").is_file()):
        return load_model(finished, training=True)
    model = scratch_model(architecture, tokenizer, seed=seed)
    arguments = supervised_arguments(scratch.warmup, folder=state / "warmup", seed=seed)
    count = scratch.warmup.steps * scratch.warmup.batch_size
    rows = CopyRows(count, span=scratch.warmup_span, vocab_size=len(tokenizer), seed=seed)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    train(trainer, phase="warmup", label=label, state=state, log=log)
    keep_model(model, tokenizer, finished)
    return model


class CopyRows(Dataset):
    """Sequences to copy: `span` random tokens, then twice the same tokens from a random one of them on; the loss is on the repetitions.

    What to copy thus lies at every distance, so a head must find it by content, as it will have to in a prompt. Row i is drawn from
    (seed, i) alone.
    """

    def __init__(self, count: int, *, span: int, vocab_size: int, seed: int) -> None:
        self.count, self.span, self.vocab_size, self.seed = count, span, vocab_size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        span = torch.randint(3, self.vocab_size, (self.span,), generator=draw)
        first, second = torch.randint(0, self.span, (2,), generator=draw).tolist()
        row = torch.cat([span, span.roll(first), span.roll(second)])
        labels = row.clone()
        labels[: self.span + 1] = -100
        return {"input_ids": row, "labels": labels}
