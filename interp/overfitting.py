"""Signs of overfitting in the spectra and eigenvectors of trained classifiers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.classifier_training import accuracy
from interp.decomposition import Decomposition, decompose
from interp.plots import image_shape
from weightspace.errors import ShapeError

RARE = 0.01


@dataclass(frozen=True)
class SpectralSigns:
    r"""What the weights of one classifier say, averaged over its directions; NaN if a direction's form is 0.

    Attributes:
        train_accuracy, test_accuracy: shares of right predictions.
        effective_rank: $(\sum |\lambda|)^2 / \sum \lambda^2$.
        leading_share: $\sum_{i \le k} \lambda_i^2 / \sum_i \lambda_i^2$.
        roughness: $v^\top L v / v^\top D v$ of the k leading vectors, weighted by $\lambda^2$, with L the
            Laplacian and D the degrees of the grid of pixels: 0 constant, 1 white noise, 2 a checkerboard.
            None if the input is no picture.
        rare_share: share of $\|v\|^2$ on inputs that are not 0 in less than 1 % of the training samples,
            weighted likewise. What is learned there cannot matter to other samples.
    """

    train_accuracy: float
    test_accuracy: float
    effective_rank: float
    leading_share: float
    roughness: float | None
    rare_share: float

    @property
    def gap(self) -> float:
        """Train minus test accuracy."""
        return self.train_accuracy - self.test_accuracy


@dataclass(frozen=True)
class OverfittingDiagnosis:
    """Signs of overfitting in several networks, by name; `terms` is k, the leading vectors looked at."""

    networks: dict[str, SpectralSigns]
    terms: int

    def _rows(self) -> list[list[str]]:
        head = ["network", "train", "test", "gap", "effective rank", f"share of top {self.terms}"]
        rows = [[*head, "roughness", "on rare inputs"]]
        for name, signs in self.networks.items():
            rough = "" if signs.roughness is None else f"{signs.roughness:.3f}"
            accuracies = (signs.train_accuracy, signs.test_accuracy, signs.gap)
            rows.append([name, *(f"{value:.4f}" for value in accuracies), f"{signs.effective_rank:.1f}"])
            rows[-1] += [f"{signs.leading_share:.3f}", rough, f"{signs.rare_share:.3f}"]
        return rows

    def to_table(self) -> str:
        """Return the signs as text, one row per network."""
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self._rows()]
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"


def diagnose_overfitting(
    models: Mapping[str, nn.Module],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    terms: int = 10,
) -> OverfittingDiagnosis:
    """Decompose every classifier and measure rank, roughness and use of rare inputs beside the accuracy gap.

    Compare networks that differ in one thing. On a thousand digits, input noise lowers the gap and the share
    on rare inputs while the rank rises; weight decay lowers the rank and that share, but not the gap.

    Args:
        models: classifiers that `interp.decompose` takes, by name.
        train, test: inputs (n, *input_shape) and classes (n,).
        terms: leading eigenvectors per direction to look at, weighted by their squared eigenvalues.
    Raises:
        ShapeError: terms is less than 1, or the inputs do not fit a model.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 4, on noise, weight decay and eigenvectors of overfitted networks.
    """
    if terms < 1:
        raise ShapeError(f"diagnose_overfitting looks at 1 or more leading vectors; terms is {terms}")
    rare = (train[0] != 0).flatten(1).double().mean(0) < RARE
    networks = {}
    for name, model in models.items():
        decomposition = decompose(model)
        if decomposition.input_shape != tuple(train[0].shape[1:]):
            raise ShapeError(
                f"{name} reads inputs (n, *{decomposition.input_shape}); "
                f"the training inputs have shape {tuple(train[0].shape)}"
            )
        networks[name] = _signs(model, decomposition, train, test, rare, terms)
    return OverfittingDiagnosis(networks, terms)


def _signs(
    model: nn.Module,
    decomposition: Decomposition,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    rare: Tensor,
    terms: int,
) -> SpectralSigns:
    squares = decomposition.values.double().square()
    leading = squares[:, :terms]
    weights = leading / leading.sum(1, keepdim=True)
    vectors = decomposition.vectors[:, :terms, : len(rare)].double()
    shape = image_shape(decomposition)
    rough = None if shape is None else roughness(vectors.unflatten(-1, shape))
    return SpectralSigns(
        accuracy(model, *train),
        accuracy(model, *test),
        float(decomposition.effective_rank.mean()),
        float((leading.sum(1) / squares.sum(1)).mean()),
        None if rough is None else float((weights * rough).sum(1).mean()),
        float((weights * vectors[..., rare].square().sum(-1)).sum(1).mean()),
    )


def roughness(pictures: Tensor) -> Tensor:
    r"""Return $\sum_{p \sim q} (v_p - v_q)^2 / \sum_p d_p v_p^2$ of pictures (..., height, width), shape (...).

    The Rayleigh quotient of the normalized Laplacian of the grid, with $p \sim q$ its neighbors and $d_p$ their
    number: 0 for a constant, 1 on average for white noise, 2 for a checkerboard. NaN where the picture is 0.
    Source: Chung, Spectral graph theory (1997), section 1.2.
    """
    degrees = torch.zeros_like(pictures)
    total = torch.zeros_like(pictures[..., 0, 0])
    for axis in (-2, -1):
        total = total + pictures.diff(dim=axis).square().sum((-2, -1))
        size = pictures.shape[axis]
        degrees.narrow(axis, 0, size - 1).add_(1.0)
        degrees.narrow(axis, 1, size - 1).add_(1.0)
    return total / (degrees * pictures.square()).sum((-2, -1))
