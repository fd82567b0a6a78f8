# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What is in a checkpoint
#
# **The question.** Somebody hands me a file of weights. What is in it, is it healthy, and is it perhaps a
# network that I already have? I want to know before I run anything.
#
# This notebook is the overview: reading files, one row of numbers per tensor, spectra, signs of trouble,
# symmetry, the network as a graph, and all of it as a report. For spectra we follow Martin and Mahoney,
# *Implicit self-regularization in deep neural networks* (2021), who read the quality of training from the
# singular values of weight matrices. Where we differ: the exponent of the tail is given only where there are
# eigenvalues enough to fit one, and the random matrix we compare with is the same matrix with its entries
# shuffled, rather than a formula.
#
# ## Reading files
#
# Five small networks come with the library, trained on scikit-learn's 8 x 8 digits. To have something to read
# we write one of them in four formats, and once more as a whole pickled module.

# %%
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import weightspace
from weightspace.bundled import digits, load

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
network = load("digits_mlp_a")
module = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
module.load_state_dict(network.state_dict())

network.save(folder / "a.safetensors")  # with the architecture in its metadata
network.save_npz(folder / "a.npz")
torch.save(module.state_dict(), folder / "a.pt")  # tensors only
torch.save(module, folder / "pickled.pt")  # a Python object
logging.getLogger("torch.onnx").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        module, (torch.zeros(2, 64),), folder / "a.onnx", dynamic_shapes=(batch,), verbose=False
    )

# %% [markdown]
# Whatever the file, `read` returns the same kind of object: typed operations and named tensors. Its `hash`
# covers what the network computes with and not how things are called, so the four files are one network.

# %%
names = ("a.safetensors", "a.npz", "a.pt", "a.onnx")
hashes = {name: weightspace.read(folder / name).hash for name in names}
for name, digest in hashes.items():
    print(f"{name:15} {digest[:16]}")
print(weightspace.read(folder / "a.onnx"))

# %% [markdown]
# A pickle is a program: loading one may run anything. No file is ever unpickled into code here; the fifth
# file is refused, with a way out.

# %%
refused = None
try:
    weightspace.read(folder / "pickled.pt")
except weightspace.CheckpointError as error:
    refused = str(error).replace(str(folder), "...")
print(refused)

# %% [markdown]
# ## One row per tensor
#
# `inspect` takes a file, a module or a mapping of tensors, and streams what is larger than memory. *Stable
# rank* is $\|W\|_F^2 / \sigma_1^2$: how many directions the matrix uses, counted by their energy. `alpha` is
# the exponent of the tail of its eigenvalues; a small one means a heavy tail, much structure; matrices with
# fewer than 20 eigenvalues get none.

# %%
weightspace.inspect(network)

# %% [markdown]
# ## What training leaves in a spectrum
#
# A matrix of random numbers has a featureless spectrum: its singular values fill a band whose ends are known.
# Training adds directions that stand out of it. We train a wider network for a moment and compare its middle
# matrix with the same numbers in random order.

# %%
images, labels, _, _ = digits()
torch.manual_seed(0)
wide = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(wide.parameters(), 2e-3)
for _ in range(10):
    for rows in torch.randperm(len(images)).split(128):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wide(images[rows]), labels[rows]).backward()
        optimizer.step()

trained = wide[2].weight.detach()
shuffled = trained.flatten()[torch.randperm(trained.numel())].reshape(trained.shape)
spectra = weightspace.inspect({"trained": trained, "its entries shuffled": shuffled})
for row in spectra.rows:
    norms = f"norm {row.norm:.2f}, spectral norm {row.spectral_norm:.2f}, stable rank {row.stable_rank:.1f}"
    print(f"{row.name:20} {norms}, alpha {row.alpha:.1f}")

# %%
from weightspace.report.figures import spectra_figure

spectra_figure({row.name: row.singular_values[:100] for row in spectra.rows})

# %% [markdown]
# Both matrices hold the same numbers and have the same norm. What training has written stands above the flat
# curve; the rest is still the noise it started from. Count the singular values that are larger than any of
# the shuffled matrix: about as many as there are digits to tell apart.

