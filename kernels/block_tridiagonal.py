"""Cholesky factorization of block-tridiagonal matrices whose blocks may differ in size, many matrices at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels import operators


@dataclass(frozen=True, eq=False)
class BlockTridiagonal:
    r"""Symmetric matrices of size $N = \sum_k n_k$ with $A_{k,k} = D_k$, $A_{k+1,k} = B_k$, $A_{k,k+1} = B_k^\top$.

    Only the lower triangle of a diagonal block is read. `matrix @ x` is `matrix.matmul(x)`.

    Raises:
        TypeError: a block is not a tensor.
        ValueError: the number, shapes, dtypes or devices of the blocks do not fit together.

    Examples:
        >>> import torch, kernels
        >>> diagonal, lower = [2 * torch.eye(2)] * 3, [torch.eye(2) / 2] * 2
        >>> matrix = kernels.BlockTridiagonal(diagonal, lower)
        >>> (matrix @ torch.ones(6)).tolist()
        [2.5, 2.5, 3.0, 3.0, 2.5, 2.5]
    """

    diagonal: Sequence[Tensor]
    """$D_k$, shape (..., n_k, n_k), float32 or float64; at least one; sizes may differ and be 0."""
    lower: Sequence[Tensor] = ()
    """$B_k$, shape (..., n_{k+1}, n_k), one fewer. The batch axes of all blocks broadcast."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "diagonal", tuple(self.diagonal))
        object.__setattr__(self, "lower", tuple(self.lower))
        _require_blocks(self.diagonal, self.lower)

    @property
    def sizes(self) -> tuple[int, ...]:
        """$n_k$ of every block."""
        return tuple(block.shape[-1] for block in self.diagonal)

    @property
    def shape(self) -> torch.Size:
        """(..., N, N)."""
        size = sum(self.sizes)
        batch = torch.broadcast_shapes(*(block.shape[:-2] for block in (*self.diagonal, *self.lower)))
        return torch.Size((*batch, size, size))

    def to_dense(self) -> Tensor:
        """Write the matrices out, shape (..., N, N)."""
        *batch, size, _ = self.shape
        edges = [0, *accumulate(self.sizes)]
        rows = []
        for k, block in enumerate(self.diagonal):
            before = [self.lower[k - 1]] if k else []
            after = [self.lower[k].mT] if k < len(self.lower) else []
            parts = [
                part.expand(*batch, *part.shape[-2:]) for part in [*before, _mirror_lower(block), *after]
            ]
            margins = edges[max(k - 1, 0)], size - edges[min(k + 2, len(self.diagonal))]
            rows.append(pad(torch.cat(parts, -1), margins))
        return torch.cat(rows, -2)

    def matmul(self, x: Tensor) -> Tensor:
        r"""Multiply $A x$ with $m \sum_k O(n_k^2)$ operations.

        Args:
            x: shape (..., N, m), or (N,).
        Returns:
            The shape of `x`, its batch axes broadcast with those of the matrices.
        Raises:
            ValueError: the rows of `x` are not N.
        """
        columns = _as_columns(x, self, "BlockTridiagonal.matmul")
        columns = columns.expand(
            torch.broadcast_shapes(columns.shape[:-2], self.shape[:-2]) + columns.shape[-2:]
        )
        parts = columns.split(self.sizes, -2)
        products = [_mirror_lower(block) @ part for block, part in zip(self.diagonal, parts, strict=True)]
        for k, block in enumerate(self.lower):
            products[k] = products[k] + block.mT @ parts[k + 1]
            products[k + 1] = products[k + 1] + block @ parts[k]
        product = torch.cat(products, -2)
        return product[..., 0] if x.ndim == 1 else product

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matmul(x)


