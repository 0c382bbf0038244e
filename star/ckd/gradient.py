"""From one chunk of logits to the gradient of its loss, in place: what the passes over V share and their plain form.

A path, `logits_to_gradient_` here or the one of kernel.py, reads the buffer (the top m, the sum of exponentials), asks
`weigh` what the loss wants at single ids, and overwrites the buffer with dz = factor * q + added at those ids.

Shapes: C tokens of a chunk, V vocabulary, K teacher ids a token, M student ids a token, L places something is added at,
S figures of `KDOutput`.
"""

import torch
from torch import Tensor

from star.ckd.terms import Chunk, Settings, look, weigh
from star.ckd.topm import top_ids


def logits_to_gradient_(
    logits_CV: Tensor, chunk: Chunk, settings: Settings, *, gradient_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Overwrites the logits with dz, the gradient of the summed loss.

    Returns:
        the sums of `KDOutput`'s figures [S], and dz [C, V] in `gradient_dtype` (anything, where no gradient is wanted).
    """
    looked = look(logits_CV, top_ids(logits_CV, max(settings.top_m, 1)), chunk)
    largest_C1, place_C1 = looked.logits_CM.max(dim=1, keepdim=True)
    q_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)  # row by row, so it may write over its input
    log_sum_C1 = largest_C1 - q_CV.gather(1, looked.top_CM.gather(1, place_C1)).log()
    entropy = _entropy(q_CV) if settings.statistics else torch.zeros_like(largest_C1).sum()
    weighed = weigh(looked, chunk, settings, log_sum_C1=log_sum_C1, entropy=entropy)
    if not settings.grad_enabled:
        return weighed.sums_S, q_CV
    dz_CV = q_CV.mul_(weighed.factor_C1).scatter_add_(1, weighed.places_CL, weighed.added_CL)
    return weighed.sums_S, dz_CV.to(gradient_dtype)


def _entropy(q_CV: Tensor) -> Tensor:
    """Summed over the rows; by row, so that nothing of the buffer's size is made beside it."""
    return torch.stack([torch.special.entr(q_V).sum() for q_V in q_CV]).sum()
