# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What a bilinear layer computes
#
# **The question.** A network calls an image a 3. What did it look for, and can the weights alone say so,
# before any image has been shown to the network?
#
# For most networks they cannot: a nonlinearity such as ReLU behaves differently on every input. A *bilinear*
# layer multiplies two linear maps instead, and what it computes can be written down exactly, as pictures.
#
# We follow Pearce, Dooms, Rigg, Oramas and Sharkey, *Bilinear MLPs enable weight-based mechanistic
# interpretability* (2024). Two things differ. They read MNIST, we read scikit-learn's 8 x 8 digits, so that
# everything runs in seconds. And we fold the embedding into the layer first: eigenvectors live among the
# pixels, where they are orthogonal to each other, rather than in a hidden space.

# %%
import torch

import interp
from weightspace.bundled import digits, load

images, labels, test_images, test_labels = digits()
network = load("digits_bilinear")
print(network)

# %% [markdown]
# ## From a product to a sum of squares
#
# The layer maps $x$ to $y = P\,[(Wx) \odot (Vx)]$, with $\odot$ the product entry by entry. Every output is
# then a *quadratic form* of the pixels: one number per pair of pixels says what that pair, both bright, adds
# to the output. These numbers make a symmetric matrix,
#
# $$y_c = x^\top Q_c\, x, \qquad Q_c = \tfrac12 \sum_h P_{ch}\,(w_h v_h^\top + v_h w_h^\top),$$
#
# and a symmetric matrix has eigenvalues $\lambda_i$ and orthonormal eigenvectors $v_i$. In their terms
#
# $$y_c = \sum_i \lambda_i\,(v_i \cdot x)^2 .$$
#
# So an output is a weighted sum of squared matches with a few patterns. A positive $\lambda_i$ is a pattern
# that speaks for the class, a negative one a pattern that speaks against it. `decompose` finds them for all
# ten digits.

# %%
decomposition = interp.decompose(network)
decomposition

# %% [markdown]
# Nothing has been approximated: the sum gives back the network's own outputs.

# %%
with torch.no_grad():
    logits = network.to_module()(test_images)
rebuilt = decomposition.explain(test_images).sum(-1)
error = float((rebuilt - logits).abs().max() / logits.abs().max())
print(f"largest difference between the sum and the network: {error:.1e} of the largest output")

# %% [markdown]
# ## The patterns
#
# One row per digit: its eigenvalues as bars, then the eigenvectors of the largest ones. Red and blue pixels
# have opposite signs; a pattern and its negative mean the same, since the match is squared. The leading
# positive pattern of the 0 shows a ring around a center of the other sign, although no image was involved in
# drawing it.

# %%
from interp.plots import eigenvector_figure

eigenvector_figure(decomposition, directions=[0, 1, 3, 5], shown=4)

# %% [markdown]
# ## Why this image is what it is
#
# For one image the terms $\lambda_i (v_i \cdot x)^2$ add up to the output, so they explain it completely.
# Here is a test image of a 3: all ten outputs, the largest terms of the winning one, and the patterns that
# those terms match.

# %%
from interp.plots import explanation_figure

three = int((test_labels == 3).nonzero()[0])
explanation_figure(decomposition, test_images[three], shown=6)

# %% [markdown]
# ## How many patterns does it take?
#
# The form of every digit has 64 eigenvectors. Keep the $k$ of largest $|\lambda|$ for each digit, drop the
# rest, and count how many test images are still recognized. `decomposition.truncate(k)` is that smaller
# network as a module.

# %%
from interp.comparison_plots import rank_accuracy_figure

curve = interp.measure_rank_accuracy(
    decomposition, test_images, test_labels, ranks=[1, 2, 3, 4, 5, 7, 10, 20, 40, 64]
)
enough = curve.lossless_rank(0.01)
print(f"all {decomposition.values.shape[1]} patterns per digit: {curve.full:.1%}")
print(f"within one point of that from {enough} patterns per digit on")
rank_accuracy_figure({"digits_bilinear": [curve]})

