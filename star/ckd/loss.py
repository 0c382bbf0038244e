"""Computes the CKD loss and its baselines, fused with the language-model head.

The student's logits [T, V] never exist as a whole.

For each completion token, with t the teacher's and q the student's probabilities, V_k the teacher's ids and V_m the
student's top-m ids among all tokens (STAR, arXiv 2602.03022, constrained knowledge distillation):

    FKL_k = sum over V_k of t * (log t - log q)          t is the raw probability, not renormalised over V_k
    tail  = sum over (V_m minus V_k) of q                the student's confidently incorrect mass
    loss  = FKL_k + tail_weight * tail

Membership in V_m is a constant for the gradient, which for the student's logits z is then

    dz = (sum_Vk t - tail_weight * tail) * q + tail_weight * q * 1[V_m minus V_k] - t * 1[V_k]

One token of a vocabulary of 4, with top_m = 2 and tail_weight = 10:

    q = 0.5, 0.3, 0.15, 0.05         V_k = ids 1 and 3 with t = 0.6 and 0.2; V_m = ids 0 and 1; so V_m minus V_k = id 0
    FKL_k = 0.6 * log(0.6 / 0.3) + 0.2 * log(0.2 / 0.05) = 0.693;  tail = 0.5;  loss = 0.693 + 10 * 0.5 = 5.693
    dz = (0.8 - 10 * 0.5) * q        = -2.10, -1.26, -0.63, -0.21
         + 10 * 0.5 at id 0, -0.6 at id 1, -0.2 at id 3
       = 2.90, -1.86, -0.63, -0.41   a step against it lowers id 0, which the teacher lacks, and raises the others

How it is computed: the forward pass walks the tokens in chunks. It writes the logits of a chunk into one buffer [C, V],
turns them into dz in place (gradient.py, or the Triton kernels of kernel.py), and multiplies dz out into the gradients
of hidden and weight at once. The backward pass only scales these by the incoming gradient. The baselines differ in the
factor of q and in what is added at single ids (objectives.py, terms.py), and share everything else.

The matrix products walk the vocabulary in blocks. On a CPU a block stays in the cache, so a small buffer is as fast as
a large one; on CUDA the blocks bound the temporaries.

Shapes: T completion tokens, C tokens of a chunk, H hidden, V vocabulary, B ids of a block, K teacher ids per token,
S statistics of `KDOutput`.
"""

from itertools import zip_longest
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from star.ckd.backend import choose_backend
from star.ckd.terms import ChunkTargets, LossKind, LossSettings

LOSS_KINDS: tuple[LossKind, ...] = ("ce", "fkl", "rkl", "akl", "rskd", "ckd")
# Size of the buffer [C, V] where the caller gives no chunk size: this, or a quarter of the head's gradient where that
# is more, because fewer rows of a large head would make the matrix products too thin.
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
# Size of the head's weights in one block of the vocabulary.
BLOCK_BYTES = {"cpu": 2**20, "cuda": 64 * 2**20}
MIN_CHUNK = 16  # fewer rows make the matrix products too thin; larger chunks are a multiple of it


class CKDOutput(NamedTuple):
    """The loss (differentiable) and its two terms (detached; tail is unweighted): scalars under the same reduction."""

    loss: Tensor
    fkl: Tensor
    tail: Tensor


class KDOutput(NamedTuple):
    """The loss (differentiable) and statistics beside it (detached): scalars under the same reduction.

    Attributes:
        loss: what is minimised.
        fkl: FKL_k, whatever the loss.
        tail: the student's mass on V_m minus V_k; 0 unless the loss is CKD or statistics were asked for.
        ce: cross-entropy of the labels; 0 without labels.
        entropy: entropy of the student in nats; 0 unless statistics were asked for.
        overlap: share of V_m that is in V_k; 0 unless the loss is CKD or statistics were asked for.
    """

    loss: Tensor
    fkl: Tensor
    tail: Tensor
    ce: Tensor
    entropy: Tensor
    overlap: Tensor


