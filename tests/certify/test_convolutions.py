"""Laws of convolutions, pools and channel-wise normalization, from the network to an accepted certificate."""

import itertools
import math
import re
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import certify
import weightspace
from certify import checker
from certify.bounders import ClosedForm, Descent, LipSDP, NormProduct, Split
from certify.bounders.proving import prove
from certify.constraints import WindowMaximum
from certify.convolution import dense
from certify.descent import ChainBarrier, descend
from certify.lmi import SlopeChain
from certify.signals import system_of
from tests.certify.structures import Draw, model_of
from weightspace.errors import UnsupportedOperationError
from weightspace.operations import (
    AdaptiveAveragePool,
    Add,
    AveragePool,
    Concat,
    Conv,
    Flatten,
    LeakyReLU,
    Linear,
    MaxPool,
    PReLU,
    ReLU,
    Reshape,
    Sigmoid,
    Slice,
    Tanh,
)

DTYPES = [torch.float32, torch.float64]


def seeded(seed):
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def strided(d):
    h = d.add(ReLU(), d.convolution(d.maps(1, 5, 5), 2, 3, 2, 1))
    return d.linear(d.add(Flatten(), d.add(Tanh(), d.convolution(h, 2, 2))), 3)


def normalized(d):
    h = d.normalized(d.convolution(d.maps(1, 5, 5), 2, 3, 2))
    return d.add(Flatten(), d.convolution(d.normalized(d.add(ReLU(), h)), 3, 2))


def leaky_and_grouped(d):
    h = d.add(PReLU(weight=d.parameter(d.rng.random(4))), d.convolution(d.maps(1, 6, 6), 4, 2, 2))
    h = d.add(LeakyReLU(negative_slope=0.2), d.convolution(h, 4, 2, dilation=2, groups=2))
    return d.linear(d.add(Flatten(), d.add(Reshape(shape=(-1, 2, 2)), d.add(Flatten(), h))), 2)


def averaged(d):
    h = d.add(ReLU(), d.convolution(d.maps(1, 5, 5), 2, 3))
    h = d.add(AveragePool(kernel=(3, 3), stride=(2, 2), padding=(1, 1)), h)
    h = d.add(Sigmoid(), d.convolution(h, 2, 2, padding=1))
    return d.linear(d.add(Flatten(), d.add(AdaptiveAveragePool(size=(1, 1)), h)), 2)


def maxima(d):
    h = d.add(ReLU(), d.convolution(d.maps(1, 6, 6), 1, 2, 2))
    pool = {"kernel": (2, 2), "dilation": (1, 1)}
    h = d.convolution(d.add(MaxPool(stride=(1, 1), padding=(1, 1), **pool), h), 2, 2)
    return d.add(Flatten(), d.add(MaxPool(stride=(2, 2), padding=(0, 0), **pool), h))


def joined(d):
    """Feature maps added, concatenated along channels and sliced."""
    x = d.maps(2, 3, 3)
    h = d.add(Add(), x, d.add(ReLU(), d.normalized(d.convolution(x, 2, 3, padding=1))))
    other = d.add(Slice(axis=1, start=0, stop=1), d.add(ReLU(), d.convolution(h, 2, 3, padding=1)))
    both = d.add(AdaptiveAveragePool(size=(2, 2)), d.add(Concat(axis=1), h, other))
    return d.linear(d.add(Flatten(), both), 2)


NETWORKS = [strided, normalized, leaky_and_grouped, averaged, maxima, joined]


def draw(structure, dtype=torch.float64, seed=0):
    d = Draw(seed, dtype)
    return d.builder.build([structure(d)])


# ---- matrices ----------------------------------------------------------------------------------------------

axis = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(5, 7)
)


