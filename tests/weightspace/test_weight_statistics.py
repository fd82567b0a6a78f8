"""Laws of weight statistics: those of numpy, blind to order, comparable across architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightspace.errors import ShapeError
from weightspace.zoo.weight_statistics import QUANTILES, summarize_weights

DTYPES = [torch.float32, torch.float64]


def weights(depth: int, dtype: torch.dtype = torch.float64, count: int = 5):
    generator = torch.Generator().manual_seed(depth)
    shapes = {"first.weight": (4, 3, 3, 3), "first.bias": (4,)}
    for number in range(depth):
        shapes |= {f"{number}.weight": (4, 4), f"{number}.bias": (4,)}
    return {
        name: torch.randn(count, *shape, generator=generator, dtype=dtype) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_are_those_of_numpy(dtype):
    parameters = weights(1, dtype)
    found = summarize_weights(parameters, quantiles=(0, 0.1, 0.5, 1))
    assert found.values.shape == (5, len(found.names))
    assert found.values.dtype == torch.float64
    for name, tensor in parameters.items():
        rows = tensor.double().flatten(1).numpy()
        wanted = {"mean": rows.mean(1), "variance": rows.var(1)}
        wanted |= {f"quantile {q:g}": np.quantile(rows, q, axis=1) for q in (0, 0.1, 0.5, 1)}
        for label, values in wanted.items():
            column = found.values[:, found.names.index(f"{name} {label}")]
            np.testing.assert_allclose(column.numpy(), values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_are_blind_to_order_and_follow_scale(dtype, pooled):
    parameters = weights(2, dtype)
    shuffled = {
        name: tensor.flatten(1)[:, torch.randperm(tensor[0].numel())].view_as(tensor)
        for name, tensor in parameters.items()
    }
    found = summarize_weights(parameters, pooled=pooled)
    torch.testing.assert_close(summarize_weights(shuffled, pooled=pooled).values, found.values)
    doubled = summarize_weights({name: 2 * t for name, t in parameters.items()}, pooled=pooled)
    for number, name in enumerate(found.names):
        power = 0 if name in ("layers", "log entries") else 2 if name.endswith("variance") else 1
        torch.testing.assert_close(doubled.values[:, number], 2**power * found.values[:, number])


def test_pooled_columns_are_those_of_the_layers():
    deep, flat = weights(3), weights(1)
    pooled = summarize_weights(deep, pooled=True)
    assert pooled.names == summarize_weights(flat, pooled=True).names
    assert len(pooled.names) == 6 * (2 + len(QUANTILES)) + 2
    single = summarize_weights(deep)

    def columns(found, prefix):
        return found.values[
            :, [number for number, name in enumerate(found.names) if name.startswith(prefix + " ")]
        ]

    torch.testing.assert_close(columns(pooled, "first weight"), columns(single, "first.weight"))
    torch.testing.assert_close(columns(pooled, "last bias"), columns(single, "2.bias"))
    layers = torch.stack([columns(single, f"{name}.weight") for name in ("first", 0, 1, 2)])
    torch.testing.assert_close(columns(pooled, "average weight"), layers.mean(0))
    assert pooled.values[:, -2].tolist() == [4.0] * 5
    entries = sum(tensor[0].numel() for tensor in deep.values())
    assert torch.allclose(pooled.values[:, -1].exp(), torch.tensor(float(entries), dtype=torch.float64))


def test_what_cannot_be_summarized_is_refused_by_name():
    with pytest.raises(ShapeError, match="empty: all"):
        summarize_weights({})
    with pytest.raises(ShapeError, match=r"\['gap'\]"):
        summarize_weights({"gap": torch.zeros(3, 0)})
    with pytest.raises(ShapeError, match="between 0 and 1"):
        summarize_weights(weights(1), quantiles=(0.5, 2.0))
    with pytest.raises(ShapeError, match="no bias"):
        summarize_weights({"weight": torch.ones(3, 2, 2)}, pooled=True)
