"""Measure the claims again and write their table into benchmarks/README.md: python -m benchmarks [RESULT ...].

Without names every claim is measured that fits into `--minutes`; the others keep the row of their last measurement.
Needs WEIGHTSPACE_DATA for some, and `pip install -e ".[benchmark]" -c constraints.txt` for the competitors.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.claims import CLAIMS

SCRIPTS = Path(__file__).parent
PAGE = SCRIPTS / "README.md"
BEGIN, END = "<!-- claims: written by python -m benchmarks -->", "<!-- end of claims -->"
HEADERS = ["task", "competitor", "number", "command", "date", "hardware"]


def table() -> str:
    """Return the claims as a Markdown table."""
    rows = [HEADERS, ["---"] * len(HEADERS), *(claim.row() for claim in CLAIMS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_table() -> None:
    """Replace the table between its two marks in the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")


def chosen(names: list[str]) -> list[str]:
    """Return the commands to run, in the order of the table, each once.

    Raises:
        SystemExit: a name is no result, or one that only a GPU can measure and there is none.
    """
    known = {claim.result for claim in CLAIMS}
    if unknown := sorted(set(names) - known):
        sys.exit(f"no claim is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    gpu = torch.cuda.is_available()
    for claim in CLAIMS:
        if claim.gpu and claim.result in names and not gpu:
            sys.exit(f"{claim.result} needs a CUDA device and torch sees none; its rows stay")
    wanted = [
        claim
        for claim in CLAIMS
        if claim.gpu <= gpu and (claim.result in names if names else claim.minutes > 0 or claim.gpu)
    ]
    return list(dict.fromkeys(claim.command for claim in wanted))


def measure(command: str, seconds: float) -> str:
    """Run one script for at most so long and return what became of it.

    Its results stay as they were unless it ends well and still holds what every claim on it reads: without a
    competitor that is not installed, the numbers against it are those of the last time.
    """
    claims = [claim for claim in CLAIMS if claim.command == command]
    before = {claim.path: claim.path.read_text() if claim.path.exists() else None for claim in claims}
    script, *options = command.split()
    started = time.perf_counter()
    try:
        subprocess.run(
            [sys.executable, SCRIPTS / script, *options],
            # A script whose claims name a number of threads sets it itself, and measures others too.
            env={
                **({} if any(claim.threads for claim in claims) else {"OMP_NUM_THREADS": "1"}),
                **os.environ,
            },
            timeout=seconds,
            check=True,
            capture_output=True,
            text=True,
        )
        for claim in claims:
            claim.row()
        return f"measured in {time.perf_counter() - started:.0f} s"
    except subprocess.TimeoutExpired:
        reason = f"not finished within {seconds:.0f} s"
    except subprocess.CalledProcessError as error:
        reason = f"failed, {(error.stderr.strip() or 'without a message').splitlines()[-1]}"
    except ValueError as error:
        reason = str(error)
    for path, text in before.items():
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)
    return f"not measured: {reason}; its rows stay"


def main() -> int:
    """Measure, write the table, and return 1 if something asked for by name was not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("results", nargs="*", help="names of claims' results, as eigh; default: all that fit")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop starting and waiting after so many")
    parser.add_argument(
        "--table", action="store_true", help="write the table from the committed results only"
    )
    arguments = parser.parse_args()
    commands = [] if arguments.table else chosen(arguments.results)
    end = time.perf_counter() + 60 * arguments.minutes
    missed = 0
    for command in commands:
        left = end - time.perf_counter()
        outcome = measure(command, left) if left > 0 else "not measured: no time left; its rows stay"
        missed += outcome.startswith("not measured")
        print(f"{command}: {outcome}", flush=True)
        write_table()
    write_table()
    print(f"{PAGE}: {len(CLAIMS)} claims")
    return int(bool(missed and arguments.results))


if __name__ == "__main__":
    sys.exit(main())
