"""Files made to run code or to write where nobody asked; the folder they are put in is `sys.argv`-free and small.

Whatever runs leaves a trace: a file named by `EVIL` in the folder above, which `test_no_code.py` looks for, and an
event that its audit hook sees.
"""

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzzing import seeds
from weightspace.checkpoint import write_safetensors

EVIL = "evil-was-here"
NAMES = (
    "../../evil",
    "/evil-absolute",
    "..",
    "a/../../evil",
    "evil\n<script>alert(1)</script>",
    "C:\\evil",
    "~/evil",
)


class Runs:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write_files(folder: Path) -> list[Path]:
    """Write every kind of hostile file; returns the paths to hand to the readers."""
    trace = str(folder.parent / EVIL)
    command = f"touch {trace}"
    attacks = {
        "system": Runs(os.system, command),
        "exec": Runs(exec, f"open({trace!r}, 'w')"),
        "eval": Runs(eval, f"__import__('os').system({command!r})"),
        "open": Runs(open, trace, "w"),
        "nested": {"state_dict": {"w": torch.ones(2, 2), "x": [Runs(os.system, command)]}},
    }
    for name, attack in attacks.items():
        torch.save(attack, folder / f"{name}.pt")
        torch.save(attack, folder / f"{name}-legacy.pth", _use_new_zipfile_serialization=False)
        (folder / f"{name}-plain.bin").write_bytes(pickle.dumps(attack, protocol=2))
    with tarfile.open(folder / "tar.pt", "w") as tar:  # the format of the first versions of PyTorch
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(attacks["system"], protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    dill = b"cdill._dill\n_create_function\n(cposix\nsystem\n(V" + command.encode() + b"\ntRtR."
    (folder / "dill.pt").write_bytes(dill)
    np.savez(folder / "object.npz", a=np.array([attacks["system"]], dtype=object))
    np.save(folder / "object.npy", np.array([attacks["system"]], dtype=object))
    for name in ("weights", "constants"):
        _pickled_payload(folder / f"{name}.pt2", name, pickle.dumps(attacks["system"]))
    with zipfile.ZipFile(folder / "old.pt2", "w") as archive:
        archive.writestr("serialized_state_dict.pt", pickle.dumps(attacks["system"]))
    _onnx(folder)
    (folder / "tags.yaml").write_text(
        f"requirements: !!python/object/apply:os.system ['{command}']\n"
        f"title: !!python/object/new:subprocess.Popen [['touch', '{trace}']]\n"
    )
    (folder / "code.toml").write_text(
        '[[requirements]]\nid = "R"\ntext = "t"\nkind = "lipschitz"\nmax = 1.0\n'
        'model = {file = "names.safetensors", architecture = "attack.py:build"}\n'
    )
    (folder / "leading.toml").write_text(
        'model = "../../outside.onnx"\n[[requirements]]\nid = "R"\ntext = "t"\nkind = "lipschitz"\nmax = 1.0\n'
    )
    (folder / "attack.py").write_text(f"import os\nos.system({command!r})\n")
    tensors = {f"{name}.weight": torch.eye(3) for name in NAMES}
    write_safetensors(folder / "names.safetensors", tensors, {"__reduce__": command, "format": "../../evil"})
    _huggingface(folder / "huggingface", command)
    shards = folder / "shards"
    shards.mkdir()
    (shards / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "../names.safetensors"}})
    )
    (folder / "opaque.safetensors").write_bytes(_opaque(trace))
    return sorted(path for path in folder.iterdir() if path.suffix != ".py")


def write_named(path: Path) -> None:
    """Write a bilinear network whose parameters and nodes have the names of other people's files."""
    from weightspace.bundled import load

    network = load("digits_bilinear")
    names = dict(zip(network.parameters, NAMES, strict=False))
    data = json.loads(network.to_json())
    nodes = {node["name"]: f"../../evil/{place}" for place, node in enumerate(data["nodes"])}
    for node in data["nodes"]:
        node["name"] = nodes[node["name"]]
        node["inputs"] = [nodes[name] for name in node["inputs"]]
        node["parameters"] = {role: names.get(name, name) for role, name in node["parameters"].items()}
    data["outputs"] = [nodes[name] for name in data["outputs"]]
    data["buffers"] = [names.get(name, name) for name in data["buffers"]]
    tensors = {names.get(name, name): tensor for name, tensor in network.parameters.items()}
    write_safetensors(path, tensors, {"weightspace.network": json.dumps(data)})


def _pickled_payload(path: Path, kind: str, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(seeds.pt2()[0])) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    root = next(name for name in parts if "/models/" in name).split("/models/")[0]
    entry = {"path_name": "payload", "is_param": True, "use_pickle": True, "tensor_meta": None}
    parts[f"{root}/data/{kind}/model_{kind}_config.json"] = json.dumps(
        {"config": {"0.weight": entry}}
    ).encode()
    parts[f"{root}/data/{kind}/payload"] = content
    path.write_bytes(seeds._zip(parts))


def _onnx(folder: Path) -> None:
    import onnx

    for name, location in (
        ("passwd", "/etc/passwd"),
        ("up", "../outside.bin"),
        ("inside", "a/../../outside.bin"),
    ):
        model = onnx.ModelProto()
        model.ParseFromString(seeds.onnx()[2])
        model.graph.initializer[0].external_data[0].value = location
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    model.ParseFromString(seeds.onnx()[0])
    model.graph.node[2].op_type, model.graph.node[2].domain = "PythonOp", "ai.onnx.contrib"
    text = model.graph.node[2].attribute.add(name="code", type=onnx.AttributeProto.STRING)
    text.s = b"__import__('os').system('touch evil')"
    (folder / "custom.onnx").write_bytes(model.SerializeToString())


def _huggingface(folder: Path, command: str) -> None:
    folder.mkdir()
    template = "{{ cycler.__init__.__globals__.os.system('" + command + "') }}"
    config = {
        **seeds.GPT2, "chat_template": template, "auto_map": {"AutoModel": "attack.Model"}, "trust_remote_code": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "attack.py").write_text(f"import os\nos.system({command!r})\n")
    write_safetensors(folder / "model.safetensors", seeds.huggingface_tensors("gpt2"))


def _opaque(trace: str) -> bytes:
    """A network that says it runs operators which touch files."""
    data = json.loads(seeds.network().to_json())
    arguments = {"filename": trace, "shared": True, "size": 4}
    data["nodes"][1] = {
        **data["nodes"][1], "kind": "Opaque", "parameters": {},
        "attributes": {"name": "aten.from_file.default", "arguments": json.dumps(arguments)},
    }  # fmt: skip

    def write(path: Path) -> None:
        write_safetensors(path, dict(seeds.network().parameters), {"weightspace.network": json.dumps(data)})

    return seeds._written("a.safetensors", write)
