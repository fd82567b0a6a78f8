"""Bounds over regions: activations on intervals, enclosures of values and lines, local Lipschitz bounds."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import certify
from certify import Ball, Box, checker
from certify.bounders.sampling import project
from certify.evaluation import flat_function
from certify.local_regions import localize
from tests.certify.structures import Draw, draw_network, model_of
from weightspace.errors import UnsupportedOperationError
from weightspace.operations import (
    ELU,
    GELU,
    Absolute,
    Clip,
    LeakyReLU,
    Pointwise,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)

ACTIVATIONS = {
    "ReLU": ReLU(), "LeakyReLU": LeakyReLU(negative_slope=0.1), "steep": LeakyReLU(negative_slope=1.5),
    "Absolute": Absolute(), "Clip": Clip(lower=-1.0, upper=0.5), "open Clip": Clip(lower=0.25), "Tanh": Tanh(),
    "Sigmoid": Sigmoid(), "SiLU": SiLU(), "GELU": GELU(), "GELU tanh": GELU(approximate="tanh"), "ELU": ELU(alpha=0.7),
    "SELU": ELU(alpha=1.67326, scale=1.0507), "CELU": ELU(alpha=2.0, input_scale=0.5), "Softplus": Softplus(beta=3.0),
    **{n: Pointwise(name=n) for n in ("atan", "softsign", "erf", "log_sigmoid", "mish", "sin", "cos")},
    **{n: Pointwise(name=n) for n in ("square", "exp", "expm1")},
}  # fmt: skip
UNBOUNDED = ("square", "exp", "expm1")
STRUCTURES = [
    "residual", "concat", "selected", "GroupSort 2", "GroupSort 3", "Householder 2", "mixed groups", "mixed slopes",
    "BatchNorm", "scaled", "pruned", "chain",
]  # fmt: skip


def activation_step(name):
    """The checker's step of an activation on 400 neurons."""
    d = Draw(0)
    network = d.builder.build([d.add(ACTIVATIONS[name], d.input(400))])
    return model_of(network).steps[-1], flat_function(network)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lines_and_slopes_enclose_an_activation_on_its_interval(name):
    step, function = activation_step(name)
    rng = np.random.default_rng(0)
    middle, width = rng.normal(size=400) * 3, 10.0 ** rng.uniform(-6, 1.2, size=400)
    low, high = middle - width * rng.random(400), middle + width * rng.random(400)
    low[:20], high[20:40], high[40:50] = 0.0, 0.0, low[40:50]  # at a kink, and single points
    low[:20], high[:20] = 0.0, np.abs(high[:20])
    low[20:40] = -np.abs(low[20:40])
    y = low + (high - low) * np.concatenate([[0, 1], rng.random(98)])[:, None]
    values = function(torch.from_numpy(np.clip(y, low, high))).numpy()
    y = np.clip(y, low, high)
    a, b = checker.slopes_over(step, low[None], high[None])
    cut = 1e-9 if name == "Softplus" else 0.0  # torch's is the identity from 20 / beta on
    order = np.argsort(y, axis=0)
    y_sorted, v_sorted = np.take_along_axis(y, order, 0), np.take_along_axis(values, order, 0)
    gap, change = np.diff(y_sorted, axis=0), np.diff(v_sorted, axis=0)
    noise = 4e-16 * (1 + np.abs(v_sorted).max(axis=0) + np.abs(y_sorted).max(axis=0)) + cut
    assert (change >= a * gap - noise).all()
    assert (change <= b * gap + noise).all()
    given = (rng.normal(size=400), rng.normal(size=400))
    for lines in (
        checker.lines_over(step, low[None], high[None]),
        checker.lines_over(step, low[None], high[None], given),
    ):
        assert (values >= lines.low * y + lines.below - noise).all()
        assert (values <= lines.high * y + lines.above + noise).all()
    below, above = checker.offsets_over(step, low[None], high[None], 0.0)
    assert (values >= below - noise).all()
    assert (values <= above + noise).all()
    # not merely sound: on short intervals the slopes are those of the derivative
    short = (high - low < 1e-3) & (high > low)
    if name not in ("ELU", "SELU", "CELU"):
        curved = np.abs(change / np.where(gap > 0, gap, 1)).max(axis=0)
        assert (
            np.maximum(np.abs(a), np.abs(b))[0, short] <= curved[short] + 0.05 * (1 + curved[short])
        ).mean() > 0.9


