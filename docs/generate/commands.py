"""The page of the command line: what `--help` of every command prints."""

from __future__ import annotations

INTRODUCTION = """\
# The command line

One program, `weightspace`, also `python -m weightspace.cli`. Every command prints one JSON object with `--json`; errors
are one line on standard error and exit code 2. The texts below are what `--help` prints in this version.

"""


def render() -> str:
    """Return the page as Markdown."""
    from typer.testing import CliRunner

    from weightspace.cli import COMMANDS, app

    sections = [INTRODUCTION, "## weightspace\n", _help(CliRunner(), app, [])]
    for name in COMMANDS:
        sections += [f"\n## weightspace {name}\n", _help(CliRunner(), app, [name])]
    return "\n".join(sections)


def _help(runner, app, arguments: list[str]) -> str:
    wide = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    result = runner.invoke(app, [*arguments, "--help"], prog_name="weightspace", env=wide)
    if result.exit_code != 0:
        raise RuntimeError(
            f"weightspace {' '.join(arguments)} --help exits {result.exit_code}: {result.output}"
        )
    return f"```text\n{result.output.strip()}\n```"
