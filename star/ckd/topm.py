"""Finds the m largest of each row without sorting the row: V is large, m is small.

The m largest elements lie in the m groups that have the largest maxima. So with groups of eight columns only the row of
maxima, an eighth as long, is searched (in the same way again), and then the 8 * m elements of the groups found.

For example the 2 largest of 12 columns, in groups of two; group j holds the columns j and j + 6:

    values  5 1 9 2 0 3   4 8 7 1 6 2
    maxima  5 8 9 2 6 3               the largest two are groups 2 and 1
    members of these groups           9 and 7, 1 and 8: the largest two are 9 (column 2) and 8 (column 7)

Shapes: C rows, V columns, G columns per group, W groups, R columns that belong to no group, M largest elements.
"""

import torch
from torch import Tensor

GROUP_SIZE = (
    8  # measured: smaller groups make the row of maxima longer and take more memory, larger ones leave more candidates
)
MIN_GROUPED_VOCAB = 1600  # shorter rows are searched directly, which is as fast and breaks ties as torch.topk does


def top_ids(values_CV: Tensor, m: int) -> Tensor:
    """Column numbers [C, M] of the m largest of each row, in no order.

    Of equal elements at the edge any may be taken.
    """
    vocab = values_CV.shape[1]
    width = vocab // GROUP_SIZE
    # With fewer than 2 * m groups most columns would stay candidates, and the search would save little.
    if vocab < MIN_GROUPED_VOCAB or width < 2 * m:
        return values_CV.topk(m, dim=1, sorted=False).indices
    # Group j holds the columns j, j + width, j + 2 * width, ...: maxima along a strided axis vectorise.
    groups_CM = top_ids(values_CV[:, : GROUP_SIZE * width].unflatten(1, (GROUP_SIZE, width)).amax(1), m)
    return top_ids_in_groups(values_CV, groups_CM, width, m)


def top_ids_in_groups(values_CV: Tensor, groups_CM: Tensor, width: int, m: int) -> Tensor:
    """Column numbers [C, M] of the m largest among the members of the given groups and the columns of no group.

    Args:
        groups_CM: numbers of the m groups with the largest maxima.
        width: number of groups W; group j holds the columns j, j + W, j + 2 * W, ...
    """
    size = values_CV.shape[1] // width
    grouped_CGW, rest_CR = values_CV[:, : size * width].unflatten(1, (size, width)), values_CV[:, size * width :]
    members_CGM = grouped_CGW.gather(2, groups_CM[:, None].expand(-1, size, -1))
    places_CM = torch.cat([members_CGM.flatten(1), rest_CR], dim=1).topk(m, dim=1, sorted=False).indices
    # A place below size * m is (position in the group, group) of a member; beyond it lies a column of no group.
    columns_CM = places_CM // m * width + groups_CM.gather(1, places_CM % m)
    # rest_CR begins at place size * m and at column size * width, hence the shift.
    return torch.where(places_CM < size * m, columns_CM, places_CM + size * (width - m))
