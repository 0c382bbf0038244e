"""Turns one chunk of logits into the gradient of its loss, in place, with plain torch: the backend for every device.

`logits_to_gradient_` has one big buffer [C, V], and what it holds changes three times without another one being made:

    logits z  ->  probabilities q = softmax(z)  ->  dz = q_factor * q  ->  dz with the additions at single ids

Everything that the loss needs of the logits is therefore read before the first step.

Shapes: C tokens of a chunk, V vocabulary, M student ids per token, L ids per token at which dz gets an addition, S
statistics of `KDOutput`.
"""

import torch
from torch import Tensor

from star.ckd.terms import ChunkTargets, LossSettings, compute_terms, read_logits_at_ids
from star.ckd.topm import top_ids


def logits_to_gradient_(
    logits_CV: Tensor, targets: ChunkTargets, settings: LossSettings, *, gradient_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Overwrites the logits with dz, the gradient of the summed loss.

    Args:
        logits_CV: the buffer; float32 or float64.

    Returns:
        The statistics of `KDOutput`, each summed over the chunk [S], and dz [C, V] in `gradient_dtype`. Where no
        gradient is wanted the second one holds anything.
    """
    # The buffer holds logits.
    logits = read_logits_at_ids(logits_CV, top_ids(logits_CV, max(settings.top_m, 1)), targets)
    largest_C1, column_C1 = logits.top_logits_CM.max(dim=1, keepdim=True)
    largest_ids_C1 = logits.top_ids_CM.gather(1, column_C1)

    # The buffer holds probabilities from here on. softmax works row by row, so it may write over its input.
    q_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)
    # z - log q is the same number at every id: the row's log-sum-exp. At the largest logit q cannot underflow.
    log_sum_C1 = largest_C1 - q_CV.gather(1, largest_ids_C1).log()
    entropy = _summed_entropy(q_CV) if settings.statistics else torch.zeros_like(largest_C1).sum()
    terms = compute_terms(logits, targets, settings, log_sum_C1=log_sum_C1, entropy=entropy)
    # Without a gradient two more passes over [C, V] would be thrown away.
    if not settings.grad_enabled:
        return terms.sums_S, q_CV

    # The buffer holds dz from here on: first the part that is dense in the vocabulary, then also the additions.
    dz_CV = q_CV.mul_(terms.q_factor_C1)
    # Added and not assigned: an id may occur several times, as padding repeats one of a row's own ids.
    dz_CV.scatter_add_(1, terms.added_ids_CL, terms.added_CL)
    return terms.sums_S, dz_CV.to(gradient_dtype)


def _summed_entropy(q_CV: Tensor) -> Tensor:
    """Entropy in nats, summed over the rows. One row at a time, so that no second [C, V] buffer is made."""
    return torch.stack([torch.special.entr(q_V).sum() for q_V in q_CV]).sum()
