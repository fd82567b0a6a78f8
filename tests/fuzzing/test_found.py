"""What fuzzing and reading have found, each input made anew: readers that crashed, hung, or asked for all memory."""

import io
import json
import math
import struct
import zipfile

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import certify
import interp
from certify import checker
from certify.assurance.requirements import read_requirements
from certify.assurance.vnnlib import read_vnnlib
from certify.certificate import Certificate
from certify.checking import check_text
from tests.fuzzing import seeds, targets
from tests.fuzzing.law import limits
from weightspace import SymmetrySpec, archives, read
from weightspace.checkpoint import open_checkpoint, write_safetensors
from weightspace.errors import ArchitectureError, CheckpointError, WeightspaceError
from weightspace.huggingface import read_huggingface

HUGE = 10**12


def refused(path, function, reason):
    """The reader refuses with a message that names file and reason, within a gigabyte."""
    with limits(), pytest.raises(WeightspaceError, match=reason) as caught:
        function(path)
    assert path.name in str(caught.value)
    assert "MemoryError" not in str(caught.value)


def array_file(descr, shape, data=b"", version=(1, 0), tail=""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}{tail}".encode()
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<H" if version[0] == 1 else "<I", len(header))
        + header
        + data
    )


ARRAYS = {
    "no bytes, which ended the process": array_file("|S0", (3,)),
    "void, which ended the process": array_file("|V0", (3,)),
    "huge": array_file("|b1", (HUGE,)),
    "negative": array_file("<f8", (-1,), bytes(8)),
    "objects": array_file("|O", (1,), bytes(8)),
    "fields of objects": array_file([("a", "<f4"), ("b", "|O")], (1,), bytes(12)),
    "a version of nobody": array_file("<f8", (1,), bytes(8), version=(9, 0)),
    "names in Unicode": array_file([("é", "<f4")], (1,), bytes(4), version=(3, 0)),
    "nested": array_file("<f8", (1,), bytes(8), tail="[" * 200),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_not_what_they_say(tmp_path, name):
    path, archive = tmp_path / "a.npy", tmp_path / "a.npz"
    path.write_bytes(ARRAYS[name])
    refused(path, open_checkpoint, "cannot be read as plain numbers")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("network.npy", ARRAYS[name])
    refused(archive, open_checkpoint, "cannot be read as plain numbers")
    with limits(), pytest.raises(checker.Unreadable, match=r"a\.npz") as caught:
        checker.load_network(archive)
    assert "Unable to allocate" not in str(caught.value)


def test_archives_that_expand_a_thousandfold(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS", 2**20)
    monkeypatch.setattr(checker, "EXPANDED", 2**20)
    zeros, path = np.zeros(2**18), tmp_path / "a.npz"
    np.savez_compressed(path, network=zeros)
    refused(path, open_checkpoint, "expands to")
    with pytest.raises(checker.Unreadable, match="expands to"):
        checker.load_network(path)
    parts = {"archive/data.pkl": bytes(2**21), "archive/models/model.json": bytes(2**21)}
    for name, reader in (("a.pt", open_checkpoint), ("a.pt2", read)):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
            for part, content in parts.items():
                file.writestr(part, content)
        refused(tmp_path / name, reader, "expands to")


def test_an_archive_may_not_hold_two_members_of_one_name(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("network.npy", buffer.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("network.npy", buffer.getvalue())
    refused(path, open_checkpoint, "same name")
    with pytest.raises(checker.Unreadable, match="same name"):
        checker.load_network(path)


def test_tensors_that_are_no_stored_numbers(tmp_path):
    for tensor, reason in (
        (torch.zeros(1).expand(10**6, 10**6), "repeats"),
        (torch.zeros(2, device="meta"), "no numbers|refused"),
        (torch.eye(2).to_sparse(), "not dense"),
    ):
        torch.save({"w": tensor}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", lambda path: open_checkpoint(path).state_dict(), reason)
        if reason != "not dense":  # a shape that `inspect` lists
            refused(tmp_path / "a.pt", open_checkpoint, reason)


# ---- .pt2 and descriptions of networks -------------------------------------------------------------------


def exported(tmp_path, change):
    data = json.loads(seeds.pt2_graphs()[0])
    change(data)
    (tmp_path / "a.pt2").write_bytes(seeds.in_exported(json.dumps(data).encode()))
    return tmp_path / "a.pt2"


def test_exported_programs(tmp_path):
    def repeated(data):
        entry = next(iter(data["weights"]["config"].values()))["tensor_meta"]
        entry["sizes"] = [{"as_int": 10**6}] * 2
        entry["strides"] = [{"as_int": 0}] * 2

    def silent(data):
        data["model"]["graph_module"]["graph"]["nodes"][0]["outputs"] = [{}]

    def created(target, arguments):
        def change(data):
            node = data["model"]["graph_module"]["graph"]["nodes"][0]
            node["target"] = f"torch.ops.{target}"
            node["inputs"] = [{"name": name, "arg": value} for name, value in arguments.items()]

        return change

    size = {"as_ints": [10**6, 10**6]}
    refused(exported(tmp_path, repeated), read, "repeats")
    refused(exported(tmp_path, silent), read, "does not follow")
    for target, arguments in (
        ("aten.full.default", {"size": size, "fill_value": {"as_float": 1.0}}),
        ("aten.arange.default", {"end": {"as_int": HUGE}}),
        ("aten.eye.default", {"n": {"as_int": 10**6}}),
    ):
        refused(exported(tmp_path, created(target, arguments)), read, "would create a constant")
    data = bytearray(seeds.pt2()[0])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        deflated = io.BytesIO()
        with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as other:
            for name in archive.namelist():
                other.writestr(name, archive.read(name))
    data = bytearray(deflated.getvalue())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = next(one for one in archive.infolist() if "/models/" in one.filename)
    start = member.header_offset + 30 + len(member.filename)
    data[start : start + 16] = b"\xff" * 16  # zlib has an error of its own
    (tmp_path / "a.pt2").write_bytes(data)
    refused(tmp_path / "a.pt2", read, "not a readable .pt2 archive")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "Opaque", "parameters": {}, "inputs": [],
          "attributes": {"name": "aten.zeros.default", "arguments": json.dumps({"size": [10**6, 10**6]})}}, "no input"),
        ({"kind": "Opaque", "parameters": {},
          "attributes": {"name": "aten.new_zeros.default",
                         "arguments": json.dumps({"self": {"input": 0}, "size": [10**6, 10**6], "device": "cpu"})}},
         "no input"),
        ({"shape": [None, 10**30]}, "described wrongly|gives"),
        ({"attributes": {"deep": [[[]]] * 3}}, "wrong fields"),
    ],
)  # fmt: skip
def test_descriptions_of_networks(tmp_path, change, reason):
    data = json.loads(seeds.network().to_json())
    data["nodes"][1].update(change)
    for text in (json.dumps(data), '{"format":' + "[" * 100_000):
        path = tmp_path / "a.safetensors"
        write_safetensors(path, dict(seeds.network().parameters), {"weightspace.network": text})
        refused(path, read, reason if text[-1] == "}" else "not the JSON of a network")


def test_deeply_nested_specs():
    with pytest.raises(ArchitectureError, match="not the JSON"):
        SymmetrySpec.from_json("[" * 100_000)


# ---- ONNX and Hugging Face -------------------------------------------------------------------------------


def constants(kind, arrays, **attributes):
    known = [numpy_helper.from_array(np.asarray(array), f"c{place}") for place, array in enumerate(arrays)]
    nodes = [
        helper.make_node(kind, [tensor.name for tensor in known], ["made"], **attributes),
        helper.make_node("Add", ["x", "made"], ["out"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], known)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def test_constants_of_an_onnx_file_that_would_fill_the_memory(tmp_path):
    long, path = np.ones((20_000, 1), np.float32), tmp_path / "a.onnx"
    for model in (
        constants("MatMul", [long, long.T]),
        constants("Add", [long, long.T]),
        constants("Gather", [np.ones((1, 20_000), np.float32), np.zeros(20_000, np.int64)]),
        constants("Einsum", [long[:, 0], long[:, 0]], equation="a,b->ab"),
        constants("Range", [np.int64(0), np.int64(HUGE), np.int64(1)]),
    ):
        path.write_bytes(model)
        refused(path, read, "would create a constant")
    for model in (
        constants("HannWindow", [np.int64(HUGE)]),
        constants("Conv", [np.ones((1, 1, 2, 2), np.float32)] * 2, pads=[10**6] * 4, strides=[10**6] * 2),
    ):
        path.write_bytes(model)
        targets.run("onnx", model)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": ["gpt2"]}, {"activation_function": {}}, {"layer_norm_epsilon": 10**400},
        {"layer_norm_epsilon": math.nan},
        {"n_embd": 2**31 - 2}, {"vocab_size": 2**31 - 1}, {"n_positions": 2**31 - 1}, {"architectures": 5},
    ],
    ids=str,
)  # fmt: skip
def test_configurations_of_gpt2(tmp_path, change):
    _configured(tmp_path, "gpt2", {**seeds.GPT2, **change})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("vit", {"image_size": [10**6, 10**6]}), ("vit", {"image_size": 10**9}), ("vit", {"patch_size": [True, 2]}),
        ("llama", {"rope_parameters": {"rope_theta": [1]}}),
        ("llama", {"rope_scaling": {"partial_rotary_factor": "x"}}),
        ("llama", {"num_hidden_layers": 10**9}), ("llama", {"max_position_embeddings": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_other_configurations(tmp_path, kind, change):
    _configured(tmp_path, kind, {**{"llama": seeds.LLAMA, "vit": seeds.VIT}[kind], **change})


def _configured(folder, kind, config):
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", seeds.huggingface_tensors(kind))
    with limits(), pytest.raises((ArchitectureError, CheckpointError), match=folder.name):
        read_huggingface(folder)


# ---- adapters and autoencoders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"alpha_pattern": {"(": 1}, "lora_alpha": 1},
        {"alpha_pattern": {"(a*)*(a*)*": 1}},
        {"lora_alpha": 10**400},
    ],
    ids=str,
)
def test_configurations_of_adapters(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    factors = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(4, 2)}
    write_safetensors(tmp_path / "adapter_model.safetensors", factors)
    refused(tmp_path, interp.find_adapters, "JSON object|alpha_pattern|lora_alpha")