def fused_linear_ckd(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    teacher_ids_TK: Tensor,
    teacher_logprobs_TK: Tensor,
    *,
    top_m: int = 100,
    tail_weight: float = 10.0,
    chunk_size: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> CKDOutput:
    """The CKD loss of a student whose logits are `hidden_TH @ weight_VH.T`, once differentiable in both.

    Args:
        hidden_TH: the student's last hidden states at completion tokens only; float64, float32 or bfloat16.
        weight_VH: the head, without bias, cast to the type of `hidden_TH`. A frozen head costs no gradient.
        teacher_ids_TK: ids of any integer type. All listed ids are in V_k, so pad a row by
            repeating one of its own ids.
        teacher_logprobs_TK: natural logarithms of the teacher's probabilities; -inf, as padding has, adds nothing.
        top_m: number of the student's most probable ids that may be tail mass; more than V means all. Of equal logits
            at the edge any may be taken, as by torch.topk.
        tail_weight: the paper's lambda.
        chunk_size: tokens per chunk, by default `default_chunk_size`; it changes memory and speed, not the result.
        reduction: "mean" over the T rows, or "sum", to be divided by a token count that spans batches or ranks.

    Returns:
        Scalars in nats per token (or their sum), float64 for float64 input and float32 otherwise. Zero rows give zeros.

    Raises:
        ValueError: shapes that do not fit together, ids outside the vocabulary, NaN or infinite input, an unknown
            reduction, chunk_size below 1 or top_m below 0. On CUDA, where reading values would make the CPU wait, an id
            outside the vocabulary is a device-side assertion and a NaN shows in the loss.
    """
    output = fused_linear_kd(
        hidden_TH,
        weight_VH,
        teacher_ids_TK,
        teacher_logprobs_TK,
        top_m=top_m,
        tail_weight=tail_weight,
        chunk_size=chunk_size,
        reduction=reduction,
    )
    return CKDOutput(output.loss, output.fkl, output.tail)


def fused_linear_kd(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    teacher_ids_TK: Tensor,
    teacher_logprobs_TK: Tensor,
    labels_T: Tensor | None = None,
    *,
    kind: LossKind = "ckd",
    kd_ratio: float = 1.0,
    top_m: int = 100,
    tail_weight: float = 10.0,
    chunk_size: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    statistics: bool = False,
) -> KDOutput:
    """Computes kd_ratio * distillation + (1 - kd_ratio) * ce, where distillation is CKD or a baseline of the paper.

    Args:
        labels_T: token ids that the teacher sampled; needed for "ce" and for a kd_ratio below 1.
        kind: "ce" (hard labels only), "fkl", "rkl", "akl", "rskd" or "ckd"; the equations are in objectives.py. For
            "rskd" the caller passes log shares drawn with `objectives.draw_shares` as log-probabilities.
        statistics: also compute tail, entropy and overlap where the loss itself does not need them.

    The other arguments, the types of the result and the errors are those of `fused_linear_ckd`.
    """
    _check_shapes(hidden_TH, weight_VH, teacher_ids_TK, teacher_logprobs_TK, labels_T)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    if kind not in LOSS_KINDS or not 0 <= kd_ratio <= 1:
        raise ValueError(
            f"kind must be one of {', '.join(LOSS_KINDS)} and kd_ratio in [0, 1], got {kind!r} and {kd_ratio}"
        )
    if top_m < 0 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"top_m must be at least 0 and chunk_size at least 1, got {top_m} and {chunk_size}")
    kd_ratio = 0.0 if kind == "ce" else kd_ratio
    if labels_T is None and kd_ratio < 1:
        raise ValueError(f"kind {kind!r} with kd_ratio {kd_ratio} needs labels_T, the sampled token ids")
    vocab, rows = len(weight_VH), max(len(hidden_TH), 1)
    _check_ids(teacher_ids_TK, vocab, name="teacher ids")
    if labels_T is not None:
        _check_ids(labels_T, vocab, name="labels")
    settings = LossSettings(
        kind=kind,
        kd_ratio=kd_ratio,
        top_m=min(top_m, vocab) if kind == "ckd" or statistics else 0,
        tail_weight=tail_weight if kind == "ckd" else 0.0,
        statistics=statistics,
        chunk_size=min(chunk_size or default_chunk_size(hidden_TH, vocab), rows),
        scale=1.0 / rows if reduction == "mean" else 1.0,
        grad_enabled=torch.is_grad_enabled(),
    )
    # Cast outside the autograd.Function, so that autograd casts the head's gradient back to its own type.
    weight_VH = weight_VH.to(hidden_TH.dtype)
    loss, sums_S = _FusedKD.apply(hidden_TH, weight_VH, teacher_ids_TK, teacher_logprobs_TK, labels_T, settings)
    # Only a result that is not finite pays for the search of its cause.
    if not sums_S.is_cuda and not sums_S.isfinite().all():
        _raise_for_bad_input(hidden_TH, weight_VH, teacher_logprobs_TK)
    return KDOutput(loss, *sums_S[1:].unbind())


