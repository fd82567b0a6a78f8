"""What else a certificate may claim: cuts, l-infinity, norm products, constants; and what is refused by name."""

import dataclasses
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

import certify
from certify import checker
from certify.certificate import Certificate, Proof, Status
from weightspace.builder import NetworkBuilder
from weightspace.operations import (
    ELU,
    Add,
    Concat,
    Flatten,
    GroupSort,
    Householder,
    Implicit,
    LeakyReLU,
    Linear,
    MaxPool,
    Multiply,
    Parameter,
    Permute,
    ReLU,
    Reshape,
    Select,
    SiLU,
    Slice,
    Softmax,
    Softplus,
    Tanh,
)

_SPECIFICATION = spec_from_file_location("certify_structures", Path(__file__).with_name("structures.py"))
structures = module_from_spec(_SPECIFICATION)
_SPECIFICATION.loader.exec_module(structures)


def solved(network, norm, output, factor=1.001):
    """The fields of a proof close to the optimum."""
    program = structures.Program(network, norm, output)
    values = program.solve()
    values[0] = program.boundary(values) * factor
    return program.proof(values)


def certificate_of(network, proofs, **changes):
    """A certificate of kind multipliers from proofs' fields."""
    model = structures.model_of(network)
    fields = {
        "upper_bound": 1e6, "optimum_lower_bound": None, "sampled_lower_bound": None, "status": Status.CERTIFIED,
        "norm": "l2", "output": None, "method": "test", "kind": checker.MULTIPLIERS, "network_hash": network.hash,
        "proofs": tuple(
            Proof(p["rho"], tuple(map(tuple, p["multipliers"])), p["input_multipliers"], p["output"]) for p in proofs
        ),
        "cuts": (), "layer_norms": None, "activations": tuple(checker.activation_names(model)),
    }  # fmt: skip
    return Certificate(**{**fields, **changes})


@pytest.mark.parametrize("structure", structures.STRUCTURES)
def test_certificates_round_trip_and_pass_both_checks(structure):
    network = structures.draw_network(structure, 2, torch.float32)
    for norm, outputs in (("l2", [None]), ("linf", [0, 1])):
        outputs = outputs + [2] * (norm == "linf" and structure == "concat")
        proofs = [solved(network, norm, output) for output in outputs]
        bound, _ = checker.check_proofs(structures.model_of(network), norm, None, [], proofs)
        certificate = certificate_of(network, proofs, norm=norm, upper_bound=bound)
        assert Certificate.from_json(certificate.to_json()).to_json() == certificate.to_json()
        assert certify.check(certificate, network)
        exact = certify.check(certificate, network, exact=True)
        assert exact.valid == (structure != "BatchNorm"), exact.reason
        assert exact.valid or "square root" in exact.reason
        assert (certificate.rho is None) == (len(proofs) > 1)
        below = dataclasses.replace(certificate, upper_bound=float(np.nextafter(bound, 0)))
        assert not certify.check(below, network)
        assert not certify.check(certificate, structures.draw_network(structure, 3, torch.float32))


def test_every_output_needs_its_proof_in_the_infinity_norm():
    network = structures.draw_network("residual", 0)
    first, second = (solved(network, "linf", output) for output in (0, 1))
    bound = max(first["rho"], second["rho"])
    good = certificate_of(network, [first, second], norm="linf", upper_bound=bound)
    assert certify.check(good, network)
    one = certificate_of(network, [second], norm="linf", output=1, upper_bound=second["rho"])
    assert certify.check(one, network, exact=True)
    smaller = [{**second, "input_multipliers": [m / 2 for m in second["input_multipliers"]]}]
    wrong = [
        ([first], {}), ([second, first], {}), ([first, second, second], {}), ([], {}), ([first, first], {}),
        ([first, second], {"norm": "l2"}), ([first, second], {"output": 0}), ([first], {"output": 1}),
        ([{**first, "input_multipliers": None}, second], {}), ([first, {**second, "output": None}], {}),
        ([{**first, "input_multipliers": first["input_multipliers"][:-1]}, second], {}),
        ([{**first, "input_multipliers": [-1.0, *first["input_multipliers"][1:]]}, second], {}),
        ([{**first, "input_multipliers": [float("nan"), *first["input_multipliers"][1:]]}, second], {}),
        ([{**first, "rho": first["rho"] * 0.99}, second], {}), ([first, *smaller], {}),
        ([first, second], {"cuts": (1,)}),
    ]  # fmt: skip
    for proofs, changes in wrong:
        forged = certificate_of(network, proofs, **{"norm": "linf", "upper_bound": bound, **changes})
        assert not certify.check(forged, network), changes


