"""`fit_inrs`: images as the weights of small networks, thousands fitted at once, and `render_inrs`, the way back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import NonFiniteError, ShapeError
from weightspace.mapping import map_over
from weightspace.operations import Scale
from weightspace.tracing import trace
from weightspace.zoo.collection import WeightZoo
from weightspace.zoo.siren import Siren, initial_bounds, pixel_grid

# Bytes of one layer's activations: what stays in the cache of a core, and what fills a GPU.
_ACTIVATION_BYTES = {"cpu": 2**21, "cuda": 2**28}


def fit_inrs(
    images: Tensor,
    *,
    hidden: Sequence[int] = (32, 32),
    steps: int = 100,
    learning_rate: float | None = None,
    initializations: int = 1,
    shared_initialization: bool = False,
    omega: float = 30.0,
    labels: Tensor | None = None,
    sources: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> WeightZoo:
    r"""Fit a `Siren` to every image: a network from pixel coordinates in [-1, 1]² to pixel values.

    Each network lowers its own mean squared error over all pixels with Adam at a constant rate. Networks of a batch
    are fitted at once, by batched matrix products; batches one after the other, so that memory is bounded.

    Args:
        images: pixels, by habit from 0 to 1, shape (n, height, width) or (n, channels, height, width).
        learning_rate: None is 2e-3 for networks up to 16 wide, 1e-3 for wider ones.
        initializations: networks per image, one after the other, each from its own initial weights.
        shared_initialization: all networks start from the same weights. This makes reading them much easier, since
            it aligns their hidden units; networks found in the wild start apart.
        labels, sources: of the images, int64, shape (n,); default sources: their numbers.
        generator: of the initial weights, on the CPU; None is a new one with seed 0.
        batch: networks fitted at once; changes nothing but speed, up to rounding. None suits the cache.
        device: where to fit, and where the result is; default that of the images.
        executor: fits the batches, each with one thread, for example one of `concurrent.futures` or a Dask client's
            `get_executor()`; None fits here, one batch after the other. The initial weights are drawn here either way.
    Returns:
        WeightZoo of n * initializations networks, `measures["psnr"]` in dB for pixels of range 1.
    Raises:
        ShapeError: images of another shape, or labels or sources of another length.
        NonFiniteError: a network diverged.
        ExecutorError: the workers were lost.
    Source: Sitzmann, Martel, Bergman, Lindell, Wetzstein, Implicit neural representations with periodic activation
        functions (2020), section 3; Navon, Shamsian, Achituve, Fetaya, Chechik, Maron, Equivariant architectures for
        learning in deep weight spaces (2023), section 7, for classifying them.

    Examples:
        >>> import torch
        >>> from weightspace import zoo
        >>> inrs = zoo.fit_inrs(torch.rand(6, 8, 8), hidden=(8,), steps=5, progress=False)
        >>> len(inrs), inrs.measures["psnr"].shape
        (6, torch.Size([6]))
        >>> inrs.network(0).to_module()(torch.zeros(1, 2)).shape  # the pixel in the middle of the first image
        torch.Size([1, 1])
    """
    if images.ndim not in (3, 4) or not images.numel():
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; (n, height, width) or (n, channels, height, width)"
        )
    for name, tensor in (("labels", labels), ("sources", sources)):
        if tensor is not None and len(tensor) != len(images):
            raise ShapeError(f"{len(images)} images come with {len(tensor)} {name}")
    from tqdm import tqdm

    device = torch.device(device or images.device)
    generator = generator or torch.Generator().manual_seed(0)
    pixels = images.flatten(-2).reshape(len(images), -1, math.prod(images.shape[-2:]))
    widths = (2, *hidden, pixels.shape[1])
    rate = learning_rate or (2e-3 if max(hidden) <= 16 else 1e-3)
    if batch is None:
        row = max(hidden) * pixels.shape[2] * dtype.itemsize
        batch = max(1, _ACTIVATION_BYTES.get(device.type, 2**26) // row)
    grid = pixel_grid((images.shape[-2], images.shape[-1]), dtype, device).mT
    source_of = torch.arange(len(images)).repeat_interleave(initializations)
    start = _draw(1, widths, omega, generator).to(dtype) if shared_initialization else None

    def batches() -> Iterator[tuple[int, Tensor, Tensor]]:
        for rows in source_of.split(batch):
            initial = _draw(len(rows), widths, omega, generator) if start is None else start
            targets = pixels[rows.to(pixels.device)].to(device, dtype)
            yield int(rows[0]), initial.to(device, dtype).expand(len(rows), -1).clone(), targets

    fit = partial(_fit_batch, widths=widths, grid=grid, omega=omega, steps=steps, rate=rate)
    if executor is not None:
        title = "fitting" if progress else None
        fitted = map_over(fit, list(batches()), executor=executor, describe=_first_image, progress=title)
    else:
        fitted = []  # one batch in memory at a time
        with tqdm(
            total=len(source_of), desc="fitting", unit="network", disable=None if progress else True
        ) as bar:
            for part in batches():
                fitted.append(fit(part))
                bar.update(len(part[1]))
    flat, errors = (torch.cat(parts) for parts in zip(*fitted, strict=True))
    diverged = (~flat.isfinite().all(1)).nonzero()[:, 0]
    if len(diverged):
        raise NonFiniteError(
            f"{len(diverged)} of {len(flat)} networks diverged, the first to image "
            f"{int(source_of[diverged[0]])}; lower learning_rate (now {rate:g})"
        )
    module = Siren(2, hidden, pixels.shape[1], omega=omega, generator=torch.Generator()).to(dtype)
    names = [name for name, _ in module.named_parameters()]
    shapes = [tensor.shape for tensor in module.parameters()]
    parameters = {
        name: part.reshape(-1, *shape).contiguous()
        for name, part, shape in zip(names, _parts(flat, widths), shapes, strict=True)
    }
    template = trace(module, torch.zeros(3, 2, dtype=dtype))
    sources = torch.arange(len(images)) if sources is None else sources
    return WeightZoo(
        parameters,
        template.replace_parameters({name: tensor[0].cpu() for name, tensor in parameters.items()}),
        None if labels is None else labels[source_of.to(labels.device)].to(device, torch.int64),
        sources[source_of.to(sources.device)].to(device, torch.int64),
        {"psnr": -10 * errors.log10()},
    )


def render_inrs(
    parameters: Mapping[str, Tensor] | WeightZoo, size: tuple[int, int], *, omega: float | None = None
) -> Tensor:
    """Return the images that Sirens represent, differentiable in their parameters.

    Args:
        parameters: `layers.0.weight` (networks, out, in), `layers.0.bias` (networks, out), ...
        size: height and width, any.
        omega: the frequency of the sine units; default that of the zoo's template, else 30.
    Returns:
        shape (networks, height, width), or (networks, channels, height, width) for several channels.
    """
    if isinstance(parameters, WeightZoo):
        scales = [n.operation for n in parameters.template.nodes if isinstance(n.operation, Scale)]
        omega = omega or (float(scales[0].factor) if scales else 1.0)
        parameters = parameters.parameters
    omega = omega or 30.0
    layers = [
        (parameters[f"layers.{number}.weight"], parameters[f"layers.{number}.bias"].unsqueeze(-1))
        for number in range(len(parameters) // 2)
    ]
    weight = layers[0][0]
    grid = pixel_grid(size, weight.dtype, weight.device).mT
    row = max(weight.shape[1] for weight, _ in layers) * grid.shape[1] * weight.dtype.itemsize
    chunk = max(1, _ACTIVATION_BYTES["cuda"] // row)
    images = []
    for start in range(0, len(weight), chunk):
        x = grid.expand(len(weight[start : start + chunk]), -1, -1)
        for number, (weights, bias) in enumerate(layers):
            scale = omega if number < len(layers) - 1 else 1.0
            part = slice(start, start + chunk)
            x = torch.baddbmm(bias[part], weights[part], x, beta=scale, alpha=scale)
            x = x.sin() if number < len(layers) - 1 else x
        images.append(x)
    image = torch.cat(images).unflatten(2, size)
    return image[:, 0] if image.shape[1] == 1 else image


def _fit_batch(part: tuple[int, Tensor, Tensor], **how: Any) -> tuple[Tensor, Tensor]:
    """Fit networks from their initial weights; return the weights and the errors."""
    _, flat, targets = part
    flat = flat.clone()  # the workers of a pool of threads have the caller's
    errors = _fit(flat, targets=targets, **how)
    return flat.detach(), errors.detach()


def _first_image(part: tuple[int, Tensor, Tensor]) -> str:
    return f"the batch from image {part[0]} on"


def _draw(networks: int, widths: Sequence[int], omega: float, generator: torch.Generator) -> Tensor:
    """Draw initial weights, shape (networks, weights), network by network whatever the size of the batch."""
    counts = [math.prod(shape) for shape in _shapes(widths)]
    bounds = torch.tensor(initial_bounds(widths, omega), dtype=torch.float64)
    bounds = bounds.repeat_interleave(torch.tensor(counts))
    uniform = torch.rand(networks, len(bounds), generator=generator, dtype=torch.float64)
    return (2 * uniform - 1) * bounds


def _shapes(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Shapes of weight and bias (as a column) of every layer in turn."""
    return [shape for a, b in pairwise(widths) for shape in ((b, a), (b, 1))]


