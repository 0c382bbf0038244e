"""Turns one chunk of logits into the gradient of its loss, in place, with Triton kernels: the backend for CUDA.

The results are those of gradient.py. The kernels read the buffer once and overwrite it once, where plain torch also
makes a pass each for the softmax, the entropy, the group maxima in which the top m are searched, and the cast. What the
buffer [C, V] holds:

    logits z  ->  z, but 0 at the ids with an addition  ->  dz = q_factor * exp(z - log_sum)  ->  dz with the additions

A gradient in half precision is written over the first half of each row's bytes, so there is still only one [C, V]
buffer. What is added at single ids is summed in the precision of the logits before it is rounded.

Triton compiles for CUDA. With TRITON_INTERPRET=1 set before this module is imported the kernels run, slowly, on a CPU.

Shapes: C tokens of a chunk, V vocabulary, M student ids per token, L ids per token at which dz gets an addition, S
statistics of `KDOutput`, W columns of the row of group maxima.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from star.ckd.terms import ChunkTargets, LossSettings, compute_terms, read_logits_at_ids
from star.ckd.topm import top_ids, top_ids_in_groups

GROUP_SIZE = 16  # columns per maximum: larger groups make a shorter row to search and leave more candidates
BLOCK_SIZE = 1024  # columns that a program holds at a time


def logits_to_gradient_(
    logits_CV: Tensor, targets: ChunkTargets, settings: LossSettings, *, gradient_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `star.ckd.gradient.logits_to_gradient_`. Half-precision dz is a view of the buffer with twice its stride."""
    # The buffer holds logits.
    log_sum_C1, entropy_C1, maxima_CW = read_rows(logits_CV)
    logits = read_logits_at_ids(logits_CV, _top_ids(logits_CV, maxima_CW, max(settings.top_m, 1)), targets)
    terms = compute_terms(logits, targets, settings, log_sum_C1=log_sum_C1, entropy=entropy_C1.sum())
    if not settings.grad_enabled:
        return terms.sums_S, logits_CV

    # An id may occur twice, so what is added to it must be summed first. The buffer serves as the accumulator, as its
    # logits at these ids are no longer needed: the buffer holds there 0, then the sums, which `gather` reads for each
    # occurrence of an id.
    ids_CL = terms.added_ids_CL
    added_CL = logits_CV.scatter_(1, ids_CL, 0.0).scatter_add_(1, ids_CL, terms.added_CL).gather(1, ids_CL)
    # The buffer holds 0 at these ids, which any finite number could be, and logits at all others.
    logits_CV.scatter_(1, ids_CL, 0.0)
    # The buffer holds dz from here on; at these ids it is wrong until the last line.
    dz_CV = write_gradient_(logits_CV, log_sum_C1, terms.q_factor_C1, dtype=gradient_dtype)
    # Summed in the precision of the logits and rounded once, because q_factor * q and the addition may nearly cancel.
    dz_CL = terms.q_factor_C1 * terms.log_q_CL.exp() + added_CL
    return terms.sums_S, dz_CV.scatter_(1, ids_CL, dz_CL.to(gradient_dtype))


