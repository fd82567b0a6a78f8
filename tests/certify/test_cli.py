"""The commands `certify`, `check` and `verify`: what they print, what they write and how they exit."""

import _thread
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from certify import checker
from certify.assurance.cli import app as verify_app
from certify.cli import app
from weightspace.errors import WeightspaceError


@pytest.fixture
def network_file(build, he, tmp_path):
    path = tmp_path / "network.npz"
    build(he([3, 4, 2]), dtype=torch.float32).save_npz(path)
    return path


def run(command, *arguments):
    whole = [*([] if command == "verify" else [command]), *map(str, arguments)]
    result = CliRunner().invoke(verify_app if command == "verify" else app, whole)
    if isinstance(result.exception, WeightspaceError):
        return 2, str(result.exception)
    return result.exit_code, result.stdout


@pytest.mark.parametrize("method", ["auto", "lipsdp", "closed-form", "norm-product"])
def test_certify_then_check(network_file, tmp_path, method):
    out = tmp_path / "certificate.json"
    code, text = run("certify", network_file, "--method", method, "-o", out, "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["certified"] is True
    assert answer["sampled_lower_bound"] <= answer["upper_bound"]
    assert run("certify", network_file, "--method", method, "--max-lipschitz", answer["upper_bound"])[0] == 0
    code, text = run(
        "certify", network_file, "--method", method, "--max-lipschitz", answer["upper_bound"] * 0.5
    )
    assert code == 1
    assert "NOT certified" in text
    code, text = run("check", out, network_file, "--exact", "--json")
    assert code == 0
    assert json.loads(text)["valid"] is True
    edited = out.read_text().replace('"l2"', '"linf"', 1)
    out.write_text(edited)
    code, text = run("check", out, network_file)
    assert code == 1
    assert "INVALID" in text
    out.write_text("{")
    assert run("check", out, network_file)[0] == 2
    assert run("check", tmp_path / "none.json", network_file)[0] == 2


def test_flags(network_file):
    assert run("certify", network_file, "--norm", "linf")[0] == 0
    assert run("certify", network_file, "--output", "0,1", "--multipliers", "layer")[0] == 0
    assert run("certify", network_file, "--solver", "SCS")[0] == 0
    for wrong in (
        ("--output", "a"), ("--output", "7"), ("--output", "0,1,1"), ("--solver", "NONE"),
        ("--norm", "linf", "--method", "closed-form"), ("--cut", "9"),
            ("--cut", "x"), ("--arithmetic", "float32"), ("--box", "missing.json"),
        ("--method", "norm-product", "--solver", "SCS"),
        ("--max-lipschitz", "nan"), ("--max-lipschitz", "-1"),
    ):  # fmt: skip
        code, text = run("certify", network_file, *wrong)
        assert code == 2, wrong
        assert "\n" not in text.strip(), wrong


@pytest.fixture
def box_file(tmp_path):
    path = tmp_path / "box.json"
    path.write_text('{"lower": [0, 0, 0], "upper": [1, 1, 1]}')
    return path


@pytest.fixture
def write_property(tmp_path):
    """write_property(assertion about Y_0, Y_1) -> a VNN-LIB file about the box [0, 1]^3."""

    def write(*asserts, inputs=3):
        lines = [
            f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(inputs)
        ]
        lines += [
            "(declare-const Y_0 Real)(declare-const Y_1 Real)",
            *(f"(assert {text})" for text in asserts),
        ]
        path = tmp_path / "property.vnnlib"
        path.write_text("\n".join(lines))
        return path

    return write


def test_the_gap_says_which_of_the_cases_holds(network_file, build, he, tmp_path):
    def numbers(*arguments):
        return json.loads(run("certify", *arguments, "--json")[1])

    found = numbers(network_file)
    code, text = run("certify", network_file, "--max-lipschitz", found["sampled_lower_bound"] * 0.9)
    assert code == 1
    assert "no method can certify it" in text.splitlines()[-1]
    assert all(
        f"{found[name]:.6g}" in text.splitlines()[-1] for name in ("upper_bound", "optimum_lower_bound")
    )

    build(he([4, 16, 16, 16, 3], 3), dtype=torch.float32).save_npz(tmp_path / "deep.npz")
    deep = numbers(tmp_path / "deep.npz")
    between = (deep["sampled_lower_bound"] + deep["optimum_lower_bound"]) / 2
    assert deep["sampled_lower_bound"] < between < deep["optimum_lower_bound"]
    code, text = run("certify", tmp_path / "deep.npz", "--max-lipschitz", between)
    assert code == 1
    assert "no multipliers of this relaxation reach the limit" in text
    just = (deep["optimum_lower_bound"] + deep["upper_bound"]) / 2
    code, text = run("certify", tmp_path / "deep.npz", "--max-lipschitz", just)
    assert code == 1
    assert "the search stopped between" in text
    code, text = run("certify", tmp_path / "deep.npz", "--max-lipschitz", between, "--method", "norm-product")
    assert code == 1
    assert "--method lipsdp" in text


def test_regions(network_file, box_file, tmp_path):
    (tmp_path / "ball.json").write_text('{"center": [1, 2, 3], "radius": 0.125}')
    whole = json.loads(run("certify", network_file, "--json")[1])
    for region in (box_file, tmp_path / "ball.json"):
        code, text = run("certify", network_file, "--box", region, "-o", tmp_path / "c.json", "--json")
        local = json.loads(text)
        assert code == 0
        assert local["upper_bound"] <= whole["upper_bound"] * (1 + 1e-6)
        assert run("check", tmp_path / "c.json", network_file)[0] == 0
    for wrong in ("{}", "[]", '{"lower": [0], "upper": [1], "radius": 1}', '{"lower": [1], "upper": [0]}',
                  '{"center": [1], "radius": -1}', '{"lower": ["a"], "upper": [1]}', "[" * 100_000, "{",
                  '{"lower": [[1], [2, 3]], "upper": [0]}', '{"center": 1e999, "radius": 1}'):  # fmt: skip
        box_file.write_text(wrong)
        code, text = run("certify", network_file, "--box", box_file)
        assert code == 2, wrong
        assert "box.json" in text


def test_verify_and_check(network_file, write_property, tmp_path):
    verdict = tmp_path / "verdict.json"
    code, text = run("verify", network_file, write_property("(>= Y_0 1e3)"), "-o", verdict)
    assert code == 0
    assert "proved" in text
    assert run("check", verdict, network_file)[0] == 0
    assert checker.main([str(verdict), str(network_file)]) == 0
    code, text = run("verify", network_file, write_property("(<= Y_0 1e3)"), "-o", verdict, "--json")
    answer = json.loads(text)
    assert code == 1
    assert answer["status"] == "refuted"
    assert all(0 <= x <= 1 for x in answer["properties"][0]["counterexample"]["input"])
    assert run("check", verdict, network_file) == (0, "valid: refuted: a counterexample was found\n")
    assert checker.main([str(verdict), str(network_file)]) == 1


def test_verdicts_of_several_boxes(network_file, write_property, tmp_path):
    verdict = tmp_path / "verdict.json"
    halves = "(or (and (<= X_0 0.5) (>= Y_0 1e3)) (and (>= X_0 0.5) ({} Y_0 1e3)))"
    assert run("verify", network_file, write_property(halves.format(">=")), "-o", verdict)[0] == 0
    assert run("check", verdict, network_file)[0] == 0
    assert checker.main([str(verdict), str(network_file)]) == 0
    code, text = run("verify", network_file, write_property(halves.format("<=")), "-o", verdict)
    assert code == 1
    assert "box 2 of 2" in text
    assert run("check", verdict, network_file)[0] == 0


@pytest.mark.parametrize("proved", [True, False])
def test_changed_verdicts_are_refused(proved, network_file, write_property, build, he, tmp_path):
    verdict, other = tmp_path / "verdict.json", tmp_path / "other.npz"
    run("verify", network_file, write_property("(>= Y_0 1e3)" if proved else "(<= Y_0 1e3)"), "-o", verdict)
    build(he([3, 4, 2], 1), dtype=torch.float32).save_npz(other)
    assert "another network" in run("check", verdict, other)[1]
    data = json.loads(verdict.read_text())

    def check_changed(**fields):
        fake = {**data, "properties": [{**data["properties"][0], **fields}]}
        fake["digest"] = checker.digest(fake)
        verdict.write_text(json.dumps(fake))
        return run("check", verdict, network_file)

    assert check_changed()[0] == 0
    verdict.write_text(verdict.read_text().replace('"boxes": ', '"boxes": 1'))
    code, text = run("check", verdict, network_file)
    assert code == 1
    assert "edited" in text
    wider = {"lower": [(-1.0).hex()] * 3, "upper": [(2.0).hex()] * 3}
    larger = [{"matrix": [[(1.0).hex(), (0.0).hex()]], "bounds": [(1e9).hex()]}]
    outside = {"input": [(5.0).hex()] * 3, "output": [(0.0).hex()] * 2}
    for fields in (
        {"status": "unknown"},
        {"status": "refuted" if proved else "proved"},
        {"region": wider} if proved else {"counterexample": outside},
        {"unsafe": larger} if proved else {"counterexample": None},
        {"unsafe": [{"matrix": [[(1.0).hex()]], "bounds": [(1e9).hex()]}]},
    ):
        code, text = check_changed(**fields)
        assert code == 1, fields
        assert "INVALID" in text
    for fields in (
        {"status": "sure"},
        {"region": {}},
        {"unsafe": [[]]},
        {"counterexample": {"input": [1.0]}},
    ):
        assert check_changed(**fields)[0] == 2, fields


def test_the_same_question_gives_the_same_bytes(network_file, box_file, write_property, tmp_path):
    property = write_property("(<= Y_0 1e3)")
    write = {
        "certify": lambda out: run("certify", network_file, "--box", box_file, "-o", out),
        "refuted": lambda out: run("verify", network_file, property, "--seed", 7, "-o", out),
    }
    for name, command in write.items():
        first, second = tmp_path / f"{name}1", tmp_path / f"{name}2"
        command(first)
        command(second)
        assert first.read_bytes() == second.read_bytes(), name


def write_onnx(path, weight):
    helper = pytest.importorskip("onnx").helper
    onnx = pytest.importorskip("onnx")
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", kind, [1, len(weight)])],
        [helper.make_tensor_value_info("y", kind, [1, 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_counterexample_counts_when_its_replay_is_unsafe_too(write_property, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    weight = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    write_onnx(path, weight)
    code, text = run("verify", path, write_property("(>= Y_0 -100)", inputs=8))
    assert code == 1
    assert "refuted" in text
    assert "is unsafe too" in text

    # At one input, an unsafe set that holds the real output and not the one in single precision.
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for seed in range(20):
        point = np.random.default_rng(seed).random(8).astype(np.float32)
        single = float(session.run(None, {"x": point[None]})[0][0, 0])
        exact = float(point.astype(np.float64) @ weight.astype(np.float64)[:, 0])
        if abs(single - exact) > 1e-9:
            break
    sign = "<=" if single > exact else ">="
    fixed = [f"({side} X_{i} {float(x):.60f})" for i, x in enumerate(point) for side in ("<=", ">=")]
    middle = (single + exact) / 2
    code, text = run(
        "verify", path, write_property(*fixed, f"({sign} Y_0 {middle:.60f})", inputs=8), "--json"
    )
    answer = json.loads(text)
    assert code == 1
    assert answer["status"] == "unknown"
    assert answer["properties"][0]["replay"]["unsafe"] is False
    assert answer["properties"][0]["replay"]["difference"] > 1e-9


def test_requirements(network_file, tmp_path):
    text = 'model = "network.npz"\n[[requirements]]\nid = "A"\ntext = "t"\nkind = "lipschitz"\nmax = {}\n'
    file, out, junit = tmp_path / "r.toml", tmp_path / "out", tmp_path / "junit.xml"
    for limit, status in ((1e6, 0), (1e-6, 1)):
        file.write_text(text.format(limit))
        code, printed = run("verify", file, "-o", out, "--junit", junit)
        assert code == status
        assert printed.startswith("A: holds" if status == 0 else "A: does not hold")
        assert ("<failure" in junit.read_text()) == bool(status)
        assert {path.name for path in out.iterdir()} == {
            "evidence",
            "matrix.html",
            "matrix.json",
            "matrix.md",
        }
    file.write_text(text.format(1).replace("network.npz", "lost.npz"))
    code, printed = run("verify", file, "-o", out, "--json")
    assert code == 2
    assert json.loads(printed)["rows"][0]["outcome"] == "error"


def test_verify_flags(network_file, write_property, tmp_path):
    property = write_property("(>= Y_0 1e3)")
    (tmp_path / "r.toml").write_text("")
    for wrong in (
        (network_file,), (network_file, tmp_path / "none.vnnlib"), (tmp_path / "none.onnx", property),
        (network_file, property, "--junit", "x.xml"), (network_file, property, "--seconds", "nan"),
        (network_file, property, "-o", tmp_path / "none" / "v.json"), (tmp_path / "r.toml",),
        (network_file, write_property("(>= Y_0 1)", inputs=2)),
        (tmp_path / "r.toml", "-o", tmp_path), (tmp_path / "r.toml", "-o", tmp_path, "--seconds", 3),
    ):  # fmt: skip
        code, text = run("verify", *wrong)
        assert code == 2, wrong
        assert "\n" not in text.strip(), wrong


class Squared(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.first, self.last, self.product = nn.Linear(3, 4), nn.Linear(4, 2), product

    def forward(self, x):
        return self.last(self.product(self.first(x)))


def attend(h):
    return nn.functional.scaled_dot_product_attention(h, h, h)


@pytest.mark.parametrize(
    ("product", "shape", "reason"),
    [
        (lambda h: h * h, (2, 3), r"square at node 'mul' .* region=Box"),
        (lambda h: h**2, (2, 3), r"square at node 'pow_1' .* region=Box"),
        (torch.exp, (2, 3), r"exp at node 'exp' .* region=Box"),
        (lambda h: h**3, (2, 3), r"Power at node 'pow_1' .* up to "),
        (
            lambda h: h * h.flip(-1),
            (2, 3),
            r"Multiply at node 'mul' multiplies .* certify the network up to ",
        ),
        (lambda h: h / h.exp(), (2, 3), r"Divide at node 'div' divides by 'exp'"),
        (
            attend,
            (2, 5, 3),
            r"Attention at node 'scaled_dot_product_attention' .* fixed attention weights have one",
        ),
    ],
)
def test_a_clear_no_for_what_has_no_finite_constant(product, shape, reason):
    from certify import lipschitz

    with pytest.raises(WeightspaceError, match=reason) as caught:
        lipschitz(Squared(product), example_inputs=torch.zeros(shape))
    assert "no finite Lipschitz constant on all inputs" in str(caught.value)


@pytest.mark.parametrize("product", [lambda h: h * h, lambda h: h**2, torch.exp])
def test_what_has_a_constant_over_a_region_gets_it(product, tmp_path):
    from weightspace import trace

    torch.manual_seed(0)
    module = Squared(product).double()
    trace(module, torch.zeros(2, 3, dtype=torch.float64)).save_npz(tmp_path / "n.npz")
    (tmp_path / "b.json").write_text('{"lower": [-1, -1, -1], "upper": [1, 1, 1]}')
    code, text = run(
        "certify", tmp_path / "n.npz", "--box", tmp_path / "b.json", "-o", tmp_path / "c.json", "--json"
    )
    assert code == 0
    assert run("check", tmp_path / "c.json", tmp_path / "n.npz")[0] == 0
    bound = json.loads(text)["upper_bound"]
    x = torch.rand(200, 3, dtype=torch.float64) * 2 - 1
    slopes = torch.linalg.matrix_norm(torch.func.vmap(torch.func.jacrev(module))(x), ord=2)
    attained = float(slopes.detach().max())
    assert attained <= bound <= 10 * attained


def test_a_clear_no_for_attention_read_from_onnx():
    folder = os.environ.get("WEIGHTSPACE_DATA")
    path = Path(folder or ".") / "marabou_onnx" / "self-attention-mnist-pgd-medium-sim.onnx"
    if not folder or not path.exists():
        pytest.skip(f"WEIGHTSPACE_DATA holds no {path.parent.name}/{path.name}")
    code, text = run("certify", path)
    assert code == 2
    assert "MatMul at node 'MatMul__102:0' multiplies values that all depend on the input" in text
    assert "fixed attention weights" in text


def test_an_interrupted_command_leaves_no_certificate(build, he, tmp_path):
    build(he([8, 256, 256, 256, 4]), dtype=torch.float32).save_npz(tmp_path / "network.npz")
    out = tmp_path / "out"
    out.mkdir()
    timer = threading.Timer(0.3, _thread.interrupt_main)  # as Ctrl-C; the program takes seconds
    timer.start()
    code, _ = run("certify", tmp_path / "network.npz", "-o", out / "c.json", "--method", "lipsdp")
    timer.cancel()
    assert code == 130
    assert list(out.iterdir()) == []
