"""Merging: cycles of maps close, the objective only rises, copies of one network merge to that network."""

import json
import sys
from functools import cache

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES
from weightspace.checkpoint import write_safetensors
from weightspace.cli import main
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError
from weightspace.matching import ActivationMatching, align
from weightspace.merging import merge
from weightspace.network import Network
from weightspace.permutation import compose, identity, inverse, permute, random_permutations
from weightspace.reading import read
from weightspace.state_dicts import perceptron
from weightspace.tracing import trace
from weightspace.universe import Average, MergeMany, Reference, Universe
from weightspace.verification import symmetry

METHODS = [Universe(), Universe(starts=3), MergeMany(), Reference(), Reference(2)]
KINDS = ["mlp", "resnet", "grouped convolutions", "group norm", "gpt", "llama", "lstm"]


def mlp(seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)


def net(seed, dtype=torch.float64):
    """The same as a network, without the cost of tracing."""
    return perceptron({name: tensor.detach() for name, tensor in mlp(seed, dtype).state_dict().items()})


def networks(kind, count):
    return [_network(kind, seed) for seed in range(count)]


@cache
def _network(kind, seed):
    architecture = ARCHITECTURES[kind]
    return trace(architecture.module(seed), architecture.inputs())


SMALLER = perceptron({"0.weight": torch.zeros(3, 5, dtype=torch.float64)})


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("kind", "method"), [*((k, Universe()) for k in KINDS), ("llama", MergeMany()), *(("mlp", m) for m in METHODS[1:])],
    ids=str,
)  # fmt: skip
def test_maps_around_a_cycle_compose_to_the_identity(kind, method):
    models = networks(kind, 3)
    merged = merge(models, method=method)
    spec, rest = merged.spec, identity(merged.spec)
    for i, j, k in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        there = compose(spec, merged.between(i, j), merged.between(j, k))
        assert equal(there, merged.between(i, k))
        assert equal(compose(spec, there, merged.between(k, i)), rest)
        assert equal(merged.between(j, i), inverse(spec, merged.between(i, j)))
    assert equal(dict(merged.permutations[0]), rest)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_merge_to_the_network_itself(kind):
    first = networks(kind, 1)[0]
    spec = symmetry(first)
    copies = [
        permute(first, spec, random_permutations(spec, torch.Generator().manual_seed(s))) for s in range(2)
    ]
    merged = merge([first, *copies])
    gap = max(
        float((tensor - merged.model.parameters[name]).abs().max())
        for name, tensor in first.parameters.items()
        if tensor.is_floating_point()
    )
    assert gap < 1e-12
    assert max(merged.distances) < 1e-9
    assert min(merged.distances_before) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_objective_rises_and_is_the_norm_of_the_sum(method, dtype):
    models = [net(seed, dtype) for seed in range(4)]
    merged = merge(models, method=method)
    assert merged.objective >= merged.objective_before
    total = sum(float(p.double().square().sum()) for p in merged.model.parameters.values()) * 16
    assert merged.objective == pytest.approx(total, rel=1e-5)
    assert merged.model.parameters["0.weight"].dtype == dtype


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_universe_is_at_least_as_good_as_its_parts_and_repeats(seed, count):
    models = [net(seed + i) for i in range(count)]
    universe = merge(models)
    assert universe.objective >= merge(models, method=Average()).objective
    again = merge(models)
    assert all(equal(a, b) for a, b in zip(universe.permutations, again.permutations))


def test_objective_of_distances():
    """sum of squared distances to the mean = sum of squares - E / N, so a larger E means nearer models."""
    models = [net(seed) for seed in range(3)]
    merged = merge(models)
    squares = sum(float(p.square().sum()) for m in models for p in m.parameters.values())
    assert sum(d**2 for d in merged.distances) == pytest.approx(squares - merged.objective / 3, rel=1e-9)
    assert sum(d**2 for d in merged.distances_before) == pytest.approx(
        squares - merged.objective_before / 3, rel=1e-9
    )


def test_two_models_give_the_midpoint_of_the_aligned_pair():
    a, b = mlp(0), mlp(1)
    aligned = align(a, b).model
    merged = merge([a, b], method=Reference())
    for name, tensor in merged.model.state_dict().items():
        torch.testing.assert_close(tensor, (a.state_dict()[name] + aligned.state_dict()[name]) / 2)
    assert isinstance(merged.model, nn.Sequential)


def test_weights_choose_a_point():
    a, b = mlp(0), mlp(1)
    merged = merge([a, b], weights=(3, 1), method=Average())
    assert merged.weights == (0.75, 0.25)
    for name, tensor in merged.model.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * a.state_dict()[name] + 0.25 * b.state_dict()[name])
    ends = [merge([a, b], weights=w, path=p).model for w in ((1, 0),) for p in ("linear", "spherical")]
    for end in ends:
        assert all(torch.equal(t, a.state_dict()[k]) for k, t in end.state_dict().items())


def test_spherical_keeps_the_norm_between_ends_of_equal_norm():
    a, b = mlp(0), mlp(1)
    with torch.no_grad():
        for x, y in zip(a.parameters(), b.parameters()):
            y *= x.norm() / y.norm()
    merged = merge([a, b], path="spherical")
    for x, m in zip(a.parameters(), merged.model.parameters()):
        torch.testing.assert_close(x.norm(), m.norm())


def test_running_statistics_are_averaged_and_said_to_be():
    models = networks("resnet", 2)
    merged = merge(models, method=Average())
    name = next(name for name in models[0].buffers if name.endswith("running_var"))
    torch.testing.assert_close(merged.model.parameters[name], sum(m.parameters[name] for m in models) / 2)
    assert "running statistics" in merged.notes[0]
    assert json.loads(merged.to_json())["notes"] == list(merged.notes)