@dataclass(frozen=True, eq=False)
class BlockCholesky:
    r"""$A = L L^\top$ with $L_{k,k} = C_k$ lower triangular and $L_{k+1,k} = B_k C_k^{-\top}$.

    The diagonal factors are kept as their inverses, so that every later step is a matrix product. A matrix that
    is not positive definite or not finite has the factors 0; what is computed from them is NaN for this matrix,
    its gradients are 0, and the other matrices of the batch do not notice.

    Examples:
        >>> import torch, kernels
        >>> factors = kernels.factorize(kernels.BlockTridiagonal([4 * torch.eye(2)] * 2, [torch.eye(2)]))
        >>> x = factors.solve(torch.ones(4))
        >>> x.round(decimals=4)
        tensor([0.2000, 0.2000, 0.2000, 0.2000])
    """

    matrix: BlockTridiagonal
    """$A$, its batch axes expanded."""
    inverse_factors: tuple[Tensor, ...]
    """$X_k = C_k^{-1}$, lower triangular, shape (..., n_k, n_k)."""
    couplings: tuple[Tensor, ...]
    """$L_{k+1,k}$, shape (..., n_{k+1}, n_k)."""
    info: Tensor
    """0, or the number, from 1, of the first block at which the matrix failed; int32, shape (...)."""

    def solve(self, b: Tensor, *, refinements: int = 0) -> Tensor:
        r"""Solve $A x = b$.

        Products with inverse triangles are not as backward stable as substitution: measured over condition
        numbers up to 1e14 (float64) and 1e6 (float32), $\|b - Ax\|$ and the error of x stay within 20 times those
        of a dense Cholesky solve, growing with the conditioning of the $C_k$. One step of refinement,
        $x + A^{-1}(b - Ax)$, removes the difference and costs twice the solve again.

        Args:
            b: shape (..., N, m), or (N,) where one vector is solved for.
            refinements: number of refinement steps, at least 0.
        Returns:
            x, the shape of `b`, its batch axes broadcast with those of the matrices.
        Raises:
            ValueError: the rows of `b` are not N.
        Source: Higham, Accuracy and stability of numerical algorithms (2002), chapters 12 and 14.
        """
        columns = _as_columns(b, self.matrix, "BlockCholesky.solve")
        good = self._succeeded(2)
        x = self._substitute(columns)
        if refinements:
            diagonal, lower = (
                [torch.where(good, block, 0.0) for block in blocks]
                for blocks in (self.matrix.diagonal, self.matrix.lower)
            )
            finite = BlockTridiagonal(diagonal, lower)
            for _ in range(refinements):
                x = x + self._substitute(columns - finite @ x)
        x = torch.where(good, x, torch.nan)
        return x[..., 0] if b.ndim == 1 else x

    def log_determinant(self) -> Tensor:
        r"""Compute $\log\det A = -2 \sum_k \sum_i \log (X_k)_{ii}$, shape (...).

        Its gradient with respect to the blocks is $A^{-1}$ on them: that of $D_k$ is the diagonal block k of
        `selected_inverse`, that of $B_k$ twice the lower one, since it stands in $A$ twice.
        """
        pivots = torch.where(self._succeeded(1), _join_diagonals(self.inverse_factors), 1.0)
        return torch.where(self._succeeded(0), -2 * pivots.log().sum(-1), torch.nan)

    def selected_inverse(self) -> BlockTridiagonal:
        r"""Compute the blocks of $S = A^{-1}$ where $A$ has blocks, in $\sum_k O(n_k^3)$ operations.

        With $E_k = L_{k+1,k} X_k$, from the last block backward: $S_{k+1,k} = -S_{k+1,k+1} E_k$ and
        $S_{k,k} = X_k^\top X_k - E_k^\top S_{k+1,k}$.

        Returns:
            BlockTridiagonal; its diagonal blocks are exactly symmetric. It is not the inverse of `matrix`.
        Source: Takahashi, Fagan, Chen, Formation of a sparse bus impedance matrix (1973), in blocks.
        """
        strips = list(self._inverse_strips(1))[::-1]
        halves = [strip.tensor_split([n], -2) for strip, n in zip(strips, self.matrix.sizes, strict=True)]
        good = self._succeeded(2)
        return BlockTridiagonal(
            [torch.where(good, top, torch.nan) for top, _ in halves],
            [torch.where(good, below, torch.nan) for _, below in halves[:-1]],
        )

    def inverse(self) -> Tensor:
        r"""Compute all of $S = A^{-1}$, exactly symmetric, shape (..., N, N), in $O(N^2 \max_k n_k)$ operations.

        The recursion of `selected_inverse` goes on below the neighboring block: $S_{j,k} = -S_{j,k+1} E_k$.
        """
        sizes = self.matrix.sizes
        strips = [
            pad(strip, (0, 0, sum(sizes) - strip.shape[-2], 0)) for strip in self._inverse_strips(len(sizes))
        ]
        return torch.where(self._succeeded(2), _mirror_lower(torch.cat(strips[::-1], -1)), torch.nan)

    def _inverse_strips(self, blocks_below: int) -> Iterator[Tensor]:
        """For k from the last to the first: S[k, k] and the given number of blocks under it, one column."""
        sizes = self.matrix.sizes
        strip = self.inverse_factors[-1]
        for k in reversed(range(len(sizes))):
            inverse = self.inverse_factors[k]
            corner = inverse.mT @ inverse
            below = inverse[..., :0, :]
            if k < len(self.couplings):
                step = self.couplings[k] @ inverse
                below = -strip[..., : sum(sizes[k + 1 : k + 1 + blocks_below]), :] @ step
                corner = corner - step.mT @ below[..., : sizes[k + 1], :]
            strip = torch.cat([(corner + corner.mT) / 2, below], -2)
            yield strip

    def _substitute(self, b: Tensor) -> Tensor:
        parts = list(b.split(self.matrix.sizes, -2))
        for k, inverse in enumerate(self.inverse_factors):
            if k:
                parts[k] = parts[k] - self.couplings[k - 1] @ parts[k - 1]
            parts[k] = inverse @ parts[k]
        for k in reversed(range(len(parts))):
            if k < len(self.couplings):
                parts[k] = parts[k] - self.couplings[k].mT @ parts[k + 1]
            parts[k] = self.inverse_factors[k].mT @ parts[k]
        return torch.cat(parts, -2)

    def _succeeded(self, axes: int) -> Tensor:
        return (self.info == 0).reshape(self.info.shape + (1,) * axes)


