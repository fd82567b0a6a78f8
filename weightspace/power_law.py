"""The exponent of a heavy tail: Clauset, Shalizi and Newman's estimator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    Source: Clauset, Shalizi, Newman, Power-law distributions in empirical data (2009), equations 3.1, 3.2
        and 3.9; on spectra of weight matrices: Martin, Mahoney, Implicit self-regularization in deep neural
        networks (2021).
    """
    # numpy: thousands of short vector operations, for which torch's threads cost more than they save.
    data = values.detach().to("cpu", torch.float64).numpy().ravel()
    data = np.sort(data[np.isfinite(data) & (data > 0)])
    count = len(data)
    logs = np.log(data)
    above = logs[::-1].cumsum()[::-1]  # sum of the logarithms from here on
    smaller = np.searchsorted(data, data)  # how many values are strictly smaller
    best: PowerLaw | None = None
    for start in np.unique(smaller):  # of equal values the first, so that the tail holds them all
        n = count - start
        spread = above[start] - n * logs[start]
        # The subtraction loses everything once the tail is narrower than its rounding error.
        if n < 2 or spread <= 1e-12 * n * (1 + abs(logs[start])):
            continue
        exponent = n / spread
        model = -np.expm1(exponent * (logs[start] - logs[start:]))
        distance = float(np.abs(model - (smaller[start:] - start) / n).max())
        if best is None or distance < best.distance:
            error = float(exponent / np.sqrt(n))
            best = PowerLaw(1 + float(exponent), error, float(data[start]), distance, int(n))
    return best
