"""Groups of products that are mixed into the same codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weightspace.errors import ShapeError


def group_columns(
    mixing: Tensor, *, threshold: float, side: int | None = None
) -> tuple[tuple[int, ...], ...]:
    r"""Group the columns of D that point into similar or opposite directions, largest group first, each ascending.

    The connected components (single linkage) of the graph whose edges are the pairs with
    $|(D^\top D)_{ij}| \ge t\,|D_i||D_j|$. Columns of zeros are groups of their own.

    Args:
        mixing: D, (k, m).
        threshold: t, above 0.
        side: how many rows of $D^\top D$ are held at once; None for all.
    Raises:
        ShapeError: a threshold that is not above 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not threshold > 0:
        raise ShapeError(f"clusters need a threshold above 0; it is {threshold}")
    columns = F.normalize(mixing.detach().double().cpu(), dim=0)
    size = columns.shape[1]
    pairs = []
    for start in range(0, size, side or size):
        near = (columns[:, start : start + (side or size)].mT @ columns).abs() >= threshold
        pairs.append(near.nonzero() + torch.tensor([start, 0]))
    rows, others = torch.cat(pairs).mT.numpy()
    graph = coo_array((rows >= 0, (rows, others)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(index)
    return tuple(sorted((tuple(group) for group in groups.values()), key=lambda group: (-len(group), group)))
