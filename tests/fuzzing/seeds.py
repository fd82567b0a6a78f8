"""Small valid files of every kind that the library reads, made by the library: what the fuzzers start from."""

import gzip
import io
import json
import pickle
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

import certify
import interp
from certify.assurance.answers import answer
from certify.assurance.evidence import write_answers
from certify.assurance.vnnlib import parse_vnnlib
from certify.properties import Polyhedron, Property
from weightspace import symmetry, trace
from weightspace.checkpoint import write_safetensors
from weightspace.journal import Journal
from weightspace.network import Network
from weightspace.zoo import Standardization, fit_inrs
from weightspace.zoo.storage import write_zoo

BOX = '{"lower": [-1, 0.5], "upper": [1e0, 0.75]}'
VNNLIB = """; two inputs
(declare-const X_0 Real)(declare-const X_1 Real)
(declare-const Y_0 Real)(declare-const Y_1 Real)
(assert (<= X_0 0.5))(assert (>= X_0 -5e-1))(assert (and (<= X_1 1)(>= X_1 (- 1))))
(assert (or (and (<= Y_0 (+ Y_1 -100.0)) (>= (* 2 Y_1) 300)) (>= Y_1 200)))
"""
TOML = """title = "Tests"
model = "model.safetensors"
[[requirements]]
id = "R1"
text = "The output moves little."
kind = "lipschitz"
max = 10.0
norm = "linf"
region = {lower = [0, 0], upper = [1, 1]}
output = [0, 1]
[[requirements]]
id = "R2"
text = "Never far down."
kind = "property"
seconds = 5
region = {lower = [0, 0], upper = [1, 1]}
unsafe = [{matrix = [[1, -1]], bounds = [-1e3]}]
[[requirements]]
id = "R3"
text = "Right under small changes."
source = "hazard 3"
kind = "robustness"
data = "test.npz"
epsilon = 0.1
norm = "l2"
min_certified_accuracy = 0.9
"""
YAML = """title: Tests
model: {file: model.safetensors, activation: relu}
requirements:
  - {id: R1, text: &a little, kind: lipschitz, max: 1.0e+1, region: {center: [0, 0], radius: 1}}
  - id: R2
    text: *a
    kind: property
    vnnlib: property.vnnlib
"""
GPT2 = {
    "model_type": "gpt2", "vocab_size": 5, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 2,
    "n_inner": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 5, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "max_position_embeddings": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "hidden_act": "silu", "rms_norm_eps": 1e-3,
    "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "chat_template": "{{ messages }}",
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": [4, 4], "patch_size": 2, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}  # fmt: skip


@cache
def network() -> Network:
    """Two inputs, three ReLUs, two outputs, in double precision."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return trace(module, torch.zeros(2, 2, dtype=torch.float64))


def state() -> dict[str, torch.Tensor]:
    """The network as a bare state dict."""
    return {name: network().parameters[name].float() for name in ("0.weight", "0.bias", "2.weight", "2.bias")}


@cache
def safetensors() -> tuple[bytes, ...]:
    tensors = {**state(), "half": torch.ones(2, 1, dtype=torch.bfloat16), "none": torch.zeros(0, 3)}
    return (
        _written("a.safetensors", lambda path: write_safetensors(path, state(), {"note": "plain"})),
        _written("a.safetensors", lambda path: write_safetensors(path, tensors)),
        _written("a.safetensors", network().save),
    )


@cache
def pickles() -> tuple[bytes, ...]:
    legacy = {"state_dict": state(), "epoch": 3, "lists": [torch.zeros(2), (1, "two", None)]}
    shared = torch.arange(6.0)
    odd = {
        "view": shared[::2],
        "same": shared,
        "sparse": torch.eye(2).to_sparse(),
        "wide": torch.zeros(1).expand(9),
    }
    return (
        _saved(state()),
        _saved(legacy),
        _saved(odd),
        _saved(legacy, _use_new_zipfile_serialization=False),
        pickle.dumps({"weights": [1.0, 2.0]}, protocol=2),
    )


@cache
def pickle_streams() -> tuple[bytes, ...]:
    """The pickles inside of zip files, of which `in_archive` makes files again."""
    streams = []
    for file in pickles()[:3]:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            streams.append(archive.read("archive/data.pkl"))
    return tuple(streams)


def in_archive(stream: bytes) -> bytes:
    """Return a PyTorch file around a pickle, with storages 0 to 5 of 64 bytes."""
    names = {"archive/data.pkl": stream, "archive/version": b"3\n", "archive/byteorder": b"little"}
    return _zip({**names, **{f"archive/data/{place}": bytes(range(64)) for place in range(6)}})


@cache
def npz() -> tuple[bytes, ...]:
    plain, compressed = io.BytesIO(), io.BytesIO()
    np.savez(plain, a=np.ones((2, 3)), b=np.arange(3, dtype=">i2"), c=np.asfortranarray(np.eye(2, 3)))
    np.savez_compressed(compressed, a=np.zeros((40, 3)))
    return plain.getvalue(), compressed.getvalue(), _written("a.npz", network().save_npz)


@cache
def npy() -> tuple[bytes, ...]:
    files = []
    for array in (np.ones((4, 3)), np.asfortranarray(np.eye(2, 3)), np.zeros((), ">f4"), np.array(["text"])):
        files.append(io.BytesIO())
        np.save(files[-1], array)
    return tuple(file.getvalue() for file in files)


@cache
def onnx() -> tuple[bytes, ...]:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    shape = numpy_helper.from_array(np.array([-1, 3], np.int64), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "t"], ["y"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Reshape", ["z", "shape"], ["r"]),
        helper.make_node("Custom", ["r"], ["out"], domain="elsewhere", text="hello", numbers=[1, 2]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3])],
        [weight, shape],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)]
    convolution = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]),
            helper.make_node("Constant", [], ["size"], value_ints=[2, 3]),
            helper.make_node("ConstantOfShape", ["size"], ["filled"]),
            helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
            helper.make_node("Flatten", ["p"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("filled", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "k")],
    )
    external = helper.make_model(graph, opset_imports=imports, ir_version=8)
    place = external.graph.initializer[0]
    place.ClearField("raw_data")
    place.data_location = TensorProto.EXTERNAL
    place.external_data.add(key="location", value="weights.bin")
    models = [helper.make_model(one, opset_imports=imports, ir_version=8) for one in (graph, convolution)]
    return tuple(model.SerializeToString() for model in (*models, external))


@cache
def pt2() -> tuple[bytes, ...]:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    program = torch.export.export(module, (torch.zeros(2, 2),))
    return (_written("a.pt2", lambda path: torch.export.save(program, path)),)


@cache
def pt2_graphs() -> tuple[bytes, ...]:
    """The graph inside the file and the list of its weights, of which `in_exported` makes a file again."""
    with zipfile.ZipFile(io.BytesIO(pt2()[0])) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    model = next(text for name, text in parts.items() if "/models/" in name and name.endswith(".json"))
    listing = next(text for name, text in parts.items() if name.endswith("model_weights_config.json"))
    return (json.dumps({"model": json.loads(model), "weights": json.loads(listing)}).encode(),)


def in_exported(text: bytes) -> bytes:
    """Return a `.pt2` file with another graph and list of weights; a text without the two stands for both."""
    with zipfile.ZipFile(io.BytesIO(pt2()[0])) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    try:
        data = json.loads(text)
        replaced = {
            "/models/": json.dumps(data["model"]),
            "model_weights_config.json": json.dumps(data["weights"]),
        }
    except (ValueError, LookupError, TypeError, RecursionError):
        replaced = {"/models/": text}
    for name in parts:
        for part, content in replaced.items():
            if part in name and name.endswith(".json"):
                parts[name] = content
    return _zip(parts)


@cache
def network_json() -> tuple[bytes, ...]:
    return (json.dumps({**json.loads(network().to_json()), "bfloat16": []}).encode(),)


def network_npz(text: bytes) -> bytes:
    """Return what `Network.save_npz` writes, with another description of the network."""
    arrays = {f"parameter:{name}": tensor.numpy() for name, tensor in network().parameters.items()}
    file = io.BytesIO()
    np.savez(file, network=np.frombuffer(text, np.uint8), **arrays)
    return file.getvalue()


@cache
def questions() -> tuple[str, ...]:
    """Certificates of `network()`: of the whole space, of regions, of products, of a property."""
    box = certify.Box([-0.4, 0.1], [0.5, 0.3])
    asked = (
        {}, {"region": box}, {"region": certify.Ball([0.2, -0.3], 0.25), "norm": "l2"}, {"norm": "linf", "output": 1},
        {"bounder": certify.NormProduct()}, {"bounder": certify.ClosedForm(), "output": (0, 1)},
    )  # fmt: skip
    texts = [certify.lipschitz(network(), **one).to_json() for one in asked]
    wall = (Polyhedron([(1.0, 0.0)], [-50.0]), Polyhedron([(0.0, 1.0)], [-50.0]))
    verdict = certify.verify(network(), Property(box, wall))
    assert verdict.certificate is not None
    return (*texts, verdict.certificate)


@cache
def verdicts() -> tuple[bytes, ...]:
    box = certify.Box([-0.4, 0.1], [0.5, 0.3])
    asked = [(Property(box, (Polyhedron([(1.0, 0.0)], [end]),)),) for end in (-50.0, 50.0)]
    asked.append(parse_vnnlib(VNNLIB, "v"))
    return tuple(
        write_answers(answer(network(), one, file=None, seconds=5.0, seed=0)).encode() for one in asked
    )


@cache
def vnnlib() -> tuple[bytes, ...]:
    return VNNLIB.encode(), gzip.compress(VNNLIB.encode(), mtime=0)


@cache
def journal() -> tuple[bytes, ...]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with Journal(path, "inspect", {"rows": 1}) as written:
            written.add("a", [1.5, None])
            written.add("b", {"x": "y"})
        return path.read_bytes(), path.read_bytes()[:-3]


@cache
def symmetry_json() -> tuple[bytes, ...]:
    spec = symmetry(network()).to_json()
    scale = {name: tensor.double() for name, tensor in state().items()}
    return spec.encode(), Standardization(scale, scale).to_json().encode()


@cache
def zoo() -> tuple[bytes, ...]:
    images = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0))
    inrs = fit_inrs(images, hidden=(3,), steps=1, generator=torch.Generator().manual_seed(0))
    return (_written("a.safetensors", lambda path: write_zoo(path, inrs)),)


@cache
def autoencoders() -> dict[str, dict[str, bytes]]:
    """Layout -> files of a folder, the configuration last."""
    torch.manual_seed(0)
    sparse = interp.SparseAutoencoder(3, 4, interp.TopK(2))
    folders = {}
    for layout in ("sae_lens", "sparsify", "dictionary_learning"):
        with TemporaryDirectory() as folder:
            sparse.save(folder, format=layout)
            files = sorted(Path(folder).iterdir(), key=lambda file: file.suffix == ".json")
            folders[layout] = {file.name: file.read_bytes() for file in files}
    folders["weightspace"] = {
        "a.safetensors": _written("a.safetensors", lambda path: sparse.save(path, format="weightspace"))
    }
    return folders


def huggingface_tensors(kind: str) -> dict[str, torch.Tensor]:
    """The tensors that a configuration of this module describes."""
    from weightspace import huggingface

    config = {"gpt2": GPT2, "llama": LLAMA, "vit": VIT}[kind]
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        module, *_ = huggingface._BUILDERS[kind](huggingface._Config(Path(folder)))
    return {name: torch.full_like(tensor, 0.1, device="cpu") for name, tensor in module.state_dict().items()}


def _saved(value: object, **settings: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **settings)
    return file.getvalue()


def _zip(parts: dict[str, bytes | str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _written(name, write) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()
