"""Laws of the bounds: soundness, order among the methods, invariances, known values."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import certify
import weightspace
from certify import checker
from certify.bounders.closed_form import to_stored_units
from certify.checking import network_arrays
from certify.lmi import chain_of
from certify.preparation import normalize
from certify.recursion import tighten
from certify.signals import system_of
from weightspace.builder import NetworkBuilder
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError, UnsupportedOperationError
from weightspace.operations import (
    ELU,
    GELU,
    Absolute,
    Clip,
    Flatten,
    GroupSort,
    Householder,
    LeakyReLU,
    Linear,
    Pointwise,
    PReLU,
    ReLU,
    Scale,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)

ACTIVATIONS = [
    ReLU(), LeakyReLU(negative_slope=0.2), LeakyReLU(negative_slope=-0.5), LeakyReLU(negative_slope=1.5),
    Tanh(), Sigmoid(), GELU(), GELU(approximate="tanh"), SiLU(), ELU(),
    ELU(alpha=1.6732632423543772, scale=1.0507009873554805),
    ELU(alpha=2.0, input_scale=0.5), Softplus(), Softplus(beta=3.0), Clip(lower=0.0, upper=6.0), Absolute(),
    Pointwise(name="atan"), Pointwise(name="erf"), Pointwise(name="sin"), Pointwise(name="mish"),
    Pointwise(name="hardswish"), Pointwise(name="hardsigmoid"), Pointwise(name="softsign"),
    Pointwise(name="log_sigmoid"),
]  # fmt: skip
SHAPES = [[3, 5, 2], [2, 6, 4, 1], [5, 3, 4, 3, 2]]


def biases_for(matrices, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=len(matrix)) for matrix in matrices]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_sampled_is_below_every_bound_and_the_methods_are_ordered(build, he, activation):
    for seed, widths in enumerate(SHAPES):
        matrices = he(widths, seed + 100)
        network = build(matrices, activation, biases=biases_for(matrices, seed))
        product = certify.lipschitz(network, bounder=certify.NormProduct())
        closed = certify.lipschitz(network, bounder=certify.ClosedForm())
        program = certify.lipschitz(network, bounder=certify.LipSDP())
        assert 0 < program.sampled_lower_bound <= program.upper_bound
        assert program.upper_bound <= closed.upper_bound * (1 + 1e-5)
        assert closed.upper_bound <= product.upper_bound * (1 + 1e-5)
        assert program.optimum_lower_bound <= program.upper_bound <= program.optimum_lower_bound * (1 + 1e-4)
        for certificate in (product, closed, program):
            assert certify.check(certificate, network)


@settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(1, 8), min_size=2, max_size=6),
    seed=st.integers(0, 10**6),
    activation=st.sampled_from(ACTIVATIONS),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e8]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_closed_form_is_sound_and_accepted(build, he, widths, seed, activation, scale, dtype):
    matrices = [scale * matrix for matrix in he(widths, seed)]
    network = build(matrices, activation, dtype, biases=biases_for(matrices, seed))
    closed = certify.lipschitz(network, bounder=certify.ClosedForm())
    product = certify.lipschitz(network, bounder=certify.NormProduct())
    assert closed.sampled_lower_bound <= closed.upper_bound <= product.upper_bound * (1 + 1e-5)
    linf = certify.lipschitz(network, norm="linf")
    assert linf.sampled_lower_bound <= linf.upper_bound


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_slopes_enclose_difference_quotients(build, activation):
    points = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    constraint = system_of(build([np.eye(1), np.eye(1)], activation)).layers[0].constraint
    low, high = constraint.alpha[0], constraint.beta[0]
    values = activation.function(points)
    quotients = values.diff() / points.diff()
    # rounding of values up to 60 divided by steps of 6e-4
    assert low - 1e-10 <= quotients.min()
    assert quotients.max() <= high + 1e-10
    assert quotients.max() >= high - 0.02


def test_group_activations_in_every_method(build, he):
    matrices = he([4, 6, 6, 3], 5)
    for activation, parameters in [
        (GroupSort(group_size=2), None),
        (GroupSort(group_size=3), None),
        (Householder(weight="w"), {"w": torch.randn(3, 2, dtype=torch.float64)}),
    ]:
        network = build(matrices, activation, parameters=parameters)
        for norm in ("l2", "linf"):
            certificate = certify.lipschitz(network, norm=norm)
            assert 0 < certificate.sampled_lower_bound <= certificate.upper_bound
            assert certify.check(certificate, network)
            if norm == "linf" and parameters is not None:
                with pytest.raises(UnsupportedOperationError, match="Householder"):
                    certify.lipschitz(network, norm=norm, bounder=certify.NormProduct())
                continue
            product = certify.lipschitz(network, norm=norm, bounder=certify.NormProduct())
            assert certificate.upper_bound <= product.upper_bound * (1 + 1e-6)
        with pytest.raises(UnsupportedOperationError, match=activation.kind):
            certify.lipschitz(network, bounder=certify.ClosedForm())


def test_layer_multipliers_are_never_below_neuron_multipliers(build, he):
    for seed in range(4):
        network = build(he([4, 6, 5, 3], seed))
        neuron = certify.lipschitz(network, bounder=certify.LipSDP(multipliers="neuron"))
        layer = certify.lipschitz(network, bounder=certify.LipSDP(multipliers="layer"))
        assert neuron.upper_bound <= layer.upper_bound * (1 + 1e-6)
        assert layer.optimum_lower_bound <= layer.upper_bound
        for values in layer.multipliers:
            assert np.ptp(values) <= 1e-12 * max(values)


def test_clarabel_and_scs_agree(build, he):
    for seed, activation in enumerate([ReLU(), LeakyReLU(negative_slope=0.3), SiLU()]):
        network = build(he([3, 5, 5, 2], seed), activation)
        a, b = (
            certify.lipschitz(network, bounder=certify.LipSDP(solver=name)) for name in ("CLARABEL", "SCS")
        )
        assert a.upper_bound == pytest.approx(b.upper_bound, rel=1e-4)


def test_an_answer_of_scs_below_the_optimum_is_repaired(build, he):
    import cvxpy

    network = build(he([8] * 8 + [3]))
    certificate = certify.lipschitz(network, bounder=certify.LipSDP(solver="SCS"))
    lower = certificate.optimum_lower_bound
    assert lower <= certificate.upper_bound <= lower * 1.001

    chain, exponents = normalize(chain_of(system_of(network)))
    inequality = chain.inequality()
    size, linear = inequality.size, inequality.affine_map()
    unknowns = cvxpy.Variable(linear.shape[1], nonneg=True)
    flat = linear @ unknowns + inequality.constant.reshape(-1)
    constraint = cvxpy.reshape(flat, (size, size), order="C") >> 0
    problem = cvxpy.Problem(cvxpy.Minimize(unknowns[0]), [constraint])
    problem.solve(solver="SCS", eps=1e-4)
    factor = 2.0 ** sum(exponents)
    # "optimal", and far below the least bound that any multipliers prove
    assert problem.status == "optimal"
    assert factor * math.sqrt(problem.value) < 0.9 * lower
    # its multipliers prove only what is above it, and the check refuses its value
    values = np.split(np.maximum(unknowns.value[1:], 0), np.cumsum(chain.widths[1:])[:-1])
    assert factor * math.sqrt(tighten(chain, values)) >= lower
    rho, stored = to_stored_units(problem.value, values, exponents)
    proof = {"output": None, "rho": rho, "multipliers": stored, "input_multipliers": None}
    with pytest.raises(checker.Refused):
        checker.check_proofs(checker.rebuild(*network_arrays(network)), "l2", None, (), [proof])


@pytest.mark.parametrize(
    ("name", "neuron", "layer", "closed", "product"),
    [
        ("random_weights", 36.48223, 39.83862, 36.7008, 43.3056),
        ("mnist_weights", 24.36635, 26.2560, 25.7813, 31.5035),
    ],
)
def test_published_examples(build, lipsdp_example, name, neuron, layer, closed, product):
    network = build(lipsdp_example(name))
    bound = certify.lipschitz(network)
    assert bound.upper_bound == pytest.approx(neuron, rel=1e-5)
    assert bound.optimum_lower_bound == pytest.approx(neuron, rel=1e-5)
    by_layer = certify.lipschitz(network, bounder=certify.LipSDP(solver="SCS", multipliers="layer"))
    assert by_layer.upper_bound == pytest.approx(layer, rel=1e-5)
    assert certify.lipschitz(network, bounder=certify.NormProduct()).upper_bound == pytest.approx(
        product, rel=1e-5
    )
    # the backward recursion may beat ECLipsE-Fast, whose value is the published one
    best = certify.lipschitz(network, bounder=certify.ClosedForm()).upper_bound
    assert neuron <= best <= closed * (1 + 1e-5)


def test_acas_xu():
    folder = os.environ.get("WEIGHTSPACE_DATA")
    if not folder or not (Path(folder) / "acasxu").is_dir():
        pytest.skip("WEIGHTSPACE_DATA holds no acasxu")
    network = weightspace.read(Path(folder) / "acasxu" / "ACASXU_run2a_1_1_batch_2000.onnx")
    certificate = certify.lipschitz(network)
    assert certificate.upper_bound == pytest.approx(88258.0, rel=3e-5)
    assert certify.check(certificate, network)


def test_a_chain_cut_in_two(build, lipsdp_example, he):
    network = build(lipsdp_example("random_weights"))
    layers = len(lipsdp_example("random_weights")) - 1
    bounds = [
        certify.lipschitz(network, bounder=certify.LipSDP(cuts=(k,))).upper_bound
        for k in range(1, layers + 1)
    ]
    assert min(abs(bound / 37.66814 - 1) for bound in bounds) < 1e-5  # published as 37.668
    whole = certify.lipschitz(network, bounder=certify.LipSDP()).upper_bound
    assert all(bound >= whole * (1 - 1e-6) for bound in bounds)
    deep = build(he([4, 6, 6, 6, 2], 1), SiLU())
    certificate = certify.lipschitz(deep, output=(0, 1), bounder=certify.LipSDP(cuts=(1, 3)))
    assert [len(proof.multipliers) for proof in certificate.proofs] == [0, 1, 0]
    assert certificate.sampled_lower_bound <= certificate.upper_bound
    assert certify.check(certificate, deep, exact=True)


def test_permuting_and_rescaling_neurons_leaves_the_bound(build, he):
    rng = np.random.default_rng(3)
    matrices = he([3, 6, 5, 2], 8)
    reference = certify.lipschitz(build(matrices), bounder=certify.LipSDP()).upper_bound
    changed = [matrix.copy() for matrix in matrices]
    for k in range(2):
        order, factors = rng.permutation(len(changed[k])), np.exp(rng.normal(size=len(changed[k])))
        changed[k] = (factors[:, None] * changed[k])[order]
        changed[k + 1] = (changed[k + 1] / factors)[:, order]
    assert certify.lipschitz(build(changed), bounder=certify.LipSDP()).upper_bound == pytest.approx(
        reference, rel=1e-5
    )


@pytest.mark.parametrize("bounder", [certify.LipSDP(), certify.ClosedForm(), certify.NormProduct()], ids=repr)
def test_scaling_a_layer_scales_the_bound(build, he, bounder):
    matrices = he([3, 5, 4, 2], 9)
    reference = certify.lipschitz(build(matrices), bounder=bounder).upper_bound
    for factor in (1e-20, -0.3, 1e15):
        changed = [matrices[0], factor * matrices[1], matrices[2]]
        bound = certify.lipschitz(build(changed), bounder=bounder).upper_bound
        if factor > 0:
            assert bound == pytest.approx(factor * reference, rel=1e-5)
        last = [*matrices[:2], factor * matrices[2]]
        assert certify.lipschitz(build(last), bounder=bounder).upper_bound == pytest.approx(
            abs(factor) * reference, rel=1e-5
        )


@pytest.mark.parametrize("bounder", [certify.LipSDP(), certify.ClosedForm(), certify.NormProduct()], ids=repr)
def test_no_hidden_layer_gives_the_norm(build, he, bounder):
    for shape in [(5, 3), (3, 5), (1, 1), (4, 1)]:
        (matrix,) = he(shape[::-1], 1)
        certificate = certify.lipschitz(build([matrix]), bounder=bounder)
        assert certificate.upper_bound == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6)
        assert certificate.upper_bound >= np.linalg.norm(matrix, 2)
        assert certify.check(certificate, build([matrix]))


@pytest.mark.parametrize("bounder", [certify.LipSDP(), certify.ClosedForm(), certify.NormProduct()], ids=repr)
def test_degenerate_chains(build, he, bounder):
    rank_one = np.outer([1.0, 2.0, -1.0], [3.0, 0.5])
    dead = he([3, 5, 5, 2], 1)
    dead[0][1] = 0
    dead[1][:, 2] = 0
    dead[2][:, 4] = 0
    cases = [
        [[[2.0]], [[-3.0]], [[0.5]]],
        [np.eye(4)] * 5,
        [rank_one, np.ones((2, 3)), np.ones((1, 2))],
        [np.vstack([np.eye(3), np.eye(3)]), np.hstack([np.eye(3), -np.eye(3)])],
        dead,
        he([6, 1, 6], 2),
        he([3, *[2] * 30, 2], 3),
    ]
    for matrices in cases:
        certificate = certify.lipschitz(build(matrices), bounder=bounder)
        assert certificate.upper_bound is not None, certificate.method
        assert certificate.sampled_lower_bound <= certificate.upper_bound
    assert certify.lipschitz(build([np.eye(4)] * 5), bounder=bounder).upper_bound == pytest.approx(
        1, rel=1e-6
    )


def test_a_constant_function_has_bound_zero(build):
    for matrices in (
        [np.zeros((3, 2)), np.ones((2, 3))],
        [np.diag([1.0, 0]), np.array([[0.0, 1]])],
        [np.zeros((2, 2))],
    ):
        certificate = certify.lipschitz(build(matrices))
        assert certificate.upper_bound == 0
        assert certify.check(certificate, build(matrices), exact=True)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_layers_without_neurons_are_constant(build, norm):
    bounders = [None, certify.NormProduct()]
    if norm == "l2":
        bounders += [certify.ClosedForm(), certify.LipSDP()]
    for widths in ([3, 0, 2], [0, 3, 2], [3, 2, 0]):
        network = build([np.ones((b, a)) for a, b in itertools.pairwise(widths)])
        for bounder in bounders:
            certificate = certify.lipschitz(network, norm=norm, bounder=bounder)
            assert certificate.upper_bound == 0
            assert certify.check(certificate, network, exact=True)


def test_the_affine_map_stores_no_zeros(build, he):
    chain = chain_of(system_of(build(he([30, 30, 5]))))
    linear = chain.inequality().affine_map()
    assert linear.nnz == np.count_nonzero(linear.data)
    assert linear.nnz < 3 * sum(weight.size for weight in chain.weights)


def test_outputs_and_differences(build, he):
    network = build(he([4, 7, 6, 3], 4), dtype=torch.float32)
    whole = certify.lipschitz(network, bounder=certify.LipSDP())
    for bounder in (certify.LipSDP(), certify.ClosedForm(), certify.NormProduct()):
        for output in (0, 2, (0, 1), (2, 1)):
            certificate = certify.lipschitz(network, output=output, bounder=bounder)
            assert certify.check(certificate, network)
            assert certificate.sampled_lower_bound <= certificate.upper_bound
            if isinstance(bounder, certify.LipSDP):
                factor = 1 if isinstance(output, int) else math.sqrt(2)
                assert certificate.upper_bound <= factor * whole.upper_bound * (1 + 1e-5)
    for output in (3, -1, (0, 3), (0, 1, 2)):
        with pytest.raises(ShapeError, match="output"):
            certify.lipschitz(network, output=output)


def test_modules_are_traced():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    certificate = certify.lipschitz(module)
    assert certificate.sampled_lower_bound <= certificate.upper_bound
    with pytest.raises(ArchitectureError, match="example_inputs"):
        certify.lipschitz(torch.nn.ReLU())


def chain_with(*operations, width=4, parameters=None):
    builder = NetworkBuilder()
    weight = builder.parameter("w", torch.randn(width, width, dtype=torch.float64))
    for name, tensor in (parameters or {}).items():
        builder.parameter(name, tensor)
    node = builder.add(Linear(weight=weight), builder.input("x", (None, width), torch.float64))
    for operation in operations:
        node = builder.add(operation, node)
    return builder.build([node])


def test_unusual_chains():
    two = chain_with(Linear(weight="w"))
    certificate = certify.lipschitz(two)
    weight = two.parameters["w"].numpy()
    assert certificate.upper_bound == pytest.approx(np.linalg.norm(weight @ weight, 2), rel=1e-6)
    assert certify.check(certificate, two)
    for network in (
        chain_with(ReLU()),
        chain_with(ReLU(), Tanh(), Linear(weight="w")),
        chain_with(Scale(shift=2.0), ReLU(), Scale(shift=-1.0), Linear(weight="w")),
        chain_with(
            PReLU(weight="a"), Linear(weight="w"), parameters={"a": torch.rand(4, dtype=torch.float64)}
        ),
        chain_with(Flatten(), ReLU(), Linear(weight="w", transposed=True)),
        chain_with(Scale(factor=2.0), ReLU(), Linear(weight="w")),
    ):
        certificate = certify.lipschitz(network)
        assert "LipSDP" in certificate.method
        assert certificate.sampled_lower_bound <= certificate.upper_bound
        assert certify.check(certificate, network, exact=True)


def test_one_vector_without_a_batch_axis():
    builder = NetworkBuilder()
    weight = builder.parameter("w", torch.randn(3, 4, dtype=torch.float64))
    node = builder.input("x", (4,), torch.float64)
    node = builder.add(ReLU(), builder.add(Linear(weight=weight), node))
    network = builder.build([node])
    certificate = certify.lipschitz(network)
    assert 0 < certificate.sampled_lower_bound <= certificate.upper_bound
    assert certify.check(certificate, network, exact=True)


@pytest.mark.parametrize(
    ("operations", "word"),
    [
        ((Householder(weight="zero"),), "Householder"),
        ((LeakyReLU(negative_slope=math.inf),), "LeakyReLU"),
        ((ELU(alpha=math.inf),), "ELU"),
        ((ELU(alpha=math.nan),), "ELU"),
        ((Scale(shift=math.inf), ReLU()), "Scale"),
        ((Softmax(),), "Softmax"),
        ((Pointwise(name="exp"),), "exp"),
        ((Softplus(threshold=1.0),), "Softplus"),
        ((Flatten(start=0),), "Flatten"),
        ((GroupSort(axis=0, group_size=1),), "GroupSort"),
    ],
)
def test_unsupported_operations_are_refused_by_name(operations, word):
    vectors = {"v": torch.ones(4, dtype=torch.float64), "zero": torch.zeros(2, 2, dtype=torch.float64)}
    network = chain_with(*operations, parameters=vectors)
    with pytest.raises(UnsupportedOperationError, match=word):
        certify.lipschitz(network)


def test_wrong_requests_are_refused(build, he):
    network = build(he([2, 3, 2]))
    with pytest.raises(UnsupportedOperationError, match="tolerance"):
        certify.LipSDP(tolerance=0.0)
    for cuts in ((0,), (2,), (1, 1), (1, 0)):
        with pytest.raises(UnsupportedOperationError, match="cuts"):
            certify.lipschitz(network, bounder=certify.LipSDP(cuts=cuts))
    with pytest.raises(UnsupportedOperationError, match="cuts"):
        certify.lipschitz(network, norm="linf", bounder=certify.LipSDP(cuts=(1,)))
    with pytest.raises(UnsupportedOperationError, match="multipliers"):
        certify.LipSDP(multipliers="network")
    with pytest.raises(UnsupportedOperationError, match="region"):
        certify.lipschitz(network, region="box")
    with pytest.raises(UnsupportedOperationError, match="norm"):
        certify.lipschitz(network, norm="l1")
    with pytest.raises(UnsupportedOperationError, match="LipSDP"):
        certify.lipschitz(network, norm="linf", bounder=certify.ClosedForm())
    with pytest.raises(UnsupportedOperationError, match="Box"):
        certify.lipschitz(network, arithmetic="float32")
    with pytest.raises(UnsupportedOperationError, match="arithmetic"):
        certify.lipschitz(network, arithmetic="float16")
    with pytest.raises(ImportError, match="no solver"):
        certify.lipschitz(network, bounder=certify.LipSDP(solver="NONE"))
    broken = build([np.full((2, 2), np.nan), np.eye(2)])
    with pytest.raises(NonFiniteError, match="weight_0"):
        certify.lipschitz(broken)
