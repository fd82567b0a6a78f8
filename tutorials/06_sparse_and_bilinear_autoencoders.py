# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Sparse and bilinear autoencoders
#
# *A hidden layer has 64 neurons, and no single neuron seems to mean anything. Which directions of its
# activations do, how many are there, and what if a concept is not a direction at all?*
#
# A **sparse autoencoder** writes an activation vector $x$ as a sum of a few vectors of a large dictionary,
#
# $$ \hat x = b + \sum_j f_j\, d_j, \qquad
# f = \text{the } k \text{ largest entries of } \mathrm{relu}(E (x - b) + c). $$
#
# Keeping the $k$ largest is the TopK rule of Gao et al. (2024); nested dictionaries whose first few features
# must do on their own are the matryoshka idea of Bussmann et al. (2025). A **bilinear autoencoder** (Dooms
# and Gauderis 2025) has features that are quadratic forms, and can name a circle where a direction cannot.
#
# The papers train on billions of activations of language models. Here the network is small, is trained in the
# notebook on scanned digits, and has 1347 activation vectors; the quantities measured are the same.

# %%
import torch
import torch.nn.functional as F
from torch import nn

import interp
from interp.autoencoders.manifold_plots import manifold_figure
from weightspace.bundled import digits
from weightspace.report.figures import BLUE, GRAY, RED, new_figure

