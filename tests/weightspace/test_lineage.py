"""Many networks in one order: distances as pairs have them, families apart, and trees of known descent."""

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from weightspace.common_order import compare
from weightspace.distances import distance
from weightspace.errors import ShapeError
from weightspace.heritage import Evidence, lineage
from weightspace.permutation import permute, random_permutations
from weightspace.tracing import trace
from weightspace.untouched_weights import untouched_weights
from weightspace.verification import symmetry


def fresh(seed, sizes=(12, 24, 16, 5)):
    torch.manual_seed(seed)
    layers = [f for a, b in pairwise(sizes) for f in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def step(module, seed, decay=0.0, share=0.5, size=0.05):
    """A step of training in miniature: a random half of the weights move, all shrink by weight decay."""
    generator = torch.Generator().manual_seed(seed)
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            moved = torch.rand(parameter.shape, generator=generator) < share
            parameter.mul_(1 - decay)
            parameter.add_(size * moved * torch.randn(parameter.shape, generator=generator))
    return module


def grown(parents, seed=0, **options):
    modules = [fresh(seed)]
    for number, parent in enumerate(parents[1:], 1):
        modules.append(step(modules[parent], number, **options))
    return [trace(module, torch.zeros(2, 12)) for module in modules]


def shuffled(networks, seed=0):
    spec, generator = symmetry(networks[0]), torch.Generator().manual_seed(seed)
    return [permute(network, spec, random_permutations(spec, generator)) for network in networks]


PARENTS = [-1, 0, 0, 1, 1, 2, 3, 5, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_trees_of_known_descent(decay, dtype):
    networks = shuffled([network.astype(dtype) for network in grown(PARENTS, decay=decay)])
    found = lineage({f"n{number}": network for number, network in enumerate(networks)})
    edges = {frozenset((edge.parent, edge.child)) for edge in found.edges}
    assert edges == {frozenset((f"n{p}", f"n{c}")) for c, p in enumerate(PARENTS) if p >= 0}
    (tree,) = found.trees
    if decay:
        assert (tree.evidence, tree.agreement, found.roots) == (Evidence.DECAY, 1.0, ("n0",))
    assert all(edge.length > 0 and 0.3 < edge.shared < 0.7 for edge in found.edges)


def test_norms_that_grow_give_the_direction():
    found = lineage(grown(PARENTS, size=0.3))
    assert found.trees[0].evidence is Evidence.GROWTH
    assert {(int(e.parent), int(e.child)) for e in found.edges} == {
        (p, c) for c, p in enumerate(PARENTS) if p >= 0
    }


def test_families_stay_apart():
    first, second = grown([-1, 0, 0]), grown([-1, 0, 1], seed=50)
    found = lineage(shuffled([first[0], second[0], first[1], second[1], first[2], second[2]]))
    assert found.comparison.families == (0, 1, 0, 1, 0, 1)
    assert [set(tree.members) for tree in found.trees] == [{"0", "2", "4"}, {"1", "3", "5"}]
    graph = found.to_networkx()
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (6, 4)
    data = json.loads(found.to_json())
    assert len(data["edges"]) == 4
    text = str(found)
    assert all(name in text for name in found.comparison.names)
    strangers = lineage([trace(fresh(seed), torch.zeros(2, 12)) for seed in range(3)])
    assert strangers.edges == ()
    assert len(strangers.roots) == 3


def test_distances_are_those_of_pairs_and_copies_are_found():
    original = grown([-1, 0, 0, 1])
    networks = [*original, *shuffled(original, seed=7)]
    found = compare(networks)
    assert set(found.families) == {0}
    for i in range(len(networks)):
        assert found.hashes[i] == found.hashes[(i + 4) % 8]
        for j in range(i):
            expected = distance(original[i % 4], original[j % 4], modulo=None)
            assert found.distances[i, j] == found.distances[j, i] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(found.distances == 0, np.arange(8)[:, None] % 4 == np.arange(8) % 4)
    for network, moved in zip(original, found.networks[4:], strict=True):
        assert network == moved
    assert len(found.linkage()) == 7
    edges = lineage(found).edges
    assert sum(edge.length == 0 for edge in edges) == 4
    assert len(edges) == 7


def test_untouched_weights_are_counted_up_to_decay():
    base = fresh(3)
    networks = [
        trace(m, torch.zeros(2, 12)) for m in (base, step(base, 1), step(base, 2, decay=0.01), fresh(4))
    ]
    shared, factors = untouched_weights(networks)
    assert np.allclose(shared, shared.T)
    assert np.allclose(factors, -factors.T)
    assert shared[0, 1] == pytest.approx(0.5, abs=0.05)
    assert shared[0, 2] == pytest.approx(0.5, abs=0.05)
    assert factors[0, 2] == pytest.approx(np.log(0.99), abs=1e-6)
    assert factors[0, 1] == factors[0, 3] == 0
    assert shared[:3, 3].max() < 0.01


def test_what_cannot_be_compared_is_refused():
    networks = grown([-1, 0])
    with pytest.raises(ShapeError, match="two networks"):
        compare(networks[:1])
    with pytest.raises(ShapeError, match="odd: equal widths"):
        compare({"a": networks[0], "odd": trace(fresh(0, (12, 24, 15, 5)), torch.zeros(2, 12))})
    linear = [trace(nn.Linear(3, 2), torch.zeros(2, 3)) for _ in range(2)]
    assert compare(linear).distances[0, 1] == pytest.approx(distance(*linear), abs=1e-9)
