"""Networks trained to multiply in a group: how much of them is representation theory, and is it the part predicted?

Three kinds of rows, each over several seeds (medians, and the worst where it says so):
- `task`: bilinear and quadratic networks on addition modulo 31 and 59 and on S3, S4 and D7. Accuracy on pairs not
  trained on, line energy, purity of the eigenvectors in isotypic directions, what convolutions explain; units, and
  margin and shares of the representations against margin maximization.
- `composed`: quadratic networks with squared loss and an L2 penalty, addition modulo 23: orders of the partial
  solutions and their distance from products of two (random phases beside them), against the theory's orders 4 and 6.
- `transformer`: the five `rib_modadd` checkpoints (WEIGHTSPACE_DATA), addition modulo 113, ReLU.

    OMP_NUM_THREADS=1 python benchmarks/group_tasks.py
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import write
from modular_addition import PRIME, Adder
from torch import Tensor, nn

from interp.classifier_training import train_classifier
from interp.finite_groups import FiniteGroup
from interp.group_margins import margin_ratio, maximum_margin
from interp.group_spectra import dominant_representations, fourier_spectrum, pair_spectrum
from interp.group_tasks import analyze_group_task, line_energy, split_products
from interp.group_units import describe_units
from interp.partial_solutions import factorization_error, find_partial_solutions
from weightspace.checkpoint import open_checkpoint
from weightspace.layers import Bilinear

SEEDS = range(3)


class Squares(nn.Module):
    """Sums of squared linear features."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.features = nn.Linear(inputs, hidden, bias=False)
        self.output = nn.Linear(hidden, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x).square())


