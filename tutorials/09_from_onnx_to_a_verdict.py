# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # From ONNX to a verdict
#
# *I have a network as an ONNX file and a list of requirements. How does a build server decide, every night
# and without me, whether the network meets them, and what evidence does it leave?*
#
# The example has the form of ACAS Xu, the collision avoidance system on which most verification tools are
# tried (Julian et al. 2016; Katz et al. 2017): five numbers describe two aircraft, and a ReLU network scores
# five advisories. The original networks cannot be shipped with this notebook, so we train a small one on a
# simple rule. The rule is known, which the original tables are not to us, and the network is small enough for
# all of this to take seconds.
#
# The pipeline: a network in ONNX, a property in VNN-LIB (the format of the verification competitions), a list
# of requirements in TOML; `weightspace verify` decides them by splitting boxes of inputs (as ReluVal does:
# Wang, Pei, Whitehouse, Yang, Jana 2018) and leaves certificates, JUnit XML and a traceability matrix.

# %%
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from xml.etree import ElementTree

import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

import certify
import weightspace
from weightspace.report.figures import BLUE, GRAY, RED, new_figure

ADVISORIES = ["clear of conflict", "weak left", "weak right", "strong left", "strong right"]
STATE = ["distance", "bearing of the intruder", "its heading", "own speed", "its speed"]
LOWER, UPPER = torch.tensor([0.0, -1, -1, 0, 0]), torch.ones(5)

# %% [markdown]
# ## A network for a rule
#
# All inputs are scaled to [0, 1] or, angles, to [-1, 1]; a negative bearing means an intruder on the right.
# The rule: far away, clear of conflict; near, turn away from the intruder; very near, turn strongly. Near is
# farther when one flies fast.


# %%
def rule(x):
    distance, bearing, _, speed, _ = x.T
    near, very_near = distance < 0.25 + 0.25 * speed, distance < 0.15 + 0.15 * speed
    right = bearing < 0
    advisory = torch.where(right, 1, 2) + torch.where(very_near, 2, 0)
    return torch.where(near, advisory, 0)


generator = torch.Generator().manual_seed(0)


def draw_states(count):
    return LOWER + (UPPER - LOWER) * torch.rand(count, 5, generator=generator)


