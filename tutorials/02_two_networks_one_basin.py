# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Two networks, one basin
#
# **The question.** I trained the same network twice, from different random numbers. Both classify equally
# well, and yet their weights have nothing in common. Did training find two different solutions, or one
# solution written down in two ways? And can I average them?
#
# We follow Ainsworth, Hayase and Srinivasa, *Git Re-Basin: merging models modulo permutation symmetries*
# (2023), who showed that sorting the neurons of one network can remove the wall between the two, and Jordan,
# Sedghi, Saukh, Entezari and Neyshabur, *REPAIR: renormalizing permuted activations for interpolation repair*
# (2023), who found what is still missing after that. Where we differ: our networks are small and read 8 x 8
# digits; neurons are matched layer by layer in the paper (`WeightMatching`), while the default here improves
# all layers at once and then polishes (`FrankWolfeMatching`); and many networks are merged without making one
# of them the reference, after Crisostomi et al., *C2M3* (2024).

# %%
import torch
import torch.nn.functional as F
from torch import nn

import weightspace
from weightspace.bundled import digits

images, labels, test_images, test_labels = digits()


def perceptron(hidden, *, batch_norm=False):
    layers, width = [], 64
    for size in hidden:
        layers += [nn.Linear(width, size), nn.BatchNorm1d(size) if batch_norm else nn.Identity(), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 10))


def train(seed, hidden, **options):
    torch.manual_seed(seed)
    model = perceptron(hidden, **options).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        for batch in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def loss(model):
    return F.cross_entropy(model(test_images), test_labels)


def accuracy(model):
    with torch.no_grad():
        return float((model(test_images).argmax(1) == test_labels).double().mean())


networks = [train(seed, (96, 96)) for seed in range(5)]
a, b = networks[:2]
print("test accuracy:", *(f"{accuracy(network):.1%}" for network in networks))

# %% [markdown]
# ## Neurons have no order
#
# A hidden layer computes $h = \sigma(W_1 x)$ and the next one reads $W_2 h$. Renumber the neurons with a
# permutation matrix $P$: replace $W_1$ by $P W_1$ and $W_2$ by $W_2 P^\top$. Every weight is somewhere else
# and the function is the same. `symmetry` reads off which axes move together in any architecture, and has
# confirmed each group by running the network.

# %%
spec = weightspace.symmetry(a)
print(spec)
orders = sum(torch.lgamma(torch.tensor(group.size + 1.0)) for group in spec.groups) / torch.log(
    torch.tensor(10.0)
)
print(f"the same function can be written down in more than 10^{int(orders)} ways")

# %% [markdown]
# So before comparing two networks one should bring them into the same order. `align` looks for the
# permutations that make the weights of $b$ as near as possible to those of $a$: it maximizes
# $$\sum_{\text{layers}} \langle W^{(a)}_l,\; P_l\, W^{(b)}_l P_{l-1}^\top \rangle .$$

# %%
alignment = weightspace.align(a, b)
print(f"distance {alignment.distance_before:.1f} -> {alignment.distance:.1f}")
print(f"largest change of the function by moving the neurons: {alignment.function_change:.1e}")

# %% [markdown]
# A picture of what happened. Each hidden neuron of the first layer is a row of weights; the pictures show the
# cosine of the angle between rows of $a$ (vertical) and rows of $b$ (horizontal), for the 48 neurons of $a$
# that end up with the best counterpart. After alignment the similar ones stand on the diagonal: similar, not
# equal.

# %%
from weightspace.report.figures import new_figure