@settings(max_examples=8, deadline=None)
@given(
    axes=st.lists(axis, min_size=1, max_size=2), groups=st.integers(1, 2), each=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_matrix_of_a_convolution_is_the_convolution(axes, groups, each, dtype, seed):
    kernel, stride, padding, dilation, sizes = zip(*axes, strict=True)

    def layer(d):
        return d.convolution(
            d.maps(groups * 2, *sizes), groups * each, kernel, stride, padding, dilation, groups
        )

    assert_matrices(draw(layer, dtype, seed))


@settings(max_examples=8, deadline=None)
@given(
    axes=st.lists(axis, min_size=1, max_size=2), ceil=st.booleans(), counted=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_the_matrix_of_a_mean_is_the_mean(axes, ceil, counted, dtype):
    kernel, stride, padding, _, sizes = zip(*axes, strict=True)
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    pool = AveragePool(kernel=kernel, stride=stride, padding=padding, ceil=ceil, count_padding=counted)
    assert_matrices(draw(lambda d: d.add(pool, d.maps(2, *sizes)), dtype))
    assert_matrices(draw(lambda d: d.add(AdaptiveAveragePool(size=kernel), d.maps(2, *sizes)), dtype))


def assert_matrices(network):
    """The layer's matrix, ours and the checker's, does what the layer does to a difference of two inputs."""
    module = network.astype(torch.float64).to_module()
    x, y = torch.randn(2, 1, *network.inputs[0].shape[1:], dtype=torch.float64)
    expected = (module(x) - module(y)).detach().numpy().reshape(-1)
    change = (x - y).numpy().reshape(-1)
    ours = dense(system_of(network).output[0]) @ change
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    (step,) = model_of(network).steps[1:]
    theirs = checker._linear(step, [change])
    np.testing.assert_allclose(theirs, expected, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(axes=st.lists(axis, min_size=1, max_size=2), ceil=st.booleans(), seed=st.integers(0, 99))
def test_increments_of_maxima_obey_the_constraint(axes, ceil, seed):
    rng = seeded(seed)
    kernel, stride, padding, dilation, sizes = zip(*axes, strict=True)
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    pool = MaxPool(kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil=ceil)
    network = draw(lambda d: d.add(pool, d.maps(2, *sizes)))
    layer = network.to_module()
    (nonlinearity,) = system_of(network).layers
    constraint = nonlinearity.constraint
    assert isinstance(constraint, WindowMaximum)
    (step,) = model_of(network).steps[1:]
    assert {frozenset(row) - {-1} for row in step.matrix} == {
        frozenset(row) - {-1} for row in constraint.windows
    }
    width = constraint.width
    for _ in range(20):
        x = torch.as_tensor(rng.normal(size=(1, 2, *sizes)))
        peaked = torch.zeros(width, dtype=torch.float64)
        peaked[rng.integers(width)] = 100.0 * rng.normal()
        y = x + peaked.reshape(x.shape) if rng.random() < 0.5 else torch.as_tensor(rng.normal(size=x.shape))
        change = (y - x).numpy().reshape(-1, 1)
        v = (layer(y) - layer(x)).numpy().reshape(-1) - constraint.through(change)[:, 0]
        room = np.linalg.norm(constraint.reduce(change).reshape(len(v), -1), axis=1)
        assert (np.abs(v) <= room * (1 + 1e-12) + 1e-12).all()
        np.testing.assert_array_less(
            np.linalg.norm((layer(y) - layer(x)).numpy()),
            constraint.lipschitz * np.linalg.norm(change) + 1e-9,
        )


@pytest.mark.parametrize("structure", [normalized, averaged])
def test_products_of_matrices_are_within_their_error_bounds(structure):
    """Against rational arithmetic, square roots to 40 digits."""
    net = draw(structure)
    model = model_of(net)
    weights, errors = model.chain, model.chain_errors
    assert any(error is not None for error in errors)
    exact, current = [], None
    for step in model.steps[1:]:
        if step.rule == "slopes":
            exact.append(current)
            current = None
            continue
        if step.rule == "same":
            continue
        if step.rule == "linear":
            matrix = np.vectorize(Fraction, otypes=[object])(step.matrix)
        elif step.rule == "average":
            small = np.vectorize(lambda w: Fraction(w).limit_denominator(99), otypes=[object])(step.matrix)
            matrix = np.kron(np.eye(step.shape[1], dtype=int).astype(object), small)
        else:
            matrix = np.diag(exact_factors(net, step)).astype(object)
        current = matrix if current is None else matrix @ current
    exact.append(current)
    for weight, error, truth in zip(weights, errors, exact, strict=True):
        bound = np.zeros(weight.shape) if error is None else error
        for w, e, t in zip(weight.flat, bound.flat, truth.flat, strict=True):
            assert abs(Fraction(w) - t) <= Fraction(e)
        assert (bound <= 1e-12).all()


def exact_factors(net, step):
    node = net.node(step.name)
    tensors = net.weights(node)
    factors = []
    for w, v in zip(tensors["weight"].tolist(), tensors["running_var"].tolist(), strict=True):
        variance = Fraction(v) + Fraction(node.operation.epsilon)
        root = Fraction(math.isqrt(int(variance * 10**80)), 10**40)
        factors += [Fraction(w) / root] * math.prod(step.shape[2:])
    return factors


# ---- bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("structure", NETWORKS)
def test_certificates_are_sound_and_accepted(structure, norm):
    dtype = DTYPES[(norm == "l2") ^ NETWORKS.index(structure) % 2]
    net = draw(structure, dtype)
    output = None if norm == "l2" else (1, 0)
    found = certify.lipschitz(net, norm=norm, output=output)
    assert 0 < found.sampled_lower_bound <= found.upper_bound
    assert found.optimum_lower_bound == pytest.approx(found.upper_bound, rel=1e-4)
    assert certify.check(certify.Certificate.from_json(found.to_json()), net)
    if norm == "l2":
        product = NormProduct().propose(system_of(net), norm)
        assert found.upper_bound <= prove(model_of(net), product, norm, None).bound
    assert not certify.check(found, draw(structure, dtype, seed=1))


def bound(net, bounder, output=None):
    """The bound of one method, proven, without the search from below."""
    return prove(model_of(net), bounder.propose(system_of(net, output), "l2"), "l2", output).bound


@pytest.mark.parametrize("bounder", [LipSDP(), ClosedForm(), Descent(work=1e8), Split(), NormProduct()])
@pytest.mark.parametrize("structure", [strided, averaged, leaky_and_grouped])
def test_a_pair_is_bounded_by_the_whole(structure, bounder, monkeypatch):
    """And one output, by less; Split cuts here."""
    monkeypatch.setattr("certify.bounders.splitting._WIDE", 16)
    net = draw(structure)
    whole = bound(net, bounder)
    for output, factor in (((0, 1), math.sqrt(2)), ((1, 0), math.sqrt(2)), (1, 1)):
        assert 0 < bound(net, bounder, output) <= factor * whole * (1 + 1e-6)


def test_the_check_runs_alone(tmp_path):
    net = draw(maxima)
    certificate = certify.lipschitz(net)
    (tmp_path / "c.json").write_text(certificate.to_json())
    net.save_npz(tmp_path / "n.npz")
    command = [sys.executable, Path(checker.__file__), tmp_path / "c.json", tmp_path / "n.npz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("valid")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_convolution_is_bounded_as_the_linear_layer_it_is(dtype):
    def convolutions(d):
        return d.convolution(d.add(ReLU(), d.convolution(d.maps(1, 5, 5), 2, 3, 2, 1)), 2, 2, padding=1)

    def matrices(d):
        h = d.builder.input("x", (None, 25), dtype)
        h = d.add(ReLU(), d.add(Linear(weight=d.parameter(dense(system.layers[0].signal[0]))), h))
        return d.add(Linear(weight=d.parameter(dense(system.output[1]))), h)

    convolutional = draw(convolutions, dtype)
    system = system_of(convolutional)
    flat = draw(matrices, dtype)
    for bounder in (LipSDP(tolerance=1e-8), ClosedForm(), NormProduct()):
        assert bound(convolutional, bounder) == pytest.approx(bound(flat, bounder), rel=1e-6)


@pytest.mark.parametrize("name", ["strided", "maxima", "averaged"])
def test_exact_arithmetic_agrees(name):
    def structure(d):
        h = d.convolution(
            d.maps(1, *((4, 4) if name == "strided" else (3, 3))), 1, 2, 1 + (name == "strided")
        )
        if name == "maxima":
            h = d.add(MaxPool(kernel=(2, 2), stride=(1, 1), padding=(1, 1), dilation=(1, 1)), h)
        else:
            h = d.add(ReLU(), h)
        if name == "averaged":
            h = d.add(AveragePool(kernel=(2, 2), stride=(1, 1), padding=(1, 1), count_padding=False), h)
        return d.linear(d.add(Flatten(), d.convolution(h, 2, 2) if name == "strided" else h), 2)

    net = draw(structure)
    for norm, output in (("l2", None), ("linf", (1, 0))):
        certificate = certify.lipschitz(net, norm=norm, output=output)
        assert certify.check(certificate, net, exact=True)
        (proof,) = certificate.proofs
        model = model_of(net)
        fields = {
            "output": proof.output, "multipliers": [list(v) for v in proof.multipliers],
            "input_multipliers": proof.input_multipliers and list(proof.input_multipliers),
        }  # fmt: skip
        with pytest.raises(checker.Refused):
            checker.check_proofs(model, norm, output, [], [{**fields, "rho": proof.rho * 0.99}])
        changed = [[2 * value for value in values] for values in fields["multipliers"]]
        changed[-1] = [0.0] * len(changed[-1])
        with pytest.raises(checker.Refused):
            checker.check_proofs(
                model, norm, output, [], [{**fields, "rho": proof.rho * 1.01, "multipliers": changed}]
            )


# ---- norms without unrolling -------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(axes=st.lists(axis, min_size=1, max_size=2), groups=st.integers(1, 2), seed=st.integers(0, 99))
def test_norms_from_the_kernel_bound_the_matrix(axes, groups, seed):
    rng = np.random.default_rng(seed)
    kernel, stride, padding, dilation, sizes = zip(*axes, strict=True)
    shape = kernel, stride, padding, dilation, groups
    net = draw(lambda d: d.convolution(d.maps(2 * groups, *sizes), 3 * groups, *shape, bias=False), seed=seed)
    matrix = dense(system_of(net).output[0])
    (own,) = net.parameters.values()
    weight = own.numpy() * 10.0 ** rng.integers(-20, 20)
    found = checker.Kernel(weight, stride, dilation, groups)
    scale = weight.flat[0] / own.flatten()[0].item()
    true = np.linalg.norm(matrix, 2) * scale
    assert true <= checker.kernel_norm_bound(found, "l2")
    assert np.abs(matrix).sum(axis=1).max() * scale <= checker.kernel_norm_bound(found, "linf") * (1 + 1e-12)


def test_norms_from_the_kernel_are_close_for_large_inputs():
    net = draw(lambda d: d.convolution(d.maps(2, 16, 16), 3, 3, 2, 1, bias=False))
    true = np.linalg.norm(dense(system_of(net).output[0]), 2)
    (weight,) = net.parameters.values()
    assert (
        true
        <= checker.kernel_norm_bound(checker.Kernel(weight.numpy(), (2, 2), (1, 1), 1), "l2")
        <= 1.15 * true
    )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_is_too_large_to_unroll_has_a_product_of_norms_only(norm, monkeypatch):
    net = draw(averaged)
    unrolled = certify.lipschitz(net, norm=norm, bounder=NormProduct())
    monkeypatch.setattr(checker, "UNROLLED", 10)
    monkeypatch.setattr("certify.signals.LARGEST", 10)
    found = certify.lipschitz(net, norm=norm)
    assert unrolled.upper_bound * (1 - 1e-8) <= found.upper_bound <= 4 * unrolled.upper_bound
    assert found.kind == checker.NORM_PRODUCT
    assert re.search("Conv at node .* is a matrix of more than 10 entries", found.method)
    with pytest.raises(UnsupportedOperationError, match=r"Conv at node .*NormProduct"):
        certify.lipschitz(net, norm=norm, bounder=certify.LipSDP())
    lower = tuple(value * (0.5 if value == max(found.layer_norms) else 1) for value in found.layer_norms)
    with pytest.raises(checker.Refused, match="not proven"):
        checker.check_norms(model_of(net), norm, None, lower)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_huge_convolution_takes_little_memory(hidden, pooled, monkeypatch):
    """Its matrix would have 1.5e10 entries, which no part of a split may write out either."""

    def structure(d):
        h = d.convolution(d.maps(3, 224, 224), 8, 3, 2, bias=False)
        h = d.add(ReLU(), h) if hidden else h
        if pooled:
            h = d.add(MaxPool(kernel=(3, 3), stride=(2, 2), padding=(0, 0), dilation=(1, 1)), h)
        return d.linear(d.add(Flatten(), d.add(AdaptiveAveragePool(size=(1, 1)), h)), 2)

    monkeypatch.setattr("certify.bounders.certifying.sample_lower_bound", lambda *_, **__: None)
    net = draw(structure, torch.float32)
    tracemalloc.start()
    found = certify.lipschitz(net)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e8
    assert found.kind == checker.NORM_PRODUCT
    assert "Conv at node 'conv'" in found.method
    with pytest.raises(UnsupportedOperationError, match="NormProduct"):
        Split().propose(system_of(net), "l2")


# ---- large chains ------------------------------------------------------------------------------------------


@pytest.fixture
def chain():
    rng, widths = np.random.default_rng(0), (5, 7, 6, 4, 3)
    weights = [0.3 * rng.normal(size=(b, a)) for a, b in itertools.pairwise(widths)]
    sides = [(np.zeros(n), np.full(n, 0.7)) for n in widths[1:-1]]
    return SlopeChain(tuple(weights), *(tuple(side) for side in zip(*sides, strict=True)))


def test_the_barrier_is_that_of_the_inequality(chain):
    """Its value is -log det of M with unit diagonal, and its gradient is the derivative."""
    barrier, rng, eta = ChainBarrier(chain), np.random.default_rng(1), 3.0
    x = 1.5 + 0.1 * rng.normal(size=len(barrier.start()))
    matrix = chain.inequality().matrix(math.exp(x[0]), np.exp(x[1:]))
    diagonal = np.concatenate([np.full(5, math.exp(x[0])), 2 * np.exp(x[1:])])
    _, logdet = np.linalg.slogdet(matrix / np.sqrt(np.outer(diagonal, diagonal)))
    value, gradient = barrier.value(x, eta)
    assert value == pytest.approx(eta * x[0] - logdet, rel=1e-5)
    for k, one in enumerate(np.eye(len(x))):
        slope = (barrier.value(x + 0.01 * one, eta)[0] - barrier.value(x - 0.01 * one, eta)[0]) / 0.02
        assert gradient[k] == pytest.approx(slope, abs=1e-3)
    assert barrier.value(x - 9.0, eta) is None


def test_descent_reaches_the_minimum_within_the_domain():
    def value(x):
        return (
            None
            if x[0] <= 0
            else (x[0] - math.log(x[0]) + 50 * x[1] ** 2, np.array([1 - 1 / x[0], 100 * x[1]]))
        )

    x, calls = descend(value, np.array([0.01, 1.0]), 60)
    np.testing.assert_allclose(x, [1, 0], atol=1e-3)
    assert calls <= 60


@pytest.mark.parametrize("dtype", DTYPES)
def test_descent_lies_between_the_program_and_the_closed_form(dtype):
    net = draw(strided, dtype)
    program, closed, found = (bound(net, one) for one in (LipSDP(), ClosedForm(), Descent(work=1e8)))
    assert program * (1 - 1e-6) <= found <= 1.03 * program
    assert found < closed


def test_a_sequence_is_split_where_its_parts_are_too_large(monkeypatch):
    net = draw(maxima)
    whole = bound(net, LipSDP())
    assert Split().propose(system_of(net), "l2").cuts == ()
    monkeypatch.setattr("certify.bounders.splitting._SMALL", 30)
    found = certify.lipschitz(net, bounder=Split())
    assert found.cuts
    assert f"split after nonlinearities {found.cuts}" in found.method
    assert whole <= found.upper_bound <= bound(net, NormProduct()) * (1 + 1e-6)
    assert certify.check(found, net)
    assert not certify.check(certify.Certificate.from_json(found.to_json()), draw(maxima, seed=1))


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_other_than_zeros_is_refused_by_name(mode):
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)
    net = weightspace.trace(nn.Sequential(layer, nn.ReLU()), (torch.randn(2, 1, 5, 5),))
    with pytest.raises(UnsupportedOperationError, match=f"mode '{mode}'.*zeros"):
        certify.lipschitz(net)
    with pytest.raises(checker.Refused):
        model_of(net)


def test_a_transposed_convolution_is_refused_by_name():
    def structure(d):
        one = (1, 1)
        return d.add(
            Conv(
                weight=d.parameter(np.ones((1, 1, 3, 3))),
                stride=one,
                padding=one,
                dilation=one,
                transposed=True,
            ),
            d.maps(1, 5, 5),
        )

    net = draw(structure)
    with pytest.raises(UnsupportedOperationError, match="transposed"):
        certify.lipschitz(net)
    with pytest.raises(checker.Refused):
        model_of(net)