def test_cuts_multiply(build, he):
    matrices, activation = he([3, 4, 4, 3, 2], 5), LeakyReLU(negative_slope=-1.5)
    network = build(matrices, activation)
    whole = solved(network, "l2", None)
    first, last = (solved(build(some, activation), "l2", None) for some in (matrices[:2], matrices[2:]))
    bound, _ = checker.check_proofs(structures.model_of(network), "l2", None, [2], [first, last])
    expected = 1.5 * np.sqrt(first["rho"] * last["rho"])
    assert expected <= bound <= expected * (1 + 1e-14)
    assert bound > np.sqrt(whole["rho"])
    good = certificate_of(network, [first, last], cuts=(2,), upper_bound=bound)
    assert certify.check(good, network, exact=True)
    pair = solved(build(matrices[2:], activation), "l2", (0, 1))
    other, _ = checker.check_proofs(structures.model_of(network), "l2", (0, 1), [2], [first, pair])
    chosen = certificate_of(network, [first, pair], cuts=(2,), output=(0, 1), upper_bound=other)
    assert certify.check(chosen, network, exact=True)
    single = [{"output": None, "rho": float(np.linalg.norm(m, 2) ** 2 * (1 + 1e-9)), "input_multipliers": None,
               "multipliers": []} for m in matrices]  # fmt: skip
    everywhere = certificate_of(network, single, cuts=(1, 2, 3), upper_bound=1e6)
    assert certify.check(everywhere, network, exact=True)
    wrong = [
        ([first, last], {"upper_bound": bound / 1.5}), ([first, last], {"cuts": (1,)}), ([first, last], {"cuts": ()}),
        ([first, last], {"cuts": (2, 2)}), ([first, last], {"cuts": (3,)}), ([last, first], {}), ([first], {}),
        ([first, last], {"output": 0}), ([first, pair], {}), ([{**first, "output": 0}, last], {}),
        ([first, last, single[0]], {"cuts": (2, 4)}), (single, {"cuts": (3, 2, 1)}), (single, {"cuts": (0, 1, 2)}),
    ]  # fmt: skip
    middle, identity = solved(build(matrices[1:3], activation), "l2", None), {**single[0], "rho": 1.0 + 1e-9}
    wrong.append(([single[0], middle, identity, last], {"cuts": (1, 3, 2), "upper_bound": 1e6}))
    for proofs, changes in wrong:
        forged = certificate_of(network, proofs, **{"cuts": (2,), "upper_bound": bound, **changes})
        assert not certify.check(forged, network), changes
    residual = structures.draw_network("residual", 0)
    with pytest.raises(checker.Refused, match="chain"):
        checker.check_proofs(structures.model_of(residual), "l2", None, [1], single[:2])


def test_an_implicit_layer_needs_positive_multipliers_and_strict_definiteness():
    def scalar(weight):
        b = NetworkBuilder()
        x = b.input("x", (None, 1), torch.float64)
        names = {"weight": b.parameter("w", torch.tensor([[weight]], dtype=torch.float64))}
        names["input_weight"] = b.parameter("u", torch.ones(1, 1, dtype=torch.float64))
        return b.build([b.add(Implicit(**names), x)])

    proof = {"output": None, "rho": 10.0, "input_multipliers": None, "multipliers": [[2.0]]}
    model = structures.model_of(scalar(0.5))
    assert checker.check_proofs(model, "l2", None, [], [proof])[0] >= 2
    for number in (0.0, -1.87, float("nan")):
        with pytest.raises(checker.Refused, match="multiplier"):
            checker.check_proofs(model, "l2", None, [], [{**proof, "multipliers": [[number]]}])
    # z = max(2 z + x, 0) has two solutions or none, whatever the multiplier; so has w = 1 at the boundary
    for weight in (2.0, 1.0):
        for rho in (1.866, 10.0, 1e6):
            for number in (0.1, 1.87, 100.0):
                proof = {**proof, "rho": rho, "multipliers": [[number]]}
                with pytest.raises(checker.Refused):
                    checker.check_proofs(structures.model_of(scalar(weight)), "l2", None, [], [proof])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("structure", structures.STRUCTURES)
