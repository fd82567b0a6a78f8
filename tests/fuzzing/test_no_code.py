"""No file runs code, and nothing is written or opened that was not asked for, whatever stands inside of the files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing.hostile import EVIL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What a process with an audit hook saw while readers and commands met hostile files."""
    folder = tmp_path_factory.mktemp("watched")
    hostile, output = folder / "above" / "hostile", folder / "output"
    hostile.mkdir(parents=True)
    output.mkdir()
    before = set(folder.rglob("*"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.fuzzing.watched", str(hostile), str(output)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    new = set(folder.rglob("*")) - before
    return json.loads(done.stdout.splitlines()[-1]), new, hostile, output


def test_no_code_of_a_file_is_run_and_nothing_outside_is_touched(watched):
    seen, *_ = watched
    assert seen["events"] == []
    assert seen["refused"] > 5 * seen["files"]  # the readers met the files


def test_nothing_lies_outside_of_the_output_folder(watched):
    _, new, hostile, output = watched
    strays = [path for path in new if not path.is_relative_to(hostile) and not path.is_relative_to(output)]
    assert strays == []
    assert not (hostile.parent / EVIL).exists()
    assert not [path for path in new if "evil" in path.name]
    assert not Path("/evil-absolute").exists()


def test_commands_end_as_they_should(watched):
    statuses = watched[0]["statuses"]
    for name, (_, text, ours) in statuses.items():
        assert ours, f"{name}: {text}"
    done = [name for name, (code, *_) in statuses.items() if code == 0]
    assert {"report", "inspect", "align", "merge", "graph", "certify", "decompose"} <= set(done)
    assert "is Python that would be run" in statuses["verify"][1]
    assert "outside of the folder" in statuses["verify outside"][1]
    assert "cannot read requirements" in statuses["verify tags"][1]


def test_the_hook_sees_what_it_watches_for(tmp_path):
    """The law above would pass with a hook that sees nothing."""
    text = (
        "import sys, os, subprocess; from pathlib import Path\n"
        "from tests.fuzzing.watched import Watch\n"
        f"folder, output = Path({str(tmp_path)!r}) / 'in', Path({str(tmp_path)!r}) / 'out'\n"
        "folder.mkdir(); output.mkdir(); (folder / 'attack.py').write_text('x = 1')\n"
        "watch = Watch(folder, output); sys.addaudithook(watch); watch.on = True\n"
        "os.system('true'); subprocess.run(['true']); open(folder / 'new', 'w').close()\n"
        "open(output / 'fine', 'w').close(); exec(compile('y = 1', str(folder / 'attack.py'), 'exec'))\n"
        "open('/etc/passwd').close(); os.mkdir(folder / 'made'); os.rename(output / 'fine', folder / 'moved')\n"
        "watch.on = False; print([event.split()[1] for event in watch.events])\n"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for event in ("os.system", "subprocess.Popen", "open", "exec", "os.mkdir", "os.rename"):
        assert repr(event) in done.stdout, event
    assert "'fine'" not in done.stdout
