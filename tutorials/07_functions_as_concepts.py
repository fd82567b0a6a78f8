# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Functions as concepts
#
# *My network works on signals, fields or solutions of differential equations. Its activations are functions,
# sampled at some number of points. What is a dictionary of concepts for functions, and does it still mean the
# same when the functions are sampled more finely?*
#
# A sparse autoencoder of vectors would take 64 samples of a function as 64 unrelated numbers. It would learn
# the same bump once for every place where it occurs, and could not even be called on 256 points. An
# **operator autoencoder** has concepts that are functions themselves, active at places:
#
# $$ \hat x(t) = \sum_c (a_c * z_c)(t) = \sum_c \int a_c(s)\, z_c(t - s)\, ds, \qquad
# z_c(t) = \mathrm{relu}\big((E x)_c(t) - \theta_c\big). $$
#
# $a_c$ is what the concept looks like, $z_c$ where and how strongly it is there. $E$ and the convolution act
# on Fourier modes up to a fixed frequency, as in Fourier neural operators (Li et al. 2021), and every sum
# over points is a mean, an approximation of an integral. So nothing in it knows the number of points.
#
# The idea is that of Tolooshams, Shen and Anandkumar (arXiv:2509.03738), who also *lift* vectors to a larger
# space before encoding. Their code was not public when this was written: what the library does is
# reconstructed from the paper's abstracts and may differ from it in details.

# %%
import torch

import interp
from weightspace.report.figures import BLUE, GRAY, GREEN, RED, new_figure

# %% [markdown]
# ## Concepts we know
#
# Whether a dictionary finds the concepts in the data can only be said where they are known. `plant_functions`
# draws a few smooth kernels on the circle and makes samples by placing four of them at random positions, with
# random amplitudes and noise. The autoencoder sees nothing but the samples.

# %%
planted = interp.plant_functions(64, 6, samples=8000, modes=12, generator=torch.Generator().manual_seed(1))
autoencoder = interp.OperatorAutoencoder(
    1, 12, modes=12, domain_sparsity=0.15, generator=torch.Generator().manual_seed(100)
)
before = interp.recovery(autoencoder.kernels(64).detach(), planted.atoms)
run = interp.train(
    autoencoder, planted.samples, steps=250, batch_size=256, learning_rate=2e-2, progress=False
)
found = autoencoder.kernels(64).detach()
after = interp.recovery(found, planted.atoms)
print(f"variance unexplained: {interp.evaluate(autoencoder, planted.samples[:2000]).fvu:.3f}")
print(f"cosine of each planted kernel with the best found one: {[round(v, 3) for v in after.tolist()]}")
print(f"mean {float(after.mean()):.3f}, before training {float(before.mean()):.3f}")

# %% [markdown]
# A kernel has no place of its own: shifting $a_c$ to the left and $z_c$ to the right changes nothing. So a
# found kernel is compared with a planted one under all shifts. For the picture we put each found kernel where
# it fits best; both are scaled to mean square 1, nothing else is adjusted. The numbers above also allow a
# change of sign, the picture does not. Planted kernels that look much alike may share a concept, and a kernel
# with two humps may be found as its larger one.


# %%
def correlations(one, other):
    """Inner products of two periodic functions under all circular shifts of the second."""
    return torch.fft.irfft(torch.fft.rfft(one) * torch.fft.rfft(other).conj(), one.shape[-1]) / one.shape[-1]


grid = torch.arange(64) / 64
figure = new_figure(8.4, 4.0)
for panel, atom in zip(
    figure.subplots(2, 3, sharex=True, sharey=True).flat, planted.atoms[:, 0], strict=True
):
    matches = torch.stack([correlations(atom, kernel[0]) for kernel in found])
    best, shift = divmod(int(matches.argmax()), 64)
    panel.plot(grid, atom, color=GRAY, linewidth=4, alpha=0.5, label="planted")
    panel.plot(grid, found[best, 0].roll(shift), color=BLUE, linewidth=1.2, label=f"concept {best}")
    panel.set_title(f"cosine {float(matches.max()):.3f}", fontsize=8)
    panel.legend(fontsize=6, frameon=False, loc="upper left")
figure.supxlabel("t", fontsize=9)
figure.supylabel("kernel", fontsize=9)
figure

# %% [markdown]
# ## Encode at 64 points, decode at 256
#
# The autoencoder was trained on 64 points. A smooth function, one without frequencies above those of the
# modes, can be evaluated on any grid without loss. So take samples without their noise at high frequencies,
# at 64 and at 256 points. At the points that the two grids share the codes must be the same numbers. The
# reconstruction may differ a little: the relu makes kinks, which have high frequencies, and the coarse grid
# sees them less well.
#
# And one may mix: encode what was measured at 64 points, resample the *codes*, and decode at 256.


