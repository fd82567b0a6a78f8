# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Networks that read networks
#
# **The question.** More and more data come as the weights of small networks: images, shapes and radiance
# fields stored as functions. How do I build a network whose *input* is a network, when the order of its
# neurons means nothing?
#
# We follow Navon, Shamsian, Achituve, Fetaya, Chechik and Maron, *Equivariant architectures for learning in
# deep weight spaces* (2023), and Kofinas et al., *Graph neural networks for learning equivariant
# representations of neural networks* (2024). Two differences. The equivariant layer here contains *all*
# linear maps that respect the symmetry, for any architecture whose symmetries the library finds, while
# published layers are written for perceptrons or convolutional networks and were measured to lack some of
# these maps. And everything is small: 8 x 8 digits and training for seconds, so accuracies are far from the
# best possible.
#
# ## Images as networks
#
# An *implicit neural representation* is a network $f_\theta$ from a pixel's coordinates $(x, y)$ to its
# brightness. Once it is fitted, its weights $\theta$ are the image. `fit_inrs` fits one to each of 1000
# digits, with sine units (Sitzmann et al., *Implicit neural representations with periodic activation
# functions*, 2020), all at once.

# %%
import torch
import torch.nn.functional as F

from weightspace import encode, equivariant, graph, zoo
from weightspace.bundled import digits

images, labels, _, _ = digits()
images, labels = images[:1000].reshape(-1, 8, 8), labels[:1000]
inrs = zoo.fit_inrs(
    images, hidden=(8, 8), omega=5.0, steps=80, learning_rate=5e-3, shared_initialization=True, labels=labels,
    progress=False,
)  # fmt: skip
inrs

# %% [markdown]
# The function knows no pixels: it can be drawn on a finer grid.

# %%
from weightspace.report.figures import new_figure

shown = [int((labels == digit).nonzero()[0]) for digit in range(8)]
figure = new_figure(7.2, 2.9)
rows = {
    "image": images[shown],
    "its network, 8 x 8": zoo.render_inrs(inrs[shown], (8, 8)),
    "its network, 40 x 40": zoo.render_inrs(inrs[shown], (40, 40)),
}
for row, (name, pictures) in zip(figure.subplots(3, len(shown)), rows.items(), strict=True):
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes, picture in zip(row, pictures, strict=True):
        axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
figure

# %% [markdown]
# ## What must not matter
#
# Renumber the hidden neurons of such a network and all its weights change place, but the image stays. A
# reader should satisfy $R(\rho(g)\,\theta) = R(\theta)$ for every renumbering $g$; this is called
# *invariance*. The layers inside a reader, whose output is again one number per weight, should be
# *equivariant*: renumber before or after, the same result,
# $$L(\rho(g)\,\theta) = \rho(g)\,L(\theta) .$$
# Which maps are that? For linear ones the answer is known completely: weights have to be shared. Here is such
# a map for a tiny network with two inputs, hidden layers of 4 and 3 and one output, as the matrix that takes
# its weights (columns) to new ones (rows). Entries that share one learnable number have the same color.

# %%
spec = equivariant.describe_perceptron((2, 4, 3, 1))
torch.manual_seed(0)
layer = equivariant.EquivariantLinear(spec, 1, 1, bias=False, fixed=equivariant.Full())
sizes = {name: torch.Size(shape).numel() for name, shape in spec.shapes.items()}
total = sum(sizes.values())
basis = dict(zip(sizes, torch.eye(total).split(list(sizes.values()), 1), strict=True))
with torch.no_grad():
    result = layer({name: part.reshape(total, 1, *spec.shapes[name]) for name, part in basis.items()})
matrix = torch.cat([result[name].reshape(total, -1) for name in sizes], 1).T
free = equivariant.count_maps(spec).linear
print(f"{free} learnable numbers instead of {total**2:,}")

figure = new_figure(5.6, 4.6)
axes = figure.subplots()
limit = float(matrix.abs().quantile(0.98))
axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
borders = torch.tensor([0, *sizes.values()]).cumsum(0)
middles = (borders[1:] + borders[:-1]) / 2 - 0.5
names = [name.replace("layers.", "").replace("weight", "W").replace("bias", "b") for name in sizes]
axes.set_xticks(middles, names, fontsize=8)
axes.set_yticks(middles, names, fontsize=8)
for border in borders[1:-1]:
    axes.axhline(float(border) - 0.5, color="black", linewidth=0.5)
    axes.axvline(float(border) - 0.5, color="black", linewidth=0.5)
axes.set_xlabel("weights read, by layer")
axes.set_ylabel("weights written, by layer")
figure

# %% [markdown]
# A direct check, for the networks of our digits: renumber, then apply the layer; apply, then renumber.

# %%
from weightspace.testing import assert_equivariant

assert_equivariant(equivariant.EquivariantLinear(inrs.spec, 3, 5), inrs.spec, channels=3, tolerance=1e-5)

# %% [markdown]
# ## The same idea as a graph
#
# Kofinas et al. turn the network into a graph: neurons are nodes and carry their biases, weights are edges. A
# graph has no order of its nodes to begin with, so that any message-passing network on it is equivariant; and
# graphs of networks of different architectures can go into one batch. Our images look like this:

