"""One function `fuzz_NAME(data)` for every reader: it holds the law of `law.py` on a file with these bytes.

`SEEDS[NAME]` are valid inputs. `python -m tests.fuzzing.run NAME` drives one of them by coverage.
"""

import io
import json
import math
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

import interp
from certify import checker
from certify.assurance.evidence import check_file
from certify.assurance.requirements import read_requirements
from certify.assurance.vnnlib import read_vnnlib
from certify.certificate import Certificate
from certify.checking import network_arrays
from certify.evaluation import flat_function
from certify.exact import check_exactly
from certify.region_files import read_region
from tests.fuzzing import seeds
from tests.fuzzing.law import limits, place, read_or_refuse
from weightspace import SymmetrySpec, read
from weightspace.checkpoint import open_checkpoint, read_training_state, write_safetensors
from weightspace.inspection import inspect
from weightspace.journal import Journal
from weightspace.zoo import Standardization
from weightspace.zoo.storage import read_zoo

LARGEST = 1 << 20  # bytes of an input; longer ones say nothing more about a reader


def _opened(path: Path) -> None:
    def tensors() -> None:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names:
            tensor = checkpoint.tensor(name)
            assert tuple(tensor.shape) == checkpoint.shape(name)
            assert tensor.dtype == checkpoint.dtype(name)

    read_or_refuse(tensors, path)
    read_or_refuse(lambda: inspect(path), path)
    read_or_refuse(lambda: read(path), path)


def fuzz_safetensors(data: bytes) -> None:
    _opened(place("a.safetensors", data))


def fuzz_pickle(data: bytes) -> None:
    path = place("a.pt", data)
    _opened(path)
    read_or_refuse(lambda: read_training_state(path), path)


def fuzz_pickle_stream(data: bytes) -> None:
    fuzz_pickle(seeds.in_archive(data))


def fuzz_npz(data: bytes) -> None:
    path = place("a.npz", data)
    _opened(path)
    try:
        graph, parameters = checker.load_network(path)
        with_shapes = {name: array.shape for name, (_, array) in parameters.items()}
        assert isinstance(graph, dict)
        assert all(isinstance(name, str) for name in with_shapes)
        reason = None
    except checker.Unreadable as error:
        reason = str(error)
    if reason is not None:
        assert path.name in reason
        assert "Unable to allocate" not in reason


def fuzz_npy(data: bytes) -> None:
    path = place("a.npy", data)
    _opened(path)
    read_or_refuse(lambda: interp.open_activations(path), path)


def fuzz_onnx(data: bytes) -> None:
    path = place("onnx/a.onnx", data)
    place("onnx/weights.bin", bytes(24))
    read_or_refuse(lambda: read(path), path)


def fuzz_pt2(data: bytes) -> None:
    path = place("a.pt2", data)
    read_or_refuse(lambda: read(path), path)


def fuzz_pt2_graph(data: bytes) -> None:
    fuzz_pt2(seeds.in_exported(data))


def fuzz_index(data: bytes) -> None:
    path = place("sharded/model.safetensors.index.json", data)
    if not (path.parent / "a.safetensors").exists():
        place("sharded/a.safetensors", seeds.safetensors()[0])
    _opened(path)


def fuzz_huggingface(data: bytes) -> None:
    kind = next((kind for kind in ("llama", "vit") if kind.encode() in data), "gpt2")
    path = place(f"{kind}/config.json", data)
    if not (path.parent / "model.safetensors").exists():
        write_safetensors(path.parent / "model.safetensors", seeds.huggingface_tensors(kind))
    read_or_refuse(lambda: read(path.parent), path.parent)


