"""Graphs of networks of several architectures side by side in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from weightspace.errors import ShapeError
from weightspace.graph.encoding import centered
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.structure import ZERO, GraphStructure


def batch_graphs(graphs: Sequence[ParameterGraph]) -> ParameterGraph:
    """Return the disjoint union of graphs, whatever their architectures.

    Kernels are centered in the largest one and missing node channels are 0. `structure.node_graph` tells the networks
    apart; layers, parameters and values of graph i are called "i.name". Leading axes must agree.

    Raises:
        ShapeError: no graphs, or leading axes that differ.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> graphs = [weightspace.encode(load(name)) for name in ("digits_mlp_a", "digits_maxmin")]
        >>> batch = weightspace.batch_graphs(graphs)
        >>> batch.structure.node_graph.unique().tolist()
        [0, 1]
    """
    if not graphs:
        raise ShapeError("batch_graphs needs at least one graph; it was given none")
    leading = {tuple(graph.node_features.shape[:-2]) for graph in graphs}
    if len(leading) > 1:
        raise ShapeError(f"the graphs must have the same leading axes; they have {sorted(leading)}")
    structure = _union([graph.structure for graph in graphs])
    channels = structure.node_entries.shape[1]
    return ParameterGraph(
        structure,
        torch.cat(
            [
                torch.nn.functional.pad(graph.node_features, (0, channels - graph.node_features.shape[-1]))
                for graph in graphs
            ],
            -2,
        ),
        torch.cat([_centered_features(graph, structure.kernel) for graph in graphs], -2),
    )


def _centered_features(graph: ParameterGraph, kernel: tuple[int, int]) -> torch.Tensor:
    features = graph.edge_features.unflatten(-1, graph.structure.kernel)
    (rows, columns), (high, wide) = graph.structure.kernel, kernel
    top, left = (high - rows) // 2, (wide - columns) // 2
    padding = (left, wide - columns - left, top, high - rows - top)
    return torch.nn.functional.pad(features, padding).flatten(-2)


def _union(structures: Sequence[GraphStructure]) -> GraphStructure:
    kernel = (max(s.kernel[0] for s in structures), max(s.kernel[1] for s in structures))
    channels = max(s.node_entries.shape[1] for s in structures)
    nodes, entries, networks = 0, 0, 0
    layers, indices, numbers, node_entries, edge_entries, parameters, readings = [], [], [], [], [], [], []
    for number, one in enumerate(structures):
        layers += [replace(layer, name=f"{number}.{layer.name}") for layer in one.layers]
        indices.append(one.edge_index + nodes)
        numbers.append(one.node_graph + networks)
        places = torch.nn.functional.pad(
            one.node_entries, (0, channels - one.node_entries.shape[1]), value=ZERO
        )
        node_entries.append(torch.where(places >= 0, places + entries, places))
        places = centered(one.edge_entries.unflatten(-1, one.kernel), kernel).flatten(1)
        edge_entries.append(torch.where(places >= 0, places + entries, places))
        parameters += [(f"{number}.{name}", shape) for name, shape in one.parameters]
        readings += [
            replace(
                r,
                value=f"{number}.{r.value}",
                start=r.start + nodes,
                stop=r.stop + nodes,
                numbers=r.numbers + nodes,
            )
            for r in one.readings
        ]
        nodes += one.nodes
        entries += sum(torch.Size(shape).numel() for _, shape in one.parameters)
        networks += one.graphs
    return GraphStructure(
        layers=tuple(layers),
        edge_index=torch.cat(indices, 1),
        edge_kind=torch.cat([one.edge_kind for one in structures]),
        node_position=torch.cat([one.node_position for one in structures]),
        node_depth=torch.cat([one.node_depth for one in structures]),
        node_graph=torch.cat(numbers),
        node_entries=torch.cat(node_entries),
        edge_entries=torch.cat(edge_entries),
        kernel=kernel,
        parameters=tuple(parameters),
        readings=tuple(readings),
    )
