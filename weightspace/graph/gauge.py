"""Scales and signs of hidden units, chosen from the weights so that features and results can be expressed in them."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.structure import EDGE_KINDS, GraphStructure

HOMOGENEOUS = ("linear", "ReLU", "LeakyReLU", "MaxPool")  # of one channel, over space
ODD = ("linear", "Tanh", "sin", "atan", "erf", "softsign")
GROUPS = {"scale": HOMOGENEOUS, "sign": ODD}
AFFINE = tuple(EDGE_KINDS.index(kind) for kind in ("linear", "convolution"))


def choose_gauge(graph: ParameterGraph, group: str) -> Tensor:
    r"""Return one factor $r_i$ per unit that transforms as its activation does, (..., nodes).

    A hidden unit with a positively homogeneous nonlinearity may be scaled by any $s_i > 0$, one with an odd
    nonlinearity flipped by $s_i = \pm 1$: $b_i \to s_i b_i$ and $w_{ij} \to s_i w_{ij} / s_j$ leave the function.
    With $r_j = 1$ at all other units, layer by layer,
    $$r_i = \sqrt{\mathrm{mean}(b_i^2, (w_{ij} r_j)^2)} \quad\text{or}\quad
      r_i = \mathrm{sign}\big(b_i + \sum_j w_{ij} r_j\big),$$
    so that $r_i \to s_i r_i$. Then $b_i / r_i$ and $w_{ij} r_j / r_i$ are invariant, and nothing else is lost. The
    scale is continuous in the weights, the sign where its sum is not 0; a unit whose sum is 0 counts as positive.

    Args:
        group: "scale" or "sign". Units that are no plain hidden units between linear maps keep factor 1. The graph does
            not show constants added to units, nor maxima over space: for networks with these (signs only, for the
            maxima) the features lose information.
    Raises:
        ShapeError: another group, or several features per node (normalization statistics have no such symmetry).
    Source: for the groups, Kalogeropoulos et al., Scale equivariant graph metanetworks (2024), section 4; here they
    are divided out.
    """
    require_group(group)
    biases, weights, structure = graph.node_features, graph.edge_features, graph.structure
    if biases.shape[-1] != 1:
        raise ShapeError(
            f"equivariance to {group}s reads one feature per node, the bias; the graph has {biases.shape[-1]}"
        )
    source, target = structure.edge_index
    free = free_units(structure, group)
    sizes = torch.tensor([layer.size for layer in structure.layers], device=target.device)
    layer_of_edge = torch.arange(len(sizes), device=target.device).repeat_interleave(sizes)[target]
    by_layer = layer_of_edge.argsort(stable=True).split(layer_of_edge.bincount(minlength=len(sizes)).tolist())
    gauge = torch.ones_like(biases[..., 0])
    start = 0
    for layer, edges in zip(structure.layers, by_layer, strict=True):
        stop = start + layer.size
        if free[start:stop].any():  # then all of the layer are
            ends = target[edges] - start
            terms = weights[..., edges, :] * gauge[..., source[edges], None]
            own = biases[..., start:stop, 0]
            if group == "scale":
                squares = own.square().index_add(-1, ends, terms.square().sum(-1))
                counts = ends.bincount(minlength=layer.size) * weights.shape[-1] + 1
                gauge[..., start:stop] = _root(squares / counts)
            else:
                sums = own.index_add(-1, ends, terms.sum(-1))
                gauge[..., start:stop] = torch.where(sums < 0, -1.0, 1.0).to(sums)
        start = stop
    return gauge


def express(graph: ParameterGraph, gauge: Tensor) -> ParameterGraph:
    """Return the graph with features in units of the gauge, which are invariant; 0 at units whose gauge is 0."""
    source, target = graph.structure.edge_index
    inverse = torch.where(gauge != 0, 1 / torch.where(gauge != 0, gauge, 1), 0)
    factors = gauge[..., source] * inverse[..., target]
    return ParameterGraph(
        graph.structure, graph.node_features * inverse[..., None], graph.edge_features * factors[..., None]
    )


def return_units(result: Tensor, structure: GraphStructure, level: str, gauge: Tensor) -> Tensor:
    """Multiply results of nodes and edges so that they transform as biases and weights do."""
    if level == "graph":
        return result
    if level == "node":
        return result * gauge[..., None]
    source, target = structure.edge_index
    inverse = torch.where(gauge != 0, 1 / torch.where(gauge != 0, gauge, 1), 0)
    return result * (gauge[..., target] * inverse[..., source])[..., None]


def require_group(group: str) -> str:
    """Return the name of a group.

    Raises:
        ShapeError: it is neither "scale" nor "sign".
    """
    if group not in GROUPS:
        raise ShapeError(f"equivariance must be 'scale', 'sign' or None; got {group!r}")
    return group


def free_units(structure: GraphStructure, group: str) -> Tensor:
    """Whether each unit may be scaled on its own, (nodes,): hidden ones with linear maps alone on both sides."""
    affine = torch.isin(structure.edge_kind, structure.edge_kind.new_tensor(AFFINE))
    held = torch.zeros(structure.nodes, dtype=torch.bool, device=affine.device)
    held[structure.edge_index[:, ~affine].reshape(-1)] = True
    sizes = [layer.size for layer in structure.layers]
    hidden = [
        layer.kind == "hidden"
        and set(layer.activation.split(", ")) <= set(GROUPS[require_group(group)])
        and not bool(piece.any())
        for layer, piece in zip(structure.layers, held.split(sizes), strict=True)
    ]
    return torch.tensor(hidden, device=held.device).repeat_interleave(torch.tensor(sizes, device=held.device))


def _root(squares: Tensor) -> Tensor:
    """Square root with derivative 0 at 0."""
    return torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)
