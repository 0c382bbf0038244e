"""Makes a smaller model of a pretrained one by dropping layers.

    of 6 layers 3 are kept:      0     2     5
    of 30 layers 15 are kept:    0 2 4 6 8 10 12 14 17 19 21 23 25 27 29

The kept ones are spread evenly: neighbouring layers do similar work, so that a gap of one costs little, and a gap of many
cannot be healed. The first layer reads the embeddings and the last one writes for the head, so both stay.
"""

import copy
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from star.errors import InputError

# Settings that list the numbers of some layers. Any other list with an entry per layer, such as layer_types, is cut.
LISTS_OF_LAYERS = ("mlp_only_layers", "full_attn_idxs")
NOT_PER_LAYER = ("architectures",)  # and ids of tokens, of which there may be as many as layers


def choose_layers(count: int, *, of: int) -> list[int]:
    """The numbers of `count` layers, at least two, spread evenly from the first to the last of `of` layers."""
    return [round(index * (of - 1) / (count - 1)) for index in range(count)]


def keep_layers(model: PreTrainedModel, count: int, *, source: str | Path) -> PreTrainedModel:
    """A new model with `count` of the model's layers and everything else of it.

    Args:
        source: names the model in errors.

    Raises:
        InputError: the model has fewer layers, or layers that need each other.
    """
    stack = _layers_of(model, source)
    _refuse_shared(model.config, stack, source)
    config = shorten_config(model.config, count, source=source)
    kept = choose_layers(count, of=len(stack))
    prefix = next(name for name, module in model.named_modules() if module is stack) + "."
    names = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(kept)}
    weights: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        layer = f"{prefix}{name.removeprefix(prefix).partition('.')[0]}."
        if not name.startswith(prefix):
            weights[name] = tensor
        elif layer in names:
            weights[names[layer] + name.removeprefix(layer)] = tensor
    try:
        # A new model, and not the old one with fewer layers: each layer knows its number, by which it finds its cache.
        smaller: Any = type(model)(config)
        smaller.to(device=model.device, dtype=model.dtype)
        smaller.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(
            f"{source} cannot lose layers, because they are not alike ({str(error).strip().splitlines()[-1][:200]}): "
            "choose another base for the student, or leave `student.layers` out"
        ) from error
    smaller.generation_config = copy.deepcopy(model.generation_config)
    shortened: PreTrainedModel = smaller.train(model.training)
    return shortened


def shorten_config(config: PretrainedConfig, count: int, *, source: str | Path) -> PretrainedConfig:
    """The configuration of the model that `keep_layers` makes.

    Raises:
        InputError: the model has fewer layers.
    """
    smaller = copy.deepcopy(config)
    text = smaller.get_text_config()
    of = text.num_hidden_layers
    if count > of:
        raise InputError(
            f"`student.layers` is {count} and {source} has {of} layers: give a smaller number, or leave it out"
        )
    kept = choose_layers(count, of=of)
    for name, value in list(vars(text).items()):
        if not isinstance(value, list) or name in NOT_PER_LAYER or name.endswith("_token_id"):
            continue
        if name in LISTS_OF_LAYERS:
            setattr(text, name, [kept.index(layer) for layer in value if layer in kept])
        elif len(value) == of:
            setattr(text, name, [value[layer] for layer in kept])
    text.num_hidden_layers = count
    return smaller


def _layers_of(model: PreTrainedModel, source: str | Path) -> nn.ModuleList:
    """The list of the decoder's layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [part for part in model.get_decoder().children() if isinstance(part, nn.ModuleList) and len(part) == count]
    if len(lists) != 1:
        raise InputError(
            f"{source} ({type(model).__name__}) has no single list of {count} layers of which some could be dropped: choose "
            "another base for the student, or leave `student.layers` out"
        )
    return lists[0]


def _refuse_shared(config: PretrainedConfig, stack: nn.ModuleList, source: str | Path) -> None:
    """Raises InputError for layers that share weights, or that read the keys and values of others."""
    weights = [id(weight) for layer in stack for weight in layer.parameters()]
    if len(set(weights)) < len(weights) or getattr(config.get_text_config(), "num_kv_shared_layers", None):
        raise InputError(
            f"the layers of {source} share weights or keys, so that none can be dropped: choose another base for the student, or "
            "leave `student.layers` out"
        )
