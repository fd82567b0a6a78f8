# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # The batched eigensolver
#
# *I have thousands of small symmetric matrices. How do I get all their eigenvectors quickly, how do I know
# that they are right, and may I differentiate through them?*
#
# Nearly everything else in this library ends in that question: the eigenvectors of a bilinear layer, the
# projections inside a semidefinite program, the statistics of a layer's weights. The package `kernels`
# answers it: tensors in, tensors out, and nothing about neural networks.
#
# The algorithm is the textbook one, Householder tridiagonalization followed by implicit QL steps (Golub and
# Van Loan, *Matrix Computations*, algorithms 8.3.1 to 8.3.3). What differs is who does the work: a library
# call usually solves one matrix after another, while here each lane of a vector register carries a matrix of
# its own, so that 8 or 16 small matrices go through the same instructions together.

# %%
import time

import numpy as np
import torch

import kernels
from weightspace.bundled import digits
from weightspace.report.figures import BLUE, GRAY, GREEN, RED, new_figure

generator = torch.Generator().manual_seed(0)


def random_symmetric(*shape, dtype=torch.float64):
    a = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (a + a.mT).to(dtype)


print("solvers on this machine, in order of preference:", ", ".join(kernels.available_backends()))

# %% [markdown]
# `simd` is our own solver; it needs a C compiler at installation. `torch` is LAPACK, one matrix at a time,
# `threaded` is LAPACK on several threads. Each call picks by the size of its batch; `backend=` overrules it.
# Everything below holds for all of them.
#
# ## Many matrices at once
#
# A symmetric matrix is $A = V \Lambda V^\top$ with orthonormal columns in $V$ and real numbers on the
# diagonal of $\Lambda$. Take a thousand random ones. Wigner's semicircle law says how the eigenvalues of a
# large random matrix are spread: with entries of variance $\sigma^2$ their density is a half circle of radius
# $2 \sigma \sqrt n$. With a thousand matrices of size 60 the half circle is plain to see.

# %%
many = random_symmetric(1000, 60)
values = kernels.eigvalsh(many)
print(tuple(many.shape), "->", tuple(values.shape))

radius = 2 * np.sqrt(2 * 60)  # off the diagonal the entries have variance 2
figure = new_figure(7.2, 3.2)
axes = figure.subplots()
axes.hist(
    values.flatten().numpy(), bins=80, density=True, color=BLUE, alpha=0.35, label="1000 matrices, n = 60"
)
x = np.linspace(-radius, radius, 400)
axes.plot(x, 2 / (np.pi * radius**2) * np.sqrt(radius**2 - x**2), color=RED, label="semicircle law")
axes.set_xlabel("eigenvalue")
axes.set_ylabel("density")
axes.legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# ## Is it right?
#
# Eigenvectors cannot be compared with a list of right answers: their signs are free, and where two
# eigenvalues nearly agree any rotation of the two vectors is almost as good. LAPACK's own tests therefore ask
# two questions that have an answer for every matrix. With $u$ the spacing of the number format at 1,
#
# $$ \frac{\|A - V \Lambda V^\top\|_1}{\|A\|_1\, n\, u} \quad\text{(does it multiply back?)} \qquad
#    \frac{\|I - V^\top V\|_1}{n\, u} \quad\text{(are the vectors orthonormal?)} $$
#
# Both should be numbers of moderate size, whatever the matrix. LAPACK's test suite calls a result suspicious
# above 30. We ask them of random matrices, and of three kinds that solvers have trouble with: clusters of
# equal eigenvalues, entries that shrink by a factor of $10^{10}$ along the diagonal, and matrices near the
# end of the number range.


# %%
def ratios_of(a):
    values, vectors = (part.double() for part in kernels.eigh(a))
    n, u, exact = a.shape[-1], torch.finfo(a.dtype).eps, a.double()
    scale = exact.abs().amax((-2, -1), keepdim=True)  # so that the test itself does not overflow
    exact, values = exact / scale, values / scale[..., 0]

    def norm(x):
        return x.abs().sum(-2).amax(-1)

    residual = norm(exact - (vectors * values[..., None, :]) @ vectors.mT) / (norm(exact) * n * u)
    identity = torch.eye(n, dtype=torch.float64)
    return float(residual.max()), float((norm(identity - vectors.mT @ vectors) / (n * u)).max())


