"""A subspace under a symmetric operator: checked products, an orthonormal basis, the projected matrix."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.eigensolver import eigh


class Products:
    """The operator, counted, checked, and divided by a power of two that brings it near 1."""

    def __init__(self, apply: Callable[[Tensor], Tensor], n: int, grad: bool) -> None:
        self.apply, self.n, self.grad = apply, n, grad
        self.calls, self.unit = 0, 1.0

    def __call__(self, rows: Tensor) -> Tensor:
        columns = rows.mT.contiguous()
        with torch.set_grad_enabled(self.grad):
            product = self.apply(columns)
        self.calls += 1
        if not isinstance(product, Tensor) or product.shape != columns.shape:
            found = tuple(product.shape) if isinstance(product, Tensor) else type(product).__name__
            raise ValueError(
                f"`extreme_eigh` needs an operator that maps (n, m) to (n, m); for {tuple(columns.shape)} it "
                f"returned {found}: apply it to every column"
            )
        if product.dtype != columns.dtype or product.device != columns.device:
            raise ValueError(
                f"`extreme_eigh` gave the operator {columns.dtype} on {columns.device} and got {product.dtype} on "
                f"{product.device}: pass the dtype= and device= that the operator has"
            )
        product = product.detach()
        largest = float(product.abs().amax())
        if not math.isfinite(largest):
            entry = tuple((~torch.isfinite(product)).nonzero()[0].tolist())
            raise ValueError(
                f"`extreme_eigh`: the operator returned {float(product[entry])} at entry {entry} in call "
                f"{self.calls}, for finite vectors of norm 1: look there for an overflow or a division by zero"
            )
        if self.calls == 1 and largest > 0:
            # So that squares stay in the range; 2^-120 and 2^120 are numbers in float32 too.
            self.unit = math.ldexp(1.0, max(-120, min(120, math.frexp(largest)[1])))
        return (product / self.unit).mT


class Subspace:
    """Orthonormal rows V, their images under A, and V A V'."""

    def __init__(self, like: Tensor, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._rows, self._images = (like.new_empty(capacity, like.shape[-1]) for _ in range(2))
        self._projected = like.new_empty(capacity, capacity)

    @property
    def rows(self) -> Tensor:
        return self._rows[: self.size]

    @property
    def images(self) -> Tensor:
        return self._images[: self.size]

    @property
    def projected(self) -> Tensor:
        return self._projected[: self.size, : self.size]

    def append(self, rows: Tensor, images: Tensor) -> Tensor:
        """Extend the basis and return the products of the new images with all of it."""
        new = slice(self.size, self.size + len(rows))
        for held, added in ((self._rows, rows), (self._images, images)):
            held.narrow(0, self.size, len(rows)).copy_(added)
        self.size = new.stop
        products = images @ self.rows.mT
        self._projected[new, : self.size] = products
        self._projected[: self.size, new] = products.mT
        return products

    def restrict(self, rotation: Tensor) -> None:
        """Keep the span of the columns of `rotation` only."""
        rows, images = rotation.mT @ self.rows, rotation.mT @ self.images
        projected = rotation.mT @ self.projected @ rotation
        self.size = len(rows)
        self.rows[:], self.images[:], self.projected[:] = rows, images, projected


def require_symmetric_products(products: Tensor, images: Tensor) -> None:
    r"""Refuse an operator with x' A y != y' A x beyond rounding.

    Args:
        products: $V A V^\top$, shape (m, m), formed from all of $V$ and of the images.
        images: $V A^\top$, shape (m, n).
    """
    asymmetry = float((products - products.mT).abs().amax())
    norm = float(torch.linalg.vector_norm(images, dim=-1).amax())
    if asymmetry > 100 * math.sqrt(images.shape[-1]) * torch.finfo(products.dtype).eps * norm:
        raise ValueError(
            f"`extreme_eigh` needs a symmetric operator; x' A y and y' A x differ by {asymmetry / norm:.3g} times the "
            f"norm of A for two vectors of the iteration: pass x -> (A x + A' x) / 2, or compute in float64"
        )


def orthonormalize(block: Tensor, rows: Tensor, products: Tensor | None = None) -> Tensor:
    """Orthonormal rows that span what `block` adds to the orthonormal `rows`, fewer where it adds less.

    `products` is `block @ rows.mT` where it is known.
    """
    epsilon = torch.finfo(block.dtype).eps
    before = torch.linalg.vector_norm(block, dim=-1)
    for _ in range(4):
        block = torch.addmm(block, block @ rows.mT if products is None else products, rows, alpha=-1)
        products = None
        length = torch.linalg.vector_norm(block, dim=-1)
        # Cancellation enlarges the errors by this factor; the next turn removes them.
        worst = float((length / before).amin())
        if not worst > 100 * epsilon:
            kept = length > 100 * epsilon * before
            block, length = block[kept], length[kept]
            if not len(block):
                break
        block = block / length[:, None]
        if len(block) > 1:
            # Orthonormal by the eigenpairs of the Gram matrix (SVQB).
            values, rotation = eigh(block @ block.mT)
            large = values > epsilon**0.5 * values[-1]
            block = (rotation[:, large] / values[large].sqrt()).mT @ block
            worst = min(worst, float(values[0]))
        if worst > 0.5:
            break
        before = torch.ones_like(block[:, 0])
    return block