def regions_of(width, rng):
    center = rng.normal(size=(6, width))
    reach = rng.random((6, width)) * 10.0 ** -rng.integers(0, 4, size=(6, 1))
    reach[0, 0] = 0.0
    return {
        "boxes": checker.boxes(center - reach, center + reach),
        "balls": checker.balls(center, reach.max(axis=1)),
    }


def points_of(regions, rng):
    """(B, samples, n) points of each region, corners among them."""
    away = rng.uniform(-1, 1, size=(len(regions.center), 200, regions.center.shape[1]))
    if regions.radius is None:
        away[:, :100] = np.sign(away[:, :100])
        lower, upper = regions.center - regions.reach, regions.center + regions.reach
        return np.clip(
            regions.center[:, None] + away * regions.reach[:, None], lower[:, None], upper[:, None]
        )
    away /= np.linalg.norm(away, axis=2, keepdims=True) * (1 + 1e-12)
    return regions.center[:, None] + away * regions.radius[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_bounds_hold_at_every_point_of_the_region(structure, dtype):
    rng = np.random.default_rng(1)
    network = draw_network(structure, 3, dtype)
    model, function = model_of(network), flat_function(network)
    width, outputs = model.steps[0].width, model.steps[-1].width
    rows = rng.normal(size=(3, outputs))
    for regions in regions_of(width, rng).values():
        points = points_of(regions, rng)
        values = function(torch.from_numpy(points.reshape(-1, width))).numpy().reshape(*points.shape[:2], -1)
        noise = 1e-13 * (1 + np.abs(values).max())
        for backward in (True, False):
            bounds = checker.Bounds(model, regions, backward=backward)
            assert (values >= bounds.low[-1][:, None] - noise).all()
            assert (values <= bounds.high[-1][:, None] + noise).all()
            least, coefficients = bounds.minimum(rows)
            assert (values @ rows.T >= least[:, None] - noise).all()
            assert coefficients.shape[1:] == (3, width)


def test_a_region_is_bounded_as_if_it_were_alone():
    rng = np.random.default_rng(2)
    model = model_of(draw_network("mixed slopes", 1))
    for regions in regions_of(2, rng).values():
        together = checker.Bounds(model, regions).minimum(np.eye(2))[0]
        for place in range(6):
            radius = None if regions.radius is None else regions.radius[[place]]
            one = checker.Regions(regions.center[[place]], regions.reach[[place]], radius)
            alone = checker.Bounds(model, one).minimum(np.eye(2))[0]
            np.testing.assert_allclose(together[place], alone[0], rtol=1e-12, atol=1e-13)


def test_bounds_at_a_point_enclose_the_exact_value_tightly(build, he):
    rng = np.random.default_rng(3)
    matrices = he((3, 8, 8, 2), 1)
    network = build(matrices, biases=[rng.normal(size=len(w)) for w in matrices])
    model = model_of(network)
    for point in rng.normal(size=(5, 3)):
        value = [Fraction(v) for v in point.tolist()]
        for step in model.steps[1:]:
            if step.rule == "linear":
                value = [
                    sum((Fraction(w) * v for w, v in zip(row, value)), Fraction(b))
                    for row, b in zip(step.matrix.tolist(), step.bias.tolist())
                ]
            else:
                value = [max(v, Fraction(0)) for v in value]
        bounds = checker.Bounds(model, checker.boxes(point[None], point[None]))
        for low, v, high in zip(bounds.low[-1][0].tolist(), value, bounds.high[-1][0].tolist()):
            assert Fraction(low) <= v <= Fraction(high)
            assert high - low < 1e-12


def test_linear_bounds_of_a_linear_network_are_its_range(build):
    weight = np.random.default_rng(4).normal(size=(3, 4))
    model = model_of(build([weight]))
    box, ball = checker.boxes(-np.ones((1, 4)), np.ones((1, 4))), checker.balls(np.zeros((1, 4)), [2.0])
    np.testing.assert_allclose(checker.Bounds(model, box).minimum(np.eye(3))[0][0], -np.abs(weight).sum(1))
    expected = -2 * np.linalg.norm(weight, axis=1)
    np.testing.assert_allclose(checker.Bounds(model, ball).minimum(np.eye(3))[0][0], expected)


def network_with(name, dtype=torch.float64, widths=(3, 6, 5, 2)):
    d = Draw(5, dtype)
    h = d.input(widths[0])
    for k, width in enumerate(widths[1:], 1):
        h = d.linear(h, width, 1.5)
        if k < len(widths) - 1:
            h = d.add(PReLU(weight=d.parameter([0.3])) if name == "PReLU" else ACTIVATIONS[name], h)
    return d.builder.build([h])


@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "l2") for name in [*ACTIVATIONS, "PReLU"]), ("ReLU", "linf"), ("exp", "linf")]
)
def test_local_bounds_lie_between_what_is_attained_and_the_global_bound(name, norm):
    dtype = torch.float32 if norm == "linf" else torch.float64
    network, output = network_with(name, dtype), None if norm == "l2" else 0
    center = np.array([0.3, -0.2, 0.1])
    regions = [Box(center - 0.4, center + 0.4), Ball(center, 0.04)]
    bounds = []
    for region in regions:
        found = certify.lipschitz(network, norm=norm, region=region, output=output)
        assert found.status is certify.certificate.Status.CERTIFIED, found
        assert found.sampled_lower_bound <= found.upper_bound * (1 + 1e-9)
        assert certify.check(found, network)
        assert certify.Certificate.from_json(found.to_json()) == found
        bounds.append(found.upper_bound)
    assert bounds[1] <= bounds[0] * (1 + 1e-5)
    if name not in UNBOUNDED:
        assert bounds[0] <= certify.lipschitz(network, norm=norm, output=output).upper_bound * (1 + 1e-5)
    else:
        with pytest.raises(UnsupportedOperationError, match="region"):
            certify.lipschitz(network, norm=norm, output=output)


