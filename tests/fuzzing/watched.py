"""A process that notes what the library does with hostile files: python -m tests.fuzzing.watched FOLDER OUTPUT.

The audit hook sees every import, compilation, process and opened file of the interpreter. Python code of files that
were installed before is no finding: what counts is compiled from text, imported from elsewhere, or started.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ALLOWED = ("/dev/null", "/proc/", "/sys/")
STARTED = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pty.spawn",
    "ctypes.dlopen.evil",
)
CHANGED = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "shutil.move",
)


class Watch:
    """An audit hook; `events` is what it found while `on`."""

    def __init__(self, folder: Path, output: Path):
        self.folder, self.output, self.on, self.reader = folder.resolve(), output.resolve(), False, ""
        self.events: list[str] = []
        self.installed = [Path(entry or ".").resolve() for entry in sys.path] + [
            Path(sys.prefix),
            Path(sys.base_prefix),
        ]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what is asked here is no event
        try:
            found = self.judge(event, arguments)
            if found:
                self.events.append(f"{self.reader}: {event} {found}"[:300])
        finally:
            self.on = True

    def judge(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """Return what is wrong with an event, None if nothing is."""
        if event in STARTED:
            return repr(arguments[:2])
        if event in CHANGED:
            return self.outside(arguments[0]) or self.outside(
                arguments[1] if "re" in event and len(arguments) > 1 else None
            )
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if writes:
                return self.outside(path)
            return self.forbidden(path)
        if event == "exec":
            return self.foreign(getattr(arguments[0], "co_filename", ""))
        if event == "import":
            name = str(arguments[0])
            return name if name.split(".")[0] in ("attack", "dill", "evil", "_dill") else None
        return None

    def outside(self, path: Any) -> str | None:
        """The path, where it lies neither in the output folder nor among the system's own files."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.fsdecode(path)
        place = Path(text).resolve()
        cache = text.endswith((".pyc", "__pycache__")) or ".pyc." in text
        return None if cache or place.is_relative_to(self.output) or text.startswith(ALLOWED) else text

    def forbidden(self, path: Any) -> str | None:
        """The path, where it is one that the hostile files name."""
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return text if text == "/etc/passwd" or Path(text).name.startswith("outside.") else None

    def foreign(self, name: str) -> str | None:
        """The name of a code object's file, where that lies in the folder of hostile files."""
        return name if Path(name).is_absolute() and Path(name).resolve().is_relative_to(self.folder) else None


def main(folder: Path, output: Path) -> None:
    from typer.testing import CliRunner

    import interp
    from certify.assurance.requirements import read_requirements
    from certify.assurance.vnnlib import read_vnnlib
    from certify.region_files import read_region
    from tests.fuzzing import hostile
    from weightspace import inspect, read
    from weightspace.checkpoint import open_checkpoint, read_training_state
    from weightspace.cli import app
    from weightspace.errors import WeightspaceError
    from weightspace.zoo.storage import read_zoo

    with suppress(ImportError):  # which looks for fonts once, by a program of the system
        import matplotlib.font_manager  # noqa: F401
    files = hostile.write_files(folder)
    named = folder / "named.safetensors"
    hostile.write_named(named)
    watch = Watch(folder, output)
    sys.addaudithook(watch)
    readers = (
        read, open_checkpoint, read_training_state, inspect, interp.load_autoencoder, interp.find_adapters,
        interp.open_activations, read_requirements, read_region, read_vnnlib, read_zoo,
    )  # fmt: skip
    refused = 0
    for path in files:
        for reader in readers:
            watch.reader, watch.on = f"{reader.__name__}({path.name})", True
            try:
                value = reader(path)
                if hasattr(value, "state_dict"):
                    value.state_dict()
            except (WeightspaceError, OSError):
                refused += 1
            finally:
                watch.on = False
    runner = CliRunner()
    statuses = {}
    out = str(output / "results")
    Path(out).mkdir()
    mlp = [str(folder / "names.safetensors"), str(named)]
    commands = {
        "report": ["report", *mlp, "-o", f"{out}/report"],
        "report hostile": [
            "report",
            str(folder / "system.pt"),
            str(folder / "passwd.onnx"),
            "-o",
            f"{out}/other",
        ],
        "inspect": ["inspect", mlp[0], "--json"],
        "align": ["align", mlp[0], mlp[0], "-o", f"{out}/aligned.safetensors"],
        "merge": ["merge", mlp[0], mlp[0], "-o", f"{out}/merged.safetensors"],
        "graph": ["graph", mlp[0], "-o", f"{out}/graph.json"],
        "certify": ["certify", mlp[0], "-o", f"{out}/certificate.json"],
        "decompose": ["decompose", mlp[1], "-o", f"{out}/eigenvectors"],
        "verify": ["verify", str(folder / "code.toml"), "-o", f"{out}/evidence"],
        "verify outside": ["verify", str(folder / "leading.toml"), "-o", f"{out}/evidence"],
        "verify tags": ["verify", str(folder / "tags.yaml"), "-o", f"{out}/evidence"],
        "check": ["check", str(folder / "system.pt"), mlp[0]],
    }
    for name, arguments in commands.items():
        watch.reader, watch.on = name, True
        try:
            found = runner.invoke(app, arguments)
        finally:
            watch.on = False
        error = found.exception
        own = isinstance(error, WeightspaceError) or error is None or isinstance(error, SystemExit)
        statuses[name] = [
            found.exit_code,
            "" if error is None else f"{type(error).__name__}: {error}"[:300],
            own,
        ]
    sys.stdout.write(
        json.dumps({"events": watch.events, "refused": refused, "files": len(files), "statuses": statuses})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
