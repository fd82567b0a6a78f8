"""Networks that read networks, each from raw parameters, name -> (networks, *shape), to its prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.equivariant.deep_weight_space import DeepWeightSpaceNet
from weightspace.graph.graph_network import GraphNetwork
from weightspace.graph.parameter_graph import ParameterGraph
from weightspace.graph.probe_features import ProbeFeatures
from weightspace.zoo.standardization import Standardization

Parameters = Mapping[str, Tensor]


class WeightSpaceReader(nn.Module):
    """Standardized weights, read by a `DeepWeightSpaceNet`.

    With probes, what each neuron answers to them stands beside its bias, in as many further input channels (zero
    beside weights): the net is made with `in_channels=1 + probes`.
    """

    def __init__(
        self, net: DeepWeightSpaceNet, standardization: Standardization, probes: ProbeFeatures | None = None
    ):
        super().__init__()
        self.net, self.standardization, self.probes = net, standardization, probes

    def forward(self, parameters: Parameters) -> Tensor | dict[str, Tensor]:
        weights = self.standardization.apply(parameters)
        if self.probes is None:
            return self.net(weights)
        channels = self._beside_biases(parameters)
        return self.net({name: torch.cat([w.unsqueeze(1), channels[name]], 1) for name, w in weights.items()})

    def _beside_biases(self, parameters: Parameters) -> dict[str, Tensor]:
        assert self.probes is not None
        structure = self.probes.structure
        answers = self.probes(parameters)
        answers = F.layer_norm(answers, answers.shape[-1:])
        nodes = (structure.node_entries[:, 0] >= 0).nonzero()[:, 0]
        sizes = [math.prod(shape) for _, shape in structure.parameters]
        flat = answers.new_zeros(len(answers), answers.shape[-1], sum(sizes))
        flat = flat.index_copy(2, structure.node_entries[nodes, 0], answers[:, nodes].mT)
        return {
            name: part.unflatten(2, shape)
            for (name, shape), part in zip(structure.parameters, flat.split(sizes, 2), strict=True)
        }


class GraphReader(nn.Module):
    """Standardized weights as features of a graph, read by a network on graphs."""

    def __init__(
        self,
        net: GraphNetwork,
        graph: ParameterGraph,
        standardization: Standardization,
        probes: ProbeFeatures | None = None,
    ):
        super().__init__()
        self.net, self.graph, self.standardization, self.probes = net, graph, standardization, probes

    def forward(self, parameters: Parameters) -> Tensor:
        graph = self.graph.with_parameters(self.standardization.apply(parameters))
        return self.net(graph, None if self.probes is None else self.probes(parameters))


class FlatReader(nn.Module):
    """A perceptron on all standardized weights in a row: the baseline that knows nothing of symmetry."""

    def __init__(
        self,
        weights: int,
        out_features: int,
        standardization: Standardization,
        hidden: Sequence[int] = (512, 512),
    ):
        super().__init__()
        self.standardization = standardization
        sizes = [weights, *hidden]
        layers: list[nn.Module] = []
        for inner, outer in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(inner, outer), nn.BatchNorm1d(outer), nn.ReLU(), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))

    def forward(self, parameters: Parameters) -> Tensor:
        weights = self.standardization.apply(parameters)
        return self.layers(torch.cat([tensor.flatten(1) for tensor in weights.values()], 1))
