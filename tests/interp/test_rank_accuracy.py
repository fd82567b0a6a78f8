"""Laws of the accuracy against rank: it is that of the truncated form, and in the end that of the network."""

import pytest
import torch

import interp
import weightspace
from interp.classifier_training import accuracy
from interp.rank_accuracy import RankAccuracy, measure_rank_accuracy
from weightspace.layers import BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dtypes
@pytest.mark.parametrize("pad", [True, False], ids=["padded", "apart"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_every_rank_has_the_accuracy_of_the_truncated_form(dtype, pad, bias):
    torch.manual_seed(0)
    model = BilinearMLP(6, 5, 4, bias=bias).to(dtype)
    x, y = torch.randn(1500, 6, dtype=dtype), torch.randint(4, (1500,))
    decomposition = interp.decompose(model, pad=pad)
    found = measure_rank_accuracy(decomposition, x, y, ranks=[5, 0, 1, 2, 3, 2, 99])
    assert found.ranks.tolist() == [0, 1, 2, 3, 5]
    for rank, value in zip(found.ranks.tolist(), found.accuracies.tolist()):
        assert value == pytest.approx(accuracy(decomposition.truncate(rank), x, y), abs=1.5 / len(x))
    assert found.full == pytest.approx(accuracy(model, x, y), abs=1.5 / len(x))


def test_the_lossless_rank_is_the_first_from_which_on_nothing_is_lost():
    ranks = torch.tensor([1, 2, 5, 10])
    assert RankAccuracy(ranks, torch.tensor([0.2, 0.979, 0.97, 0.98]), 0.98).lossless_rank(0.002) == 10
    assert RankAccuracy(ranks, torch.tensor([0.2, 0.979, 0.98, 0.98]), 0.98).lossless_rank(0.002) == 2
    assert RankAccuracy(ranks, torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.98).lossless_rank(0.002) == 1
    assert RankAccuracy(ranks, torch.tensor([0.2, 0.3, 0.4, 0.5]), 0.98).lossless_rank(0.002) is None


def test_misfits_are_refused():
    decomposition = interp.decompose(BilinearMLP(6, 5, 4))
    with pytest.raises(weightspace.ShapeError, match="at least 0"):
        measure_rank_accuracy(decomposition, torch.zeros(3, 6), torch.zeros(3).long(), ranks=[-1])
    with pytest.raises(weightspace.ShapeError, match="one class for every input"):
        measure_rank_accuracy(decomposition, torch.zeros(3, 6), torch.zeros(2).long())
    with pytest.raises(weightspace.ShapeError, match=r"\(6,\)"):
        measure_rank_accuracy(decomposition, torch.zeros(3, 7), torch.zeros(3).long())
