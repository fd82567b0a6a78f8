"""The report's section on Lipschitz bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certify.bounders import ClosedForm, NormProduct, lipschitz
from certify.certificate import Certificate
from weightspace.errors import WeightspaceError
from weightspace.network import Network
from weightspace.report.content import Block, Finding, Gap, Method, Section, Severity, Subject, Table, Text
from weightspace.report.figures import BLUE, GRAY, GREEN, RED, new_figure, picture, plain
from weightspace.report.wording import counted
from weightspace.rounded_numbers import rounded_down, rounded_up

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
    "multipliers could still do. Upper bounds are rounded up here, lower ones down."
)
ANCHOR = "certificates"
BOUNDS_TOLD = 6  # of more networks one sentence speaks
NORMS = {"l2": "Euclidean", "linf": "largest entry"}
METHODS = (
    Method(
        "norm-product", "Product of norms",
        "The spectral norms of all layers multiplied, each proven. It applies nearly everywhere and is loose.",
        "L ≤ ‖W₁‖ ‖W₂‖ ... ‖W_k‖  times the constants of the activations",
        "certify.NormProduct", "Szegedy et al., Intriguing properties of neural networks (2014)", "proven",
    ),
    Method(
        "closed-form", "Closed form",
        "Multipliers found layer by layer by a formula, without solving a program.",
        "one Schur complement per layer",
        "certify.ClosedForm", "Xu, Sivaranjani, ECLipsE (2024)", "proven",
    ),
    Method(
        "certified-bound", "Certified upper bound",
        "No two inputs at distance d have outputs further apart than L d. A multiplier per neuron turns the claim into "
        "one matrix inequality, which a checker of its own verifies in outward-rounded arithmetic; where the program "
        "is too large, the product of norms stands in, as 'method' says. The promise is about the real-valued function "
        "of the stored weights, not about rounding when it runs, and says nothing on whether an output is right.",
        "‖f(x) − f(y)‖ ≤ L ‖x − y‖ for all x, y  ⇐  M(L², multipliers) ⪰ 0",
        "certify.lipschitz",
        "Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019); Pauli et al., Novel quadratic constraints for "
        "extending LipSDP (2024); Rump, Verification of positive definiteness (2006)", "proven",
    ),
    Method(
        "dual-bound", "Dual bound of the program",
        "No multipliers of this kind give a smaller bound; computed in floating point, no proof. The Lipschitz "
        "constant itself may be smaller.",
        "optimum of the dual program ≤ optimum of the program",
        "certify.lipschitz", "Fazlyab et al., LipSDP (2019)", "estimated",
    ),
    Method(
        "sampled-bound", "Sampled lower bound",
        "The largest stretching that a search over inputs and directions found, over small steps: the Lipschitz "
        "constant is at least that, up to rounding.",
        "max over the pairs tried of ‖f(x) − f(y)‖ / ‖x − y‖",
        "certify.lipschitz", "", "found by search",
    ),
)  # fmt: skip
COLUMNS = dict(
    zip(MARKS, ("norm-product", "closed-form", "certified-bound", "dual-bound", "sampled-bound"), strict=True)
)


def section(subjects: Sequence[Subject], evaluation: object = None) -> Section:
    """Certify every network that a bounder covers; the others are listed with the operation in the way."""
    rows, data, gaps, certificates = [], {}, [], {}
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
        certificates[subject.name] = certificate
        others = _looser(subject.network, certificate)
        bounds = {
            **others,
            "certified upper bound": certificate.upper_bound,
            "dual bound of the program": certificate.optimum_lower_bound,
            "sampled lower bound": certificate.sampled_lower_bound,
        }
        if certificate.upper_bound > 0:  # the figure shows multiples of it
            series[subject.name] = {name: value for name, value in bounds.items() if value is not None}
        rounded = [
            rounded_up(value) if "upper" in name else rounded_down(value) for name, value in bounds.items()
        ]
        rows.append([subject.name, *rounded, certificate.method])
        data[subject.name] = {**_numbers(certificate), **others}
    blocks: list[Block] = []
    if rows:
        headers = ["file", *MARKS, "method"]
        blocks = [
            Text(INTRODUCTION),
            *_pictures(series, len(rows)),
            Table(headers, rows, "Bounds of the Lipschitz constant in the l2 norm, all inputs.", COLUMNS),
        ]
    title = "What can be promised: Lipschitz bounds"
    return Section(title, ANCHOR, blocks, data, gaps, _findings(certificates), METHODS)


def _findings(certificates: dict[str, Certificate]) -> list[Finding]:
    """One sentence per certificate; of many, one with the smallest and the largest bound."""
    if not certificates:
        return []
    used = ("certified-bound", "sampled-bound")
    scope = (
        "What is certified holds for the real-valued function of the stored weights, not for the rounding errors "
        "of a run, and for all inputs"
    )
    about = Finding(scope, Severity.PROVEN, ANCHOR, used[:1])
    if len(certificates) <= BOUNDS_TOLD:
        sentences = [f"{name}: certified: {describe_bound(found)}" for name, found in certificates.items()]
        return [*(Finding(sentence, Severity.PROVEN, ANCHOR, used) for sentence in sentences), about]
    ordered = sorted(certificates, key=lambda name: certificates[name].upper_bound or 0.0)
    ends = [f"{rounded_up(certificates[name].upper_bound)} of {name}" for name in (ordered[0], ordered[-1])]
    sentence = (
        f"{counted(len(ordered), 'network')} certified: no change of the input of size 1 (Euclidean) moves the outputs "
        f"by more than L, which goes from {ends[0]} to {ends[1]}"
    )
    return [Finding(sentence, Severity.PROVEN, ANCHOR, used[:1]), about]


def describe_bound(certificate: Certificate) -> str:
    """Say in words what a certificate promises and what a search found, the bound rounded up and the other down."""
    measure = NORMS[certificate.norm]
    where = (
        ""
        if certificate.region is None
        else f" between two inputs of the {type(certificate.region).__name__.lower()}"
    )
    outputs = {int: "output {}", tuple: "the difference of outputs {} and {}"}.get(
        type(certificate.output), "the outputs"
    )
    selected = certificate.output if isinstance(certificate.output, tuple) else (certificate.output,)
    moved = outputs.format(*selected)
    promise = (
        f"no change of the input of size 1 ({measure}){where} moves {moved} by more than "
        f"{rounded_up(certificate.upper_bound)}"
    )
    rounding = None if certificate.delta is None else (
        f"twice the rounding error {rounded_up(certificate.delta, 2)} in single precision"
    )  # fmt: skip
    if certificate.upper_bound == 0:
        promise = f"no change of the input{where} moves {moved}"
        return promise if rounding is None else f"{promise} by more than {rounding}"
    if rounding is not None:
        promise += f" and {rounding}"
    if not certificate.sampled_lower_bound:
        return promise
    found = rounded_down(certificate.sampled_lower_bound)
    return f"{promise}; the strongest small change found moves them by {found} times its size"


def _described(series: dict[str, dict[str, float]]) -> str:
    told = [
        f"{name}: " + ", ".join(f"{kind} {rounded_up(value) if 'upper' in kind else rounded_down(value)}"
                                for kind, value in values.items())
        for name, values in list(series.items())[:12]
    ]  # fmt: skip
    more = f" And {len(series) - 12} more." if len(series) > 12 else ""
    return f"One line per file with a mark for every bound. {'; '.join(told)}.{more}"


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


def _pictures(series: dict[str, dict[str, float]], certified: int) -> list[Block]:
    """Return the figure of the bounds above 0, if there is one; the caption says how many are 0."""
    if not series:
        return []
    zero = certified - len(series)
    left_out = f" {counted(zero, 'network')} with a bound of 0 not drawn." if zero else ""
    caption = f"All bounds relative to the certified one, which stands below each name.{left_out}"
    return [picture(_figure(series), caption, alt=_described(series), methods=tuple(COLUMNS.values()))]


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
    labels = [
        f"{plain(name)}\n{rounded_up(values['certified upper bound'])}" for name, values in series.items()
    ]
    axes.set_yticks(range(len(series)), labels, fontsize=8)
    axes.set_ylim(len(series) - 0.5, -0.5)
    spread = [value for values in ratios.values() for value in values.values() if value > 0]
    if max(spread) > 3 * min(spread):
        axes.set_xscale("log")
    axes.set_xlabel("bound / certified upper bound")
    axes.grid(alpha=0.25, axis="x", which="both")
    figure.legend(loc="outside upper left", ncols=3, fontsize=7, frameon=False)
    return figure