@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name != "selected"])
def test_local_bounds_of_every_structure(structure):
    network = draw_network(structure, 2)
    width = model_of(network).steps[0].width
    local = certify.lipschitz(network, region=Ball([0.1] * width, 0.2))
    assert local.upper_bound is not None
    assert local.sampled_lower_bound <= local.upper_bound * (1 + 1e-9)
    assert local.upper_bound <= certify.lipschitz(network).upper_bound * (1 + 1e-4)


def test_where_nothing_bends_the_bound_is_the_norm_of_the_jacobian(build, he):
    network = build(he((4, 6, 6, 3), 2), biases=[np.full(n, 0.3) for n in (6, 6, 3)])
    point = torch.tensor([0.4, -0.1, 0.2, 0.7], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flat_function(network)(x[None])[0], point)
    found = certify.lipschitz(network, region=Ball(point, 1e-6))
    assert found.upper_bound == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-5)


def test_inputs_that_a_box_fixes_do_not_count(build, he):
    network = build(he((3, 6, 2), 3))
    free = certify.lipschitz(network, region=Box([-1, -1, -1], [1, 1, 1])).upper_bound
    fixed = certify.lipschitz(network, region=Box([-1, 0.5, 0.25], [1, 0.5, 0.25]))
    assert fixed.upper_bound < free
    for norm in ("l2", "linf"):
        point = certify.lipschitz(network, region=Box([1, 2, 3], [1, 2, 3]), norm=norm, output=0)
        assert point.upper_bound == 0.0


def changed_fields(certificate, **changes):
    """The certificate with changes and a digest that fits, as the checker reads it."""
    return dataclasses.replace(certificate, **changes).to_json()