def default_chunk_size(hidden_TH: Tensor, vocab: int) -> int:
    """Number of tokens whose logits fit in the device's `CHUNK_BYTES`, as a multiple of `MIN_CHUNK`."""
    row_bytes = vocab * logit_dtype(hidden_TH).itemsize
    quarter = hidden_TH.shape[1] // 4  # this many rows of V logits take a quarter of the gradient [V, H]
    rows = max(CHUNK_BYTES[_device_type(hidden_TH)] // row_bytes, quarter)
    return max(MIN_CHUNK, rows // MIN_CHUNK * MIN_CHUNK)


def logit_dtype(hidden_TH: Tensor) -> torch.dtype:
    """The type in which logits, sums and gradients are computed: never below float32."""
    return torch.promote_types(hidden_TH.dtype, torch.float32)


class _FusedKD(torch.autograd.Function):
    """The loss and its statistics [S]; the forward pass already computes the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        ids_TK: Tensor,
        logprobs_TK: Tensor,
        labels_T: Tensor | None,
        settings: LossSettings,
    ) -> tuple[Tensor, Tensor]:
        given_dtype, dtype = hidden_TH.dtype, logit_dtype(hidden_TH)
        if not hidden_TH.is_cuda:  # only CUDA multiplies half-precision factors into a float32 result
            hidden_TH, weight_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
        grad_TH, grad_VH = (
            torch.zeros_like(given, dtype=dtype) if settings.grad_enabled and is_needed else None
            for given, is_needed in zip((hidden_TH, weight_VH), ctx.needs_input_grad, strict=False)
        )
        buffer_CV = hidden_TH.new_empty((settings.chunk_size, len(weight_VH)), dtype=dtype)
        logits_to_gradient_ = choose_backend(hidden_TH.device.type)
        sums_S = hidden_TH.new_zeros((len(KDOutput._fields),), dtype=dtype)
        chunks = _slices(len(hidden_TH), settings.chunk_size)
        blocks = _slices(len(weight_VH), _rows_per_block(weight_VH))

        def write_logits(rows: slice, block: slice) -> None:
            hidden_CH = hidden_TH[rows]
            _matmul_into(buffer_CV[: len(hidden_CH), block], hidden_CH, weight_VH[block].t(), add=False)

        for block in blocks if chunks else ():
            write_logits(chunks[0], block)
        for rows, next_rows in zip_longest(chunks, chunks[1:]):
            hidden_CH, labels_C1 = hidden_TH[rows], None if labels_T is None else labels_T[rows, None].long()
            targets = ChunkTargets(ids_TK[rows].long(), logprobs_TK[rows].to(dtype), labels_C1)
            # The buffer holds this chunk's logits, and after the call its dz.
            logits_CV = buffer_CV[: len(hidden_CH)]
            chunk_sums_S, dz_CV = logits_to_gradient_(logits_CV, targets, settings, gradient_dtype=hidden_CH.dtype)
            sums_S += chunk_sums_S
            # From the last block to the first: dz in half precision lies in the first half of its row's bytes, so the
            # next chunk's logits must not be written over blocks of dz that are still to be read.
            for block in reversed(blocks):
                dz_CB = dz_CV[:, block]
                if grad_TH is not None:
                    _matmul_into(grad_TH[rows], dz_CB, weight_VH[block], add=True)
                if grad_VH is not None:
                    _matmul_into(grad_VH[block], dz_CB.t(), hidden_CH, add=True)
                if next_rows:  # this block of dz is used up; its weights are still in the cache
                    write_logits(next_rows, block)
        # Scaled and cast once at the end, so that the sums over all chunks are in float32 at least.
        ctx.save_for_backward(
            *(None if grad is None else grad.mul_(settings.scale).to(given_dtype) for grad in (grad_TH, grad_VH))
        )
        sums_S *= settings.scale
        # A tensor of its own: sums_S, whose first element it is, is marked as not differentiable.
        loss = sums_S[0].clone()
        ctx.mark_non_differentiable(sums_S)
        return loss, sums_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place where no second backward pass can follow: a copy of the head's gradient would double the peak memory.
        is_graph_kept = torch._C._autograd._get_current_graph_task_keep_graph()
        scaled = torch.mul if is_graph_kept else Tensor.mul_
        grad_TH, grad_VH = (
            None if grad is None else scaled(grad, grad_loss.to(grad.dtype)) for grad in ctx.saved_tensors
        )
        return grad_TH, grad_VH, None, None, None, None


def _matmul_into(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """Computes out (+)= left @ right. Half-precision factors (CUDA) are summed in the float32 of `out`."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, beta=int(add))
    elif add:
        out.add_(torch.mm(left, right, out_dtype=out.dtype))
    else:
        out.copy_(torch.mm(left, right, out_dtype=out.dtype))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _rows_per_block(weight_VH: Tensor) -> int:
    """Number of rows of the head that fit in `BLOCK_BYTES`."""
    row_bytes = max(weight_VH.shape[1], 1) * logit_dtype(weight_VH).itemsize
    return max(256, BLOCK_BYTES[_device_type(weight_VH)] // row_bytes)


def _device_type(tensor: Tensor) -> str:
    return "cuda" if tensor.is_cuda else "cpu"


def _check_shapes(
    hidden_TH: Tensor, weight_VH: Tensor, ids_TK: Tensor, logprobs_TK: Tensor, labels_T: Tensor | None
) -> None:
    hidden, weight, ids, logprobs = (tuple(tensor.shape) for tensor in (hidden_TH, weight_VH, ids_TK, logprobs_TK))
    if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
        raise ValueError(f"hidden {hidden} and weight {weight} must be [T, H] and [V, H]")
    if len(ids) != 2 or ids != logprobs or ids[0] != hidden[0]:
        raise ValueError(f"teacher ids {ids} and log-probabilities {logprobs} must both be [T, K] with T = {hidden[0]}")
    if labels_T is not None and tuple(labels_T.shape) != hidden[:1]:
        raise ValueError(f"labels {tuple(labels_T.shape)} must be [T] with T = {hidden[0]}")


def _check_ids(ids: Tensor, vocab: int, *, name: str) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, not {ids.dtype}")
    if ids.numel() == 0:
        return
    if ids.is_cuda:  # reading the ids here would make the CPU wait for the GPU in every step
        torch._assert_async(((ids >= 0) & (ids < vocab)).all(), f"{name} are outside the vocabulary of {vocab}")
        return
    lowest, highest = (int(bound) for bound in ids.aminmax())
    if lowest < 0 or highest >= vocab:
        raise ValueError(
            f"{name} from {lowest} to {highest} are outside the vocabulary of {vocab}: were they stored for another?"
        )


def _raise_for_bad_input(hidden_TH: Tensor, weight_VH: Tensor, logprobs_TK: Tensor) -> NoReturn:
    """Raises the ValueError that names the input because of which the loss is not finite."""
    for name, tensor in (("hidden states", hidden_TH), ("weights of the head", weight_VH)):
        rows = (~tensor.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if rows:
            raise ValueError(f"the {name} hold NaN or infinite values, first in row {rows[0]} of {len(tensor)}")
    # -inf is valid here: padding has it and adds nothing.
    bad = (logprobs_TK.isnan() | (logprobs_TK == torch.inf)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the teacher's log-probabilities hold NaN or +inf, first in row {bad[0]} of {len(logprobs_TK)}"
        )
    raise ValueError(
        "the loss is not finite although its inputs are: the logits overflow; are the weights far too large?"
    )