def hard_matrices(kind, n, dtype):
    if kind == "clustered":
        basis = torch.linalg.qr(torch.randn(64, n, n, generator=generator, dtype=torch.float64))[0]
        few = torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64)[torch.arange(n) % 3]
        a = (basis * few) @ basis.mT
        return ((a + a.mT) / 2).to(dtype)
    a = random_symmetric(64, n)
    if kind == "graded":
        grade = torch.logspace(0, -5, n, dtype=torch.float64)
        return (grade[:, None] * a * grade).to(dtype)
    if kind == "enormous":
        a = a * (torch.finfo(dtype).max / (4 * a.abs().amax() * n))
    return a.to(dtype)


sizes = [2, 4, 8, 16, 32, 64]
worst = {
    (kind, dtype): [ratios_of(hard_matrices(kind, n, dtype)) for n in sizes]
    for kind in ("random", "clustered", "graded", "enormous")
    for dtype in (torch.float32, torch.float64)
}

figure = new_figure(8.0, 3.2)
panels = figure.subplots(1, 2, sharey=True)
for (kind, dtype), color in zip(worst, (BLUE, BLUE, RED, RED, GREEN, GREEN, GRAY, GRAY), strict=True):
    for panel, column in zip(panels, range(2), strict=True):
        style = "-" if dtype == torch.float64 else "--"
        label = f"{kind}, {'float64' if dtype == torch.float64 else 'float32'}" if column == 1 else None
        panel.plot(
            sizes, [pair[column] for pair in worst[kind, dtype]], style, color=color, marker=".", label=label
        )
for panel, title in zip(panels, ("multiplies back", "orthonormal"), strict=True):
    panel.axhline(30, color="black", linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(n) for n in sizes])
    panel.set_yscale("log")
    panel.set_title(title, fontsize=9)
    panel.set_xlabel("size n")
panels[0].set_ylabel("worst test ratio of 64 matrices")
panels[0].text(2, 22, "above the line LAPACK's tests complain", fontsize=7, va="top")
figure.legend(loc="outside right upper", fontsize=7, frameon=False)
figure

# %% [markdown]
# ## What a batch must not do
#
# Putting matrices side by side must not let them touch each other. A matrix with a NaN gets NaN, and its
# neighbors do not notice. And an eigenvector, whose sign is free, is always given the same one: the first of
# its entries that is (up to a tenth of a percent) as large as the largest is positive.

# %%
broken = many.clone()
broken[7, 3, 3] = float("nan")
whole, around = kernels.eigh(many), kernels.eigh(broken)
others = torch.arange(len(many)) != 7
print("matrix 7 is NaN:", bool(around.values[7].isnan().all()))
print(
    "the others are unchanged, to the last bit:", torch.equal(whole.vectors[others], around.vectors[others])
)
magnitudes = whole.vectors.abs()
nearly_largest = magnitudes >= (1 - 2**-10) * magnitudes.amax(1, keepdim=True)
deciding = whole.vectors.gather(1, nearly_largest.int().argmax(1, keepdim=True))
print("the deciding entry of every eigenvector is positive:", bool((deciding > 0).all()))

# %% [markdown]
# ## What one builds on it
#
# The best approximation of rank $k$ of a symmetric matrix keeps the $k$ eigenvalues of largest magnitude
# (Eckart and Young 1936, Mirsky 1960): `top_eigh`. The nearest matrix without negative eigenvalues keeps the
# positive ones (Higham 1988): `project_psd`. Any function of a matrix applies it to the eigenvalues:
# `spectral_function`.
#
# One use of each on the scanned digits, whose covariance is a 64 x 64 matrix: how much of it do few
# directions hold; how does one whiten images, $x \mapsto C^{-1/2} (x - \bar x)$, so that all directions vary
# alike; and what is the nearest valid correlation structure when entries of $C$ were estimated from different
# images?