def test_a_local_certificate_is_of_its_region_its_network_and_its_numbers(build, he):
    from certify.checking import check_text

    matrices, biases = he((3, 8, 8, 2), 4), [np.linspace(-1, 1, n) for n in (8, 8, 2)]
    network = build(matrices, biases=biases)
    found = certify.lipschitz(network, region=Box([-0.1] * 3, [0.1] * 3))
    assert check_text(found.to_json(), network)
    larger = changed_fields(found, region=Box([-0.1] * 3, [0.6] * 3))
    assert not check_text(larger, network)
    assert not check_text(changed_fields(found, region=None), network)
    assert not check_text(changed_fields(found, relaxations=None), network)  # too small for all inputs
    assert not check_text(changed_fields(found, upper_bound=found.upper_bound * (1 - 1e-6)), network)
    assert not check_text(found.to_json(), build([1.001 * w for w in matrices], biases=biases))
    assert "edited" in check_text(found.to_json().replace("box `region`", "ball `region`"), network).reason
    infinite = dataclasses.replace(found.relaxations[0], lower=(math.inf, *found.relaxations[0].lower[1:]))
    assert not check_text(changed_fields(found, relaxations=(infinite, *found.relaxations[1:])), network)
    short = dataclasses.replace(found.relaxations[0], lower=found.relaxations[0].lower[1:])
    assert not check_text(changed_fields(found, relaxations=(short, *found.relaxations[1:])), network)


@pytest.mark.parametrize("name", ["ReLU", "Tanh"])
def test_local_certificates_hold_in_exact_arithmetic(name):
    network = network_with(name, widths=(2, 3, 3, 2))
    for norm, output in (("l2", None), ("linf", 1)):
        found = certify.lipschitz(network, region=Box([-0.3, 0], [0.4, 0.5]), norm=norm, output=output)
        assert certify.check(found, network, exact=True), found


def test_any_slopes_of_lines_are_sound(build, he):
    """Relaxations come from the file; whatever they are, the slopes derived hold for what occurs in the region."""
    rng = np.random.default_rng(6)
    network = build(he((3, 8, 8, 2), 7))
    model, region = model_of(network), Box([-0.5] * 3, [0.5] * 3)
    pairs = [(rng.normal(size=8) * 3, rng.normal(size=8) * 3) for _ in range(2)]
    regions = checker.region_of(model, {"lower": region.lower, "upper": region.upper})
    wild = checker.localize(model, regions, pairs)
    points = torch.rand(500, 3, dtype=torch.float64) - 0.5
    for step, state in zip(wild.nonlinear, _states(network, points)):
        active = state > 0
        assert (step.low[active.all(0)] + step.matrix[active.all(0)] >= 1).all()
        assert (step.low[~active.all(0)] <= 0).all()
    tame, _ = localize(model, region)
    assert sum(s.matrix.sum() for s in tame.nonlinear) <= sum(s.matrix.sum() for s in wild.nonlinear)


def _states(network, points):
    values, states = points, []
    for step in model_of(network).steps[1:]:
        if step.rule == "linear":
            values = values @ torch.from_numpy(step.matrix).T + torch.from_numpy(step.bias)
        else:
            states.append(values.numpy())
            values = values.clamp_min(0)
    return states


def test_what_has_no_bounds_over_a_region_gets_the_bound_for_all_inputs():
    network = draw_network("implicit", 0)
    found = certify.lipschitz(network, region=Box([0, 0], [1, 1]))
    assert "for all inputs, since Implicit at node" in found.method
    assert found.upper_bound == pytest.approx(certify.lipschitz(network).upper_bound)
    assert certify.check(found, network)


def test_a_region_that_does_not_fit_is_refused():
    with pytest.raises(UnsupportedOperationError, match="each of 2 inputs"):
        certify.lipschitz(draw_network("residual", 0), region=Box([0] * 3, [1] * 3))
    with pytest.raises(UnsupportedOperationError, match="each of 2 inputs"):
        certify.lipschitz(draw_network("residual", 0), region=Ball([0] * 3, 1))


def test_points_are_projected_into_regions():
    points = 3 * torch.randn(50, 4, dtype=torch.float64)
    ball, box = Ball([0.5] * 4, 0.7), Box([-0.5, 0, 0.2, 1], [0.5, 0, 0.3, 2])
    assert ((project(points, ball) - 0.5).norm(dim=1) <= 0.7).all()
    inside = project(points, box)
    assert (inside >= torch.tensor(box.lower, dtype=torch.float64)).all()
    assert (inside <= torch.tensor(box.upper, dtype=torch.float64)).all()