def test_norm_products_of_graphs_bound_what_is_found(structure, norm):
    for seed in range(3):
        network = structures.draw_network(structure, seed)
        model = structures.model_of(network)
        bound_of = checker.spectral_norm_bound if norm == "l2" else checker.row_sum_bound
        norms = [bound_of(matrix) for _, matrix in model.linears]
        if "implicit" in structure or (norm == "linf" and any(s.kind == "Householder" for s in model.steps)):
            with pytest.raises(checker.Refused, match=r"Implicit|Householder"):
                checker.check_norms(model, norm, None, norms)
            continue
        bound, _ = checker.check_norms(model, norm, None, norms)
        module = network.to_module()
        x = 3 * torch.randn(2000, model.steps[0].width, dtype=torch.float64)
        y = x + 10.0 ** -torch.randint(0, 6, (2000, 1)) * torch.randn_like(x).sign()
        order = 2 if norm == "l2" else torch.inf
        with torch.no_grad():
            moved = torch.linalg.vector_norm(module(x) - module(y), ord=order, dim=1)
        assert (moved <= bound * torch.linalg.vector_norm(x - y, ord=order, dim=1) * (1 + 1e-9)).all()
        for k, value in enumerate(norms):
            if not value:
                continue
            with pytest.raises(checker.Refused):
                checker.check_norms(model, norm, None, [*norms[:k], value * (1 - 1e-5), *norms[k + 1 :]])
        if structure != "BatchNorm":
            certificate = certificate_of(
                network, [], kind=checker.NORM_PRODUCT, norm=norm, upper_bound=bound, layer_norms=tuple(norms)
            )
            assert certify.check(certificate, network, exact=True), structure


def test_a_selected_output_shrinks_the_last_norm_only_where_it_is_linear(build, he):
    network = build(he([3, 4, 2], 0))
    model = structures.model_of(network)
    first, last = (matrix for _, matrix in model.linears)
    rows = checker.select_rows(last, (0, 1))
    norms = [checker.spectral_norm_bound(first), checker.spectral_norm_bound(rows)]
    bound, _ = checker.check_norms(model, "l2", (0, 1), norms)
    assert bound == pytest.approx(np.linalg.norm(first, 2) * np.linalg.norm(last[0] - last[1]), rel=1e-5)
    with pytest.raises(checker.Refused):
        checker.check_norms(model, "l2", None, [norms[0], norms[1] * 0.1])
    ends_in_relu = build([*he([3, 4], 0), np.eye(4), np.eye(4)])
    model = structures.model_of(ends_in_relu)
    shorter = checker.Model(model.steps[:-1])
    with pytest.raises(checker.Refused, match="Linear at the end"):
        checker.check_norms(shorter, "l2", 0, [norms[0], 1.0])


def test_constant_outputs_have_bound_zero():
    network = structures.draw_network("residual", 0)
    zero = {name: torch.zeros_like(t) if name == "p1" else t for name, t in network.parameters.items()}
    constant = network.replace_parameters(zero)
    model = structures.model_of(constant)
    proof = {"output": None, "rho": 0.0, "input_multipliers": None, "multipliers": [[0.0] * 2, [0.0] * 2]}
    assert checker.check_proofs(model, "l2", None, [], [proof]) == (0.0, np.inf)
    with pytest.raises(checker.Refused):
        checker.check_proofs(structures.model_of(network), "l2", None, [], [proof])


