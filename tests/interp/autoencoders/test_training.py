"""Laws of training: sources agree, a killed run goes on to the same bits, processes share, faults lose nothing."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp import SparseAutoencoder, TopK
from interp.autoencoders.sources import Position, TensorSource, shuffled_batches
from weightspace.checkpoint import write_safetensors
from weightspace.errors import ArchitectureError, CheckpointError, NonFiniteError, OutputError, ShapeError

D, M = 8, 24
ROOT = Path(__file__).parents[3]


def data(n=600, dtype=torch.float32, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fresh(dtype=torch.float32, **options):
    return SparseAutoencoder(D, M, TopK(3), scaling="standard", dtype=dtype, **options)


def train(autoencoder, source, **options):
    return interp.train(autoencoder, source, **{"steps": 20, "batch_size": 64, "progress": False, **options})


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ---- what is read ----------------------------------------------------------------------------------------


def test_every_pass_takes_every_sample_once():
    x = torch.arange(96.0)[:, None].expand(96, 2)
    batches = shuffled_batches(TensorSource(x), 16, 5, Position())
    passes = [torch.cat([next(batches)[0][0][:, 0] for _ in range(6)]) for _ in range(2)]
    for one in passes:
        assert torch.equal(one.sort().values, torch.arange(96.0))
    assert not torch.equal(*passes)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "pt"])
def test_files_are_read_in_pieces_and_whole(tmp_path, kind):
    x = torch.arange(1000.0)[:, None] * torch.ones(1, 4)
    for index, part in enumerate(x.split(230)):
        path = tmp_path / f"shard-{index}.{kind}"
        if kind == "npy":
            np.save(path, part.numpy())
        elif kind == "pt":
            torch.save({"activations": part}, path)
        else:
            write_safetensors(path, {"activations": part})
    source = interp.open_activations(tmp_path, piece_bytes=200 * 16)
    assert len(source) == 1000
    pieces = [load()[0] for load in source.pieces(0, 1)]
    assert max(map(len, pieces)) <= 200
    assert len(pieces) >= 5
    assert torch.equal(torch.cat(pieces)[:, 0].sort().values, x[:, 0])
    assert pieces[0][:, 0].diff().ne(1).sum() > 5  # from many places
    again = [load()[0] for load in source.pieces(0, 1)]
    assert all(map(torch.equal, pieces, again))
    assert not torch.equal(next(source.pieces(1, 1))()[0], pieces[0])
    assert torch.equal(torch.cat([rows[0] for rows in source.in_order(77)]), x)


def test_many_small_files_fill_a_piece(tmp_path):
    for index, part in enumerate(data(600).split(10)):
        np.save(tmp_path / f"{index:03d}.npy", part.numpy())
    source = interp.open_activations(tmp_path, piece_bytes=500 * 4 * D)
    assert [len(load()[0]) for load in source.pieces(0, 1)] == [470, 130]
    assert train(fresh(), source, batch_size=256).samples == 20 * 256
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    held = interp.open_activations(tmp_path)
    next(held.in_order(5))
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after - before < 10  # files are not kept open


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, D)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.Dropout(), nn.ReLU()) for _ in range(3))
        self.runs = 0

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            self.runs += 1
            h = h + block(h)
        return h


def test_hooks_record_outputs_and_inputs():
    network = Network().train()
    loader = [(torch.randn(7, 3, 5), torch.zeros(7)) for _ in range(4)]
    source = interp.activations(network, "blocks.1", loader, target="blocks.2:input", batches_per_piece=2)
    network.eval()
    h = network.embed(loader[0][0])
    h = h + network.blocks[0](h)
    network.train()
    rows = next(source.in_order(1000))
    expected = network.eval().blocks[1](h)
    network.train()
    assert torch.allclose(rows[0], expected.flatten(0, 1))
    assert torch.allclose(rows[1], (h + expected).flatten(0, 1))
    assert source.sample_shape == (D,)
    assert len(list(source.pieces(0, 0))) == 2
    assert sum(len(rows[0]) for rows in source.in_order(10)) == 4 * 21
    assert network.blocks[0][1].training  # given back as it was
    assert not network.blocks[0]._forward_hooks
    network.runs = 0
    list(interp.activations(network, "blocks.0", loader).in_order(1000))
    assert network.runs == 5  # one block a batch: the rest need not run (one batch twice, to see its shape)


def test_hooks_join_sites_masks_and_functions():
    network = Network()
    loader = [torch.randn(6, 4, 5) for _ in range(2)]
    both = interp.activations(network, ["blocks.0", "blocks.2"], loader)
    assert both.sample_shape == (2 * D,)
    first = interp.activations(network, "blocks.0", loader, mask=lambda batch: batch[..., 0] > 0)
    kept = sum(int((batch[..., 0] > 0).sum()) for batch in loader)
    assert sum(len(rows[0]) for rows in first.in_order(99)) == kept
    assert interp.activations(network, "blocks.0", loader, flatten=False).sample_shape == (4, D)


def test_several_networks_stand_side_by_side():
    networks, batch = {"a": Network(), "b": Network()}, torch.randn(30, 5)
    source = interp.activations(networks, ["a.blocks.1", "b.blocks.1"], [batch])
    apart = [next(interp.activations(n, "blocks.1", [batch]).in_order(99))[0] for n in networks.values()]
    assert torch.equal(next(source.in_order(99))[0], torch.cat(apart, 1))
    crosscoder = SparseAutoencoder(2 * D, M, interp.ReLU(0.1), sites=(D, D), normalize_decoder=False)
    assert train(crosscoder, source, batch_size=30).autoencoder.site_norms().shape == (M, 2)


def test_networks_that_write_into_their_activations_are_recorded_as_they_were():
    network = nn.Sequential(nn.Linear(5, D), nn.ReLU(inplace=True), nn.Linear(D, D))
    batch = torch.randn(20, 5)
    source = interp.activations(network, "0", [batch], target="2")
    assert torch.equal(next(source.in_order(99))[0], network[0](batch).detach())

    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x):
            x += self.inner(x)
            return x

    before = batch.clone()
    (recorded, after) = next(
        interp.activations(Overwriting(), "inner:input", [batch], target="").in_order(99)
    )
    assert torch.equal(recorded, before)
    assert torch.equal(batch, before)
    assert not torch.equal(after, before)


def test_a_network_that_catches_errors_is_stopped_all_the_same():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, D)

        def forward(self, x):
            try:
                return self.inner(x)
            except Exception:
                return x

    assert next(interp.activations(Careful(), "inner", [torch.zeros(3, 5)]).in_order(9))[0].shape == (3, D)


@pytest.mark.parametrize(
    ("name", "loader", "error", "text"),
    [
        ("blocks.7", [torch.zeros(2, 5)], ArchitectureError, "no submodule is named 'blocks.7'"),
        ("embed", iter([torch.zeros(2, 5)]), ShapeError, "iterator"),
        ("embed", [], ShapeError, "no batches"),
        ("embed", [torch.full((2, 5), torch.nan)], NonFiniteError, "'embed' on batch 0"),
    ],
)
def test_what_cannot_be_recorded_is_refused(name, loader, error, text):
    with pytest.raises(error, match=text):
        interp.activations(Network(), name, loader)


def test_written_activations_train_as_recorded_ones_do(tmp_path):
    network, loader = Network(), [torch.randn(50, 5) for _ in range(8)]
    source = interp.activations(network, "blocks.0", loader, target="blocks.1")
    written = interp.write_activations(source, tmp_path / "out", rows_per_shard=150)
    assert len(written) == 3
    assert len(interp.open_activations(tmp_path / "out")) == 400  # not the targets too
    stored = interp.open_activations(tmp_path / "out", targets=tmp_path / "out" / "targets")
    for ours, theirs in zip(
        zip(*stored.in_order(10**6), strict=True), zip(*source.in_order(10**6), strict=True), strict=True
    ):
        assert torch.equal(torch.cat(ours), torch.cat(theirs))
    run = train(SparseAutoencoder(D, M, TopK(3), output_features=D), stored)
    assert run.history[0][-1]["fvu"] < run.history[0][0]["fvu"]
    with pytest.raises(OutputError, match="not empty"):
        interp.write_activations(source, tmp_path / "out")


# ---- what is trained -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_together_are_each_alone(dtype):
    x = data()
    together = [fresh(dtype), fresh(dtype, matryoshka=(6, 12))]
    run = train(together, x)
    for model, options in zip(together, ({}, {"matryoshka": (6, 12)})):
        alone = train(fresh(dtype, **options), x).autoencoder
        assert same(alone, model)
    assert len(run.history) == 2
    assert run.samples == 20 * 64
    assert not run.autoencoder.training


def test_the_result_depends_on_the_generator_only():
    x = data()
    runs = [
        train(fresh(), x, generator=torch.Generator().manual_seed(seed)).autoencoder for seed in (1, 1, 2)
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_activations_with_a_graph_are_plain_numbers():
    network = nn.Linear(D, D)
    run = train(fresh(), network(data()))
    assert run.samples
    assert network.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_train(dtype):
    for rule in (TopK(3), interp.BatchTopK(3)):
        model = SparseAutoencoder(D, M, rule, dtype=dtype, dead=interp.AuxiliaryLoss(silent=64))
        run = train(model, data(), learning_rate=1e-2, steps=60)
        assert run.history[0][-1]["fvu"] < run.history[0][0]["fvu"]


def test_batches_of_one_sample_have_no_variance():
    run = train(
        fresh(dead=interp.AuxiliaryLoss(silent=1)), data(), batch_size=1, steps=30, learning_rate=1e-3
    )
    assert all(np.isnan(entry["fvu"]) and entry["loss"] < 100 for entry in run.history[0])


def test_the_history_has_as_many_entries_as_asked():
    assert len(train(fresh(), data(), steps=99, entries=50).history[0]) <= 50


def test_history_is_what_it_says():
    x = data()
    run = train(fresh(), x, steps=30, entries=3)
    assert [entry["step"] for entry in run.history[0]] == [10, 20, 30]
    last = run.history[0][-1]
    assert last["l0"] == pytest.approx(3)
    assert 0 < last["fvu"] < run.history[0][0]["fvu"] < 1.2
    error = interp.Comparison.between(run.autoencoder.encode(x), x, run.autoencoder(x)).error.sum()
    assert last["fvu"] == pytest.approx(float(error / (x - x.mean(0)).square().sum()), rel=0.2)


@pytest.mark.parametrize("kind", ["tensor", "files", "hooks"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, kind, monkeypatch):
    x = data()
    if kind == "files":
        for index, part in enumerate(x.split(130)):
            np.save(tmp_path / f"{index}.npy", part.numpy())
        source = interp.open_activations(sorted(tmp_path.glob("*.npy")), piece_bytes=200 * 32)
    elif kind == "hooks":
        source = interp.activations(nn.Sequential(nn.Identity()), "0", list(x.split(60)), batches_per_piece=3)
    else:
        source = x
    options = {"steps": 40, "batch_size": 32, "seconds_between_checkpoints": 0, "entries": 7}
    whole = train([fresh(), fresh(tied=True)], source, **options)

    class Stopped(Exception):
        pass

    path = tmp_path / "state"
    for stop in (9, 23):
        models = [fresh(), fresh(tied=True)]
        plain, taken = SparseAutoencoder.after_step, []

        def stopping(self, optimizer, plain=plain, taken=taken, stop=stop):
            taken.append(1)
            if len(taken) == stop:
                raise Stopped
            plain(self, optimizer)

        monkeypatch.setattr(SparseAutoencoder, "after_step", stopping)
        with pytest.raises(Stopped):
            train(models, source, checkpoint=path, **options)
        monkeypatch.undo()
        assert path.exists()
    models = [fresh(), fresh(tied=True)]
    continued = train(models, source, checkpoint=path, **options)
    for ours, theirs in zip(continued.autoencoders, whole.autoencoders):
        assert same(ours, theirs)
    assert continued.history == whole.history
    assert not path.exists()


def test_an_interruption_ends_the_step_and_is_written(tmp_path, monkeypatch):
    path, plain = tmp_path / "state", SparseAutoencoder.after_step
    taken = []

    def interrupting(self, optimizer):
        taken.append(1)
        if len(taken) == 7:
            signal.raise_signal(signal.SIGINT)
        plain(self, optimizer)

    monkeypatch.setattr(SparseAutoencoder, "after_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), data(), checkpoint=path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True)["state"]["step"] == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    continued = train(fresh(), data(), checkpoint=path, keep_checkpoint=True)
    assert same(continued.autoencoder, train(fresh(), data()).autoencoder)
    again = train(fresh(), data(), checkpoint=path, keep_checkpoint=True)  # complete: the result, at once
    assert same(again.autoencoder, continued.autoencoder)
    assert again.history == continued.history


KILLED = """
import sys, time, torch, interp
x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
a = interp.SparseAutoencoder(8, 24, interp.TopK(3), scaling="standard")
plain = type(a).after_step
def slow(self, optimizer):
    plain(self, optimizer)
    time.sleep(0.01)
