"""What the figures of tensors show."""

import pytest
import torch

import interp
import weightspace
from weightspace.layers import Bilinear

pytest.importorskip("matplotlib")
from interp.tensor_plots import feature_interaction_figure, hosvd_figure, spectrum_figure


def layer(size=16, seed=0):
    torch.manual_seed(seed)
    return Bilinear(size, 5, 3, bias=True)


def test_spectra_stand_beside_that_of_a_random_matrix():
    decomposition = interp.decompose(layer())
    axes = spectrum_figure(decomposition, names=["a", "b", "c"]).axes[0]
    assert [line.get_label() for line in axes.lines[:4]] == ["a", "b", "c", "random"]
    drawn = torch.tensor(axes.lines[0].get_ydata())
    torch.testing.assert_close(drawn, decomposition.values[0].double().sort(descending=True).values)
    with pytest.raises(weightspace.ShapeError, match="3 x 0"):
        spectrum_figure(interp.decompose(layer(), top=0))


def test_the_random_spectrum_is_that_of_random_matrices():
    from interp.tensor_plots import _semicircle

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(400, 400, dtype=torch.float64, generator=generator)
    matrix = matrix + matrix.T
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    got = torch.tensor(_semicircle(400, 400, float(matrix.norm())))
    assert float((got - expected).abs().max() / expected.max()) < 0.05


def test_the_card_of_a_tensor_has_a_row_for_every_component():
    found = interp.hosvd(layer())
    figure = hosvd_figure(found, count=2, shown=3)
    assert len(figure.axes) == 1 + 2 * (1 + 3)
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(found.values.tolist())
    assert figure.axes[2].images[0].get_array().shape == (4, 4)
    lines = hosvd_figure(interp.hosvd(layer(7)), count=1, shown=2)
    assert not lines.axes[2].images
    with pytest.raises(weightspace.ShapeError, match="16 inputs"):
        hosvd_figure(found, shape=(3, 5))


def test_interactions_are_drawn_for_the_features_that_interact():
    torch.manual_seed(0)
    features = torch.randn(40, 16)
    features[5:] *= 0.01
    found = interp.find_interactions(layer(), torch.eye(3), features)
    names = [f"f{index}" for index in range(40)]
    axes = feature_interaction_figure(found, 1, names=names, most=5).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == names[:5]
    picture = axes.images[0]
    torch.testing.assert_close(torch.tensor(picture.get_array()), found.matrix(1)[:5, :5])
    assert picture.norm.vmin == -picture.norm.vmax
    with pytest.raises(weightspace.ShapeError, match="outputs 0 to 2"):
        feature_interaction_figure(found, 3)
    with pytest.raises(weightspace.ShapeError, match="with 40 names"):
        feature_interaction_figure(found, 0, names=["x"])