def fuzz_network_json(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    tensors = dict(seeds.network().parameters)
    path = Path(place("network/a.safetensors", b""))
    write_safetensors(path, tensors, {"weightspace.network": text})
    read_or_refuse(lambda: read(path), path)
    described = place("network/b.json", data)
    bare = place("network/c.safetensors", seeds.safetensors()[0])
    read_or_refuse(lambda: read(bare, architecture=str(described)), described)


def fuzz_zoo(data: bytes) -> None:
    path = place("zoo/a.safetensors", data)
    read_or_refuse(lambda: read_zoo(path), path)


def fuzz_zoo_index(data: bytes) -> None:
    path = place("zoo/b.json", data)
    if not (path.parent / "b-00000.safetensors").exists():
        place("zoo/b-00000.safetensors", seeds.zoo()[0])
    read_or_refuse(lambda: read_zoo(path), path)


def fuzz_journal(data: bytes) -> None:
    path = place("journal.jsonl", data)

    def opened() -> None:
        with Journal(path, "inspect", {"rows": 1}) as journal:
            assert all(isinstance(key, str) for key in journal.results)

    read_or_refuse(opened, path)


def fuzz_symmetry(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    read_or_refuse(lambda: SymmetrySpec.from_json(text), None)
    read_or_refuse(lambda: Standardization.from_json(text), None)


def fuzz_autoencoder(data: bytes) -> None:
    """The first byte says which layout, the others are its configuration, or the whole file of our own."""
    layouts = [*seeds.autoencoders()]
    layout = layouts[data[0] % len(layouts)] if data else layouts[0]
    files = [*seeds.autoencoders()[layout].items()]
    for name, content in files[:-1]:
        place(f"{layout}/{name}", content)
    path = place(f"{layout}/{files[-1][0]}", data[1:])
    source = path if len(files) == 1 else path.parent
    read_or_refuse(lambda: interp.load_autoencoder(source), path)


def fuzz_adapter(data: bytes) -> None:
    path = place("adapter/adapter_config.json", data)
    factors = {"layer.lora_A.weight": torch.ones(2, 3), "layer.lora_B.weight": torch.ones(4, 2)}
    if not (path.parent / "adapter_model.safetensors").exists():
        write_safetensors(path.parent / "adapter_model.safetensors", factors)
    read_or_refuse(lambda: interp.find_adapters(path.parent), path)


def fuzz_region(data: bytes) -> None:
    path = place("box.json", data)
    read_or_refuse(lambda: read_region(path), path)


def fuzz_vnnlib(data: bytes) -> None:
    path = place("a.vnnlib.gz" if data[:2] == b"\x1f\x8b" else "a.vnnlib", data)
    read_or_refuse(lambda: read_vnnlib(path), path)


def fuzz_toml(data: bytes) -> None:
    _requirements(place("r.toml", data))


def fuzz_yaml(data: bytes) -> None:
    _requirements(place("r.yaml", data))


def _requirements(path: Path) -> None:
    place("property.vnnlib", seeds.VNNLIB.encode())
    place("box.json", seeds.BOX.encode())
    read_or_refuse(lambda: read_requirements(path), path)


# ---- certificates: nothing untrue is accepted ------------------------------------------------------------


def fuzz_certificate(data: bytes) -> None:
    """Read as it is, and once more as a forger would complete it: claim and digest that fit the other fields."""
    text = data.decode("utf-8", "replace")
    for version in (text, _completed(text)):
        if version is not None:
            _checked(version)


def fuzz_verdict(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for version in (text, _completed(text)):
        if version is not None:
            _status(version)
            read_or_refuse(lambda: check_file(version, seeds.network()), None)  # noqa: B023


def fuzz_checked_network(data: bytes) -> None:
    """The checker on another description of the network: it ends, and accepts no bound of another function."""
    path = place("net.npz", seeds.network_npz(data))
    network = seeds.questions()[0]
    fields = json.loads(network)
    try:
        graph, parameters = checker.load_network(path)
        fields["network_hash"] = checker.network_hash(graph, parameters)
    except Exception:  # main() meets the same file next, and there it must be an error line
        pass
    fields["digest"] = checker.digest(fields)
    assert _main(json.dumps(fields), path) in (0, 1, 2)


def _checked(text: str) -> None:
    status = _status(text)
    certificate = read_or_refuse(lambda: Certificate.from_json(text), None)
    result = read_or_refuse(lambda: check_file(text, seeds.network()), None)
    assert (status == 0) == bool(result), "the program and the library do not agree"
    if status == 0 and certificate is not None:
        fields = checker.parse_certificate(text)
        check_exactly(fields, *network_arrays(seeds.network()))  # raises where it refutes
        assert fields["upper_bound"] >= least(fields) * (1 - 1e-9), text


def _status(text: str) -> int:
    return _main(text, _network_file())


def _main(text: str, network: Path) -> int:
    """Run the checker's own program; its answer is one exit status and no traceback."""
    path = place("certificate.json", text.encode("utf-8", "surrogatepass"))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = checker.main([str(path), str(network)])
    lines = (out if status < 2 else err).getvalue().splitlines()
    assert lines, "an answer without words"
    assert lines[0].startswith(("valid: ", "invalid: ", "error: ")[status])
    if status == 2:
        assert len(lines) == 1
        assert path.name in lines[0] or network.name in lines[0], f"names no file: {lines[0]}"
        assert not any(sign in lines[0] for sign in ("MemoryError", "out of memory", "allocate")), lines[0]
    return status


@cache
def _network_file() -> Path:
    path = place("network.npz", b"")
    seeds.network().save_npz(path)
    return path


def _completed(text: str) -> str | None:
    """Return a certificate with the claim and the digest that its other fields need; None where that makes no sense."""
    try:
        data = json.loads(text)
        for one in [entry["certificate"] for entry in data.get("properties", [])]:
            if one:
                one["digest"] = checker.digest(one)
        if "claim" in data and "arithmetic" in data:
            output = data["output"]
            output = tuple(output) if isinstance(output, list) else output
            data["claim"] = checker.claim(data["norm"], output, data["region"], data["arithmetic"])
        data["digest"] = checker.digest(data)
        return json.dumps(data)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


def least(fields: dict[str, Any]) -> float:
    """Return a lower bound of the constant that a certificate of `seeds.network()` is about, by its Jacobians."""
    points = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    moving = torch.ones(2, dtype=torch.bool)
    region = fields["region"]
    if region is not None and "radius" in region:
        directions = points / points.norm(dim=1, keepdim=True)
        shares = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
        points = torch.tensor(region["center"], dtype=torch.float64) + region["radius"] * shares * directions
        moving[:] = region["radius"] > 0
    elif region is not None:
        lower, upper = (torch.tensor(region[end], dtype=torch.float64) for end in ("lower", "upper"))
        points, moving = lower + (upper - lower) * torch.sigmoid(points), upper > lower
    if not math.isfinite(float(points.abs().max())) or not bool(moving.any()):
        return 0.0
    points.requires_grad_()
    outputs = flat_function(seeds.network())(points).sum(0)
    rows = [torch.autograd.grad(one, points, retain_graph=True)[0].numpy() for one in outputs]
    chosen = [checker.select_rows(torch.tensor([list(row[k]) for row in rows]).numpy(), fields["output"])
              for k in range(len(points))]  # fmt: skip
    kept = torch.tensor([one.tolist() for one in chosen], dtype=torch.float64)[:, :, moving]
    if fields["norm"] == "l2":
        return float(torch.linalg.matrix_norm(kept, 2).max())
    return float(kept.abs().sum(2).max())


# ---- the table -------------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): value for name, value in sorted(globals().items()) if name.startswith("fuzz_")
}


@cache
def seeds_of(name: str) -> tuple[bytes, ...]:
    """Return valid inputs of a target."""
    index = {"weight_map": dict.fromkeys(seeds.state(), "a.safetensors")}
    adapter = {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"layer": 8}}
    made: dict[str, Callable[[], tuple[bytes, ...]]] = {
        "adapter": lambda: (json.dumps(adapter).encode(),),
        "autoencoder": lambda: tuple(
            bytes([number]) + [*files.values()][-1]
            for number, files in enumerate(seeds.autoencoders().values())
        ),
        "certificate": lambda: tuple(text.encode() for text in seeds.questions()),
        "checked_network": seeds.network_json,
        "huggingface": lambda: tuple(
            json.dumps(one).encode() for one in (seeds.GPT2, seeds.LLAMA, seeds.VIT)
        ),
        "index": lambda: (json.dumps(index).encode(),),
        "journal": seeds.journal,
        "network_json": seeds.network_json,
        "npy": seeds.npy,
        "npz": seeds.npz,
        "onnx": seeds.onnx,
        "pickle": seeds.pickles,
        "pickle_stream": seeds.pickle_streams,
        "pt2": seeds.pt2,
        "pt2_graph": seeds.pt2_graphs,
        "region": lambda: (seeds.BOX.encode(), b'{"center": [1, 2], "radius": 0.5}'),
        "safetensors": seeds.safetensors,
        "symmetry": seeds.symmetry_json,
        "toml": lambda: (seeds.TOML.encode(),),
        "verdict": seeds.verdicts,
        "vnnlib": seeds.vnnlib,
        "yaml": lambda: (seeds.YAML.encode(), yaml.safe_dump({"title": "t"}).encode()),
        "zoo": seeds.zoo,
        "zoo_index": lambda: (b'{"format": "weightspace.zoo", "version": 1, "shards": [2]}',),
    }
    return made[name]()


def run(name: str, data: bytes) -> None:
    """Hold the law of one target on one input, within limits of time and memory."""
    with limits():
        TARGETS[name](data[:LARGEST])
