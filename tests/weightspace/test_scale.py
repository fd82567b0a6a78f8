"""Many checkpoints, many workers, and kills: the results are those of one process that nobody disturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

import weightspace
from weightspace import family_placement, zoo
from weightspace.bundled import path
from weightspace.cli import main
from weightspace.common_order import compare
from weightspace.errors import CheckpointError, ExecutorError, OutputError
from weightspace.folder_inspection import find_checkpoints, identify, inspect_many
from weightspace.heritage import lineage
from weightspace.inspection import Inspection, inspect
from weightspace.journal import Journal
from weightspace.mapping import map_over, process_pool
from weightspace.permutation import permute, random_permutations

ROOT = Path(__file__).parents[2]
# What the process does before it is killed in the middle of a line.
KILLED = """
import os, signal, sys
from weightspace.common_order import compare
from weightspace.folder_inspection import find_checkpoints, inspect_many
from weightspace.journal import Journal

task, folder, journal, lines = sys.argv[1:]
write, written = Journal._write, []

def tear(self, line):
    written.append(line)
    if len(written) > int(lines):
        write(self, line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, line)

Journal._write = tear
{"inspect": inspect_many, "compare": compare}[task](find_checkpoints([folder]), journal=journal)
"""


def draw(count, family=3, widths=(6, 12, 4), dtype=torch.float32, seed=0):
    """Networks in families, every second one with its neurons in another order."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2])]
    template = weightspace.trace(nn.Sequential(*layers).to(dtype), (torch.zeros(2, widths[0], dtype=dtype),))
    spec, found, root = weightspace.symmetry(template), [], {}
    for number in range(count):
        noise = {
            name: torch.randn(tensor.shape, generator=generator, dtype=dtype)
            for name, tensor in template.parameters.items()
        }
        root = noise if number % family == 0 else root
        network = template.replace_parameters({name: root[name] + 0.05 * noise[name] for name in noise})
        order = random_permutations(spec, generator)
        found.append(permute(network, spec, order) if number % 2 else network)
    return found


def write(folder, networks):
    folder.mkdir(parents=True, exist_ok=True)
    for number, network in enumerate(networks):
        network.save(folder / f"{number:03}.safetensors")
    return find_checkpoints([folder])


def same(a, b):
    assert np.array_equal(a.distances, b.distances)
    assert np.array_equal(a.norms, b.norms)
    assert (a.families, a.hashes) == (b.families, b.hashes)
    for one, other in zip(a.networks, b.networks):
        assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in one.parameters.items())
    return True


@pytest.fixture(scope="module")
def pool():
    with process_pool(2) as executor:
        yield executor