type(a).after_step = slow
interp.train(a, x, steps=100, batch_size=64, progress=False, checkpoint=sys.argv[1], seconds_between_checkpoints=0)
torch.save(a.state_dict(), sys.argv[2])
"""


def test_kill_nine_loses_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    state, result = tmp_path / "state", tmp_path / "weights.pt"
    command = [sys.executable, "-c", KILLED, str(state), str(result)]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not result.exists()
    subprocess.run(command, env=environment, check=True, timeout=120)
    expected = fresh()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(expected, data(), steps=100)
    finally:
        torch.set_num_threads(threads)
    for name, value in torch.load(result, weights_only=True).items():
        assert torch.equal(value, expected.state_dict()[name]), name


PROCESSES = """
import sys, torch, torch.distributed as dist, interp
dist.init_process_group("gloo")
x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
a = interp.SparseAutoencoder(8, 24, interp.TopK(3), scaling="standard", dtype=torch.float64)
with torch.no_grad():
    a.encoder_bias[5] = -1e6
batch = interp.SparseAutoencoder(
    8, 24, interp.BatchTopK(3), dead=interp.Resampling(every=5, silent=64), dtype=torch.float64
)
run = interp.train([a, batch], x, steps=20, batch_size=64, progress=False)
for model in (a, batch):
    everyone = [None, None]
    dist.all_gather_object(everyone, model.state_dict())
    assert all(torch.equal(everyone[0][name], everyone[1][name]) for name in everyone[0])
