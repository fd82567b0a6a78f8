"""One row of numbers per tensor of a network: what a post-hoc analyst looks at first."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoint import Checkpoint, open_checkpoint
from weightspace.errors import CheckpointError, ShapeError
from weightspace.power_law import fit_power_law
from weightspace.spectrum import compute_spectrum
from weightspace.tensor_statistics import count_zeros, summarize, unfold_rows

FEWEST_EIGENVALUES = 20  # below, no exponent is given
RELIABLE_EIGENVALUES = 50  # below, the exponent is given with a warning; WeightWatcher skips such layers
DOMINATED_STABLE_RANK = 1.05  # a layer of side >= 10 below this acts as a single direction


@dataclass(frozen=True)
class TensorRow:
    r"""What is known about one tensor.

    All numbers but the counts are computed in float64 over the finite entries, and are None where they do not
    apply: integer and boolean tensors have shapes and counts only, tensors below two axes have no spectrum,
    tensors with NaN or infinite entries have none either. `note` says why.

    The matrix of a tensor is its unfolding (shape[0], product of the rest): a 2-D weight as it is, a
    convolution kernel as (out, in*k*k). WeightWatcher by default takes the k*k slices (out, in) one by one
    and so reports other exponents for convolutions; linear layers agree.

    Attributes:
        bytes: size of the entries, elements times element size.
        norm: Frobenius norm.
        std: population standard deviation.
        spectral_norm: $\sigma_1$ of the matrix; relative error below 1e-6, unless `spectral_norm_is_estimate`
            (above the true one by rounding only).
        stable_rank: $\|W\|_F^2 / \sigma_1^2$.
        rank: number of singular values above rounding (`compute_spectrum`).
        condition: $\sigma_1/\sigma_{\min}$, infinite when the rank is deficient.
        dead_units: rows of the matrix that are exactly zero.
        duplicate_units: further nonzero rows that equal an earlier row.
        zeros: fraction of entries that are zero (sparsity).
        alpha: exponent of the tail of the eigenvalue density of $W^\top W$, $\rho(\lambda)\sim
            \lambda^{-\alpha}$ (`fit_power_law` over the nonzero eigenvalues); None below 20 of them,
            unreliable below 50, the number from which WeightWatcher reports layers.
        alpha_error, alpha_ks, alpha_xmin, alpha_tail: its standard error, the Kolmogorov-Smirnov distance of
            the fit, where the tail begins (an eigenvalue), how many eigenvalues it has.
        singular_values: descending.
    Source:
        Martin, Mahoney, Implicit self-regularization in deep neural networks (2021); Clauset, Shalizi,
        Newman, Power-law distributions in empirical data (2009).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    bytes: int
    norm: float | None = None
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    zeros: float | None = None
    nan: int = 0
    inf: int = 0
    dead_units: int | None = None
    duplicate_units: int | None = None
    spectral_norm: float | None = None
    spectral_norm_is_estimate: bool = False
    stable_rank: float | None = None
    rank: int | None = None
    condition: float | None = None
    alpha: float | None = None
    alpha_error: float | None = None
    alpha_ks: float | None = None
    alpha_xmin: float | None = None
    alpha_tail: int | None = None
    note: str = ""
    singular_values: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is unusual about this tensor, one line each."""
        return tuple(f"{printable(self.name)}: {text}" for text in _find(self))


@dataclass(frozen=True)
class Totals:
    """Sums over all tensors, a storage that several names share counted once."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`: one row per tensor, in the order of the source.

    Examples:
        >>> import torch, weightspace
        >>> inspection = weightspace.inspect(torch.nn.Linear(4, 2))
        >>> [(row.name, row.shape) for row in inspection.rows]
        [('weight', (2, 4)), ('bias', (2,))]
        >>> inspection.totals.parameters
        10
    """

    source: str
    rows: tuple[TensorRow, ...] = field(repr=False)
    totals: Totals

    @property
    def findings(self) -> tuple[str, ...]:
        """What is unusual, one line each: NaN, dead or duplicate units, degenerate layers, odd exponents."""
        return tuple(text for row in self.rows for text in row.findings)

    def to_json(self, *, singular_values: bool = False) -> str:
        """Return strict JSON; a number that is not finite becomes the string "inf", "-inf" or "nan"."""
        rows = []
        for row in self.rows:
            values = asdict(row)
            if not singular_values:
                del values["singular_values"]
            rows.append(values)
        result = {
            "source": self.source,
            "totals": asdict(self.totals),
            "tensors": rows,
            "findings": self.findings,
        }
        return json.dumps(_finite(result), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Inspection:
        """Build the inspection from `to_json()`; singular values that were left out are None.

        Raises:
            CheckpointError: not such a JSON.
        """
        try:
            data = json.loads(text)
            totals, rows = Totals(**data["totals"]), []
            for entry in data["tensors"]:
                values: dict[str, Any] = {
                    key: float(v) if v in _SPELLED else v
                    for key, v in entry.items()
                    if key not in _NOT_NUMBERS
                }
                values |= {key: entry[key] for key in _NOT_NUMBERS if key in entry}
                values["shape"] = tuple(values["shape"])
                if values.get("singular_values") is not None:
                    values["singular_values"] = tuple(map(float, values["singular_values"]))
                rows.append(TensorRow(**values))
            return cls(data["source"], tuple(rows), totals)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"this is not the JSON of an inspection: {type(error).__name__} {error}"
            ) from error

    def to_table(self) -> str:
        """Return the rows as aligned columns of plain text, then totals and findings."""
        cells = [_HEADINGS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADINGS))]
        lines = []
        for line in cells:
            padded = [
                text.ljust(width) if i < _TEXT_COLUMNS or i == len(line) - 1 else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        findings = [f"  {text}" for text in self.findings] or ["  none"]
        return "\n".join([*lines, "", self.summary, "findings:", *findings])

    @property
    def summary(self) -> str:
        """How many tensors, parameters and bytes there are, in words."""
        totals = self.totals
        size = f"{totals.bytes / 1e6:,.1f} MB" if totals.bytes >= 1e5 else f"{totals.bytes:,} bytes"
        return f"{totals.tensors:,} tensors, {totals.parameters:,} parameters, {size}"

    def __str__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells) + "</tr>"

        head = line(_HEADINGS, "th")
        body = "".join(line(_cells(row), "td") for row in self.rows)
        findings = "".join(f"<li>{html.escape(text)}</li>" for text in self.findings)
        caption = html.escape(f"{printable(self.source)}: {self.summary}")
        table = f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"
        return table + (f"<ul>{findings}</ul>" if findings else "")


def inspect(source: Any, *, progress: bool = False, largest_spectrum: int = 4096) -> Inspection:
    """Compute one row of numbers per tensor (`TensorRow`), streaming large tensors in pieces.

    Args:
        source: a path (any that `open_checkpoint` opens; `.onnx` and `.pt2` through `weightspace.read`), a
            Checkpoint, a mapping from names to tensors, an `nn.Module` (its state dict), or an object whose
            `parameters` is such a mapping (a Network).
        progress: show a progress bar, if standard error is a terminal.
        largest_spectrum: the largest min(rows, columns) whose singular values are computed; above it only the
            spectral norm is estimated.
    Returns:
        Inspection. Beside the source itself it takes a few hundred MB at the default limit; files that are
        mapped (safetensors, PyTorch zip) are not held in memory.
    Raises:
        CheckpointError: a path cannot be opened.
        ShapeError: `source` is none of these.

    Examples:
        >>> import torch, weightspace
        >>> rows = weightspace.inspect({"weight": torch.eye(3)}).rows
        >>> rows[0].name, rows[0].shape, round(rows[0].spectral_norm, 4)
        ('weight', (3, 3), 1.0)
    """
    label, tensors, resident = _open_source(source)
    from tqdm import tqdm

    rows: list[TensorRow] = []
    first: dict[tuple, TensorRow] = {}
    totals = [0, 0, 0]
    names = tqdm(tensors, desc="inspect", unit="tensor", leave=False, disable=None if progress else True)
    for name in names:
        tensor = tensors[name]()
        storage = _storage_key(tensor) if resident else None
        if storage is not None and storage in first:
            # Tied weights: the same numbers, under a second name.
            twin = first[storage]
            rows.append(replace(twin, name=name, note=f"same storage as {printable(twin.name)}"))
            totals[0] += 1
            continue
        row = inspect_tensor(name, tensor, largest_spectrum=largest_spectrum)
        if storage is not None:
            first[storage] = row
        rows.append(row)
        totals = [totals[0] + 1, totals[1] + row.elements, totals[2] + row.bytes]
    return Inspection(label, tuple(rows), Totals(*totals))


def inspect_tensor(name: str, tensor: Tensor, *, largest_spectrum: int = 4096) -> TensorRow:
    """Compute the row of one tensor; nothing in a tensor makes this raise."""
    row = TensorRow(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        elements=tensor.numel(),
        bytes=tensor.numel() * tensor.element_size(),
    )
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return replace(row, note="not a dense tensor: shape only")
    if tensor.numel() == 0:
        return replace(row, note="no entries")
    if tensor.is_complex():
        return replace(row, note="complex: shape only")
    if not tensor.is_floating_point():
        return replace(row, zeros=count_zeros(tensor) / tensor.numel(), note="not floating: counts only")
    try:
        numbers = summarize(tensor)
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # a packed dtype that PyTorch stores but cannot convert
        return replace(row, note=f"{row.dtype} cannot be converted: {str(error).splitlines()[0][:80]}")
    row = replace(
        row,
        norm=numbers.norm,
        mean=numbers.mean,
        std=numbers.std,
        min=numbers.minimum,
        max=numbers.maximum,
        zeros=numbers.zeros / tensor.numel(),
        nan=numbers.nan,
        inf=numbers.inf,
        dead_units=numbers.zero_rows,
        duplicate_units=numbers.repeated_rows,
    )
    if numbers.nan or numbers.inf:
        return replace(row, note="not finite: no spectrum, numbers over the finite entries")
    return row if tensor.ndim < 2 else _add_spectrum(row, tensor, largest_spectrum)


def _add_spectrum(row: TensorRow, tensor: Tensor, largest: int) -> TensorRow:
    matrix = unfold_rows(tensor)
    side = min(matrix.shape)
    if row.min == row.max == 0:  # known without a decomposition, which a huge empty tensor is spared
        values = (0.0,) * side if side <= largest else None
        return replace(row, spectral_norm=0.0, rank=0, singular_values=values, note="all zero")
    spectrum = compute_spectrum(matrix, largest_side=largest)
    norm = row.norm or 0.0
    row = replace(
        row,
        spectral_norm=spectrum.spectral_norm,
        spectral_norm_is_estimate=not spectrum.exact,
        stable_rank=(norm / spectrum.spectral_norm) ** 2 if spectrum.spectral_norm else None,
        rank=spectrum.rank,
    )
    if spectrum.singular_values is None or spectrum.rank is None:
        return replace(
            row, note=f"smaller side {side} > {largest}: spectral norm estimated, no other singular values"
        )
    values = spectrum.singular_values
    row = replace(
        row,
        singular_values=tuple(values.tolist()),
        condition=spectrum.spectral_norm / float(values[-1]) if spectrum.rank == side else math.inf,
    )
    if spectrum.rank < FEWEST_EIGENVALUES:
        return replace(row, note=f"no alpha: {spectrum.rank} nonzero eigenvalues, needs {FEWEST_EIGENVALUES}")
    # Fitted to the eigenvalues relative to the largest, so that no square leaves the range of float64.
    fit = fit_power_law((values[: spectrum.rank] / values[0]) ** 2)
    if fit is None:
        return replace(row, note="no alpha: all eigenvalues are equal")
    few = f"alpha unreliable: {spectrum.rank} nonzero eigenvalues, below {RELIABLE_EIGENVALUES}"
    return replace(
        row,
        alpha=fit.alpha,
        alpha_error=fit.standard_error,
        alpha_ks=fit.distance,
        alpha_xmin=fit.x_min * spectrum.spectral_norm * spectrum.spectral_norm,
        alpha_tail=fit.tail,
        note=few if spectrum.rank < RELIABLE_EIGENVALUES else "",
    )


# ---- where tensors come from -----------------------------------------------------------------------------


def _open_source(source: Any) -> tuple[str, dict[str, Callable[[], Tensor]], bool]:
    """Return (label, name -> loader, whether all tensors live at once)."""
    if isinstance(source, (str, Path)):
        if Path(source).suffix.lower() in {".onnx", ".pt2"}:
            from weightspace.reading import read

            _, tensors, resident = _open_source(read(source))
            return str(source), tensors, resident
        source = open_checkpoint(source)
    if isinstance(source, Checkpoint):
        loaders = {name: entry.load for name, entry in source.entries.items()}
        return str(source.path), loaders, source.resident
    if isinstance(source, torch.nn.Module):
        return type(source).__name__, _loaders(source.state_dict(keep_vars=True)), True
    if isinstance(source, Mapping):
        return "state dict", _loaders(source), True
    if isinstance(getattr(source, "parameters", None), Mapping):
        return type(source).__name__, _loaders(source.parameters), True
    raise ShapeError(
        f"inspect needs a path, a Checkpoint, a state dict, a module or a Network; source is a "
        f"{type(source).__name__}; pass one of these"
    )


def _loaders(tensors: Mapping[str, Any]) -> dict[str, Callable[[], Tensor]]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ShapeError(
                "inspect needs a mapping from names to tensors; "
                f"entry {name!r} is a {type(tensor).__name__}; pass the inner state dict"
            )
    return {str(name): tensor.detach for name, tensor in tensors.items()}


def _storage_key(tensor: Tensor) -> tuple | None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


# ---- what is said about them -----------------------------------------------------------------------------


def _find(row: TensorRow) -> Iterator[str]:
    if row.nan or row.inf:
        yield f"{row.nan:,} NaN and {row.inf:,} infinite entries of {row.elements:,}"
    if row.min is None:
        return
    units = row.shape[0] if len(row.shape) >= 2 else 0
    side = min(units, row.elements // units) if units else 0
    if row.min == row.max:
        if row.elements > 1 and not row.nan and not row.inf and (row.min == 0 or side > 1):
            yield "all zero" if row.min == 0 else f"constant: every entry is {row.min:.6g}"
        return
    if row.dead_units:
        yield f"{row.dead_units:,} of {units:,} units are dead (rows of zeros)"
    if row.duplicate_units:
        yield f"{row.duplicate_units:,} of {units:,} units repeat an earlier one"
    if row.rank is not None and row.rank < side:
        yield f"rank {row.rank:,} of {side:,}"
    if row.stable_rank is not None and row.stable_rank < DOMINATED_STABLE_RANK and side >= 10:
        yield f"degenerate: one direction dominates (stable rank {row.stable_rank:.3f} of {side:,})"
    if row.alpha is not None and row.rank is not None and row.rank >= RELIABLE_EIGENVALUES:
        if row.alpha < 2:
            yield f"alpha {row.alpha:.2f} is below 2, which WeightWatcher reads as over-trained"
        elif row.alpha > 6:
            yield f"alpha {row.alpha:.2f} is above 6, which WeightWatcher reads as under-trained"


_SPELLED = ("inf", "-inf", "nan")  # numbers that JSON lacks
_NOT_NUMBERS = ("name", "dtype", "note", "shape", "singular_values")
_HEADINGS = (
    "tensor", "shape", "dtype", "norm", "mean", "std", "min", "max", "spectral", "stable rank", "rank",
    "alpha", "dead", "duplicate", "zeros", "note",
)  # fmt: skip
_TEXT_COLUMNS = 3


def _cells(row: TensorRow) -> tuple[str, ...]:
    spectral = _number(row.spectral_norm)
    return (
        printable(row.name),
        "x".join(map(str, row.shape)) or "scalar",
        row.dtype,
        *map(_number, (row.norm, row.mean, row.std, row.min, row.max)),
        f"~{spectral}" if row.spectral_norm_is_estimate else spectral,
        *map(_number, (row.stable_rank, row.rank, row.alpha, row.dead_units, row.duplicate_units)),
        "-" if row.zeros is None else f"{100 * row.zeros:.3g}%",
        row.note or "",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4g}"


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor or break a line: names come from files of strangers."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _finite(value: Any) -> Any:
    """Replace floats that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