class Here(Executor):
    """Runs everything at once in this process; what is submitted is pickled all the same."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


# ---- one result, whoever computes it ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_processes_give_the_same_bits(pool, tmp_path, dtype):
    paths = write(tmp_path, draw(9, dtype=dtype))
    alone, together = (inspect_many(paths, singular_values=True, executor=e) for e in (None, pool))
    assert together == alone == [inspect(file) for file in paths]
    found = compare(paths, executor=pool)
    assert same(found, compare(paths))
    assert found.families == tuple(3 * (n // 3) for n in range(9))
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(5, 6, 6, generator=generator)
    one, two = (
        zoo.fit_inrs(
            images, hidden=(8,), steps=5, initializations=2, batch=3, dtype=dtype, executor=e, progress=False
        )
        for e in (None, pool)
    )
    assert all(torch.equal(tensor, two.parameters[name]) for name, tensor in one.parameters.items())
    assert torch.equal(one.measures["psnr"], two.measures["psnr"])


@pytest.mark.parametrize("executor", [Here(), ThreadPoolExecutor(2)], ids=["pickled", "threads"])
def test_blocks_of_pairs_are_counted_the_same(executor, monkeypatch):
    monkeypatch.setattr("weightspace.untouched_weights.BLOCK", 2)
    networks = draw(5, family=5)
    comparison = compare(networks, executor=executor)
    found = lineage(comparison, executor=executor)
    monkeypatch.undo()
    assert (found.trees, found.edges) == (lineage(compare(networks)).trees, lineage(comparison).edges)
    executor.shutdown()


def test_results_keep_the_order_of_the_items_and_one_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(3) as executor:
            for chosen in (None, executor):
                found = map_over(lambda n: (n, torch.get_num_threads()), range(600), executor=chosen)
                assert found == [(n, 1) for n in range(600)]
                assert torch.get_num_threads() == 2
        assert map_over(abs, range(600), executor=Here()) == list(range(600))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_only_families_that_resemble_a_network_are_tried(monkeypatch):
    networks = draw(20, family=2)
    found = compare(networks)
    assert found.families == tuple(2 * (n // 2) for n in range(20))
    tried = []
    fit = family_placement.fit_pair
    monkeypatch.setattr(
        family_placement, "fit_pair", lambda pair, **how: tried.append(pair) or fit(pair, **how)
    )
    compare(networks)
    few = len(tried)
    monkeypatch.setattr(family_placement, "CANDIDATES", 1000)
    assert compare(networks).families == found.families
    assert few < len(tried) - few


# ---- kills ------------------------------------------------------------------------------------------------


def test_a_killed_process_is_resumed(tmp_path):
    paths = write(tmp_path / "checkpoints", draw(60, family=10))
    expected = {"inspect": inspect_many(paths), "compare": compare(paths)}
    for task, lines in (("inspect", 25), ("compare", 75)):
        journal = tmp_path / f"{task}.jsonl"
        command = [
            sys.executable,
            "-c",
            KILLED,
            task,
            str(tmp_path / "checkpoints"),
            str(journal),
            str(lines),
        ]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == -signal.SIGKILL
        kept = journal.read_bytes()
        assert kept.count(b"\n") == lines
        assert not kept.endswith(b"\n")
        if task == "inspect":
            assert inspect_many(paths, journal=journal) == expected[task]
        else:
            assert same(compare(paths, journal=journal), expected[task])
        whole = journal.read_bytes()
        assert whole.startswith(kept[: kept.rindex(b"\n") + 1])
        keys = [json.loads(line)[0] for line in whole.splitlines()[1:]]
        assert len(set(keys)) == len(keys) >= 60


def test_a_journal_cut_anywhere_gives_the_same(tmp_path):
    paths = write(tmp_path / "checkpoints", draw(4))
    journal = tmp_path / "journal"
    expected = inspect_many(paths, journal=journal)
    whole = journal.read_bytes()
    for length in range(0, len(whole), 37):
        journal.write_bytes(whole[:length])
        assert inspect_many(paths, journal=journal) == expected
        assert journal.read_bytes() == whole


def test_a_checkpoint_that_changed_is_inspected_again(tmp_path):
    first, second = draw(2)
    (file,) = write(tmp_path / "one", [first])
    journal = tmp_path / "journal"
    before = inspect_many([file], journal=journal)
    second.save(tmp_path / "one" / "000.safetensors")
    assert inspect_many([file], journal=journal) == [inspect_many([file])[0]] != before


@pytest.mark.filterwarnings("ignore:Port .* is already in use:UserWarning:distributed")
def test_dask_loses_a_worker_and_nothing_else(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    paths = write(tmp_path / "checkpoints", draw(40))
    expected = inspect_many(paths)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        add, added = Journal.add, []

        def kill_in_the_middle(self, key, result):
            add(self, key, result)
            added.append(key)
            if len(added) == 10:
                os.kill(victim, signal.SIGKILL)

        monkeypatch.setattr(Journal, "add", kill_in_the_middle)
        found = inspect_many(paths, executor=client.get_executor(), journal=tmp_path / "journal")
        assert victim not in client.run(os.getpid).values()
        assert same(compare(paths[:6], executor=client.get_executor()), compare(paths[:6]))
    assert found == expected
    assert len(added) == len(set(added)) == 40


def test_lost_workers_are_told_with_what_is_kept(tmp_path):
    journal = Journal(tmp_path / "journal", "exit", {})
    with journal, process_pool(1) as executor:
        journal.add("0", None)
        with pytest.raises(ExecutorError, match=r"1 of 2 items were done; they are kept in .*journal"):
            map_over(os._exit, [0, 1], executor=executor, journal=journal)
        with pytest.raises(ExecutorError, match="give a journal"):
            map_over(os._exit, [1], executor=executor)


def test_every_thread_keeps_its_count_after_an_error():
    began, go_on, threads = Event(), Event(), torch.get_num_threads()

    def work(item):
        if item:
            began.wait()
            raise ValueError("enough")
        began.set()
        go_on.wait()

    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(2) as executor:
            with pytest.raises(ValueError, match="enough"):
                map_over(work, [0, 1], executor=executor)
            assert torch.get_num_threads() == 2  # while the other item is still at work
            go_on.set()
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(torch.get_num_threads).result() == 2
    finally:
        go_on.set()
        torch.set_num_threads(threads)


def test_what_has_not_begun_is_cancelled():
    begun = []

    def interrupt(item):
        begun.append(item)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyboardInterrupt):
        map_over(interrupt, range(200), executor=executor)
    assert len(begun) < 200


# ---- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [None, Here()], ids=["alone", "executor"])
def test_errors_name_the_item(tmp_path, executor):
    paths = write(tmp_path, draw(2))
    paths[1].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"001\.safetensors"):
        inspect_many(paths, executor=executor)
    kept = inspect_many(paths, executor=executor, keep_errors=True)
    assert isinstance(kept[0], Inspection)
    assert "empty" in str(kept[1])
    with pytest.raises(TypeError) as caught:
        map_over(len, [3], executor=executor, describe=lambda item: f"item {item}")
    assert caught.value.__notes__ == ["while working on item 3"]


def test_journals_of_others_are_refused(tmp_path):
    write(tmp_path / "one", draw(1))
    file, journal = tmp_path / "one" / "000.safetensors", tmp_path / "journal"
    inspect_many([file], journal=journal)
    kept = journal.read_bytes()
    with pytest.raises(CheckpointError, match="belongs to another call: its arguments is"):
        inspect_many([file], journal=journal, singular_values=True)
    with pytest.raises(CheckpointError, match="its operation is"):
        compare([file, file], journal=journal)
    weights = file.read_bytes()
    with pytest.raises(CheckpointError, match="not a journal"):
        inspect_many([file], journal=file)
    assert (journal.read_bytes(), file.read_bytes()) == (kept, weights)
    journal.write_bytes(kept.replace(b"\n", b"\n[1, \n", 1))
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        inspect_many([file], journal=journal)
    with pytest.raises(OutputError, match="cannot write the journal"):
        inspect_many([file], journal=tmp_path)


def test_a_process_opens_a_journal_once(tmp_path):
    with Journal(tmp_path / "journal", "a", {}) as journal:
        (tmp_path / "link").symlink_to(tmp_path / "journal")
        with pytest.raises(CheckpointError, match="link: this process is writing this journal already"):
            Journal(tmp_path / "link", "a", {})
        journal.add("key", 1)
    with Journal(tmp_path / "journal", "a", {}) as journal:
        assert journal.results == {"key": 1}
    with pytest.raises(CheckpointError, match="another call"):
        Journal(tmp_path / "journal", "b", {})
    Journal(tmp_path / "journal", "a", {}).close()


# ---- folders and the command line -------------------------------------------------------------------------


def test_what_counts_as_one_checkpoint(tmp_path):
    loose = write(tmp_path / "runs" / "a", draw(2))
    hub, shards = tmp_path / "runs" / "hub", tmp_path / "runs" / "sharded"
    for folder in (hub, shards):
        folder.mkdir()
        shutil.copy(loose[0], folder / "model-1.safetensors")
    (hub / "config.json").write_text("{}")
    names = dict.fromkeys(draw(1)[0].parameters, "model-1.safetensors")
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    (tmp_path / "runs" / "notes.txt").write_text("none")
    found = find_checkpoints([tmp_path / "runs"])
    assert found == [*loose, hub, index]
    assert len(inspect_many(found)) == 4
    assert find_checkpoints([hub, loose[1], loose[1]]) == [hub, loose[1]]
    before = identify(str(index))
    os.utime(shards / "model-1.safetensors", ns=(1, 1))
    assert identify(str(index)) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoints([tmp_path / "empty"])


def test_inspections_survive_json():
    constant = nn.Linear(12, 12)
    nn.init.ones_(constant.weight)  # an infinite condition number
    for source in (path("digits_mlp_a"), constant):
        found = inspect(source)
        assert Inspection.from_json(found.to_json(singular_values=True)) == found
    with pytest.raises(CheckpointError, match="not the JSON of an inspection"):
        Inspection.from_json('{"tensors": 3}')


def test_commands_on_a_folder(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["weightspace", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    paths = write(tmp_path / "runs", draw(6))
    journal = tmp_path / "similarity.jsonl"
    code, out, _ = run("inspect", tmp_path / "runs")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines() if "parameters" in line] == list(map(str, paths))
    code, out, _ = run("similarity", tmp_path / "runs", "--journal", journal, "--json")
    assert json.loads(out)["families"] == [0, 0, 0, 3, 3, 3]
    kept = journal.read_bytes()
    assert run("similarity", tmp_path / "runs", "--journal", journal, "--json") == (0, out, "")
    assert journal.read_bytes() == kept
    paths[2].write_bytes(b"")
    code, out, errors = run("inspect", *paths, "--json")
    assert code == 2
    data = json.loads(out)
    assert (len(data["checkpoints"]), list(data["failed"])) == (5, [str(paths[2])])
    assert errors.count("\n") == 1
    assert "002.safetensors: the file is empty" in errors
