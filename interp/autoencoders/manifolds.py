"""What one quadratic latent does with the data: its leading axes, the samples on them, and how it is active."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.hoyer import hoyer_density
from interp.decomposition import decompose_form
from weightspace.errors import ShapeError


@dataclass(frozen=True, eq=False, repr=False)
class Manifold:
    r"""A latent $f(x) = \sum_i \lambda_i (v_i \cdot x')^2$ of a bilinear autoencoder, seen on samples.

    x is in scaled units, $x' = [x; 1]$ where the autoencoder has biases. Tensors are on the CPU, in the dtype of the
    autoencoder.

    Attributes:
        latent: which one.
        values: $\lambda$, the eigenvalues of largest magnitude, descending, (a,). One product has no more than two
            that are not zero; then a is 2.
        vectors: $v$, (a, d), or (a, d + 1) with biases; orthonormal rows.
        points: $v_i \cdot x'$ of the samples, (n, a).
        activations: f of the samples, (n,).
        density: Hoyer density of the activations.
        effective_rank: $(\sum |\lambda|)^2 / \sum \lambda^2$ of the whole form.
        importance: $\sum \lambda^2$ of the whole form.
    Source: Dooms and Gauderis, Finding manifolds with bilinear autoencoders (2025).
    """

    latent: int
    values: Tensor
    vectors: Tensor
    points: Tensor = field(repr=False)
    activations: Tensor = field(repr=False)
    density: float
    effective_rank: float
    importance: float

    @property
    def shown(self) -> float:
        """Share of the importance that lies on the axes; 0 of a zero form."""
        return float(self.values.double().square().sum()) / self.importance if self.importance else 0.0

    def __repr__(self) -> str:
        values = ", ".join(f"{value:+.3g}" for value in self.values.tolist())
        return (
            f"Manifold(latent {self.latent}: eigenvalues {values} hold {self.shown:.0%} of importance "
            f"{self.importance:.3g}, effective rank {self.effective_rank:.1f}, density {self.density:.2f})"
        )


def project_manifold(autoencoder: BilinearAutoencoder, latent: int, x: Tensor, *, axes: int = 3) -> Manifold:
    """Project samples on the leading axes of a latent's quadratic form.

    Args:
        x: samples in the units of the data, (n, d), at least two.
        axes: how many; fewer where the form has not as many.
    Raises:
        ShapeError: there is no such latent or no axis is asked for; samples of another shape, or fewer than two.
        NonFiniteError: NaN or infinite weights.
    """
    if not 0 <= latent < autoencoder.latents:
        raise ShapeError(f"the autoencoder has latents 0 to {autoencoder.latents - 1}; latent is {latent}")
    if axes < 1:
        raise ShapeError(f"a manifold is seen on at least one axis; axes is {axes}")
    form = autoencoder.form(slice(latent, latent + 1))
    chosen = torch.ones(1, 1, dtype=torch.float64)
    found = decompose_form(form, chosen, top=axes, padded=not form.is_homogeneous)
    with torch.no_grad():
        scaled = autoencoder.scaling.apply(autoencoder.checked(x))[0].double().cpu()
    activations = form(scaled)[:, 0]
    vectors = found.vectors[0]
    points = (F.pad(scaled, (0, 1), value=1.0) if found.padded else scaled) @ vectors.double().mT
    importance = float(found.values.double().square().sum() + found.discarded.double().square().sum())
    return Manifold(
        latent,
        found.values[0],
        vectors,
        points.to(vectors.dtype),
        activations.to(vectors.dtype),
        float(hoyer_density(activations[:, None])),
        float(found.effective_rank),
        importance,
    )
