"""The polynomial that a network of multilinear layers computes, written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize_layers
from weightspace.errors import ShapeError
from weightspace.network import Network

MOST_MONOMIALS = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class Polynomial:
    r"""$y_u = \sum_m c_{um} \prod_i x_i^{e_{mi}}$, exact up to rounding in float64.

    Attributes:
        exponents: e, shape (m, d), integers; by degree, then by the variables of a monomial.
        coefficients: c, shape (o, m).
    """

    exponents: Tensor
    coefficients: Tensor

    @property
    def degree(self) -> int:
        """Largest degree of a monomial with a coefficient that is not zero; 0 for none."""
        used = self.coefficients.any(0)
        return int(self.exponents[used].sum(1).max()) if bool(used.any()) else 0

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate on (n, d); returns (n, o) in float64."""
        x = x.double()
        monomials = x.new_ones(len(x), len(self.exponents))
        for variable, exponents in enumerate(self.exponents.mT):
            powers = torch.stack([x[:, variable] ** k for k in range(int(exponents.max()) + 1)], 1)
            monomials = monomials * powers[:, exponents]
        return monomials @ self.coefficients.mT

    def terms(self, output: int, *, top: int = 10) -> list[tuple[float, str]]:
        """Return the largest coefficients of an output with their monomials, such as (0.5, "x0^2 x3")."""
        row = self.coefficients[output]
        order = row.abs().argsort(descending=True, stable=True)[:top]
        return [
            (float(row[index]), _written(self.exponents[index])) for index in order.tolist() if row[index]
        ]

    def __repr__(self) -> str:
        (count, variables), outputs = self.exponents.shape, len(self.coefficients)
        return (
            f"Polynomial({outputs} outputs, degree {self.degree}, {count} monomials of {variables} variables)"
        )


def expand(
    model: nn.Module | Network, *, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> Polynomial:
    r"""Write out the polynomial of a network of affine maps and products, such as Mu-layers and quadratic neurons.

    BatchNorm in inference mode is affine and part of it; LayerNorm is no polynomial and is refused by name, unless its
    scale is frozen first (`interp.freeze_norms`). L layers in succession have degree $2^L$.

    Raises:
        ShapeError: more than 100,000 monomials, $\binom{d + 2^L}{d}$: `interp.unfold` keeps the tree instead.
        UnsupportedOperationError, ArchitectureError, NonFiniteError: as of `interp.decompose`.
    Source: Cheng, Chrysos, Georgopoulos, Cevher, Multilinear operator networks (2024), section 3, for Mu-layers.

    Examples:
        >>> import interp, torch
        >>> from weightspace.layers import BilinearMLP
        >>> model, x = BilinearMLP(3, 4, 2, layers=2), torch.ones(1, 3)
        >>> polynomial = interp.expand(model)
        >>> polynomial.degree
        4
        >>> torch.allclose(polynomial(x).float(), model(x), atol=1e-4)
        True
    """
    forms = recognize_layers(model, example_inputs)
    first, *_ = forms
    size, degree = first.left.shape[1] - 1, 2 ** len(forms)
    count = math.comb(size + degree, degree)
    if count > MOST_MONOMIALS:
        raise ShapeError(
            f"a polynomial of degree {degree} in {size} variables has {count:,} monomials, more than "
            f"{MOST_MONOMIALS:,}; interp.unfold keeps the tree of layers instead"
        )
    # Homogeneous in x and the 1, whose exponent fills up to the degree.
    basis = _Monomials(size + 1)
    values, order = torch.eye(size + 1, dtype=torch.float64), 1
    for form in forms:
        values, order = _next_layer(form, values, order, basis), 2 * order
    exponents = basis.exponents(order)[:, :-1]
    ordering = torch.argsort(exponents.sum(1), stable=True)
    return Polynomial(exponents[ordering], values[:-1][:, ordering])


def _next_layer(form: QuadraticForm, values: Tensor, order: int, basis: _Monomials) -> Tensor:
    """The outputs of a form, and the 1, as homogeneous polynomials of twice the order, (o + 1, monomials)."""
    left, right, output = form.padded_factors()
    one = values[-1:]
    first, second = torch.cat([left @ values, one]), torch.cat([right @ values, one])
    products = basis.multiply(first, second, order)
    return torch.cat([output @ products[:-1], products[-1:]])


class _Monomials:
    """Homogeneous monomials of some variables. A key of a product is the sum of the keys."""

    def __init__(self, variables: int):
        self.variables = variables
        generator = torch.Generator().manual_seed(0)
        self.keys = torch.randint(-(2**62), 2**62, (variables,), generator=generator)  # sums may wrap around

    def exponents(self, order: int) -> Tensor:
        """All monomials of an order, (m, variables), in the order of combinations_with_replacement."""
        chosen = torch.tensor(list(combinations_with_replacement(range(self.variables), order)))
        exponents = torch.zeros(len(chosen), self.variables, dtype=torch.long)
        return exponents.scatter_add_(1, chosen, torch.ones_like(chosen))

    def multiply(self, first: Tensor, second: Tensor, order: int) -> Tensor:
        """Multiply polynomials of an order row by row; coefficients over the monomials of twice the order."""
        factors = self.exponents(order) @ self.keys
        products, places = (self.exponents(2 * order) @ self.keys).sort()
        if bool((products.diff() == 0).any()):
            raise AssertionError("two monomials share a key")
        result = first.new_zeros(len(first), len(products))
        for index, key in enumerate(factors):
            found = places[torch.searchsorted(products, key + factors)]
            result.index_add_(1, found, first[:, index : index + 1] * second)
        return result


def _written(exponents: Tensor) -> str:
    factors = [
        f"x{variable}" + (f"^{power}" if power > 1 else "")
        for variable, power in enumerate(exponents.tolist())
        if power
    ]
    return " ".join(factors) or "1"
