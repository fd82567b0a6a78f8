# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Modular addition, read from the weights
#
# **The question.** A small network has learned to add on a clock: from $a$ and $b$ it gives $a + b$ modulo
# 31, also for pairs that it never saw. By which algorithm, and can we prove it from the weights?
#
# Nanda, Chan, Lieberum, Smith and Steinhardt, *Progress measures for grokking via mechanistic
# interpretability* (2023), took a one-layer transformer apart and found trigonometry: numbers become angles,
# and the network adds angles. Chughtai, Chan and Nanda, *A toy model of universality* (2023), saw the same
# with other groups, where *representations* take the place of angles. We follow both with one difference that
# makes the analysis exact: instead of a transformer we train a *bilinear* layer ([tutorial
# 04](04_what_a_bilinear_layer_computes.ipynb)), whose weights determine everything it computes in closed
# form. For units that square a sum, Morwani et al., *Feature emergence via margin maximization* (2023), proved
# that waves are the best there is (they have the largest margin); our units multiply two sums.
#
# ## The task
#
# All $31^2$ pairs as inputs, one-hot $a$ beside one-hot $b$; 60 % of them to train on, the rest to test.

# %%
import torch
import torch.nn.functional as F

import interp
from weightspace.layers import Bilinear

group = interp.FiniteGroup.cyclic(31)
n = group.order
data = interp.split_products(group, train_share=0.6, generator=torch.Generator().manual_seed(0))
data

# %% [markdown]
# ## Training, and a number that sees ahead
#
# The network memorizes the training pairs at once and understands much later, a delay called *grokking*.
# Nanda et al. explain it by a *progress measure* that grows while the test accuracy still looks flat. Ours
# needs no data, only weights. Let $H_{cab}$ be the part of the logit of answer $c$ that depends on $a$ and
# $b$ together (the *interaction tensor*). If the network really adds, then all that matters is by how much
# the answer is off, $H_{cab} = \phi(a + b - c)$ with one function $\phi$ of 31 numbers. The *line energy* is
# the share of $\|H\|^2$ that the best such $\phi$ explains: 1 for a network that only adds, close to 0 for
# one that knows its training pairs by heart and nothing else.

# %%
torch.manual_seed(0)
network = Bilinear(2 * n, 64, n)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.5, betas=(0.9, 0.95))


def accuracy(x, y):
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


history = []
for step in range(1001):
    if step % 25 == 0:
        tensor = interp.interaction_tensor(network, group)
        accuracies = accuracy(data.x, data.y), accuracy(data.test_x, data.test_y)
        history.append((step, *accuracies, interp.line_energy(tensor, group)))
    optimizer.zero_grad()
    F.cross_entropy(network(data.x), data.y).backward()
    optimizer.step()

steps, trained, tested, energy = (torch.tensor(column) for column in zip(*history, strict=True))
print(f"after {steps[-1]} steps: {trained[-1]:.1%} of the training pairs, {tested[-1]:.1%} of the others")

# %%
from weightspace.report.figures import BLUE, GRAY, RED, new_figure

figure = new_figure(7.0, 3.2)
axes = figure.subplots()
for values, name, color in (
    (trained, "accuracy, training pairs", GRAY),
    (tested, "accuracy, other pairs", RED),
    (energy, "line energy of the weights", BLUE),
):
    axes.plot(steps, values, color=color, label=name)
axes.set_xlabel("training step")
axes.set_ylabel("share")
axes.legend(frameon=False, loc="lower right")
figure

# %% [markdown]
# The blue curve rises smoothly from the first steps on, while the red one stays near zero: the network is
# learning to add underneath what it has memorized.
#
# ## What one hidden unit does
#
# A unit multiplies two sums, $(u(a) + v(b))\,(u'(a) + v'(b))$, and adds the result to every answer $c$ with
# weight $w(c)$. Each of these five is a list of 31 weights, a function on the clock. Here are three of them,
# of the strongest unit among those with a low frequency, where the eye can follow.

# %%
units = interp.describe_units(network, group)
unit = int((units.strength * (units.representation <= 3)).argmax())
frequency = int(units.representation[unit])

functions = {
    "u(a)": network.left.weight[unit, :n],
    "v'(b)": network.right.weight[unit, n:],
    "w(c)": network.output.weight[:, unit],
}
clock = torch.arange(n)
fine = torch.linspace(0, n, 500)
figure = new_figure(7.0, 3.8)
rows = figure.subplots(3, 1, sharex=True)
for axes, (name, values) in zip(rows, functions.items(), strict=True):
    values = values.detach()
    coefficient = torch.fft.fft(values)[frequency] * 2 / n
    wave = (coefficient * torch.exp(2j * torch.pi * frequency * fine / n)).real
    axes.plot(fine, wave, color=GRAY, label=f"wave of frequency {frequency}")
    axes.plot(clock, values, "o", color=BLUE, markersize=4, label="weights")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