def factorize(matrix: BlockTridiagonal, *, check: bool = False) -> BlockCholesky:
    r"""Factorize symmetric positive definite block-tridiagonal matrices, $\sum_k O(n_k^3)$ operations.

    $S_0 = D_0$, $X_k = \mathrm{chol}(S_k)^{-1}$, $L_{k+1,k} = B_k X_k^\top$,
    $S_{k+1} = D_{k+1} - L_{k+1,k} L_{k+1,k}^\top$.

    Everything computed from the result has derivatives of any order with respect to the blocks; those with
    respect to a diagonal block are symmetric matrices.

    Args:
        matrix: $A$. On a GPU nothing waits for the device unless `check` is set.
        check: raise if a matrix is not positive definite; otherwise `info` tells.
    Raises:
        torch.linalg.LinAlgError: with `check`, naming the first matrices that failed and the block.
    Source: Golub and Van Loan, Matrix computations (2013), section 4.5.1, for positive definite matrices.

    Examples:
        >>> import torch, kernels
        >>> matrix = kernels.BlockTridiagonal([4 * torch.eye(2)] * 2, [torch.eye(2)])
        >>> factors = kernels.factorize(matrix)
        >>> int(factors.info)  # 0: positive definite
        0
        >>> torch.allclose(matrix @ factors.solve(torch.ones(4)), torch.ones(4))
        True
    """
    batch = matrix.shape[:-2]
    count = len(matrix.diagonal)
    blocks = [*matrix.diagonal, *matrix.lower]
    if any(block.shape[:-2] != batch for block in blocks):
        blocks = [block.expand(batch + block.shape[-2:]) for block in blocks]
        matrix = BlockTridiagonal(blocks[:count], blocks[count:])
    if all(operators.is_plain(block) and not operators.needs_derivative(block) for block in blocks):
        *factors, info = _factorize(count, *blocks)
    else:
        function = _FactorizeReverse if torch.compiler.is_compiling() else _Factorize
        *factors, info = function.apply(count, *blocks)  # pyright: ignore[reportGeneralTypeIssues]
    if check:
        _raise_failures(info)
    return BlockCholesky(matrix, tuple(factors[:count]), tuple(factors[count:]), info)


