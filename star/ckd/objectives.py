"""What a student is asked for at a token: the teacher's part of each loss with its gradient, and the draw behind RSKD.

With t the teacher's and q the student's probabilities, both raw (not renormalised), sums over the teacher's ids V_k:

    fkl   sum of t * (log t - log q), also the first part of ckd
    rkl   sum of q * (log q - log t)
    akl   (h * fkl + l * rkl) / (h + l), h and l the sums of |t - q| over head and tail of the teacher's ids; the head is
          the smallest set of its most probable ids whose probabilities reach 0.5. h and l are constants for the gradient
          (Wu et al., arXiv 2404.02657)
    rskd  fkl with t replaced by the shares of k ids drawn from the teacher with replacement (Anshumann et al., arXiv
          2503.16870); the draw is made where the rows are read, so here it is fkl

Every gradient for the student's logits z has the form dz = dense * q + at_ids * 1[V_k].

Shapes: C tokens of a chunk, T of a sequence, K teacher ids a token.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HEAD_MASS = 0.5  # of AKL


class TeacherTerm(NamedTuple):
    """One objective at C tokens: its value [C, 1], the factor of q [C, 1] and what is added at the teacher's ids [C, K]."""

    loss_C1: Tensor
    dense_C1: Tensor
    at_ids_CK: Tensor


def teacher_term(kind: str, logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    """The teacher's part of the loss `kind`, from both log-probabilities at the teacher's ids; ids with t = 0 count for nothing."""
    if kind == "rkl":
        return _reverse(logprobs_CK, log_q_CK)
    forward = _forward(logprobs_CK, log_q_CK)
    return _adaptive(forward, logprobs_CK, log_q_CK) if kind == "akl" else forward


def _forward(logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    t_CK = logprobs_CK.exp()
    loss_CK = (t_CK * (logprobs_CK - log_q_CK)).masked_fill_(t_CK == 0, 0.0)  # 0 * -inf is 0 here, as in xlogy
    return TeacherTerm(loss_CK.sum(1, keepdim=True), t_CK.sum(1, keepdim=True), -t_CK)


def _reverse(logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    unlisted_CK = logprobs_CK.exp() == 0
    q_CK = log_q_CK.exp().masked_fill_(unlisted_CK, 0.0)
    ratio_CK = (log_q_CK - logprobs_CK).masked_fill_(unlisted_CK | (q_CK == 0), 0.0)
    at_ids_CK = q_CK * (ratio_CK + 1)  # q times the derivative of the loss by q
    return TeacherTerm((q_CK * ratio_CK).sum(1, keepdim=True), -at_ids_CK.sum(1, keepdim=True), at_ids_CK)


def _adaptive(forward: TeacherTerm, logprobs_CK: Tensor, log_q_CK: Tensor) -> TeacherTerm:
    t_CK, order_CK = logprobs_CK.exp().sort(dim=1, descending=True, stable=True)
    gap_CK = (t_CK - log_q_CK.exp().gather(1, order_CK)).abs_().masked_fill_(t_CK == 0, 0.0)
    in_head_CK = t_CK.cumsum(1) - t_CK < HEAD_MASS
    smallest = torch.finfo(t_CK.dtype).tiny  # equal distributions leave no gap: the weights are then a half each
    head_C1 = (gap_CK * in_head_CK).sum(1, keepdim=True) + smallest
    tail_C1 = (gap_CK * ~in_head_CK).sum(1, keepdim=True) + smallest
    share_C1 = head_C1 / (head_C1 + tail_C1)
    pairs = zip(forward, _reverse(logprobs_CK, log_q_CK), strict=True)
    return TeacherTerm(*(share_C1 * fkl + (1 - share_C1) * rkl for fkl, rkl in pairs))


def draw_shares(logprobs_TK: np.ndarray, *, sequence_id: str, seed: int) -> np.ndarray:
    """The log shares [T, K] of K ids drawn at each token from its K stored ones with replacement; -inf for those not drawn.

    The stored probabilities are renormalised for the draw. It depends on the seed and the sequence only, so a resumed
    training sees the same.
    """
    rng = np.random.default_rng([seed, zlib.crc32(sequence_id.encode())])
    t_TK = np.exp(logprobs_TK.astype(np.float64))
    counts_TK = rng.multinomial(t_TK.shape[1], t_TK / t_TK.sum(1, keepdims=True))
    with np.errstate(divide="ignore"):
        return np.log(counts_TK / t_TK.shape[1]).astype(np.float32)
