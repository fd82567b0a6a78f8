"""The independent check: it accepts what is true, refuses what exact arithmetic refutes, and runs alone."""

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

import certify
from certify import checker
from certify.checking import check_text, network_arrays
from certify.exact import positive_semidefinite
from certify.lmi import inequality_of
from certify.signals import system_of
from weightspace.builder import NetworkBuilder
from weightspace.errors import CheckpointError
from weightspace.operations import (
    Absolute,
    BatchNorm,
    Clip,
    Conv,
    Flatten,
    GroupSort,
    LayerNorm,
    LeakyReLU,
    Linear,
    Pad,
    Parameter,
    Pointwise,
    PReLU,
    ReLU,
    SiLU,
    Softmax,
)
from weightspace.operations.arithmetic import Add, Multiply

_SPECIFICATION = spec_from_file_location("certify_structures", Path(__file__).with_name("structures.py"))
structures = module_from_spec(_SPECIFICATION)
_SPECIFICATION.loader.exec_module(structures)

CHECKER = Path(checker.__file__)

# what a machine without torch sees: the checker's own imports only
ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "scipy", "cvxpy", "weightspace", "certify", "kernels", "networkx"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocker())
import runpy
path = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(path, run_name="__main__")
"""


def run_alone(*arguments):
    return subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(CHECKER), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def rewritten(certificate, **changes):
    """The JSON of a certificate with fields changed and the digest recomputed, as a forger would."""
    data = json.loads(certificate.to_json())
    data.update(changes)
    data["digest"] = checker.digest(data)
    return json.dumps(data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_runs_with_numpy_alone(build, he, tmp_path, dtype):
    network = build(he([3, 6, 2]), LeakyReLU(negative_slope=0.1), dtype)
    network.save_npz(tmp_path / "network.npz")
    for bounder in (certify.ClosedForm(), certify.NormProduct()):
        certificate = certify.lipschitz(network, bounder=bounder)
        (tmp_path / "certificate.json").write_text(certificate.to_json())
        result = run_alone(tmp_path / "certificate.json", tmp_path / "network.npz")
        assert (result.returncode, result.stderr) == (0, "")
        assert repr(certificate.upper_bound) in result.stdout
        assert certify.check(certificate, network).valid
    forged = rewritten(certificate, upper_bound=(certificate.upper_bound * 0.9).hex())
    (tmp_path / "certificate.json").write_text(forged)
    result = run_alone(tmp_path / "certificate.json", tmp_path / "network.npz")
    assert result.returncode == 1
    assert result.stdout.startswith("invalid")
    assert not check_text(forged, network)
    (tmp_path / "certificate.json").write_text("{")
    assert run_alone(tmp_path / "certificate.json", tmp_path / "network.npz").returncode == 2
    assert run_alone(tmp_path / "certificate.json").returncode == 2


def test_imports_nothing_but_numpy_and_the_standard_library():
    lines = [
        line for line in CHECKER.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))
    ]
    allowed = {"hashlib", "json", "math", "sys", "numpy", "dataclasses", "functools", "typing"}
    assert {line.split()[1] for line in lines} <= allowed


def varied_networks():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        b = NetworkBuilder()
        node = b.input("x", (None, 2, 6, 6), dtype)
        w = b.parameter("conv", torch.randn(3, 2, 3, 3).to(dtype))
        node = b.add(Conv(weight=w, stride=(1, 1), padding=(1, 1), dilation=(1, 1)), node)
        mean = b.parameter("mean", torch.randn(3).to(dtype), trained=False)
        node = b.add(
            BatchNorm(running_mean=mean, running_var=b.parameter("var", torch.rand(3).to(dtype))), node
        )
        node = b.add(Pad(amounts=(1, 0, 0, 0), value=0.5), node)
        node = b.add(Flatten(), b.add(PReLU(weight=b.parameter("slope", torch.rand(3).to(dtype))), node))
        dense = b.add(Linear(weight=b.parameter("w", torch.randn(5, 126).to(dtype)), transposed=False), node)
        shifted = b.add(Add(), dense, b.add(Parameter(value=b.parameter("p", torch.randn(1, 5).to(dtype)))))
        product = b.add(Multiply(), shifted, b.add(LayerNorm(normalized_shape=(5,)), dense))
        yield b.build([b.add(Softmax(), product), dense])
    b = NetworkBuilder()
    one, other = b.input("a", (None, 3), torch.float64), b.input("b", (None, 3), torch.float64)
    yield b.build(
        [b.add(Add(), b.add(Clip(lower=None, upper=1e16), one), b.add(Pointwise(name="erf"), other))]
    )


def test_hash_equals_that_of_the_network(tmp_path):
    for network in varied_networks():
        assert checker.network_hash(*network_arrays(network)) == network.hash
        network.save_npz(tmp_path / "network.npz")
        assert checker.network_hash(*checker.load_network(tmp_path / "network.npz")) == network.hash


def test_every_edit_is_noticed(build, he):
    network = build(he([2, 3, 2]))
    text = certify.lipschitz(network, bounder=certify.LipSDP()).to_json()
    data = json.loads(text)
    edits = 0
    for name, value in data.items():
        if isinstance(value, str):
            changes = [value[:-1] + ("0" if value[-1] != "0" else "1")]
        elif name == "proofs":
            (proof,) = value
            numbers = proof["multipliers"]
            changes = [[], [proof, proof], [{**proof, "rho": (1.0).hex()}], [{**proof, "output": 0}], None]
            changes += [
                [{**proof, "multipliers": other}] for other in ([numbers[0][::-1]], [numbers[0][:-1]], [])
            ]
            changes += [
                [{**proof, "input_multipliers": []}],
                [{**proof, "extra": 1}],
                [{"rho": proof["rho"]}],
            ]
        elif name == "versions":
            changes = [{**value, "numpy": "0"}]
        else:
            changes = [1, 2, [0, 1], "x", {}, {"lower": [], "upper": []}, True, ["ReLU", "ReLU"]]
        for change in changes:
            if change == value:
                continue
            edited = json.dumps({**data, name: change})
            with pytest.raises(CheckpointError):
                certify.Certificate.from_json(edited)
            with contextlib.suppress(CheckpointError):
                assert not check_text(edited, network)
            edits += 1
    assert edits > 20
    for broken in (
        "",
        "[]",
        "{}",
        text[:-3],
        json.dumps({**data, "extra": 1}),
        "[" * 100_000,
        text.replace('"0x', '"'),
    ):
        with pytest.raises(CheckpointError):
            check_text(broken, network)


def accepted(text: str, network, *, exact: bool = False) -> bool:
    """Whether a certificate is read and found valid."""
    try:
        return bool(check_text(text, network, exact=exact))
    except CheckpointError:
        return False


def proof_of(certificate, **changes):
    """The fields of a certificate's only proof, as the checker's functions take them."""
    return [{**dataclasses.asdict(certificate.proofs[0]), **changes}]


def test_forgeries_with_a_fresh_digest_are_refused(build, he):
    network = build(he([3, 5, 4, 2], 1), dtype=torch.float32)
    for bounder in (certify.LipSDP(), certify.ClosedForm()):
        certificate = certify.lipschitz(network, bounder=bounder)
        (proof,) = json.loads(certificate.to_json())["proofs"]
        rho, values = certificate.rho, [list(layer) for layer in certificate.multipliers]
        hexes = lambda layers: [[value.hex() for value in layer] for layer in layers]  # noqa: E731
        forged = lambda proof=proof, **changes: {"proofs": [{**proof, **changes}]}  # noqa: E731
        assert check_text(rewritten(certificate), network)
        forgeries = [
            {**forged(rho=(rho * f).hex()), "upper_bound": (np.sqrt(rho * f)).hex()}
            for f in (1 - 1e-6, 0.999, 0.5)
        ]
        forgeries += [{"upper_bound": (certificate.upper_bound * (1 - 1e-12)).hex()}]
        forgeries += [
            {**forged(rho=x), "upper_bound": x} for x in ("nan", "inf", "-0x1.0p+0", (0.0).hex(), "-inf")
        ]
        for k, layer in enumerate(values):
            for factor in (1.01, 0.99, -1.0, float("nan"), float("inf"), 0.0):
                changed = [list(other) for other in values]
                changed[k][len(layer) // 2] *= factor
                forgeries.append(forged(multipliers=hexes(changed)))
        wrong = [values[:1], [], [values[0][:-1], values[1]], [*values, []], [[*values[0], 1.0], values[1]]]
        forgeries += [forged(multipliers=hexes(lists)) for lists in wrong]
        forgeries += [forged(output=output) for output in (0, [0, 1])]
        forgeries += [forged(input_multipliers=numbers) for numbers in ([], hexes([[1.0] * 3])[0])]
        forgeries += [{"proofs": proofs} for proofs in ([], [proof] * 2, None)]
        forgeries += [{"network_hash": "0" * 64}, {"norm": "linf"}, {"output": 7}, {"kind": "norm product"}]
        forgeries += [{"cuts": cuts} for cuts in ([1], [0], [2, 1], [1, 2], [1.0])]
        forgeries += [{"activations": names} for names in ([], ["ReLU"], ["Tanh", "ReLU"], ["ReLU"] * 3)]
        forgeries += [{"layer_norms": []}, {"arithmetic": "float32"}, {"delta": (0.0).hex()}]
        forgeries += [
            {"sampled_lower_bound": (2 * certificate.upper_bound).hex()},
            {"version": 1},
            {"region": "box"},
        ]
        for forgery in forgeries:
            if {"norm", "output", "region", "arithmetic"} & forgery.keys():  # as a forger would
                norm, output, arithmetic = (forgery.get(k, d) for k, d in zip(CLAIMED, ("l2", None, "real")))
                forgery["claim"] = checker.claim(norm, output, forgery.get("region"), arithmetic)
            text = rewritten(certificate, **forgery)
            if accepted(
                text, network
            ):  # the closed form's multipliers are not optimal: some changes leave it true
                assert bounder == certify.ClosedForm(), forgery
                assert accepted(text, network, exact=True), forgery
        other = build([1.001 * matrix for matrix in he([3, 5, 4, 2], 1)], dtype=torch.float32)
        assert not certify.check(certificate, other)
        moved = rewritten(certificate, network_hash=other.hash)
        assert not check_text(moved, other)


CLAIMED = ("norm", "output", "arithmetic")


def test_rejects_just_below_the_boundary_and_accepts_just_above(build, he):
    for seed in range(4):
        network = build(he([4, 8, 7, 3], seed), dtype=torch.float32)
        certificate = certify.lipschitz(network, bounder=certify.ClosedForm())
        program = structures.Program(network, "l2", None)
        boundary = program.boundary(np.concatenate([[certificate.rho], *certificate.multipliers]))
        checker.check_proofs(program.model, "l2", None, [], proof_of(certificate, rho=boundary * (1 + 1e-9)))
        for factor in (1 - 1e-11, 1 - 1e-9, 1 - 1e-6, 0.999):
            with pytest.raises(checker.Refused):
                checker.check_proofs(
                    program.model, "l2", None, [], proof_of(certificate, rho=boundary * factor)
                )


ACTIVATIONS = [ReLU(), LeakyReLU(negative_slope=0.25), SiLU(), Absolute(), LeakyReLU(negative_slope=-0.125)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_nothing_is_accepted_that_exact_arithmetic_refutes(build, activation):
    rng = np.random.default_rng(0)
    accepted = refused = conservative = 0
    for case in range(50):
        widths = [int(rng.integers(1, 4)) for _ in range(int(rng.integers(3, 5)))]
        matrices = [
            rng.normal(size=(b, a)).round(int(rng.integers(1, 8))) for a, b in itertools.pairwise(widths)
        ]
        network = build(matrices, activation)
        certificate = certify.lipschitz(network, bounder=certify.ClosedForm())
        if not certificate.rho:
            continue
        program = structures.Program(network, "l2", None)
        lists = [np.array(layer) * rng.choice([1, 1 + 1e-3, 2]) for layer in certificate.multipliers]
        values = np.concatenate([[certificate.rho], *lists])
        rho = program.boundary(values)
        if rho is None:
            continue
        values[0] = rho * (1 + float(rng.choice([0, 1, -1])) * 10.0 ** -float(rng.integers(6, 17)))
        truth = program.holds(values)
        try:
            checker.check_proofs(program.model, "l2", None, [], [program.proof(values)])
            assert truth, (case, rho)
            accepted += 1
        except checker.Refused:
            refused += not truth
            conservative += truth
    assert min(accepted, refused) > 5, (accepted, refused, conservative)


def test_exact_arithmetic_confirms_certificates(build, he):
    network = build(he([2, 4, 3, 2], 3), LeakyReLU(negative_slope=0.1), torch.float32)
    for output in (None, 1, (0, 1)):
        for bounder in (certify.LipSDP(), certify.ClosedForm(), certify.NormProduct()):
            certificate = certify.lipschitz(network, bounder=bounder, output=output)
            assert certify.check(certificate, network, exact=True)
    linf = certify.lipschitz(network, norm="linf", output=(0, 1))
    assert certify.check(linf, network, exact=True)


def test_exact_definiteness():
    f = Fraction
    assert positive_semidefinite([[f(1), f(1)], [f(1), f(1)]])
    assert not positive_semidefinite([[f(1), f(1)], [f(1), 1 - f(1, 10**30)]])
    assert positive_semidefinite([[f(0), f(0)], [f(0), f(2)]])
    assert not positive_semidefinite([[f(0), f(1)], [f(1), f(2)]])


@pytest.mark.parametrize("structure", ["chain", "residual", "concat", "mixed slopes", "implicit", "scaled"])
def test_matrix_inequality_equals_the_one_of_the_solvers(structure):
    rng = np.random.default_rng(2)
    network = structures.draw_network(structure, 6)
    for norm, output in (("l2", None), ("l2", (0, 1)), ("linf", (0, 1))):
        program = structures.Program(network, norm, output)
        values = rng.random(len(program.columns)) + 0.1
        solvers = inequality_of(system_of(network, output), norm).matrix(values[0], values[1:])
        masks = checker.structure(program.model, output)
        kept = np.concatenate([[True] * (norm == "linf"), *(mask for mask in masks if mask is not None)]) > 0
        np.testing.assert_allclose(solvers[kept][:, kept], program.float_matrix(values), atol=1e-12)


@pytest.mark.parametrize("structure", ["GroupSort 2", "GroupSort 3", "Householder 3", "mixed groups"])
def test_matrix_inequality_of_groups_holds_where_that_of_the_solvers_does(structure):
    network = structures.draw_network(structure, 6)
    for norm, output in (("l2", None), ("linf", 1)):
        program = structures.Program(network, norm, output)
        values = program.solve()
        solvers = inequality_of(system_of(network, output), norm)
        boundary = program.boundary(values)
        for factor, definite in ((1 + 1e-7, True), (1 - 1e-7, False)):
            smallest = np.linalg.eigvalsh(solvers.matrix(boundary * factor, values[1:]))[0]
            assert (smallest > 0) == definite


def test_the_general_path_agrees_with_that_of_chains():
    for seed in range(6):
        program = structures.Program(structures.draw_network("chain", seed), "l2", (None, 1)[seed % 2])
        values = program.solve()
        rho, proof = program.boundary(values), program.proof(values)
        for factor, holds in ((1 + 1e-9, True), (1 - 1e-9, False)):
            matrix, error = checker.inequality(
                program.model, "l2", program.output, rho * factor, proof["multipliers"]
            )
            chosen = [{**proof, "rho": rho * factor}]
            if holds:
                assert checker._factor([matrix], [], error) > 0
                assert checker.check_proofs(program.model, "l2", program.output, [], chosen)[1] > 0
                continue
            with pytest.raises(checker.Refused):
                checker._factor([matrix], [], error)
            with pytest.raises(checker.Refused):
                checker.check_proofs(program.model, "l2", program.output, [], chosen)


def test_norm_products_are_refused_when_a_norm_is_too_small(build, he):
    for norm in ("l2", "linf"):
        network = build(he([3, 5, 2], 7), GroupSort(group_size=5), torch.float32)
        certificate = certify.lipschitz(network, norm=norm, bounder=certify.NormProduct())
        assert certify.check(certificate, network)
        first, second = certificate.layer_norms
        for norms in (
            [first * (1 - 1e-6), second],
            [first, second * 0.5],
            [first],
            [first, float("nan")],
            [-first, -second],
        ):
            forged = rewritten(certificate, layer_norms=[float(value).hex() for value in norms])
            assert not check_text(forged, network)
        assert not check_text(
            rewritten(certificate, upper_bound=(certificate.upper_bound * (1 - 1e-6)).hex()), network
        )


def test_extreme_scales_are_proven_or_refused(build):
    for exponent in (-140, -30, 30, 140):
        matrices = [np.array([[1.0, 2.0], [3.0, -1.0]]) * 10.0**exponent, np.array([[1.0, -1.0]])]
        certificate = certify.lipschitz(build(matrices))
        assert certificate.upper_bound is not None
        assert certificate.sampled_lower_bound <= certificate.upper_bound
    spread = build([np.array([[1.0, 1e-300], [1e-5, 1.0]]), np.array([[1.0, 1e-310]])])
    certificate = certify.lipschitz(spread)
    assert certificate.upper_bound is None
    assert "failed" in str(certificate.status)
    assert not certify.check(certificate, spread)
    overflow = build([np.full((1, 1), 1e300)] * 3)
    assert certify.lipschitz(overflow).upper_bound is None


def stored(network, path):
    """The graph and the arrays of the file that `save_npz` writes."""
    network.save_npz(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    return json.loads(arrays.pop("network").tobytes()), arrays


def written(path, graph, arrays):
    np.savez(path, network=np.frombuffer(json.dumps(graph).encode(), dtype=np.uint8), **arrays)
    return path


def checked(path, text, capsys):
    """Exit status and output of the checker as a program."""
    certificate = path.with_suffix(".json")
    certificate.write_text(text)
    status = checker.main([str(certificate), str(path)])
    out, err = capsys.readouterr()
    return status, out + err


def test_a_second_node_of_the_same_name_cannot_stand_in(build, he, tmp_path, capsys):
    matrices = he([3, 5, 2], 1)
    network, small = build(matrices), build([1e-3 * matrices[0], matrices[1]])
    graph, arrays = stored(network, tmp_path / "network.npz")
    first = next(entry for entry in graph["nodes"] if entry["kind"] == "Linear")
    graph["nodes"].append({**first, "parameters": {"weight": "small"}})  # no other node uses it: not hashed
    arrays["parameter:small"] = 1e-3 * matrices[0]
    path = written(tmp_path / "double.npz", graph, arrays)
    forged = rewritten(certify.lipschitz(small), network_hash=network.hash)
    status, text = checked(path, forged, capsys)
    assert status == 2
    assert "two nodes" in text


def test_byte_order_does_not_change_the_weights(build, he, tmp_path, capsys):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        network = build(he([3, 5, 2], 1), dtype=dtype)
        graph, arrays = stored(network, tmp_path / "network.npz")
        swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()}
        path = written(tmp_path / "swapped.npz", graph, swapped)
        rebuilt = checker.rebuild(*checker.load_network(path)).linears
        expected = checker.rebuild(*network_arrays(network)).linears
        for (_, weight), (_, original) in zip(rebuilt, expected, strict=True):
            np.testing.assert_array_equal(weight, original)
        assert checked(path, certify.lipschitz(network).to_json(), capsys)[0] == 0


def nested(depth):
    return [nested(depth - 1)] if depth else 0


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "\ud800"},
        {"kind": "ReLU\nvalid: upper bound 0"},
        {"kind": ["ReLU"]},
        {"kind": "PReLU", "parameters": {"weight": "bias_0"}, "shape": [None, 1]},
        {"kind": "PReLU", "parameters": {"weight": "weight_0"}},
        {"kind": "LeakyReLU", "attributes": {"negative_slope": [0.1] * 5}},
        {"kind": "LeakyReLU", "attributes": {"negative_slope": 10**400}},
        {"kind": "ELU", "attributes": {"alpha": "inf", "scale": 1.0, "input_scale": 1.0}},
        {"kind": "Scale", "attributes": {"factor": 1, "shift": "nan"}},
        {"attributes": nested(500), "kind": "Tanh", "inputs": []},
        {"shape": [None, 1]},
        {"shape": [None, 5, 1]},
        {"shape": []},
        {"inputs": ["x"], "shape": [None, 10**7]},
        {"kind": "GroupSort", "attributes": {"group_size": 0, "axis": 1}},
        {"kind": "GroupSort", "attributes": {"group_size": -5, "axis": 1}},
        {"kind": "GroupSort", "attributes": {"group_size": True, "axis": 1}},
        {"kind": "GroupSort", "attributes": {"group_size": 5, "axis": 0}},
        {"kind": "Householder", "attributes": {"axis": 1}, "parameters": {"weight": "bias_0"}},
        {"kind": "Reshape", "attributes": {"shape": [-1, -1]}},
        {"kind": "Reshape", "attributes": {"shape": []}},
        {"kind": "Flatten", "attributes": {"start": 0, "end": -1}},
        {"kind": "Slice", "attributes": {"axis": 1, "start": 0, "stop": None, "step": -1}},
        {"kind": "Slice", "attributes": {"axis": 1, "start": 5, "stop": None, "step": 1}, "shape": [None, 0]},
        {"kind": "Concat", "attributes": {"axis": 1}, "inputs": []},
        {"kind": "Add", "inputs": ["x", "linear"]},
        {"kind": "Implicit", "parameters": {"weight": "weight_0", "input_weight": "weight_0"}},
        {"kind": "BatchNorm", "parameters": {"running_mean": "bias_0"}, "attributes": {"epsilon": 0.0}},
        {"kind": "BatchNorm", "parameters": {"running_var": "bias_0"}, "attributes": {"epsilon": -1.0}},
        {"kind": "Scale", "attributes": {"factor": "nan", "shift": 0}},
        {"name": "linear"},
        {"name": ["relu"]},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_lying_descriptions_end_in_one_line(build, he, tmp_path, capsys, changes):
    network = build(he([3, 5, 2], 1), biases=[np.ones(5), np.ones(2)])
    graph, arrays = stored(network, tmp_path / "network.npz")
    relu = next(entry for entry in graph["nodes"] if entry["kind"] == "ReLU")
    relu.update(changes)
    if changes.get("inputs") == ["x"]:  # a giant input that an identity matrix would have to follow
        graph["nodes"] = [{**graph["nodes"][0], "shape": relu["shape"]}, relu]
        graph["outputs"] = [relu["name"]]
    path = written(tmp_path / "lie.npz", graph, arrays)
    digest = "0" * 64
    with contextlib.suppress(Exception):
        digest = checker.network_hash(*checker.load_network(path))
    for bounder in (certify.ClosedForm(), certify.NormProduct()):
        text = rewritten(certify.lipschitz(network, bounder=bounder), network_hash=digest)
        status, message = checked(path, text, capsys)
        assert status in (1, 2)
        assert message.count("\n") == 1
        assert message.isprintable() or message.rstrip("\n").isprintable()


def test_a_bias_that_is_not_finite_or_does_not_fit_is_refused(build, he, tmp_path, capsys):
    network = build(he([3, 5, 2], 1), biases=[np.ones(5), np.ones(2)])
    for bias in (np.full(5, np.nan), np.full(5, np.inf), np.ones(1), np.ones((4, 5))):
        graph, arrays = stored(network, tmp_path / "network.npz")
        arrays["parameter:bias_0"] = bias
        path = written(tmp_path / "bias.npz", graph, arrays)
        digest = checker.network_hash(*checker.load_network(path))
        text = rewritten(certify.lipschitz(network), network_hash=digest)
        assert checked(path, text, capsys)[0] == 1


def test_errors_that_are_not_numbers_are_refused():
    blocks = [np.eye(2), np.eye(2)]
    errors = [np.zeros((2, 2)), np.full((2, 2), np.nan)]
    with pytest.raises(checker.Refused, match="not finite"):
        checker.positive_definite(blocks, errors, [np.zeros((2, 2))], [np.zeros((2, 2))])


def test_broken_network_files_are_errors(build, he, tmp_path):
    network = build(he([2, 3, 2]))
    network.save_npz(tmp_path / "network.npz")
    content = (tmp_path / "network.npz").read_bytes()
    (tmp_path / "certificate.json").write_text(certify.lipschitz(network).to_json())
    np.savez(tmp_path / "pickle.npz", network=np.array([object()], dtype=object))
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    for name in ("pickle.npz", "cut.npz", "missing.npz", "certificate.json"):
        with pytest.raises(checker.Unreadable):
            checker.load_network(tmp_path / name)
        assert checker.main([str(tmp_path / "certificate.json"), str(tmp_path / name)]) == 2
    assert checker.main([str(tmp_path / "certificate.json"), str(tmp_path / "network.npz")]) == 0


def test_a_failed_certificate_is_invalid(build, he):
    network = build(he([2, 3, 2]))
    certificate = certify.lipschitz(network)
    failed = dataclasses.replace(certificate, upper_bound=None)
    assert "no bound" in certify.check(failed, network).reason
