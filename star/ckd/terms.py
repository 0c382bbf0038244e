"""The terms of the loss for one chunk."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from star.ckd.objectives import teacher_term

Kind = Literal["ce", "fkl", "rkl", "akl", "rskd", "ckd"]


class Settings(NamedTuple):
    """What `fused_linear_kd` was asked for."""

    kind: Kind
    kd_ratio: float
    top_m: int
    tail_weight: float
    statistics: bool
    chunk_size: int
    scale: float
    grad_enabled: bool  # inside an autograd.Function the grad mode is always off, so it is read outside


class Chunk(NamedTuple):
    """What the teacher says of C tokens."""

    ids_CK: Tensor
    logprobs_CK: Tensor
    labels_C1: Tensor | None


class Looked(NamedTuple):
    """What stands in the buffer at single ids before it is overwritten: logits, and which of the top m the teacher has."""

    top_CM: Tensor
    logits_CM: Tensor
    logits_CK: Tensor
    logits_C1: Tensor | None
    in_teacher_CM: Tensor


class Weighed(NamedTuple):
    """The figures [S] of a chunk, and its dz: factor * q, and what is added at places, which may name an id twice."""

    sums_S: Tensor
    factor_C1: Tensor
    places_CL: Tensor
    added_CL: Tensor
    log_q_CL: Tensor


def look(logits_CV: Tensor, top_CM: Tensor, chunk: Chunk) -> Looked:
    """Reads the buffer at the teacher's ids, the student's and the labels."""
    logits_CM, logits_CK = logits_CV.gather(1, top_CM), logits_CV.gather(1, chunk.ids_CK)
    logits_C1 = None if chunk.labels_C1 is None else logits_CV.gather(1, chunk.labels_C1)
    # Membership is marked in the buffer itself, which is then put back as it was.
    logits_CV.scatter_(1, chunk.ids_CK, torch.inf)
    in_teacher_CM = logits_CV.gather(1, top_CM) == torch.inf
    logits_CV.scatter_(1, chunk.ids_CK, logits_CK)
    return Looked(top_CM, logits_CM, logits_CK, logits_C1, in_teacher_CM)


def weigh(looked: Looked, chunk: Chunk, settings: Settings, *, log_sum_C1: Tensor, entropy: Tensor) -> Weighed:
    """The loss of a chunk, from what was read at single ids, the logarithm of each row's sum and the summed entropy."""
    kd, ce = settings.kd_ratio, 1.0 - settings.kd_ratio
    log_q_CK = looked.logits_CK - log_sum_C1
    # At least one was searched for, but only those asked for count.
    top_CM, in_teacher_CM = looked.top_CM[:, : settings.top_m], looked.in_teacher_CM[:, : settings.top_m]
    log_q_CM = looked.logits_CM[:, : settings.top_m] - log_sum_C1
    term = teacher_term(settings.kind, chunk.logprobs_CK, log_q_CK)
    is_forward = settings.kind in ("fkl", "ckd", "rskd")
    fkl_C1 = term.loss_C1 if is_forward else teacher_term("fkl", chunk.logprobs_CK, log_q_CK).loss_C1
    wrong_CM = log_q_CM.exp().masked_fill_(in_teacher_CM, 0.0)
    tail_C1 = wrong_CM.sum(1, keepdim=True)
    ce_C1 = torch.zeros_like(tail_C1) if chunk.labels_C1 is None else log_sum_C1 - looked.logits_C1
    loss_C1 = kd * (term.loss_C1 + settings.tail_weight * tail_C1) + ce * ce_C1
    if kd == 0:
        loss_C1 = ce_C1  # 0 * inf, where the unused term is infinite, is not 0
    overlap = in_teacher_CM.sum().to(tail_C1.dtype) / max(in_teacher_CM.shape[1], 1)
    sums_S = torch.stack([loss_C1.sum(), fkl_C1.sum(), tail_C1.sum(), ce_C1.sum(), entropy, overlap])

    factor_C1 = kd * (term.dense_C1 - settings.tail_weight * tail_C1) + ce
    additions = []
    if kd:
        additions.append((chunk.ids_CK, kd * term.at_ids_CK, log_q_CK))
    if kd and settings.tail_weight:
        additions.append((top_CM, kd * settings.tail_weight * wrong_CM, log_q_CM))
    if ce:
        additions.append((chunk.labels_C1, torch.full_like(tail_C1, -ce), -ce_C1))
    return Weighed(sums_S, factor_C1, *(torch.cat(parts, dim=1) for parts in zip(*additions, strict=True)))
