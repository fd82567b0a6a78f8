"""Eigendecomposition of a bilinear layer in the space of its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import kernels
from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize
from interp.truncation import TruncatedForm
from kernels.scaling import fix_signs
from weightspace.errors import NonFiniteError, ShapeError
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
        residual: share of the output's variance that the form leaves out, $E|y - \hat y|^2 / E|y - \bar y|^2$ on the
            data given; 0.0 of a bilinear layer, which is exact.
        input_shape: of one sample; (n,) with n features.
    Source: Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based mechanistic
        interpretability (2024), section 3; differs in that vectors live in input space, where they are
        orthonormal.

    Examples:
        >>> import interp, torch
        >>> from weightspace.bundled import load
        >>> found = interp.decompose(load("digits_bilinear"), top=5)
        >>> found.values.shape
        torch.Size([10, 5])
        >>> found.truncate(2)(torch.zeros(3, 64)).shape  # two terms for each digit, as a module
        torch.Size([3, 10])
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
        left_out = f", leaves out {self.residual:.2g} of the variance" if self.residual else ""
        return (
            f"Decomposition({directions} directions, {terms} terms of {size} axes{padding}{rank}{left_out})"
        )

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
    features: Tensor | None = None,
    data: Tensor | None = None,
    solved_in: torch.dtype = torch.float64,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
) -> Decomposition:
    r"""Decompose a network with one bilinear layer into eigenvectors in input space, exactly.

    For $y = P[(Wx+b) \odot (Vx+c)] + Ax + a$ and a direction u, with $q = P^\top u$ and $x' = [x; 1]$,
    $$u \cdot y = x'^\top Q'_u x',\quad
    Q'_u = \mathrm{sym}(W'^\top \mathrm{diag}(q)\, V') + \mathrm{sym}(A'^\top u\, e^\top)
    = \sum \lambda_i v_i v_i^\top$$
    with e the axis of the 1. Affine maps before and after the product (an embedding, a head, a residual
    connection, BatchNorm in inference mode) are folded in, in float64.

    Args:
        layer_or_model: `Bilinear`, one-layer `BilinearMLP`, `nn.Bilinear` (given one input twice), any
            module or `Network` made of affine maps and one product of two of them; or a `BilinearAutoencoder`, whose
            outputs are its latents as functions of the scaled input.
        directions: u, shape (u, o) or (o,); default one for every output.
        top: number of terms to keep for every direction; default all, min(axes, twice the hidden units).
        features: rows F, shape (n, d), such as the decoder of a sparse autoencoder: eigenvectors are then those of
            $F Q F^\top$, a function of activations f with $x = F^\top f$; vectors have n entries. Found without a
            matrix of size n.
        data: samples, (n, *input_shape). Gates, $\sigma(Wx+b) \odot (Vx+c)$, have no exact form; with data each is
            replaced by the affine function of its argument with the least error of the product, and
            `Decomposition.residual` says which share of the output's variance that leaves out.
        solved_in: dtype of the eigenproblems; float32 takes about half the time, and the terms then add up to the
            output to 5e-6 of its size.
        pad: put linear and constant parts into the spectrum by a further axis, when there are any; False
            decomposes only the quadratic part and keeps them in `linear` and `constant`.
        example_inputs: to trace a module whose first layer is not Linear.
    Raises:
        UnsupportedOperationError: an operation that is neither affine nor that one product; it is named.
        ShapeError: `directions`, `top`, `features` or `data` do not fit.
        ArchitectureError: several inputs or outputs, or an input shape that is not known.
        NonFiniteError: NaN or infinite weights.
    Source: Pearce et al. (2024), section 3; the padding follows from their section 2.

    Examples:
        >>> import interp, torch
        >>> from weightspace.layers import Bilinear
        >>> layer, x = Bilinear(64, 8, 10), torch.randn(1, 64)
        >>> found = interp.decompose(layer)
        >>> found.values.shape, found.vectors.shape
        (torch.Size([10, 16]), torch.Size([10, 16, 64]))
        >>> terms = found.values[0] * (found.vectors[0] @ x[0]) ** 2  # of the first output
        >>> torch.allclose(terms.sum(), layer(x)[0, 0], atol=1e-4)
        True
    """
    form = recognize(layer_or_model, example_inputs, data=data)
    chosen = output_directions(directions, len(form.output))
    if top is not None and top < 0:
        raise ShapeError(f"decompose keeps a number of terms, at least 0; top is {top}")
    rows = None if features is None else _features(features, form)
    padded = pad and not form.is_homogeneous
    return decompose_form(form, chosen, top=top, padded=padded, features=rows, solved_in=solved_in)


def decompose_form(
    form: QuadraticForm,
    directions: Tensor,
    *,
    top: int | None = None,
    padded: bool,
    features: Tensor | None = None,
    solved_in: torch.dtype = torch.float64,
) -> Decomposition:
    """Decompose a recognized form; arguments as of `decompose`, all tensors in float64 and of the right shapes."""
    if padded:
        left, right, output = form.padded_factors()
        weights = directions @ output
    else:
        left, right, weights = form.left[:, :-1], form.right[:, :-1], directions @ form.output
    reduce, lift = _reduction(form, padded, features)
    if reduce is not None:
        left, right = left @ reduce, right @ reduce
    pairs = kernels.eigh_factored(left.to(solved_in), right.to(solved_in), weights.to(solved_in))
    order = torch.argsort(pairs.values.abs(), dim=1, descending=True, stable=True)
    values = pairs.values.take_along_dim(order, 1)
    kept = values.shape[1] if top is None else min(top, values.shape[1])
    vectors = pairs.vectors.mT.take_along_dim(order[:, :kept, None], 1)
    if lift is not None:
        # Rows times matrices leave each vector in one piece of memory, which halves the time of the sign rule.
        for factor in lift:
            vectors = vectors @ factor.to(solved_in).mT
        vectors = fix_signs(vectors.mT).mT
    dtype = form.dtype if form.dtype in (torch.float32, torch.float64) else torch.float32
    tolerance = torch.finfo(dtype).eps ** 0.5
    linear, constant = (directions @ part for part in form.affine_parts())
    squares = values.square()
    rank = values.abs().sum(1).square() / squares.sum(1)
    return Decomposition(
        values[:, :kept].to(dtype),
        vectors.to(dtype).contiguous(),
        directions.to(dtype),
        (linear if features is None else linear @ features.mT).to(dtype),
        constant.to(dtype),
        padded,
        torch.where(squares.sum(1) > 0, rank, 0.0).to(dtype),
        squares[:, kept:].sum(1).sqrt().to(dtype),
        _clusters(values, tolerance, kept),
        tolerance,
        form.input_shape if features is None else (len(features),),
        form.residual,
    )


def _reduction(
    form: QuadraticForm, padded: bool, features: Tensor | None
) -> tuple[Tensor | None, tuple[Tensor, ...] | None]:
    r"""A smaller space that holds all eigenvectors: how to get there, (d, r), and back, factors from (r, .) to (., n).

    The QR factorization $F = BT$ of features (n, d) gives $F Q F^\top = B (T Q T^\top) B^\top$; that of an
    embedding, $E^\top = BT$, gives $Q = B (B^\top Q B) B^\top$. B has orthonormal columns whatever the rank.
    """
    if features is not None:
        factor = torch.block_diag(features, features.new_ones(1, 1)) if padded else features
        return _factorized(factor)
    hidden, size = len(form.left), math.prod(form.input_shape)
    if form.embedding is None or len(form.embedding) >= min(size, 2 * hidden):
        return None, None
    rows = form.embedding
    if padded:
        one = rows.new_zeros(1, size + 1)
        one[:, -1] = 1.0
        rows = torch.cat([rows, one])
    else:
        rows = rows[:, :-1]
    basis, _ = torch.linalg.qr(rows.mT)
    return basis, (basis,)


def _factorized(features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """T' and the factors of B = F T^-1, from the Gram matrix of F where its condition number is below 1000.

    Then the columns of B are orthonormal up to 1e6 rounding errors (2e-10); the product B T is F in any case.
    """
    gram = features.mT @ features
    squares = kernels.eigvalsh(gram)  # of the singular values
    if len(features) >= features.shape[1] and bool(squares[-1] < 1e6 * squares[0]):
        lower = torch.linalg.cholesky(gram)
        identity = torch.eye(len(gram), dtype=gram.dtype)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        return lower, (inverse.mT, features)
    basis, triangle = torch.linalg.qr(features)
    return triangle.mT, (basis,)


def _features(features: Tensor, form: QuadraticForm) -> Tensor:
    rows = torch.as_tensor(features, dtype=torch.float64).detach().cpu()
    size = form.left.shape[1] - 1
    if rows.ndim != 2 or rows.shape[1] != size:
        raise ShapeError(
            f"features need the shape (n, {size}), one row in input space for each; they have {tuple(rows.shape)}"
        )
    if not bool(rows.sum().isfinite() or rows.isfinite().all()):  # the sum is quick, and may overflow
        raise NonFiniteError("features have NaN or infinite entries; give finite numbers")
    return rows


def output_directions(directions: Tensor | Sequence[Sequence[float]] | None, outputs: int) -> Tensor:
    """Return directions (u, o) in float64, one for every output by default, or refuse them."""
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


def _clusters(values: Tensor, tolerance: float, kept: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """For every row the sets of eigenvalues that are neighbors on the line, closer than tolerance x the largest."""
    ascending, order = values.sort(dim=1, stable=True)
    gaps = ascending.diff(dim=1)
    # In a zero form every gap is 0 and so is the bound: one cluster.
    wide = (
        (gaps >= tolerance * values.abs().amax(1, keepdim=True)) & (gaps > 0) if values.numel() else gaps > 0
    )
    found: list[tuple[tuple[int, ...], ...]] = [()] * len(values)
    for row in (~wide).any(1).nonzero().flatten().tolist():
        borders = [0, *(wide[row].nonzero().flatten() + 1).tolist(), values.shape[1]]
        sets = (order[row, start:stop].tolist() for start, stop in pairwise(borders) if stop - start > 1)
        shown = (tuple(sorted(index for index in entry if index < kept)) for entry in sets)
        found[row] = tuple(sorted(entry for entry in shown if entry))
    return tuple(found)
