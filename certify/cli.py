"""The commands `certify` and `check`."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightspace.errors import CheckpointError, WeightspaceError

if TYPE_CHECKING:
    from certify.bounders import Bounder

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


class Norm(StrEnum):
    """Values of --norm."""

    l2 = "l2"
    linf = "linf"


class Method(StrEnum):
    """Values of --method."""

    auto = "auto"
    lipsdp = "lipsdp"
    closed_form = "closed-form"
    norm_product = "norm-product"


class Arithmetic(StrEnum):
    """Values of --arithmetic."""

    real = "real"
    float32 = "float32"


class Multipliers(StrEnum):
    """Values of --multipliers."""

    neuron = "neuron"
    layer = "layer"


NetworkFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Network: .onnx .pt2 .safetensors .pt .pth .npz")
]
Architecture = Annotated[
    str | None, typer.Option(metavar="FILE.py:FUNCTION", help="Function that returns the module; it is run.")
]
Activation = Annotated[
    str | None, typer.Option(help="Nonlinearity of a bare state dict, such as relu or tanh.")
]
Layout = Annotated[str | None, typer.Option(help="out-in or in-out: how a bare state dict stores matrices.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def certify(
    file: NetworkFile,
    norm: Annotated[Norm, typer.Option(help="Norm of input and output.")] = Norm.l2,
    method: Annotated[
        Method, typer.Option(help="How the bound is found; auto goes by the size.")
    ] = Method.auto,
    solver: Annotated[
        str | None,
        typer.Option(help="Solver of --method lipsdp: structured, CLARABEL, SCS, ... [default: structured]"),
    ] = None,
    multipliers: Annotated[
        Multipliers | None, typer.Option(help="Multipliers of --method lipsdp [default: neuron]")
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option(
            "--cut", metavar="K,K,...", help="Cut a chain after these activations (faster, looser)."
        ),
    ] = None,
    max_lipschitz: Annotated[
        float | None, typer.Option(help="Certified only if the bound is at most this.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="J or J,K", help="One output, or a difference of two.")
    ] = None,
    box: Annotated[
        Path | None,
        typer.Option(
            metavar="BOX.json",
            help='Only inputs in a box {"lower": [...], "upper": [...]} or a ball {"center": [...], "radius": r}.',
        ),
    ] = None,
    arithmetic: Annotated[
        Arithmetic, typer.Option(help="float32: the claim covers rounding of single-precision inference.")
    ] = Arithmetic.real,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    certificate: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="CERT.json", help="Write the certificate here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bound a network's Lipschitz constant and prove it.

    Exit status: 0 certified (without --max-lipschitz: a checked bound exists), 1 not certified, 2 error.
    """
    if max_lipschitz is not None and not (math.isfinite(max_lipschitz) and max_lipschitz >= 0):
        raise WeightspaceError(f"--max-lipschitz {max_lipschitz} is no finite number of at least 0")
    bounder = _bounder(method, solver, multipliers, cuts)
    selected = _output(output)
    from certify.assurance.evidence import certificate_text
    from certify.bounders import lipschitz
    from certify.certificate import Status
    from certify.gaps import describe_gap
    from certify.region_files import read_region
    from weightspace.commands import assumption
    from weightspace.reading import read
    from weightspace.result import check_writable, write_text

    if certificate is not None:
        check_writable(certificate)
    network = read(file, architecture=architecture, activation=activation, layout=layout)
    region = None if box is None else read_region(box)
    result = lipschitz(
        network, norm=norm.value, region=region, bounder=bounder, output=selected, arithmetic=arithmetic.value
    )
    gap = None if max_lipschitz is None else describe_gap(result, max_lipschitz)
    certified = result.status is Status.CERTIFIED and gap is None
    if certificate is not None:
        write_text(certificate, certificate_text(result))
    assumption(network)
    if as_json:
        _print_json(
            {
                "certified": certified,
                "max_lipschitz": max_lipschitz,
                "gap": gap,
                "upper_bound": result.upper_bound,
                "optimum_lower_bound": result.optimum_lower_bound,
                "sampled_lower_bound": result.sampled_lower_bound,
                "status": str(result.status),
                "norm": result.norm,
                "arithmetic": result.arithmetic,
                "delta": result.delta,
                "output": result.output,
                "method": result.method,
                "claim": result.claim,
                "network_hash": result.network_hash,
                "seconds": result.seconds,
                "certificate": None if certificate is None else str(certificate),
            }
        )
    else:
        typer.echo(str(result))
        if max_lipschitz is not None:
            typer.echo(f"certified: limit {max_lipschitz:g}" if certified else f"NOT certified: {gap}")
    if not certified:
        raise typer.Exit(1)


@app.command()
def check(
    certificate: Annotated[
        Path, typer.Argument(metavar="CERT.json", help="What `certify -o` or `verify -o` wrote.")
    ],
    file: NetworkFile,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also in rational arithmetic; small networks only.")
    ] = False,
    architecture: Architecture = None,
    activation: Activation = None,
    layout: Layout = None,
    as_json: AsJson = False,
) -> None:
    """Check a certificate or a verdict against its network, independently of how it was found.

    Exit status: 0 valid, 1 invalid, 2 error.
    """
    from certify.assurance.evidence import check_file
    from weightspace.reading import read

    try:
        text = certificate.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise CheckpointError(f"cannot read certificate {str(certificate)!r}: {reason}") from error
    network = read(file, architecture=architecture, activation=activation, layout=layout)
    try:
        result = check_file(text, network, exact=exact)
    except CheckpointError as error:
        raise CheckpointError(f"{str(certificate)!r}: {error}") from error
    if as_json:
        margin = result.margin if result.margin is None or math.isfinite(result.margin) else None
        _print_json({"valid": result.valid, "reason": result.reason, "margin": margin, "exact": exact})
    else:
        typer.echo(f"{'valid' if result.valid else 'INVALID'}: {result.reason}")
    if not result.valid:
        raise typer.Exit(1)


def _bounder(
    method: Method, solver: str | None, multipliers: Multipliers | None, cuts: str | None
) -> Bounder | None:
    """Return the bounder the flags name; naming a solver, multipliers or cuts means lipsdp."""
    from certify.bounders import ClosedForm, LipSDP, NormProduct

    settings: dict[str, Any] = {}
    if solver is not None:
        settings["solver"] = solver
    if multipliers is not None:
        settings["multipliers"] = multipliers.value
    if cuts is not None:
        settings["cuts"] = _integers(cuts, "--cut", "a list of positions K,K,...")
    if settings and method not in (Method.auto, Method.lipsdp):
        raise WeightspaceError(
            f"--solver, --multipliers and --cut belong to --method lipsdp, not to {method.value}"
        )
    if method is Method.lipsdp or settings:
        return LipSDP(**settings)
    return {Method.closed_form: ClosedForm(), Method.norm_product: NormProduct()}.get(method)


def _integers(text: str, option: str, wanted: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise WeightspaceError(f"{option} {text!r} is not {wanted}") from error


def _output(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    first, *second = _integers(text, "--output", "an index J or a pair J,K")
    if len(second) > 1:
        raise WeightspaceError(f"--output {text!r} is not an index J or a pair J,K")
    return (first, second[0]) if second else first


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, allow_nan=False))
