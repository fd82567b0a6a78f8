# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A guaranteed Lipschitz constant
#
# *If the input of my network changes a little, how much can its output change? Not on the examples I tried:
# for every pair of inputs, with a proof that somebody else can check.*
#
# The number asked for is the **Lipschitz constant** in the Euclidean norm, the smallest $L$ with
#
# $$ \|f(x) - f(y)\| \le L\, \|x - y\| \quad\text{for all inputs } x, y. $$
#
# For a ReLU network it is NP-hard to compute, so one brackets it. Any pair of inputs gives a lower bound.
# This notebook is about upper bounds: how far the simple ones are off, what semidefinite programming gains
# (LipSDP: Fazlyab, Robey, Hassani, Morari, Pappas 2019), why some architectures are born with a good constant
# (Anil, Lucas, Grosse 2019), and what a certificate is and is not.
#
# Two differences to the LipSDP paper. Its most expensive variant couples pairs of neurons; it was later found
# to be unsound, and is not offered here. And a solver's answer is never trusted: solvers stop early and
# round, so a bound counts only after a separate program has proved it from the weights, rounding errors
# included.

# %%
import dataclasses
import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import certify
import weightspace
from weightspace.bundled import digits, load
from weightspace.report.figures import BLUE, GRAY, GREEN, RED, new_figure

train_x, train_y, test_x, test_y = digits()

# %% [markdown]
# ## Three upper bounds and a lower one
#
# The simplest bound multiplies. A linear map stretches by at most its spectral norm, a ReLU by at most 1, so
# that
#
# $$ L \le \|W_K\| \cdots \|W_2\|\, \|W_1\|. $$
#
# This is rarely attained: the direction that $W_1$ stretches most is seldom the one that $W_2$ stretches
# most, and the ReLUs between them switch some of it off. The loss multiplies with every layer.
#
# **LipSDP** looks at all layers at once. All it knows of a ReLU is that its *slope* between any two points is
# between 0 and 1: if its input moves by $a$, its output moves by some $b$ with $b\,(a - b) \ge 0$. Add such
# inequalities over all neurons, each with a weight $\lambda_i \ge 0$ of our choice. If
#
# $$ \rho\, \|\Delta x\|^2 - \|\Delta f\|^2 \;\ge\; 2 \sum_i \lambda_i\, b_i\, (a_i - b_i) $$
#
# holds as a quadratic form in all the movements $\Delta x, a, b$ at once, then the right side is never
# negative and $L \le \sqrt\rho$. Whether a quadratic form is nonnegative is a matter of eigenvalues, and the
# best $\lambda$ and $\rho$ are a semidefinite program. The $\lambda_i$ are the proof: whoever has them can
# check the claim.
#
# The third one, **closed form** (ECLipsE-Fast: Xu and Sivaranjani 2024), chooses the $\lambda_i$ layer by
# layer with a formula. It is never worse than the product and needs no program to be solved.
#
# We train networks of one to five hidden layers on small scanned digits and compare.