if dist.get_rank() == 0:
    torch.save(a.state_dict(), sys.argv[1])
x[3] = 1e200  # in the part of one process: both stop, before their weights have taken it in
b = interp.SparseAutoencoder(8, 24, interp.TopK(3), dtype=torch.float64)
try:
    interp.train(b, x, steps=20, batch_size=64, progress=False, prepare=False)
    raise SystemExit("the loss was finite")
except interp.autoencoders.training.NonFiniteError:
    assert all(bool(p.isfinite().all()) for p in b.parameters())
dist.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    script, result = tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        script,
        result,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = fresh(torch.float64)
    with torch.no_grad():
        expected.encoder_bias[5] = -1e6
    x = torch.randn(600, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    train(expected, x, steps=20)
    assert expected.silent_for[5] == 20 * 64
    for name, value in torch.load(result, weights_only=True).items():
        assert torch.allclose(value, expected.state_dict()[name], rtol=1e-9, atol=1e-11), name


# ---- faults ----------------------------------------------------------------------------------------------


def test_broken_files_are_named(tmp_path):
    np.save(tmp_path / "a.npy", data().numpy())
    np.save(tmp_path / "b.npy", data().numpy())
    whole = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"b\.npy"):
        interp.open_activations(tmp_path)
    np.save(tmp_path / "b.npy", data()[:, :3].numpy())
    with pytest.raises(CheckpointError, match=r"b\.npy: its samples are \(3,\)"):
        interp.open_activations(tmp_path)
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"b\.npy: cannot be read as plain numbers"):
        interp.open_activations(tmp_path)
    (tmp_path / "b.npy").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match=r"b\.npy: this is no \.npy file"):
        interp.open_activations(tmp_path)
    np.save(tmp_path / "b.npy", np.zeros((0, D), np.float32))
    with pytest.raises(CheckpointError, match=r"b\.npy"):
        interp.open_activations(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no"):
        interp.open_activations(tmp_path / "empty")


def test_activations_that_are_not_numbers_are_named(tmp_path):
    x = data()
    x[417, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 417"):
        train(fresh(), x)
    np.save(tmp_path / "a.npy", x.numpy())
    with pytest.raises(NonFiniteError, match=r"a\.npy.*sample 417"):
        train(fresh(), interp.open_activations(tmp_path / "a.npy"))


def test_a_loss_that_explodes_stops_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "state"
    options = {"checkpoint": path, "seconds_between_checkpoints": 0, "steps": 200}
    with pytest.raises(NonFiniteError, match="lower learning_rate"):
        train(fresh(normalize_decoder=False), data(), learning_rate=1e30, **options)
    kept = torch.load(path, weights_only=True)
    assert all(bool(value.isfinite().all()) for value in kept["models"][0].values())


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "state"
    fault = RuntimeError("stop")

    class Failing(TensorSource):
        def pieces(self, epoch, seed):
            if epoch:
                raise fault
            return super().pieces(epoch, seed)

    def start(model, **options):
        train(model, Failing(data()), checkpoint=path, seconds_between_checkpoints=0, steps=50, **options)

    with pytest.raises(RuntimeError, match="stop"):
        start(fresh())
    before = path.read_bytes()
    for model, options in [
        (SparseAutoencoder(D, 30, TopK(3), scaling="standard"), {}),
        (fresh(), {"batch_size": 32}),
        (fresh(), {"learning_rate": 0.1}),
        (fresh(torch.float64), {}),
    ]:
        with pytest.raises(CheckpointError, match="cannot be continued from"):
            start(model, **options)
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(CheckpointError):
        start(fresh())


FULL = """
import resource, signal, sys, torch, interp
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
options = {"steps": 20, "batch_size": 64, "progress": False, "checkpoint": sys.argv[1]}
class Stop(Exception): pass
a, plain, taken = interp.SparseAutoencoder(8, 24, interp.TopK(3)), interp.SparseAutoencoder.after_step, []
def after_step(self, optimizer):
    taken.append(1)
    if len(taken) == 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    plain(self, optimizer)
interp.SparseAutoencoder.after_step = after_step
try:
    interp.train(a, x, seconds_between_checkpoints=0, **options)
except Exception as error:
    print(type(error).__name__, str(error).count(chr(10)))
"""


def test_a_disk_that_is_really_full_is_one_clear_error(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "state")], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["OutputError", "0"], done.stdout + done.stderr
    assert torch.load(tmp_path / "state", weights_only=True)["state"]["step"] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state"
    plain, calls = torch.save, []

    def full(content, target):
        calls.append(1)
        if len(calls) == 3:
            plain({}, target)
            raise OSError(28, "No space left on device")
        plain(content, target)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        train(fresh(), data(), checkpoint=path, seconds_between_checkpoints=0)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True)["state"]["step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    continued, whole = train(fresh(), data(), checkpoint=path), train(fresh(), data())
    assert same(continued.autoencoder, whole.autoencoder)


@pytest.mark.parametrize(
    ("source", "options", "error", "text"),
    [
        (data(), {"batch_size": 601}, ShapeError, "no 601 samples"),
        (data(), {"steps": 0}, ShapeError, "steps >= 1"),
        (torch.zeros(5, D + 1), {}, ShapeError, "takes floating-point samples"),
        (torch.zeros(0, D), {}, ShapeError, "n >= 1"),
        (data(), {"targets": data(), "steps": 1}, ShapeError, "only a transcoder"),
        ([1, 2], {}, ShapeError, "open_activations"),
        (data(), {"learning_rate": -1.0}, ShapeError, "learning_rate is -1.0"),
        (data(), {"decay": -1.0}, ShapeError, "decay is -1.0"),
        (data(), {"checkpoint": "/nowhere/state"}, OutputError, "does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused(source, options, error, text):
    model = fresh()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=text):
        train(model, source, **options)
    if "batch_size" not in options:
        assert same(model, before)
