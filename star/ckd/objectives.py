"""Computes the teacher's part of each distillation loss with its gradient, and draws the teacher's ids for RSKD.

With t the teacher's and q the student's probabilities, both raw (not renormalised), sums over the teacher's ids V_k:

    fkl   sum of t * (log t - log q), also the first part of ckd
    rkl   sum of q * (log q - log t)
    akl   (h * fkl + l * rkl) / (h + l), with the sums h and l of |t - q| over head and tail of the teacher's ids. The
          head is the smallest set of its most probable ids whose probabilities reach 0.5. h and l are constants for the
          gradient (Wu et al., arXiv 2404.02657)
    rskd  fkl with t replaced by the shares of k ids drawn from the teacher with replacement (Anshumann et al., arXiv
          2503.16870). The draw is made where the rows are read (`draw_shares`), so here it is fkl

Every gradient for the student's logits z has the form dz = q_factor * q + added * 1[V_k].

Shapes: C tokens of a chunk, T of a sequence, K teacher ids per token.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HEAD_MASS = 0.5  # probability that the head of AKL reaches


class TeacherTerm(NamedTuple):
    """One loss at C tokens: its value, the factor of q in dz, and what is added to dz at the teacher's ids."""

    loss_C1: Tensor
    q_factor_C1: Tensor
    added_CK: Tensor


def teacher_term(kind: str, logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    """The teacher's part of the loss `kind`, from both log-probabilities at the teacher's ids.

    Ids with t = 0 contribute nothing.
    """
    if kind == "rkl":
        return _reverse_kl(logprobs_CK, log_q_CK)
    forward = _forward_kl(logprobs_CK, log_q_CK)
    return _adaptive_kl(forward, logprobs_CK, log_q_CK) if kind == "akl" else forward


def _forward_kl(logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    t_CK = logprobs_CK.exp()
    loss_CK = (t_CK * (logprobs_CK - log_q_CK)).masked_fill_(t_CK == 0, 0.0)  # 0 * -inf is 0 here, as in xlogy
    return TeacherTerm(loss_CK.sum(1, keepdim=True), t_CK.sum(1, keepdim=True), -t_CK)


def _reverse_kl(logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    is_padding_CK = logprobs_CK.exp() == 0
    q_CK = log_q_CK.exp().masked_fill_(is_padding_CK, 0.0)
    # Padding has log t = -inf, and 0 * inf would be NaN.
    ratio_CK = (log_q_CK - logprobs_CK).masked_fill_(is_padding_CK | (q_CK == 0), 0.0)
    added_CK = q_CK * (ratio_CK + 1)  # q times the derivative of the loss by q
    return TeacherTerm((q_CK * ratio_CK).sum(1, keepdim=True), -added_CK.sum(1, keepdim=True), added_CK)


def _adaptive_kl(forward: TeacherTerm, logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    t_CK, order_CK = logprobs_CK.exp().sort(dim=1, descending=True, stable=True)
    gap_CK = (t_CK - log_q_CK.exp().gather(1, order_CK)).abs_().masked_fill_(t_CK == 0, 0.0)
    # The mass before an id, without its own: the id that reaches HEAD_MASS still belongs to the head.
    in_head_CK = t_CK.cumsum(1) - t_CK < HEAD_MASS
    smallest = torch.finfo(t_CK.dtype).tiny  # equal distributions have no gap; then both weights are 0.5
    head_C1 = (gap_CK * in_head_CK).sum(1, keepdim=True) + smallest
    tail_C1 = (gap_CK * ~in_head_CK).sum(1, keepdim=True) + smallest
    share_C1 = head_C1 / (head_C1 + tail_C1)
    pairs = zip(forward, _reverse_kl(logprobs_CK, log_q_CK), strict=True)
    return TeacherTerm(*(share_C1 * fkl + (1 - share_C1) * rkl for fkl, rkl in pairs))


def draw_shares(logprobs_TK: np.ndarray, *, sequence_id: str, seed: int) -> np.ndarray:
    """Draws K ids per token from its K stored ones, with replacement, for RSKD.

    The stored probabilities are renormalised for the draw. The draw depends on the seed and the sequence only, so a
    resumed training sees the same shares.

    Returns:
        Logarithm of each id's share of the draws [T, K]; -inf for an id that was not drawn.
    """
    rng = np.random.default_rng([seed, zlib.crc32(sequence_id.encode())])
    # In float64, because numpy's multinomial refuses float32 probabilities whose sum rounds to more than 1.
    t_TK = np.exp(logprobs_TK.astype(np.float64))
    counts_TK = rng.multinomial(t_TK.shape[1], t_TK / t_TK.sum(1, keepdims=True))
    # An id that was not drawn has share 0, whose logarithm is meant to be -inf.
    with np.errstate(divide="ignore"):
        return np.log(counts_TK / t_TK.shape[1]).astype(np.float32)
