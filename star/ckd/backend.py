"""Chooses how a chunk is computed: Triton kernels or plain torch."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from star.ckd.gradient import logits_to_gradient_

logger = logging.getLogger(__name__)


@cache
def choose_path(device_type: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The Triton kernels on CUDA where Triton runs, else the plain path; said once in the log."""
    fault = find_triton_fault(device_type) if device_type == "cuda" else None
    if device_type == "cuda" and not fault:
        from star.ckd import kernel

        logger.info("the distillation loss runs its Triton kernels on %s", device_type)
        return kernel.logits_to_gradient_
    level = logging.WARNING if fault else logging.INFO
    logger.log(level, "the distillation loss runs as plain torch on %s%s", device_type, f": {fault}" if fault else "")
    return logits_to_gradient_


def find_triton_fault(device_type: str) -> str | None:
    """Why the kernels cannot run there, found by running them on a few numbers; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'star-distill[gpu]')"
    try:
        from star.ckd import kernel

        logits_CV = torch.zeros(1, 32, device=device_type)
        log_sum_C1, _, _ = kernel.read_rows(logits_CV)
        kernel.write_gradient_(logits_CV, log_sum_C1, log_sum_C1, dtype=torch.bfloat16).sum().item()
    except Exception as error:  # a card, a driver or a C compiler that Triton cannot work with, of whatever type
        return f"Triton does not run here: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return None