def squared_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Squared distance of the centered logits from the centered one-hot answer."""
    target = F.one_hot(y, logits.shape[1]).to(logits) - 1 / logits.shape[1]
    return (logits - logits.mean(1, keepdim=True) - target).square().sum(1).mean()


def task_row(
    group: FiniteGroup,
    units: type[nn.Module],
    *,
    hidden: int,
    weight_decay: float,
    train_share: float,
    epochs: int,
    loss: str = "cross-entropy",
) -> dict[str, Any]:
    best = maximum_margin(group)
    runs = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        data = split_products(group, train_share=train_share, generator=torch.Generator().manual_seed(seed))
        model = units(2 * group.order, hidden, group.order)
        started = time.process_time()
        run = train_classifier(
            model, data.x, data.y, test=(data.test_x, data.test_y), epochs=epochs, batch_size=None,
            learning_rate=1e-2, weight_decay=weight_decay, noise=0.0, betas=(0.9, 0.95),
            loss=squared_loss if loss == "squared" else None, progress=False,
        )  # fmt: skip
        seconds = time.process_time() - started
        analysis, found = analyze_group_task(model, group), describe_units(model, group)
        assert run.test_accuracy is not None
        runs.append(
            {
                "test_accuracy": run.test_accuracy,
                "line_energy": analysis.line_energy,
                "class_energy": analysis.class_energy,
                "block_energy": analysis.block_energy,
                "purity": analysis.mean_purity,
                "least_purity": float(analysis.purity[1:].min()),
                "explained": analysis.explained,
                "rest_accuracy": analysis.rest_accuracy,
                "active_units": float(found.active.sum()),
                "unit_concentration": found.average(found.concentration),
                "unit_alignment": found.average(found.alignment),
                "margin_ratio": margin_ratio(model, group),
                "share_error": float((found.shares - best.shares).abs().max()),
                "train_cpu_seconds": seconds,
            }
        )
        print(group.name, seed, runs[-1], file=sys.stderr, flush=True)
    return {
        "kind": "task",
        "group": group.name,
        "units": "bilinear" if units is Bilinear else "quadratic",
        "hidden": hidden,
        "weight_decay": weight_decay,
        "train_share": train_share,
        "loss": loss,
        "worst_test_accuracy": min(run["test_accuracy"] for run in runs),
        **{key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]},
    }


def composed_row(
    group: FiniteGroup, penalty: float, *, hidden: int = 256, epochs: int = 3000
) -> dict[str, Any]:
    orders: Counter[int] = Counter()
    solutions, accuracies, ratios = [], [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        data = split_products(group)
        model = Squares(2 * group.order, hidden, group.order)
        weights = list(model.parameters())

        def penalized(logits: Tensor, y: Tensor, weights: list[nn.Parameter] = weights) -> Tensor:
            # In the loss, not in AdamW: this penalty is what makes few units cheaper than many.
            return squared_loss(logits, y) + penalty / 2 * sum(weight.square().sum() for weight in weights)

        run = train_classifier(
            model, data.x, data.y, epochs=epochs, batch_size=None, learning_rate=1e-2, weight_decay=0.0,
            noise=0.0, loss=penalized, progress=False,
        )  # fmt: skip
        found = find_partial_solutions(model, group)
        orders.update(solution.order for solution in found)
        solutions += found
        accuracies.append(run.train_accuracy)
        ratios.append(margin_ratio(model, group))
        print(penalty, seed, sorted(orders.items()), file=sys.stderr, flush=True)

    def middle(order: int, field: str) -> float | None:
        own = [getattr(solution, field) for solution in solutions if solution.order == order]
        return float(f"{statistics.median(own):.3g}") if own else None

    return {
        "kind": "composed",
        "group": group.name,
        "hidden": hidden,
        "l2_penalty": penalty,
        "accuracy": min(accuracies),
        "frequencies_used": f"{len(solutions)} of {len(SEEDS) * (group.order // 2)}",
        "orders": dict(sorted(orders.items())),
        "share_of_orders_4_and_6": round((orders[4] + orders[6]) / len(solutions), 3),
        "least_alignment": round(min(solution.alignment for solution in solutions), 4),
        **{
            f"{field}_{order}": middle(order, field)
            for order in (4, 6)
            for field in ("factorization_error", "spurious", "offset")
        },
        "margin_ratio": round(statistics.median(ratios), 4),
    }


def random_row() -> dict[str, Any]:
    """The factorization error of units with random phases: what its smallness is to be compared with."""
    generator = torch.Generator().manual_seed(0)

    def errors(factors: tuple[int, int]) -> float:
        angles = (
            2
            * math.pi
            * torch.rand(200, 3, factors[0] * factors[1], dtype=torch.float64, generator=generator)
        )
        draws = torch.polar(torch.ones_like(angles), angles)
        return round(statistics.median(factorization_error(z, factors) for z in draws), 4)

    return {
        "kind": "composed",
        "group": "random phases",
        "factorization_error_4": errors((2, 2)),
        "factorization_error_6": errors((2, 3)),
    }


@torch.no_grad()
def transformer_row(seed: int) -> dict[str, Any]:
    group = FiniteGroup.cyclic(PRIME)
    path = Path(os.environ["WEIGHTSPACE_DATA"]) / "rib_modadd" / f"modadd113_seed{seed}.pt"
    state = open_checkpoint(path).state_dict()
    model = Adder()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model = model.double()
    a, b = torch.meshgrid(torch.arange(PRIME), torch.arange(PRIME), indexing="ij")
    tokens = torch.stack([a, b, torch.full_like(a, PRIME)], -1).reshape(-1, 3)
    x = F.embedding(tokens, model.embed.W_E) + model.pos_embed.W_pos
    x = (x + model.blocks[0]["attn"](x))[:, -1]
    inputs = (x @ model.blocks[0]["mlp"].W_in + model.blocks[0]["mlp"].b_in).unflatten(0, (PRIME, PRIME))
    logits = model(tokens)[:, :PRIME].mT.unflatten(1, (PRIME, PRIME))
    centered = logits - logits.mean(0)
    alone = centered.mean(1, keepdim=True) + centered.mean(2, keepdim=True)
    interaction = centered - alone + centered.mean((1, 2), keepdim=True)

    power = fourier_spectrum(model.embed.W_E[:PRIME], group)[1:].sum(1)
    leading = power.argsort(descending=True)[:6]
    _, before = dominant_representations(pair_spectrum(inputs, group))
    spectrum = pair_spectrum(inputs.relu(), group)
    frequency, after = dominant_representations(spectrum)
    counts = torch.bincount(frequency[spectrum.sum((0, 1)) > 0], minlength=PRIME // 2 + 1)
    used = counts.nonzero().flatten()
    return {
        "kind": "transformer",
        "seed": seed,
        "accuracy": round(float((logits.argmax(0) == group.table).double().mean()), 5),
        "embedding_frequencies": (leading + 1).tolist(),
        "embedding_shares": [round(share, 3) for share in (power[leading] / power.sum()).tolist()],
        "units_by_frequency": {int(k): int(counts[k]) for k in used},
        "embedding_share_at_units": round(float(power[used - 1].sum() / power.sum()), 3),
        "unit_input_at_one_frequency": round(float(before.median()), 3),
        "unit_output_at_one_frequency": round(float(after.median()), 3),
        "line_energy_logits": round(line_energy(centered, group), 4),
        "line_energy_interaction": round(line_energy(interaction, group), 4),
    }


def main() -> None:
    cyclic, symmetric, dihedral = FiniteGroup.cyclic, FiniteGroup.symmetric, FiniteGroup.dihedral
    plain = {"weight_decay": 1.0, "epochs": 2000}
    squared = {"weight_decay": 1.0, "epochs": 1200, "loss": "squared", "train_share": 1.0}
    recipes: list[tuple[FiniteGroup, type[nn.Module], dict[str, Any]]] = [
        (cyclic(59), Bilinear, {"hidden": 256, "train_share": 0.6, **plain}),
        (cyclic(31), Bilinear, {"hidden": 128, "train_share": 1.0, **plain}),
        (cyclic(31), Bilinear, {"hidden": 256, "train_share": 0.6, **plain}),
        (cyclic(31), Squares, {"hidden": 256, "train_share": 0.6, **plain}),
        (symmetric(3), Bilinear, {"hidden": 64, "train_share": 1.0, **plain}),
        (symmetric(3), Squares, {"hidden": 64, "train_share": 1.0, **plain}),
        *(
            (symmetric(4), units, {"hidden": 256, "train_share": share, **plain})
            for units in (Bilinear, Squares)
            for share in (0.8, 0.85)
        ),
        (dihedral(7), Bilinear, {"hidden": 128, "train_share": 0.8, **plain}),
        (cyclic(31), Squares, {"hidden": 256, **squared}),
        (symmetric(4), Squares, {"hidden": 256, **squared}),
    ]
    with ProcessPoolExecutor(2) as pool:  # times are of the process
        jobs = [pool.submit(task_row, group, units, **recipe) for group, units, recipe in recipes]
        jobs += [pool.submit(composed_row, cyclic(23), penalty) for penalty in (1e-4, 3e-4, 1e-3)]
        jobs += [pool.submit(random_row), *(pool.submit(transformer_row, seed) for seed in range(5))]
        rows = [job.result() for job in jobs]
    write("group_tasks", rows, "torch")


if __name__ == "__main__":
    main()
