"""Eigenpairs of symmetric matrices given by two factors and weights, many weights at once."""

import torch
from torch import Tensor

from kernels.eigensolver import Eigh, eigh
from kernels.operators import needs_derivative
from kernels.scaling import fix_signs, widen


def eigh_factored(left: Tensor, right: Tensor, weights: Tensor) -> Eigh:
    r"""Decompose the symmetric part of $L^\top \mathrm{diag}(w)\, R$ for every row w of `weights`.

    $Q_w = \tfrac12 (L^\top \mathrm{diag}(w) R + R^\top \mathrm{diag}(w) L) = V \Lambda V^\top$, a matrix of
    rank at most $r = \min(d, 2h)$.

    If 2h < d, one reduced QR $[L; R]^\top = B\,[T_L\; T_R]$ serves all weights: the eigenpairs
    $(\Lambda, U)$ of the r x r matrices $\mathrm{sym}(T_L \mathrm{diag}(w) T_R^\top)$ give $V = B U$, and no
    d x d matrix is formed. Otherwise, and where the QR would cost more than it saves, the dense matrices are
    formed and decomposed, and the r values of largest magnitude kept. Zero, duplicate and parallel rows do no
    harm; where they lower the rank, some of the r values are 0 and their vectors an arbitrary completion.

    Vectors are orthonormal with the sign rule of `eigh`. A row of `weights` with a NaN or an infinity gets
    NaN pairs and leaves the others alone; in `left` or `right` it makes all pairs NaN. Gradients flow as
    through `eigh`, always by way of the QR where 2h < d; they then need linearly independent rows of
    [L; R], as those of any QR do, and are NaN or inaccurate for dead or tied rows.

    Args:
        left: $L$, shape (h, d), real; half types are computed in float32.
        right: $R$, shape (h, d), dtype and device of `left`.
        weights: shape (u, h), dtype and device of `left`; h, d and u may be 0.
    Returns:
        Eigh with values (u, r), ascending, and vectors (u, d, r) with unit columns, in the dtype of `left`.
        The d - r eigenvalues that are left out are 0.
    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        TypeError: an argument is not a tensor.
        torch.linalg.LinAlgError: LAPACK did not converge.
    Cost: $O(d h^2 + u (h^3 + d h^2))$ against $O(u d^3)$.
    Source: Pearce et al., Bilinear MLPs enable weight-based mechanistic interpretability (2024), section 3,
        defines the matrices and forms them; the reduction by QR is the usual one for a product of low rank.

    Examples:
        >>> import torch, kernels
        >>> left, right = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0))
        >>> values, vectors = kernels.eigh_factored(left, right, torch.eye(3))
        >>> values.shape, vectors.shape  # 6 of the 500 eigenvalues are not 0
        (torch.Size([3, 6]), torch.Size([3, 500, 6]))
    """
    _require_factors(left, right, weights)
    dtype = left.dtype
    left, right, weights = widen(left), widen(right), widen(weights)
    hidden, size = left.shape
    differentiable = any(needs_derivative(tensor) for tensor in (left, right, weights))
    rank = min(2 * hidden, size)
    if rank == size or not (differentiable or _reduction_pays(rank, size, len(weights))):
        values, vectors = eigh(_symmetric_products(left, right, weights))
        if rank < size:
            kept = values.abs().topk(rank, -1, sorted=False).indices.sort(-1).values
            values, vectors = (
                values.gather(-1, kept),
                vectors.gather(-1, kept[:, None, :].expand(-1, size, -1)),
            )
        return Eigh(values.to(dtype), vectors.to(dtype))
    basis, triangle = torch.linalg.qr(torch.cat([left, right]).mT)
    inner = _symmetric_products(triangle[:, :hidden].mT, triangle[:, hidden:].mT, weights)
    values, vectors = eigh(inner)
    # The sign rule looks at the entries of the vectors that are returned, so it is applied after lifting, which
    # puts each vector in one piece of memory: that halves the time of the rule.
    lifted = fix_signs((vectors.mT @ basis.mT).mT) if hidden else vectors.new_zeros(len(weights), size, 0)
    return Eigh(values.to(dtype), lifted.to(dtype))


def _reduction_pays(rank: int, size: int, directions: int) -> bool:
    """Whether QR, smaller eigenproblems and lifting take less time than the large eigenproblems.

    Nanoseconds, fitted to measurements on one core with AVX-512 (benchmarks/eigh_factored.py).
    """

    def decomposition(n: int) -> float:
        return 0.1 * n**3 + 5 * n**2

    saved = directions * (decomposition(size) - decomposition(rank))
    lifting = directions * size * rank * (0.05 * rank + 2)
    return saved > 1.2e5 + 0.2 * size * rank**2 + lifting


def _symmetric_products(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """sym(L' diag(w) R) for every w, shape (u, n, n)."""
    products = (left.mT * weights[:, None, :]) @ right
    return (products + products.mT) / 2


def _require_factors(left: Tensor, right: Tensor, weights: Tensor) -> None:
    tensors = {"left": left, "right": right, "weights": weights}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"`eigh_factored` needs tensors; `{name}` is a {type(tensor).__name__}: "
                f"pass torch.as_tensor({name})"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"`eigh_factored` needs a real floating-point dtype; `{name}` has dtype {tensor.dtype}: "
                f"pass {name}.to(torch.float64)"
            )
        if tensor.dtype != left.dtype or tensor.device != left.device:
            raise ValueError(
                f"`eigh_factored` needs one dtype and device; `left` is {left.dtype} on {left.device}, "
                f"`{name}` {tensor.dtype} on {tensor.device}: convert one of them"
            )
    if left.ndim != 2 or right.shape != left.shape or weights.ndim != 2 or weights.shape[-1] != left.shape[0]:
        raise ValueError(
            "`eigh_factored` needs left (h, d), right (h, d) and weights (u, h); got "
            f"{tuple(left.shape)}, {tuple(right.shape)} and {tuple(weights.shape)}: "
            "give a single w as w[None]"
        )
