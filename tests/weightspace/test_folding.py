"""Folding gains keeps the function and opens the residual stream to rotations; Procrustes finds planted elements."""

from functools import cache

import pytest
import torch

from tests.weightspace.architectures import ARCHITECTURES
from weightspace.folding import fold_gains
from weightspace.group_action import act, random_elements
from weightspace.matching import ProcrustesMatching, align
from weightspace.tracing import trace
from weightspace.verification import function_change, symmetry

STREAMS = {  # what the residual stream may do once the gains are folded
    "gpt": "centered",
    "tied gpt": "centered",
    "packed attention": "centered",
    "llama": "orthogonal",
    "rotary llama": "orthogonal",
    "convnext": None,  # batch of images: the gain is followed by a depthwise convolution's layer scale
    "encoder layer": None,  # the norm stands on the stream itself
}


@cache
def traced(name):
    return trace(ARCHITECTURES[name].module(), ARCHITECTURES[name].inputs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STREAMS)
def test_folding_keeps_the_function(name, dtype):
    network = traced(name).astype(dtype)
    folded = fold_gains(network)
    generator = torch.Generator().manual_seed(0)
    assert function_change(network, folded, generator) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert fold_gains(folded) == folded
    if STREAMS[name] is not None:
        kinds = {group.kind for group in symmetry(folded, continuous=True).groups if group.size == 16}
        assert STREAMS[name] in kinds
        assert STREAMS[name] not in {group.kind for group in symmetry(network, continuous=True).groups}


@pytest.mark.parametrize(
    "name",
    ["mlp", "prelu", "bilinear form", "residual mlp", "gpt", "llama", "rotary llama", "packed attention"],
)
def test_planted_elements_of_all_groups_are_undone(name):
    network = fold_gains(traced(name))
    spec = symmetry(network, continuous=True)
    assert spec.continuous
    generator = torch.Generator().manual_seed(3)
    moved = act(network, spec, random_elements(spec, generator))
    alignment = align(network, moved, spec=spec, matcher=ProcrustesMatching(sweeps=60, tolerance=1e-9))
    assert alignment.distance < 1e-3 * alignment.distance_before
    assert function_change(moved, alignment.model, generator) < 1e-9


def test_continuous_groups_come_closer_than_permutations_alone():
    a = fold_gains(traced("gpt"))
    b = fold_gains(trace(ARCHITECTURES["gpt"].module(seed=1), ARCHITECTURES["gpt"].inputs()))
    permuted = align(a, b)
    rotated = align(a, b, spec=symmetry(a, continuous=True), matcher=ProcrustesMatching())
    assert rotated.distance < permuted.distance < permuted.distance_before
