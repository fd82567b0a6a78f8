"""A few extreme eigenpairs of a large symmetric operator that is known only by its products with vectors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.eigensolver import eigh
from kernels.scaling import fix_signs
from kernels.subspace import Products, Subspace, orthonormalize, require_symmetric_products

ENDS = ("largest", "smallest", "both", "magnitude")
DENSE_SIZE = 256
"""Up to this size the matrix is formed: the iteration would need about as many products."""
RESCUE_SIZE = 2048
"""Up to this size the matrix is formed once 2 n products have not sufficed."""


@dataclass(frozen=True, eq=False)
class ExtremeEigh:
    r"""Eigenpairs of a symmetric operator. Each interval $[w_i - r_i, w_i + r_i]$ holds one (Weyl).

    Examples:
        >>> import torch, kernels
        >>> diagonal = torch.arange(500, dtype=torch.float64).unsqueeze(1)
        >>> found = kernels.extreme_eigh(lambda x: diagonal * x, 500, 1, which="smallest")
        >>> bool(abs(found.values[0]) <= found.residuals[0] + 1e-9)
        True
    """

    values: Tensor
    """$w$, ascending, shape (k,)."""
    vectors: Tensor
    """Shape (n, k): orthonormal columns with the sign rule of `kernels.eigh`."""
    residuals: Tensor
    r"""$r_i = \|A v_i - w_i v_i\|_2$ up to rounding, shape (k,)."""
    converged: Tensor
    """Whether the residual is within the tolerance, bool, shape (k,). It does not exclude a missed eigenvalue."""
    verified: bool
    """Whether the search for missed eigenvalues was finished, or was not needed since the matrix was formed."""
    iterations: int
    """Calls of the operator."""


def extreme_eigh(
    operator: Callable[[Tensor], Tensor] | Tensor,
    n: int,
    k: int,
    *,
    which: str = "largest",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    tolerance: float | None = None,
    max_iterations: int = 5000,
    block: int = 1,
    initial: Tensor | None = None,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
    verify: bool = True,
    check: bool = False,
) -> ExtremeEigh:
    r"""Compute k eigenpairs at the ends of the spectrum of a symmetric operator, $A v_i = w_i v_i$.

    Block Lanczos with full reorthogonalization and thick restarts. The matrix is formed from its columns and
    decomposed where n is at most 256, where k is above about n / 4, and where 2 n products have not sufficed and n
    is at most 2048.

    No method that only sees products can prove that nothing was missed, and `converged` speaks of residuals alone:
    Lanczos from one vector sees one copy of a repeated eigenvalue. With `verify`, a second iteration from a random
    vector orthogonal to the vectors found looks for eigenvalues beyond them, until
    $1.648 \sqrt n\, e^{-(2j-1)\sqrt\epsilon} \le 10^{-3}$ after j steps, where $\epsilon$ is the distance from
    the best value it sees to the innermost value found, relative to the width of the spectrum, and at least 1e-3.
    In exact arithmetic and without restarts this bounds the probability to miss one.

    Args:
        operator: takes X of shape (n, m), any m >= 1, contiguous, and returns $A X$, shape (n, m); or the matrix,
            (n, n), both triangles. It runs in the caller's gradient mode; the result is detached.
        n: size of $A$, may be 0.
        k: number of pairs, 0 to n.
        which: "largest", "smallest", "both" (k - k // 2 largest and k // 2 smallest) or "magnitude" ($|w|$).
        dtype: float32 or float64; None takes that of the matrix, or float64.
        device: None takes that of the matrix, or the CPU.
        tolerance: a pair has converged when its residual is at most this times the largest $|w|$ seen;
            None is $u^{2/3}$, u the machine epsilon of `dtype`.
        max_iterations: limit on the calls of the operator; the best pairs so far are returned.
        block: vectors per product. 1 needs the fewest products in all; more make use of operators that are
            cheaper on many vectors at once, and see as many copies of an eigenvalue.
        initial: start vectors, shape (n, m); takes the place of `block`.
        preconditioner: maps residuals (n, m) to directions, roughly as $(A - w I)^{-1}$ (Davidson's method).
        generator: of the random vectors, on `device`; None is a new one with seed 0: equal calls, equal results.
        verify: search for missed eigenvalues; in benchmarks/extremal.py this costs from a third to 1.3 times as
            many products again, the more the closer the next eigenvalue is.
        check: raise if a pair has not converged.
    Returns:
        ExtremeEigh, values ascending.
    Raises:
        ValueError: an argument or the shape, dtype or device that `operator` returns is wrong; `operator` returns a
            NaN or an infinity, or is not symmetric: $x^\top A y \neq y^\top A x$ for vectors of the iteration.
        torch.linalg.LinAlgError: with `check`, a pair has not converged.
    Source: Wu, Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems (2000); the
        probability by Kuczynski, Wozniakowski, Estimating the largest eigenvalue by the power and Lanczos
        algorithms with a random start (1992).

    Examples:
        >>> import torch, kernels
        >>> diagonal = torch.arange(1000, dtype=torch.float64).unsqueeze(1)
        >>> found = kernels.extreme_eigh(lambda x: diagonal * x, 1000, 2)
        >>> found.values.round(decimals=6)
        tensor([998., 999.], dtype=torch.float64)
        >>> bool(found.converged.all()), found.verified
        (True, True)
    """
    matrix = operator.detach() if isinstance(operator, Tensor) else None
    if matrix is not None:
        dtype, device = dtype or matrix.dtype, device or matrix.device
    dtype, device = dtype or torch.float64, torch.device(device or "cpu")
    _require_arguments(matrix, n, k, which, dtype, block, initial)
    apply = operator if matrix is None else matrix.to(dtype=dtype, device=device).matmul
    products = Products(apply, n, torch.is_grad_enabled())  # pyright: ignore[reportArgumentType]
    search = _Search(n, k, which, torch.finfo(dtype).eps ** (2 / 3) if tolerance is None else tolerance)
    if generator is None:
        generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        if initial is None:
            start = torch.empty(block, n, dtype=dtype, device=device).normal_(generator=generator)
        else:
            start = initial.to(dtype=dtype, device=device).mT.contiguous()
        pairs, verified = _solve(products, start, search, max_iterations, preconditioner, generator, verify)
        order = torch.argsort(pairs.values)
        vectors = fix_signs(pairs.rows[order].mT.contiguous()) if k else start.new_empty(n, 0)
        residuals, limit = pairs.residuals[order], search.tolerance * pairs.norm
        converged = residuals <= limit
    unit = products.unit
    if check and not bool(converged.all()):
        raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
            f"`extreme_eigh`: {int((~converged).sum())} of {k} pairs have not converged after {products.calls} calls "
            f"of the operator; the largest residual is {float(residuals.max()) * unit:.3g} and the limit "
            f"{limit * unit:.3g}: raise max_iterations (now {max_iterations}) or tolerance (now "
            f"{search.tolerance:.3g}), or give a preconditioner"
        )
    return ExtremeEigh(
        pairs.values[order] * unit, vectors, residuals * unit, converged, verified, products.calls
    )


def _solve(
    products: Products,
    start: Tensor,
    search: "_Search",
    max_iterations: int,
    preconditioner: Callable[[Tensor], Tensor] | None,
    generator: torch.Generator,
    verify: bool,
) -> tuple["_Pairs", bool]:
    n, k = search.n, search.k
    capacity = 2 * k + max(32, 4 * len(start))
    if k and n > DENSE_SIZE and 2 * capacity <= n:
        patience = 2 * n // len(start) if n <= RESCUE_SIZE else max_iterations
        lanczos = _Lanczos(products, start, capacity, min(patience, max_iterations), generator)
        pairs, verified = _iterate(lanczos, search, preconditioner, verify)
        if not lanczos.spent or max_iterations <= patience:
            return pairs, verified
    return _decompose_dense(products, start, search), True


@dataclass(frozen=True, eq=False)
class _Pairs:
    values: Tensor
    rows: Tensor
    errors: Tensor  # A v - w v, in rows
    residuals: Tensor
    norm: float


@dataclass(frozen=True)
class _Search:
    """What is looked for, and how to know that it was found."""

    n: int
    k: int
    which: str
    tolerance: float

    def rank(self, values: Tensor) -> Tensor:
        """Indices of ascending values, the most wanted first."""
        ascending = torch.arange(len(values), device=values.device)
        if self.which == "smallest":
            return ascending
        if self.which == "largest":
            return ascending.flip(0)
        if self.which == "magnitude":
            return torch.argsort(values.abs(), descending=True, stable=True)
        return torch.stack([ascending.flip(0), ascending], 1).flatten()[: len(values)]

    def select(self, values: Tensor, rotation: Tensor, rows: Tensor, images: Tensor) -> "_Pairs":
        """The k most wanted of the Ritz pairs."""
        rank = self.rank(values)[: self.k]
        chosen = rotation[:, rank].mT
        vectors = chosen @ rows
        errors = chosen @ images - values[rank, None] * vectors
        norm = float(values.abs().amax()) if len(values) else 0.0
        return _Pairs(values[rank], vectors, errors, torch.linalg.vector_norm(errors, dim=-1), norm)

    def margins(self, found: Tensor, others: Tensor) -> tuple[float, float]:
        """How far the others stay inside the values found, negative beyond: absolute, and relative to the width."""
        ordered = found.sort().values.tolist()
        first, last = float(others[0]), float(others[-1])
        below = {"largest": 0, "smallest": self.k, "both": self.k // 2}.get(self.which)
        if below is None:
            upper = min(map(abs, ordered))
            lower: float | None = -upper
        else:
            upper = ordered[below] if below < self.k else None
            lower = ordered[below - 1] if below else None
        margins = []
        if upper is not None:
            margins.append((upper - last, upper - min(first, ordered[0])))
        if lower is not None:
            margins.append((first - lower, max(last, ordered[-1]) - lower))
        # A width of 0 leaves no room for a missed eigenvalue.
        return min(d for d, _ in margins), min(d / width if width > 0 else 1.0 for d, width in margins)

    def steps(self, margin: float) -> float:
        """Lanczos steps until a missed eigenvalue is improbable, see `extreme_eigh`."""
        return (math.log(1e3 * 1.648 * math.sqrt(self.n)) / math.sqrt(max(margin, 1e-3)) + 1) / 2


class _Lanczos:
    """A subspace that grows by products; `block` is the orthonormal continuation, empty if it is invariant."""

    def __init__(
        self, products: Products, start: Tensor, capacity: int, limit: int, generator: torch.Generator
    ) -> None:
        self.products, self.limit, self.generator = products, limit, generator
        self.subspace = Subspace(start, capacity)
        self.like = start
        self.block = orthonormalize(start, self.subspace.rows)

    @property
    def full(self) -> bool:
        return self.subspace.size + len(self.block) > self.subspace.capacity

    @property
    def spent(self) -> bool:
        return self.products.calls >= self.limit

    def restart_randomly(self) -> None:
        random = torch.empty_like(self.like).normal_(generator=self.generator)
        self.block = orthonormalize(random, self.subspace.rows)

    def step(self) -> None:
        if not len(self.block):
            self.restart_randomly()
        images = self.products(self.block)
        products = self.subspace.append(self.block, images)
        self.block = orthonormalize(images, self.subspace.rows, products)


def _iterate(
    lanczos: _Lanczos, search: _Search, preconditioner: Callable[[Tensor], Tensor] | None, verify: bool
) -> tuple[_Pairs, bool]:
    while True:
        pairs = _converge(lanczos, search, preconditioner)
        if not verify or bool((pairs.residuals > search.tolerance * pairs.norm).any()):
            return pairs, False
        missed = _look_for_missed(lanczos, search, pairs)
        if not missed:
            return pairs, missed is False


def _converge(
    lanczos: _Lanczos, search: _Search, preconditioner: Callable[[Tensor], Tensor] | None
) -> _Pairs:
    subspace, unchecked = lanczos.subspace, lanczos.products.calls == 0
    step = 0
    while True:
        lanczos.step()
        step += 1
        # A look costs about k / 2 steps.
        due = preconditioner or step % max(10, search.k) == 0
        invariant = not len(lanczos.block)
        if subspace.size < search.k or not (due or lanczos.full or lanczos.spent or invariant):
            continue
        if unchecked:
            require_symmetric_products(subspace.rows @ subspace.images.mT, subspace.images)
            unchecked = False
        values, rotation = eigh(subspace.projected)
        pairs = search.select(values, rotation, subspace.rows, subspace.images)
        still_open = pairs.residuals > search.tolerance * pairs.norm
        if lanczos.spent or not bool(still_open.any()):
            subspace.restrict(rotation[:, search.rank(values)[: search.k]])
            return pairs
        if preconditioner:
            directions = preconditioner(pairs.errors[still_open].mT.contiguous()).mT
            lanczos.block = orthonormalize(directions[: subspace.capacity // 4], subspace.rows)
        if lanczos.full:
            kept = (search.k + subspace.capacity) // 2
            subspace.restrict(rotation[:, search.rank(values)[:kept]])


def _look_for_missed(lanczos: _Lanczos, search: _Search, pairs: _Pairs) -> bool | None:
    """Whether an eigenvalue beyond the pairs exists, which are the whole subspace; None if calls run out."""
    k, subspace = search.k, lanczos.subspace
    lanczos.restart_randomly()
    steps, next_look = 0, search.steps(1.0)
    while True:
        lanczos.step()
        steps += 1
        exhausted = not len(lanczos.block)  # a random vector has met every other eigenvalue
        if not (exhausted or lanczos.spent or lanczos.full or steps >= next_look):
            continue
        # The pairs stay the first k rows; the others span a Krylov space orthogonal to them.
        values, rotation = eigh(subspace.projected[k:, k:])
        distance, margin = search.margins(pairs.values, values)
        if lanczos.full:
            kept = rotation[:, search.rank(values)[: (subspace.capacity - k) // 2]]
            subspace.restrict(torch.block_diag(torch.eye(k).to(kept), kept))
        if distance < -search.tolerance * pairs.norm:
            return True
        if exhausted or steps >= search.steps(margin):
            return False
        if lanczos.spent:
            return None
        next_look = min(search.steps(margin), 2 * steps)


def _decompose_dense(products: Products, like: Tensor, search: _Search) -> _Pairs:
    n = search.n if search.k else 0
    identity = torch.eye(n, dtype=like.dtype, device=like.device)
    matrix = torch.cat([products(rows) for rows in identity.split(1024)]) if n else identity
    if n:
        require_symmetric_products(matrix, matrix)
    values, rotation = eigh((matrix + matrix.mT) / 2)
    return search.select(values, rotation, identity, matrix)


def _require_arguments(
    matrix: Tensor | None, n: int, k: int, which: str, dtype: torch.dtype, block: int, initial: Tensor | None
) -> None:
    if matrix is not None and matrix.shape != (n, n):
        raise ValueError(
            f"`extreme_eigh` takes one matrix of shape (n, n); n = {n}, the matrix has shape {tuple(matrix.shape)}: "
            f"loop over a batch, or use `top_eigh`"
        )
    if not 0 <= k <= n:
        raise ValueError(f"`extreme_eigh` has {n} eigenpairs to choose from; k = {k}: pass a k from 0 to {n}")
    if which not in ENDS:
        raise ValueError(f"`extreme_eigh` looks for one of {ENDS}; which = {which!r}: pass one of them")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`extreme_eigh` computes in float32 or float64; dtype = {dtype}: pass torch.float32"
        )
    if block < 1:
        raise ValueError(f"`extreme_eigh` needs at least one vector per product; block = {block}: pass 1")
    if initial is not None and (initial.ndim != 2 or len(initial) != n or not initial.shape[1]):
        raise ValueError(
            f"`extreme_eigh` needs start vectors of shape (n, m), n = {n}, m >= 1; `initial` has shape "
            f"{tuple(initial.shape)}: give one vector as v[:, None]"
        )
