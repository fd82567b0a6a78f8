"""Laws of classifier zoos: each network is what its measures say, and runs differ as asked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightspace.errors import ArchitectureError, ShapeError, UnsupportedOperationError
from weightspace.zoo import (
    ConvolutionalClassifier,
    HyperparameterRanges,
    PerceptronClassifier,
    train_classifiers,
)

DTYPES = [torch.float32, torch.float64]
CONVOLUTIONS = ConvolutionalClassifier((4, 5))
PERCEPTRON = PerceptronClassifier((6, 5), activation="tanh")


def blobs(count: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Images (count, 1, 5, 5) of three classes that differ in the row that is bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = 0.3 * torch.randn(count, 1, 5, 5, generator=generator, dtype=dtype)
    x[torch.arange(count), 0, 2 * y] += 1.0
    return x, y


def train(architecture, dtype=torch.float32, **options):
    options = {"networks": 6, "epochs": 2, "batch_size": 16, "progress": False, **options}
    return train_classifiers(
        *blobs(90, dtype), blobs(30, dtype, seed=1), architecture=architecture, **options
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", [CONVOLUTIONS, PERCEPTRON], ids=["cnn", "mlp"])
def test_measures_are_those_of_the_networks(architecture, dtype):
    zoo = train(architecture, dtype, keep_epochs=(0,), batch=4)
    assert zoo.flat().dtype == dtype
    x, y = blobs(30, dtype, seed=1)
    for index in range(len(zoo)):
        logits = zoo.network(index).to_module()(x)
        accuracy = (logits.argmax(1) == y).double().mean()
        assert abs(float(zoo.measures["test_accuracy"][index]) - float(accuracy)) < 1e-6
        torch.testing.assert_close(
            zoo.measures["test_loss"][index], F.cross_entropy(logits, y), rtol=1e-4, atol=1e-5
        )
    assert len(zoo.spec.groups) == 2


def test_epochs_of_a_run_are_never_parted():
    zoo = train(PERCEPTRON, keep_epochs=(0, 1), epochs=2, networks=10, batch=3)
    assert zoo.sources.tolist() == [run for run in range(10) for _ in range(3)]
    assert zoo.measures["epoch"].tolist() == [0.0, 1.0, 2.0] * 10
    first, second = zoo.split((0.5, 0.5))
    assert not set(first.sources.tolist()) & set(second.sources.tolist())
    for name in ("learning_rate", "dropout", "optimizer"):
        values = zoo.measures[name].view(10, 3)
        assert (values == values[:, :1]).all()


def test_kept_epochs_are_those_of_a_shorter_training():
    long = train(PERCEPTRON, keep_epochs=(1,), epochs=2)
    short = train(PERCEPTRON, epochs=1)
    torch.testing.assert_close(long[long.measures["epoch"] == 1].flat(), short.flat(), rtol=0, atol=0)


def test_training_teaches():
    easy = HyperparameterRanges((2e-3, 1e-2), (1.0, 1.5), (1e-6, 1e-5), (0.0, 0.0), (1.0, 1.0), ("adam",))
    zoo = train(CONVOLUTIONS, ranges=easy, epochs=30, keep_epochs=(0,))
    start, end = (zoo[zoo.measures["epoch"] == epoch] for epoch in (0, 30))
    assert float(end.measures["test_accuracy"].mean()) > 0.9
    assert float(end.measures["test_loss"].mean()) < 0.5 * float(start.measures["test_loss"].mean())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_optimizers_step_as_torch_does(optimizer):
    """One network on all the data, without what is random, follows torch.optim on clipped gradients."""
    rate, decay = 1e-2, 1e-3
    single = HyperparameterRanges(
        (rate, rate), (1.0, 1.0), (decay, decay), (0.0, 0.0), (1.0, 1.0), (optimizer,)
    )
    x, y = blobs(3, torch.float64)
    x, y = x[:1].expand(4, -1, -1, -1), y[:1].expand(4)  # whatever sample is drawn, it is this one
    zoo = train_classifiers(
        x, y, (x, y), networks=1, architecture=lambda shape, classes: PERCEPTRON(shape, 3), ranges=single,
        epochs=5, keep_epochs=(0,), batch_size=4, progress=False,
    )  # fmt: skip
    module = zoo.network(0).to_module()
    maker = {
        "sgd": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=rate),
        "rmsprop": lambda p: torch.optim.Adam(p, lr=rate, betas=(0.0, 0.999)),
    }[optimizer]
    follower = maker(module.parameters())
    for _ in range(5):
        follower.zero_grad()
        F.cross_entropy(module(x), y).backward()
        for tensor in module.parameters():
            tensor.grad += decay * tensor.detach()
        norm = nn.utils.get_total_norm([tensor.grad for tensor in module.parameters()])
        for tensor in module.parameters():
            tensor.grad /= norm.clamp_min(1.0)
        follower.step()
    expected = torch.cat([tensor.detach().flatten() for tensor in module.parameters()])
    torch.testing.assert_close(zoo[1:].flat()[0], expected, rtol=1e-6, atol=1e-9)


def test_hyperparameters_stay_in_their_ranges():
    ranges = HyperparameterRanges(
        learning_rate=(1e-3, 1e-2), fraction=(0.2, 0.3), optimizers=("sgd", "rmsprop")
    )
    drawn = ranges.draw(1000, torch.Generator().manual_seed(0))
    assert set(drawn["optimizer"].tolist()) == {0.0, 2.0}
    for name, (low, high) in (
        ("learning_rate", (1e-3, 1e-2)),
        ("fraction", (0.2, 0.3)),
        ("dropout", (0, 0.7)),
    ):
        assert low <= drawn[name].min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < drawn[name].max() <= high
    with pytest.raises(ShapeError, match="got \\('adamw',\\)"):
        HyperparameterRanges(optimizers=("adamw",)).draw(1, torch.Generator())


def test_results_depend_on_the_generator_only():
    state = torch.get_rng_state()
    first, again = (train(PERCEPTRON, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.flat(), again.flat())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.flat(), train(PERCEPTRON).flat())


def test_dropout_matters_in_training_only():
    def ranges(rate):
        return HyperparameterRanges(dropout=(rate, rate))

    with_dropout, without = (train(PERCEPTRON, ranges=ranges(rate), keep_epochs=(0,)) for rate in (0.5, 0.0))
    start = with_dropout.measures["epoch"] == 0
    torch.testing.assert_close(with_dropout[start].flat(), without[start].flat())
    torch.testing.assert_close(
        with_dropout.measures["test_loss"][start], without.measures["test_loss"][start]
    )
    assert not torch.allclose(with_dropout[~start].flat(), without[~start].flat())


def test_any_module_without_statistics_is_trained():
    def architecture(shape, classes):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(25, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, classes)
        )

    zoo = train(architecture, epochs=5)
    assert set(zoo.parameters) == set(architecture((1, 5, 5), 3).state_dict())

    def normalized(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.BatchNorm1d(6), nn.Linear(6, classes))

    with pytest.raises(UnsupportedOperationError, match=r"'2\.running_mean'"):
        train(normalized)


def test_data_that_does_not_fit_is_refused():
    x, y = blobs(9)
    with pytest.raises(ShapeError, match=r"\(9, 1, 5, 5\), \(8,\)"):
        train_classifiers(x, y[1:], (x, y), networks=1)
    with pytest.raises(ShapeError, match="reshape x, or use PerceptronClassifier"):
        train_classifiers(x.flatten(1), y, (x.flatten(1), y), networks=1)
    with pytest.raises(ArchitectureError, match="activation 'rellu'"):
        train(PerceptronClassifier(activation="rellu"))