# %%
first, second = spectra.rows
outliers = sum(value > second.spectral_norm for value in first.singular_values)
print(f"{outliers} of {len(first.singular_values)} singular values stand out")

# %% [markdown]
# ## Signs of trouble
#
# Exploded runs, dead neurons, neurons copied by a careless expansion, layers that collapsed to one direction:
# each leaves a trace in the weights, and `findings` names it. A healthy network has none. We damage ours.

# %%
damaged = {name: tensor.clone() for name, tensor in network.state_dict().items()}
damaged["0.weight"][[3, 8]] = 0.0  # two dead neurons
damaged["0.weight"][5] = damaged["0.weight"][4]  # and one that is there twice
damaged["2.weight"] = torch.outer(torch.ones(12), torch.linspace(-1, 1, 24))  # one direction
damaged["4.bias"][7] = float("nan")
trouble = weightspace.inspect(damaged)
print(*trouble.findings, sep="\n")
print("findings in the original:", len(weightspace.inspect(network).findings))

# %% [markdown]
# ## Is it a network I already have?
#
# Hidden neurons have no order: renumber them and every weight changes place, yet the function stays the same.
# `symmetry` lists which axes of which tensors move together. In the bundled residual network one group of 16
# channels runs through all layers that the skip connections tie together.

# %%
resnet = load("digits_resnet")
spec = weightspace.symmetry(resnet)
print(spec)

# %% [markdown]
# Renumber its channels at random and the file has another hash. The *canonical* hash, taken after bringing
# all neurons into a standard order, recognizes it.

# %%
from weightspace.permutation import permute, random_permutations

renumbered = permute(resnet, spec, random_permutations(spec, torch.Generator().manual_seed(0)))
print("hash           ", resnet.hash[:16], renumbered.hash[:16])
print("canonical hash ", weightspace.canonical_hash(resnet)[:16], weightspace.canonical_hash(renumbered)[:16])

# %% [markdown]
# ## The network as a graph
#
# Neurons as nodes, colored by their bias; weights as edges, red positive, blue negative, the largest of each
# layer strongest. Here is the perceptron: 64 pixels, hidden layers of 24 and 12, ten digits. Convolutions,
# attention and skip connections have graphs too, and `encode(...).to_networkx()` hands them to other tools.

# %%
from weightspace.report.figures import graph_figure

graph_figure(weightspace.encode(network))

# %% [markdown]
# ## All of it in one command
#
# ```bash
# weightspace report a.onnx renumbered.safetensors -o report/
# ```
#
# writes one HTML page, which needs no network connection, and the same as JSON. It also aligns files of one
# architecture, certifies how sensitive the outputs are, and lists by name and reason what it could not
# analyze. From Python:

# %%
from weightspace.report.page import report

renumbered_a = permute(network, weightspace.symmetry(network), {"0": torch.arange(24).flip(0)})
renumbered_a.save(folder / "renumbered.safetensors")
page = report([folder / "a.onnx", folder / "renumbered.safetensors"]).write(folder / "report")
print("written:", *sorted(file.name for file in page.parent.iterdir()))

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
assert set(hashes.values()) == {network.hash}
assert "refused" in refused
assert 5 <= outliers <= 20
assert first.spectral_norm > 1.3 * second.spectral_norm
assert first.stable_rank < second.stable_rank
assert not weightspace.inspect(network).findings
for sign in ("2 of 24 units are dead", "1 of 24 units repeat", "rank 1 of 12", "1 NaN"):
    assert any(sign in finding for finding in trouble.findings), sign
assert resnet.hash != renumbered.hash
assert weightspace.canonical_hash(resnet) == weightspace.canonical_hash(renumbered)
assert page.exists()
workplace.cleanup()

# %% [markdown]
# ## Where to go next
#
# The report on all five bundled networks:
#
# ```bash
# weightspace demo
# ```
#
# Two networks that were trained separately: [tutorial 02](02_two_networks_one_basin.ipynb). Networks as
# inputs of networks: [tutorial 03](03_networks_that_read_networks.ipynb). Many files at once:
# `weightspace similarity`.