@pytest.mark.parametrize(
    ("kind", "sizes"), [("SparseAutoencoder", {}), ("LiftedAutoencoder", {"lifted": 10**5})]
)
def test_autoencoders_larger_than_their_weights(tmp_path, kind, sizes):
    configuration = {"d": 10**5, "latents": 10**5, **sizes}
    about = {
        "format": "weightspace.autoencoder", "version": "1", "class": kind, "dtype": "float32",
        "configuration": json.dumps(configuration),
    }  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", {"encoder_weight": torch.ones(2)}, about)
    refused(tmp_path / "a.safetensors", interp.load_autoencoder, "missing|numbers")


# ---- certificates and requirements -----------------------------------------------------------------------


def test_the_certificate_of_a_property_is_none_of_a_constant():
    with pytest.raises(CheckpointError, match="certificate of a property"):
        Certificate.from_json(seeds.questions()[-1])


def test_a_name_that_stands_twice_is_an_edit(tmp_path):
    text = seeds.questions()[0]
    twice = text.replace('"seconds":', f'"seconds": "{(1.0).hex()}",\n "seconds":')
    assert twice != text
    assert "stands twice" in check_text(twice, seeds.network()).reason
    path = tmp_path / "net.npz"
    described = seeds.network_json()[0].decode().replace('"outputs":', '"outputs": [], "outputs":')
    path.write_bytes(seeds.network_npz(described.encode()))
    with pytest.raises(checker.Unreadable, match="stands twice"):
        checker.load_network(path)


