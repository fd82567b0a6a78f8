import math
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from interp.autoencoders import feature_stability
from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss
from interp.autoencoders.feature_stability import match_features, measure_stability
from interp.autoencoders.input_scaling import InputScaling
from weightspace.errors import NonFiniteError, ShapeError

DTYPES = [torch.float32, torch.float64]


class Dictionary(Autoencoder):
    """Features that are the rows of a matrix, and nothing else."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.sample_shape, self.latents = (rows.shape[1],), len(rows)
        self.scaling = InputScaling("none", self.sample_shape, dtype=rows.dtype)
        self.rows = nn.Parameter(rows)

    def encode_scaled(self, x: Tensor) -> Tensor:
        return x @ self.rows.mT

    def decode_scaled(self, codes: Tensor) -> Tensor:
        return codes @ self.rows

    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        return {}

    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        second = self if other is None else other
        assert isinstance(second, Dictionary)
        return nn.functional.normalize(self.rows[rows]) @ nn.functional.normalize(second.rows).mT

    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        return self.decoder_cosines(rows)


def random_rows(latents: int, d: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(latents, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_permutation_is_found_whatever_the_norms(dtype: torch.dtype) -> None:
    rows = random_rows(30, 12, dtype)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    norms = torch.rand(30, 1, dtype=dtype, generator=torch.Generator().manual_seed(2)) + 0.1
    found = match_features(Dictionary(rows), Dictionary((rows * norms)[order]))
    torch.testing.assert_close(order[found.partners], torch.arange(30))
    assert found.mean == pytest.approx(1, abs=1e-6)
    assert found.share(0.9) == 1
    assert "30 features matched" in repr(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("first", "second"), [(9, 9), (9, 14), (14, 9), (1, 3)])
@pytest.mark.parametrize("signed", [True, False])
def test_no_assignment_has_a_larger_sum(dtype: torch.dtype, first: int, second: int, signed: bool) -> None:
    """Also of unequal sizes, and where all cosines of a feature are negative."""
    a, b = random_rows(first, 3, dtype), random_rows(second, 3, dtype, 1)
    b = b.abs() if signed else b
    cosines = nn.functional.normalize(a) @ nn.functional.normalize(b).mT
    gains = cosines if signed else cosines.abs()
    rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
    found = match_features(Dictionary(a), Dictionary(b), signed=signed)
    matched = found.partners >= 0
    assert int(matched.sum()) == min(first, second)
    assert len(found.partners[matched].unique()) == min(first, second)
    assert float(found.cosines.sum()) == pytest.approx(float(gains[rows, columns].sum()), rel=1e-5)
    torch.testing.assert_close(found.largest, gains.amax(1))
    assert found.mean == pytest.approx(float(gains[rows, columns].mean()), rel=1e-5)


def test_signs_count_only_when_asked() -> None:
    rows = torch.eye(5, dtype=torch.float64)
    opposite = Dictionary(-rows)
    assert match_features(Dictionary(rows), opposite).mean <= 0
    assert match_features(Dictionary(rows), opposite, signed=False).mean == pytest.approx(1)


def test_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Dictionary(random_rows(11, 4, torch.float64)), Dictionary(random_rows(11, 4, torch.float64, 1))
    whole = match_features(a, b)
    monkeypatch.setattr(feature_stability, "ROWS_AT_A_TIME", 3)
    assert match_features(a, b).partners.tolist() == whole.partners.tolist()


def test_stability_of_several() -> None:
    rows, order = random_rows(20, 40, torch.float64), torch.randperm(20)
    half = torch.cat([rows[:10], random_rows(10, 40, torch.float64, 5)])[order]
    found = measure_stability([Dictionary(rows), Dictionary(rows[order]), Dictionary(half)])
    torch.testing.assert_close(found.means, found.means.mT)
    assert found.means[0, 1] == pytest.approx(1)
    assert found.means[0, 2] == pytest.approx(float(found.means[1, 2]))
    torch.testing.assert_close(found.shares[0], torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64))
    assert float(found.features[:10].min()) == pytest.approx(1)
    assert float(found.features[10:].max()) < 0.9
    assert "3 autoencoders" in repr(found)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="at least two"):
        measure_stability([Dictionary(torch.eye(2))])
    with pytest.raises(NonFiniteError, match="NaN"):
        match_features(Dictionary(torch.full((2, 2), math.nan)), Dictionary(torch.eye(2)))
