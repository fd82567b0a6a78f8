"""The report's section on bilinear layers: what it shows where the network is not one as a whole."""

import torch
from torch import nn

import weightspace
from interp.report import section
from weightspace.inspection import inspect
from weightspace.report.content import Subject, Table


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.gate, self.up, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def test_layers_inside_a_network_are_listed_with_the_reason_for_the_whole(tmp_path):
    torch.manual_seed(0)
    network = weightspace.trace(Gated(), torch.zeros(2, 6))
    subject = Subject("gated", tmp_path / "gated", inspect(network), network, None)
    found = section([subject])
    (table,) = [block for block in found.blocks if isinstance(block, Table)]
    assert len(table.rows) == 1
    assert table.rows[0][1:] == ["SiLU", "norm"]
    assert found.data["gated"]["layers"][0]["gates"] == ["SiLU"]
    assert "LayerNorm at 'norm'" in found.gaps[0].reason
