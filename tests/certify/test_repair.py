"""Laws of repairs: what is returned is proved, for that model only, and is the least change that obeys."""

import dataclasses
import itertools

import cvxpy
import numpy as np
import pytest
import torch
from torch import nn

from certify import Box, Polyhedron, Property, VerdictStatus, verify
from certify.checking import check_text
from certify.network_repair import repair
from certify.regression_repair import fit_repaired
from certify.repairs import RepairStatus
from weightspace.errors import ConvergenceError, NonFiniteError, ShapeError, UnsupportedOperationError
from weightspace.reading import as_network

MARGINS = {torch.float32: 1e-4, torch.float64: 1e-6}  # of fit_repaired, relative to the targets


def regression(inputs, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(100, inputs, generator=generator, dtype=torch.float64)
    w = torch.randn(inputs, 2, generator=generator, dtype=torch.float64)
    y = x @ w + 0.1 * torch.randn(100, 2, generator=generator, dtype=torch.float64)
    unsafe = (
        Polyhedron([[1.0, 0.0]], [-0.5]),
        Polyhedron([[-1.0, 0.0]], [-2.0]),
        Polyhedron([[1.0, 1.0]], [-1.0]),
    )
    upper = [1.0] * (inputs - 1) + [-1.0]  # the last input is fixed
    return x.to(dtype), y.to(dtype), Property(Box([-1.0] * inputs, upper), unsafe, "ranges")


def robust_counterpart(x, y, property, margin):
    """The same fit as one program: the minimum over the box written out as W'a center - |W'a| radius."""
    x, y = x.double().numpy(), y.double().numpy()
    weight, bias = cvxpy.Variable((y.shape[1], x.shape[1])), cvxpy.Variable(y.shape[1])
    lower, upper = np.array(property.region.lower), np.array(property.region.upper)
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    rows = []
    for polyhedron in property.unsafe:
        a = np.array(polyhedron.matrix[0])
        least = (a @ weight) @ center - cvxpy.abs(a @ weight) @ radius + a @ bias
        rows.append(least >= polyhedron.bounds[0] + margin)
    residual = x @ weight.T + np.ones((len(x), 1)) @ cvxpy.reshape(bias, (1, y.shape[1]), order="C") - y
    return cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(residual) / len(x)), rows).solve(solver="CLARABEL")


@pytest.mark.parametrize(("inputs", "dtype"), [(4, torch.float32), (2, torch.float64), (6, torch.float64)])
def test_a_repaired_regression_is_proved_and_has_the_optimum_of_the_robust_counterpart(inputs, dtype):
    x, y, property = regression(inputs, dtype)
    result = fit_repaired(x, y, property)
    assert result.status is RepairStatus.REPAIRED
    assert result.weight.dtype == result.bias.dtype == dtype
    assert result.network.inputs[0].dtype == str(dtype).removeprefix("torch.")
    (verdict,) = result.verdicts
    assert check_text(verdict.certificate, result.network)
    margin = MARGINS[dtype] * max(float(y.double().abs().max()), 2.0)
    limit, without = (robust_counterpart(x, y, property, m) for m in (margin, 0.0))
    assert result.error <= limit * (1 + 1e-6)
    assert result.error >= without * (1 - 1e-6)
    assert result.free_error <= result.error
    assert result.rounds > 1
    features = np.concatenate([x.double().numpy(), np.ones((len(x), 1))], axis=1)
    least = np.linalg.lstsq(features, y.double().numpy())[1]
    assert result.free_error == pytest.approx(least.sum() / len(x), rel=1e-6)
    # every round but the last found a corner that no earlier one had
    assert len(set(result.constraints)) == len(result.constraints) >= result.rounds - 1
    assert result.rounds <= 1 + 3 * 2 ** (inputs - 1)
    for one in result.constraints:
        ends = zip(one.input, property.region.lower, property.region.upper, strict=True)
        assert all(value in (low, high) for value, low, high in ends)
    # the law itself, at every corner
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=inputs - 1)), dtype=torch.float64)
    corners = torch.cat([corners.reshape(-1, inputs - 1), torch.full((2 ** (inputs - 1), 1), -1.0)], 1)
    out = corners @ result.weight.double().T + result.bias.double()
    for polyhedron in property.unsafe:
        assert (out @ torch.tensor(polyhedron.matrix[0]).double() > polyhedron.bounds[0]).all()


def test_a_regression_without_need_of_repair_is_the_least_squares_fit():
    x, y, property = regression(3, torch.float64)
    result = fit_repaired(x, y, dataclasses.replace(property, unsafe=(Polyhedron([[1.0, 0.0]], [-100.0]),)))
    assert (result.rounds, result.constraints) == (1, ())
    assert result.error == pytest.approx(result.free_error)
    assert verify(result.network, property).status is VerdictStatus.REFUTED


