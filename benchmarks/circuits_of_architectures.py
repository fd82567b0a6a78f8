"""Attention heads and gated layers found in the architectures of `transformers`, each compared with the run network:
python benchmarks/circuits_of_architectures.py.

For every head the score that its QK form gives two positions, for every layer the output of the part cut out, against
the values of the network; errors are relative to the sizes of queries and keys, or of the output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests`

import measure

import interp
import weightspace
from interp.attention_patterns import Attention, find_attention
from interp.heads import AttentionHead
from interp.projections import ProjectionReader
from tests.weightspace.transformers_architectures import TRANSFORMERS
from weightspace import operations as op
from weightspace.network import Network


def score_error(
    network: Network, values: dict[str, Tensor], head: AttentionHead, attention: Attention
) -> float:
    """Error of the score of position 1 (or 0) on position 0."""
    assert head.qk is not None
    query, key = values[attention.query].double(), values[attention.key].double()
    key = key.mT if attention.keys_transposed else key
    scale = query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
    later = min(1, query.shape[2] - 1)
    expected = (query[:, head.index, later] * key[:, head.key_value, 0]).sum(-1) * scale
    x, node = values[head.source].double(), network.node(head.source)
    if isinstance(node.operation, op.LayerNorm | op.RMSNorm):
        held = network.weights(node)
        x = (x - held.get("bias", 0.0)) / held.get("weight", 1.0)
    x = x if node.shape[0] is None else x.transpose(0, 1)
    x = F.pad(x, (0, 1), value=1.0) if head.qk.padded else x
    got = torch.einsum("bi,ij,bj->b", x[:, later], head.qk.matrix(), x[:, 0])
    size = query[:, head.index].norm(dim=-1).max() * key[:, head.key_value].norm(dim=-1).max() * scale
    return float((got - expected).abs().max() / size)


def examine(name: str) -> dict[str, object]:
    architecture = TRANSFORMERS[name]
    inputs = architecture.inputs()
    network = weightspace.trace(architecture.module(), inputs)
    exact = network.astype(torch.float64)
    constants = ProjectionReader(exact).constants
    with torch.no_grad():
        values = network.to_module().values(*inputs)
        sites = interp.find_sites(network)
        differences = [
            (
                site.network.to_module()(site.activations(network, *inputs))
                - values[site.target].flatten(0, -2)
            )
            for site in sites
        ]
        layer_errors = [
            float(difference.abs().max() / values[site.target].abs().max())
            for site, difference in zip(sites, differences, strict=True)
        ]
        heads = interp.find_heads(network, offset=1)
        found = {head.name: find_attention(exact, exact.node(head.name), constants) for head in heads}
        errors = [
            score_error(network, values, head, attention)
            for head in heads
            if head.qk and (attention := found[head.name])
        ]
    return {
        "architecture": name,
        "heads": len(heads),
        "with_qk": len(errors),
        "with_ov": sum(head.ov is not None for head in heads),
        "largest_score_error": max(errors, default=0.0),
        "layers": len(sites),
        "largest_layer_error": max(layer_errors, default=0.0),
        "first_note": next((note for head in heads for note in head.notes), ""),
    }


def main() -> None:
    rows = []
    for name in TRANSFORMERS:
        try:
            rows.append(examine(name))
        except weightspace.WeightspaceError as error:
            rows.append({"architecture": name, "refused": str(error)[:200]})
        print(rows[-1], flush=True)
    read = [row for row in rows if "refused" not in row]
    total = {key: sum(row[key] for row in read) for key in ("heads", "with_qk", "with_ov", "layers")}
    worst = {key: max(row[key] for row in read) for key in ("largest_score_error", "largest_layer_error")}
    measure.write(
        "circuits_of_architectures", [{"architectures": len(read), **total, **worst}, *rows], "transformers"
    )


if __name__ == "__main__":
    main()
