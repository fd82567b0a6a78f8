"""The figures show the numbers they are given."""

import pytest
import torch

import interp
import weightspace
from interp.bilinear_transformer import BilinearTransformer
from interp.masks import adversarial_masks, measure_masks
from interp.rank_accuracy import RankAccuracy
from interp.spectral_comparison import compare_spectra
from interp.token_interactions import confirm_interactions, read_interactions
from weightspace.layers import Bilinear

pytest.importorskip("matplotlib")
from interp.comparison_plots import (
    mask_figure,
    rank_accuracy_figure,
    similarity_figure,
    spectra_figure,
)
from interp.interaction_plots import interaction_figure
from interp.plots import explanation_figure


def decomposed(seed=0):
    torch.manual_seed(seed)
    return interp.decompose(Bilinear(16, 6, 3, bias=True))


def test_an_explanation_draws_the_terms_that_matter_most():
    decomposition = decomposed()
    sample = torch.randn(16)
    figure = explanation_figure(decomposition, sample, shown=4, names=["a", "b", "c"])
    picture, outputs, terms, *vectors = figure.axes
    assert picture.images[0].get_array().shape == (4, 4)
    parts = decomposition.explain(sample)
    assert [bar.get_height() for bar in outputs.patches] == pytest.approx(parts.sum(1).tolist(), abs=1e-6)
    chosen = parts[parts.sum(1).argmax()]
    assert [bar.get_height() for bar in terms.patches] == pytest.approx(
        chosen[chosen.abs().argsort(descending=True)][:4].tolist()
    )
    assert len(vectors) == 4
    assert terms.get_title() == f"terms of {'abc'[parts.sum(1).argmax()]}"
    assert explanation_figure(decomposition, sample, direction=1).axes[2].get_title() == "terms of 1"
    with pytest.raises(weightspace.ShapeError, match="one sample"):
        explanation_figure(decomposition, torch.zeros(2, 16))
    with pytest.raises(weightspace.ShapeError, match="0 to 2"):
        explanation_figure(decomposition, sample, direction=3)


def test_accuracy_against_rank_draws_mean_and_band():
    ranks = torch.tensor([1, 2, 5])
    runs = [RankAccuracy(ranks, torch.tensor([0.1, 0.2, 0.4]) * k, 0.8) for k in (1, 2)]
    axes = rank_accuracy_figure({"some": runs}).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([15.0, 30.0, 60.0])
    assert axes.lines[1].get_ydata()[0] == pytest.approx(80.0)
    assert axes.collections[0].get_datalim(axes.transData).ymax == pytest.approx(80.0)
    other = RankAccuracy(torch.tensor([1, 2, 6]), torch.rand(3), 0.8)
    with pytest.raises(weightspace.ShapeError, match="different ranks"):
        rank_accuracy_figure({"some": [*runs, other]})
    with pytest.raises(weightspace.ShapeError, match="one curve or more"):
        rank_accuracy_figure({"none": []})


def test_similarity_and_spectra_of_several_networks():
    networks = {str(seed): decomposed(seed) for seed in range(3)}
    comparison = compare_spectra(list(networks.values()), terms=5)
    axes = similarity_figure({"seeds": comparison}).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx(comparison.by_rank.tolist(), abs=1e-6)
    axes = spectra_figure(networks, shown=6).axes[0]
    values = networks["0"].values
    largest = (values.clamp(min=0).amax(1) / values.abs().amax(1)).mean()
    assert axes.lines[0].get_ydata()[0] == pytest.approx(float(largest))
    assert len(axes.get_legend().get_texts()) == 3
    for draw in (similarity_figure, spectra_figure):
        with pytest.raises(weightspace.ShapeError, match="at least one"):
            draw({})


def test_masks_are_drawn_with_their_effect():
    torch.manual_seed(0)
    model = Bilinear(16, 6, 3, bias=True)
    masks = adversarial_masks(interp.decompose(model))
    effect = measure_masks(masks, model, (torch.randn(40, 16), torch.randint(3, (40,))), strengths=(1.0, 2.0))
    curve, *pictures = mask_figure(masks, effect).axes
    expected = [100 * value for value in (effect.clean, *effect.lowest.tolist())]
    assert curve.lines[0].get_ydata() == pytest.approx(expected)
    best, sign = effect.strongest()
    assert torch.equal(
        torch.tensor(pictures[1].images[0].get_array().data), sign * masks.masks[best].reshape(4, 4)
    )
    with pytest.raises(weightspace.ShapeError, match="16 inputs"):
        mask_figure(masks, effect, shape=(3, 5))


def test_interactions_are_drawn_with_their_measurement():
    torch.manual_seed(0)
    model = BilinearTransformer(4, 8, heads=2, context=5)
    interactions = read_interactions(model)
    measured = confirm_interactions(interactions, model, torch.randint(4, (2, 5)))
    figure = interaction_figure(interactions, measured, token=2, names="abcd", shown=3)
    matrix = torch.tensor(figure.axes[0].images[0].get_array().data)
    assert torch.equal(matrix, interactions.interaction[2])
    first = interactions.strongest(1)[0]
    bars = figure.axes[2].patches
    assert bars[-1].get_width() == pytest.approx(first.interaction)
    with pytest.raises(weightspace.ShapeError, match="4 names"):
        interaction_figure(interactions, measured, token=0, names="abc")
