"""Laws of adversarial masks: each moves one eigenvector's component, and no other."""

import pytest
import torch

import interp
import weightspace
from interp.masks import adversarial_masks, measure_masks
from weightspace.layers import Bilinear, BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
biases = pytest.mark.parametrize("bias", [False, True], ids=["plain", "padded"])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def decomposed(dtype=torch.float64, bias=False):
    torch.manual_seed(0)
    return interp.decompose(BilinearMLP(12, 10, 3, bias=bias).to(dtype))


@dtypes
@biases
def test_a_mask_moves_its_own_component_alone(dtype, bias):
    decomposition = decomposed(dtype, bias)
    masks = adversarial_masks(decomposition, terms=2)
    moved = masks.vectors @ masks.masks.mT
    assert masks.masks.dtype == dtype
    assert (moved - torch.diag(masks.gains)).abs().max() <= TOLERANCE[dtype]
    assert masks.origins == ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
    x = torch.randn(5, 12, dtype=dtype)
    before, after = (decomposition.explain(x + shift)[:, :, :2] for shift in (0, 3 * masks.masks[3]))
    expected = before.clone()
    value, vector = decomposition.values[1, 1], decomposition.vectors[1, 1]
    padded = torch.cat([x, torch.ones(5, int(bias), dtype=dtype)], 1)
    expected[:, 1, 1] = value * (padded @ vector + 3 * masks.gains[3]).square()
    assert (after - expected).abs().max() <= 100 * TOLERANCE[dtype] * expected.abs().max()


@biases
def test_no_other_shift_of_that_kind_moves_the_component_further(bias):
    masks = adversarial_masks(decomposed(bias=bias), terms=2)
    for index, vector in enumerate(masks.vectors):
        others = torch.cat([masks.vectors[:index], masks.vectors[index + 1 :]])
        within = others.mT @ torch.linalg.lstsq(others.mT, vector).solution
        assert (vector - within).norm() == pytest.approx(float(masks.gains[index]), rel=1e-9)


@dtypes
def test_masks_and_their_baselines_have_norm_1_and_the_same_pixels(dtype):
    masks = adversarial_masks(decomposed(dtype), generator=torch.Generator().manual_seed(4))
    for patterns in (masks.masks, masks.permuted):
        assert (patterns.norm(dim=1) - 1).abs().max() <= TOLERANCE[dtype]
    assert torch.equal(masks.masks.sort(1).values, masks.permuted.sort(1).values)
    assert not torch.equal(masks.masks, masks.permuted)
    again = adversarial_masks(decomposed(dtype), generator=torch.Generator().manual_seed(4))
    assert torch.equal(masks.permuted, again.permuted)
    other = adversarial_masks(decomposed(dtype), generator=torch.Generator().manual_seed(5))
    assert not torch.equal(masks.permuted, other.permuted)


def test_orthogonal_eigenvectors_are_their_own_masks():
    masks = adversarial_masks(decomposed(), terms=3, directions=[1])
    assert torch.allclose(masks.masks, masks.vectors)
    assert torch.allclose(masks.gains, torch.ones(3, dtype=torch.float64))


def squares() -> Bilinear:
    """Class i is the square of input i, for i = 0, 1; two more inputs are not used."""
    model = Bilinear(4, 2, 2).double()
    with torch.no_grad():
        for weight in (model.left.weight, model.right.weight):
            weight.copy_(torch.eye(4)[:2])
        model.output.weight.copy_(torch.eye(2))
    return model


def test_the_effect_of_a_mask_is_the_accuracy_of_the_model_on_shifted_inputs():
    model = squares()
    masks = adversarial_masks(interp.decompose(model))
    assert torch.equal(masks.masks, torch.eye(4, dtype=torch.float64)[:2])
    x = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0], [0, 2, 0, 0]]).double()
    y = torch.tensor([0, 1, 1, 1])
    effect = measure_masks(masks, model, (x, y), strengths=[0.5, 3.0])
    assert effect.clean == 1.0
    # A shift of 3 along input 0 makes everything class 0; along input 1 with either sign, class 1.
    assert effect.accuracies.tolist() == [[[1, 1], [1, 1]], [[0.25, 0.25], [0.75, 0.75]]]
    assert effect.lowest.tolist() == [1.0, 0.25]
    assert effect.strongest() == (0, 1)
    assert "0.2500 under mask 0" in repr(effect)


def test_without_strength_nothing_changes():
    torch.manual_seed(0)
    model = BilinearMLP(12, 10, 3)
    x, y = torch.randn(50, 12), torch.randint(3, (50,))
    effect = measure_masks(adversarial_masks(interp.decompose(model)), model, (x, y), strengths=[0.0])
    assert (effect.accuracies == effect.clean).all()
    assert (effect.permuted == effect.clean).all()
    assert effect.lowest_permuted.item() == pytest.approx(effect.clean)


def test_what_cannot_be_masked_is_refused():
    decomposition = decomposed()
    with pytest.raises(weightspace.ShapeError, match="span only 10"):
        adversarial_masks(decomposition, terms=5)
    with pytest.raises(weightspace.ShapeError, match="terms is 0"):
        adversarial_masks(decomposition, terms=0)
    with pytest.raises(weightspace.ShapeError, match="0 to 2"):
        adversarial_masks(decomposition, directions=[3])
    model = BilinearMLP(5, 4, 3)
    with pytest.raises(weightspace.ShapeError, match=r"\(12,\)"):
        measure_masks(adversarial_masks(decomposition), model, (torch.zeros(2, 5), torch.zeros(2).long()))