# %%
from weightspace.report.figures import graph_figure

nodes = encode(inrs.network(shown[3]))
graph_figure(nodes)

# %% [markdown]
# ## Networks as inputs
#
# Which digit does a network represent? We train a deep weight space network, a neural graph network and, as
# the baseline that knows nothing of symmetry, a perceptron on all weights in a row; the last also with the
# neurons of its training networks renumbered at random in each step, which is how one usually asks for an
# invariance (*augmentation*).

# %%
train, valid, test = inrs.split((0.75, 0.1, 0.15), torch.Generator().manual_seed(0))
scale = zoo.standardize(train)


def fit(name, make, steps, augmented=False):
    torch.manual_seed(0)
    reader = make()
    augment = zoo.Augmentation(train.spec, permute=augmented, noise=0.05)

    def loss(generator):
        batch = torch.randint(len(train), (32,), generator=generator)
        weights = {name: tensor[batch] for name, tensor in train.parameters.items()}
        return F.cross_entropy(reader(augment(weights, generator)), train.labels[batch])

    run = zoo.run_training(
        reader, loss, lambda: {"accuracy": accuracy(reader, valid.parameters, valid.labels)},
        steps=steps, objective="accuracy", learning_rate=5e-3, warmup=30, evaluations=5, progress=False,
    )  # fmt: skip
    print(f"{name}: {run.best['accuracy']:.1%} of the validation networks")
    return run.model


def accuracy(reader, weights, labels):
    with torch.no_grad():
        return float((reader(weights).argmax(-1) == labels).double().mean())


def deep_weight_space():
    net = equivariant.DeepWeightSpaceNet(inrs.spec, 10, channels=(16, 16), head_width=64)
    return zoo.WeightSpaceReader(net, scale)


def neural_graph():
    template = encode(inrs.template)
    net = graph.NeuralGraphNet(
        graph.describe_graphs([template]),
        out_features=10,
        width=16,
        edge_width=8,
        layers=3,
        aggregators=("mean", "std"),
        readout="all",
    )
    return zoo.GraphReader(net, template, scale)


def perceptron():
    return zoo.FlatReader(inrs.weights, 10, scale, hidden=(128, 128))


readers = {
    "perceptron": fit("perceptron", perceptron, 200),
    "perceptron,\naugmented": fit("perceptron, augmented", perceptron, 300, augmented=True),
    "deep weight\nspace network": fit("deep weight space network", deep_weight_space, 240),
    "neural graph\nnetwork": fit("neural graph network", neural_graph, 190),
}

# %% [markdown]
# Now the test: networks that no reader has seen, first as they were fitted, then the very same functions with
# their hidden neurons renumbered. Our networks all started from the same initial weights, so that neuron
# number 5 plays a similar part in each of them; the perceptron relies on that, and is lost without it.
# Networks from different sources do not share such an order. The two equivariant readers give the same
# answers either way, not approximately but by construction.

# %%
renumbered = zoo.permute_zoo(test.parameters, test.spec, torch.Generator().manual_seed(1))
found = {name: accuracy(reader, test.parameters, test.labels) for name, reader in readers.items()}
moved = {name: accuracy(reader, renumbered, test.labels) for name, reader in readers.items()}
with torch.no_grad():
    for name, reader in readers.items():
        logits = reader(test.parameters)
        change = float((reader(renumbered) - logits).abs().max() / logits.abs().max())
        print(f"{name.replace(chr(10), ' '):26} as fitted {found[name]:.1%}, renumbered {moved[name]:.1%}, "
              f"outputs change by {change:.1e}")  # fmt: skip

# %%
from weightspace.report.figures import BLUE, GRAY, RED

figure = new_figure(7.0, 3.2)
axes = figure.subplots()
places = torch.arange(len(readers))
axes.bar(places - 0.2, [100 * value for value in found.values()], 0.38, color=BLUE, label="as fitted")
axes.bar(places + 0.2, [100 * value for value in moved.values()], 0.38, color=RED, label="neurons renumbered")
axes.axhline(10, color=GRAY, linestyle=":", label="guessing")
axes.set_xticks(places, list(readers))
axes.set_ylabel("test accuracy (%)")
figure.legend(loc="outside right upper", frameon=False)
figure

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
plain, augmented, equivariant_reader, graph_reader = readers
assert float(inrs.measures["psnr"].median()) > 14  # the networks are the images
assert free < total**2 / 5
assert moved[plain] < 0.3 < found[plain]  # the perceptron reads the order, not the function
assert found[equivariant_reader] == moved[equivariant_reader] > moved[augmented] + 0.2
assert found[graph_reader] == moved[graph_reader] > moved[augmented] + 0.1

# %% [markdown]
# ## Where to go next
#
# Without the common start, reading is much harder. Measured at length, with ten networks per image from ten
# starts:
#
# ```bash
# python benchmarks/inr_classification.py digits
# ```
#
# The graph of a network of your own: `weightspace graph model.pt -o graph.json`. Writing instead of reading,
# that is changing an image by changing its weights: `zoo.WeightEditor` and `benchmarks/inr_editing.py`.
# Predicting how well a classifier does from its weights: `zoo.train_classifiers` and
# `benchmarks/cnn_generalization.py`.