# %%
def resample(functions, points):
    return torch.fft.irfft(torch.fft.rfft(functions, norm="forward"), points, norm="forward")


spectrum = torch.fft.rfft(planted.samples[:500], norm="forward")
spectrum[..., 13:] = 0  # the largest mode is 12
coarse = torch.fft.irfft(spectrum, 64, norm="forward")
fine = resample(coarse, 256)

with torch.no_grad():
    codes_coarse, codes_fine = autoencoder.encode(coarse), autoencoder.encode(fine)
    made_coarse, made_fine = autoencoder(coarse), autoencoder(fine)
    transferred = autoencoder.decode(resample(codes_coarse, 256))


def difference(a, b):
    return float((a - b).norm() / b.norm())


shared = difference(codes_fine[..., ::4], codes_coarse)
print(f"codes at shared points differ by {shared:.1e} of their size")
print(f"reconstructions at shared points by {difference(made_fine[..., ::4], made_coarse):.1e}")
print(f"encoded at 64 and decoded at 256, against all at 256: {difference(transferred, made_fine):.1e}")
errors = {
    "64 points": difference(made_coarse, coarse),
    "256 points": difference(made_fine, fine),
    "64 -> 256 points": difference(transferred, fine),
}
for name, error in errors.items():
    print(f"error of the reconstruction, {name}: {error:.3f}")

# %%
sample = 3
used = codes_fine[sample].amax(1).argsort(descending=True)[:4].tolist()
x_coarse, x_fine = torch.arange(64) / 64, torch.arange(256) / 256
figure = new_figure(7.2, 4.6)
upper, lower = figure.subplots(2, 1, sharex=True)
upper.plot(x_fine, fine[sample, 0], color=GRAY, linewidth=4, alpha=0.5, label="function, 256 points")
upper.plot(x_fine, transferred[sample, 0], color=BLUE, linewidth=1.2, label="encoded at 64, decoded at 256")
upper.plot(x_coarse, coarse[sample, 0], ".", color="black", markersize=3, label="what the encoder saw")
upper.set_ylabel("x(t)")
upper.legend(fontsize=7, frameon=False)
peaks = autoencoder.kernels(256).detach()[:, 0].abs().argmax(1)
for concept, color in zip(used, (RED, BLUE, GREEN, GRAY), strict=True):
    peak = int(peaks[concept])  # a code at t puts the peak of its kernel at t + peak / 256
    line = codes_fine[sample, concept].roll(peak)
    lower.plot(x_fine, line, color=color, linewidth=1, label=f"concept {concept}")
    places = (x_coarse + peak / 256) % 1
    lower.plot(places, codes_coarse[sample, concept], ".", color=color, markersize=5)
lower.set_ylabel("code, at its kernel's peak")
lower.set_xlabel("t")
lower.legend(fontsize=7, frameon=False, title="line: 256 points, dots: 64", title_fontsize=7)
figure

# %% [markdown]
# The lower panel is the explanation of the sample: these concepts, at these places. (A kernel may stand
# anywhere on the circle, so codes are drawn where the peak of their kernel comes to lie.) Several concepts
# share a hump, because their kernels are alike there, and a code is a narrow hill and not a single spike,
# since one linear map and a threshold cannot be infinitely sharp. `unrolled=2` refines codes by steps of $z
# \leftarrow \sigma(z + \eta A^* (x - A z))$.
#
# ## What if one ignores that they are functions?
#
# The comparison with a sparse autoencoder on the same 64 numbers. To be able to place six kernels at 64
# points it needs 384 features, so it gets 384, of which 16 may be active at a time. Kernels are compared
# without their means, which its decoder bias takes over.

# %%
flat = planted.samples[:, 0]
vectors = interp.SparseAutoencoder(64, 384, interp.TopK(16))
interp.train(vectors, flat, steps=250, batch_size=256, progress=False)
as_functions = vectors.decoder_weight.detach()[:, None]
as_functions = as_functions - as_functions.mean(-1, keepdim=True)
by_vectors = interp.recovery(as_functions, planted.atoms - planted.atoms.mean(-1, keepdim=True))
centered = interp.recovery(
    found - found.mean(-1, keepdim=True), planted.atoms - planted.atoms.mean(-1, keepdim=True)
)
numbers = {
    "vectors": sum(p.numel() for p in vectors.parameters()),
    "functions": sum(p.numel() for p in autoencoder.parameters()),
}
print(f"operator: {numbers['functions']} numbers learned, mean cosine {float(centered.mean()):.3f}")
print(f"vectors: {numbers['vectors']} numbers learned, mean cosine {float(by_vectors.mean()):.3f}")

