"""Parameter graphs as networkx graphs, JSON and PyTorch Geometric data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from weightspace.errors import MissingDependencyError
from weightspace.graph.structure import EDGE_KINDS, NODE_KINDS

if TYPE_CHECKING:
    import networkx

    from weightspace.graph.parameter_graph import ParameterGraph


def networkx_graph(graph: ParameterGraph) -> networkx.DiGraph:
    """Return a DiGraph.

    Node attributes: `layer`, `bias`, `activation`, `kind`, `position`, and `mean` and `variance` where the network
    has batch normalization. Edge attributes: `weight`, a number, or a tuple row by row for kernels, and `kind`.

    Raises:
        ShapeError: the graph holds several networks of one architecture.
    """
    import networkx

    features = graph.single().node_features.tolist()
    layers = graph.structure.layers
    drawn = networkx.DiGraph()
    positions = graph.structure.node_position.tolist()
    for node, (number, own, position) in enumerate(
        zip(graph.node_layer.tolist(), features, positions, strict=True)
    ):
        layer = layers[number]
        drawn.add_node(
            node,
            layer=number,
            activation=layer.activation,
            kind=layer.kind,
            position=position,
            **dict(zip(("bias", "mean", "variance"), own, strict=False)),
        )
    for source, target, kind, weights in zip(
        *graph.edge_index.tolist(),
        graph.structure.edge_kind.tolist(),
        graph.edge_features.tolist(),
        strict=True,
    ):
        weight = weights[0] if len(weights) == 1 else tuple(weights)
        drawn.add_edge(source, target, weight=weight, kind=EDGE_KINDS[kind])
    return drawn


def json_text(graph: ParameterGraph) -> str:
    """Return the graph as JSON.

    Keys: `layers` (name, kind, size, activation; nodes are numbered layer by layer), `layer_sizes`, `activations`,
    `positions`, `biases`, `edges` (source, target), `kinds` (of the edges), `kernel` (rows, columns), `weights`
    (numbers, or lists of a kernel's entries row by row), and `means` and `variances` with batch normalization.

    Raises:
        ShapeError: the graph holds several networks of one architecture.
    """
    structure = graph.single().structure
    features = graph.node_features.mT.tolist()
    scalar = graph.edge_features.shape[1] == 1
    return json.dumps(
        {
            "layer_sizes": graph.layer_sizes,
            "activations": graph.activations,
            "layers": [
                {"name": layer.name, "kind": layer.kind, "size": layer.size, "activation": layer.activation}
                for layer in structure.layers
            ],
            "positions": structure.node_position.tolist(),
            **dict(zip(("biases", "means", "variances"), features, strict=False)),
            "edges": graph.edge_index.mT.tolist(),
            "kinds": [EDGE_KINDS[kind] for kind in structure.edge_kind.tolist()],
            "kernel": structure.kernel,
            "weights": (graph.edge_features[:, 0] if scalar else graph.edge_features).tolist(),
        }
    )


def pyg_data(graph: ParameterGraph) -> Any:
    """Return a `torch_geometric.data.Data`.

    `x` (nodes, channels), `edge_index` (2, edges), `edge_attr` (edges, channels), `edge_kind`, `node_kind` (places in
    EDGE_KINDS and NODE_KINDS), `node_layer`, `node_position`, `node_graph`, and `num_nodes`.

    Raises:
        MissingDependencyError: torch_geometric is not installed.
        ShapeError: the graph holds several networks of one architecture.
    """
    try:
        from torch_geometric.data import Data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            'to_pyg needs PyTorch Geometric; install it with: pip install "weightspace[pyg]"'
        ) from error
    structure = graph.single().structure
    kinds = torch.tensor(
        [NODE_KINDS.index(layer.kind) for layer in structure.layers], device=graph.edge_index.device
    )
    return Data(
        x=graph.node_features,
        edge_index=graph.edge_index,
        edge_attr=graph.edge_features,
        edge_kind=structure.edge_kind,
        node_kind=kinds[graph.node_layer],
        node_layer=graph.node_layer,
        node_position=structure.node_position,
        node_graph=structure.node_graph,
        num_nodes=structure.nodes,
    )
