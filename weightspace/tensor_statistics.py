"""Moments, extremes, zeros and repeated rows of one tensor, in one pass over pieces of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 22  # 32 MB in float64: small beside the interpreter, large beside the cost of a call


@dataclass(frozen=True)
class TensorStatistics:
    """What one pass over a floating tensor tells.

    All numbers are over the finite entries; `mean` and what follows are None where there are none.

    Attributes:
        norm: Frobenius norm.
        std: population standard deviation (division by the number of entries).
        zeros: number of entries equal to zero.
        nan, inf: how many entries are not numbers, or infinite.
        zero_rows: rows of the (shape[0], rest) matrix that are exactly zero; None below two axes.
        repeated_rows: nonzero rows equal to an earlier row; None below two axes.
    """

    norm: float
    mean: float | None
    std: float | None
    minimum: float | None
    maximum: float | None
    zeros: int
    nan: int
    inf: int
    zero_rows: int | None
    repeated_rows: int | None


def unfold_rows(tensor: Tensor) -> Tensor:
    """View a tensor as a matrix, (shape[0], product of the rest); below two axes, as a single row."""
    tensor = tensor.detach()
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(tensor.shape[0], -1)


def tiles(matrix: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first row, first column, tile) over a matrix, tiles of whole rows where a row fits into one."""
    rows, columns = matrix.shape
    width = max(1, min(columns, TILE_ELEMENTS))
    height = max(1, TILE_ELEMENTS // width)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield row, column, matrix[row : row + height, column : column + width]


def to_float64(tile: Tensor) -> Tensor:
    """Return a piece of a tensor on the CPU in float64, which holds every smaller floating dtype exactly."""
    return tile.detach().cpu().to(torch.float64)


def summarize(tensor: Tensor) -> TensorStatistics:
    r"""Compute the statistics of a real floating tensor of any shape, dtype and device, in float64.

    Mean and variance are merged from tile to tile by Chan, Golub and LeVeque's update, which does not cancel
    when the mean is large beside the spread. Equal rows are found by a linear hash modulo $2^{64}$ with
    random odd coefficients over the bits of the entries, and then compared. Memory: a few tiles and 8 bytes
    per row.
    """
    matrix = unfold_rows(tensor)
    count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared deviations from the mean
    minimum, maximum = math.inf, -math.inf
    zeros = nan = inf = 0
    hashes = torch.zeros(matrix.shape[0], dtype=torch.int64) if tensor.ndim >= 2 else None
    alive = torch.zeros(matrix.shape[0], dtype=torch.bool)  # rows with an entry that is not zero
    for row, column, stored in tiles(matrix):
        if is_zero(stored):  # needs no float64 copy, and contributes 0 to the hash
            tile_mean, tile_squares, low, high, size = 0.0, 0.0, 0.0, 0.0, stored.numel()
            zeros += size
        else:
            tile = to_float64(stored)
            if hashes is not None:
                hashes[row : row + len(tile)] += _hash_rows(tile, column)
            nonzero = int(torch.count_nonzero(tile))
            zeros += tile.numel() - nonzero
            alive[row : row + len(tile)] |= True if nonzero == tile.numel() else (tile != 0).any(dim=1)
            low, high = (float(bound) for bound in tile.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                nan += int(tile.isnan().sum())
                inf += int(tile.isinf().sum())
                tile = tile[tile.isfinite()]
                if not tile.numel():
                    continue
                low, high = (float(bound) for bound in tile.aminmax())
            variance, average = torch.var_mean(tile, correction=0)
            size = tile.numel()
            tile_mean, tile_squares = float(average), float(variance) * size
        total = count + size
        shift = tile_mean - mean
        squares += tile_squares + shift * shift * (count * size / total)
        mean += shift * (size / total)
        count = total
        minimum, maximum = min(minimum, low), max(maximum, high)
    magnitude = max(abs(minimum), abs(maximum)) if count else 0.0
    if magnitude == 0 or 1e-140 < magnitude < 1e140:
        norm = math.sqrt(squares + count * mean * mean)
    else:  # float64 weights whose squares leave the range of float64
        norm = _scaled_norm(matrix, magnitude)
    zero_rows = repeated = None
    if hashes is not None:
        zero_rows, repeated = int((~alive).sum()), _count_repeated(matrix, hashes, alive)
    if not count:
        return TensorStatistics(norm, None, None, None, None, zeros, nan, inf, zero_rows, repeated)
    std = 0.0 if minimum == maximum else math.sqrt(squares / count)
    mean = minimum if minimum == maximum else mean
    return TensorStatistics(norm, mean, std, minimum, maximum, zeros, nan, inf, zero_rows, repeated)


def count_zeros(tensor: Tensor) -> int:
    """Count the entries equal to zero, of any real dtype (PyTorch's own function lacks some)."""
    return sum(
        tile.numel() - int(torch.count_nonzero(to_float64(tile))) for _, _, tile in tiles(unfold_rows(tensor))
    )


def is_zero(tile: Tensor) -> bool:
    """Tell whether all entries are zero; False is a safe answer and given where PyTorch cannot tell."""
    # A corner first: weights are rarely zero there, and then the tile is not read twice.
    try:
        return not torch.count_nonzero(tile[:1, :1]) and not torch.count_nonzero(tile)
    except (RuntimeError, NotImplementedError):  # float8 lacks it
        return False


def _scaled_norm(matrix: Tensor, magnitude: float) -> float:
    total = 0.0
    for _, _, stored in tiles(matrix):
        tile = to_float64(stored)
        tile = tile[tile.isfinite()] / magnitude
        total += float(tile @ tile)
    return magnitude * math.sqrt(total)


def _hash_rows(tile: Tensor, column: int) -> Tensor:
    """Hash the rows of a tile that begins at `column`; integer arithmetic wraps, so tiles of a row add up."""
    generator = torch.Generator().manual_seed(column)
    coefficients = torch.randint(-(2**62), 2**62, (tile.shape[1],), generator=generator) * 2 + 1
    bits = (tile + 0.0).view(torch.int64)  # + 0.0: minus zero equals zero
    # Modulo 2^64 a difference in the sign bit alone would survive multiplication by any odd number unchanged,
    # and two of them would cancel; hence the upper half is folded onto the lower one first.
    return ((bits ^ (bits >> 32)) * coefficients).sum(dim=1)


def _count_repeated(matrix: Tensor, hashes: Tensor, alive: Tensor) -> int:
    """Count the nonzero rows that equal an earlier one; only rows of equal hash are compared."""
    order = alive.nonzero().flatten()
    order = order[hashes[order].argsort(stable=True)]
    _, sizes = torch.unique_consecutive(hashes[order], return_counts=True)
    starts = sizes.cumsum(0) - sizes
    repeated = 0
    for index in (sizes > 1).nonzero().flatten().tolist():
        start = int(starts[index])
        members = order[start : start + int(sizes[index])]
        while len(members) > 1:  # more than once only if different rows share a hash
            equal = _equal_rows(matrix, members[1:], to_float64(matrix[int(members[0])]))
            repeated += int(equal.sum())
            members = members[1:][~equal]
    return repeated


def _equal_rows(matrix: Tensor, members: Tensor, row: Tensor) -> Tensor:
    """Return for each of these rows of the matrix whether it equals `row`."""
    height = max(1, TILE_ELEMENTS // max(1, matrix.shape[1]))
    found = [(to_float64(matrix[part.to(matrix.device)]) == row).all(dim=1) for part in members.split(height)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