def test_a_regression_that_nothing_can_repair_says_so():
    x, y, property = regression(2, torch.float64)
    both = (Polyhedron([[1.0, 0.0]], [1.0]), Polyhedron([[-1.0, 0.0]], [0.0]))  # y > 1 and y < 0
    result = fit_repaired(x, y, dataclasses.replace(property, unsafe=both))
    assert result.status is RepairStatus.INFEASIBLE
    assert (result.network, result.verdicts, result.error) == (None, (), np.inf)


def test_a_margin_below_rounding_is_refused_with_the_remedy():
    x, y, property = regression(3, torch.float32)
    with pytest.raises(ConvergenceError, match="larger margin"):
        fit_repaired(x, y, property, margin=1e-14)


def test_regressions_refuse_what_does_not_fit_by_name():
    x, y, property = regression(3, torch.float64)
    for wrong in ((x[0], y), (x, y[1:]), (x[:, 1:], y), (x, y[:, 0]), (x.half(), y)):
        with pytest.raises(ShapeError):
            fit_repaired(*wrong, property)
    with pytest.raises(ShapeError, match="at least one property"):
        fit_repaired(x, y, ())
    with pytest.raises(ShapeError, match="margin"):
        fit_repaired(x, y, property, margin=0.0)
    with pytest.raises(NonFiniteError, match="y has NaN"):
        fit_repaired(x, y * float("nan"), property)
    two = dataclasses.replace(property, unsafe=(Polyhedron(np.eye(2), [0.0, 0.0]),))
    with pytest.raises(UnsupportedOperationError, match="'ranges' has a polyhedron of 2 rows"):
        fit_repaired(x, y, two)


