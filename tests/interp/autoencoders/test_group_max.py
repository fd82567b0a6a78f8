"""GroupMax keeps the largest latent of every group, and is trained through the sparse step."""

import pytest
import torch

from interp.autoencoders.group_max import GroupMax
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from weightspace.errors import ShapeError

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def make(dtype, k=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 8, generator=generator, dtype=dtype) + 0.2
    autoencoder = SparseAutoencoder(8, 20, GroupMax(k), dtype=dtype, generator=generator)
    autoencoder.prepare(x)
    return autoencoder, x


def dense(autoencoder, x):
    """The definition, differentiable."""
    h = (x - autoencoder.decoder_bias) @ autoencoder.encoder_weight.mT + autoencoder.encoder_bias
    groups = h.relu().unflatten(1, (autoencoder.activation.k, -1))
    return torch.where(groups == groups.max(2, keepdim=True).values, groups, 0.0).flatten(1)


@PRECISIONS
def test_codes_are_the_largest_of_their_groups(dtype):
    autoencoder, x = make(dtype)
    codes = autoencoder.encode(x)
    torch.testing.assert_close(codes, dense(autoencoder, x))
    assert ((codes.unflatten(1, (4, -1)) != 0).sum(2) <= 1).all()
    assert (codes != 0).sum() > 100


@PRECISIONS
def test_gradients_are_those_of_the_dense_definition(dtype):
    autoencoder, x = make(dtype)
    autoencoder.loss(x).total.backward()
    found = {name: parameter.grad.clone() for name, parameter in autoencoder.named_parameters()}
    autoencoder.zero_grad()
    made = dense(autoencoder, x) @ autoencoder.decoder_weight + autoencoder.decoder_bias
    ((x - made).square().sum() / len(x)).backward()
    for name, parameter in autoencoder.named_parameters():
        torch.testing.assert_close(
            found[name], parameter.grad, rtol=5e-6, atol=5e-6 * float(parameter.grad.abs().max())
        )


def test_groups_must_be_equal():
    with pytest.raises(ShapeError, match="3 equal groups of 20 latents"):
        make(torch.float32, k=3)
    with pytest.raises(ShapeError, match="k >= 1"):
        GroupMax(0)
