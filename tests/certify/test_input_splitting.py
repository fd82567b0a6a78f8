"""Properties: what is proved holds at every point tried, what is refuted is refuted, and proofs can be checked."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import certify
from certify import Ball, Box, Polyhedron, Property, VerdictStatus, checker
from certify.checking import check_text
from certify.evaluation import flat_function
from tests.certify.structures import draw_network, model_of
from weightspace.errors import NonFiniteError, ShapeError, UnsupportedOperationError

STRUCTURES = [
    "residual", "concat", "GroupSort 2", "Householder 3", "mixed slopes", "BatchNorm", "scaled", "pruned", "chain",
]  # fmt: skip


def above(row, limit):
    """Unsafe: row y >= limit."""
    return Polyhedron([[-v for v in row]], [-limit])


def grid_of(box, per_side=60):
    axes = [np.linspace(a, b, per_side if b > a else 1) for a, b in zip(box.lower, box.upper)]
    return torch.tensor(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)))


def refreshed(text, **changes):
    """The certificate with changes and a digest that fits."""
    data = json.loads(text) | changes
    data["digest"] = checker.digest(data)
    return json.dumps(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_verdicts_agree_with_a_dense_grid(structure, dtype):
    network = draw_network(structure, 1, dtype)
    width = model_of(network).steps[0].width
    box = Box([-0.5, -0.25, 0.1][:width], [0.5, 0.75, 0.1][:width])
    row = np.array([1.0, -0.5, 0.0])[: model_of(network).steps[-1].width]
    values = flat_function(network)(grid_of(box)).numpy() @ row
    spread = np.ptp(values) + 1e-3
    safe = certify.verify(network, Property(box, (above(row, values.max() + 0.15 * spread),)), seconds=20)
    assert safe.status is VerdictStatus.PROVED, safe.reason
    assert check_text(safe.certificate, network)
    unsafe = certify.verify(network, Property(box, (above(row, values.max() - 0.05 * spread),)), seconds=20)
    assert unsafe.status is VerdictStatus.REFUTED, unsafe.reason
    point, output = np.array(unsafe.counterexample.input), np.array(unsafe.counterexample.output)
    assert (point >= box.lower).all()
    assert (point <= box.upper).all()
    assert output @ row >= values.max() - 0.05 * spread
    np.testing.assert_allclose(flat_function(network)(torch.tensor(point)[None])[0], output, rtol=1e-12)
    if dtype == torch.float32:
        fixed = np.array(box.lower) == np.array(box.upper)
        assert (point.astype(np.float32) == point)[~fixed].all() or fixed.any()


def proved(build, he):
    matrices = he((2, 8, 8, 2), 5)
    network = build(matrices, biases=[np.linspace(-0.5, 0.5, n) for n in (8, 8, 2)])
    box = Box([-1, -1], [1, 1])
    values = flat_function(network)(grid_of(box, 200))[:, 0]
    largest, room = float(values.max()), 0.02 * float(values.max() - values.min())
    verdict = certify.verify(network, Property(box, (above([1, 0], largest + room),)))
    assert verdict.status is VerdictStatus.PROVED
    assert verdict.regions > 3
    return network, verdict, largest - room


def test_a_proof_is_of_its_network_its_box_its_polyhedra_and_its_splits(build, he):
    network, verdict, reached = proved(build, he)
    text = verdict.certificate
    data = json.loads(text)
    assert check_text(text, network)
    assert certify.verify(network, verdict.property).certificate == text  # the same bytes
    assert "edited" in check_text(text.replace('"name": ""', '"name": "other"'), network).reason
    assert not check_text(text, build(he((2, 8, 8, 2), 6)))
    lower = {"matrix": data["unsafe"][0]["matrix"], "bounds": [(-reached).hex()]}
    assert not check_text(refreshed(text, unsafe=[lower]), network)
    assert not check_text(refreshed(text, unsafe=[*data["unsafe"], lower]), network)
    wider = {"lower": [(-3.0).hex()] * 2, "upper": [(3.0).hex()] * 2}
    assert not check_text(refreshed(text, region=wider), network)
    assert not check_text(refreshed(text, splits=[-1]), network)
    for splits in ([], data["splits"][:-1], [*data["splits"], -1], [2, -1, -1], [0, -1]):
        assert "no tree" in check_text(refreshed(text, splits=splits), network).reason
    for broken in ({"splits": [0.5]}, {"unsafe": 3}, {"name": None}, {"version": 2}, {"region": None}):
        with pytest.raises(certify.certificate.CheckpointError):
            check_text(refreshed(text, **broken), network)
    for shape in ({"matrix": [[(1.0).hex()]], "bounds": [(0.0).hex()]}, {"matrix": [], "bounds": []}):
        assert "polyhedron" in check_text(refreshed(text, unsafe=[shape]), network).reason
    infinite = {"matrix": data["unsafe"][0]["matrix"], "bounds": ["-inf"]}
    assert "not finite" in check_text(refreshed(text, unsafe=[infinite]), network).reason


def test_the_check_runs_alone(build, he, tmp_path, capsys):
    network, verdict, _ = proved(build, he)
    (tmp_path / "proof.json").write_text(verdict.certificate)
    network.save_npz(tmp_path / "network.npz")
    assert checker.main([str(tmp_path / "proof.json"), str(tmp_path / "network.npz")]) == 0
    assert "For no input x" in capsys.readouterr().out


def test_every_polyhedron_of_the_union_must_be_excluded(build, he):
    network = build(he((2, 6, 2), 1))
    box = Box([-1, -1], [1, 1])
    values = flat_function(network)(grid_of(box))
    high, low = float(values[:, 0].max()), float(values[:, 0].min())
    safe, unsafe = above([1, 0], high + 0.1), Polyhedron([[1, 0]], [low + 0.05])
    assert certify.verify(network, Property(box, (safe,))).status is VerdictStatus.PROVED
    assert certify.verify(network, Property(box, (safe, unsafe))).status is VerdictStatus.REFUTED
    # an intersection is unsafe only where all of its rows hold
    both = Polyhedron([[1, 0], [-1, 0]], [low + 0.05, -(low + 0.1)])
    assert certify.verify(network, Property(box, (both,))).status is VerdictStatus.PROVED
    empty = certify.verify(network, Property(box, ()))
    assert empty.status is VerdictStatus.PROVED
    assert check_text(empty.certificate, network)


def test_a_verdict_without_time_is_unknown_and_says_what_is_left(build, he):
    network = build(he((2, 16, 16, 1), 3), biases=[np.ones(16), -np.ones(16), np.zeros(1)])
    box = Box([-2, -2], [2, 2])
    largest = float(flat_function(network)(grid_of(box, 200)).max())
    verdict = certify.verify(network, Property(box, (above([1], 1.001 * largest),)), seconds=0)
    assert verdict.status is VerdictStatus.UNKNOWN
    assert verdict.certificate is None
    assert "allow more seconds" in verdict.reason


def test_a_single_point_is_decided_by_its_value(build, he):
    network = build(he((3, 8, 2), 2))
    point = [0.5, -0.25, 1.0]
    value = float(flat_function(network)(torch.tensor([point], dtype=torch.float64))[0, 0])
    at = Box(point, point)
    assert (
        certify.verify(network, Property(at, (above([1, 0], value + 1e-6),))).status is VerdictStatus.PROVED
    )
    assert (
        certify.verify(network, Property(at, (above([1, 0], value - 1e-6),))).status is VerdictStatus.REFUTED
    )


def test_halves_cover_the_box():
    rng = np.random.default_rng(0)
    lower, upper = np.array([-1.0, 0.0, 2.0]), np.array([1.0, 1e-300, 2.0])
    splits, open_ = [], 1
    while open_:
        split = int(rng.integers(-1, 3)) if len(splits) < 60 else -1
        splits.append(split)
        open_ += 1 if split >= 0 else -1
    lowers, uppers = checker.divide(lower, upper, splits)
    points = lower + (upper - lower) * rng.random((300, 3))
    points[:100] = np.where(rng.random((100, 3)) < 0.5, lower, upper)
    inside = (points[:, None] >= lowers) & (points[:, None] <= uppers)
    assert inside.all(axis=2).any(axis=1).all()


def test_bad_questions_end_in_one_clear_error(build, he):
    network = build(he((2, 4, 2), 0))
    box = Box([-1, -1], [1, 1])
    with pytest.raises(ShapeError, match="3 outputs; the network has 2"):
        certify.verify(network, Property(box, (Polyhedron([[1, 0, 0]], [0]),)))
    with pytest.raises(UnsupportedOperationError, match="each of 2 inputs"):
        certify.verify(network, Property(Box([0], [1]), (above([1, 0], 0),)))
    with pytest.raises(UnsupportedOperationError, match="Implicit"):
        certify.verify(draw_network("implicit", 0), Property(box, (above([1, 0], 0),)))
    with pytest.raises(ShapeError, match="one bound per row"):
        Polyhedron([[1, 0]], [0, 1])
    with pytest.raises(NonFiniteError):
        Polyhedron([[float("nan"), 0]], [0])
    with pytest.raises(ShapeError, match="one number"):
        Property(box, (Polyhedron([[1, 0]], [0]), Polyhedron([[1]], [0])), "p")
    with pytest.raises(ShapeError, match="at least 0"):
        Ball([0, 0], -1)
    with pytest.raises(NonFiniteError):
        Ball([0, float("inf")], 1)
    assert dataclasses.is_dataclass(Property)
