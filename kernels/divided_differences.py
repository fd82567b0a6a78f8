r"""First and second divided differences of scalar functions, without cancellation.

$f[a, b] = \frac{f(a) - f(b)}{a - b}$ and $f[a, b, c] = \frac{f[a, b] - f[b, c]}{a - c}$, with $f'(a)$ and
$f''(a)/2$ as the limits at equal arguments. They are the coefficients of the derivatives of $f(A)$, where
eigenvalues are often equal or nearly so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScalarFunction:
    """A scalar function with its divided differences; all arguments broadcast."""

    value: Callable[[Tensor], Tensor]
    first: Callable[[Tensor, Tensor], Tensor]
    """f[a, b]"""
    second: Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]], Tensor]
    """f[a, b, c], given also f[a, b], f[b, c] and f[a, c]"""


def from_callable(f: Callable[[Tensor], Tensor]) -> ScalarFunction:
    """Divided differences of an elementwise function by its derivatives, which `torch.func` finds."""

    def slope(x: Tensor) -> Tensor:
        return _derivative(f, x)

    def curvature(x: Tensor) -> Tensor:
        return _derivative(slope, x)

    return ScalarFunction(
        f,
        lambda a, b: _first_by_quadrature(f, slope, a, b),
        lambda a, b, c, first: _second_by_quadrature(curvature, a, b, c, first),
    )


def _derivative(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # Reverse mode, as not every function has a forward one.
    y, pull_back = torch.func.vjp(f, x)  # pyright: ignore[reportAssignmentType]
    return pull_back(torch.ones_like(y))[0]


def _first_by_quadrature(
    f: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], a: Tensor, b: Tensor
) -> Tensor:
    r"""The quotient, or $\int_0^1 f'(a + t(b - a))\,dt$ by the Lobatto rule with five nodes where that is better.

    The integral is taken where it differs from Simpson's rule, on three of the nodes, by less than the quotient
    suffers from rounding, and agrees with the quotient up to rounding: the first fails at kinks of f and for
    distant arguments, the second at jumps.
    """
    eps = torch.finfo(a.dtype).eps
    f_a, f_b = f(a), f(b)
    gap, rise, noise = b - a, f_b - f_a, eps * (f_a.abs() + f_b.abs())
    middle, reach = a / 2 + b / 2, gap * ((3 / 7) ** 0.5 / 2)
    ends, center = slope(a) + slope(b), slope(middle)
    integral = ends / 20 + 49 / 180 * (slope(middle - reach) + slope(middle + reach)) + 16 / 45 * center
    simpson = ends / 6 + 2 / 3 * center
    smooth = ((integral - simpson) * gap).abs() <= noise + 8 * eps * (integral * gap).abs()
    consistent = (integral * gap - rise).abs() <= 64 * noise.amax((-2, -1), keepdim=True)
    trusted = (smooth & consistent) | (gap == 0)
    return torch.where(trusted, integral, rise / torch.where(trusted, 1.0, gap))


def _second_by_quadrature(
    curvature: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    c: Tensor,
    first: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """The quotient over the largest gap, or the integral of f''/2 over the triangle (Hermite, Genocchi).

    The integral is by Radon's rule with seven nodes. It is taken where it is the more accurate: its error is about
    the cube of the relative error of the rule with one node, of which the square is taken to be safe.
    """
    f_ab, f_bc, f_ac = first
    ab, bc, ac = a - b, b - c, a - c
    wide_ac = (ac.abs() >= ab.abs()) & (ac.abs() >= bc.abs())
    wide_ab = ab.abs() >= bc.abs()
    gap = torch.where(wide_ac, ac, torch.where(wide_ab, ab, bc))
    one = torch.where(wide_ac | ~wide_ab, f_ab, f_ac)
    other = torch.where(wide_ac | wide_ab, f_bc, f_ac)
    total = (a + b + c) / 3
    rough = curvature(total) / 2
    integral = 9 / 40 * rough
    for sign in (-1, 1):
        root = sign * 15**0.5
        near, weight = (6 + root) / 21, (155 + root) / 2400
        for corner in (a, b, c):
            integral = integral + weight * curvature(total + (1 - 3 * near) * (corner - total))
    eps = torch.finfo(a.dtype).eps
    noise = eps * (one.abs() + other.abs())
    smooth = (integral - rough).square() * gap.abs() <= noise * integral.abs()
    consistent = (integral * gap - (one - other)).abs() <= eps**0.75 * (one.abs() + other.abs())
    trusted = (smooth & consistent) | (gap == 0)
    return torch.where(trusted, integral, (one - other) / torch.where(trusted, 1.0, gap))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is: the convention at the kinks and jumps, which all lie at 0."""
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 0.0)


