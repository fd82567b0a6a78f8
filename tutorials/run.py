"""Execute every tutorial as a notebook, top to bottom, in this environment: python tutorials/run.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main() -> int:
    """Run all tutorials in order; the first failing cell's error is printed and the exit code is 1."""
    import jupytext
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    folder = Path(__file__).parent
    for path in sorted(folder.glob("[0-9]*.py")):
        started = time.perf_counter()
        notebook = jupytext.read(path)
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        try:
            client.execute()
        except CellExecutionError as error:
            print(f"{path.name} failed\n{error}")
            return 1
        print(f"{path.name}: {len(notebook.cells)} cells in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
