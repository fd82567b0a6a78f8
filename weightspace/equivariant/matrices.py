"""The matrices of an equivariant map: whole, without the pairs that a small group lacks, or of low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightspace.equivariant.blocks import Block
from weightspace.equivariant.mixing import multiply
from weightspace.equivariant.partitions import Reading
from weightspace.equivariant.plan import Channel
from weightspace.equivariant.pooling import Pooling


def new_matrix(
    channel: Channel, in_channels: int, out_channels: int, rank: int | None, scales: Tensor
) -> nn.Module:
    """Return the map from (batch, read width x in, ...) to (batch, written width x out, ...)."""
    rows, columns = channel.written_width * out_channels, channel.read_width * in_channels
    if channel.exists is not None:
        exists = channel.exists
        exists = exists.repeat_interleave(torch.tensor(channel.written_fixed) * out_channels, 0)
        return PartialMatrix(
            exists.repeat_interleave(torch.tensor(channel.read_fixed) * in_channels, 1), scales
        )
    if rank is not None and rank * (rows + columns) < rows * columns:
        return LowRankMatrix(rows, rank, scales)
    return WholeMatrix(rows, scales)


def column_scales(channel: Channel, blocks: Sequence[Block], pooling: Pooling, in_channels: int) -> Tensor:
    """Standard deviations that make sums of standardized readings standardized, one for each column."""
    scales = []
    for reading, fixed in zip(channel.readings, channel.read_fixed, strict=True):
        scale = 1 / (pooling.scale(pooled_count(reading)) * math.sqrt(in_channels * channel.read_width))
        scales += [scale] * (fixed * in_channels)
    return torch.tensor(scales)


def pooled_count(reading: Reading) -> int:
    """How many values one average of a reading is taken over."""
    return math.prod(part.size for place, part in enumerate(reading.partition) if place not in reading.kept)


class WholeMatrix(nn.Module):
    """Every pair of a reading and a writing has its own entries."""

    def __init__(self, rows: int, scales: Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, len(scales)) * scales)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(self.weight, x)


class PartialMatrix(nn.Module):
    """Only some entries exist; the parameters are those and no others."""

    places: Tensor

    def __init__(self, exists: Tensor, scales: Tensor):
        super().__init__()
        self.shape = tuple(exists.shape)
        self.register_buffer("places", exists.reshape(-1).nonzero()[:, 0], persistent=False)
        self.entries = nn.Parameter((torch.randn(self.shape) * scales)[exists])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.entries.new_zeros(math.prod(self.shape)).index_put((self.places,), self.entries)
        return multiply(weight.view(self.shape), x)


class LowRankMatrix(nn.Module):
    """A product of two matrices."""

    def __init__(self, rows: int, rank: int, scales: Tensor):
        super().__init__()
        self.right = nn.Parameter(torch.randn(rank, len(scales)) * scales)
        self.left = nn.Parameter(torch.randn(rows, rank) / math.sqrt(rank))

    def forward(self, x: Tensor) -> Tensor:
        return multiply(self.left, multiply(self.right, x))
