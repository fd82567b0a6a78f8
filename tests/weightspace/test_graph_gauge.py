"""Units that the graph networks take for free to scale or flip really are: doing so leaves the function."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from weightspace.graph import describe_structure
from weightspace.graph.gauge import free_units
from weightspace.tracing import trace


class Around(nn.Module):
    """Two linear layers with any function of the hidden units between them."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(2, 4), nn.Linear(4, 1), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def images(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), *between, nn.Conv2d(4, 2, 1))


CASES = {  # module, shape of an input, free units by group
    "relu": (lambda: Around(torch.relu), (2,), {"scale": 4, "sign": 0}),
    "sine": (lambda: Around(lambda x: torch.sin(30 * x)), (2,), {"scale": 0, "sign": 4}),
    "shift before": (lambda: Around(lambda x: torch.sin(x + 0.5)), (2,), {"scale": 0, "sign": 0}),
    "shift behind": (lambda: Around(lambda x: torch.sin(x) + 0.5), (2,), {"scale": 0, "sign": 0}),
    "relu and shift": (lambda: Around(lambda x: torch.relu(x) - 1), (2,), {"scale": 0, "sign": 0}),
    "hardtanh": (lambda: Around(nn.Hardtanh()), (2,), {"scale": 0, "sign": 0}),
    "softmax": (lambda: Around(nn.Softmax(-1)), (2,), {"scale": 0, "sign": 0}),
    "average pool": (lambda: images(nn.Tanh(), nn.AvgPool2d(2)), (1, 6, 6), {"scale": 0, "sign": 4}),
    "max pool": (lambda: images(nn.Tanh(), nn.MaxPool2d(2)), (1, 6, 6), {"scale": 0, "sign": 0}),
    "relu and max pool": (lambda: images(nn.ReLU(), nn.MaxPool2d(2)), (1, 6, 6), {"scale": 4, "sign": 0}),
    "instance norm": (lambda: images(nn.InstanceNorm2d(4), nn.ReLU()), (1, 6, 6), {"scale": 0, "sign": 0}),
}


@pytest.mark.parametrize("group", ["scale", "sign"])
@pytest.mark.parametrize("case", CASES)
def test_free_units_leave_the_function(case, group):
    torch.manual_seed(0)
    make, shape, expected = CASES[case]
    x = torch.randn(5, *shape, dtype=torch.float64)
    network = trace(make().double(), x)
    structure = describe_structure(network)
    free = free_units(structure, group)
    assert int(free.sum()) == expected[group]
    drawn = torch.randn(structure.nodes, dtype=torch.float64)
    factors = torch.where(free, drawn.exp() if group == "scale" else drawn.sign(), 1.0)
    source, target = structure.edge_index
    flat = torch.cat([network.parameters[name].reshape(-1) for name, _ in structure.parameters])
    moved = flat.clone()
    for entries, factor in (
        (structure.node_entries, factors),
        (structure.edge_entries, factors[target] / factors[source]),
    ):
        real = entries >= 0
        moved[entries[real]] = (flat[entries.clamp(min=0)] * factor[:, None])[real]
    parts = moved.split([math.prod(shape) for _, shape in structure.parameters])
    changed = network.replace_parameters(
        {name: part.view(shape) for (name, shape), part in zip(structure.parameters, parts)}
    )
    torch.testing.assert_close(changed.to_module()(x), network.to_module()(x), rtol=1e-12, atol=1e-12)
