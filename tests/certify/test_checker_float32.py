"""The bound of float32 inference errors: nothing computed in float32 is ever further from the real function."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import certify
from certify import checker
from certify.certificate import Certificate, Status
from certify.checking import check_text, network_arrays
from certify.regions import Box
from weightspace.builder import NetworkBuilder
from weightspace.errors import NonFiniteError, ShapeError
from weightspace.operations import (
    Absolute,
    Add,
    BatchNorm,
    Clip,
    Concat,
    Flatten,
    GroupSort,
    LeakyReLU,
    Linear,
    Parameter,
    PReLU,
    ReLU,
    Slice,
    Subtract,
    Tanh,
)


def every_operation(seed):
    """A float32 network with all operations that have a float32 bound, and its three linear nodes' sizes."""
    rng, b = np.random.default_rng(seed), NetworkBuilder()

    def parameter(name, *shape, scale=1.0):
        return b.parameter(name, torch.as_tensor(rng.normal(size=shape) * scale).float())

    def linear(name, node, width):
        names = {
            "weight": parameter(f"{name}.w", width, b.shape(node)[-1]),
            "bias": parameter(f"{name}.b", width),
        }
        return b.add(Linear(**names), node)

    x = b.input("x", (None, 2, 3), torch.float32)
    h = b.add(ReLU(), linear("one", b.add(Flatten(), x), 8))
    h = b.add(LeakyReLU(negative_slope=0.3), linear("two", h, 8))
    g = b.add(GroupSort(group_size=4), b.add(Clip(lower=-1.1, upper=0.7), h))
    h = b.add(Add(), h, b.add(PReLU(weight=parameter("slopes", 8)), g))
    constant = b.add(Parameter(value=parameter("constant", 1, 8)))
    h = b.add(Absolute(), b.add(Subtract(), constant, linear("three", h, 8)))
    h = b.add(Concat(axis=1), h, b.add(Slice(axis=1, start=1, step=2), b.add(Clip(lower=0.3), h)))
    return b.build([linear("four", h, 3)])


def deep_contraction(seed, depth=30, width=16):
    """A chain whose Lipschitz constant is tiny against its rounding errors."""
    rng, b = np.random.default_rng(seed), NetworkBuilder()
    node = b.input("x", (None, width), torch.float32)
    for k in range(depth):
        matrix = rng.normal(size=(width, width)) * 0.25 / np.sqrt(width)
        names = {
            "weight": b.parameter(f"w{k}", torch.as_tensor(matrix).float()),
            "bias": b.parameter(f"b{k}", torch.as_tensor(rng.normal(size=width)).float()),
        }
        node = b.add(Linear(**names), node)
        node = b.add(LeakyReLU(negative_slope=0.1) if k % 2 else ReLU(), node) if k < depth - 1 else node
    return b.build([node])


def reordered(network, rng):
    """The same function with the hidden neurons' sums in another order: permuted columns, and inputs with them."""

    module = network.to_module()

    def run(x):
        values = {}
        for node in network.nodes:
            given = [values[name] for name in node.inputs]
            if node.operation.kind == "Input":
                values[node.name] = x
            elif node.operation.kind == "Linear":
                weights = network.weights(node)
                order = torch.as_tensor(rng.permutation(given[0].shape[1]))
                total = weights["bias"].expand(len(x), -1).clone()
                for piece in order.split(int(rng.integers(1, 5))):  # bias first, then some columns at a time
                    total = total + given[0][:, piece] @ weights["weight"][:, piece].T
                values[node.name] = total
            else:
                values[node.name] = node.operation.evaluate(tuple(given), network.weights(node))
        return values[network.outputs[0]]

    return module, run