def _factorize(count: int, *blocks: Tensor) -> tuple[Tensor, ...]:
    diagonal, lower = blocks[:count], blocks[count:]
    inverses: list[Tensor] = []
    couplings: list[Tensor] = []
    failures = []
    sizes = {block.shape[-1] for block in diagonal}
    identities = {n: torch.eye(n, dtype=diagonal[0].dtype, device=diagonal[0].device) for n in sizes}
    for k, schur in enumerate(diagonal):
        if k:
            couplings.append(lower[k - 1] @ inverses[-1].mT)
            schur = schur - couplings[-1] @ couplings[-1].mT
        factor, failed = torch.linalg.cholesky_ex(schur)
        inverses.append(torch.linalg.solve_triangular(factor, identities[schur.shape[-1]], upper=False))
        failures.append(failed)
    # LAPACK lets an infinite pivot pass, and the inverse of a tiny one can overflow.
    pivots = _join_diagonals(inverses)
    order = torch.arange(count, device=pivots.device)
    owner = torch.cat([order[k : k + 1].expand(block.shape[-1]) for k, block in enumerate(diagonal)])
    bad_pivots = torch.where(torch.isfinite(pivots) & (pivots > 0), count, owner)
    bad_blocks = torch.where(torch.stack(failures, -1) == 0, count, order)
    first = torch.cat([bad_blocks, bad_pivots], -1).amin(-1)
    good = first == count
    info = torch.where(good, 0, first + 1).to(torch.int32)
    if good.device.type == "cpu" and operators.is_plain(good) and bool(good.all()):
        return *inverses, *couplings, info
    # Zeros rather than NaN, so that no derivative is 0 * NaN: a shared block gets the gradient of the others.
    return *(torch.where(good[..., None, None], part, 0.0) for part in (*inverses, *couplings)), info


