"""The m largest of a row, found without sorting the row: V is large, m is small.

The m largest elements lie within the m groups of largest maximum, so with groups of eight columns only the row of
maxima, an eighth as long, is searched (the same way again), and then the 8 * m elements of the groups it names.

Shapes: C rows, V columns, W columns of the row of maxima, M the largest.
"""

import torch
from torch import Tensor

GROUP = 8  # fewer make a longer row of maxima, more leave too many candidates
SMALL = 1600  # rows this short are searched directly, which is as quick and breaks ties as torch.topk does


def top_ids(values_CV: Tensor, m: int) -> Tensor:
    """Column numbers [C, M] of the m largest of every row, in no order. Of equal elements at the edge any may be taken."""
    vocab = values_CV.shape[1]
    width = vocab // GROUP
    if vocab < SMALL or width < 2 * m:
        return values_CV.topk(m, dim=1, sorted=False).indices
    # Group j holds the columns j, j + width, j + 2 * width, ...: its maximum is taken along a strided axis, which vectorises.
    maxima_CW = values_CV[:, : GROUP * width].unflatten(1, (GROUP, width)).amax(1)
    return among_groups(values_CV, top_ids(maxima_CW, m), width, m)


def among_groups(values_CV: Tensor, groups_CM: Tensor, width: int, m: int) -> Tensor:
    """The m largest among the columns of the groups named, and the columns that belong to no group."""
    rows, vocab = values_CV.shape
    starts = torch.arange(0, vocab // width * width, width, device=values_CV.device)
    candidates = (groups_CM[:, None, :] + starts[:, None]).flatten(1)
    if rest := vocab % width:
        left_over = torch.arange(vocab - rest, vocab, device=values_CV.device).expand(rows, -1)
        candidates = torch.cat([candidates, left_over], dim=1)
    places = values_CV.gather(1, candidates).topk(m, dim=1, sorted=False).indices
    return candidates.gather(1, places)