# %%
def train_classifier(depth):
    torch.manual_seed(depth)
    sizes = [64, *[32] * depth, 10]
    layers = [
        layer for inputs, outputs in pairwise(sizes) for layer in (nn.Linear(inputs, outputs), nn.ReLU())
    ]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        loss = F.cross_entropy(model(train_x), train_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


bounders = {
    "product of norms": certify.NormProduct(),
    "closed form": certify.ClosedForm(),
    "LipSDP": certify.LipSDP(),
}
depths = [1, 2, 3, 4, 5]
models = {depth: train_classifier(depth) for depth in depths}
networks = {depth: weightspace.trace(model, train_x[:2]) for depth, model in models.items()}
bounds = {
    name: [certify.lipschitz(networks[depth], bounder=bounder) for depth in depths]
    for name, bounder in bounders.items()
}
found = [certificate.sampled_lower_bound for certificate in bounds["LipSDP"]]

for place, depth in enumerate(depths):
    row = ", ".join(f"{name} {bounds[name][place].upper_bound:.1f}" for name in bounders)
    accuracy = float((models[depth](test_x).argmax(1) == test_y).float().mean())
    print(f"{depth} hidden: accuracy {accuracy:.2f}; {row}; found by search {found[place]:.1f}")

# %%
figure = new_figure(6.6, 3.6)
axes = figure.subplots()
for (name, certificates), color in zip(bounds.items(), (RED, GREEN, BLUE), strict=True):
    axes.plot(
        depths, [one.upper_bound for one in certificates], color=color, marker="v", label=f"{name} (proved)"
    )
axes.plot(depths, found, color=GRAY, marker="^", linestyle="--", label="stretching found by search")
axes.fill_between(
    depths, found, [one.upper_bound for one in bounds["LipSDP"]], color=BLUE, alpha=0.12, linewidth=0
)
axes.set_yscale("log")
axes.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
axes.minorticks_off()
axes.set_xticks(depths)
axes.set_xlabel("hidden layers of 32 ReLUs")
axes.set_ylabel("Lipschitz constant")
axes.legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# The truth lies in the shaded band. The product drifts away with depth. How good could LipSDP's multipliers
# be made? The dual of the program answers that: no choice of them gives less than `optimum_lower_bound`,
# which agrees with the bound to many digits. What remains of the band is the price of knowing nothing about a
# ReLU but its slope, or a search that has not found the worst pair.

# %%
deepest = bounds["LipSDP"][-1]
print(f"proved {deepest.upper_bound:.4f}, no multipliers give less than {deepest.optimum_lower_bound:.4f}")

# %% [markdown]
# ## MaxMin against ReLU
#
# One can also build the constant in. If every matrix is orthogonal, the product of norms is 1, whatever is
# trained. But Anil, Lucas and Grosse showed that this costs ReLU networks their expressiveness: a ReLU that
# is off destroys part of the movement, and with a budget of 1 nothing can restore it. Even $|x|$, whose
# constant is 1, is out of reach. Their remedy is an activation that only *orders* its inputs: **MaxMin**
# replaces each pair $(a, b)$ by $(\min(a, b), \max(a, b))$. Nothing is lost, and its constant is 1 as well.
#
# The same experiment here, with orthogonal matrices made by PyTorch's parametrization where the paper
# iterates Björck's formula.


# %%
def fit_absolute_value(activation):
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.orthogonal(nn.Linear(1, 16)),
        activation(),
        parametrizations.orthogonal(nn.Linear(16, 16)),
        activation(),
        parametrizations.orthogonal(nn.Linear(16, 1)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = 4 * torch.rand(128, 1, generator=generator) - 2
        loss = (model(x) - x.abs()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in (model[0], model[2], model[4]):
        parametrize.remove_parametrizations(layer, "weight")
    return model


grid = torch.linspace(-2, 2, 201)[:, None]
fitted = {"ReLU": fit_absolute_value(nn.ReLU), "MaxMin": fit_absolute_value(certify.MaxMin)}
built = {name: certify.lipschitz(model) for name, model in fitted.items()}
misfit = {name: float((model(grid) - grid.abs()).detach().abs().max()) for name, model in fitted.items()}
for name, certificate in built.items():
    print(f"{name}: proved constant {certificate.upper_bound:.4f}, largest error {misfit[name]:.3f}")

# %%
figure = new_figure(6.0, 3.2)
axes = figure.subplots()
axes.plot(grid, grid.abs(), color=GRAY, linewidth=4, alpha=0.4, label="|x|")
for (name, model), color in zip(fitted.items(), (RED, BLUE), strict=True):
    axes.plot(grid, model(grid).detach(), color=color, label=f"{name}, orthogonal matrices")
axes.set_xlabel("x")
axes.set_ylabel("output of the network")
axes.legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# ## What a constant buys: nothing changes my decision within this radius
#
# If the right class leads class $j$ by $f_y(x) - f_j(x)$, and $L_{yj}$ is a constant of the difference of
# these two outputs, then no change of the input smaller than $(f_y - f_j) / L_{yj}$ can turn the decision to
# $j$ (Tsuzuku, Sato, Sugiyama 2018). The bundled network `digits_maxmin` was trained with MaxMin and
# orthogonal matrices. A curve from below, by certificates, and points from above, by an attack, bracket its
# accuracy under changes of the image.

# %%
maxmin, relu = load("digits_maxmin"), load("digits_mlp_a")
images, labels = test_x[:100], test_y[:100]


def robustness(network):
    constants = certify.bound_pairs(network)
    return [
        certify.robust_accuracy(
            network,
            images,
            labels,
            epsilon=epsilon,
            constants=constants,
            methods=("pair constants",),
            restarts=2,
        )
        for epsilon in (0.1, 0.25, 0.4)
    ]


results = {"MaxMin": robustness(maxmin), "ReLU": robustness(relu)}
for name, rows in results.items():
    for one in rows:
        print(
            f"{name}, radius {one.epsilon}: proved {one.certified_accuracy:.2f}, "
            f"attack left {one.attacked_accuracy:.2f}"
        )
certify.robustness_figure(results["MaxMin"])

# %% [markdown]
# For the MaxMin network proof and attack nearly meet: almost every image that could not be certified can
# really be misled. For the ordinary ReLU network `digits_mlp_a` the gap is wider.
#
# ## Only near here
#
# A bound for all inputs covers inputs that never occur. Over a small region most ReLUs do not switch at all:
# each is either on or off throughout, and its slope is known. `region=` takes a `Ball` or a `Box` and uses
# the slopes that can occur there. We let a ball grow around one digit, for the network with five hidden
# layers.

# %%
radii = [0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
local = [certify.lipschitz(networks[5], region=certify.Ball(test_x[0], radius)) for radius in radii]

figure = new_figure(6.4, 3.4)
axes = figure.subplots()
axes.axhline(deepest.upper_bound, color=RED, linewidth=1, label="proved for all inputs")
axes.plot(radii, [one.upper_bound for one in local], color=BLUE, marker="v", label="proved for the ball")
axes.plot(
    radii,
    [one.sampled_lower_bound for one in local],
    color=GRAY,
    marker="^",
    linestyle="--",
    label="found in the ball",
)
axes.set_xscale("log")
axes.set_ylim(0, 1.1 * deepest.upper_bound)
axes.set_xlabel("radius of the ball around a digit (pixels from 0 to 1)")
axes.set_ylabel("Lipschitz constant")
axes.legend(frameon=False, fontsize=8, loc="lower right")
figure

# %% [markdown]
# In the smallest ball the network is nearly linear, and proof and search agree.
#
# ## The certificate, and breaking it
#
# What `certify.lipschitz` returns goes into a JSON file: the claim, the multipliers $\lambda_i$, the hash of
# the network. `certify/checker.py` is a single file that needs numpy and nothing else. It reads the weights,
# builds the quadratic form itself and factorizes it with every rounding error accounted for. It takes no part
# in the search, so a fault in the solver cannot make it say yes.

# %%
folder = Path(tempfile.mkdtemp())
certificate = certify.lipschitz(relu)
(folder / "certificate.json").write_text(certificate.to_json())
relu.save_npz(folder / "network.npz")


def run_checker(name):
    command = [sys.executable, certify.checker.__file__, name, "network.npz"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print(f"$ python checker.py {name} network.npz\n{ran.stdout}{ran.stderr}exit status {ran.returncode}")
    return ran.returncode


untouched = run_checker("certificate.json")

# %% [markdown]
# First attack: write a smaller number into the file. The digest notices. That alone would prove little, as
# whoever edits the file can compute a new digest, so we do that as well: claim 1 % less, together with all
# that is needed to make the file consistent. Now the matrix inequality itself fails.

# %%
data = json.loads(certificate.to_json())
data["upper_bound"] = (0.99 * certificate.upper_bound).hex()
(folder / "edited.json").write_text(json.dumps(data))
edited = run_checker("edited.json")

proof = dataclasses.replace(certificate.proofs[0], rho=0.99**2 * certificate.rho)
lowered = dataclasses.replace(
    certificate,
    upper_bound=0.99 * certificate.upper_bound,
    proofs=(proof,),
    optimum_lower_bound=None,
    sampled_lower_bound=None,
)
(folder / "lowered.json").write_text(lowered.to_json())
consistent = run_checker("lowered.json")

# %% [markdown]
# Second attack: keep the certificate and change the network. The hash notices one weight changed by one
# millionth. Replace the hash too, and the proof decides: the tiny change is covered by the slack of the proof
# only if the inequality still holds, and one larger weight breaks it.


# %%
def change_one_weight(network, amount):
    def change(name, tensor):
        tensor = tensor.clone()
        tensor[0, 20] += amount
        return tensor

    return network.change_parameters(["0.weight"], change)


for amount in (1e-6, 0.5):
    other = change_one_weight(relu, amount)
    forged = dataclasses.replace(certificate, network_hash=other.hash)
    print(f"weight + {amount:g}, old hash: {certify.check(certificate, other).reason}")
    print(f"weight + {amount:g}, new hash: {certify.check(forged, other).reason}")
    verdict = certify.check(forged, other)

# %% [markdown]
# ## What the certificate does not promise
#
# * Nothing about *rightness*: a network that always says "7" has constant 0.
# * It speaks about real numbers. The network that runs rounds to single precision; `certify.lipschitz(...,
#   region=box, arithmetic="float32")` covers that, at the price of a small additive term.
# * It speaks about the stored weights, in the units of the network's input. Scaling pixels by 255 before the
#   network scales the constant too.
# * It is an upper bound. That the output *does* move so far is what `sampled_lower_bound` says.
#
# The additive term, for the ReLU network and all images with pixels from 0 to 1:

# %%
pixels = certify.Box(torch.zeros(64), torch.ones(64))
rounded = certify.lipschitz(relu, region=pixels, arithmetic="float32")
print(f"|f32(x) - f32(y)| <= {rounded.upper_bound:.4f} |x - y| + 2 * {rounded.delta:.1e}")

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
for place in range(len(depths)):
    product, closed, semidefinite = (bounds[name][place].upper_bound for name in bounders)
    assert found[place] <= semidefinite <= closed * (1 + 1e-6)
    assert closed <= product
assert bounds["product of norms"][-1].upper_bound > 1.5 * deepest.upper_bound
assert deepest.optimum_lower_bound > (1 - 1e-4) * deepest.upper_bound
assert all(one.upper_bound < 1 + 1e-4 for one in built.values())
assert misfit["MaxMin"] < 0.05 < 0.2 < misfit["ReLU"]
for rows in results.values():
    for one in rows:
        assert one.certified_accuracy <= one.attacked_accuracy <= one.clean_accuracy
gaps = {
    name: sum(one.attacked_accuracy - one.certified_accuracy for one in rows)
    for name, rows in results.items()
}
assert gaps["MaxMin"] < gaps["ReLU"]
assert all(one.sampled_lower_bound <= one.upper_bound <= deepest.upper_bound * (1 + 1e-6) for one in local)
assert local[0].upper_bound < 0.8 * deepest.upper_bound
assert local[0].sampled_lower_bound > 0.99 * local[0].upper_bound
assert untouched == 0
assert edited == consistent == 1
assert not verdict.valid
assert 0 < rounded.delta < 0.1

# %% [markdown]
# ## Where to go next
#
# [From ONNX to a verdict](09_from_onnx_to_a_verdict.ipynb) puts this into a pipeline that ends in an exit
# code. For a file of your own:
#
# ```bash
# weightspace certify model.onnx --max-lipschitz 50 -o certificate.json
# ```
