"""The passes over a chunk's logits as Triton kernels: the buffer is read once, then overwritten once by its gradient.

Beside the plain path of gradient.py, whose results these are: no pass for the softmax, none for the entropy, none for the
group maxima that the top m are searched in, none for the cast. A gradient of half precision takes the first half of each
row's bytes, so there is still only one [chunk, V] buffer; what is added at single ids is summed before it is rounded.

Triton compiles for CUDA. With TRITON_INTERPRET=1 set before this module is imported the kernels run, slowly, on a CPU.

Shapes: those of gradient.py, and W columns of the row of group maxima.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from star.ckd.terms import Chunk, Settings, look, weigh
from star.ckd.topm import among_groups, top_ids

GROUP = 16  # columns a maximum stands for: more make a shorter row to search and more candidates after it
BLOCK = 1024  # columns a program holds at a time


def logits_to_gradient_(
    logits_CV: Tensor, chunk: Chunk, settings: Settings, *, gradient_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `star.ckd.gradient.logits_to_gradient_`; dz of half precision is a view [C, V] of the buffer with twice its stride."""
    log_sum_C1, entropy_C1, maxima_CW = read_rows(logits_CV)
    looked = look(logits_CV, _top_ids(logits_CV, maxima_CW, max(settings.top_m, 1)), chunk)
    weighed = weigh(looked, chunk, settings, log_sum_C1=log_sum_C1, entropy=entropy_C1.sum())
    if not settings.grad_enabled:
        return weighed.sums_S, logits_CV
    places_CL = weighed.places_CL
    # An id may be named twice, so all that is added to it is summed in the buffer, where it will be overwritten anyway.
    added_CL = logits_CV.scatter_(1, places_CL, 0.0).scatter_add_(1, places_CL, weighed.added_CL).gather(1, places_CL)
    logits_CV.scatter_(1, places_CL, 0.0)
    dz_CV = write_gradient_(logits_CV, log_sum_C1, weighed.factor_C1, dtype=gradient_dtype)
    dz_CL = weighed.factor_C1 * weighed.log_q_CL.exp() + added_CL
    return weighed.sums_S, dz_CV.scatter_(1, places_CL, dz_CL.to(gradient_dtype))


def read_rows(logits_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log-sum-exp [C, 1], entropy of the softmax in nats [C, 1], and maxima [C, W] of the groups j, j + W, j + 2 * W, ..."""
    rows, vocab = logits_CV.shape
    width = vocab // GROUP
    log_sum_C1, entropy_C1 = (logits_CV.new_empty(rows, 1) for _ in range(2))
    maxima_CW = logits_CV.new_empty(rows, width)
    _read_row[(rows,)](
        logits_CV, log_sum_C1, entropy_C1, maxima_CW, logits_CV.stride(0), vocab, width, GROUP=GROUP, BLOCK=BLOCK
    )
    return log_sum_C1, entropy_C1, maxima_CW


def write_gradient_(logits_CV: Tensor, log_sum_C1: Tensor, factor_C1: Tensor, *, dtype: torch.dtype) -> Tensor:
    """factor * softmax in `dtype`, over the bytes of the logits; `dtype` takes at most as many as theirs."""
    rows, vocab = logits_CV.shape
    dz_CV = logits_CV.view(dtype)[:, :vocab]
    _write_row[(rows,)](
        logits_CV, dz_CV, log_sum_C1, factor_C1.contiguous(), logits_CV.stride(0), dz_CV.stride(0), vocab, BLOCK=BLOCK
    )
    return dz_CV


def _top_ids(logits_CV: Tensor, maxima_CW: Tensor, m: int) -> Tensor:
    width = maxima_CW.shape[1]
    if width < 2 * m:
        return top_ids(logits_CV, m)
    return among_groups(logits_CV, top_ids(maxima_CW, m), width, m)


@triton.jit
def _read_row(
    logits, log_sum, entropy, maxima, stride, vocab, width, GROUP: tl.constexpr, BLOCK: tl.constexpr
):  # pragma: no cover - compiled
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    lanes = tl.arange(0, BLOCK)
    dtype = logits.dtype.element_ty
    # Every lane keeps a largest logit, the sum of exponentials below it, and that sum weighted by the distance from it.
    largest = tl.full([BLOCK], float("-inf"), dtype)
    total = tl.zeros([BLOCK], dtype)
    weighted = tl.zeros([BLOCK], dtype)
    for first in range(0, width, BLOCK):
        columns = first + lanes
        inside = columns < width
        group_max = tl.full([BLOCK], float("-inf"), dtype)
        for member in tl.static_range(GROUP):
            z = tl.load(start + member * width + columns, mask=inside, other=float("-inf"))
            group_max = tl.maximum(group_max, z)
            largest, total, weighted = _take(largest, total, weighted, z)
        tl.store(maxima + row * width + columns, group_max, mask=inside)
    rest = GROUP * width + lanes  # fewer than GROUP columns belong to no group
    z = tl.load(start + rest, mask=rest < vocab, other=float("-inf"))
    largest, total, weighted = _take(largest, total, weighted, z)

    peak = tl.max(largest, 0)
    shift = tl.where(largest == float("-inf"), 0.0, largest - peak)  # of lanes that saw nothing, whose sums are 0
    scale = tl.exp(shift)
    sum_all = tl.sum(total * scale, 0)
    mean = tl.sum((weighted + total * shift) * scale, 0) / sum_all
    tl.store(log_sum + row, peak + tl.log(sum_all))
    tl.store(entropy + row, tl.log(sum_all) - mean)


@triton.jit
def _take(largest, total, weighted, z):  # pragma: no cover - compiled
    """The three sums of a lane after one logit more; a logit of -inf changes none."""
    higher = tl.maximum(largest, z)
    seen = higher > float("-inf")
    fall = tl.where(seen & (largest > float("-inf")), largest - higher, 0.0)
    below = tl.where(z > float("-inf"), z - higher, 0.0)
    scale = tl.exp(fall)
    here = tl.where(z > float("-inf"), tl.exp(below), 0.0)
    return higher, total * scale + here, (weighted + total * fall) * scale + here * below


@triton.jit
def _write_row(
    logits, dz, log_sum, factor, stride, dz_stride, vocab, BLOCK: tl.constexpr
):  # pragma: no cover - compiled
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    log_sum_row = tl.load(log_sum + row)
    factor_row = tl.load(factor + row)
    for first in range(0, vocab, BLOCK):
        columns = first + lanes
        inside = columns < vocab
        z = tl.load(logits + row * stride + columns, mask=inside, other=float("-inf"))
        # Both share their bytes: a block is written once all of it was read, and never past what was read.
        tl.debug_barrier()
        tl.store(
            dz + row * dz_stride + columns, (tl.exp(z - log_sum_row) * factor_row).to(dz.dtype.element_ty), mask=inside
        )
