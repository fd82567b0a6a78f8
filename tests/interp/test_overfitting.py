"""Laws of the signs of overfitting."""

import pytest
import torch

import weightspace
from interp.overfitting import diagnose_overfitting, roughness
from weightspace.layers import Bilinear

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dtypes
def test_roughness_is_the_rayleigh_quotient_of_the_normalized_laplacian(dtype):
    height, width = 3, 4
    adjacency = torch.zeros(12, 12, dtype=dtype)
    for row in range(height):
        for column in range(width):
            for down, right in ((0, 1), (1, 0)):
                if row + down < height and column + right < width:
                    p, q = row * width + column, (row + down) * width + column + right
                    adjacency[p, q] = adjacency[q, p] = 1.0
    degrees = adjacency.sum(1)
    pictures = torch.randn(5, height, width, dtype=dtype)
    v = pictures.flatten(1)
    expected = ((v @ (torch.diag(degrees) - adjacency)) * v).sum(1) / (degrees * v.square()).sum(1)
    assert torch.allclose(roughness(pictures), expected)


def test_roughness_of_extremes():
    checkers = (-1.0) ** torch.arange(7)
    assert roughness(torch.ones(6, 7)).item() == 0.0
    assert roughness(checkers[:6, None] * checkers).item() == pytest.approx(2.0)
    noise = roughness(torch.randn(400, 6, 7, generator=torch.Generator().manual_seed(0)))
    assert noise.mean().item() == pytest.approx(1.0, abs=4 * noise.std().item() / 20)


def looking_at(*pixels: int) -> Bilinear:
    """Classes are the squares of two of nine pixels."""
    model = Bilinear(9, 2, 2)
    with torch.no_grad():
        for weight in (model.left.weight, model.right.weight):
            weight.copy_(torch.eye(9)[list(pixels)])
        model.output.weight.copy_(torch.eye(2))
    return model


def test_rare_inputs_rank_and_accuracies_are_told():
    x = torch.rand(1000, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    x[9:, 8] = 0.0  # not 0 in 0.9 % of the samples
    y = (x[:, 0] < x[:, 1]).long()
    found = diagnose_overfitting(
        {"common": looking_at(0, 1), "rare": looking_at(8, 8), "half": looking_at(0, 8)},
        (x, y),
        (x[:500], 1 - y[:500]),
    )
    common, rare, half = (found.networks[name] for name in ("common", "rare", "half"))
    assert (common.train_accuracy, common.test_accuracy, common.gap) == (1.0, 0.0, 1.0)
    assert (common.rare_share, rare.rare_share, half.rare_share) == pytest.approx((0.0, 1.0, 0.5))
    assert common.effective_rank == pytest.approx(1.0)
    assert common.leading_share == pytest.approx(1.0)
    assert common.roughness == pytest.approx(1.0)  # a single pixel: as many differences as squares
    lines = str(found).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("common")
    assert "<td>rare</td>" in found._repr_html_()


def test_inputs_that_are_no_picture_have_no_roughness():
    x, y = torch.rand(20, 6), torch.randint(3, (20,))
    found = diagnose_overfitting({"<one>": Bilinear(6, 4, 3)}, (x, y), (x, y), terms=2)
    assert found.networks["<one>"].roughness is None
    assert "&lt;one&gt;" in found._repr_html_()
    assert found.networks["<one>"].leading_share <= 1.0


def test_misfits_are_refused():
    x, y = torch.rand(20, 6), torch.randint(3, (20,))
    with pytest.raises(weightspace.ShapeError, match="terms is 0"):
        diagnose_overfitting({}, (x, y), (x, y), terms=0)
    with pytest.raises(weightspace.ShapeError, match="net reads inputs"):
        diagnose_overfitting({"net": Bilinear(7, 4, 3)}, (x, y), (x, y))