@pytest.mark.parametrize("draw", [every_operation, deep_contraction])
def test_no_evaluation_in_float32_is_further_off_than_delta(draw):
    for seed in range(4):
        network, rng = draw(seed), np.random.default_rng(seed)
        model = checker.rebuild(*network_arrays(network))
        width = model.steps[0].width
        center, radius = rng.normal(size=width), rng.random(width) * rng.choice([1e-3, 1, 100])
        lower, upper = center - radius, center + radius
        x = torch.as_tensor(rng.uniform(lower, upper, size=(256, width))).float()
        x = torch.cat([x, torch.as_tensor(np.where(rng.random((64, width)) < 0.5, lower, upper)).float()])
        x = torch.maximum(torch.minimum(x.double(), torch.as_tensor(upper)), torch.as_tensor(lower)).float()
        x = x[((x.double() >= torch.as_tensor(lower)) & (x.double() <= torch.as_tensor(upper))).all(1)]
        x = x.reshape(-1, *network.inputs[0].shape[1:])
        assert len(x) > 100
        exact = network.astype(torch.float64).to_module()(x.double()).detach()
        module, run = reordered(network, rng)
        worst = {}
        for output, (norm, order) in itertools.product((None, 1, (0, 2)), (("l2", 2), ("linf", np.inf))):
            delta = checker.float32_delta(model, lower, upper, norm, output)
            for function in (module, *[run] * 4):
                off = function(x).detach().double() - exact
                chosen = (
                    off if output is None else off[:, [output]] if output == 1 else off[:, :1] - off[:, 2:]
                )
                found = float(torch.linalg.vector_norm(chosen, ord=order, dim=1).max())
                assert found <= delta
                worst[norm, output] = max(worst.get((norm, output), 0.0), found / delta)
        assert max(worst.values()) > 1e-4, worst  # and it is no empty promise


def single_operations():
    """Networks of one rounding operation each, for which the bound is nearly attained, and the least such share."""

    def build(make, width=1):
        b = NetworkBuilder()
        x = b.input("x", (None, width), torch.float32)
        return b.build([make(b, x)])

    def linear(b, x, *entries, name="w"):
        return b.add(Linear(weight=b.parameter(name, torch.tensor([entries], dtype=torch.float32))), x)

    def many(b, x):  # the roundings of all layers add up
        for k in range(400):
            x = linear(b, x, 3.1 if k % 2 else 1 / 3.1, name=f"w{k}")
        return x

    def half(b, x, start):
        return b.add(Slice(axis=1, start=start, stop=start + 1), x)

    constant = torch.tensor([[0.7]])
    yield "Linear", build(lambda b, x: linear(b, x, 0.7)), 0.1
    yield "sum of two", build(lambda b, x: linear(b, x, 0.7, 0.9), 2), 0.1
    yield "400 layers", build(many), 1e-4
    yield "LeakyReLU", build(lambda b, x: b.add(LeakyReLU(negative_slope=0.9), x)), 0.1
    yield "PReLU", build(lambda b, x: b.add(PReLU(weight=b.parameter("w", torch.tensor([-0.9]))), x)), 0.1
    yield "Clip", build(lambda b, x: b.add(Clip(lower=0.3, upper=0.9), x)), 0.05
    yield "Add", build(lambda b, x: b.add(Add(), half(b, x, 0), half(b, x, 1)), 2), 0.1
    yield (
        "Subtract",
        build(lambda b, x: b.add(Subtract(), b.add(Parameter(value=b.parameter("c", constant))), x)),
        0.1,
    )
    for name, operation in (("Absolute", Absolute()), ("Slice", Slice(axis=1, start=0)), ("ReLU", ReLU())):
        yield name, build(lambda b, x, last=operation: b.add(last, linear(b, x, 0.7))), 0.1
    yield (
        "Concat",
        build(lambda b, x: b.add(Concat(axis=1), linear(b, x, 0.7), linear(b, x, 1.4, name="v"))),
        0.1,
    )
    yield (
        "GroupSort",
        build(lambda b, x: b.add(GroupSort(), b.add(Concat(axis=1), x, linear(b, x, 0.7)))),
        0.05,
    )


