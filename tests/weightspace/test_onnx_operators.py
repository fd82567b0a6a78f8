"""Every ONNX operator with a rule, as a graph of its own, against onnxruntime."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper, save

from weightspace.onnx_format import read_onnx

onnxruntime.set_default_logger_severity(3)
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def write(path, nodes, inputs, initializers=(), *, opset=17, outputs=("y",)):
    """Write a graph; `inputs` maps names to shapes in which "N" is the open batch."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, shape in inputs.items()
        ],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(initializers).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    save(model, path)
    return path


def assert_agrees(path, network, *, tolerance=1e-6, scale=1.0, offset=0.0, seed=0):
    """Compare with onnxruntime for batch 1 and, where the batch is open, 3."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    module, generator = network.to_module(), np.random.default_rng(seed)
    is_open = any(None in node.shape for node in network.inputs)
    for batch in (1, 3) if is_open else (1,):
        feeds = {}
        for node in network.inputs:
            shape = [batch if size is None else size for size in node.shape]
            if node.dtype == "float32":
                feeds[node.name] = (offset + scale * generator.standard_normal(shape)).astype(np.float32)
            else:
                feeds[node.name] = generator.integers(0, 7, shape).astype(node.dtype)
        expected = session.run(None, feeds)
        with torch.no_grad():
            found = module(*[torch.from_numpy(array) for array in feeds.values()])
        found = found if isinstance(found, tuple) else (found,)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            assert tuple(ours.shape) == theirs.shape
            size = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0) if theirs.dtype.kind == "f" else 1.0
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance * size)


def assert_operator(
    tmp_path, kind, inputs, initializers=(), *, opset=17, offset=0.0, scale=1.0, **attributes
):
    """Read and run one operator; return the network."""
    arrays = {f"w{index}": array for index, array in enumerate(initializers) if array is not None}
    names = [f"w{index}" if array is not None else "" for index, array in enumerate(initializers)]
    node = helper.make_node(kind, [*inputs, *names], ["y"], **attributes)
    path = write(tmp_path / "model.onnx", [node], inputs, arrays, opset=opset)
    network = read_onnx(path)
    assert not network.opaque
    assert_agrees(path, network, offset=offset, scale=scale)
    return network


UNARY = [
    ("Relu", {}, 13), ("LeakyRelu", {"alpha": 0.3}, 13), ("Tanh", {}, 13), ("Sigmoid", {}, 13), ("Elu",
    {"alpha": 0.7}, 13),
    ("Selu", {}, 13), ("Selu", {"alpha": 1.1, "gamma": 0.9}, 13), ("Celu", {"alpha": 0.6}, 13), ("Softplus",
    {}, 13),
    ("Softsign", {}, 13), ("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20), ("HardSigmoid", {}, 13),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 13), ("HardSwish", {}, 14), ("Mish", {}, 18), ("Abs", {},
    13),
    ("ThresholdedRelu", {"alpha": 0.4}, 13), ("Neg", {}, 13), ("Exp", {}, 13), ("Reciprocal", {}, 13), ("Erf",
    {}, 13),
    ("Sin", {}, 13), ("Cos", {}, 13), ("Atan", {}, 13), ("Floor", {}, 13), ("Ceil", {}, 13), ("Round", {},
    13),
    ("Sign", {}, 13), ("Identity", {}, 13), ("Clip", {"min": -0.5, "max": 0.25}, 9), ("Clip", {}, 9),
    ("Dropout", {}, 13),
    ("Softmax", {}, 9), ("Softmax", {"axis": 2}, 9), ("Softmax", {"axis": 3}, 9), ("Softmax", {}, 13),
    ("Softmax", {"axis": 1}, 13), ("LogSoftmax", {}, 9), ("LogSoftmax", {"axis": 2}, 18), ("Flatten", {}, 9),
    ("Flatten", {"axis": 2}, 13), ("Flatten", {"axis": 0}, 13), ("Flatten", {"axis": -1}, 13), ("Transpose",
    {}, 13),
    ("Transpose", {"perm": [0, 2, 3, 1]}, 13), ("GlobalAveragePool", {}, 13), ("GlobalMaxPool", {}, 13),
    ("ReduceMean", {"axes": [2, 3]}, 13), ("ReduceMean", {"axes": [-1], "keepdims": 0}, 9), ("ReduceMean", {},
    13),
    ("ReduceMax", {"axes": [1]}, 13), ("ReduceMin", {"axes": [1, 2], "keepdims": 0}, 13), ("ReduceSum",
    {"axes": [3]}, 9),
    ("ReduceL1", {"axes": [3]}, 13), ("ReduceL2", {"axes": [1]}, 13), ("ReduceSumSquare", {"axes": [1]}, 13),
    ("Cast", {"to": TensorProto.INT32}, 13), ("Cast", {"to": TensorProto.DOUBLE}, 13),
    ("Cast", {"to": TensorProto.FLOAT}, 13), ("Unsqueeze", {"axes": [0, -1]}, 9),
    ("Slice", {"starts": [1, -3], "ends": [100, -1], "axes": [1, 3]}, 9), ("Slice", {"starts": [0],
    "ends": [9999]}, 9),
    ("Pad", {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "value": 0.5}, 9), ("Pad", {"pads": [0, 0, 1, 2, 0, 0, 0, 3],
    "mode": "edge"}, 9),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, 9), ("AveragePool", {"kernel_shape": [3, 2]}, 9),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "attributes", "opset"), UNARY, ids=lambda value: str(value)[:40])
def test_one_input(kind, attributes, opset, tmp_path):
    assert_operator(tmp_path, kind, {"x": ("N", 4, 5, 6)}, opset=opset, **attributes)


@pytest.mark.parametrize("kind", ["Log", "Sqrt"])
def test_positive_input(kind, tmp_path):
    assert_operator(tmp_path, kind, {"x": ("N", 3)}, offset=5, scale=0.5)


SHAPED = [
    ("ReduceSum", [np.array([1, -1])], {}, 13), ("ReduceMean", [np.array([2])], {"keepdims": 0}, 18),
    ("ReduceMax", [np.array([2])], {}, 18), ("ReduceSum", [], {"noop_with_empty_axes": 1}, 13),
    ("Unsqueeze", [np.array([1, 3])], {}, 13), ("Reshape", [np.array([0, -1])], {}, 13),
    ("Reshape", [np.array([-1, 30])], {}, 9), ("Reshape", [np.array([-1, 4, 15, 2])], {}, 13),
    ("Slice", [np.array([1]), np.array([3]), np.array([-1])], {}, 13),
    ("Slice", [np.array([5, 0]), np.array([-100, 4]), np.array([3, 2]), np.array([-2, 3])], {}, 13),
    ("Slice", [np.array([0]), np.array([2**62])], {}, 10), ("Gather", [np.array(-2)], {"axis": 2}, 13),
    ("Gather", [np.array([1, 2])], {"axis": 1}, 13), ("Gather", [np.array([[0, -1], [2, 2]])], {"axis": 3},
    13),
    ("Expand", [np.array([1, 4, 5, 6])], {}, 13), ("Expand", [np.array([2, 1, 1, 1, 1])], {}, 13),
    ("Tile", [np.array([1, 2, 1, 3])], {}, 13),
    ("Pad", [np.array([0, 0, 1, 2, 0, 1, 0, 3]), np.array(1.5, np.float32)], {}, 13),
    ("Pad", [np.array([0, 0, 1, 2, 0, 0, 0, 3])], {"mode": "reflect"}, 13),
    ("Pad", [np.array([1, -2]), None, np.array([3])], {}, 18),
    ("Clip", [np.array(-0.5, np.float32)], {}, 13), ("Clip", [None, np.array(0.5, np.float32)], {}, 13),
    ("PRelu", [normal(4, 1, 1)], {}, 13), ("PRelu", [normal(1)], {}, 13), ("PRelu", [normal(1, 1, 6)], {},
    13),
    ("PRelu", [normal(1, 1, 1)], {}, 13), ("Add", [normal(6)], {}, 13), ("Add", [normal(4, 1, 1)], {}, 13),
    ("Add", [np.array(2.5, np.float32)], {}, 13), ("Mul", [np.array([2.5], np.float32)], {}, 13),
    ("Sub", [np.array(2.5, np.float32)], {}, 13), ("Div", [np.array(2.5, np.float32)], {}, 13), ("Div",
    [normal(5, 1)], {}, 13),
    ("Pow", [np.array(3.0, np.float32)], {}, 13), ("Pow", [np.array(2, np.int64)], {}, 13),
    ("Max", [np.array(0.1, np.float32)], {}, 13), ("Min", [normal(6)], {}, 13),
    ("Greater", [normal(6)], {}, 13), ("Less", [np.array(0.1, np.float32)], {}, 13), ("GreaterOrEqual",
    [normal(6)], {}, 16),
    ("LessOrEqual", [normal(6)], {}, 16), ("Equal", [normal(6)], {}, 13), ("MatMul", [normal(6, 3)], {}, 13),
    ("MatMul", [normal(4, 6, 3)], {}, 13), ("MatMul", [normal(6)], {}, 13),
    ("BatchNormalization", [normal(4), normal(4), normal(4), np.abs(normal(4)) + 0.5], {"epsilon": 1e-3}, 9),
    ("BatchNormalization", [normal(4), normal(4), normal(4), np.abs(normal(4)) + 0.5], {}, 15),
    ("InstanceNormalization", [normal(4), normal(4)], {}, 13),
    ("LayerNormalization", [normal(6), normal(6)], {}, 17), ("LayerNormalization", [normal(5, 6)],
    {"axis": 2}, 17),
    ("GroupNormalization", [normal(2), normal(2)], {"num_groups": 2}, 18),
    ("GroupNormalization", [normal(4), normal(4)], {"num_groups": 2}, 21),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arrays", "attributes", "opset"), SHAPED, ids=lambda value: str(value)[:30])
def test_with_constants(kind, arrays, attributes, opset, tmp_path):
    network = assert_operator(tmp_path, kind, {"x": ("N", 4, 5, 6)}, arrays, opset=opset, **attributes)
    assert all(
        tensor.is_floating_point()
        for name, tensor in network.parameters.items()
        if name not in network.buffers
    )


@pytest.mark.parametrize("kind", ["Sub", "Div", "Max", "Add"])
def test_scalar_on_the_left(kind, tmp_path):
    node = helper.make_node(kind, ["c", "x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], {"x": ("N", 5)}, {"c": np.array(1.5, np.float32)})
    network = read_onnx(path)
    assert not network.parameters
    assert_agrees(path, network)


VARIADIC = [
    ("Sum", 3),
    ("Mean", 3),
    ("Max", 3),
    ("Min", 3),
    ("Sum", 1),
    ("Add", 2),
    ("Sub", 2),
    ("Mul", 2),
    ("Div", 2),
    ("MatMul", 2),
]


@pytest.mark.parametrize(("kind", "count"), VARIADIC)
def test_several_inputs(kind, count, tmp_path):
    assert_operator(tmp_path, kind, dict.fromkeys(("a", "b", "c")[:count], ("N", 5, 5)))


GEMM = [
    {"transB": 1}, {}, {"alpha": 0.5, "beta": 2.0}, {"transA": 1, "transB": 1}, {"beta": 0.0}, {"alpha": 2.0,
    "transB": 1},
]  # fmt: skip


@pytest.mark.parametrize("attributes", GEMM, ids=str)
@pytest.mark.parametrize("bias", [(3,), (1, 3), (1,), (), None], ids=str)
def test_gemm(attributes, bias, tmp_path):
    weight = normal(3, 6) if attributes.get("transB") else normal(6, 3)
    arrays = [weight] if bias is None else [weight, normal(*bias)]
    shape = (6, 4) if attributes.get("transA") else ("N", 6)
    network = assert_operator(tmp_path, "Gemm", {"x": shape}, arrays, **attributes)
    assert "w0" in network.parameters


def test_gemm_of_two_values(tmp_path):
    assert_operator(tmp_path, "Gemm", {"a": (4, 6), "b": (3, 6)}, transB=1, alpha=0.5)


CONVOLUTIONS = [
    {}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}, {"dilations": [2, 1]}, {"group": 2}, {"strides": [2,
    3]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", CONVOLUTIONS, ids=str)
def test_conv(attributes, tmp_path):
    weight = normal(6, 4 // attributes.get("group", 1), 3, 2)
    assert_operator(tmp_path, "Conv", {"x": ("N", 4, 9, 8)}, [weight, normal(6)], **attributes)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("axes", [1, 3])
def test_conv_in_other_dimensions(kind, axes, tmp_path):
    assert_operator(
        tmp_path, kind, {"x": ("N", 4, *[6] * axes)}, [normal(4, 4, *[3] * axes)], strides=[2] * axes
    )


TRANSPOSED = [
    {}, {"strides": [2, 3]}, {"pads": [1, 0, 1, 0]}, {"pads": [0, 1, 2, 0], "strides": [2, 2]}, {"group": 2},
    {"strides": [2, 2], "output_padding": [1, 1]}, {"dilations": [2, 1]}, {"auto_pad": "SAME_UPPER",
    "strides": [2, 2]},
    {"output_shape": [10, 8], "strides": [2, 2]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_conv_transpose(attributes, tmp_path):
    assert_operator(tmp_path, "ConvTranspose", {"x": ("N", 4, 5, 4)}, [normal(4, 2, 3, 3)], **attributes)


POOLS = [
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, {"kernel_shape": [2, 3], "pads": [0, 0,
    1, 2]},
    {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "strides": [2, 2]}, {"kernel_shape": [3, 3],
    "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}, {"kernel_shape": [3, 2], "ceil_mode": 1,
    "strides": [2, 2]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool with padding"])
def test_pooling(kind, attributes, tmp_path):
    extra = {"count_include_pad": 1} if kind.endswith("padding") else {}
    assert_operator(tmp_path, kind.split()[0], {"x": ("N", 2, 8, 7)}, opset=13, **attributes, **extra)


@pytest.mark.parametrize("axes", [1, 3])
def test_pooling_in_other_dimensions(axes, tmp_path):
    assert_operator(
        tmp_path, "MaxPool", {"x": ("N", 2, *[7] * axes)}, kernel_shape=[2] * axes, dilations=[2] * axes
    )


SPLITS = [
    (9, {"split": [1, 3, 2]}, []),
    (13, {}, [np.array([1, 3, 2])]),
    (13, {}, []),
    (18, {"num_outputs": 3}, []),
]


@pytest.mark.parametrize(("opset", "attributes", "arrays"), SPLITS, ids=str)
def test_split_and_concat(opset, attributes, arrays, tmp_path):
    inputs = {f"s{index}": array for index, array in enumerate(arrays)}
    nodes = [
        helper.make_node("Split", ["x", *inputs], ["a", "b", "c"], axis=1, **attributes),
        helper.make_node("Concat", ["c", "a", "b"], ["y"], axis=-1),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 6)}, inputs, opset=opset)
    network = read_onnx(path)
    assert not network.parameters
    assert_agrees(path, network)


@pytest.mark.parametrize("opset", [9, 13])
def test_squeeze(opset, tmp_path):
    attributes, arrays = ({"axes": [1, -1]}, []) if opset == 9 else ({}, [np.array([1, -1])])
    assert_operator(tmp_path, "Squeeze", {"x": ("N", 1, 3, 1)}, arrays, opset=opset, **attributes)


def test_where_not_and_logic(tmp_path):
    nodes = [
        helper.make_node("Greater", ["a", "b"], ["g"]),
        helper.make_node("Less", ["a", "zero"], ["l"]),
        helper.make_node("Or", ["g", "l"], ["o"]),
        helper.make_node("Xor", ["o", "l"], ["e"]),
        helper.make_node("And", ["o", "e"], ["n"]),
        helper.make_node("Not", ["n"], ["m"]),
        helper.make_node("Where", ["m", "a", "zero"], ["y"]),
    ]
    path = write(
        tmp_path / "m.onnx", nodes, {"a": ("N", 4), "b": ("N", 4)}, {"zero": np.array(0, np.float32)}
    )
    assert_agrees(path, read_onnx(path))


def test_embedding(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 5)}, {"table": normal(9, 3)})
    network = read_onnx(path)
    assert network.node("y").operation.kind == "Embedding"
    assert_agrees(path, network, scale=0.5, offset=4)


PRODUCTS = {
    "SiLU": [("Sigmoid", ["x"], ["s"]), ("Mul", ["x", "s"], ["y"])],
    "mish": [("Softplus", ["x"], ["p"]), ("Tanh", ["p"], ["t"]), ("Mul", ["t", "x"], ["y"])],
    "GELU": [
        ("Div", ["x", "root"], ["d"]), ("Erf", ["d"], ["e"]), ("Add", ["e", "one"], ["o"]), ("Mul", ["x",
        "o"], ["p"]),
        ("Mul", ["p", "half"], ["y"]),
    ],
    "GELU again": [
        ("Mul", ["x", "inverse"], ["d"]), ("Erf", ["d"], ["e"]), ("Add", ["one", "e"], ["o"]), ("Mul",
        ["half", "o"], ["h"]),
        ("Mul", ["x", "h"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_activations_written_as_products(name, tmp_path):
    numbers = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5}
    constants = {key: np.array(value, np.float32) for key, value in numbers.items()}
    nodes = [helper.make_node(*entry) for entry in PRODUCTS[name]]
    network = read_onnx(write(tmp_path / "m.onnx", nodes, {"x": ("N", 5)}, constants))
    operation = network.node("y").operation
    assert name.split()[0] in (operation.kind, operation.attributes.get("name"))
    assert len(network.nodes) == 2
    assert not network.parameters
    assert_agrees(tmp_path / "m.onnx", network, scale=3)