def _parts(flat: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """View the rows of flat (networks, weights) as tensors (networks, *shape)."""
    shapes = _shapes(widths)
    parts = flat.split([math.prod(shape) for shape in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def _fit(
    flat: Tensor,
    widths: Sequence[int],
    grid: Tensor,
    targets: Tensor,
    *,
    omega: float,
    steps: int,
    rate: float,
) -> Tensor:
    """Fit networks to targets (networks, channels, pixels) in place; return their mean squared errors.

    The backward pass is written out: in place and without a graph, a step takes three quarters of autograd's time.
    """
    flat.grad = torch.zeros_like(flat)
    optimizer = torch.optim.Adam([flat], lr=rate, fused=True)
    parameters, gradients = _parts(flat, widths), _parts(flat.grad, widths)
    last = len(widths) - 2
    inputs = [grid.expand(len(flat), -1, -1)] + [grid] * last
    phases = [grid] * last

    def residual() -> Tensor:
        for layer in range(last):
            weight, bias = parameters[2 * layer : 2 * layer + 2]
            phases[layer] = torch.baddbmm(bias, weight, inputs[layer], beta=omega, alpha=omega)
            inputs[layer + 1] = phases[layer].sin()
        return torch.baddbmm(parameters[-1], parameters[-2], inputs[last]).sub_(targets)

    for _ in range(steps):
        error = residual().mul_(2 / targets[0].numel())
        for layer in reversed(range(last + 1)):
            # Copied, since into a part of each row torch multiplies matrix by matrix.
            gradients[2 * layer].copy_(torch.bmm(error, inputs[layer].mT))
            gradients[2 * layer + 1].copy_(error.sum(-1, keepdim=True))
            if layer:
                error = torch.bmm(parameters[2 * layer].mT, error)
                error.mul_(phases[layer - 1].cos_()).mul_(omega)
        optimizer.step()
    return residual().square().mean((1, 2))