rows[-1].set_xlabel("a, b or c, the numbers on the clock")
figure.legend(*rows[0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper right")
figure

# %% [markdown]
# A wave of one frequency: $u(a) \approx r\cos(2\pi k a/31 + \varphi_a)$, and likewise for $v'$ and $w$. The
# unit has placed the numbers on a circle that turns $k$ times. Which frequency does every unit use? One
# column per unit, its energy split over the frequencies (for addition a *representation* is a frequency); a
# column with one dark cell is a unit with one frequency.

# %%
from interp.group_plots import unit_spectrum_figure

unit_spectrum_figure(units)

# %% [markdown]
# A staircase: each unit has chosen one frequency. Nanda's transformer uses five of its 56; ours uses all 15,
# as the theory of Morwani et al. has it for units that square.
#
# ## Why waves can add
#
# The product of two waves holds the wave of the sum,
# $\cos\alpha\cos\beta = \tfrac12\cos(\alpha + \beta) + \tfrac12\cos(\alpha - \beta)$. So the unit writes,
# among other terms,
# $$\cos\Big(\frac{2\pi k}{31}(a + b - c) + \varphi_a + \varphi_b - \varphi_c\Big)$$
# and if the three phases cancel this is largest at the right answer. The second term, with $a - b$, has to be
# cancelled by other units of the same frequency. Do the phases cancel? `units.phase` is
# $\varphi_a + \varphi_b - \varphi_c$ of every unit.

# %%
print(units)
print(f"mean |phase sum|, weighted by strength: {units.average(units.phase.abs()):.4f} radians")

# %% [markdown]
# ## The whole network in one function
#
# `analyze_group_task` averages the interaction tensor over all pairs with the same error $g = a + b - c$,
# which gives $\phi$. One frequency alone, $\cos(2\pi k g/31)$, hardly tells the right answer $g = 0$ from its
# neighbors (gray). But all are largest at $g = 0$ and cancel elsewhere, so that their sum, $\phi$ (blue),
# singles it out.

# %%
analysis = interp.analyze_group_task(network, group)
error = torch.arange(n) - n // 2  # from -15 to 15
spectrum = torch.fft.fft(analysis.kernel)

figure = new_figure(7.0, 3.2)
axes = figure.subplots()
for k in range(1, n // 2 + 1):
    wave = 2 / n * (spectrum[k] * torch.exp(2j * torch.pi * k * error / n)).real
    axes.plot(error, wave, color=GRAY, linewidth=0.6, label="one frequency each" if k == 1 else None)
axes.plot(error, analysis.kernel.roll(n // 2), color=BLUE, marker=".", label=r"their sum, $\phi$")
axes.set_xlabel("error of the answer, a + b - c modulo 31")
axes.set_ylabel("logit")
axes.legend(frameon=False)
figure

# %% [markdown]
# Is this all the network does? Split its logits into $\phi(a + b - c)$ (a *convolution*) and the rest, and
# let each of them answer all 961 pairs.

# %%
print(f"the network              {analysis.accuracy:.1%} right")
print(f"the convolution alone    {analysis.convolution_accuracy:.1%}")
print(f"the network without it   {analysis.rest_accuracy:.1%}   (guessing: {1 / n:.1%})")
print(f"share of the logits' energy in the convolution: {analysis.explained:.1%}")

# %% [markdown]
# The rest is not small, but it does not know the answer. That is more than an ablation on samples could say:
# all pairs were tried, and both parts are computed from the weights.

# %% [markdown]
# ## Another group
#
# The symmetries of a pentagon form a group of ten elements: five rotations, five reflections. Here $ab$ and
# $ba$ differ, and angles are no longer enough. What takes their place are the *irreducible representations*:
# the smallest sets of matrices that multiply as the group does. The pentagon has four: the trivial one (1a),
# the sign that tells reflections from rotations (1b), and two by $2 \times 2$ matrices (2a, 2b). Chughtai et
# al. propose that every network trained on a group composes such matrices. We train on all pairs, for a few
# seconds.

# %%
pentagon = interp.FiniteGroup.dihedral(5)
products = interp.split_products(pentagon)
torch.manual_seed(0)
run = interp.train_classifier(
    Bilinear(2 * pentagon.order, 48, pentagon.order), products.x, products.y, epochs=600, batch_size=None,
    learning_rate=1e-2, weight_decay=1.0, noise=0.0, betas=(0.9, 0.95), progress=False,
)  # fmt: skip
pentagon_units = interp.describe_units(run.model, pentagon)
pentagon_analysis = interp.analyze_group_task(run.model, pentagon)
print(pentagon_analysis)
unit_spectrum_figure(pentagon_units)

# %% [markdown]
# Every unit again lives in one representation, although nobody told the network about representations.
#
# ## What this notebook claimed, asserted

# %%
early = int((tested > 0.1).nonzero()[0]) - 1  # the last look before the test accuracy leaves the ground
assert trained[early] > 0.99  # the training pairs are known,
assert energy[early] > energy[0] + 0.1  # and the weights already add
assert float(tested[-1]) == analysis.accuracy == 1.0
assert (units.counts[1:] > 0).all()  # every frequency is used,
assert units.average(units.concentration) > 0.9  # one per unit,
assert units.average(units.phase.abs()) < 0.1  # with phases that cancel
assert analysis.kernel.argmax() == 0
assert analysis.convolution_accuracy == 1.0
assert analysis.rest_accuracy < 0.2
assert pentagon_analysis.accuracy == 1.0
assert pentagon_units.average(pentagon_units.concentration) > 0.9

# %% [markdown]
# ## Where to go next
#
# Addition modulo 59, the groups S3, S4 and D7, margins against the theoretical maximum, and five published
# transformers (with the data they need), measured:
#
# ```bash
# python benchmarks/group_tasks.py
# ```
