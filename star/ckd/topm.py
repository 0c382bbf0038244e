"""The m largest of a row, found without sorting the row: V is large, m is small.

The m largest elements lie within the m groups of largest maximum, so with groups of eight columns only the row of
maxima, an eighth as long, is searched (the same way again), and then the 8 * m elements of the groups it names.

Shapes: C rows, V columns, G columns of a group, W groups, R columns of none, M the largest.
"""

import torch
from torch import Tensor

GROUP = 8  # measured: fewer make a longer row to search and take more memory, more leave more candidates after it
SMALL = 1600  # rows this short are searched directly, which is as quick and breaks ties as torch.topk does


def top_ids(values_CV: Tensor, m: int) -> Tensor:
    """Column numbers [C, M] of the m largest of every row, in no order. Of equal elements at the edge any may be taken."""
    vocab = values_CV.shape[1]
    width = vocab // GROUP
    if vocab < SMALL or width < 2 * m:
        return values_CV.topk(m, dim=1, sorted=False).indices
    # Group j holds the columns j, j + width, j + 2 * width, ...: its maximum is taken along a strided axis, which vectorises.
    groups_CM = top_ids(values_CV[:, : GROUP * width].unflatten(1, (GROUP, width)).amax(1), m)
    return among_groups(values_CV, groups_CM, width, m)


def among_groups(values_CV: Tensor, groups_CM: Tensor, width: int, m: int) -> Tensor:
    """The m largest among the columns of the m groups named, and the columns that belong to no group."""
    size = values_CV.shape[1] // width
    grouped_CGW, rest_CR = values_CV[:, : size * width].unflatten(1, (size, width)), values_CV[:, size * width :]
    inside_CGM = grouped_CGW.gather(2, groups_CM[:, None].expand(-1, size, -1))
    places_CM = torch.cat([inside_CGM.flatten(1), rest_CR], dim=1).topk(m, dim=1, sorted=False).indices
    columns_CM = places_CM // m * width + groups_CM.gather(1, places_CM % m)
    return torch.where(places_CM < size * m, columns_CM, places_CM + size * (width - m))