rows = [F.normalize(model[0].weight.detach()) for model in (a, b, alignment.model)]
best = (rows[0] * rows[2]).sum(1).argsort(descending=True)[:48]
figure = new_figure(7.2, 3.4)
panels = figure.subplots(1, 2, sharey=True)
for axes, other, title in zip(panels, rows[1:], ("as trained", "after alignment"), strict=True):
    image = axes.imshow(rows[0][best] @ other[best].T, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title(title)
    axes.set_xlabel("neuron of b")
panels[0].set_ylabel("neuron of a")
figure.colorbar(image, ax=panels, label="cosine", shrink=0.8)
figure

# %%
diagonals = [float((rows[0] * other).sum(1).mean()) for other in rows[1:]]
print(f"mean cosine on the diagonal, all {len(rows[0])} neurons: {diagonals[0]:.2f} -> {diagonals[1]:.2f}")

# %% [markdown]
# ## The wall between them
#
# Walk on the straight line $\theta(t) = (1 - t)\,\theta_a + t\,\theta_b$ from one network to the other and
# watch the test loss. The *barrier* is how far it rises above the line between its two ends. As trained, the
# networks in the middle are bad; after alignment the barrier is almost gone. Up to the order of the neurons,
# the two lie in one basin.

# %%
from weightspace.report.figures import barrier_figure

before = weightspace.barrier(a, b, loss, accuracy=accuracy, points=13)
after = weightspace.barrier(a, alignment.model, loss, accuracy=accuracy, points=13)
print(f"barrier of the loss {before.barrier:.3f} -> {after.barrier:.3f}")
print(f"accuracy lost on the way {before.accuracy_barrier:.1%} -> {after.accuracy_barrier:.1%}")
curves = {"as trained": before, "aligned": after}
barrier_figure(
    {name: (curve.positions, curve.losses) for name, curve in curves.items()},
    "test loss",
    {name: (curve.positions, curve.accuracies) for name, curve in curves.items()},
)

# %% [markdown]
# ## Merging many
#
# What works for two should work for more: put all networks into one order, then take the mean of their
# weights. `merge` does both. The more networks, the more their mean loses; but an average without sorting
# soon knows nothing at all.

# %%
counts = (2, 3, 5)
merged = {
    name: [accuracy(weightspace.merge(networks[:count], method=method).model) for count in counts]
    for name, method in {
        "averaged as trained": weightspace.Average(),
        "aligned, then averaged": weightspace.Universe(),
    }.items()
}
alone = sum(map(accuracy, networks)) / len(networks)

# %%
from weightspace.report.figures import BLUE, GRAY, RED

figure = new_figure(6.4, 3.0)
axes = figure.subplots()
for (name, values), color in zip(merged.items(), (RED, BLUE), strict=True):
    axes.plot(counts, [100 * value for value in values], marker="o", color=color, label=name)
axes.axhline(100 * alone, color=GRAY, linestyle=":", label="one network alone")
axes.set_xticks(counts)
axes.set_ylim(0, 102)
axes.set_xlabel("networks merged into one")
axes.set_ylabel("test accuracy (%)")
figure.legend(loc="outside right upper", frameon=False)
figure

# %% [markdown]
# ## What averaging does to the units
#
# Deeper networks, and above all those with BatchNorm, still break after alignment. Jordan et al. found the
# reason. Let $X_a$ and $X_b$ be what two matched neurons compute, of equal variance $\sigma^2$ and with
# correlation $\varrho < 1$. Their mean has the variance
# $$\operatorname{Var}\Big(\frac{X_a + X_b}{2}\Big) = \frac{1 + \varrho}{2}\,\sigma^2 < \sigma^2 ,$$
# so that every averaged neuron varies less than those it was made of. Layer by layer this multiplies:
# *variance collapse*. BatchNorm makes it worse, since it divides by the running variance it stored during
# training, and the mean of the stored variances is no longer that of the averaged neuron. We train two deeper
# networks with BatchNorm and look at the standard deviation behind each BatchNorm, relative to the two end
# points.

# %%
first, second = (train(seed, (128, 128, 128, 128), batch_norm=True) for seed in (0, 1))
aligned = weightspace.align(first, second, example_inputs=images[:8]).model
middle = weightspace.interpolate(first, aligned, 0.5)
repaired = weightspace.reset_batch_norm(middle, images).model


def deviations(model):
    """The standard deviation behind every BatchNorm, mean over its units."""
    found, x = [], images
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm1d):
                found.append(float(x.std(0).mean()))
    return torch.tensor(found)


ends = (deviations(first) + deviations(second)) / 2
collapsed, restored = deviations(middle) / ends, deviations(repaired) / ends

figure = new_figure(6.4, 3.2)
axes = figure.subplots()
depth = range(1, len(ends) + 1)
axes.axhline(1, color=GRAY, linestyle=":", label="the two networks themselves")
axes.plot(depth, restored, marker="o", color=BLUE, label="averaged, statistics measured anew")
axes.plot(depth, collapsed, marker="o", color=RED, label="averaged")
axes.set_xticks(depth)
axes.set_ylim(0, 1.15)
axes.set_xlabel("hidden layer")
axes.set_ylabel("relative standard deviation")
axes.legend(loc="lower left", frameon=False)
figure

# %% [markdown]
# The remedy needs data but no labels and no training. In a network with BatchNorm it is enough to measure the
# running statistics again for the averaged weights (`reset_batch_norm`). In a network without, each unit is
# rescaled to the mean and standard deviation that it had in the end points (`restore_statistics`); `merge`
# and `barrier` choose by themselves when given `repair_data`. Here is the barrier once more, for the networks
# with BatchNorm:

# %%
walks = {
    "as trained": weightspace.barrier(first, second, loss, accuracy=accuracy, points=9),
    "aligned": weightspace.barrier(first, aligned, loss, accuracy=accuracy, points=9),
    "aligned, repaired": weightspace.barrier(
        first, aligned, loss, accuracy=accuracy, points=9, repair_data=images
    ),
}
for name, walk in walks.items():
    print(f"{name:20} barrier {walk.barrier:.3f}, accuracy lost {walk.accuracy_barrier:.1%}")
barrier_figure(
    {name: (walk.positions, walk.losses) for name, walk in walks.items()},
    "test loss",
    {name: (walk.positions, walk.accuracies) for name, walk in walks.items()},
)

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
assert alignment.function_change < 1e-9  # another order, the same function
assert diagonals[1] > diagonals[0] + 0.3
assert after.barrier < 0.25 * before.barrier
assert all(plain < sorted_ for plain, sorted_ in zip(*merged.values(), strict=True))
assert merged["aligned, then averaged"][-1] > alone - 0.1 > merged["averaged as trained"][-1] + 0.3
assert collapsed[-1] < 0.8  # variance collapses,
assert (restored - 1).abs().max() < 0.1  # and comes back
assert walks["as trained"].barrier > 2 * walks["aligned"].barrier
assert walks["aligned"].barrier > 1.5 * walks["aligned, repaired"].barrier

# %% [markdown]
# ## Where to go next
#
# Merging files of your own, neurons sorted first:
#
# ```bash
# weightspace merge a.pt b.pt c.pt -o merged.safetensors
# ```
#
# Width, training time, twenty networks, and a pair that no order of neurons joins: `benchmarks/merging.py`.
# Symmetries beyond permutations (scalings, rotations): `weightspace.symmetry(network, continuous=True)` with
# `ProcrustesMatching`. The same symmetry, put to use in networks that read networks: [tutorial
# 03](03_networks_that_read_networks.ipynb).