def test_equal_rows_and_their_difference(build):
    network = build([np.eye(2), np.array([[1.0, 2.0], [1.0, 2.0]])])
    proof = {"output": (0, 1), "rho": 0.0, "input_multipliers": None, "multipliers": [[1.0, 1.0]]}
    model = structures.model_of(network)
    proof["rho"] = 1e-300
    assert checker.check_proofs(model, "l2", (0, 1), [], [proof])[0] == 0.0


def refused_networks():
    def build(make, shape=(None, 4)):
        b = NetworkBuilder()
        x = b.input("x", shape, torch.float64)
        return b.build([make(b, x)])

    ones = lambda b, name, *shape: b.parameter(name, torch.ones(*shape, dtype=torch.float64))  # noqa: E731
    relu = lambda b, x: b.add(ReLU(), x)  # noqa: E731
    yield "Softmax", build(lambda b, x: b.add(Softmax(), x))
    yield "Multiply", build(lambda b, x: b.add(Multiply(), x, relu(b, x)))
    yield "Permute", build(lambda b, x: b.add(Permute(axes=(1, 0)), x), (3, 3))
    yield "GroupSort", build(lambda b, x: b.add(GroupSort(axis=2), x), (None, 3, 4))
    yield "GroupSort", build(lambda b, x: b.add(GroupSort(axis=0), x), (4, 4))
    yield "Householder", build(lambda b, x: b.add(Householder(weight=ones(b, "w", 2, 2)), x), (None, 4, 3))
    yield "Slice", build(lambda b, x: b.add(Slice(axis=0, start=0, stop=1), x), (2, 4))
    yield "Select", build(lambda b, x: b.add(Select(axis=0, index=0), x))
    yield "Concat", build(lambda b, x: b.add(Concat(axis=0), x, relu(b, x)), (2, 4))
    yield "Flatten", build(lambda b, x: b.add(Flatten(start=0), x))
    yield "Reshape", build(lambda b, x: b.add(Reshape(shape=(-1, 2)), x))
    yield "Reshape", build(lambda b, x: b.add(Reshape(shape=(2, -1)), x), (4, 4))
    yield (
        "MaxPool",
        build(
            lambda b, x: b.add(MaxPool(kernel=(2,), stride=(2,), padding=(0,), dilation=(1,)), x),
            (2, 4),
        ),
    )
    yield "Softplus", build(lambda b, x: b.add(Softplus(threshold=1.0), x))
    yield "ELU", build(lambda b, x: b.add(ELU(input_scale=-1.0), x))
    yield (
        "constant",
        build(lambda b, x: b.add(Concat(axis=1), x, b.add(Parameter(value=ones(b, "c", 2, 4)))), (2, 4)),
    )
    yield "Add", build(lambda b, x: b.add(Add(), x, b.add(Parameter(value=ones(b, "c", 5, 4, 4)))), (4, 4))
    yield (
        "Add",
        build(lambda b, x: b.add(Add(), x, b.add(Flatten(), b.add(Slice(axis=1, stop=1), x))), (4, 4)),
    )
    yield "depend", build(lambda b, x: b.add(Parameter(value=ones(b, "c", 4))))


@pytest.mark.parametrize(
    ("name", "network"), [pytest.param(*case, id=case[0]) for case in refused_networks()]
)
def test_everything_else_is_refused_by_name(name, network):
    with pytest.raises(checker.Refused, match=name):
        structures.model_of(network)


def test_unused_parts_and_a_fixed_batch_are_no_obstacle():
    b = NetworkBuilder()
    x = b.input("x", (1, 1, 1, 3), torch.float32)
    flat = b.add(Reshape(shape=(1, -1)), b.add(Flatten(), x))
    shifted = b.add(Add(), flat, b.add(Parameter(value=b.parameter("mean", torch.ones(3)))))
    weight = b.parameter("w", torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    y = b.add(Tanh(), b.add(Linear(weight=weight), shifted))
    unused = b.add(Softmax(), b.add(SiLU(), y))
    network = b.build([y, unused])
    network = dataclasses.replace(network, outputs=network.outputs[:1])
    model = structures.model_of(network)
    assert checker.activation_names(model) == ["Tanh"]
    assert len(model.chain) == 2
    proof = solved(network, "l2", None)
    assert certify.check(certificate_of(network, [proof]), network, exact=True)