def read_rows(logits_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads each row of logits once.

    Returns:
        log-sum-exp [C, 1], entropy of the softmax in nats [C, 1], and group maxima [C, W]. Group j holds the columns j,
        j + W, j + 2 * W, ...
    """
    rows, vocab = logits_CV.shape
    width = vocab // GROUP_SIZE
    log_sum_C1, entropy_C1 = (logits_CV.new_empty(rows, 1) for _ in range(2))
    maxima_CW = logits_CV.new_empty(rows, width)
    _read_row_kernel[(rows,)](
        logits_CV,
        log_sum_C1,
        entropy_C1,
        maxima_CW,
        logits_CV.stride(0),
        vocab,
        width,
        GROUP=GROUP_SIZE,
        BLOCK=BLOCK_SIZE,
    )
    return log_sum_C1, entropy_C1, maxima_CW


def write_gradient_(logits_CV: Tensor, log_sum_C1: Tensor, q_factor_C1: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Writes q_factor * softmax over the bytes of the logits, in `dtype`, which must not be wider than theirs."""
    rows, vocab = logits_CV.shape
    # The same bytes: in half precision a row has twice as many columns, and dz is the first half.
    dz_CV = logits_CV.view(dtype)[:, :vocab]
    _write_row_kernel[(rows,)](
        logits_CV,
        dz_CV,
        log_sum_C1,
        q_factor_C1.contiguous(),
        logits_CV.stride(0),
        dz_CV.stride(0),
        vocab,
        BLOCK=BLOCK_SIZE,
    )
    return dz_CV


def _top_ids(logits_CV: Tensor, maxima_CW: Tensor, m: int) -> Tensor:
    """As `star.ckd.topm.top_ids`, with the group maxima at hand."""
    width = maxima_CW.shape[1]
    # With so few groups most columns would stay candidates, so the row itself is searched.
    if width < 2 * m:
        return top_ids(logits_CV, m)
    return top_ids_in_groups(logits_CV, top_ids(maxima_CW, m), width, m)


@triton.jit
def _read_row_kernel(
    logits, log_sum, entropy, maxima, stride, vocab, width, GROUP: tl.constexpr, BLOCK: tl.constexpr
):  # pragma: no cover - compiled
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    lanes = tl.arange(0, BLOCK)
    dtype = logits.dtype.element_ty
    # Per lane, of the logits seen so far: the largest z, the sum of exp(z - largest), that sum weighted by z - largest.
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
            largest, total, weighted = _add_logit(largest, total, weighted, z)
        tl.store(maxima + row * width + columns, group_max, mask=inside)
    rest = GROUP * width + lanes  # the fewer than GROUP columns that belong to no group
    z = tl.load(start + rest, mask=rest < vocab, other=float("-inf"))
    largest, total, weighted = _add_logit(largest, total, weighted, z)

    # The lanes' sums are rescaled to the largest logit of the row and added up.
    peak = tl.max(largest, 0)
    shift = tl.where(largest == float("-inf"), 0.0, largest - peak)  # 0 for lanes that saw no logit; their sums are 0
    scale = tl.exp(shift)
    sum_all = tl.sum(total * scale, 0)
    mean = tl.sum((weighted + total * shift) * scale, 0) / sum_all
    tl.store(log_sum + row, peak + tl.log(sum_all))
    tl.store(entropy + row, tl.log(sum_all) - mean)


@triton.jit
def _add_logit(largest, total, weighted, z):  # pragma: no cover - compiled
    """The largest logit and the two sums of each lane after one more logit; -inf changes none of them."""
    higher = tl.maximum(largest, z)
    seen = higher > float("-inf")
    # -inf minus -inf is NaN, so a difference is taken only where both sides are finite.
    fall = tl.where(seen & (largest > float("-inf")), largest - higher, 0.0)
    below = tl.where(z > float("-inf"), z - higher, 0.0)
    scale = tl.exp(fall)
    here = tl.where(z > float("-inf"), tl.exp(below), 0.0)
    return higher, total * scale + here, (weighted + total * fall) * scale + here * below


@triton.jit
def _write_row_kernel(
    logits, dz, log_sum, q_factor, stride, dz_stride, vocab, BLOCK: tl.constexpr
):  # pragma: no cover - compiled
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    log_sum_row = tl.load(log_sum + row)
    q_factor_row = tl.load(q_factor + row)
    for first in range(0, vocab, BLOCK):
        columns = first + lanes
        inside = columns < vocab
        z = tl.load(logits + row * stride + columns, mask=inside, other=float("-inf"))
        # dz shares its bytes with the logits. All lanes must have read this block before any writes, and as dz is not
        # wider than the logits, a block of it never reaches logits that are still to be read.
        tl.debug_barrier()
        tl.store(
            dz + row * dz_stride + columns,
            (tl.exp(z - log_sum_row) * q_factor_row).to(dz.dtype.element_ty),
            mask=inside,
        )
