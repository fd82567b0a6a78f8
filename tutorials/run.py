"""Execute every tutorial as a notebook, top to bottom: python tutorials/run.py [--write] [NAME...].

Two run at a time, one thread each. Each `NN_name.py` (jupytext py:percent) has an executed twin `NN_name.ipynb`, which
the documentation shows; `--write` makes it, without it the twin's cells must be those of the script.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SECONDS = 300  # for one cell


def execute(path: Path, write: bool) -> str:
    """Run one tutorial and return a line about it.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: the twin is missing or holds other cells, and `write` is off.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    started = time.perf_counter()
    notebook = jupytext.read(path)
    twin = path.with_suffix(".ipynb")
    if not write and (not twin.exists() or _cells(nbformat.read(twin, 4)) != _cells(notebook)):
        raise ValueError(
            f"{twin.name} is not {path.name} as a notebook: run tutorials/run.py --write {path.stem}"
        )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random ones would change with every run
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    ).execute()
    if write:
        nbformat.write(notebook, twin)
    return f"{path.name}: {len(notebook.cells)} cells in {time.perf_counter() - started:.0f} s"


def _cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def main() -> int:
    """Run the tutorials named, or all; the errors of those that fail are printed and the exit code is 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="as 03 or 03_networks_that_read_networks; default all")
    parser.add_argument(
        "--write", action="store_true", help="write the executed notebooks beside the scripts"
    )
    arguments = parser.parse_args()
    paths = [
        path
        for path in sorted(FOLDER.glob("[0-9]*.py"))
        if not arguments.names or any(path.stem.startswith(name) for name in arguments.names)
    ]
    if not paths:
        parser.error(f"no tutorial is called {' or '.join(arguments.names) or 'NN_name.py'}")
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        runs = [(path, pool.submit(execute, path, arguments.write)) for path in paths]
        for path, run in runs:
            try:
                print(run.result(), flush=True)
            except Exception as error:
                print(f"{path.name} failed\n{error}", flush=True)
                failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
