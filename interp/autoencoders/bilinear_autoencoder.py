r"""Autoencoders whose latents are quadratic forms, trained on $x \otimes x$ without making it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss, Comparison
from interp.autoencoders.bilinear_kernels import form_gram, norm_increments, prefix_shares, prefix_tails
from interp.autoencoders.hoyer import hoyer_density
from interp.autoencoders.input_scaling import InputScaling
from interp.autoencoders.muon import GramMuon
from interp.autoencoders.product_clusters import group_columns
from interp.quadratic_form import QuadraticForm
from weightspace.errors import NonFiniteError, ShapeError, UnsupportedOperationError

_KERNELS = ("symmetric", "vanilla")
_RAMP = 0.25  # share of the training over which the sparsity penalty grows


class BilinearAutoencoder(Autoencoder):
    r"""Quadratic latents of a vector and the reconstruction of its outer square from them.

    Products $f_i = (l_i \cdot x)(r_i \cdot x) = \langle l_i \otimes r_i, X \rangle$ of $X = x \otimes x$ are decoded by
    the same forms, $\hat X = \sum_i f_i\, l_i \otimes r_i$. Everything below is exact and made from inner products of
    vectors:
    $$\|X - \hat X\|^2 = \|x\|^4 - 2 \textstyle\sum_i f_i g_i + g^\top K g,\qquad g = f,\qquad
    K = \tfrac12 [(LL^\top) \odot (RR^\top) + (LR^\top) \odot (RL^\top)].$$
    All options combine:

    * `kernel`: "symmetric" decodes with the symmetric parts of the forms, as above, whose error is never larger since X
      is symmetric; "vanilla" with the forms themselves, $K = (LL^\top) \odot (RR^\top)$.
    * `mixing`: the codes are $h = Df$, as many as `mixing` says, and $g = D^\top h$: latent k is the form
      $\mathrm{sym}(\sum_i D_{ki}\, l_i r_i^\top)$.
    * `ordered`: the loss is the mean over all prefixes 1..p of the products in the decoder, which sorts them by what
      they contribute, $\|x\|^4 - 2 \sum_i c_i f_i g_i + g^\top (K \odot C) g$ with $C_{ij} = c_{\max(i, j)}$ and
      $c_i = (m - i) / m$ for i from 0. Codes are made from all products whatever the prefix.
    * `bias`: x is padded by a 1, so that products are of affine functions of x, and X is $x' \otimes x'$.
    * `sparsity`: weight of the mean Hoyer density of the products over a batch (of each process its part), which grows
      linearly over the first quarter of the training; of an ordered autoencoder the mean over prefixes of that mean.

    Errors, decoded matrices and forms are all in scaled units: of x divided by its norm, unless `scaling` says
    otherwise. There are no others, since X has neither center nor scale.

    Args:
        d: size of a sample.
        latents: number m of products; the number of codes, attribute `latents`, unless they are mixed.
        mixing: number of codes, or None.
        scaling: a kind of `InputScaling`.
        tile: products whose kernel is held at once (`norm_increments`); None for all.

    Attributes:
        left_weight, right_weight: L and R, (m, d), or (m, d + 1) with the biases as their last column.
        mixing_weight: D, (mixing, m), or None.
    Raises:
        ShapeError: a number or a name that is none of the above.
    Source: Dooms and Gauderis, Finding manifolds with bilinear autoencoders (2025), who reverse the weights of tiles on
        and off the diagonal and leave the biases out of K, in the code published with it.

    Examples:
        >>> import interp, torch
        >>> autoencoder = interp.BilinearAutoencoder(8, 32, ordered=True, sparsity=0.1)
        >>> autoencoder.encode(torch.randn(10, 8)).shape
        torch.Size([10, 32])
        >>> interp.decompose(autoencoder).vectors.shape  # the eigenvectors of every latent
        torch.Size([32, 8, 8])
    """

    mixing_weight: nn.Parameter | None

    def __init__(
        self,
        d: int,
        latents: int,
        *,
        kernel: str = "symmetric",
        bias: bool = False,
        ordered: bool = False,
        mixing: int | None = None,
        sparsity: float = 0.0,
        scaling: str = "unit_norm",
        tile: int | None = 4096,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _require_positive(d=d, latents=latents, mixing=mixing, tile=tile)
        if kernel not in _KERNELS:
            raise ShapeError(f"the kernel is {kernel!r}; it is one of {', '.join(_KERNELS)}")
        if not sparsity >= 0:
            raise ShapeError(f"sparsity is the weight of a penalty, at least 0; it is {sparsity}")
        self.sample_shape, self.products, self.latents = (d,), latents, latents if mixing is None else mixing
        self.kernel, self.bias, self.ordered, self.mixing = kernel, bias, ordered, mixing
        self.sparsity, self.tile = sparsity, tile
        self.scaling = InputScaling(scaling, (d,), dtype=dtype, device=device)
        generator = generator or torch.Generator().manual_seed(0)

        def orthogonal(rows: int, columns: int, padding: int = 0) -> nn.Parameter:
            weight = nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
            padded = F.pad(weight, (0, padding))  # biases start from 0
            return nn.Parameter(padded.to(device, dtype or torch.get_default_dtype()))

        self.left_weight = orthogonal(latents, d, int(bias))
        self.right_weight = orthogonal(latents, d, int(bias))
        self.mixing_weight = None if mixing is None else orthogonal(mixing, latents)

    def configuration(self) -> dict[str, Any]:
        return {
            "d": self.sample_shape[0],
            "latents": self.products,
            "kernel": self.kernel,
            "bias": self.bias,
            "ordered": self.ordered,
            "mixing": self.mixing,
            "sparsity": self.sparsity,
            "scaling": self.scaling.kind,
            "tile": self.tile,
        }

    # ---- codes and matrices ------------------------------------------------------------------------------

    def encode_scaled(self, x: Tensor) -> Tensor:
        """Codes of scaled samples: (n, d) -> (n, latents)."""
        return self._mixed(self._products(self._padded(x)))

    def decode_scaled(self, codes: Tensor) -> Tensor:
        r"""Matrices $\hat X$ from codes, in scaled units: (n, latents) -> (n, d, d), d + 1 with biases.

        Made in full, for small d; no loss and no metric needs it.
        """
        weights = self._weights(codes)
        matrices = torch.einsum("nm,mi,mj->nij", weights, self.left_weight, self.right_weight)
        return (matrices + matrices.mT) / 2 if self.kernel == "symmetric" else matrices

    def decode(self, codes: Tensor) -> Tensor:
        """The same as `decode_scaled`: matrices have no other units."""
        return self.decode_scaled(codes)

    def forward(self, x: Tensor) -> Tensor:
        r"""Matrices $\hat X$ of samples, in scaled units: (n, d) -> (n, d, d), d + 1 with biases."""
        return self.decode_scaled(self.encode(x))

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 1), value=1.0) if self.bias else x

    def _scaled(self, x: Tensor) -> Tensor:
        return self._padded(self.scaling.apply(self.checked(x))[0])

    def _products(self, x: Tensor) -> Tensor:
        return (x @ self.left_weight.mT.to(x)) * (x @ self.right_weight.mT.to(x))

    def _mixed(self, products: Tensor) -> Tensor:
        return products if self.mixing_weight is None else products @ self.mixing_weight.mT.to(products)

    def _weights(self, codes: Tensor) -> Tensor:
        return codes if self.mixing_weight is None else codes @ self.mixing_weight.to(codes)

    # ---- the loss ----------------------------------------------------------------------------------------

    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        """Loss of a batch (n, d); see the class. Its parts are `reconstruction` and, where it is asked for, `hoyer`.

        Raises:
            ShapeError: samples of another shape; one sample, where sparsity is asked for.
            UnsupportedOperationError: another target than x, whose outer square the codes were not made of.
        """
        self._require_own_target(x, target)
        scaled = self._scaled(x)
        products = self._products(scaled)
        codes = self._mixed(products)
        squares = scaled.square().sum(1).square()
        gains = self._gains(products, self._weights(codes))
        with torch.no_grad():
            error = (squares - gains.sum(1)).sum()
            mean = scaled.mT @ scaled / max(len(x), 1)
            variance = squares.sum() - len(x) * mean.square().sum()
            l0 = (codes != 0).sum(1).to(squares.dtype).mean()
        if self.ordered:
            gains = gains * prefix_shares(self.products, gains)
        total = (squares - gains.sum(1)).mean()
        parts = {"reconstruction": total.detach()}
        if self.sparsity:
            density = hoyer_density(products)
            if self.ordered:
                density = density * prefix_tails(self.products, density)
            penalty = self.sparsity * min(1.0, progress / _RAMP) * density.mean()
            parts["hoyer"] = penalty.detach()
            total = total + penalty
        return AutoencoderLoss(total, parts, error, variance, l0)

    def prefix_errors(self, x: Tensor) -> Tensor:
        r"""Squared errors $\|X - \hat X\|^2$ with the first 0, 1, ..., m products in the decoder, (n, m + 1)."""
        with torch.no_grad():
            scaled = self._scaled(x)
            products = self._products(scaled)
            gains = self._gains(products, self._weights(self._mixed(products)))
            squares = scaled.square().sum(1, keepdim=True).square()
            return torch.cat([squares, squares - gains.cumsum(1)], 1)

    def _gains(self, products: Tensor, weights: Tensor) -> Tensor:
        """By how much each product lowers the squared error that those before it leave, (n, m)."""
        return 2 * products * weights - self._increments(weights)

    def _increments(self, weights: Tensor, *, symmetric: bool | None = None) -> Tensor:
        return norm_increments(
            weights,
            self.left_weight.to(weights),
            self.right_weight.to(weights),
            symmetric=self.kernel == "symmetric" if symmetric is None else symmetric,
            tile=self.tile,
        )

    def compare(self, x: Tensor, target: Tensor | None = None) -> Comparison:
        r"""Compare $\hat X$ with X in the space of matrices, in scaled units, by the kernel, without gradients.

        Computed in float64. `target_sum` is $\sum_n x_n x_n^\top$, (d, d), padded where the autoencoder has biases.
        """
        self._require_own_target(x, target)
        with torch.no_grad():
            scaled = self._scaled(x).double()
            products = self._products(scaled)
            codes = self._mixed(products)
            weights = self._weights(codes)
            squares = scaled.square().sum(1).square()
            cross = (products * weights).sum(1)
            norm = self._increments(weights).sum(1)
            error = squares - 2 * cross + norm
            return Comparison(codes.to(x.dtype), error, squares, cross, norm, scaled.mT @ scaled)

    def _require_own_target(self, x: Tensor, target: Tensor | None) -> None:
        if target is not None and target is not x:
            raise UnsupportedOperationError(
                "a BilinearAutoencoder decodes with the forms it encodes with, so it reconstructs its input alone; "
                "train a SparseAutoencoder on other targets"
            )

    def make_optimizer(self, learning_rate: float | None = None) -> torch.optim.Optimizer:
        """Muon without weight decay or Nesterov momentum, learning rate 0.03.

        The published training is 1024 steps of it with the rate falling linearly to 0 and 16 d latents:
        `train(..., steps=1024, warmup=0, decay=1.0)`.
        """
        kind = torch.optim.Muon if self.left_weight.is_cuda else GramMuon
        rate = 0.03 if learning_rate is None else learning_rate
        return kind(self.parameters(), rate, weight_decay=0.0, nesterov=False)

    # ---- the latents as quadratic forms ------------------------------------------------------------------

    def form(self, latents: slice = slice(None)) -> QuadraticForm:
        """Return latents as quadratic forms of the scaled input; `interp.decompose` takes them from here.

        Raises:
            NonFiniteError: NaN or infinite weights.
        """
        pure = self.mixing_weight is None
        left, right = (
            F.pad((weight[latents] if pure else weight).detach().double().cpu(), (0, 1 - int(self.bias)))
            for weight in (self.left_weight, self.right_weight)
        )
        if self.mixing_weight is None:
            output = torch.eye(len(left), dtype=torch.float64)
        else:
            output = self.mixing_weight[latents].detach().double().cpu()
        for name, weight in (("left_weight", left), ("right_weight", right), ("mixing_weight", output)):
            if not bool(weight.isfinite().all()):
                raise NonFiniteError(f"{name} of the autoencoder has NaN or infinite entries")
        affine = left.new_zeros(len(output), left.shape[1])
        return QuadraticForm(left, right, output, affine, self.sample_shape, self.left_weight.dtype)

    def importance(self) -> Tensor:
        r"""Sum of squared eigenvalues of every latent's form, $\|\mathrm{sym}(\cdot)\|_F^2$, (latents,), float64."""
        return self._squared_norms(symmetric=True)

    def sorted_by_importance(self) -> BilinearAutoencoder:
        """Return the same autoencoder with its latents in another order, the most important first.

        Codes are permuted, reconstructions unchanged. The loss of an ordered autoencoder without mixing is one of
        prefixes, and so changes with their order; its own order is that of training.
        """
        found = copy.deepcopy(self)
        order = self.importance().argsort(descending=True, stable=True)
        names = ("left_weight", "right_weight") if self.mixing_weight is None else ("mixing_weight",)
        with torch.no_grad():
            for name in names:
                getattr(found, name).copy_(getattr(self, name)[order])
        return found

    def clusters(self, threshold: float = 0.5) -> tuple[tuple[int, ...], ...]:
        """Groups of products that the same codes use; see `group_columns`, which takes D.

        Raises:
            UnsupportedOperationError: an autoencoder without mixing.
            ShapeError: a threshold that is not above 0.
        """
        if self.mixing_weight is None:
            raise UnsupportedOperationError(
                "clusters are read from the mixing of products, and this autoencoder has none: pass mixing=..., "
                "or group latents by decoder_cosines()"
            )
        return group_columns(self.mixing_weight, threshold=threshold, side=self.tile)

    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        """Cosines of what the decoder multiplies each code with, as matrices, by the kernel, (rows, latents).

        Raises:
            UnsupportedOperationError: `other` is of another class.
            ShapeError: `other` has another size of a sample, or a bias where this one has none.
        """
        other = self if other is None else other
        if not isinstance(other, BilinearAutoencoder):
            raise UnsupportedOperationError(
                f"features of a BilinearAutoencoder are matrices; those of {type(other).__name__} are not"
            )
        if (self.sample_shape, self.bias) != (other.sample_shape, other.bias):
            raise ShapeError(
                f"the autoencoders take samples of {self.sample_shape} and {other.sample_shape}, with bias "
                f"{self.bias} and {other.bias}; compare equal ones"
            )
        return self._cosines(
            rows, other, symmetric=self.kernel == "symmetric", other_symmetric=other.kernel == "symmetric"
        )

    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        """Cosines of the codes' quadratic forms, (rows, latents)."""
        return self._cosines(rows, self, symmetric=True, other_symmetric=True)

    @torch.no_grad()
    def _cosines(
        self, rows: slice, other: BilinearAutoencoder, *, symmetric: bool, other_symmetric: bool
    ) -> Tensor:
        left, right = (weight.double() for weight in (self.left_weight, self.right_weight))
        mixing = None if self.mixing_weight is None else self.mixing_weight[rows].double()
        if mixing is None:
            left, right = left[rows], right[rows]
        side = other.tile or other.products
        inner, parts = 0.0, []
        for block in range(0, other.products, side):
            part = slice(block, block + side)
            # <sym A, B> = <sym A, sym B>: one symmetric side is enough.
            gram = form_gram(
                left,
                right,
                other.left_weight[part].to(left),
                other.right_weight[part].to(left),
                symmetric=symmetric or other_symmetric,
            )
            gram = gram if mixing is None else mixing @ gram
            if other.mixing_weight is None:
                parts.append(gram)
            else:
                inner = inner + gram @ other.mixing_weight[:, part].to(gram).mT
        inner = torch.cat(parts, 1) if parts else torch.as_tensor(inner)
        norms = self._squared_norms(symmetric=symmetric)[rows, None].sqrt()
        norms = norms * other._squared_norms(symmetric=other_symmetric).sqrt().to(norms)
        return torch.where(norms > 0, inner / torch.where(norms > 0, norms, 1.0), 0.0).to(
            self.left_weight.dtype
        )

    @torch.no_grad()
    def _squared_norms(self, *, symmetric: bool) -> Tensor:
        if self.mixing_weight is not None:
            return self._increments(self.mixing_weight.double(), symmetric=symmetric).sum(1).clamp_min(0)
        left, right = self.left_weight.double(), self.right_weight.double()
        straight = left.square().sum(1) * right.square().sum(1)
        return (straight + (left * right).sum(1).square()) / 2 if symmetric else straight


def _require_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ShapeError(f"{name} is a number of at least 1; it is {number}")