def wide(kind, width, shape=None, **attributes):
    """The description of a network without weights whose values are as wide as it says."""
    shape = [None, width] if shape is None else shape
    node = {
        "name": "y",
        "kind": kind,
        "attributes": attributes,
        "parameters": {},
        "inputs": ["x"],
        "shape": shape,
    }
    return {
        "format": "weightspace.network", "version": 1, "outputs": ["y"], "bfloat16": [],
        "nodes": [{"name": "x", "kind": "Input", "attributes": {}, "parameters": {}, "inputs": [], "shape": shape,
                   "dtype": "float32"}, {**node, "dtype": "float32"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "graph",
    [
        wide("ReLU", 10**10), wide("ReLU", 30_000), wide("GroupSort", 10**5, group_size=10**5, axis=1),
        wide("GroupSort", 20_000, group_size=20_000, axis=-1), wide("Absolute", 10**30),
    ],
    ids=["wide", "square", "groups", "one group", "beyond"],
)  # fmt: skip
def test_a_description_of_any_width_takes_no_memory(graph):
    fields = json.loads(seeds.questions()[0])
    width = graph["nodes"][1]["shape"][1]
    names = {"ReLU": "ReLU", "Absolute": "Absolute"}
    fields["network_hash"] = checker.network_hash(graph, {})
    fields["activations"] = [names.get(graph["nodes"][1]["kind"], f"GroupSort {width}")]
    fields["proofs"][0]["multipliers"] = [[(1.0).hex()] * min(width, 30_000)]
    fields["digest"] = checker.digest(fields)
    parsed = checker.parse_certificate(json.dumps(fields))
    with limits(2 << 30), pytest.raises(checker.Failure) as caught:
        checker.check_certificate(parsed, graph, {})
    assert "entries, more than" in str(caught.value)


def test_the_checker_names_the_file_that_is_at_fault(tmp_path, capsys):
    certificate, network = tmp_path / "cert.json", tmp_path / "net.npz"
    certificate.write_bytes(b"\xff\xfe")
    network.write_bytes(seeds.network_npz(seeds.network_json()[0]))
    for content, name in ((b"\xff\xfe", "cert.json"), (b"[" * 10**6, "cert.json"), (b'"\\ud800"', "cert.json"),
                          (b'{"format": NaN}', "cert.json"), (seeds.questions()[0].encode(), "net.npz")):  # fmt: skip
        certificate.write_bytes(content)
        if name == "net.npz":
            network.write_bytes(b"PK")
        assert checker.main([str(certificate), str(network)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line


def test_counterexamples_that_are_no_points():
    data = json.loads(seeds.verdicts()[1])
    assert data["status"] == "refuted"
    data["properties"][0]["counterexample"]["input"] = [[(1.0).hex()], (1.0).hex()]
    targets.fuzz_verdict(json.dumps(data).encode())


def test_requirements_stay_in_their_folder_and_run_nothing(tmp_path):
    path = tmp_path / "r.toml"
    entry = '[[requirements]]\nid = "R"\ntext = "t"\nkind = "lipschitz"\nmax = 1.0\n'
    for name in ("../m.onnx", "/etc/passwd", "a/../../m", "C:\\\\m"):
        path.write_text(f'model = "{name}"\n{entry}')
        refused(path, read_requirements, "outside of the folder")
        path.write_text(f'model = "m"\n{entry}region = "{name}"\n')
        refused(path, read_requirements, "outside of the folder")
    path.write_text(f'model = {{file = "m", architecture = "net.py:build"}}\n{entry}')
    refused(path, read_requirements, "run-architectures")
    assert (
        read_requirements(path, run_architectures=True)
        .requirements[0]
        .model.architecture.endswith("net.py:build")
    )
    path.write_text(f'model = {{file = "m", architecture = "net.json"}}\n{entry}')
    assert read_requirements(path)


def test_yaml_that_stops_its_parser(tmp_path):
    path = tmp_path / "r.yaml"
    for text in (
        "title: !!timestamp x",
        "{" * 100_000,
        "a: " + "[" * 500 + "]" * 500,
        "!!int ''",
        "? " * 5000,
    ):
        path.write_text(text)
        refused(path, read_requirements, "cannot read requirements|is not a table")


def test_properties_name_their_file(tmp_path):
    path = tmp_path / "a.vnnlib"
    path.write_text("(assert (<= X_0 1))")
    refused(path, read_vnnlib, "a.vnnlib")


def test_regions_of_any_number(tmp_path):
    for text in ('{"center": [1], "radius": 1' + "0" * 400 + "}", '{"lower": [NaN], "upper": [1]}', "[" * 10**5,
                 '{"center": [1], "radius": "1"}', '{"lower": {"a": 1}, "upper": []}'):  # fmt: skip
        (tmp_path / "box.json").write_text(text)
        refused(tmp_path / "box.json", lambda path: certify.region_files.read_region(path), "box")
