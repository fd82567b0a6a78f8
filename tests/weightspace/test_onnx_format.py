"""Whole ONNX models compute, once read, what onnxruntime computes; unfit files are refused in one line."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from torch import nn

from weightspace.errors import ArchitectureError, CheckpointError, UnsupportedOperationError
from weightspace.layers import GroupSort, Householder, MaxMin
from weightspace.onnx_format import read_onnx
from weightspace.tracing import trace

onnxruntime.set_default_logger_severity(4)


def assert_agrees(path, network, *, tolerance=2e-6, scale=1.0, integers=9):
    """Compare with onnxruntime for batch 1 and, where the batch is open, 3."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    module, generator = network.to_module(), np.random.default_rng(0)
    is_open = any(None in node.shape for node in network.inputs)
    for batch in (1, 3) if is_open else (1,):
        feeds = {}
        for node in network.inputs:
            shape = [batch if size is None else size for size in node.shape]
            floating = node.dtype.startswith("float")
            array = (
                scale * generator.standard_normal(shape)
                if floating
                else generator.integers(0, integers, shape)
            )
            feeds[node.name] = array.astype(node.dtype)
        expected = session.run(None, feeds)
        with torch.no_grad():
            found = module(*[torch.from_numpy(array) for array in feeds.values()])
        found = found if isinstance(found, tuple) else (found,)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            assert tuple(ours.shape) == theirs.shape
            size = max(1.0, float(np.abs(theirs).max(initial=0)))
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance * size)


