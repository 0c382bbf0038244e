"""Computes the loss terms of one chunk from the logits at single ids.

Both backends (gradient.py: plain torch, kernel.py: Triton) use these functions. A backend makes the passes over the
vocabulary; what the loss needs at single ids, the top m, the teacher's and the label's, is read and computed here.

Shapes: C tokens of a chunk, V vocabulary, K teacher ids per token, M student ids per token, L ids per token at which dz
gets an addition, S statistics of `KDOutput`.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from star.ckd.objectives import teacher_term

LossKind = Literal["ce", "fkl", "rkl", "akl", "rskd", "ckd"]


class LossSettings(NamedTuple):
    """The arguments of `fused_linear_kd`, checked and completed.

    Attributes:
        top_m: student ids per token that count; 0 where neither the loss nor the statistics need them.
        tail_weight: 0 for every kind but "ckd".
        scale: factor on the sums at the end: 1 / T for the mean, 1 for the sum.
        grad_enabled: whether a gradient is wanted. Read outside, because inside an autograd.Function the grad mode is
            always off.
    """

    kind: LossKind
    kd_ratio: float
    top_m: int
    tail_weight: float
    statistics: bool
    chunk_size: int
    scale: float
    grad_enabled: bool


class ChunkTargets(NamedTuple):
    """What a chunk is trained towards: the teacher's ids and log-probs, and the ids that it sampled (labels)."""

    ids_CK: Tensor
    logprobs_CK: Tensor
    labels_C1: Tensor | None


class LogitsAtIds(NamedTuple):
    """Logits gathered at the top-m, teacher and label ids before the gradient overwrites them.

    Attributes:
        top_ids_CM: the student's top-m ids, in no order.
        top_logits_CM: logits at `top_ids_CM`.
        teacher_logits_CK: logits at the teacher's ids.
        label_logits_C1: logits at the labels; None without labels.
        is_teacher_id_CM: whether an id of `top_ids_CM` is one of the teacher's.
    """

    top_ids_CM: Tensor
    top_logits_CM: Tensor
    teacher_logits_CK: Tensor
    label_logits_C1: Tensor | None
    is_teacher_id_CM: Tensor


class ChunkTerms(NamedTuple):
    """The loss of a chunk, and its gradient for the logits in the form dz = q_factor * q, plus `added` at `added_ids`.

    Attributes:
        sums_S: the statistics of `KDOutput`, each summed over the chunk.
        q_factor_C1: factor of the student's probabilities q.
        added_ids_CL: ids at which something is added; an id may occur more than once, and its additions sum up.
        added_CL: what is added there.
        log_q_CL: log q there.
    """

    sums_S: Tensor
    q_factor_C1: Tensor
    added_ids_CL: Tensor
    added_CL: Tensor
    log_q_CL: Tensor


def read_logits_at_ids(logits_CV: Tensor, top_ids_CM: Tensor, targets: ChunkTargets) -> LogitsAtIds:
    """Reads the logits at the top-m, teacher and label ids. Leaves the buffer as it was."""
    top_logits_CM = logits_CV.gather(1, top_ids_CM)
    teacher_logits_CK = logits_CV.gather(1, targets.ids_CK)
    label_logits_C1 = None if targets.labels_C1 is None else logits_CV.gather(1, targets.labels_C1)
    # Which of the top m the teacher has: comparing M with K ids would need a tensor [C, M, K], a mask another [C, V].
    # So the teacher's ids are marked in the buffer itself, which holds +inf there until the logits are put back.
    logits_CV.scatter_(1, targets.ids_CK, torch.inf)
    is_teacher_id_CM = logits_CV.gather(1, top_ids_CM) == torch.inf
    logits_CV.scatter_(1, targets.ids_CK, teacher_logits_CK)
    return LogitsAtIds(top_ids_CM, top_logits_CM, teacher_logits_CK, label_logits_C1, is_teacher_id_CM)


def compute_terms(
    logits: LogitsAtIds, targets: ChunkTargets, settings: LossSettings, *, log_sum_C1: Tensor, entropy: Tensor
) -> ChunkTerms:
    """Computes the loss of a chunk and the parts of its gradient.

    Args:
        log_sum_C1: log-sum-exp of each row of logits; log q at an id is its logit minus this.
        entropy: entropy of q in nats, summed over the rows; it is passed on.
    """
    kd_weight, ce_weight = settings.kd_ratio, 1.0 - settings.kd_ratio
    log_q_CK = logits.teacher_logits_CK - log_sum_C1
    # The backends search for at least one id, because gradient.py needs the largest logit; only top_m ids count.
    top_ids_CM = logits.top_ids_CM[:, : settings.top_m]
    is_teacher_id_CM = logits.is_teacher_id_CM[:, : settings.top_m]
    log_q_CM = logits.top_logits_CM[:, : settings.top_m] - log_sum_C1

    term = teacher_term(settings.kind, targets.logprobs_CK, log_q_CK)
    # FKL is logged for every loss. Where the loss is a forward KL, it is not computed twice.
    is_forward = settings.kind in ("fkl", "ckd", "rskd")
    fkl_C1 = term.loss_C1 if is_forward else teacher_term("fkl", targets.logprobs_CK, log_q_CK).loss_C1
    tail_CM = log_q_CM.exp().masked_fill_(is_teacher_id_CM, 0.0)  # q at the top-m ids that the teacher lacks
    tail_C1 = tail_CM.sum(1, keepdim=True)
    ce_C1 = torch.zeros_like(tail_C1) if logits.label_logits_C1 is None else log_sum_C1 - logits.label_logits_C1
    loss_C1 = kd_weight * (term.loss_C1 + settings.tail_weight * tail_C1) + ce_weight * ce_C1
    if kd_weight == 0:
        loss_C1 = ce_C1  # 0 * inf, where the unused term is infinite, is not 0
    overlap = is_teacher_id_CM.sum().to(tail_C1.dtype) / max(is_teacher_id_CM.shape[1], 1)
    sums_S = torch.stack([loss_C1.sum(), fkl_C1.sum(), tail_C1.sum(), ce_C1.sum(), entropy, overlap])

    q_factor_C1 = kd_weight * (term.q_factor_C1 - settings.tail_weight * tail_C1) + ce_weight
    additions: list[tuple[Tensor, Tensor, Tensor]] = []  # ids, what is added there, log q there
    if kd_weight:
        additions.append((targets.ids_CK, kd_weight * term.added_CK, log_q_CK))
    if kd_weight and settings.tail_weight:
        additions.append((top_ids_CM, kd_weight * settings.tail_weight * tail_CM, log_q_CM))
    if ce_weight and targets.labels_C1 is not None:
        additions.append((targets.labels_C1, torch.full_like(tail_C1, -ce_weight), -ce_C1))
    added_ids_CL, added_CL, log_q_CL = (torch.cat(parts, dim=1) for parts in zip(*additions, strict=True))
    return ChunkTerms(sums_S, q_factor_C1, added_ids_CL, added_CL, log_q_CL)