# %% [markdown]
# ## Does another network find the same patterns?
#
# If the patterns were accidents of one training run, reading them would be of little use. We train two more
# networks from other initial weights: one by the published recipe, with Gaussian noise added to the images
# and with weight decay, one with neither.

# %%
from weightspace.layers import BilinearMLP


def train(seed, noise, weight_decay):
    torch.manual_seed(seed)
    run = interp.train_classifier(
        BilinearMLP(64, 64, 10), images, labels, test=(test_images, test_labels), epochs=40, batch_size=64,
        learning_rate=3e-3, noise=noise, weight_decay=weight_decay, progress=False,
    )  # fmt: skip
    return run.model


models = {
    "noise and weight decay": train(1, noise=0.3, weight_decay=0.5),
    "neither": train(1, noise=0.0, weight_decay=0.0),
}
interp.diagnose_overfitting(models, (images, labels), (test_images, test_labels))

# %% [markdown]
# *Roughness* is 0 for a smooth picture and 1 for pixels drawn at random; *on rare inputs* is the weight that
# the patterns put on pixels which are almost never bright. The similarity of two patterns is $|v \cdot w|$, 1
# for the same pattern, and we pair the patterns of two networks one to one so that they agree best. Dashed
# are pairs that belong to different digits, dotted pairs of random vectors.

# %%
from interp.comparison_plots import similarity_figure

similar = {
    name: interp.compare_spectra([decomposition, interp.decompose(model)], terms=10, matched=True)
    for name, model in models.items()
}
similarity_figure(similar)

# %% [markdown]
# Each new network is compared with `digits_bilinear`, which was trained with noise and weight decay. Trained
# likewise, another network agrees with it well on the leading patterns. One trained with neither agrees little
# more than patterns of different digits do, although it classifies as well: on so small a data set the
# regularization is needed for reading rather than for accuracy. Dashed lines lie far above the dotted ones
# since all digits are drawn in the same part of the picture.

# %% [markdown]
# ## An attack read from the weights
#
# If the patterns are what the network looks for, then adding one to an image should mislead it. The mask for
# pattern $i$ is the column $i$ of the pseudo-inverse of all chosen patterns: added to an image it changes the
# match with pattern $i$ and with none of the others. No gradient and no image is needed. The same pixel
# values in random order are the comparison.

# %%
from interp.comparison_plots import mask_figure

masks = interp.adversarial_masks(decomposition)
effect = interp.measure_masks(
    masks, network.to_module(), (test_images, test_labels), strengths=(0.5, 1.0, 1.5, 2.0, 3.0)
)
print(f"an image has a Euclidean norm of about {float(test_images.norm(dim=1).mean()):.1f}")
print(effect)
mask_figure(masks, effect)

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
regular, overfitted = (similar[name].by_rank[:5].mean() for name in models)
assert error < 1e-5  # the sum of squares is the network
assert curve.full == float((logits.argmax(1) == test_labels).double().mean())
assert enough is not None
assert enough <= 15  # of 64
assert curve.accuracies[0] < curve.full - 0.2  # but one pattern is not enough
assert regular > overfitted + 0.1 > similar["noise and weight decay"].chance + 0.1
assert (effect.lowest[2:] < effect.lowest_permuted[2:] - 0.1).all()

# %% [markdown]
# ## Where to go next
#
# The same on a file of your own, with the pictures written to a folder:
#
# ```bash
# weightspace decompose bilinear.safetensors -o eigenvectors/
# ```
#
# Deeper networks: `interp.unfold`. Gates such as SwiGLU, which have no exact form: `interp.find_sites`. MNIST
# and a text model: `benchmarks/bilinear_mnist.py`, `benchmarks/bilinear_text.py`. A network whose patterns
# can be compared with theory: [tutorial 05](05_modular_addition.ipynb).
