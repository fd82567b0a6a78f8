# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A first look at checkpoints you did not train
#
# Five small networks come with the library, trained on scikit-learn's scanned digits. We treat them as strangers:
# what is in them, are two of them the same, what can be promised about them, and what does the bilinear one compute?

# %%
import torch
import torch.nn.functional as F

import certify
import interp
import weightspace
from weightspace.bundled import digits, load
from weightspace.report.figures import barrier_figure, graph_figure

_, _, images, labels = digits()
a, b = load("digits_mlp_a"), load("digits_mlp_b")
print(a)

# %% [markdown]
# ## What is in there
#
# One row per tensor. `alpha` is the power-law exponent of the spectrum; the matrices here are too small for it.

# %%
print(weightspace.inspect(a).to_table())

# %%
graph_figure(weightspace.encode(a))

# %% [markdown]
# ## Are the two the same network?
#
# Hidden units have no order: permuting them changes every weight and nothing else. `symmetry` says which axes move
# together, and has checked it by running the network.

# %%
print(weightspace.symmetry(a))

# %% [markdown]
# Shuffle the units of `a`: the weights look unrelated, and alignment finds the order again, exactly.

# %%
from weightspace.permutation import permute, random_permutations

spec = weightspace.symmetry(a)
shuffled = permute(a, spec, random_permutations(spec, torch.Generator().manual_seed(0)))
again = weightspace.align(a, shuffled)
print(f"distance {again.distance_before:.2f} -> {again.distance:.2f}; same network: {again.same_network}")

# %% [markdown]
# `b` was trained from another seed. Alignment cannot make the two equal, but it lowers the loss barrier on the
# straight line between them.

# %%
aligned = weightspace.align(a, b)


def loss(module):
    return float(F.cross_entropy(module(images), labels))


before, after = weightspace.barrier(a, b, loss), weightspace.barrier(a, aligned.model, loss)
print(f"barrier {before.barrier:.3f} -> {after.barrier:.3f}")
barrier_figure(
    {"as they are": (before.positions, before.losses), "after alignment": (after.positions, after.losses)},
    "cross entropy, test set",
)

# %% [markdown]
# ## What can be promised
#
# An upper bound on how far outputs move per unit of input, for all inputs, with a proof that is checked
# independently. The MaxMin network was built to have Lipschitz constant 1.

# %%
network = load("digits_maxmin")
certificate = certify.lipschitz(network)
print(certificate)
print(certify.check(certificate, network))

# %% [markdown]
# ## What a bilinear layer computes
#
# Each class logit is a quadratic form of the pixels; its eigenvectors can be looked at. The sum of
# eigenvalue times squared projection is the logit itself, not an approximation.

# %%
from interp.plots import eigenvector_figure

bilinear = load("digits_bilinear")
decomposition = interp.decompose(bilinear)
eigenvector_figure(decomposition, directions=[0, 1, 3], shown=4)

# %%
with torch.no_grad():
    logits = bilinear.to_module()(images)
    rebuilt = decomposition.truncate(decomposition.values.shape[1])(images)
print("largest difference:", float((logits - rebuilt).abs().max()))

# %% [markdown]
# What this notebook claimed, asserted.

# %%
assert again.same_network
assert after.barrier < before.barrier
assert certificate.upper_bound < 1.001
assert certify.check(certificate, network).valid
torch.testing.assert_close(rebuilt.to(logits.dtype), logits, rtol=1e-4, atol=1e-4)