def write(
    path, nodes, inputs, initializers=(), *, opset=17, outputs=("y",), stated=(), domains=(), **options
):
    """Write a graph of float inputs; `inputs` maps names to shapes, in which text is an open axis."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, shape in inputs.items()
        ],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(initializers).items()],
        value_info=list(stated),
    )
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid(name, 1) for name in domains]]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **options), path)
    return path


# ---- real files ------------------------------------------------------------------------------------------

FILES = {
    "acasxu/ACASXU_run2a_1_1_batch_2000.onnx": {"Linear": 7, "ReLU": 6},
    "acasxu/ACASXU_run2a_3_5_batch_2000.onnx": {"Linear": 7, "ReLU": 6},
    "acasxu/ACASXU_run2a_5_9_batch_2000.onnx": {"Linear": 7, "ReLU": 6},
    "marabou_onnx/mnist2x10.onnx": {"Linear": 3, "ReLU": 2, "Flatten": 1},
    "marabou_onnx/mnist5x20_leaky_relu.onnx": {"Linear": 7, "LeakyReLU": 6},
    "marabou_onnx/cifar_deep_kw_simp.onnx": {"Conv": 4, "Linear": 2, "ReLU": 5},
    "marabou_onnx/tanh_test.onnx": {"Linear": 5, "Tanh": 3},
    "marabou_onnx/self-attention-mnist-pgd-medium-sim.onnx": {"Softmax": 2},
    "audio_misc/magika_standard_v3_3.onnx": {"Conv": 1, "Tanh": 2},
}


@pytest.mark.parametrize("name", FILES)
def test_real_file(name):
    path = Path(os.environ.get("WEIGHTSPACE_DATA", "")) / name
    if not os.environ.get("WEIGHTSPACE_DATA") or not path.exists():
        pytest.skip(f"WEIGHTSPACE_DATA has no {name}")
    network = read_onnx(path)
    kinds = [node.operation.kind for node in network.nodes]
    assert not network.opaque
    assert {kind: kinds.count(kind) for kind in FILES[name]} == FILES[name]
    assert_agrees(path, network, integers=257)


# ---- exported modules ------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head((x + self.second(x)).mean((2, 3)))


class Reshaping(nn.Module):
    """Sizes taken from the input: what makes exporters write chains of Shape, Gather and Concat."""

    def forward(self, x):
        batch, channels, height, width = x.shape
        x = x.view(batch, channels * height, width).transpose(1, 2)
        bias = torch.zeros(batch, width, 1, dtype=x.dtype) + 1.5
        return torch.cat([x, bias], 2).reshape(batch, -1)[:, 2:]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        batch, time, width = x.shape
        parts = self.project(self.norm(x)).view(batch, time, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = (query @ key.transpose(-2, -1) / 2).softmax(-1)
        return x + self.out((weights @ value).transpose(1, 2).reshape(batch, time, width))


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2)),
    (6,)),
    "residual": (Residual, (3, 8, 8)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU()), (3, 7, 7)),
    "instance norm": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4, affine=True)), (3, 9)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), nn.ELU(), nn.ConvTranspose2d(4, 2, 2)),
        (3, 5, 5),
    ),
    "transformer": (lambda: nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu"), (6,
    16)),
    "transformer, norm first": (
        lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True),
        (6, 16),
    ),
    "attention": (Attention, (6, 16)),
    "gated": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)), (6,)),
    "pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten()
        ),
        (3, 12, 12),
    ),
    "activations": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.GELU(), nn.Hardswish(), nn.Mish(), nn.Softplus(), nn.PReLU(), nn.SELU(),
            nn.CELU(),
            nn.ReLU6(), nn.Hardsigmoid(), nn.LogSoftmax(-1),
        ),
        (6,),
    ),
    "groups of units": (
        lambda: nn.Sequential(nn.Linear(4, 12), MaxMin(), nn.Linear(12, 12), GroupSort(3), Householder(12, 4)),
        (4,),
    ),
    "groups of channels": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), MaxMin(), nn.ReLU(), Householder(6, 3), MaxMin(-1)),
        (2, 6, 8),
    ),
    "reshaping": (Reshaping, (2, 3, 4)),
}  # fmt: skip


# The older exporter cannot trace nn.TransformerEncoderLayer; the current one takes seconds per module.
EXPORTS = [(name, "opset 13") for name in MODULES if "transformer" not in name]
EXPORTS += [
    (name, "current") for name in ("mlp", "residual", "transformer", "transformer, norm first", "reshaping")
]


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_exported_module(name, exporter, tmp_path):
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module, path = make().eval(), tmp_path / "model.onnx"
    example = torch.randn(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        if exporter == "current":
            dynamic = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(module, (example,), path, dynamic_shapes=dynamic, dynamo=True, verbose=False)
        else:
            axes = {"x": {0: "batch"}, "y": {0: "batch"}}
            torch.onnx.export(
                module, (example,), path, input_names=["x"], output_names=["y"], dynamic_axes=axes,
                opset_version=13,
                dynamo=False,
            )  # fmt: skip
    network = read_onnx(path)
    assert not network.opaque
    assert_agrees(path, network)
    with torch.no_grad():
        expected, found = module(example), network.to_module()(example)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if "groups" in name:
        traced = trace(module, example)
        assert [node.operation.kind for node in network.nodes] == [
            node.operation.kind for node in traced.nodes
        ]
    if name == "mlp":
        assert network.parameters.keys() == module.state_dict().keys()


# ---- constants, sizes, control flow ----------------------------------------------------------------------


def test_unbatched_product_from_the_left_is_a_linear_map(tmp_path):
    nodes = [helper.make_node("MatMul", ["w", "x"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    arrays = {"w": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)}
    network = read_onnx(write(tmp_path / "m.onnx", nodes, {"x": (3,)}, arrays))
    operation = network.node("y").operation
    assert (operation.kind, operation.weight, operation.bias, operation.transposed) == (
        "Linear",
        "w",
        "b",
        False,
    )
    assert network.inputs[0].shape == (3,)


def test_weights_that_the_file_transposes_keep_their_name(tmp_path):
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    path = write(
        tmp_path / "m.onnx", nodes, {"x": ("N", 3)}, {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    )
    network = read_onnx(path)
    assert list(network.parameters) == ["w"]
    assert not network.node("y").operation.transposed
    assert_agrees(path, network)


def test_constants_fold_and_leave_nothing_behind(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array(2.0, np.float32))),
        helper.make_node("Sqrt", ["two"], ["root"]),
        helper.make_node("Mul", ["x", "root"], ["m"]),
        helper.make_node("Shape", ["m"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    arrays = {"zero": np.array([0]), "rest": np.array([3, 4])}
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 12)}, arrays)
    network = read_onnx(path)
    assert not network.parameters
    assert [node.operation.kind for node in network.nodes] == ["Input", "Scale", "Reshape"]
    assert network.node("y").shape == (None, 3, 4)
    assert_agrees(path, network)


def test_arithmetic_on_the_batch_size(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], end=1),
        helper.make_node("Mul", ["s", "three"], ["more"]),
        helper.make_node("Concat", ["more", "two"], ["folded"], axis=0),
        helper.make_node("Reshape", ["x", "folded"], ["r"]),
        helper.make_node("Div", ["more", "three"], ["n"]),
        helper.make_node("Concat", ["n", "six"], ["back"], axis=0),
        helper.make_node("Reshape", ["r", "back"], ["b"]),
        helper.make_node("Slice", ["b", "nil", "n", "nil"], ["c"]),
        helper.make_node(
            "ConstantOfShape", ["back"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))
        ),
        helper.make_node("Expand", ["row", "back"], ["rows"]),
        helper.make_node("Sum", ["c", "ones", "rows"], ["y"]),
    ]
    arrays = {
        "three": np.array([3]), "two": np.array([2]), "six": np.array([6]), "nil": np.array([0]),
        "row": np.arange(6, dtype=np.float32),
    }  # fmt: skip
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 6)}, arrays)
    network = read_onnx(path)
    assert network.node("y").shape == (None, 6)
    assert_agrees(path, network)


def test_graph_that_cannot_follow_the_batch_is_read_for_one(tmp_path):
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    path = write(tmp_path / "m.onnx", [node], {"x": ("N", 6)}, {"shape": np.array([1, 2, 3])})
    network = read_onnx(path)
    assert network.inputs[0].shape == (1, 6)
    assert "read as 1" in network.metadata["input 'x' axis 0"]
    assert_agrees(path, network)


def test_branch_with_known_condition_is_taken(tmp_path):
    def branch(kind):
        return helper.make_graph([helper.make_node(kind, ["x"], ["b"])], kind, [], [ValueInfoProto(name="b")])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))
    network = read_onnx(write(tmp_path / "m.onnx", [node], {"x": ("N", 3)}, {"c": np.array(False)}))
    assert [node.operation.kind for node in network.nodes] == ["Input", "Scale"]


def test_local_functions_are_inlined(tmp_path):
    function = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="own")
    path = write(tmp_path / "m.onnx", [node], {"x": ("N", 3)}, domains=["own"], functions=[function])
    network = read_onnx(path)
    assert not network.opaque
    assert_agrees(path, network)


def test_nodes_out_of_order_are_sorted(tmp_path):
    nodes = [helper.make_node("Tanh", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    network = read_onnx(write(tmp_path / "m.onnx", nodes, {"x": ("N", 3)}))
    assert [node.operation.kind for node in network.nodes] == ["Input", "ReLU", "Tanh"]


def test_initializer_that_is_also_an_input_is_a_parameter(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    arrays = {"w": np.ones((3, 2), np.float32), "unused": np.ones(4, np.float32)}
    network = read_onnx(write(tmp_path / "m.onnx", [node], {"x": ("N", 3), "w": (3, 2)}, arrays))
    assert [node.name for node in network.inputs] == ["x"]
    assert set(network.parameters) == {"w", "unused"}


def test_inner_axis_that_a_weight_fixes_is_read(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = write(tmp_path / "m.onnx", [node], {"x": ("N", "features")}, {"w": np.ones((3, 2), np.float32)})
    assert read_onnx(path).inputs[0].shape == (None, 3)


def test_not_a_number_is_read_and_metadata_is_kept(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = np.full((3, 2), np.nan, np.float32)
    path = write(tmp_path / "m.onnx", [node], {"x": ("N", 3)}, {"w": weight}, producer_name="maker")
    network = read_onnx(path)
    assert network.parameters["w"].isnan().all()
    assert network.metadata["producer"] == "maker"
    assert (network.metadata["opset"], network.metadata["outputs"]) == ("ai.onnx 17", "y")


# ---- operations without a rule ---------------------------------------------------------------------------

UNKNOWN = [
    (helper.make_node("Resize", ["x", "", "scales"], ["y"]), {"scales": np.array([1, 1, 2, 2], np.float32)},
    (None, 4, 10, 12)),
    (helper.make_node("CumSum", ["x", "axis"], ["y"]), {"axis": np.array(1)}, (None, 4, 5, 6)),
    (helper.make_node("TopK", ["x", "k"], ["v", "y"]), {"k": np.array([2])}, (None, 4, 5, 2)),
    (helper.make_node("NonZero", ["x"], ["y"]), {}, None),
    (helper.make_node("Own", ["x"], ["y"], domain="custom", size=3), {}, ()),
    (helper.make_node("LRN", ["x"], ["y"], size=3), {}, (None, 4, 5, 6)),
    (helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), {"s": np.array(0.1, np.float32)}, (None, 4, 5,
    6)),
    (helper.make_node("Conv", ["x", "w2"], ["y"]), {}, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("node", "arrays", "shape"), UNKNOWN, ids=lambda value: getattr(value, "op_type", "")
)
def test_unknown_operator_becomes_opaque(node, arrays, shape, tmp_path):
    nodes = [helper.make_node("Abs", ["x"], ["w2"]), node]
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 4, 5, 6)}, arrays, domains=["custom"])
    network = read_onnx(path)
    (opaque,) = [entry for entry in network.opaque if entry.name == "y"]
    assert opaque.operation.name == f"onnx.{'custom.' if node.domain else ''}{node.op_type}"
    if shape is not None:
        assert network.node("y").shape == shape
    with pytest.raises(UnsupportedOperationError, match="cannot be run"):
        network.to_module()(torch.zeros(1, 4, 5, 6))


def test_stated_shape_of_a_custom_operator_is_used(tmp_path):
    stated = helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 7])
    nodes = [
        helper.make_node("Own", ["x"], ["c"], domain="custom"),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    arrays = {"w": np.ones((7, 2), np.float32)}
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 3)}, arrays, stated=[stated], domains=["custom"])
    assert read_onnx(path).node("y").shape == (None, 2)


def test_unknown_shape_is_noted_and_refused_when_needed(tmp_path):
    nodes = [
        helper.make_node("Own", ["x"], ["c"], domain="custom"),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    arrays = {"w": np.ones((7, 2), np.float32)}
    path = write(tmp_path / "m.onnx", nodes[:1], {"x": ("N", 3)}, outputs=["c"], domains=["custom"])
    assert read_onnx(path).metadata["shape of 'c'"] == "unknown; written as ()"
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 3)}, arrays, domains=["custom"])
    with pytest.raises(ArchitectureError, match="the shape of 'c' is unknown"):
        read_onnx(path)


# ---- unfit files -----------------------------------------------------------------------------------------


def refused(path, kind, reason):
    with pytest.raises(kind, match=reason) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_garbage_and_truncated_files(tmp_path):
    path = tmp_path / "m.onnx"
    refused(path, CheckpointError, "no such file")
    refused(tmp_path, CheckpointError, "cannot be read")
    for content in (b"", b"\x00" * 100, b"PK\x03\x04 not a model", b"\xff" * 1000, b"hello world\n"):
        path.write_bytes(content)
        refused(path, CheckpointError, "not an ONNX file|holds no ONNX graph")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    whole = write(path, [node], {"x": ("N", 30)}, {"w": np.ones((30, 20), np.float32)}).read_bytes()
    for length in range(10, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(path, (CheckpointError, ArchitectureError), "m.onnx")


def external(path, location, **entries):
    """Write a model whose weight lies in another file."""
    write(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ("N", 3)},
        {"w": np.ones((3, 2), np.float32)},
    )
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_is_read(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"\0" * 8 + np.arange(6, dtype="<f4").tobytes())
    path = external(tmp_path / "m.onnx", "weights/w.bin", offset=8, length=24)
    assert read_onnx(path).parameters["w"].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "", "link", "..\\secret", "a\0b"]
)
def test_external_data_outside_the_folder_is_refused(location, tmp_path):
    (tmp_path / "secret").write_bytes(b"\0" * 24)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    refused(external(tmp_path / "model" / "m.onnx", location), CheckpointError, "'w' .*refused")


def test_missing_and_short_external_data(tmp_path):
    path = external(tmp_path / "m.onnx", "w.bin")
    refused(path, CheckpointError, r"'w\.bin' of initializer 'w' is missing")
    (tmp_path / "w.bin").write_bytes(b"\0" * 20)
    refused(path, CheckpointError, "initializer 'w' of shape .* is damaged")
    refused(external(path, "w.bin", length=24), CheckpointError, "needs bytes 0 to 24, but the file has 20")
    refused(external(path, "w.bin", offset=-4), CheckpointError, "needs bytes")
    refused(external(path, "w.bin", offset="x"), CheckpointError, "no number")


def test_damaged_initializer(tmp_path):
    path = write(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (3,)},
        {"w": np.ones(3, np.float32)},
    )
    model = onnx.load(path)
    for dims in ([7], [-1], [2**40]):
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        path.write_bytes(model.SerializeToString())
        refused(path, CheckpointError, "initializer 'w'")


RELU = helper.make_node("Relu", ["x"], ["y"])
UNFIT = {
    "a missing initializer": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {},
    "uses 'w', which is no input"),
    "a cycle": (
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Tanh", ["b"], ["y"])],
        {},
        "the graph has a cycle",
    ),
    "a missing output": ([helper.make_node("Relu", ["x"], ["z"])], {}, "output 'y' is made by no node"),
    "unequal widths": (
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 2), np.float32)},
        "MatMul 'y'.*does not fit",
    ),
    "an axis that does not exist": ([helper.make_node("Softmax", ["x"], ["y"], axis=5)], {},
    "axis 5 does not exist"),
    "a zero stride": (
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[0])], {"w": np.ones((1, 1, 1), np.float32)},
        "Conv 'y'",
    ),
    "a huge constant": (
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        {"s": np.array([2**40, 2**20])},
        "create a constant of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_graph(name, tmp_path):
    nodes, arrays, reason = UNFIT[name]
    refused(write(tmp_path / "m.onnx", nodes, {"x": ("N", 3)}, arrays), ArchitectureError, reason)


def test_open_axes_and_old_opsets(tmp_path):
    path = tmp_path / "m.onnx"
    refused(
        write(path, [RELU], {"x": ("N", "time", 3)}),
        ArchitectureError,
        r"axis 1 \(time\) of input 'x' is open",
    )
    refused(write(path, [RELU], {"x": ("N", 3)}, opset=6), ArchitectureError, "opset 6 is older than 7")
    graph = helper.make_graph([RELU], "g", [ValueInfoProto(name="x")], [ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph), path)
    refused(path, ArchitectureError, "input 'x' is no tensor")


def test_without_the_onnx_package_the_remedy_is_named(tmp_path):
    code = f"""
import sys
sys.modules["onnx"] = None
from weightspace.errors import MissingDependencyError
from weightspace.onnx_format import read_onnx
try:
    read_onnx({str(tmp_path / "m.onnx")!r})
except MissingDependencyError as error:
    assert 'pip install "weightspace[onnx]"' in str(error), error
else:
    raise SystemExit("not refused")
"""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=root
    )
    assert result.returncode == 0, result.stderr
