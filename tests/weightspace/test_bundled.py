"""The checkpoints that come with the library are what `accuracy.json` says."""

import pytest
import torch
import torch.nn.functional as F

import weightspace
from weightspace import bundled

networks = pytest.mark.parametrize("name", bundled.names())


@pytest.fixture(scope="module")
def digits():
    return bundled.digits()


def correct_share(module, x, y):
    with torch.no_grad():
        return (module(x).argmax(1) == y).double().mean().item()


def test_digits_are_always_split_alike(digits):
    x_train, y_train, x_test, y_test = digits
    assert x_train.shape == (1347, 64)
    assert x_test.shape == (450, 64)
    assert x_train.dtype == x_test.dtype == torch.float32
    assert (x_train.min(), x_train.max()) == (0.0, 1.0)
    shares = [y.bincount(minlength=10) / len(y) for y in (y_train, y_test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    for first, second in zip(digits, bundled.digits()):
        assert torch.equal(first, second)


@networks
def test_reproduces_its_recorded_accuracy(name, digits):
    x_train, y_train, x_test, y_test = digits
    module = bundled.load(name).to_module()
    record = bundled.accuracies()[name]
    # Counts of images: rounding on another machine could only move an image whose two best logits tie.
    assert correct_share(module, x_test, y_test) == record["test_accuracy"] > 0.95
    assert correct_share(module, x_train, y_train) == record["train_accuracy"]
    assert (record["train_images"], record["test_images"]) == (len(x_train), len(x_test))


@networks
def test_understood_whole(name):
    network = bundled.load(name)
    assert not network.opaque
    assert [tuple(node.shape) for node in network.inputs] == [(None, 64)]
    assert network.node(network.outputs[0]).shape == (None, 10)
    assert all(torch.isfinite(tensor).all() for tensor in network.parameters.values())


def test_names_and_sizes():
    files = list(bundled.FOLDER.glob("*.safetensors"))
    assert {file.stem for file in files} == set(bundled.names()) == set(bundled.accuracies())
    assert sum(file.stat().st_size for file in bundled.FOLDER.iterdir() if file.is_file()) < 2_000_000
    with pytest.raises(weightspace.CheckpointError, match="digits_mlp_a"):
        bundled.load("mnist")


def test_matrices_of_the_maxmin_network_are_orthogonal():
    network = bundled.load("digits_maxmin")
    matrices = [tensor for tensor in network.parameters.values() if tensor.ndim == 2]
    assert len(matrices) == 3
    for matrix in matrices:
        assert (torch.linalg.svdvals(matrix.double()) - 1).abs().max() < 1e-5
    assert sum(node.operation.kind == "GroupSort" for node in network.nodes) == 2


def test_alignment_lowers_the_barrier(digits):
    _, _, x, y = digits
    a, b = bundled.load("digits_mlp_a"), bundled.load("digits_mlp_b")
    assert a.hash != b.hash

    def loss(module):
        return F.cross_entropy(module(x), y).item()

    before = weightspace.barrier(a, b, loss, points=11).barrier
    after = weightspace.barrier(a, weightspace.align(a, b).model, loss, points=11).barrier
    assert before > 0.5
    assert after < 0.25 * before


def test_training_is_deterministic(digits):
    from dataclasses import replace

    from weightspace.bundled.train import RECIPES, fit

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = replace(RECIPES["digits_maxmin"], epochs=1)
        first, second = (fit(recipe, *digits[:2]).state_dict() for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)
