"""Models: loaded from a folder or the Hugging Face hub, or built from scratch with the Qwen3 architecture.

A model from scratch first learns to copy: random tokens, then the same tokens again. That forms the heads which later carry a value from
the user's request into the JSON of a call; without it a tiny model needs many times more task steps. It stands for pre-training.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from star import distributed
from star.config.files import ModelFolder
from star.config.training import Lora
from star.errors import InputError

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


def save_model_atomically(model, tokenizer, folder: Path) -> None:
    """Writes a model folder whole or not at all; of several processes the first one does, and the others wait for it."""
    if distributed.is_rank0():
        unfinished = folder.with_name(f"{folder.name}.partial")
        save_model(model, tokenizer, unfinished)
        unfinished.rename(folder)
    distributed.barrier()


def count_parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