def test_tensors_equal_in_all_models_stay_exactly():
    a, b = mlp(0, torch.float32), mlp(1, torch.float32)
    with torch.no_grad():
        b[4].bias.copy_(a[4].bias)
    merged = merge([a, b, b, b])
    assert torch.equal(merged.model[4].bias, a[4].bias)


def test_modules_given_are_untouched():
    models = [mlp(seed) for seed in range(3)]
    before = [{k: t.clone() for k, t in m.state_dict().items()} for m in models]
    merge(models, repair_data=torch.randn(50, 5, dtype=torch.float64))
    assert all(equal(b, m.state_dict()) for b, m in zip(before, models))


def test_own_spec_is_used_and_verified():
    models = [net(seed) for seed in range(3)]
    spec = symmetry(models[0])
    one = spec.without([spec.groups[0].name], "asked for")
    assert merge(models, spec=one).permutations[1].keys() == {spec.groups[1].name}


def test_networks_with_other_names():
    first, second = net(0), net(1)
    other = {name.replace("weight", "W").replace("bias", "b"): t for name, t in second.parameters.items()}
    merged = merge([first, perceptron(other)])
    assert merged.model.parameters.keys() == first.parameters.keys()
    assert merged.model == merge([first, second]).model


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: merge([net(0)]), ShapeError, "at least two models; got 1"),
        (lambda: merge([]), ShapeError, "at least two models; got 0"),
        (lambda: merge([net(0), SMALLER]), ShapeError, "the networks differ|equal widths"),
        (lambda: merge([net(0), net(1)], weights=(1,)), ShapeError, "one weight per model; got 1 for 2"),
        (lambda: merge([net(0), net(1)], weights=(1, -1)), ShapeError, "at least 0"),
        (lambda: merge([net(0), net(1)], weights=(0, 0)), ShapeError, "one of them positive"),
        (lambda: merge([net(0)] * 3, path="spherical"), ShapeError, "joins two models; got 3"),
        (lambda: merge([net(0)] * 2, path="round"), ShapeError, "path 'round' is unknown"),
        (lambda: merge([net(0)] * 2, method=Reference(2)), ShapeError, "no model 2"),
        (lambda: merge([net(0)] * 2, repair_data=[]), ShapeError, "needs data"),
        (lambda: merge([net(0)] * 2, repair_data=torch.zeros(0, 5)), ShapeError, "needs data"),
        (
            lambda: merge([net(0), net(1)], repair_data=torch.full((9, 5), torch.nan)),
            NonFiniteError,
            "NaN or infinite; look at the data",
        ),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_matcher_that_runs_the_networks():
    models = [net(seed) for seed in range(3)]
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in (Reference(), Universe()):
        merged = merge(models, method=method, matcher=ActivationMatching(x))
        if method == Reference():
            found = align(models[0], models[2], matcher=ActivationMatching(x)).permutations
            assert equal(dict(merged.permutations[2]), dict(found))
        else:
            assert merged.objective >= merged.objective_before


# ---- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["weightspace", "merge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_safetensors(path, dict(net(seed).parameters))
    return paths


@pytest.mark.parametrize("method", ["universe", "sequential", "reference", "average"])
def test_command_writes_what_merge_returns(command, files, tmp_path, method):
    output = tmp_path / "merged.safetensors"
    code, out, _ = command(*files, "-o", output, "--method", method, "--seed", 1, "--json")
    assert code == 0
    data = json.loads(out)
    strategy = {"universe": Universe(seed=1), "sequential": MergeMany(seed=1), "reference": Reference()}
    merged = merge([read(p) for p in files], method=strategy.get(method, Average()))
    assert read(output) == merged.model
    assert data["objective"] == merged.objective
    assert data["distances"] == list(merged.distances)
    assert data["output"] == str(output)


def test_command_for_people_and_weights(command, files, tmp_path):
    output = tmp_path / "merged.safetensors"
    weights = ("--weight", 3, "--weight", 1, "--path", "spherical")
    code, out, err = command(*files[:2], "-o", output, *weights)
    assert code == 0
    assert "objective " in out
    assert out.count("distance to the merged model") == 2
    assert "assumed" in err
    expected = merge([read(p) for p in files[:2]], weights=(3, 1), path="spherical").model
    assert read(output) == expected


def test_command_refusals(command, files, tmp_path):
    before = files[0].read_bytes()
    for arguments, text in (
        ((*files, "-o", files[0]), "overwrite one of the inputs"),
        ((*files, "-o", tmp_path / "x.pt"), "written as .safetensors"),
        ((files[0], "-o", tmp_path / "x.safetensors"), "at least two models; got 1"),
        ((*files, "-o", tmp_path / "x.safetensors", "--path", "spherical"), "joins two models; got 3"),
        ((*files, "-o", tmp_path / "x.safetensors", "--method", "magic"), "magic"),
        ((*files, "-o", tmp_path / "none" / "x.safetensors"), "does not exist"),
    ):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert text in err
        assert len(err.strip().splitlines()) == 1
    assert files[0].read_bytes() == before
    assert not (tmp_path / "x.safetensors").exists()


def test_nan_weights_are_refused():
    broken = mlp(1)
    with torch.no_grad():
        broken[0].bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'0.bias' has 1 NaN"):
        merge([mlp(0), broken])


def test_nothing_to_permute_is_said_and_averaged_on_request():
    a, b = (perceptron({"0.weight": torch.full((3, 4), float(value))}) for value in range(2))
    with pytest.raises(ArchitectureError, match=r"nothing can be permuted .*method=Average\(\)"):
        merge([a, b])
    assert isinstance(merge([a, b], method=Average()).model, Network)
