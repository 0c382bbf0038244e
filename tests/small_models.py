"""Makes models that are so small that a test takes seconds: sizes, models with random weights, and folders of them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from star.config.load import load_config
from star.config.models import Architecture
from star.modeling.models import save_model
from star.modeling.scratch import scratch_model
from star.modeling.tokenizer import bootstrap_tokenizer

TINY: Architecture = load_config("tiny").student.base


def small_sizes(
    hidden: int = 32,
    inner: int = 64,
    *,
    layers: int = 2,
    heads: int = 2,
    key_value_heads: int = 1,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """The sizes of a model as an Architecture or a configuration of transformers takes them; `inner` is that of the MLP."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }
    return sizes if head_dim is None else {**sizes, "head_dim": head_dim}


def random_model(config: PretrainedConfig, *, seed: int = 0) -> Any:
    """A model of any architecture, with the same weights for the same seed."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def write_scratch_model(
    folder: Path, sizes: Architecture = TINY, *, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 1
) -> Path:
    """Writes a model folder as STAR's own models are, with the bootstrap tokenizer by default."""
    tokenizer = tokenizer or bootstrap_tokenizer()
    save_model(scratch_model(sizes, tokenizer, seed=seed), tokenizer, folder)
    return folder
