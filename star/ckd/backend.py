"""Chooses which backend turns a chunk of logits into its gradient: Triton kernels or plain torch."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from star.ckd.gradient import logits_to_gradient_

logger = logging.getLogger(__name__)


@cache
def choose_backend(device_type: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function `logits_to_gradient_` for a device: kernel.py's on CUDA where Triton runs, else gradient.py's.

    The choice is made once per process and device, and logged.
    """
    fault = find_triton_fault(device_type) if device_type == "cuda" else None
    if device_type == "cuda" and not fault:
        from star.ckd import kernel

        logger.info("the distillation loss runs its Triton kernels on %s", device_type)
        return kernel.logits_to_gradient_
    level = logging.WARNING if fault else logging.INFO
    logger.log(level, "the distillation loss runs as plain torch on %s%s", device_type, f": {fault}" if fault else "")
    return logits_to_gradient_


def find_triton_fault(device_type: str) -> str | None:
    """Why the kernels cannot run on a device, found by running them on a few numbers; None where they can."""
    # Looked for before it is imported, so that a missing package gets a remedy of its own.
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'star-distill[gpu]')"
    try:
        from star.ckd import kernel

        # Triton compiles at the first call, so only a run shows whether GPU, driver and C compiler serve.
        logits_CV = torch.zeros(1, 32, device=device_type)
        log_sum_C1, _, _ = kernel.read_rows(logits_CV)
        # .item() waits for the kernel, so that its error is raised here.
        kernel.write_gradient_(logits_CV, log_sum_C1, log_sum_C1, dtype=torch.bfloat16).sum().item()
    except Exception as error:  # Triton fails with any type: for the GPU, the driver, or a missing C compiler
        return f"Triton does not run here: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return None
