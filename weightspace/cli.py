"""The command line: one program, its commands loaded when they are called.

`--help` reads the table below and imports neither torch nor a command. A command lives in a `typer.Typer` of
the package it belongs to.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from weightspace.errors import WeightspaceError

COMMANDS: dict[str, tuple[str, str]] = {
    "report": (
        "weightspace.report.cli:app",
        "Everything that applies to some checkpoints, as one HTML page.",
    ),
    "demo": ("weightspace.report.cli:app", "The report on the bundled checkpoints."),
    "inspect": (
        "weightspace.commands:app",
        "One row per tensor, or one line per checkpoint: norms, spectra, dead units, NaN.",
    ),
    "diff": ("weightspace.commands:app", "How two checkpoints differ, raw and modulo neuron order."),
    "similarity": (
        "weightspace.commands:app",
        "Distances of many checkpoints modulo neuron order, and who descends from whom.",
    ),
    "align": ("weightspace.commands:app", "Put one model's neurons into another's order."),
    "merge": ("weightspace.merging_cli:app", "Make one model of several: align their neurons, then average."),
    "graph": ("weightspace.commands:app", "Write the graph of neurons and weights as JSON."),
    "certify": ("certify.cli:app", "Bound the Lipschitz constant; exit 0 certified, 1 not, 2 error."),
    "verify": (
        "certify.assurance.cli:app",
        "Decide properties and requirements; exit 0 all hold, 1 not, 2 error.",
    ),
    "check": ("certify.cli:app", "Check a certificate against a network; exit 0 valid, 1 invalid, 2 error."),
    "decompose": ("interp.cli:app", "Eigenvectors of a bilinear layer, in input space."),
    "train-autoencoder": (
        "interp.autoencoders.cli:app",
        "A dictionary of features of activations: trained, measured, drawn.",
    ),
}


class LazyGroup(TyperGroup):
    """A group whose commands are known by name and help line until one of them is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1], rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, (command if name is None else _load(name)), rest


def _load(name: str) -> Any:
    module, attribute = COMMANDS[name][0].split(":")
    command: Any = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    return command.commands[name] if hasattr(command, "commands") else command


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)


def _print_version(value: bool) -> None:
    if value:
        import torch

        import kernels
        import weightspace

        devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
        typer.echo(f"weightspace {weightspace.__version__}")
        typer.echo(f"torch {torch.__version__}; devices: {', '.join(devices)}")
        typer.echo(f"eigensolver backends: {', '.join(kernels.available_backends())}")
        raise typer.Exit


@app.callback()
def weightspace(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Versions, devices, backends."
    ),
) -> None:
    """Look inside trained networks: what is in them, what they compute, what can be promised about them."""


def main() -> NoReturn:
    """Run the command line; an error meant for the user is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except WeightspaceError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:  # a full disk, a vanished file: nothing half-written is left behind
        sys.exit(_fail(f"{error.filename or 'input/output'}: {error.strerror or error}"))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_fail("interrupted; nothing was left half-written", 130))
    except Exception as error:
        if hasattr(error, "format_message"):  # usage errors of the argument parser have one
            sys.exit(_fail(f"{error.format_message()} (see weightspace --help)"))  # type: ignore[attr-defined]
        traceback.print_exc()  # status 1 is a verdict of `certify`, `verify` and `check`, and this is none
        sys.exit(_fail(f"{type(error).__name__}: a fault of the program, shown above; please report it"))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> int:
    typer.echo(f"weightspace: error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