def _abs_first(a: Tensor, b: Tensor) -> Tensor:
    return _ratio(a + b, a.abs() + b.abs())


def _abs_second(a: Tensor, b: Tensor, c: Tensor, _: object) -> Tensor:
    # 2 |c| / ((|a| + |c|) (|b| + |c|)) if c alone has its sign, otherwise 0, in a form symmetric in the three.
    x, y, z = a.abs(), b.abs(), c.abs()
    return (
        _ratio(_opposed(a, b), x + y) * _ratio(x, x + z) * _ratio(y, y + z)
        + _ratio(_opposed(b, c), y + z) * _ratio(y, x + y) * _ratio(z, x + z)
        + _ratio(_opposed(a, c), x + z) * _ratio(x, x + y) * _ratio(z, y + z)
    )


def _sign_first(a: Tensor, b: Tensor) -> Tensor:
    return _ratio(_opposed(a, b), a.abs() + b.abs())


def _sign_second(a: Tensor, b: Tensor, c: Tensor, _: object) -> Tensor:
    xy, xz, yz = a.abs() + b.abs(), a.abs() + c.abs(), b.abs() + c.abs()
    return -(
        _ratio(_ratio(_opposed(a, b), xy) * _ratio(c, xz), yz)
        + _ratio(_ratio(_opposed(b, c), yz) * _ratio(a, xz), xy)
        + _ratio(_ratio(_opposed(a, c), xz) * _ratio(b, xy), yz)
    )


def _opposed(a: Tensor, b: Tensor) -> Tensor:
    """2 for opposite signs, 1 if one is zero, 0 for equal signs."""
    return 1 - a.sign() * b.sign()


def _sqrt_first(a: Tensor, b: Tensor) -> Tensor:
    return 1 / (a.sqrt() + b.sqrt())


def _sqrt_second(a: Tensor, b: Tensor, c: Tensor, _: object) -> Tensor:
    x, y, z = a.sqrt(), b.sqrt(), c.sqrt()
    return -1 / (x + y) / (x + z) / (y + z)


def _inv_sqrt_first(a: Tensor, b: Tensor) -> Tensor:
    x, y = a.sqrt(), b.sqrt()
    return -1 / x / y / (x + y)


def _inv_sqrt_second(a: Tensor, b: Tensor, c: Tensor, _: object) -> Tensor:
    x, y, z = a.sqrt(), b.sqrt(), c.sqrt()
    return (x + y + z) / (x + y) / (x + z) / (y + z) / x / y / z


def _log_first(a: Tensor, b: Tensor) -> Tensor:
    ratio = (a - b) / (a + b)
    near = ratio.abs() < 0.5
    ratio = torch.where(near & (ratio != 0), ratio, 0.25)
    quotient = (a.log() - b.log()) / torch.where(near, 1.0, a - b)
    return torch.where(near, torch.where(a == b, 1.0, ratio.atanh() / ratio) * 2 / (a + b), quotient)


def _exp_first(a: Tensor, b: Tensor) -> Tensor:
    gap = (a - b).abs()
    return torch.maximum(a, b).exp() * torch.where(
        gap > 0, -(-gap).expm1() / torch.where(gap > 0, gap, 1.0), 1.0
    )


NAMED = {
    "sqrt": ScalarFunction(torch.sqrt, _sqrt_first, _sqrt_second),
    "inv_sqrt": ScalarFunction(torch.rsqrt, _inv_sqrt_first, _inv_sqrt_second),
    "inverse": ScalarFunction(
        torch.reciprocal, lambda a, b: -1 / a / b, lambda a, b, c, first: 1 / a / b / c
    ),
    "log": ScalarFunction(torch.log, _log_first, partial(_second_by_quadrature, lambda x: -1 / x.square())),
    "exp": ScalarFunction(torch.exp, _exp_first, partial(_second_by_quadrature, torch.exp)),
    "abs": ScalarFunction(torch.abs, _abs_first, _abs_second),
    "sign": ScalarFunction(torch.sign, _sign_first, _sign_second),
    "positive_part": ScalarFunction(
        torch.relu,
        lambda a, b: _ratio(a.relu() + b.relu(), a.abs() + b.abs()),
        lambda a, b, c, first: _abs_second(a, b, c, first) / 2,
    ),
}
"""The functions that `kernels.spectral_function` knows by name."""