def unsafe_network(dtype, bias=True):
    """A network of 3 outputs, samples, and a property that it violates: output 0 is never the largest."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    model = model.to(dtype)
    x = (4 * torch.rand(300, 2, generator=generator) - 2).to(dtype)
    unsafe = Polyhedron([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], [0.0, 0.0])
    return model, x, Property(Box([0.0, -1.0], [1.0, 0.5]), (unsafe,), "never 0")


@pytest.mark.parametrize(
    ("dtype", "bias"), [(torch.float32, True), (torch.float64, True), (torch.float32, False)]
)
def test_a_repaired_network_is_proved_and_the_original_is_not(dtype, bias):
    model, x, property = unsafe_network(dtype, bias)
    before = as_network(model)
    assert verify(before, property).status is VerdictStatus.REFUTED
    result = repair(model, property, x)
    assert result.status is RepairStatus.REPAIRED
    (verdict,) = result.verdicts
    assert check_text(verdict.certificate, result.network)
    assert not check_text(verdict.certificate, before)
    assert isinstance(result.model, nn.Sequential)
    assert as_network(result.model).hash == result.network.hash != before.hash
    assert as_network(model).hash == before.hash  # what was given is as it was
    for old, new in zip(list(model.parameters())[:4], list(result.model.parameters())[:4], strict=True):
        assert torch.equal(old, new)
    with torch.no_grad():
        assert result.change == pytest.approx(
            float((result.model(x) - model(x)).double().square().mean()), rel=1e-3
        )
        inside = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)).to(dtype) * torch.tensor(
            [1, 1.5], dtype=dtype
        )
        outputs = result.model(inside + torch.tensor([0, -1], dtype=dtype))
    assert (outputs.argmax(1) != 0).all()
    assert (result.error, result.error_before) == (result.change, 0.0)


def test_the_change_is_the_least_that_the_constraints_allow():
    model, x, property = unsafe_network(torch.float64)
    result = repair(model, property, x)
    hidden = nn.Sequential(*list(model)[:-1])
    with torch.no_grad():
        h = torch.cat([hidden(x), torch.ones(len(x), 1)], 1).numpy()
        points = torch.tensor([one.input for one in result.constraints])
        at = torch.cat([hidden(points.double()), torch.ones(len(points), 1)], 1).numpy()
        goal = model(x).numpy()
    old = torch.cat([model[-1].weight, model[-1].bias[:, None]], 1).detach().numpy()
    theta = cvxpy.Variable(old.shape)
    rest = 1e-6 * np.square(h).mean()
    rows = [
        np.array(one.row) @ theta @ f >= one.bound + result.margin
        for one, f in zip(result.constraints, at, strict=True)
    ]
    cost = cvxpy.sum_squares(h @ theta.T - goal) / len(x) + rest * cvxpy.sum_squares(theta - old)
    cvxpy.Problem(cvxpy.Minimize(cost), rows).solve(solver="CLARABEL")
    new = torch.cat([result.model[-1].weight, result.model[-1].bias[:, None]], 1).detach().numpy()
    np.testing.assert_allclose(new, theta.value, atol=1e-4)


def test_a_safe_network_comes_back_unchanged():
    model, x, property = unsafe_network(torch.float32)
    safe = dataclasses.replace(property, unsafe=(Polyhedron([[1.0, 0.0, 0.0]], [-100.0]),))
    result = repair(as_network(model), [safe], x)
    assert (result.status, result.rounds, result.change) == (RepairStatus.REPAIRED, 0, 0.0)
    assert result.network.hash == as_network(model).hash
    assert result.model is result.network


def test_targets_are_fitted_by_the_repaired_layer():
    model, x, property = unsafe_network(torch.float64)
    targets = torch.stack([x[:, 0] - 3, x[:, 1], 1 - x[:, 0]], 1)
    result = repair(model, property, x, targets=targets)
    assert result.status is RepairStatus.REPAIRED
    assert result.error < 0.3 * result.error_before
    assert result.change > 0


def test_what_verify_cannot_decide_is_kept_further_away(monkeypatch):
    """A network that keeps away by less than 0.4 counts as undecided: the margin doubles until it does."""
    model, x, property = unsafe_network(torch.float64)
    decided = []

    def undecided(network, property, **_):
        verdict = verify(network, property)
        enough = verdict.status is VerdictStatus.REFUTED or smallest(network, property) > 0.4
        decided.append(enough)
        return (
            verdict
            if enough
            else dataclasses.replace(verdict, status=VerdictStatus.UNKNOWN, certificate=None)
        )

    def smallest(network, property):
        inside = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)).double()
        outputs = network.to_module()(inside * torch.tensor([1, 1.5]) - torch.tensor([0, 1]))
        return float((outputs @ torch.tensor(property.unsafe[0].matrix).double().T).amax(1).min().detach())

    monkeypatch.setattr("certify.network_repair.verify", undecided)
    result = repair(model, property, x, margin=0.05)
    assert result.status is RepairStatus.REPAIRED
    assert not all(decided)
    assert result.margin > 0.05
    assert smallest(result.network, property) > 0.4


def test_the_same_generator_gives_the_same_repair():
    model, x, property = unsafe_network(torch.float32)
    first, second = (repair(model, property, x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.network.hash == second.network.hash
    assert first.constraints == second.constraints


def test_contradicting_properties_end_in_a_status():
    model, x, property = unsafe_network(torch.float32)
    both = [
        dataclasses.replace(property, unsafe=(Polyhedron([[sign, 0.0, 0.0]], [0.0]),)) for sign in (1.0, -1.0)
    ]  # y_0 > 0 and y_0 < 0
    result = repair(model, both, x)
    assert result.status is RepairStatus.INFEASIBLE
    assert "weaker properties" in result.reason
    assert result.network.hash == as_network(model).hash
    assert any(verdict.status is VerdictStatus.REFUTED for verdict in result.verdicts)


def test_a_repair_that_ran_out_of_rounds_has_the_last_counterexample():
    model, x, property = unsafe_network(torch.float32)
    result = repair(model, property, x, rounds=0)
    assert result.status is RepairStatus.NOT_REPAIRED
    assert result.verdicts[-1].counterexample is not None
    assert result.network.hash == as_network(model).hash


def test_repairs_refuse_what_does_not_fit_by_name():
    module, x, property = unsafe_network(torch.float32)
    model = as_network(module)
    with pytest.raises(ShapeError, match=r"x is \(300, 1\)"):
        repair(model, property, x[:, :1])
    with pytest.raises(ShapeError, match="region of 1 inputs"):
        repair(model, dataclasses.replace(property, region=Box([0.0], [1.0])), x)
    with pytest.raises(ShapeError, match="speaks about 2 outputs"):
        repair(model, dataclasses.replace(property, unsafe=(Polyhedron(np.eye(2), [0.0, 0.0]),)), x)
    with pytest.raises(ShapeError, match=r"targets of shape \(300, 3\)"):
        repair(model, property, x, targets=x)
    with pytest.raises(ShapeError, match="at least one property"):
        repair(model, [], x)
    with pytest.raises(ShapeError, match="margin above 0"):
        repair(model, property, x, margin=-1.0)
    with pytest.raises(NonFiniteError, match="x has NaN"):
        repair(model, property, x / 0)
    with pytest.raises(UnsupportedOperationError, match="ends in ReLU"):
        repair(nn.Sequential(*module, nn.ReLU()), property, x)
    shared = nn.Linear(2, 2)
    with pytest.raises(UnsupportedOperationError, match="untie"):
        repair(nn.Sequential(shared, nn.ReLU(), shared), property, x)
