"""Aggregation of edges at nodes without scatter: nodes of one degree are a dense array, reduced along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graph.structure import EdgeBucket

AGGREGATORS = ("mean", "min", "max", "std")
VARIANCE_FLOOR = 1e-5  # the square root has no derivative at 0, where all neighbors agree


@dataclass(frozen=True, eq=False)
class Neighborhoods:
    """The edges at every node, arranged for `aggregate`.

    order: the edges sorted by node within blocks of one degree, None when they stand in that order already.
    shapes: (nodes, degree) of the blocks.
    restore: place of each node among those of the blocks, None when they stand in that order already.
    """

    order: Tensor | None
    shapes: tuple[tuple[int, int], ...]
    restore: Tensor | None

    @staticmethod
    def of(buckets: Sequence[EdgeBucket]) -> Neighborhoods:
        """Arrange the buckets of a structure (`incoming` or `outgoing`)."""
        nodes = torch.cat([bucket.nodes for bucket in buckets])
        edges = torch.cat([bucket.edges.reshape(-1) for bucket in buckets])
        shapes = tuple((bucket.edges.shape[0], bucket.edges.shape[1]) for bucket in buckets)
        return Neighborhoods(
            order=None if _is_range(edges) else edges,
            shapes=shapes,
            restore=None if _is_range(nodes) else nodes.argsort(),
        )


def aggregate(messages: Tensor, neighborhoods: Neighborhoods, aggregators: Sequence[str]) -> Tensor:
    r"""Summarize the messages at each node, one after another along the last axis; 0 at nodes without any.

    For $d$ messages $m_1 \dots m_d$: "mean" is $\mu = \frac1d \sum_i m_i$, "min" and "max" are elementwise, "std" is
    $\sqrt{\frac1d \sum_i (m_i - \mu)^2 + 10^{-5}}$.

    Args:
        messages: (edges, batch, channels).
        aggregators: names among AGGREGATORS.
    Returns:
        (nodes, batch, aggregators * channels).
    Source: Corso et al., Principal neighbourhood aggregation for graph nets (2020), section 3.
    """
    batch, channels = messages.shape[1:]
    if neighborhoods.order is not None:
        messages = messages.index_select(0, neighborhoods.order)
    blocks = messages.split([nodes * degree for nodes, degree in neighborhoods.shapes])
    summaries = [
        _Summary.apply(block.view(nodes, degree, batch, channels), tuple(aggregators))
        if degree
        else messages.new_zeros(nodes, batch, len(aggregators) * channels)
        for block, (nodes, degree) in zip(blocks, neighborhoods.shapes, strict=True)
    ]
    result = torch.cat(summaries) if len(summaries) > 1 else summaries[0]
    return result if neighborhoods.restore is None else result.index_select(0, neighborhoods.restore)


def require_aggregators(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ShapeError: one is not among AGGREGATORS, or there is none.
    """
    unknown = [name for name in names if name not in AGGREGATORS]
    if unknown or not names:
        raise ShapeError(
            f"aggregators must be among {', '.join(AGGREGATORS)}; got {', '.join(names) or 'none'}"
        )
    return tuple(names)


class _Summary(torch.autograd.Function):
    """All summaries of (nodes, degree, batch, channels) along the degree.

    Autograd would go over the edges a dozen times where four are enough; ties share the gradient evenly.
    """

    @staticmethod
    def forward(messages: Tensor, aggregators: tuple[str, ...]) -> Tensor:
        mean = messages.mean(1)
        results = {"mean": mean}
        if "std" in aggregators:
            variance = (messages - mean[:, None]).square_().mean(1)
            results["std"] = variance.add_(VARIANCE_FLOOR).sqrt_()
        for name, reduce in (("min", torch.amin), ("max", torch.amax)):
            if name in aggregators:
                results[name] = reduce(messages, 1)
        return torch.cat([results[name] for name in aggregators], -1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        messages, ctx.aggregators = inputs
        ctx.save_for_backward(messages, output)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        messages, output = ctx.saved_tensors
        degree, channels = messages.shape[1], messages.shape[-1]
        gradients = dict(zip(ctx.aggregators, gradient.split(channels, -1), strict=True))
        summaries = dict(zip(ctx.aggregators, output.split(channels, -1), strict=True))
        constant = gradients["mean"] / degree if "mean" in gradients else messages.new_zeros(1)
        if "std" in gradients:
            slope = gradients["std"] / (degree * summaries["std"])
            constant = constant - slope * (summaries["mean"] if "mean" in summaries else messages.mean(1))
            result = torch.addcmul(constant[:, None], slope[:, None], messages)
        else:
            result = torch.zeros_like(messages) + constant[:, None]
        for name in ("min", "max"):
            if name in gradients:
                # Written as numbers: several times as fast as truth values that are converted.
                attained = torch.empty_like(messages)
                torch.eq(messages.detach(), summaries[name].detach()[:, None], out=attained)
                result = torch.addcmul(result, attained, (gradients[name] / attained.sum(1))[:, None])
        return result, None


def _is_range(numbers: Tensor) -> bool:
    return torch.equal(numbers, torch.arange(len(numbers), device=numbers.device))
