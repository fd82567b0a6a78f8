"""Lifted and operator autoencoders: planted dictionaries found again, other resolutions, a neural operator explained.

recovery: steps until the mean largest |cosine| of planted atoms with decoder features is 0.8, 0.9 and 0.95, and what it
    is in the end, five seeds each, Adam, the learning rate held and then falling in the last fifth.
    Vectors: d = 64, 128 unit atoms, 4 active, 20 dB, 256 latents, TopK(4) or ReLU, plain against lifted (isometric to
    256 dimensions, whitening), also where atoms come from a covariance of condition number 100.
    Functions: 8 smooth kernels of modes up to 12 at 4 random positions of a circle of 64 points, 20 dB, 16 concepts:
    truncated modes (12) against all (32, a convolutional autoencoder), and two refinements of the codes.
descent: SGD on the ill-conditioned vectors, plain against a whitening lift, by learning rate, three seeds: the encoder
    alone with the planted atoms as decoder (steps to an FVU of 0.1), where the lift is the preconditioner the theory
    promises; and everything, with momentum 0.9 (steps to a recovery of 0.95), where it is the inverse preconditioner of
    the decoder at the same time.
resolution: codes and reconstructions of one operator autoencoder at 64, 128 and 256 points.
burgers: a Fourier neural operator learns the solution at time 0.4 of u_t + u u_x = 0.015 u_xx on the circle (scipy), at
    64 points; an operator autoencoder of its second layer is evaluated at 64, 128 and 256 points.

About 10 minutes of one core; the figure is docs/operator_concepts.png.

    OMP_NUM_THREADS=1 python benchmarks/operator_autoencoders.py [recovery|descent|resolution|burgers ...]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, write
from scipy.integrate import solve_ivp
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.fourier_neural_operator import FourierNeuralOperator
from interp.autoencoders.lifted_autoencoder import LiftedAutoencoder
from interp.autoencoders.operator_autoencoder import OperatorAutoencoder
from interp.autoencoders.planted import plant_functions, plant_vectors, recovery
from interp.autoencoders.relu import ReLU
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.report.figures import new_figure

Row = dict[str, Any]
FIGURE = Path(__file__).parent.parent / "docs" / "operator_concepts.png"
LEVELS = (0.8, 0.9, 0.95)
SEEDS = range(5)


def fit(
    autoencoder: Autoencoder,
    samples: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    quality: Callable[[], float] | None = None,
    enough: float = float("inf"),
    falling: bool = True,
    every: int = 10,
) -> list[tuple[int, float]]:
    """Train, and return (step, quality) every few steps until it is enough."""
    generator = torch.Generator().manual_seed(seed)
    autoencoder.prepare(samples[:8000])
    rates = [group["lr"] for group in optimizer.param_groups]
    curve = []
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, 5 * (1 - step / steps)) if falling else rate
        batch = samples[torch.randint(len(samples), (batch_size,), generator=generator)]
        optimizer.zero_grad()
        autoencoder.loss(batch).total.backward()
        autoencoder.after_backward()
        optimizer.step()
        autoencoder.after_step(optimizer)
        if quality and ((step + 1) % every == 0 or step + 1 == steps):
            curve.append((step + 1, quality()))
            if curve[-1][1] >= enough or curve[-1][1] != curve[-1][1]:
                break
    return curve


def reached(curve: list[tuple[int, float]], level: float) -> int | None:
    return next((step for step, value in curve if value >= level), None)


@torch.no_grad()
def unexplained(autoencoder: Autoencoder, samples: Tensor) -> float:
    autoencoder.eval()
    comparison = autoencoder.compare(samples)
    autoencoder.train()
    variance = comparison.target.sum() - comparison.target_sum.square().sum() / len(samples)
    return float(comparison.error.sum() / variance)


def report(row: Row) -> Row:
    print(row, file=sys.stderr, flush=True)
    return row


def summarize(name: str, curves: list[list[tuple[int, float]]], fvu: list[float], **options: Any) -> Row:
    steps = {f"steps_to_{level:g}": [reached(curve, level) for curve in curves] for level in LEVELS}
    final = [round(curve[-1][1], 4) for curve in curves]
    return report(
        {
            "recovery": name,
            **options,
            "mean": round(float(np.mean(final)), 4),
            "seeds": final,
            **steps,
            "fvu": round(float(np.mean(fvu)), 4),
        }
    )


# ---- planted dictionaries --------------------------------------------------------------------------------


def vector_autoencoder(kind: str, rule: TopK | ReLU, seed: int) -> SparseAutoencoder | LiftedAutoencoder:
    generator = torch.Generator().manual_seed(100 + seed)
    if kind == "plain":
        return SparseAutoencoder(64, 256, rule, generator=generator)
    lifted = 256 if kind == "isometry" else 64
    return LiftedAutoencoder(64, 256, rule, lift=kind, lifted=lifted, generator=generator)


def vectors(seed: int, condition: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    planted = plant_vectors(64, 128, samples=40_000, condition=condition, generator=generator)
    return planted.atoms, planted.samples


def vector_recovery() -> list[Row]:
    runs = [("plain", TopK(4), 1.0), ("plain", ReLU(0.3), 1.0)]
    runs += [(kind, TopK(4), condition) for condition in (1.0, 100.0) for kind in ("isometry", "whitening")]
    runs += [("plain", TopK(4), 100.0)]
    rows = []
    for kind, rule, condition in runs:
        curves, fvu, data_condition = [], [], []
        steps, rate = (1000, 5e-3) if isinstance(rule, ReLU) else (500, 5e-3)
        for seed in SEEDS:
            atoms, samples = vectors(seed, condition)
            values = torch.linalg.eigvalsh(samples.T.cov())
            data_condition.append(float(values[-1] / values[0]))
            autoencoder = vector_autoencoder(kind, rule, seed)

            def quality(autoencoder=autoencoder, atoms=atoms) -> float:
                return float(recovery(autoencoder.decoder_weight.detach(), atoms).mean())

            optimizer = autoencoder.make_optimizer(rate)
            curves.append(
                fit(autoencoder, samples, optimizer, steps=steps, batch_size=512, seed=seed, quality=quality)
            )
            fvu.append(unexplained(autoencoder, samples[:8000]))
        rows.append(
            summarize(
                f"vectors, {kind}",
                curves,
                fvu,
                rule=repr(rule),
                atom_condition=condition,
                data_condition=round(float(np.mean(data_condition))),
                steps=steps,
                learning_rate=rate,
            )
        )
    return rows


def function_recovery() -> list[Row]:
    rows = []
    tied = {"thresholds": "proximal", "tied": True}
    for modes, unrolled, sparsity, options in (
        (12, 0, 0.15, {}),
        (32, 0, 0.15, {}),
        (12, 2, 0.15, {}),
        (12, 20, 0.4, tied),
    ):
        curves, fvu = [], []
        steps = 300 if unrolled else 600
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            planted = plant_functions(64, 8, samples=20_000, modes=12, generator=generator)
            autoencoder = OperatorAutoencoder(
                1,
                16,
                modes=modes,
                domain_sparsity=sparsity,
                unrolled=unrolled,
                **options,
                generator=torch.Generator().manual_seed(100 + seed),
            )

            def quality(autoencoder=autoencoder, atoms=planted.atoms) -> float:
                return float(recovery(autoencoder.kernels(64).detach(), atoms).mean())

            optimizer = autoencoder.make_optimizer(1e-2)
            curves.append(
                fit(
                    autoencoder,
                    planted.samples,
                    optimizer,
                    steps=steps,
                    batch_size=256,
                    seed=seed,
                    quality=quality,
                )
            )
            fvu.append(unexplained(autoencoder, planted.samples[:4000]))
        name = "functions, all modes" if modes == 32 else "functions, truncated modes"
        name += ", proximal gradient" if options else ""
        rows.append(
            summarize(name, curves, fvu, modes=modes, unrolled=unrolled, steps=steps, learning_rate=1e-2)
        )
    return rows


def descent() -> list[Row]:
    rows = []
    for kind in ("plain", "whitening"):
        steps: Row = {}
        for rate in (1.0, 3.0, 10.0):
            steps[str(rate)] = [descend_encoder(kind, rate, seed) for seed in range(3)]
        rows.append(
            report({"descent": "encoder alone", "kind": kind, "until": "fvu 0.1", "steps_by_rate": steps})
        )
    for kind in ("plain", "whitening"):
        steps = {}
        for rate in (0.1, 0.3, 1.0):
            steps[str(rate)] = [descend(kind, rate, seed) for seed in range(3)]
        rows.append(
            report({"descent": "everything", "kind": kind, "until": "recovery 0.95", "steps_by_rate": steps})
        )
    return rows


def descend_encoder(kind: str, rate: float, seed: int) -> int | None:
    """Steps until the encoder weights have learned to use the planted atoms."""
    atoms, samples = vectors(seed, 100.0)
    autoencoder = vector_autoencoder(kind, TopK(4), seed)
    weight = torch.cat([atoms, atoms.new_zeros(128, 64)])
    if isinstance(autoencoder, LiftedAutoencoder):
        for name in ("encoder_weight", "decoder_weight"):
            setattr(autoencoder.folded, name, weight)
        trained = autoencoder.lifted_weight("encoder_weight")
    else:
        trained = autoencoder.encoder_weight = torch.nn.Parameter(weight.clone())
        autoencoder.decoder_weight = torch.nn.Parameter(weight)
    curve = fit(
        autoencoder,
        samples,
        torch.optim.SGD([trained], rate),
        steps=400,
        batch_size=512,
        seed=seed,
        quality=lambda: -unexplained(autoencoder, samples[:2000]),
        enough=-0.1,
        falling=False,
    )
    return reached(curve, -0.1)


def descend(kind: str, rate: float, seed: int) -> int | None:
    """Steps until the atoms are found."""
    atoms, samples = vectors(seed, 100.0)
    autoencoder = vector_autoencoder(kind, TopK(4), seed)
    curve = fit(
        autoencoder,
        samples,
        torch.optim.SGD(autoencoder.parameters(), rate, momentum=0.9),
        steps=600,
        batch_size=512,
        seed=seed,
        quality=lambda: float(recovery(autoencoder.decoder_weight.detach(), atoms).mean()),
        enough=0.95,
        falling=False,
    )
    return reached(curve, 0.95)


# ---- other resolutions -----------------------------------------------------------------------------------


def resample(x: Tensor, points: int) -> Tensor:
    """The same trigonometric polynomials on another grid."""
    return torch.fft.irfft(torch.fft.rfft(x, norm="forward"), points, norm="forward")


@torch.no_grad()
def differences(autoencoder: OperatorAutoencoder, functions: dict[int, Tensor]) -> Row:
    """Relative differences of codes and reconstructions at the points all grids share from those of the coarsest."""
    coarse = min(functions)
    codes = {points: autoencoder.encode(x)[..., :: points // coarse] for points, x in functions.items()}
    made = {points: autoencoder(x)[..., :: points // coarse] for points, x in functions.items()}
    row = {}
    for points in sorted(functions):
        if points != coarse:
            for name, values in (("codes", codes), ("reconstructions", made)):
                error = (values[points] - values[coarse]).norm() / values[coarse].norm()
                row[f"{name}_{points}_against_{coarse}"] = float(error)
    return row


def resolution() -> list[Row]:
    planted = plant_functions(64, 8, samples=5000, modes=12, dtype=torch.float64)
    rows = []
    for unrolled in (0, 2):
        autoencoder = OperatorAutoencoder(
            1, 16, modes=12, domain_sparsity=0.15, unrolled=unrolled, dtype=torch.float64
        )
        fit(autoencoder, planted.samples, autoencoder.make_optimizer(1e-2), steps=200, batch_size=128, seed=0)
        spectrum = torch.fft.rfft(planted.samples[:500], norm="forward")
        spectrum[..., 13:] = 0
        limited = torch.fft.irfft(spectrum, 64, norm="forward")
        functions = {points: resample(limited, points) for points in (64, 128, 256)}
        fvu = {f"fvu_{points}": unexplained(autoencoder, x) for points, x in functions.items()}
        rows.append(
            report(
                {
                    "resolution": "band-limited functions, float64",
                    "unrolled": unrolled,
                    **differences(autoencoder, functions),
                    **fvu,
                }
            )
        )
    return rows


# ---- a neural operator -----------------------------------------------------------------------------------


def solve_burgers(samples: int, *, points: int = 128, viscosity: float = 0.015, until: float = 0.4) -> Tensor:
    """Random smooth initial functions and their solutions by a dealiased spectral method: (2, samples, points)."""
    rng = np.random.default_rng(0)
    modes = points // 3
    k = np.arange(modes + 1)
    size = np.where((k > 0) & (k <= 5), 0.2 / np.maximum(k, 1), 0)
    start = (
        rng.standard_normal((samples, modes + 1)) + 1j * rng.standard_normal((samples, modes + 1))
    ) * size
    derivative = 2j * np.pi * k

    def right_side(_: float, state: np.ndarray) -> np.ndarray:
        spectrum = state.reshape(start.shape)
        u = np.fft.irfft(spectrum, points, norm="forward")
        flux = np.fft.rfft(u * u, norm="forward")[:, : modes + 1] / 2
        return (viscosity * derivative**2 * spectrum - derivative * flux).ravel()

    solution = solve_ivp(
        right_side, (0, until), start.ravel(), method="RK45", t_eval=[until], rtol=1e-4, atol=1e-7
    )
    spectra = np.stack([start, solution.y[:, -1].reshape(start.shape)])
    return torch.from_numpy(np.fft.irfft(spectra, points, norm="forward")).float()


def burgers() -> list[Row]:
    started = time.process_time()
    solved = solve_burgers(1100)
    solver_seconds = time.process_time() - started
    grids = {
        64: solved[..., ::2, None],
        128: solved[..., None],
        256: resample(solved, 256)[..., None],
    }
    pairs = {points: data.transpose(-1, -2) for points, data in grids.items()}  # (2, samples, 1, points)
    generator = torch.Generator().manual_seed(0)
    network = FourierNeuralOperator(1, 1, width=24, modes=20, layers=3, generator=generator)
    steps = 1200
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    started = time.process_time()
    for _ in range(steps):
        rows = torch.randint(1000, (32,), generator=generator)
        loss = (network(pairs[64][0, rows]) - pairs[64][1, rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - started
    errors, hidden = {}, {}
    hook = network.layers[1].register_forward_hook(
        lambda _module, _inputs, output: hidden.__setitem__(output.shape[-1], output.detach())
    )
    with torch.no_grad():
        for points, (x, y) in pairs.items():
            difference = network(x)[1000:] - y[1000:]
            errors[f"relative_error_{points}"] = float(difference.norm() / y[1000:].norm())
    hook.remove()
    result = [
        report(
            {
                "burgers": "Fourier neural operator, 24 channels, 20 modes, 3 layers, trained at 64 points",
                "solver_cpu_seconds": round(solver_seconds, 1),
                "training_cpu_seconds": round(seconds, 1),
                **errors,
            }
        )
    ]
    autoencoder = OperatorAutoencoder(
        24, 48, modes=16, domain_sparsity=0.1, concept_sparsity=0.05, unrolled=1, scaling="standard"
    )
    started = time.process_time()
    fit(
        autoencoder,
        hidden[64][:1000],
        autoencoder.make_optimizer(1e-2),
        steps=800,
        batch_size=64,
        seed=0,
    )
    seconds = time.process_time() - started
    with torch.no_grad():
        codes = autoencoder.encode(hidden[64][1000:])
        ablated = network_error(network, autoencoder, pairs[64][0, 1000:], pairs[64][1, 1000:])
    tests = {points: x[1000:] for points, x in hidden.items()}
    result.append(
        report(
            {
                "burgers": "operator autoencoder of layers.1, 48 concepts, 16 modes, one refinement",
                "training_cpu_seconds": round(seconds, 1),
                **{f"fvu_{points}": unexplained(autoencoder, x) for points, x in tests.items()},
                **differences(autoencoder, tests),
                "active_per_point": float((codes > 0).sum(1).float().mean()),
                "active_per_function": float((codes > 0).any(-1).sum(1).float().mean()),
                "concepts_ever_active": int((codes > 0).any(-1).any(0).sum()),
                "relative_error_64_with_reconstruction": ablated,
            }
        )
    )
    draw(autoencoder, {points: data[:, 1000:, 0] for points, data in pairs.items()}, tests)
    return result


@torch.no_grad()
def network_error(
    network: FourierNeuralOperator, autoencoder: OperatorAutoencoder, x: Tensor, y: Tensor
) -> float:
    """The relative error of the network when the reconstruction stands in for its second layer."""
    hook = network.layers[1].register_forward_hook(lambda _module, _inputs, output: autoencoder(output))
    error = float((network(x) - y).norm() / y.norm())
    hook.remove()
    return error


@torch.no_grad()
def draw(
    autoencoder: OperatorAutoencoder, solutions: dict[int, Tensor], hidden: dict[int, Tensor], shown: int = 5
) -> None:
    """The most frequent concepts: kernels, solutions around where they are active, and where that is on three.

    The kernel of a concept may stand anywhere on the circle, so the place of its code alone says nothing; the mean
    solution around it, weighted by the code, does.
    """
    codes = {points: autoencoder.encode(x) for points, x in hidden.items()}
    frequency = (codes[64] > 0).any(-1).float().mean(0)
    chosen = frequency.topk(shown).indices
    figure = new_figure(13, 1.8 * (shown + 1))
    axes = figure.subplots(shown + 1, 5, squeeze=False)
    fine, coarse = (np.arange(points) / points for points in (256, 64))
    kernels = autoencoder.kernels(256)[chosen].roll(128, -1)
    axes[0, 0].axis("off")
    axes[0, 1].axis("off")
    legend = axes[0, 0].text(
        0,
        0.5,
        "Below, left: kernels of concepts, channels of the layer\ndown, offset across (red positive, blue negative);\n"
        "then the mean solution around the places where a\nconcept is active, weighted by its code.\n\n"
        "Right: three solutions, and where the concepts are\nactive on them: line at 256 points, dots at the 64\n"
        "that network and autoencoder were trained at.",
        va="center",
        fontsize=8.5,
    )
    legend.set_in_layout(False)  # it stands over two places
    spectra = torch.fft.rfft(solutions[256])
    for column in (2, 3, 4):
        start, end = solutions[256][:, column]
        axes[0, column].plot(fine, start, color="#777777", lw=1, label="u at t = 0")
        axes[0, column].plot(fine, end, color="#2166ac", lw=1.6, label="u at t = 0.4")
    axes[0, 2].legend(fontsize=7, frameon=False)
    for row, concept in enumerate(chosen.tolist(), start=1):
        kernel, code = kernels[row - 1].numpy(), codes[256][:, concept]
        bound = abs(kernel).max()
        axes[row, 0].imshow(
            kernel, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", extent=(-0.5, 0.5, 24, 0)
        )
        axes[row, 0].set_title(f"concept {concept}, in {frequency[concept]:.0%} of functions", fontsize=8.5)
        axes[row, 0].set_yticks([])
        around = torch.fft.irfft((torch.fft.rfft(code).conj() * spectra).sum(1)) / code.sum()
        for values, color in zip(around.roll(128, -1), ("#777777", "#2166ac"), strict=True):
            axes[row, 1].plot(fine - 0.5, values, color=color, lw=1.3)
        axes[row, 1].axvline(0, color="#b2182b", lw=0.6)
        top = float(code[2:5].max())
        for column in (2, 3, 4):
            axis = axes[row, column]
            axis.fill_between(fine, code[column], color="#b2182b", alpha=0.25, lw=0)
            axis.plot(fine, code[column], color="#b2182b", lw=1)
            axis.plot(coarse, codes[64][column, concept], ".", color="black", ms=2.5)
            axis.set_ylim(0, 1.1 * top or 1)
    axes[1, 1].set_title("solution around it, t = 0 and 0.4", fontsize=8.5)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    figure.savefig(FIGURE, dpi=90)


def main() -> None:
    parts: dict[str, list[Callable[[], list[Row]]]] = {
        "recovery": [vector_recovery, function_recovery],
        "descent": [descent],
        "resolution": [resolution],
        "burgers": [burgers],
    }
    names = sys.argv[1:] or list(parts)
    made = [row for name in names for part in parts[name] for row in part()]
    file = RESULTS / "operator_autoencoders.json"
    others = json.loads(file.read_text())["rows"] if len(names) < len(parts) and file.exists() else []
    rows = [row for row in others if next(iter(row)) not in names] + made
    write("operator_autoencoders", rows, "torch", "scipy", "weightspace")


if __name__ == "__main__":
    main()