# %%
images = digits()[0].double()
centered = images - images.mean(0)
covariance = centered.mT @ centered / len(images)

captured = []
for k in range(65):
    top = kernels.top_eigh(covariance, k)
    approximation = (top.vectors * top.values) @ top.vectors.mT
    captured.append(1 - float((covariance - approximation).norm() / covariance.norm()))

ridge = 1e-3 * torch.eye(64, dtype=torch.float64)  # some pixels are always black
whitener = kernels.spectral_function(covariance + ridge, "inv_sqrt")
whitened = centered @ whitener

seen = (torch.rand(len(images), 64, generator=generator) < 0.1).double()  # nine pixels of ten are lost
pairs = seen.mT @ seen
patchy = (centered * seen).mT @ (centered * seen) / pairs.clamp(min=1)
repaired = kernels.project_psd(patchy)

print(f"smallest eigenvalue, entries from different images: {float(kernels.eigvalsh(patchy)[0]):.4f}")
print(f"smallest eigenvalue, projected: {float(kernels.eigvalsh(repaired)[0]):.1e}")
print(f"distance to the true covariance: {float((patchy - covariance).norm()):.3f} before,", end=" ")
print(f"{float((repaired - covariance).norm()):.3f} after")

# %%
figure = new_figure(8.4, 3.0)
curve, *pictures = figure.subplots(1, 4, width_ratios=[1.6, 1, 1, 1])
curve.plot(captured, color=BLUE)
curve.set_xlabel("directions kept, k")
curve.set_ylabel("share of the covariance")
shown = [images[4], top.vectors[:, 0], whitened[4]]
titles = ["a digit", "leading direction", "the digit, whitened"]
for panel, picture, title in zip(pictures, shown, titles, strict=True):
    bound = float(picture.abs().max())
    panel.imshow(picture.reshape(8, 8), cmap="RdBu_r", vmin=-bound, vmax=bound)
    panel.set_title(title, fontsize=8)
    panel.set_xticks([])
    panel.set_yticks([])
figure

# %% [markdown]
# The projection must come out *closer* to the truth, not only valid: the true covariance lies in the convex
# cone of positive semidefinite matrices, and projecting onto a convex set moves a point toward everything in
# it.
#
# ## Without the matrix
#
# The matrices of a bilinear layer are $\mathrm{sym}(L^\top \mathrm{diag}(w)\, R)$ with a few long rows in $L$
# and $R$: a hidden layer of 12 units on an input of 600 numbers has a 600 x 600 matrix of rank at most 24 for
# every output. `eigh_factored` finds the 24 eigenpairs from the rows; the large matrix is never formed.

# %%
left, right = torch.randn(2, 12, 600, generator=generator, dtype=torch.float64)
weights = torch.randn(5, 12, generator=generator, dtype=torch.float64)
factored = kernels.eigh_factored(left, right, weights)

formed = torch.einsum("uh,hi,hj->uij", weights, left, right)
formed = (formed + formed.mT) / 2
direct = kernels.top_eigh(formed, 24)
rebuilt = (factored.vectors * factored.values[:, None]) @ factored.vectors.mT
print("eigenvectors:", tuple(factored.vectors.shape))
print(f"largest difference to the matrix itself: {float((rebuilt - formed).abs().max()):.1e}")

# %% [markdown]
# ## May I differentiate through it?
#
# Through eigenvalues always: $\partial \lambda_i / \partial A = v_i v_i^\top$. As an example, a graph whose
# edges are weights we may choose. The second smallest eigenvalue of its Laplacian $L$ (Fiedler 1973) says how
# hard the graph falls into two parts. We have a fixed amount of weight to spend on two rings of eight nodes
# and a few bridges between them, and ascend the gradient.