class _FactorizeReverse(torch.autograd.Function):
    # With P(M) the lower triangle of M, its diagonal halved: d chol(S) = C P(X dS X^T), hence
    # dX = -P(X dS X^T) X. Only products with the results themselves, so that the derivatives differentiate.

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *blocks: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _factorize(count, *blocks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = inputs[0]
        ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(*output[:-1])

    @staticmethod
    def backward(ctx: Any, *by_factors: Tensor) -> Any:
        inverses, couplings = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        by_diagonal: list[Tensor] = []
        by_lower: list[Tensor] = []
        for k in reversed(range(ctx.count)):
            inner = by_factors[k] @ inverses[k].mT
            if k < len(couplings):
                by_coupling = by_factors[ctx.count + k] - 2 * by_diagonal[-1] @ couplings[k]
                by_lower.append(by_coupling @ inverses[k])
                inner = inner + by_coupling.mT @ couplings[k]
            by_schur = inverses[k].mT @ _halve_diagonal(inner) @ inverses[k]
            by_diagonal.append(-(by_schur + by_schur.mT) / 2)
        return None, *by_diagonal[::-1], *by_lower[::-1]


class _Factorize(_FactorizeReverse):
    """With forward mode, which Dynamo does not trace."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _FactorizeReverse.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[:-1])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inverses, couplings = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        of_inverses: list[Tensor] = []
        of_couplings: list[Tensor] = []
        for k, inverse in enumerate(inverses):
            schur = (tangents[k] + tangents[k].mT) / 2
            if k:
                change = of_couplings[-1] @ couplings[k - 1].mT
                schur = schur - change - change.mT
            inner = _halve_diagonal(inverse @ schur @ inverse.mT)
            of_inverses.append(-inner @ inverse)
            if k < len(couplings):
                of_couplings.append(tangents[ctx.count + k] @ inverse.mT - couplings[k] @ inner.mT)
        return *of_inverses, *of_couplings, None


def _halve_diagonal(a: Tensor) -> Tensor:
    return (torch.tril(a) + torch.tril(a, -1)) / 2


def _mirror_lower(a: Tensor) -> Tensor:
    return torch.tril(a) + torch.tril(a, -1).mT


def _join_diagonals(blocks: Sequence[Tensor]) -> Tensor:
    return torch.cat([block.diagonal(dim1=-2, dim2=-1) for block in blocks], -1)


def _as_columns(x: Tensor, matrix: BlockTridiagonal, function: str) -> Tensor:
    columns = x[:, None] if x.ndim == 1 else x
    size = sum(matrix.sizes)
    if columns.ndim < 2 or columns.shape[-2] != size:
        raise ValueError(
            f"`{function}` needs {size} rows, shape (..., {size}, m) or ({size},); got {tuple(x.shape)}: "
            f"give a batch of vectors as x[..., None]"
        )
    return columns


def _raise_failures(info: Tensor) -> None:
    failed = info.nonzero()
    if not len(failed):
        return
    shown = ", ".join(
        f"{tuple(index.tolist())} at block {int(info[tuple(index)]) - 1}" for index in failed[:3]
    ) + (", ..." if len(failed) > 3 else "")
    raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
        f"`factorize` needs finite, positive definite matrices; {len(failed)} of {info.numel()} are not, batch "
        f"index {shown} (from 0): add a multiple of the identity to the diagonal blocks, or use float64"
    )


def _require_blocks(diagonal: Sequence[Tensor], lower: Sequence[Tensor]) -> None:
    if not diagonal or len(lower) != len(diagonal) - 1:
        raise ValueError(
            f"`BlockTridiagonal` needs K >= 1 diagonal blocks and K - 1 lower ones; got {len(diagonal)} and "
            f"{len(lower)}: pass lower=() for a single block"
        )
    for name, blocks in (("diagonal", diagonal), ("lower", lower)):
        for k, block in enumerate(blocks):
            if not isinstance(block, Tensor):
                raise TypeError(
                    f"`BlockTridiagonal` needs tensors; {name}[{k}] is a {type(block).__name__}: "
                    f"pass torch.as_tensor of it"
                )
            if block.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"`BlockTridiagonal` needs float32 or float64; {name}[{k}] has dtype {block.dtype}: "
                    f"convert it with .to(torch.float64)"
                )
            if block.dtype != diagonal[0].dtype or block.device != diagonal[0].device:
                raise ValueError(
                    f"`BlockTridiagonal` needs one dtype and device; diagonal[0] is {diagonal[0].dtype} on "
                    f"{diagonal[0].device}, {name}[{k}] {block.dtype} on {block.device}: convert one of them"
                )
            rows, columns = (k, k) if name == "diagonal" else (k + 1, k)
            expected = diagonal[rows].shape[-1:] + diagonal[columns].shape[-1:]
            if block.ndim < 2 or block.shape[-2:] != expected:
                raise ValueError(
                    f"`BlockTridiagonal` needs diagonal[k] (..., n_k, n_k) and lower[k] (..., n_k+1, n_k); "
                    f"{name}[{k}] has shape {tuple(block.shape)}, not (..., {', '.join(map(str, expected))}): "
                    f"an upper off-diagonal block is passed as its transpose .mT"
                )