train_x, train_y, test_x, test_y = digits()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for _ in range(200):
    loss = F.cross_entropy(net(train_x), train_y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy on unseen digits: {float((net(test_x).argmax(1) == test_y).float().mean()):.2f}")

# %% [markdown]
# ## Train several dictionaries at once
#
# `interp.activations(module, name, loader)` stands for what a submodule puts out, and runs the network
# whenever activations are needed, so that they may be more than fit into memory. `interp.train` takes a list
# of autoencoders and gives all of them the same batches: TopK dictionaries of 128 features with $k$ = 2, 4,
# 8, 16, one with nested parts, and one from another seed.

# %%
with torch.no_grad():
    hidden, unseen = net[:2](train_x), net[:2](test_x)
recorded = interp.activations(net, "1", [train_x])


def dictionary(k, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return interp.SparseAutoencoder(64, 128, interp.TopK(k), generator=generator, **options)


topk = {k: dictionary(k) for k in (2, 4, 8, 16)}
nested = dictionary(8, matryoshka=(16, 48))
reseeded = dictionary(4, seed=1)
run = interp.train([*topk.values(), nested, reseeded], recorded, steps=220, batch_size=192, progress=False)
print(len(run.autoencoders), "dictionaries,", run.samples, "samples each")

# %% [markdown]
# ## Are they any good?
#
# Three numbers. **FVU**, the fraction of variance unexplained: $\sum |x - \hat x|^2 / \sum |x - \bar x|^2$.
# **L0**: how many features are active on a sample. And since small errors could fall just where the network
# looks, **loss recovered**: put $\hat x$ in the place of $x$ and let the network go on. 1 means that it does
# as well as before, 0 that it does as badly as with zeros there. All on digits that neither network nor
# dictionary has seen.
#
# For comparison, principal components: $k$ directions, the same ones for every sample. A dictionary may
# choose other directions for every sample.

# %%
metrics = {
    k: interp.evaluate(one, unseen, model=net, hook="1", loader=[(test_x, test_y)]) for k, one in topk.items()
}
spectrum = torch.linalg.svdvals(hidden - hidden.mean(0)).square()
components = {k: float(spectrum[k:].sum() / spectrum.sum()) for k in topk}
for k, one in metrics.items():
    print(
        f"k = {k:2}: L0 {one.l0:4.1f}, FVU {one.fvu:.3f} (principal components {components[k]:.3f}), "
        f"features in use {one.frac_alive:.0%}, loss recovered {one.loss_recovered.ce_loss_score:.3f}"
    )

# %% [markdown]
# With few directions per sample the dictionary explains much more than principal components do. With many of
# them it loses its advantage, since 16 fixed directions already hold nearly all that 64 neurons do here. Loss
# recovered is close to 1 long before the error is small: most of what is lost does not matter to the network.
#
# ## What are the features?
#
# A feature of a hidden layer is a direction there; what it stands for is best seen in the inputs that
# activate it most. One row per feature, strongest input first.

# %%
with torch.no_grad():
    codes = topk[8].encode(hidden)
energy = codes.square().sum(0)
important = energy.argsort(descending=True)[:6].tolist()

figure = new_figure(7.2, 4.4)
panels = figure.subplots(6, 10)
for row, feature in zip(panels, important, strict=True):
    strongest = codes[:, feature].argsort(descending=True)[:10]
    for panel, sample in zip(row, strongest.tolist(), strict=True):
        panel.imshow(train_x[sample].reshape(8, 8), cmap="gray_r")
        panel.set_xticks([])
        panel.set_yticks([])
    row[0].set_ylabel(f"feature\n{feature}", fontsize=7, rotation=0, ha="right", va="center")
figure

# %%
purity = []
for feature in important:
    strongest = codes[:, feature].argsort(descending=True)[:10]
    purity.append(int(train_y[strongest].bincount().max()))
print("of the ten strongest digits of each feature, the most frequent class has", purity)

# %% [markdown]
# Nobody told the dictionary about classes. `interp.write_feature_cards` makes a page of such cards for any
# autoencoder.
#
# ## A dictionary that can be cut short
#
# Which 16 of 128 features would one keep? In a plain dictionary none are meant to stand alone. The nested one
# was trained so that its first 16, and its first 48, explain what they can without the others: its loss is
# the mean over these prefixes. We compare it with the plain dictionary, from which we take the most important
# features first.


# %%
def unexplained(autoencoder, order):
    shares, rows = [], torch.tensor(order)
    with torch.no_grad():
        codes = autoencoder.encode(hidden)
        for kept in range(8, 129, 8):
            mask = torch.zeros(128).index_fill(0, rows[:kept], 1.0)
            error = (hidden - autoencoder.decode(codes * mask)).square().sum()
            shares.append(float(error / (hidden - hidden.mean(0)).square().sum()))
    return shares


kept = list(range(8, 129, 8))
cut_plain = unexplained(topk[8], energy.argsort(descending=True).tolist())
cut_nested = unexplained(nested, list(range(128)))

figure = new_figure(8.4, 3.2)
tradeoff, cut = figure.subplots(1, 2)
tradeoff.plot(
    list(topk), [one.fvu for one in metrics.values()], color=BLUE, marker="o", label="TopK dictionary"
)
tradeoff.plot(list(topk), list(components.values()), color=GRAY, marker="s", label="principal components")
tradeoff.set_xscale("log", base=2)
tradeoff.set_xlabel("directions per sample, k")
cut.plot(kept, cut_plain, color=BLUE, marker=".", label="plain, most important first")
cut.plot(kept, cut_nested, color=RED, marker=".", label="nested (16, 48, 128), as they come")
for end in (16, 48):
    cut.axvline(end, color=RED, linewidth=0.6, linestyle=":")
cut.set_xlabel("features kept")
for panel in (tradeoff, cut):
    panel.set_yscale("log")
    panel.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    panel.minorticks_off()
    panel.set_ylabel("fraction of variance unexplained")
    panel.legend(fontsize=7, frameon=False)
tradeoff.set_xticks(list(topk), [str(k) for k in topk])
figure

# %% [markdown]
# ## Would another seed find the same features?
#
# If not, they say more about the training than about the network. `interp.match_features` pairs the features
# of two dictionaries one to one so that the cosines add up to the most. Two random dictionaries tell what
# chance achieves.

# %%
used = metrics[4].densities > 0
same = interp.match_features(topk[4], reseeded).cosines[used].sort(descending=True).values
chance = (
    interp.match_features(dictionary(4, seed=2), dictionary(4, seed=3))
    .cosines[used]
    .sort(descending=True)
    .values
)
print(f"mean cosine of features in use: {float(same.mean()):.2f}, by chance {float(chance.mean()):.2f}")
print(f"found again, with a cosine above 0.7: {float((same > 0.7).float().mean()):.0%}")

figure = new_figure(6.0, 3.0)
axes = figure.subplots()
axes.plot(same.detach(), color=BLUE, label="two seeds")
axes.plot(chance.detach(), color=GRAY, label="two random dictionaries")
axes.axhline(0.7, color="black", linewidth=0.6, linestyle=":")
axes.set_xlabel("features in use, best matched first")
axes.set_ylabel("cosine with the partner")
axes.set_ylim(0, 1.02)
axes.legend(fontsize=8, frameon=False)
figure

# %% [markdown]
# Clearly above chance, and far from all. With so little data this is what one gets; it is worth knowing
# before a feature is given a name.
#
# ## Concepts that are not directions
#
# The hour of the day, the angle of a stroke: such a concept is a circle in activation space, not a ray. A
# linear dictionary can only tile the circle with many directions. Let us plant three circles in 12
# dimensions, in planes that are orthogonal to each other. Every sample lies on one of them, at a random
# angle, with some noise.

# %%
generator = torch.Generator().manual_seed(0)
planes = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0][:6].reshape(3, 2, 12)
circle = torch.randint(3, (4000,), generator=generator)
angle = 2 * torch.pi * torch.rand(4000, generator=generator)
points = torch.stack([angle.cos(), angle.sin()], 1)
planted = torch.einsum("na,nad->nd", points, planes[circle]) + 0.05 * torch.randn(
    4000, 12, generator=generator
)

linear = interp.SparseAutoencoder(12, 32, interp.TopK(1))
interp.train(linear, planted, steps=300, batch_size=256, progress=False)
with torch.no_grad():
    fires = linear.encode(planted) > 0
per_circle = [int((fires[circle == c].float().mean(0) > 0.01).sum()) for c in range(3)]
print("linear features that fire on each circle:", per_circle)

# %% [markdown]
# A bilinear latent is a product of two linear functions, $f(x) = (l \cdot x)(r \cdot x)$: a quadratic form.
# Its symmetric matrix has two eigenvectors with eigenvalues that are not zero,
#
# $$ f(x) = \lambda_1 (v_1 \cdot x)^2 + \lambda_2 (v_2 \cdot x)^2, $$
#
# so it looks at a *plane*. The autoencoder reconstructs the matrix $x x^\top$ from its latents, which is done
# without ever forming it. The symmetric matrices on a plane have three dimensions, so three latents should be
# enough for each circle, nine in all; a penalty on dense activations keeps a latent from mixing circles.

# %%
quadratic = interp.BilinearAutoencoder(12, 9, sparsity=0.1)
interp.train(quadratic, planted, steps=300, batch_size=256, progress=False, decay=1.0)
forms = interp.decompose(quadratic)
overlap = torch.einsum("kad,cbd->kcab", forms.vectors[:, :2], planes).square().sum((2, 3)) / 2
belongs = overlap.argmax(1)
print(
    "share of each latent's plane that lies in the planted one:",
    [round(v, 3) for v in overlap.amax(1).tolist()],
)
print("latents per circle:", belongs.bincount(minlength=3).tolist())

shown = [int((belongs == c).nonzero()[0]) for c in range(3)]
figure = manifold_figure(
    [interp.project_manifold(quadratic, k, planted, axes=2) for k in shown], labels=circle
)
for panel in figure.axes:
    if panel.get_xlabel():  # not the color bars
        panel.set_aspect("equal")
        panel.set_xticks([-1, 0, 1])
        panel.set_yticks([-1, 0, 1])
figure

# %% [markdown]
# Each column is a latent: all samples in the plane of its two eigenvectors, colored by activation above and
# by planted circle below. The circle that a latent is about lies in this plane, the others are the dot in the
# middle. No sample was needed to find the planes: they are eigenvectors of weights.
#
# ## Back to the network
#
# The same on the real hidden layer. `interp.decompose` gives any latent as a sum of squares, exactly. Of the
# three most important latents, look at which digits lie far out along the first axis, which has the largest
# eigenvalue.

# %%
real = interp.BilinearAutoencoder(64, 64, sparsity=0.1)
interp.train(real, hidden, steps=200, batch_size=256, progress=False, decay=1.0)
print(f"share of x x^T unexplained: {interp.evaluate(real, unseen).fvu:.3f}")
manifolds = [interp.project_manifold(real, k, hidden, axes=2) for k in range(real.latents)]
manifolds.sort(key=lambda one: one.importance, reverse=True)
first = manifolds[0].latent
form = interp.decompose(real, directions=torch.eye(real.latents)[[first]])
with torch.no_grad():
    scaled = F.normalize(hidden)  # a bilinear autoencoder sees x / |x|
    by_terms = ((scaled @ form.vectors[0].mT).square() * form.values[0]).sum(1)
    by_encoder = real.encode(hidden)[:, first]
print(f"eigenvalues of latent {first}:", [round(value, 3) for value in form.values[0, :3].tolist()])
manifold_figure(manifolds[:3], labels=train_y)

# %% [markdown]
# No circles here: clouds, with one or two classes far out on one side. Where one eigenvalue is much larger
# than the other, the latent is the square of a single direction, and a linear feature would have done. A
# network trained to tell ten classes apart has reason to make rays; the paper finds richer shapes in language
# models.

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
for k, one in metrics.items():
    assert one.l0 <= k
    assert k > 4 or one.fvu < 0.6 * components[k]
    assert one.loss_recovered.ce_loss_score > 0.9
fvu = [one.fvu for one in metrics.values()]
assert fvu == sorted(fvu, reverse=True)
assert sum(purity) > 40  # chance would be about 25 of 60
assert cut_nested[1] < 0.5 * cut_plain[1]
assert same.mean() > chance.mean() + 0.2
assert min(per_circle) >= 4
assert overlap.amax(1).min() > 0.85
assert belongs.bincount(minlength=3).tolist() == [3, 3, 3]
torch.testing.assert_close(by_terms, by_encoder, rtol=1e-4, atol=1e-5)

# %% [markdown]
# ## Where to go next
#
# Concepts that are functions: [the next notebook](07_functions_as_concepts.ipynb). A dictionary of
# activations of your own, stored as `.npy` or safetensors files larger than memory:
#
# ```bash
# weightspace train-autoencoder activations/ -o dictionary/
# ```
