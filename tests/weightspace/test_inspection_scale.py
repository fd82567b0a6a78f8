"""A 10 GB checkpoint is inspected in bounded memory."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GIGABYTE = 10**9
SHARDS = 10
SIDE = 15_811  # a square float32 matrix of 1 GB
LIMIT = 1.5 * GIGABYTE


def make_sparse_shard(path, tensors):
    """Write a safetensors file whose data are a hole of the file system: zeros that take no space."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + offset)
    return len(text) + 8


def anonymous_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the RssAnon of Linux's /proc")
def test_ten_gigabytes_in_bounded_memory(tmp_path):
    if shutil.disk_usage(tmp_path).free < GIGABYTE:
        pytest.skip("needs 1 GB of free space for sparse files")
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard}.safetensors"
        # 1 GB in one tensor, in different shapes: a square, a single row, a vector, a tall and a wide matrix.
        shape = [[SIDE, SIDE], [1, SIDE**2], [SIDE**2], [SIDE**2 // 64, 64], [64, SIDE**2 // 64]][shard % 5]
        tensors = {f"layer.{shard}.weight": shape, f"layer.{shard}.bias": [1000]}
        start = make_sparse_shard(tmp_path / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
        with open(tmp_path / file, "r+b") as stored:  # not only zeros: the first row, partly
            stored.seek(start)
            stored.write(struct.pack("<64f", *range(1, 65)) if shard >= 5 else b"")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) > 9.9 * GIGABYTE
    if sum(file.stat().st_blocks * 512 for file in files) > GIGABYTE // 10:
        pytest.skip("the file system lacks sparse files")

    code = "import sys; from weightspace.inspection import inspect; print(inspect(sys.argv[1]).to_json())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    peak = 0
    with (
        open(tmp_path / "out.json", "w+") as out,
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=out, env=environment) as process,
    ):
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.01)
        assert process.returncode == 0
        out.seek(0)
        result = json.load(out)

    assert 50e6 < peak < LIMIT
    assert result["totals"]["bytes"] > 9.9 * GIGABYTE
    rows = {row["name"]: row for row in result["tensors"]}
    expected = sum(i * i for i in range(1, 65)) ** 0.5
    for shard in range(SHARDS):
        row = rows[f"layer.{shard}.weight"]
        assert row["norm"] == pytest.approx(expected if shard >= 5 else 0.0)
        if len(row["shape"]) > 1:
            assert row["spectral_norm"] == pytest.approx(row["norm"], rel=1e-6)
            assert row["dead_units"] == row["shape"][0] - (shard >= 5)
