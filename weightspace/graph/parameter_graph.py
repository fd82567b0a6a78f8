"""`ParameterGraph`: the parameters of networks as features of nodes and edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.graph.structure import GraphStructure

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False)
class ParameterGraph:
    """Neural graphs: nodes are neurons (inputs included), edges are weights.

    An exact zero weight keeps its edge: the edges follow from the structure, not from the values.

    Attributes:
        structure: nodes and edges, shared by all networks of the batch.
        node_features: (..., nodes, channels): the bias of each neuron first, 0 where there is none; then the running
            mean and variance of batch normalization.
        edge_features: (..., edges, channels): the weights; the channels are the places of the largest kernel.

    The leading axes count networks of one architecture; networks of several architectures stand side by side in
    one `structure` (`batch_graphs`), told apart by `structure.node_graph`.
    Source: Kofinas et al., Graph neural networks for learning equivariant representations of neural networks
    (2024), section 3.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import load
        >>> graph = weightspace.encode(load("digits_mlp_a"))
        >>> graph.node_features.shape, graph.edge_index.shape
        (torch.Size([110, 1]), torch.Size([2, 1944]))
    """

    structure: GraphStructure
    node_features: Tensor
    edge_features: Tensor

    @property
    def edge_index(self) -> Tensor:
        """(2, edges) int64, source and target node."""
        return self.structure.edge_index

    @property
    def node_layer(self) -> Tensor:
        """(nodes,) int64, the layer of each node; nodes are numbered layer by layer."""
        sizes = torch.tensor(self.layer_sizes, device=self.edge_index.device)
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Number of nodes per layer."""
        return tuple(layer.size for layer in self.structure.layers)

    @property
    def activations(self) -> tuple[str, ...]:
        """The nonlinearity behind each layer, "input" for inputs, "linear" where there is none."""
        return tuple(layer.activation for layer in self.structure.layers)

    def __repr__(self) -> str:
        sizes = self.layer_sizes
        shown = "-".join(map(str, sizes)) if len(sizes) <= 12 else f"{len(sizes)} layers"
        leading = f", {tuple(self.node_features.shape[:-2])} networks" if self.node_features.ndim > 2 else ""
        return f"ParameterGraph({shown}, {self.structure.nodes:,} nodes, {self.structure.edges:,} edges{leading})"

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> ParameterGraph:
        """Return the graphs of other networks of the same architecture, differentiably.

        Args:
            parameters: name -> (..., *shape), the same leading axes for all; further names are ignored.
        Raises:
            ShapeError: a parameter is missing or has another shape than the one encoded.
        """
        return ParameterGraph(self.structure, *self.structure.gather(parameters))

    def to(self, *args: Any, **kwargs: Any) -> ParameterGraph:
        """Return the graph on another device or with features of another dtype, as `Tensor.to` says it."""
        nodes = self.node_features.to(*args, **kwargs)
        return ParameterGraph(self.structure.to(nodes.device), nodes, self.edge_features.to(*args, **kwargs))

    def to_networkx(self) -> networkx.DiGraph:
        """Return a DiGraph; see `weightspace.graph.exports`."""
        from weightspace.graph.exports import networkx_graph

        return networkx_graph(self)

    def to_json(self) -> str:
        """Return the graph as JSON; see `weightspace.graph.exports`."""
        from weightspace.graph.exports import json_text

        return json_text(self)

    def to_pyg(self) -> Any:
        """Return a `torch_geometric.data.Data`; see `weightspace.graph.exports`."""
        from weightspace.graph.exports import pyg_data

        return pyg_data(self)

    def single(self) -> ParameterGraph:
        """Return itself if it holds features of one parameter set.

        Raises:
            ShapeError: there are leading axes, which the exports have no place for.
        """
        if self.node_features.ndim > 2:
            raise ShapeError(
                f"features have leading axes {tuple(self.node_features.shape[:-2])}; export one network at a time: "
                "ParameterGraph(graph.structure, graph.node_features[i], graph.edge_features[i])"
            )
        return self
