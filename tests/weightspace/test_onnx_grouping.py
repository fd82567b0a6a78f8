"""Sorts and reflections of groups of channels come back from ONNX files as one operation, and nothing else does."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper, save
from torch import nn

from weightspace import read, trace
from weightspace.layers import GroupSort, Householder, MaxMin

onnxruntime.set_default_logger_severity(4)


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


# ---- what torch exports ----------------------------------------------------------------------------------

MODULES = {
    "sorts": (
        lambda: [nn.Linear(4, 12), MaxMin(), nn.Linear(12, 12), GroupSort(3), MaxMin(), nn.Linear(12, 2)],
        (4,),
    ),
    "one group": (lambda: [nn.Linear(4, 6), GroupSort(6)], (4,)),
    "reflections": (
        lambda: [nn.Linear(4, 12), Householder(12), Householder(12, 4), Householder(12, 4), nn.Linear(12, 2)],
        (4,),
    ),
    "in front of a last axis": (
        lambda: [nn.Conv1d(2, 6, 3), MaxMin(), nn.ReLU(), GroupSort(3), Householder(6, 3), MaxMin(axis=2)],
        (2, 8),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_exported_module_is_read_as_it_is_traced(name, dtype, tmp_path):
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module, path = nn.Sequential(*make()).to(dtype).eval(), tmp_path / "model.onnx"
    x = torch.randn(3, *shape, dtype=dtype)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        torch.onnx.export(module, (x,), path, dynamic_shapes=dynamic, dynamo=True, verbose=False)
    network, traced = read(path), trace(module, x)
    assert [node.operation.kind for node in network.nodes] == [node.operation.kind for node in traced.nodes]
    axes = [[node.operation.attributes.get("axis") for node in each.nodes] for each in (network, traced)]
    assert axes[0] == axes[1]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    with torch.no_grad():
        found, expected = network.to_module()(x), module(x)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    if not (name == "in front of a last axis" and dtype == torch.float64):  # onnxruntime has no such Conv
        torch.testing.assert_close(found, run(path, x), rtol=tolerance, atol=tolerance)
    if "Householder" in str(module):  # the file has the directions scaled to unit length
        lengths = [
            network.parameters[node.operation.weight].norm(dim=1)
            for node in network.nodes
            if node.operation.kind == "Householder"
        ]
        torch.testing.assert_close(torch.cat(lengths), torch.ones(len(torch.cat(lengths)), dtype=dtype))
    else:
        assert network.hash == traced.hash


# ---- graphs written by hand ------------------------------------------------------------------------------


def graph(path, nodes, arrays, shape=("N", 6)):
    """Write nodes (kind, inputs, outputs, attributes) from x to y; every list among the arrays is of integers."""
    constants = [
        numpy_helper.from_array(np.array(array) if isinstance(array, list) else array, name)
        for name, array in arrays.items()
    ]
    made = [helper.make_node(kind, i.split(), o.split(), **attributes) for kind, i, o, attributes in nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    whole = helper.make_graph(made, "graph", [x], [ValueInfoProto(name="y")], constants)
    save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def kinds(network):
    return [node.operation.kind for node in network.nodes]


SMALLEST_FIRST = {"largest": 0, "axis": -1}
SORTS = {
    "groups": ([-1, 3, 2], [-1, 6], [2], SMALLEST_FIRST, ["Input", "GroupSort"]),
    "strided channels": (
        [-1, 2, 3], [-1, 6], [2], {"largest": 0, "axis": 1}, ["Input", "Reshape", "GroupSort", "Flatten"],
    ),
    "another shape": ([-1, 3, 2], [-1, 2, 3], [2], SMALLEST_FIRST, ["Input", "Reshape", "GroupSort", "Reshape"]),
    "one group a row": ([-1, 3, 2], [-1, 2], [2], SMALLEST_FIRST, ["Input", "Reshape", "GroupSort", "Reshape"]),
    "groups across samples": ([-1, 12], [-1, 6], [12], SMALLEST_FIRST, ["Input", "Reshape", "GroupSort", "Reshape"]),
    "largest first": ([-1, 3, 2], [-1, 6], [2], {}, ["Input", "Reshape", "Opaque", "Flatten"]),
    "some": ([-1, 2, 3], [-1, 4], [2], SMALLEST_FIRST, ["Input", "Reshape", "Opaque", "Flatten"]),
    "in any order": (
        [-1, 3, 2], [-1, 6], [2], {**SMALLEST_FIRST, "sorted": 0}, ["Input", "Reshape", "Opaque", "Flatten"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SORTS)
def test_only_sorts_of_groups_of_channels_are_joined(name, tmp_path):
    split, merge, count, attributes, expected = SORTS[name]
    batch = 4 if "across" in name else "N"
    nodes = [
        ("Reshape", "x split", "g", {}),
        ("TopK", "g count", "s i", attributes),
        ("Reshape", "s merge", "y", {}),
    ]
    arrays = {"split": split, "merge": merge, "count": count}
    path = graph(tmp_path / "m.onnx", nodes, arrays, (batch, 6))
    network = read(path)
    assert kinds(network) == expected
    if not network.opaque:
        x = torch.randn(4, 6)
        torch.testing.assert_close(network.to_module()(x), run(path, x), rtol=0, atol=0)


def test_positions_of_a_sort_stay_opaque(tmp_path):
    nodes = [("TopK", "x count", "s i", SMALLEST_FIRST), ("Cast", "i", "y", {"to": TensorProto.FLOAT})]
    assert kinds(read(graph(tmp_path / "m.onnx", nodes, {"count": [6]})))[:2] == ["Input", "Opaque"]


@pytest.mark.parametrize(
    ("perm", "back", "expected"),
    [
        ([0, 2, 1], [0, 2, 1], ["Input", "GroupSort"]),
        ([1, 2, 0], [2, 0, 1], ["Input", "GroupSort"]),
        ([1, 2, 0], [1, 2, 0], ["Input", "Permute", "GroupSort", "Permute"]),
    ],
)
def test_permutation_around_a_sort_goes_when_it_is_undone(perm, back, expected, tmp_path):
    nodes = [
        ("Transpose", "x", "t", {"perm": perm}),
        ("TopK", "t count", "s i", SMALLEST_FIRST),
        ("Transpose", "s", "y", {"perm": back}),
    ]
    shape = (5, 4, 3)
    path = graph(tmp_path / "m.onnx", nodes, {"count": [shape[perm[-1]]]}, shape)
    network, x = read(path), torch.randn(shape)
    assert kinds(network) == expected
    torch.testing.assert_close(network.to_module()(x), run(path, x), rtol=0, atol=0)


REFLECTION = {
    "split": ("Reshape", "x split", "z", {}),
    "product": ("Mul", "z u", "p", {}),
    "sum": ("ReduceSum", "p last", "a", {}),
    "abs": ("Abs", "a", "m", {}),
    "difference": ("Sub", "m a", "d", {}),
    "along": ("Mul", "d u", "r", {}),
    "result": ("Add", "z r", "o", {}),
    "merge": ("Reshape", "o merge", "y", {}),
}
REFLECTED = {
    "as exported": ({}, True),
    "factors exchanged": (
        {"product": ("Mul", "u z", "p", {}), "along": ("Mul", "u d", "r", {}), "result": ("Add", "r z", "o", {})},
        True,
    ),
    "the other side": ({"difference": ("Sub", "a m", "d", {})}, False),
    "another direction": ({"along": ("Mul", "d v", "r", {})}, False),
    "another point": ({"result": ("Add", "p r", "o", {})}, False),
    "another magnitude": ({"abs": ("Abs", "p", "m", {})}, False),
    "sum over groups": ({"sum": ("ReduceSum", "p groups", "a", {})}, False),
    "no projection": ({"sum": ("ReduceMean", "p", "a", {"axes": [-1]})}, False),
    "directions used twice": ({"merge": ("Reshape", "o twice", "y", {}), "width": 12}, False),
    "directions too long": ({"u": 1.001}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", REFLECTED)
def test_only_reflections_at_unit_directions_are_joined(name, tmp_path):
    changes, recognized = REFLECTED[name]
    width = changes.get("width", 6)
    u, v = nn.functional.normalize(torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)), dim=-1)
    arrays = {
        "u": (changes.get("u", 1.0) * u).numpy(), "v": v.numpy(), "split": [-1, 3, 2], "merge": [-1, 6],
        "last": [-1], "groups": [1], "twice": [-1, 12],
    }  # fmt: skip
    path = graph(
        tmp_path / "m.onnx",
        [changes.get(step, node) for step, node in REFLECTION.items()],
        arrays,
        ("N", width),
    )
    network, x = read(path), torch.randn(4, width)
    assert ("Householder" in kinds(network)) is recognized
    assert (kinds(network) == ["Input", "Householder"]) is recognized
    torch.testing.assert_close(network.to_module()(x), run(path, x), rtol=1e-6, atol=1e-6)
