"""The report's section on Lipschitz bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certify.bounders import ClosedForm, NormProduct, lipschitz
from certify.certificate import Certificate
from weightspace.errors import WeightspaceError
from weightspace.network import Network
from weightspace.report.content import Block, Gap, Section, Subject, Table, Text
from weightspace.report.figures import BLUE, GRAY, GREEN, RED, new_figure, picture, plain

MARKS = {
    "norm product (upper)": ("D", GRAY),
    "closed form (upper)": ("s", GREEN),
    "certified upper bound": ("v", RED),
    "dual bound of the program": ("|", "black"),
    "sampled lower bound": ("^", BLUE),
}
INTRODUCTION = (
    "How far outputs can move when inputs move by one unit, in the l2 norm, for all inputs. Upper bounds are proven "
    "and checked in outward-rounded arithmetic for the real-valued function of the stored weights; the true "
    "constant lies between the sampled lower bound and the certified upper bound. The dual bound says how much better "
    "multipliers could still do."
)


def section(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """Certify every network that a bounder covers; the others are listed with the operation in the way."""
    rows, data, gaps = [], {}, []
    series: dict[str, dict[str, float]] = {}
    for subject in subjects:
        if subject.network is None:
            continue
        try:
            certificate = lipschitz(subject.network)
        except WeightspaceError as error:
            gaps.append(Gap(subject.name, "Lipschitz bound", str(error)))
            continue
        if certificate.upper_bound is None:
            gaps.append(Gap(subject.name, "Lipschitz bound", str(certificate.status)))
            continue
        others = _looser(subject.network, certificate)
        bounds = {
            **others,
            "certified upper bound": certificate.upper_bound,
            "dual bound of the program": certificate.optimum_lower_bound,
            "sampled lower bound": certificate.sampled_lower_bound,
        }
        series[subject.name] = {name: value for name, value in bounds.items() if value}
        rows.append([subject.name, *(_shown(value) for value in bounds.values()), certificate.method])
        data[subject.name] = {**_numbers(certificate), **others}
    blocks: list[Block] = []
    if rows:
        headers = ["file", *MARKS, "method"]
        blocks = [
            Text(INTRODUCTION),
            picture(
                _figure(series), "All bounds relative to the certified one, which stands below each name."
            ),
            Table(headers, rows),
        ]
    return Section("What can be promised: Lipschitz bounds", "certificates", blocks, data, gaps)


def _looser(network: Network, certificate: Certificate) -> dict[str, float | None]:
    """Return the cheaper bounds that the certified one is to be compared with; None where they do not apply."""
    found: dict[str, float | None] = {}
    for name, bounder in (("norm product (upper)", NormProduct()), ("closed form (upper)", ClosedForm())):
        if certificate.layer_norms is not None and isinstance(bounder, NormProduct):
            found[name] = certificate.upper_bound
            continue
        try:
            found[name] = lipschitz(network, bounder=bounder).upper_bound
        except WeightspaceError:
            found[name] = None
    return found


def _numbers(certificate: Certificate) -> dict[str, Any]:
    return {
        "upper_bound": certificate.upper_bound,
        "optimum_lower_bound": certificate.optimum_lower_bound,
        "sampled_lower_bound": certificate.sampled_lower_bound,
        "status": str(certificate.status),
        "method": certificate.method,
        "norm": certificate.norm,
        "network_hash": certificate.network_hash,
        "seconds": certificate.seconds,
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _figure(series: dict[str, dict[str, float]]) -> Any:
    """One line per file, every bound as a multiple of the certified one, so that all files share the axis."""
    figure = new_figure(7.2, 1.0 + 0.45 * len(series))
    axes = figure.subplots()
    ratios = {
        name: {kind: value / values["certified upper bound"] for kind, value in values.items()}
        for name, values in series.items()
    }
    for height, values in enumerate(ratios.values()):
        ends = [min(values.values()), max(values.values())]
        axes.plot(ends, [height, height], color="#dddddd", linewidth=2, zorder=1)
    for kind, (mark, color) in MARKS.items():
        points = [(values[kind], height) for height, values in enumerate(ratios.values()) if kind in values]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=mark, color=color, label=kind, zorder=2, s=45)
    labels = [f"{plain(name)}\n{values['certified upper bound']:.6g}" for name, values in series.items()]
    axes.set_yticks(range(len(series)), labels, fontsize=8)
    axes.set_ylim(len(series) - 0.5, -0.5)
    spread = [value for values in ratios.values() for value in values.values()]
    if max(spread) > 3 * min(spread):
        axes.set_xscale("log")
    axes.set_xlabel("bound / certified upper bound")
    axes.grid(alpha=0.25, axis="x", which="both")
    figure.legend(loc="outside upper left", ncols=3, fontsize=7, frameon=False)
    return figure