# %%
ring = [(i, (i + 1) % 8) for i in range(8)]
edges = torch.tensor(ring + [(i + 8, j + 8) for i, j in ring] + [(0, 8), (1, 9), (4, 12)])
incidence = torch.zeros(len(edges), 16, dtype=torch.float64)
incidence[torch.arange(len(edges)), edges[:, 0]] = 1
incidence[torch.arange(len(edges)), edges[:, 1]] = -1


def spectrum_of_laplacian(logits):
    weight = logits.softmax(0) * len(edges)  # the total stays the number of edges
    return kernels.eigvalsh(incidence.mT @ (weight[:, None] * incidence))


logits = torch.zeros(len(edges), dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.Adam([logits], lr=0.05)
history = []
for _ in range(80):
    laplacian_values = spectrum_of_laplacian(logits)
    history.append(laplacian_values[1:3].tolist())
    optimizer.zero_grad()
    (-laplacian_values[1]).backward()
    optimizer.step()
print(f"second eigenvalue: {history[0][0]:.3f} -> {history[-1][0]:.3f}, third: {history[-1][1]:.3f}")

# %% [markdown]
# The left panel of the next figure shows the ascent. It ends in a zigzag because the third eigenvalue comes
# down to the second one: where two eigenvalues meet, each has a kink, and no gradient method gets smoothly
# past it.
#
# Through eigenvectors with care. Moving $A$ by $E$ moves $v_i$ by $\sum_{j \ne i} \frac{v_j^\top E\,
# v_i}{\lambda_i - \lambda_j}\, v_j$, which is infinite where two eigenvalues meet. Many losses do not care
# which basis of a cluster they get, and their gradient is finite, but the *formula* still divides by a gap
# near zero. Take $f(A) = \mathrm{tr}(C\, e^A)$ for a matrix with two eigenvalues at distance $g$, whose
# gradient is known exactly (Daleckii and Krein 1965), and compute it three ways:
#
# * through `eigh` as it is: rounding errors are divided by $g$;
# * through `eigh` with `gradient="mask"`, the usual patch, which drops what is divided by too small a gap:
#   finite, and **wrong**, because what is dropped is the derivative of the exponential;
# * through `spectral_function`, which replaces $\frac{f(\lambda_i) - f(\lambda_j)}{\lambda_i - \lambda_j}$ by
#   a formula without cancellation.

# %%
basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
c = random_symmetric(6)


def gradient_by(way, a):
    a = a.clone().requires_grad_()
    if way == "spectral_function":
        exponential = kernels.spectral_function(a, "exp")
    else:
        values, vectors = kernels.eigh(a, gradient=way)
        exponential = (vectors * values.exp()) @ vectors.mT
    return torch.autograd.grad((c * exponential).sum(), a)[0]


def true_gradient(
    a,
):  # the derivative of the exponential is a block of a larger exponential (Higham 2008, theorem 3.6)
    block = torch.cat([torch.cat([a, c], 1), torch.cat([torch.zeros_like(a), a], 1)])
    return torch.linalg.matrix_exp(block)[:6, 6:]


gaps = np.logspace(0, -14, 15)
errors = {"exact": [], "mask": [], "spectral_function": []}
for gap in gaps:
    spectrum = torch.tensor([-1.0, -0.3, 0.2, 0.6, 1.0, 1.0 + gap], dtype=torch.float64)
    a = (basis * spectrum) @ basis.mT
    a = (a + a.mT) / 2
    truth = true_gradient(a)
    for way, found in errors.items():
        found.append(float((gradient_by(way, a) - truth).norm() / truth.norm()))

figure = new_figure(8.4, 3.2)
left_panel, right_panel = figure.subplots(1, 2)
left_panel.plot(history, label=["second", "third"])
left_panel.set_xlabel("step")
left_panel.set_ylabel("eigenvalue of the Laplacian")
left_panel.legend(fontsize=7, frameon=False)
labels = {"exact": "eigh", "mask": 'eigh, gradient="mask"', "spectral_function": "spectral_function"}
for (way, found), color in zip(errors.items(), (RED, GRAY, BLUE), strict=True):
    right_panel.loglog(gaps, found, color=color, marker=".", label=labels[way])
right_panel.set_xlabel("gap between two eigenvalues")
right_panel.set_ylabel("relative error of the gradient")
right_panel.legend(fontsize=7, frameon=False)
figure

# %% [markdown]
# So: `spectral_function` (or `project_psd`) for functions of a matrix, `eigh` where the vectors themselves
# are meant and are well separated, and "mask" or "lorentz" only for losses that see nothing but the span of a
# cluster.
#
# ## Is it fast?
#
# A small race on one thread against `torch.linalg.eigh`. The result depends on the machine, so nothing is
# claimed here beyond what the figure shows on the machine that drew it; careful medians, other sizes and GPUs
# are in the [benchmarks page](../benchmarks/README.md).

# %%
torch.set_num_threads(1)


def seconds(solve, a):
    solve(a)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        solve(a)
        best = min(best, time.perf_counter() - started)
    return best


race = {}
for dtype in (torch.float32, torch.float64):
    for n in (3, 4, 8, 16, 32, 64, 128):
        a = random_symmetric(max(8, min(2000, 200_000 // n**2)), n, dtype=dtype)
        race[dtype, n] = seconds(torch.linalg.eigh, a) / seconds(kernels.eigh, a)

figure = new_figure(6.4, 3.2)
axes = figure.subplots()
for dtype, color, name in ((torch.float32, RED, "float32"), (torch.float64, BLUE, "float64")):
    points = [(n, ratio) for (kind, n), ratio in race.items() if kind == dtype]
    axes.plot(*zip(*points, strict=True), color=color, marker="o", label=name)
axes.axhline(1, color=GRAY, linewidth=1)
axes.set_xscale("log", base=2)
axes.set_xticks([4, 8, 16, 32, 64, 128], ["4", "8", "16", "32", "64", "128"])
axes.set_ylim(bottom=0)
axes.set_xlabel("size n of the matrices in a batch")
axes.set_ylabel("times as fast as torch.linalg.eigh")
axes.legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# ## What this notebook claimed, asserted
#
# Nothing about time: a test that fails when the machine is busy tests the machine.

# %%
assert (
    abs(float(values.std()) / (radius / 2) - 1) < 0.02
)  # the half circle's standard deviation is half its radius
assert max(ratio for pairs_of in worst.values() for pair in pairs_of for ratio in pair) < 30
assert around.values[7].isnan().all()
assert torch.equal(whole.vectors[others], around.vectors[others])
assert (deciding > 0).all()
spectrum = kernels.eigvalsh(covariance).flip(0)
assert abs(captured[10] - (1 - float(spectrum[10:].norm() / spectrum.norm()))) < 1e-12  # Eckart and Young
variance = whitener @ covariance @ whitener
torch.testing.assert_close(variance + 1e-3 * whitener @ whitener, torch.eye(64, dtype=torch.float64))
assert kernels.eigvalsh(patchy)[0] < -1e-2
assert kernels.eigvalsh(repaired)[0] > -1e-12
assert (repaired - covariance).norm() < (patchy - covariance).norm()
torch.testing.assert_close(rebuilt, formed)
torch.testing.assert_close(factored.values.abs().sort(descending=True).values, direct.values.abs())
assert history[-1][0] > 1.25 * history[0][0]
assert history[-1][1] < 1.05 * history[-1][0]
assert max(errors["spectral_function"]) < 1e-12
assert errors["exact"][-1] > 1e-8
assert errors["mask"][-1] > 1e-2

# %% [markdown]
# ## Where to go next
#
# What these eigenvectors are good for: [what a bilinear layer
# computes](04_what_a_bilinear_layer_computes.ipynb), and the projections behind [a guaranteed Lipschitz
# constant](08_a_guaranteed_lipschitz_constant.ipynb). Which solvers and devices an installation has:
#
# ```bash
# weightspace --version
# ```
