"""Decides whether a model computes in bf16 or in fp32: one rule for trainings, sampling, extraction and evaluation.

What `precision: auto` gives:

    where                                                  model                          computes in
    a GPU with instructions for bf16                       any                            bf16
    a CPU with instructions for bf16 (AVX-512, AMX, Arm)   `MIN_WIDTH` wide or wider      bf16
    any other CPU or GPU                                   any                            fp32

The rule looks at the width and not at where a model comes from, so that a model folder computes alike in every stage
and after a download. Models built from scratch are narrow, as a rule: bf16 gains nothing there, and their numbers stay
the same on every CPU.

Weights that are trained are fp32, because steps of 3e-7 vanish in bf16 weights; the forward and the backward pass run
under autocast. Weights that are only read are bf16.
"""

from functools import lru_cache

import torch
from transformers import PretrainedConfig

from star.config.training import Precision
from star.errors import InputError

# Below this width the matrix products are too small for bf16 to be faster on a CPU.
MIN_WIDTH = 256
# Names of torch.cpu.get_capabilities. Without one of them bf16 is emulated, several times slower than fp32.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def computes_in_bf16(precision: Precision, config: PretrainedConfig) -> bool:
    """Whether a model of this configuration computes in bf16 in this process.

    Args:
        precision: the setting; anything but "auto" is taken as it is.

    Raises:
        InputError: the setting is bf16, and the GPU has no instructions for it.
    """
    if torch.cuda.is_available() and precision != "fp32":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not has_bf16:
            raise InputError(
                f"`precision: bf16` is set, and {torch.cuda.get_device_name()} has no instructions for bf16: set `precision: auto`, "
                "which is fp32 there, or take a GPU of compute capability 8.0 or later"
            )
        return has_bf16
    if precision != "auto":
        return precision == "bf16"
    return cpu_has_bf16() and getattr(config.get_text_config(), "hidden_size", 0) >= MIN_WIDTH


def weights_dtype(precision: Precision, config: PretrainedConfig, *, trained: bool) -> torch.dtype:
    """The type of a model's weights: fp32 where they are trained, else the type that the model computes in."""
    return torch.bfloat16 if computes_in_bf16(precision, config) and not trained else torch.float32


@lru_cache
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bf16 by instructions of its own."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)