# %% [markdown]
# ## The lift, for vectors
#
# The other half of the idea: encode $y = L x$ instead of $x$, with a fixed matrix $L$ to a space at least as
# large, and come back with its pseudoinverse. As a *function* nothing is gained, since the lift can be
# multiplied into the weights: `fold` returns that ordinary autoencoder. But gradient steps on the lifted
# weights move the ordinary ones by $\nabla L^\top L$, so the lift is a **preconditioner**. A random isometry
# ($L^\top L = 1$) changes nothing for plain gradient descent; a whitening one, $L^\top L \approx C^{-1}$,
# levels the directions in which the data vary much and little.
#
# Test it where it should matter: data whose directions differ much in variance, plain gradient descent, the
# true dictionary in encoder and decoder to start with, and only the encoder left to learn. Each way at two
# learning rates, the larger one near the edge of what it stands.

# %%
data = interp.plant_vectors(
    64, 128, samples=8000, condition=100.0, generator=torch.Generator().manual_seed(0)
)


def descend(lifted, rate, steps=100):
    if lifted:
        autoencoder = interp.LiftedAutoencoder(64, 128, interp.TopK(4), lift="whitening")
        autoencoder.prepare(data.samples)
        weights = autoencoder.folded  # assigning to it sets the lifted weights that amount to this
        weights.encoder_weight = weights.decoder_weight = data.atoms
        trained = autoencoder.lifted_weight("encoder_weight")
    else:
        autoencoder = interp.SparseAutoencoder(64, 128, interp.TopK(4))
        autoencoder.prepare(data.samples)
        autoencoder.encoder_weight.data.copy_(data.atoms)
        autoencoder.decoder_weight.data.copy_(data.atoms)
        trained = autoencoder.encoder_weight
    optimizer, order = torch.optim.SGD([trained], rate), torch.Generator().manual_seed(0)
    curve = []
    for step in range(steps + 1):
        if step % 10 == 0:
            curve.append(interp.evaluate(autoencoder, data.samples[:1500]).fvu)
        autoencoder.train()
        batch = data.samples[torch.randint(8000, (512,), generator=order)]
        optimizer.zero_grad()
        autoencoder.loss(batch).total.backward()
        autoencoder.after_backward()
        optimizer.step()
        autoencoder.after_step(optimizer)
    return autoencoder, curve


runs = {
    (lifted, rate): descend(lifted, rate)
    for lifted, rates in ((False, (1, 3)), (True, (3, 10)))
    for rate in rates
}
lifted = runs[True, 10][0]
with torch.no_grad():
    unfolded = difference(lifted.fold()(data.samples[:500]), lifted(data.samples[:500]))
print(f"the folded autoencoder differs by {unfolded:.1e}")

figure = new_figure(6.4, 3.2)
axes = figure.subplots()
for (is_lifted, rate), (_, curve) in runs.items():
    label = f"{'lifted by whitening' if is_lifted else 'plain'}, rate {rate}"
    style = "--" if (is_lifted, rate) in ((False, 1), (True, 3)) else "-"
    axes.plot(range(0, 101, 10), curve, style, color=BLUE if is_lifted else RED, label=label)
axes.set_yscale("log")
axes.set_yticks([0.1, 0.2, 0.5], ["0.1", "0.2", "0.5"])
axes.minorticks_off()
axes.set_xlabel("steps of gradient descent")
axes.set_ylabel("fraction of variance unexplained")
axes.legend(fontsize=7, frameon=False)
figure

# %% [markdown]
# That is the theory at work, in the setting it speaks about. It is not a reason to lift everything: where the
# decoder is trained as well, it sees the inverse preconditioner, and Adam, which most people use, rescales
# directions by itself. In our measurements the advantage is then gone ([benchmarks
# page](../benchmarks/README.md)).

# %% [markdown]
# ## What this notebook claimed, asserted

# %%
assert before.mean() < 0.7 < 0.9 < after.mean()
assert shared < 1e-4
assert max(errors.values()) < 0.25
assert difference(transferred, made_fine) < 0.05
assert centered.mean() > by_vectors.mean() + 0.1
assert numbers["functions"] < numbers["vectors"] / 50
assert unfolded < 1e-4
assert runs[True, 10][1][-1] < 0.8 * min(
    curve[-1] for (is_lifted, _), (_, curve) in runs.items() if not is_lifted
)

# %% [markdown]
# ## Where to go next
#
# A Fourier neural operator for Burgers' equation, its hidden functions explained this way:
#
# ```bash
# python benchmarks/operator_autoencoders.py burgers
# ```
