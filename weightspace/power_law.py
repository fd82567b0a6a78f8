"""The exponent of a heavy tail: Clauset, Shalizi and Newman's estimator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PowerLaw:
    r"""A fitted tail $\rho(x) \propto x^{-\alpha}$, $x \ge x_{\min}$.

    Attributes:
        alpha: the exponent, > 1.
        standard_error: $(\alpha - 1)/\sqrt{n}$, n the size of the tail.
        x_min: where the tail begins, one of the values.
        distance: Kolmogorov-Smirnov distance between the tail and the fit.
        tail: n, how many values are at least `x_min`.
    """

    alpha: float
    standard_error: float
    x_min: float
    distance: float
    tail: int


def fit_power_law(values: Tensor) -> PowerLaw | None:
    r"""Fit a power law to the upper tail of positive values.

    For each candidate $x_{\min}$ among the values, the largest excepted,
    $\alpha = 1 + n / \sum_{x_i \ge x_{\min}} \log(x_i/x_{\min})$ (maximum likelihood, continuous case), and
    $D = \max_{x_i \ge x_{\min}} |S(x_i) - P(x_i)|$ with $P(x) = 1 - (x/x_{\min})^{1-\alpha}$ and $S(x)$ the
    fraction of the tail strictly below $x$. The candidate with the least $D$ is chosen. Cost $O(n^2)$.

    $S$ at the values themselves is the convention of the authors' own program and of WeightWatcher, whose
    exponents this reproduces; the supremum over all real x can be larger by up to 1/n.

    Args:
        values: shape (n,), any order; values that are not positive and finite are left out.
    Returns:
        PowerLaw, or None when fewer than two different values are left. Scaling all values scales `x_min` and
        leaves the rest as it is.
    Source: Clauset, Shalizi, Newman, Power-law distributions in empirical data (2009), equations 3.1, 3.2, 3.9;
        on spectra of weight matrices: Martin, Mahoney, Implicit self-regularization in deep neural networks
        (2021).
    """
    values = values.detach().to("cpu", torch.float64).flatten()
    values = values[torch.isfinite(values) & (values > 0)].sort().values
    count = len(values)
    if count < 2:
        return None
    logs = values.log()
    above = logs.flip(0).cumsum(0).flip(0)  # sum of the logarithms from here on
    best: PowerLaw | None = None
    for start, log_min in enumerate(logs.tolist()):
        if start and log_min == float(logs[start - 1]):
            continue  # ties: the tail begins at the first of equal values
        n = count - start
        spread = float(above[start]) - n * log_min
        # The subtraction loses everything once the tail is narrower than its rounding error.
        if n < 2 or spread <= 1e-12 * n * (1 + abs(log_min)):
            break
        exponent = n / spread
        tail = logs[start:]
        model = -torch.expm1(-exponent * (tail - log_min))
        below = torch.searchsorted(tail, tail).to(torch.float64) / n
        distance = float((model - below).abs().max())
        if best is None or distance < best.distance:
            best = PowerLaw(1 + exponent, exponent / math.sqrt(n), math.exp(log_min), distance, n)
    return best