@pytest.mark.parametrize(
    ("network", "share"), [pytest.param(*case[1:], id=case[0]) for case in single_operations()]
)
def test_the_bound_of_each_operation_is_nearly_attained(network, share):
    model = checker.rebuild(*network_arrays(network))
    width = model.steps[0].width
    x = (
        2 * torch.rand(20000, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    ).float()
    off = (network.to_module()(x).double() - network.astype(torch.float64).to_module()(x.double())).detach()
    delta = checker.float32_delta(model, [-1.0] * width, [1.0] * width, "linf", None)
    assert share * delta <= float(off.abs().max()) <= delta


def float32_certificate(network, lower, upper, **changes):
    """A certificate of kind norm product over a box, built directly."""
    model = checker.rebuild(*network_arrays(network))
    norms = tuple(checker.spectral_norm_bound(matrix) for _, matrix in model.linears)
    bound, _ = checker.check_norms(model, "l2", None, norms)
    region = Box(lower, upper)
    fields = {
        "upper_bound": bound, "optimum_lower_bound": None, "sampled_lower_bound": None, "status": Status.CERTIFIED,
        "norm": "l2", "output": None, "method": "test", "kind": checker.NORM_PRODUCT, "network_hash": network.hash,
        "proofs": (), "cuts": (), "layer_norms": norms, "activations": tuple(checker.activation_names(model)),
        "arithmetic": "float32", "delta": checker.float32_delta(model, region.lower, region.upper, "l2", None),
        "region": region,
    }  # fmt: skip
    return Certificate(**{**fields, **changes})


def test_certificates_of_inference_hold_for_inference():
    network = deep_contraction(0, depth=6)
    width = network.inputs[0].shape[1]
    certificate = float32_certificate(network, -np.ones(width), np.ones(width))
    assert certify.check(certificate, network)
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert "2 delta" in certificate.claim
    # the claim without delta is false: rounding dominates here
    x = torch.rand(512, width) * 2 - 1
    near = torch.nextafter(x, torch.full_like(x, 2.0))
    module = network.to_module()
    moved = (module(x) - module(near)).double().norm(dim=1)
    allowed = certificate.upper_bound * (x - near).double().norm(dim=1)
    assert (moved > allowed).any()
    assert (moved <= allowed + 2 * certificate.delta).all()


def test_a_smaller_delta_or_a_broken_region_is_refused():
    network = deep_contraction(1, depth=4)
    width = network.inputs[0].shape[1]
    good = float32_certificate(network, -np.ones(width), np.ones(width))
    assert certify.check(good, network)
    wider = Box([-1.1] * width, [1.0] * width)
    forgeries = [
        {"delta": good.delta * (1 - 1e-8)}, {"delta": 0.0}, {"delta": -1.0}, {"delta": float("nan")}, {"delta": None},
        {"delta": float("inf")}, {"region": None}, {"region": wider}, {"region": Box([0.0], [1.0])},
        {"region": Box([0.0] * (width + 1), [1.0] * (width + 1))}, {"arithmetic": "real"},
        {"activations": good.activations[:-1]}, {"layer_norms": good.layer_norms[:-1]}, {"cuts": (1,)},
    ]  # fmt: skip
    for changes in forgeries:
        assert not certify.check(dataclasses.replace(good, **changes), network), changes
    real = dataclasses.replace(good, arithmetic="real", delta=None)
    assert certify.check(real, network)  # a global bound holds on a box
    crossed = Box([0.0] * width, [1.0] * width)
    object.__setattr__(crossed, "lower", (2.0,) * width)
    assert (
        "above its upper" in check_text(dataclasses.replace(good, region=crossed).to_json(), network).reason
    )


@pytest.mark.parametrize(
    ("operation", "dtype", "message"),
    [(Tanh(), torch.float32, "Tanh"), (ReLU(), torch.float64, "float64"), (ReLU(), torch.float16, None)],
)
def test_only_operations_of_one_rounding_and_short_weights_have_a_delta(build, operation, dtype, message):
    network = build([np.ones((2, 2)), np.ones((1, 2))], operation, dtype)
    model = checker.rebuild(*network_arrays(network))
    if message is None:
        assert checker.float32_delta(model, [0, 0], [1, 1], "l2", None) > 0
        return
    with pytest.raises(checker.Refused, match=message):
        checker.float32_delta(model, [0, 0], [1, 1], "l2", None)


def test_batch_normalization_and_overflow_are_refused(build):
    b = NetworkBuilder()
    x = b.input("x", (None, 1), torch.float32)
    one = b.parameter("one", torch.ones(1))
    model = checker.rebuild(
        *network_arrays(b.build([b.add(BatchNorm(running_mean=one, running_var=one), x)]))
    )
    with pytest.raises(checker.Refused, match="BatchNorm"):
        checker.float32_delta(model, [0], [1], "l2", None)
    large = checker.rebuild(*network_arrays(build([[[1e20]], [[1e20]]], dtype=torch.float32)))
    with pytest.raises(checker.Refused, match="overflow"):
        checker.float32_delta(large, [0], [1], "l2", None)
    assert checker.float32_delta(large, [0], [1e-10], "l2", None) > 0


def test_boxes():
    box = Box(torch.zeros(2, 2, requires_grad=True), np.ones((2, 2), dtype=np.float32))
    assert box == Box([0, 0, 0, 0], (1.0, 1.0, 1.0, 1.0))
    assert box.lower == (0.0,) * 4
    assert hash(box) == hash(Box([0] * 4, [1] * 4))
    for lower, upper, error in (
        ([0, 0], [1], ShapeError),
        ([1, 0], [0, 1], ShapeError),
        ([float("nan")], [1], NonFiniteError),
        ([0], [float("inf")], NonFiniteError),
    ):
        with pytest.raises(error, match="Box needs"):
            Box(lower, upper)
