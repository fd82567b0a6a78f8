"""Eigendecomposition of a bilinear layer in the space of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import kernels
from interp.recognition import QuadraticForm, recognize
from interp.truncation import TruncatedForm
from weightspace.errors import ShapeError
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition:
    r"""Output directions of a bilinear layer as sums of squares.

    $u \cdot y = \sum_i \lambda_i (v_i \cdot x')^2$, where $x' = [x; 1]$ if biases or residual connections are
    padded, else $x' = x$. Tensors are on the CPU, in the dtype of the layer, rounded once from float64.

    Attributes:
        values: $\lambda$, shape (u, k), by magnitude, descending; of equal magnitudes the negative one first.
        vectors: $v$, shape (u, k, d), or (u, k, d + 1) when `padded`: orthonormal rows; the first entry
            within $2^{-10}$ of the largest magnitude is positive.
        directions: $u$, shape (u, o).
        linear, constant: the linear and the constant part of every direction, (u, d) and (u,). Where
            `padded`, `values` and `vectors` contain them; otherwise they come on top.
        padded: whether the vectors have an entry for the constant 1, their last.
        effective_rank: $(\sum |\lambda|)^2 / \sum \lambda^2$ of the whole spectrum, shape (u,); 0 of a zero
            form.
        discarded: $\|Q - Q_k\|_F = (\sum_{i>k} \lambda_i^2)^{1/2}$, what `top` left out, shape (u,).
        clusters: for every direction, the sets of kept indices whose eigenvalues are closer than `tolerance`
            times the largest magnitude: such vectors are arbitrary within their span, only the projector
            $\sum v v^\top$ means something. One index alone: `top` left out its partners.
        tolerance: of `clusters`; the square root of the dtype's precision.
        residual: share of the output's variance that the form leaves out; 0.0, since a bilinear layer is one.
        input_shape: of one sample.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 3; differs in that vectors live in input space, where they are
        orthonormal.
    """

    values: Tensor
    vectors: Tensor
    directions: Tensor
    linear: Tensor
    constant: Tensor
    padded: bool
    effective_rank: Tensor
    discarded: Tensor
    clusters: tuple[tuple[tuple[int, ...], ...], ...]
    tolerance: float
    input_shape: tuple[int, ...]
    residual: float = 0.0

    def truncate(self, k: int) -> nn.Module:
        r"""Return a module (n, *input_shape) -> (n, u) that computes the directions from k leading terms.

        $\sum_{i \le k} \lambda_i (v_i \cdot x')^2$, plus linear and constant part where they are not padded.
        It is the best approximation of rank k in the Frobenius norm of Q, with error
        $(\sum_{i>k} \lambda_i^2)^{1/2}$.

        Raises:
            ShapeError: k is not in 0 .. the number of terms.
        """
        terms = self.values.shape[1]
        if not 0 <= k <= terms:
            raise ShapeError(f"truncate needs k from 0 to the {terms} terms there are; k is {k}")
        return TruncatedForm(
            self.values[:, :k],
            self.vectors[:, :k],
            None if self.padded else self.linear,
            None if self.padded else self.constant,
        )

    def explain(self, x: Tensor) -> Tensor:
        r"""Return the terms $\lambda_i (v_i \cdot x')^2$ of every sample, which add up to $u \cdot y$.

        Args:
            x: shape (n, *input_shape), or one sample.
        Returns:
            Shape (n, u, k), or (u, k) for one sample. With parts that are not padded k + 1 terms, the last
            being linear and constant part together.
        Raises:
            ShapeError: x has another shape.
        """
        single = tuple(x.shape) == self.input_shape
        if not single and tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"explain needs samples of shape {self.input_shape}, one or a batch; "
                f"x has shape {tuple(x.shape)}"
            )
        module = self.truncate(self.values.shape[1])
        assert isinstance(module, TruncatedForm)
        with torch.no_grad():
            terms = module.terms(x[None] if single else x)
        return terms[0] if single else terms

    def summary(self) -> dict[str, object]:
        """Return everything but the vectors as plain Python values, for JSON."""
        return {
            "values": self.values.tolist(),
            "effective_rank": self.effective_rank.tolist(),
            "clusters": [[list(cluster) for cluster in clusters] for clusters in self.clusters],
            "tolerance": self.tolerance,
            "discarded": self.discarded.tolist(),
            "padded": self.padded,
            "residual": self.residual,
            "input_shape": list(self.input_shape),
            "directions": self.directions.tolist(),
        }

    def __repr__(self) -> str:
        directions, terms, size = self.vectors.shape
        padding = ", padded" if self.padded else ""
        ranks = self.effective_rank
        rank = f", effective rank {ranks.min():.1f} to {ranks.max():.1f}" if len(ranks) else ""
        return f"Decomposition({directions} directions, {terms} terms of {size} axes{padding}{rank})"

    def _repr_html_(self) -> str:
        rows = []
        for index, values in enumerate(self.values[:20, :6].tolist()):
            cells = "".join(f"<td>{value:+.3g}</td>" for value in values)
            rows.append(f"<tr><th>{index}</th><td>{self.effective_rank[index]:.1f}</td>{cells}</tr>")
        leading = min(6, self.values.shape[1])
        head = f"<tr><th>direction</th><th>effective rank</th><th colspan={leading}>leading values</th></tr>"
        return f"<table><caption>{self!r}</caption>{head}{''.join(rows)}</table>"


def decompose(
    layer_or_model: nn.Module | Network,
    *,
    directions: Tensor | Sequence[Sequence[float]] | None = None,
    top: int | None = None,
    pad: bool = True,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
) -> Decomposition:
    r"""Decompose a network with one bilinear layer into eigenvectors in input space, exactly.

    For $y = P[(Wx+b) \odot (Vx+c)] + Ax + a$ and a direction u, with $q = P^\top u$ and $x' = [x; 1]$,
    $$u \cdot y = x'^\top Q'_u x',\quad
    Q'_u = \mathrm{sym}(W'^\top \mathrm{diag}(q)\, V') + \mathrm{sym}(A'^\top u\, e^\top)
    = \sum \lambda_i v_i v_i^\top$$
    with e the axis of the 1. Affine maps before and after the product (an embedding, a head, a residual
    connection, BatchNorm in inference mode) are folded in; all in float64.

    Args:
        layer_or_model: `Bilinear`, one-layer `BilinearMLP`, `nn.Bilinear` (given one input twice), any
            module or `Network` made of affine maps and one product of two of them.
        directions: u, shape (u, o) or (o,); default one for every output.
        top: number of terms to keep for every direction; default all, min(axes, twice the hidden units).
        pad: put linear and constant parts into the spectrum by a further axis, when there are any; False
            decomposes only the quadratic part and keeps them in `linear` and `constant`.
        example_inputs: to trace a module whose first layer is not Linear.
    Raises:
        UnsupportedOperationError: an operation that is neither affine nor that one product; it is named.
        ShapeError: `directions` or `top` do not fit.
        ArchitectureError: several inputs or outputs, or an input shape that is not known.
        NonFiniteError: NaN or infinite weights.
    Source: Pearce et al. (2024), section 3; the padding follows from their section 2.
    """
    form = recognize(layer_or_model, example_inputs)
    chosen = _directions(directions, len(form.output))
    if top is not None and top < 0:
        raise ShapeError(f"decompose keeps a number of terms, at least 0; top is {top}")
    weights = chosen @ form.output
    left, right = form.left[:, :-1], form.right[:, :-1]
    b, c = form.left[:, -1], form.right[:, -1]
    linear = (weights * c) @ left + (weights * b) @ right + chosen @ form.affine[:, :-1]
    constant = weights @ (b * c) + chosen @ form.affine[:, -1]
    padded = pad and bool(b.any() or c.any() or form.affine.any())
    pairs = _padded_pairs(form, chosen, weights) if padded else kernels.eigh_factored(left, right, weights)
    order = torch.argsort(pairs.values.abs(), dim=1, descending=True, stable=True)
    values = pairs.values.take_along_dim(order, 1)
    vectors = pairs.vectors.take_along_dim(order[:, None, :], 2).mT
    dtype = form.dtype if form.dtype in (torch.float32, torch.float64) else torch.float32
    tolerance = torch.finfo(dtype).eps ** 0.5
    kept = values.shape[1] if top is None else min(top, values.shape[1])
    squares = values.square()
    rank = values.abs().sum(1).square() / squares.sum(1)
    return Decomposition(
        values[:, :kept].to(dtype),
        vectors[:, :kept].to(dtype).contiguous(),
        chosen.to(dtype),
        linear.to(dtype),
        constant.to(dtype),
        padded,
        torch.where(squares.sum(1) > 0, rank, 0.0).to(dtype),
        squares[:, kept:].sum(1).sqrt().to(dtype),
        tuple(_clusters(row, tolerance, kept) for row in values),
        tolerance,
        form.input_shape,
    )


def _directions(directions: Tensor | Sequence[Sequence[float]] | None, outputs: int) -> Tensor:
    if directions is None:
        return torch.eye(outputs, dtype=torch.float64)
    given = torch.as_tensor(directions, dtype=torch.float64).detach().cpu()
    if given.ndim not in (1, 2) or given.shape[-1] != outputs:
        raise ShapeError(
            f"directions need the shape (u, {outputs}) or ({outputs},), one entry for every output; "
            f"they have {tuple(given.shape)}"
        )
    if not bool(torch.isfinite(given).all()):
        raise ShapeError("directions have NaN or infinite entries; give finite numbers")
    return given.reshape(-1, outputs)


def _padded_pairs(form: QuadraticForm, directions: Tensor, weights: Tensor) -> kernels.Eigh:
    """Eigenpairs with the affine part as further hidden units: A'x' times the constant 1, weighted by u."""
    one = torch.zeros_like(form.affine)
    one[:, -1] = 1.0
    return kernels.eigh_factored(
        torch.cat([form.left, form.affine]), torch.cat([form.right, one]), torch.cat([weights, directions], 1)
    )


def _clusters(values: Tensor, tolerance: float, kept: int) -> tuple[tuple[int, ...], ...]:
    """Sets of eigenvalues that are neighbors on the line, closer than tolerance x largest magnitude."""
    if not len(values):
        return ()
    ascending, order = values.sort(stable=True)
    wide = ascending.diff() >= tolerance * values.abs().max()
    # In a zero form every gap is 0 and so is the bound: one cluster.
    borders = [0, *((wide & (ascending.diff() > 0)).nonzero().flatten() + 1).tolist(), len(values)]
    sets = [order[start:stop].tolist() for start, stop in pairwise(borders)]
    found = [tuple(sorted(index for index in entry if index < kept)) for entry in sets if len(entry) > 1]
    return tuple(sorted(entry for entry in found if entry))
