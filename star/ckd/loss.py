"""The CKD loss, fused with the language-model head: the student's logits never exist as a whole.

For each completion token, with t the teacher's and q the student's probabilities, V_k the teacher's ids and V_m the
student's top-m ids among all tokens (STAR, arXiv 2602.03022, constrained knowledge distillation):

    FKL_k = sum over V_k of t * (log t - log q)          t is the raw probability, not renormalised over V_k
    tail  = sum over (V_m minus V_k) of q                the student's confidently incorrect mass
    loss  = FKL_k + tail_weight * tail

Membership in V_m is a constant for the gradient, which for the student's logits z is then

    dz = (sum_Vk t - tail_weight * tail) * q + tail_weight * q * 1[V_m minus V_k] - t * 1[V_k]

So the forward pass walks the rows in chunks, turns one [chunk, V] buffer of logits into dz in place and multiplies it
out into the gradients of hidden and weight at once; the backward pass only scales them by the incoming gradient.

Shapes: T completion tokens, C tokens of a chunk, H hidden, V vocabulary, K teacher ids a token, M student ids a token.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 * 2**20  # what the [C, V] buffer may take when the caller names no chunk size
MIN_CHUNK = 16  # fewer rows make the matrix products too thin


class CKDOutput(NamedTuple):
    """The loss (differentiable) and its parts (detached; tail is unweighted): scalars under the same reduction."""

    loss: Tensor
    fkl: Tensor
    tail: Tensor


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
        teacher_ids_TK: ids of any integer type. All listed ids are in V_k, so pad by repeating one of the row's own.
        teacher_logprobs_TK: natural logarithms of the teacher's probabilities; -inf (as padding has) adds nothing.
        top_m: how many of the student's own ids are searched for tail mass; more than V means all.
        tail_weight: the paper's lambda.
        chunk_size: rows at a time, by default what `CHUNK_BYTES` hold; it changes memory and speed, not the result.
        reduction: "mean" over the T rows, or "sum", to be divided by a token count that spans batches or ranks.

    Returns:
        Scalars in nats a token (or their sum), float64 for float64 input and float32 otherwise. Zero rows give zeros.

    Raises:
        ValueError: shapes that do not fit together, an unknown reduction, chunk_size below 1 or top_m below 0.
    """
    _check_shapes(hidden_TH, weight_VH, teacher_ids_TK, teacher_logprobs_TK)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    if top_m < 0 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"top_m must be at least 0 and chunk_size at least 1, got {top_m} and {chunk_size}")
    rows, vocab = max(len(hidden_TH), 1), len(weight_VH)
    if chunk_size is None:
        chunk_size = max(MIN_CHUNK, CHUNK_BYTES // (vocab * _logit_dtype(hidden_TH).itemsize))
    settings = _Settings(
        top_m=min(top_m, vocab),
        tail_weight=tail_weight,
        chunk_size=min(chunk_size, rows),
        scale=1.0 / rows if reduction == "mean" else 1.0,
        grad_enabled=torch.is_grad_enabled(),
    )
    weight_VH = weight_VH.to(hidden_TH.dtype)
    return CKDOutput(*_FusedCKD.apply(hidden_TH, weight_VH, teacher_ids_TK, teacher_logprobs_TK, settings))


class _Settings(NamedTuple):
    top_m: int
    tail_weight: float
    chunk_size: int
    scale: float
    grad_enabled: bool  # inside an autograd.Function the grad mode is always off, so it is read outside


class _FusedCKD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, ids_TK: Tensor, logprobs_TK: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        given_dtype, dtype = hidden_TH.dtype, _logit_dtype(hidden_TH)
        if not hidden_TH.is_cuda:  # only CUDA multiplies half-precision factors into a float32 result
            hidden_TH, weight_VH = hidden_TH.to(dtype), weight_VH.to(dtype)
        wants_hidden, wants_weight = (settings.grad_enabled and wanted for wanted in ctx.needs_input_grad[:2])
        grad_TH = torch.empty_like(hidden_TH, dtype=dtype) if wants_hidden else None
        grad_VH = torch.zeros_like(weight_VH, dtype=dtype) if wants_weight else None
        buffer_CV = hidden_TH.new_empty((settings.chunk_size, len(weight_VH)), dtype=dtype)
        sums_2 = hidden_TH.new_zeros((2,), dtype=dtype)
        for start in range(0, len(hidden_TH), settings.chunk_size):
            rows = slice(start, start + settings.chunk_size)
            hidden_CH, ids_CK, logprobs_CK = hidden_TH[rows], ids_TK[rows].long(), logprobs_TK[rows].to(dtype)
            logits_CV = _matmul_into(buffer_CV[: len(hidden_CH)], hidden_CH, weight_VH.t())
            sums_2 += _logits_to_gradient_(logits_CV, ids_CK, logprobs_CK, settings)
            if wants_hidden or wants_weight:
                dz_CV = logits_CV.to(hidden_CH.dtype)
            if wants_hidden:
                _matmul_into(grad_TH[rows], dz_CV, weight_VH)
            if wants_weight:
                _matmul_into(grad_VH, dz_CV.t(), hidden_CH, add=True)
        ctx.save_for_backward(
            *(None if grad is None else grad.mul_(settings.scale).to(given_dtype) for grad in (grad_TH, grad_VH))
        )
        fkl, tail = sums_2[0] * settings.scale, sums_2[1] * settings.scale
        ctx.mark_non_differentiable(fkl, tail)
        return fkl + settings.tail_weight * tail, fkl, tail

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_TH, grad_VH = (None if grad is None else grad * grad_loss for grad in ctx.saved_tensors)
        return grad_TH, grad_VH, None, None, None


def _logits_to_gradient_(logits_CV: Tensor, ids_CK: Tensor, logprobs_CK: Tensor, settings: _Settings) -> Tensor:
    """Overwrites the logits with dz, the gradient of the summed loss; returns the sums of FKL_k and of tail mass, [2].

    The buffer is logits, then exp(logits - largest), for a moment with -1 at V_k, then dz; its name says which.
    """
    top_CM = logits_CV.topk(settings.top_m, dim=1, sorted=False).indices
    largest_C1 = logits_CV.amax(dim=1, keepdim=True)
    logits_CK = logits_CV.gather(1, ids_CK)
    exp_CV = logits_CV.sub_(largest_C1).exp_()
    sum_C1 = exp_CV.sum(dim=1, keepdim=True)

    log_q_CK = logits_CK - largest_C1 - sum_C1.log()
    t_CK = logprobs_CK.exp()
    fkl_CK = (t_CK * (logprobs_CK - log_q_CK)).masked_fill_(t_CK == 0, 0.0)  # 0 * -inf is 0 here, as in xlogy

    exp_CK = exp_CV.gather(1, ids_CK)
    exp_CV.scatter_(1, ids_CK, -1.0)  # no exponential is negative: -1 marks the members of V_k
    wrong_CM = exp_CV.gather(1, top_CM).clamp_(min=0.0) / sum_C1
    exp_CV.scatter_(1, ids_CK, exp_CK)
    tail_C1 = wrong_CM.sum(dim=1, keepdim=True)

    dz_CV = exp_CV.mul_((t_CK.sum(dim=1, keepdim=True) - settings.tail_weight * tail_C1) / sum_C1)
    dz_CV.scatter_add_(1, top_CM, settings.tail_weight * wrong_CM)
    dz_CV.scatter_add_(1, ids_CK, -t_CK)
    return torch.stack([fkl_CK.sum(), tail_C1.sum()])


def _matmul_into(out: Tensor, left: Tensor, right: Tensor, *, add: bool = False) -> Tensor:
    """out (+)= left @ right. Half-precision factors (CUDA) are summed in the float32 of `out`."""
    if left.dtype == out.dtype:
        return out.addmm_(left, right, beta=int(add))
    if add:
        return out.add_(torch.mm(left, right, out_dtype=out.dtype))
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def _logit_dtype(hidden_TH: Tensor) -> torch.dtype:
    """The type of logits, sums and gradients while they are made: never below float32."""
    return torch.promote_types(hidden_TH.dtype, torch.float32)


def _check_shapes(hidden_TH: Tensor, weight_VH: Tensor, ids_TK: Tensor, logprobs_TK: Tensor) -> None:
    hidden, weight, ids, logprobs = (tuple(tensor.shape) for tensor in (hidden_TH, weight_VH, ids_TK, logprobs_TK))
    if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
        raise ValueError(f"hidden {hidden} and weight {weight} must be [T, H] and [V, H]")
    if len(ids) != 2 or ids != logprobs or ids[0] != hidden[0]:
        raise ValueError(f"teacher ids {ids} and log-probabilities {logprobs} must both be [T, K] with T = {hidden[0]}")