states = draw_states(8000)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))
optimizer = torch.optim.Adam(net.parameters(), 5e-3)
for _ in range(500):
    batch = states[torch.randint(len(states), (512,), generator=generator)]
    loss = F.cross_entropy(net(batch), rule(batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

unseen = draw_states(4000)
accuracy = float((net(unseen).argmax(1) == rule(unseen)).float().mean())
print(f"agrees with the rule on {accuracy:.1%} of unseen states")

# %% [markdown]
# Tests like this one say that the network is good. They do not say that it is never wrong where it must not
# be. From here on we only have the file.

# %%
folder = Path(tempfile.mkdtemp())
logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter talks much
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    net.eval()
    torch.onnx.export(
        net,
        (states[:1],),
        folder / "advisory.onnx",
        input_names=["state"],
        output_names=["scores"],
        verbose=False,
    )
print(weightspace.read(folder / "advisory.onnx"))

# %% [markdown]
# ## A limit on the gain, from the command line
#
# How fast may scores change with the state? Over a box of inputs, with a limit. Commands are run as you would
# in a terminal; the number at the end is the exit status, the only thing a build server looks at. (We leave
# out the line with the seconds, so that this page reads the same each time.)


# %%
def run(*arguments):
    command = [sys.executable, "-m", "weightspace.cli", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print("$ weightspace", *arguments)
    lines = (ran.stdout + ran.stderr).splitlines()
    print("\n".join(line for line in lines if not line.startswith("  seconds")))
    print("exit status", ran.returncode)
    return ran.returncode, ran.stdout


(folder / "box.json").write_text(json.dumps({"lower": LOWER.tolist(), "upper": UPPER.tolist()}))
exits = {}
exits["limit"] = run("certify", "advisory.onnx", "--box", "box.json", "--max-lipschitz", "50")

# %% [markdown]
# Status 0 would be: certified. Status 1 is: not certified, with the reason, here that a pair of inputs was
# *found* that is stretched by more than the limit, so that no better method can help. Status 2 would be an
# error, such as a missing file. A limit of 200 will do; we come back to it.
#
# ## One property, as a VNN-LIB file
#
# "An intruder within 0.245 is never clear of conflict, whatever else." The rule obeys this, since near begins
# at 0.25 or farther. A VNN-LIB file describes what a *counterexample* would look like: inputs in a box, and
# an output where the score of `clear of conflict` is the largest.


# %%
def write_vnnlib(name, lower, upper, conditions):
    lines = [f"(declare-const X_{i} Real)" for i in range(5)] + [
        f"(declare-const Y_{j} Real)" for j in range(5)
    ]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    (folder / name).write_text("\n".join([*lines, *conditions]) + "\n")


write_vnnlib(
    "near.vnnlib",
    [0, -1, -1, 0, 0],
    [0.245, 1, 1, 1, 1],
    [f"(assert (>= Y_0 Y_{j}))" for j in range(1, 5)],
)
exits["near"] = run("verify", "advisory.onnx", "near.vnnlib", "-o", "near.json")

# %% [markdown]
# Refuted, with an input where it happens. A counterexample is only worth something if the network as it is
# *deployed* shows it. The file records that, and we replay it ourselves in onnxruntime, which shares no code
# with the verifier.

# %%
network = weightspace.read(folder / "advisory.onnx")
near = certify.read_vnnlib(folder / "near.vnnlib")[0]
counterexample = certify.verify(network, near).counterexample
session = onnxruntime.InferenceSession(folder / "advisory.onnx")
state = torch.tensor([counterexample.input], dtype=torch.float32)
scores = torch.from_numpy(session.run(None, {"state": state.numpy()})[0])[0]
for name, value in zip(STATE, state[0].tolist(), strict=True):
    print(f"{name:>24} {value:+.4f}")
print(f"onnxruntime says: {ADVISORIES[int(scores.argmax())]}; the rule: {ADVISORIES[int(rule(state))]}")

# %%
figure = new_figure(8.4, 3.4)
own = float(state[0, 3])
distances, bearings = torch.meshgrid(torch.linspace(0, 0.6, 121), torch.linspace(-1, 1, 121), indexing="ij")
plane = state.repeat(distances.numel(), 1)
plane[:, 0], plane[:, 1] = distances.flatten(), bearings.flatten()
with torch.no_grad():
    pictures = {"the rule": rule(plane), "the network": net(plane).argmax(1)}
panels = figure.subplots(1, 2, sharey=True)
for panel, (name, advisory) in zip(panels, pictures.items(), strict=True):
    drawn = panel.pcolormesh(
        distances, bearings, advisory.reshape(121, 121), cmap="Set2", vmin=-0.5, vmax=7.5, rasterized=True
    )
    panel.axvline(0.245, color="black", linewidth=1, linestyle="--")
    panel.plot(state[0, 0], state[0, 1], "x", color=RED, markersize=9, markeredgewidth=2, clip_on=False)
    panel.set_title(name, fontsize=9)
    panel.set_xlabel("distance")
panels[0].set_ylabel("bearing of the intruder")
bar = figure.colorbar(drawn, ax=panels, ticks=range(5), boundaries=[-0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
bar.ax.set_yticklabels(ADVISORIES, fontsize=7)
figure

# %% [markdown]
# The cross is the counterexample, the broken line the end of the region; all other inputs are those of the
# counterexample. The network's border is a little off, which testing on random states hardly sees.
#
# ## All requirements at once
#
# Requirements live in one TOML file, each with a name, a sentence for people and a source.

# %%
(folder / "requirements.toml").write_text("""\
title = "Advisory network"
model = "advisory.onnx"

[[requirements]]
id = "GAIN"
text = "Scores change by at most 200 per unit of state."
source = "control analysis, C-2"
kind = "lipschitz"
max = 200.0
region = "box.json"

[[requirements]]
id = "NEAR"
text = "An intruder within 0.245 is never clear of conflict."
source = "hazard analysis, H-1"
kind = "property"
vnnlib = "near.vnnlib"

[[requirements]]
id = "SIDE"
text = "With an intruder on the right, never turn strongly right."
source = "hazard analysis, H-3"
kind = "property"
region = {lower = [0, -1, -1, 0, 0], upper = [1, -0.1, 1, 1, 1]}
unsafe = [{matrix = [[1, 0, 0, 0, -1], [0, 1, 0, 0, -1], [0, 0, 1, 0, -1], [0, 0, 0, 1, -1]], bounds = [0, 0, 0, 0]}]
""")
exits["requirements"] = run("verify", "requirements.toml", "-o", "evidence", "--junit", "junit.xml")

# %% [markdown]
# JUnit XML is what build servers show as a list of tests. What is undecided counts as a failure there, never
# as a pass.

# %%
report = ElementTree.parse(folder / "junit.xml").getroot()
for case in report.iter("testcase"):
    failure = case.find("failure")
    print("pass" if failure is None else "FAIL", "|", case.get("name"))
matrix = json.loads((folder / "evidence" / "matrix.json").read_text())
print("\nwritten:", *sorted(str(path.relative_to(folder)) for path in (folder / "evidence").rglob("*.*")))
for row in matrix["rows"]:
    print(f"{row['requirement']} | {row['source']} | {row['outcome']} | {row['evidence']}")

# %% [markdown]
# The last lines are the traceability matrix in short: from each requirement to its source, its outcome and
# the file that proves it. `matrix.html` is the same as a page, with hashes and the command to check each file
# again.
#
# ## Repair
#
# `certify.repair` changes the last layer as little as possible on given states until every property is
# *proved* (counterexample-guided repair: Boetius, Leue, Sutter 2023). Requirements that held must still hold,
# so all properties go in together.

# %%
requirements = certify.read_requirements(folder / "requirements.toml").requirements
properties = [one for requirement in requirements[1:] for one in requirement.demand.properties]
repaired = certify.repair(net, properties, states[:2000], seconds=20)
fixed = repaired.model
fixed_accuracy = float((fixed(unseen).argmax(1) == rule(unseen)).float().mean())
print(f"{repaired.status} after {repaired.rounds} rounds")
print(f"agrees with the rule on {accuracy:.1%} of unseen states before, {fixed_accuracy:.1%} after")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.onnx.export(
        fixed,
        (states[:1],),
        folder / "advisory.onnx",
        input_names=["state"],
        output_names=["scores"],
        verbose=False,
    )
exits["repaired"] = run("verify", "requirements.toml", "-o", "evidence", "--junit", "junit.xml")

# %% [markdown]
# The same command, the same requirements, another network: the old evidence does not fit its hash and
# everything was decided again. What the repair did, along the distance to the intruder: the largest lead of
# `clear of conflict` over the best other advisory that 4000 random states show. It must be negative to the
# left of the line.

# %%
places = torch.linspace(0, 0.49, 51)
others = torch.cat(
    [draw_states(3500), (LOWER + (UPPER - LOWER) * (torch.rand(500, 5, generator=generator) > 0.5))]
)


@torch.no_grad()
def largest_lead(model):
    leads = []
    for place in places:
        x = others.clone()
        x[:, 0] = place
        scores = model(x)
        leads.append(float((scores[:, 0] - scores[:, 1:].amax(1)).max()))
    return torch.tensor(leads)


leads = {"as trained": largest_lead(net), "repaired": largest_lead(fixed)}
figure = new_figure(6.4, 3.2)
axes = figure.subplots()
for (name, values), color in zip(leads.items(), (RED, BLUE), strict=True):
    axes.plot(places, values, color=color, label=name)
axes.axhline(0, color=GRAY, linewidth=0.8)
axes.axvline(0.245, color="black", linewidth=1, linestyle="--")
axes.set_xlabel("distance")
axes.set_ylabel("lead of clear of conflict")
axes.legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
assert accuracy > 0.97
assert {name: status for name, (status, _) in exits.items()} == {
    "limit": 1,
    "near": 1,
    "requirements": 1,
    "repaired": 0,
}
assert "NOT certified: limit 50" in exits["limit"][1]
assert "near: refuted" in exits["near"][1]
assert int(scores.argmax()) == 0
assert int(rule(state)) != 0
torch.testing.assert_close(
    scores, torch.tensor(counterexample.output, dtype=torch.float32), rtol=1e-4, atol=1e-4
)
assert [row["outcome"] for row in matrix["rows"]] == ["holds", "does not hold", "holds"]
assert sum(case.find("failure") is not None for case in report.iter("testcase")) == 1
assert fixed_accuracy > accuracy - 0.03
assert leads["as trained"][places <= 0.2451].max() > 0 > leads["repaired"][places <= 0.2451].max()

# %% [markdown]
# ## Where to go next
#
# What the certificate of a gain says and does not say: [a guaranteed Lipschitz
# constant](08_a_guaranteed_lipschitz_constant.ipynb). In a pipeline of your own:
#
# ```bash
# weightspace verify requirements.toml -o evidence/ --junit junit.xml
# ```
