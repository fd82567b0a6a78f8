"""The claims of the project: task, competitor, number, command; `python -m benchmarks` makes their table.

A claim reads its number from the committed rows of `results/NAME.json`. Ratios are the competitor's time divided by
ours: above 1, ours is faster.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        task: what is done.
        competitor: what it is compared with; `{torch}` stands for the version the result names.
        result: name of the JSON file in `results/`.
        value: from its rows to the number shown.
        command: what measures it, below `benchmarks/`; the rows of one result may stand in several claims.
        minutes: about how long that takes on two cores; 0 where the table's command does not rerun it.
        gpu: measured on a GPU only.
        threads: of the rows it reads, where the result holds several counts.
    """

    task: str
    competitor: str
    result: str
    value: Callable[[Sequence[Row]], str]
    command: str
    minutes: float = 0
    gpu: bool = False
    threads: int | None = None

    @property
    def path(self) -> Path:
        """The file of the result."""
        return RESULTS / f"{self.result}.json"

    def row(self) -> list[str]:
        """Return the cells: task, competitor, number, command, date, hardware.

        Raises:
            ValueError: the result no longer has the rows that the claim reads.
        """
        command = f"`python benchmarks/{self.command}`"
        if not self.path.exists():
            return [self.task, self.competitor, "not measured", command, "-", "-"]
        result = json.loads(self.path.read_text())
        machine = result["machine"]
        try:
            number = self.value(result["rows"])
        except (LookupError, statistics.StatisticsError) as error:
            raise ValueError(f"{self.path.name} has no row for {self.task!r}: {error}") from error
        competitor = self.competitor.format_map({**machine, **{p: f"{p} {v}" for p, v in machine.items()}})
        return [self.task, competitor, number, command, result["date"], _hardware(machine, self.threads)]


def _hardware(machine: dict[str, Any], threads: int | None) -> str:
    if "gpu" in machine:
        return machine["gpu"]
    if threads is None:
        threads = machine["cores"] if machine["threads"] == "default" else machine["threads"]
    return f"{machine['processor']}, {threads} thread{'s' if str(threads) != '1' else ''}"


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values.

    Raises:
        LookupError: there is none.
    """
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise LookupError(wanted)
    return found


def spread(key: str, **wanted: Any) -> Callable[[Sequence[Row]], str]:
    """Return a reader of the median ratio under `key` and its range, over the rows that have these values."""

    def read(rows: Sequence[Row]) -> str:
        values = [row[key] for row in where(rows, **wanted) if isinstance(row.get(key), int | float)]
        middle = f"{statistics.median(values):.3g}"
        return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"

    return read


def one(key: str, form: str = "{:.3g}", **wanted: Any) -> Callable[[Sequence[Row]], str]:
    """Return a reader of one value."""
    return lambda rows: form.format(where(rows, **wanted)[0][key])


def _solvers(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{row['solver']} {row['ratio']:.3g}" for row in where(rows, network="2x128") if "ratio" in row
    )


def _published(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row['upper_bound']:.6g} ({row['reference']:.6g})" for row in rows if row["reference"])


def _share_certified(rows: Sequence[Row]) -> str:
    return "; ".join(
        f"{row['norm']} {row['epsilon']}: {row['certified']:.3g} ({row['under_attack']:.3g})"
        for row in where(rows, network="mipverify 784-500-10")
        if (row["norm"], row["epsilon"]) in (("l2", 0.3), ("linf", 0.05))
    )


def _decided(rows: Sequence[Row]) -> str:
    decided = sum(row["PROVED"] + row["REFUTED"] for row in rows)
    return f"{decided} of {decided + sum(row['UNKNOWN'] for row in rows)} decided"


def _functions_kept(rows: Sequence[Row]) -> str:
    totals = where(rows, architecture="all")
    count, found, breaks = (sum(row[key] for row in totals) for key in ("count", "found", "breaks"))
    return f"{found} of {count} found, {breaks} broken"


def _repaired(rows: Sequence[Row]) -> str:
    return f"{sum(row['status'] == 'REPAIRED' for row in rows)} of {len(rows)} repaired and proved"


def _merged(rows: Sequence[Row]) -> str:
    drops = {row["method"]: row["drop"] for row in where(rows, part="digits", models=4) if "drop" in row}
    return ", ".join(f"{method} {drop:.2g}" for method, drop in drops.items())


def _largest(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row['solver']} {row['largest_n_in_60s_2GB']}" for row in rows)


def _recovered(rows: Sequence[Row]) -> str:
    ours, theirs = (
        statistics.median(row[key] for row in rows) for key in ("edges", "Euclidean edges, as given")
    )
    return f"{ours:.0%} ({theirs:.0%})"


def _graded(rows: Sequence[Row]) -> str:
    independent = [row for row in rows if row["pairs"].startswith("independent")]
    right = sum(row.get("independent", 0) for row in independent)
    return f"{right} of {right + sum(row.get('uncertain', 0) + row.get('derived', 0) for row in independent)}"


def _best(key: str, label: str, names: Sequence[str], form: str = "{:.3g}") -> Callable[[Sequence[Row]], str]:
    """Return a reader of the median under `key` for every name under `label`."""
    return lambda rows: ", ".join(
        f"{name} {form.format(statistics.median(row[key] for row in where(rows, **{label: name}) if key in row))}"
        for name in names
    )


def _batches(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["n"] <= 64 and row["batch"] > 16]


def _deepest(rows: Sequence[Row]) -> str:
    (row,) = where(rows, layers=65, kind="trained")
    return f"{row['closed_form'] / row['upper_bound']:.3g}"


TORCH = "torch.linalg, {torch}"
LINEAR = "forming the tensor, {torch}"
# fmt: off
CLAIMS = (
    # Kernels
    Claim("eigenpairs of batches, n = 2 to 64, float32", TORCH, "eigh",
          lambda rows: spread("ratio", threads=1, dtype="float32")(_batches(rows)), "eigh.py", 2, threads=1),
    Claim("the same, float64", TORCH, "eigh",
          lambda rows: spread("ratio", threads=1, dtype="float64")(_batches(rows)), "eigh.py", 2, threads=1),
    Claim("PSD projection, n = 2 to 64, float32", TORCH, "eigh",
          lambda rows: spread("ratio_project_psd", threads=1, dtype="float32")(_batches(rows)),
          "eigh.py", 2, threads=1),
    Claim("eigenpairs on a GPU", "torch.linalg, cuSOLVER", "eigh_gpu",
          lambda rows: spread("ratio")([{"ratio": max(row["ratio"].values())} for row in rows]),
          "eigh_gpu.py", gpu=True),
    Claim("factored eigenproblems, d = 1024, h = 64", TORCH, "eigh_factored",
          spread("ratio", d=1024, h=64), "eigh_factored.py", 2),
    Claim("block-tridiagonal solve, 32 x 64", "dense Cholesky, {torch}", "block_tridiagonal",
          spread("solve_ratio_dense", blocks=32, size=64), "block_tridiagonal.py", 0.5),
    Claim("the same", "SuperLU, {scipy}", "block_tridiagonal",
          spread("solve_ratio_splu", blocks=32, size=64), "block_tridiagonal.py", 0.5),
    Claim("the same", "solveh_banded, {scipy}", "block_tridiagonal",
          spread("solve_ratio_banded", blocks=32, size=64), "block_tridiagonal.py", 0.5),
    Claim("extreme eigenpairs, none missed", "ARPACK, {scipy}", "extremal", spread("verified_ratio"),
          "extremal.py", 0.5),
    # Weight spaces
    Claim("symmetries of architectures", "-", "architectures", _functions_kept, "architectures.py"),
    Claim("weight matching, 784-1024-1024-1024-10", "{rebasin}", "alignment",
          one("rebasin / weight matching", part="planted", h=1024), "alignment.py"),
    Claim("the same, 2048 wide", "coordinate descent as published, {scipy}", "alignment",
          one("plain / weight matching", part="planted", h=2048), "alignment.py"),
    Claim("merging 4 digit classifiers, points lost", "the plain average", "merging", _merged, "merging.py digits"),
    Claim("barrier between two transformers", "permutations", "continuous_symmetries",
          _best("barrier", "method", ("permutations", "continuous")), "continuous_symmetries.py"),
    Claim("barrier between transformers modulo 113", "no alignment", "modular_addition",
          lambda rows: _best("barrier", "method", ("as they are", "permutations"))(where(rows, pair="median of ten")),
          "modular_addition.py"),
    Claim("family trees of fine-tuned networks, edges found", "Euclidean spanning tree", "lineage",
          _recovered, "lineage.py"),
    Claim("independent networks called so", "-", "provenance", _graded, "provenance.py"),
    Claim("one equivariant layer", "per-block code, {torch}", "weight_space_layers",
          lambda rows: spread("per_block / ours")([row for row in rows if "per_block / ours" in row]),
          "weight_space_layers.py", 1),
    Claim("fitting 1797 SIRENs", "one after the other, {torch}", "weight_zoos",
          one("one_by_one_ratio", what="digits 2-16-16-1"), "weight_zoos.py", 4),
    Claim("digits from weights of SIRENs, accuracy", "perceptron on all weights", "inr_classification",
          lambda rows: _best("test_accuracy", "family", ("deep weight space", "flat"))(
              [row for row in where(rows, data="digits") if row["steps"] in (4500, 1500)]),
          "inr_classification.py digits"),
    Claim("CNN accuracy from weights, Kendall's tau", "boosting on weight statistics", "cnn_generalization",
          _best("mean_tau", "method", ("neural graph + weight statistics", "weight statistics")),
          "cnn_generalization.py"),
    Claim("the same over several architectures", "boosting on weight statistics", "mixed_architectures",
          _best("tau", "method", ("neural graph", "weight statistics")), "mixed_architectures.py"),
    Claim("dilating digits by their weights, error x 100", "gain and offset of pixels", "inr_editing",
          lambda rows: f"{min(row['test_error_e2'] for row in rows if 'test_error_e2' in row):.3g}"
                       f" ({next(row['stretched_error_e2'] for row in rows if 'stretched_error_e2' in row):.3g})",
          "inr_editing.py"),
    Claim("adapting classifiers by their weights, accuracy", "one change for all", "domain_adaptation",
          _best("after", "family", ("deep weight space", "shared change")), "domain_adaptation.py"),
    Claim("a learned optimizer, its loss / Adam's after 100 steps", "Adam", "learned_optimizer",
          one("ratio to Adam", optimizer="neural graph", setting="16 hidden", steps=100), "learned_optimizer.py"),
    # Certificates
    Claim("bounds of the published networks (published)", "LipSDP, Fazlyab et al. 2019", "lipschitz_bounds",
          _published, "lipschitz_bounds.py", 0.5),
    Claim("LipSDP, 2 layers of 128", "{cvxopt}, {sdpa-python}, {scs}", "lipsdp", _solvers, "lipsdp.py"),
    Claim("largest LipSDP network 2xn in 60 s and 2 GB", "{cvxopt}, {sdpa-python}, {clarabel}, {scs}", "lipsdp_largest",
          _largest, "lipsdp.py --largest"),
    Claim("LipSDP of 1000 networks in one call", "one after another", "lipsdp_batch",
          lambda rows: spread("ratio")(where(rows, networks=1000)), "lipsdp_batch.py", 1),
    Claim("bound of a chain of 65 layers, theirs / ours", "closed form", "deep_chains", _deepest, "deep_chains.py"),
    Claim("bound of a convolutional network", "product of norms, 446", "convolutional_bounds",
          one("upper_bound", "{:.4g}", network="kw_provable/mnist.pth"), "convolutional_bounds.py"),
    Claim("Lipschitz bounds of ACAS Xu over property 3, theirs / ours", "bounds for all inputs", "acasxu_lipschitz",
          one("global / local, median", region="property 3"), "acasxu.py lipschitz"),
    Claim("local l-infinity bounds, theirs / ours", "interval arithmetic on the Jacobian, {torch}", "local_lipschitz",
          spread("interval / ours, median"), "local_lipschitz.py", 2),
    Claim("ACAS Xu properties 1 to 4, 45 networks", "-", "acasxu_properties", _decided, "acasxu.py properties"),
    Claim("certified accuracy, MNIST 784-500-10 (under attack)", "PGD", "robust_accuracy",
          _share_certified, "robust_accuracy.py"),
    Claim("repair of ACAS Xu networks", "-", "repair_networks", _repaired, "repair.py networks"),
    Claim("repair of linear regressions, seconds", "robust counterpart", "repair_regression",
          lambda rows: f"{where(rows, inputs=100)[0]['seconds, with proof']:.3g}"
                       f" ({where(rows, inputs=100)[0]['seconds, robust counterpart without proof']:.2g})",
          "repair.py regression"),
    # Interpretability
    Claim("bilinear layers in factored form, d = 1024, h = 64", LINEAR, "decompose",
          spread("ratio", task="layer", size="d=1024 h=64 outputs=4"), "decompose.py", 3),
    Claim("similarity of two bilinear layers, d = 784", LINEAR, "decompose",
          spread("ratio", task="similarity"), "decompose.py", 3),
    Claim("heads and gated layers against the network, largest error", "-", "circuits_of_architectures",
          lambda rows: f"{rows[0]['largest_score_error']:.2g}", "circuits_of_architectures.py"),
    Claim("MNIST from 20 eigenvectors per class", "the network", "bilinear_mnist",
          lambda rows: f"{where(rows, eigenvectors_per_class=20)[0]['test_accuracy']:.4g}"
                       f" ({where(rows, width=512, seed=42)[0]['test_accuracy']:.4g})", "bilinear_mnist.py"),
    Claim("character interactions from weights, correlation with interventions", "-", "bilinear_text",
          spread("correlation", intervention="pairs"), "bilinear_text.py"),
    Claim("line energy of networks that multiply in Z59, S4", "-", "group_tasks",
          lambda rows: ", ".join(f"{where(rows, kind='task', group=g)[0]['line_energy']:.3g}" for g in ("Z59", "S4")),
          "group_tasks.py"),
    Claim("a TopK autoencoder's training step", "plain PyTorch, {torch}", "autoencoder_step",
          one("over ours", method="plain PyTorch"), "autoencoder_step.py", 3),
    Claim("the same", "{eai-sparsify}", "autoencoder_step", one("over ours", method="sparsify"),
          "autoencoder_step.py", 3),
    Claim("the same, clipping gradients", "{dictionary-learning}", "autoencoder_step",
          one("over ours", method="dictionary-learning"), "autoencoder_step.py", 3),
    Claim("the same on a GPU", "sparsify with Triton", "autoencoder_step_gpu",
          one("over ours", method="sparsify"), "autoencoder_step.py", gpu=True),
    Claim("FVU of hidden activations, 16 of 2048 features", "ReLU, 27 features", "feature_dictionaries",
          lambda rows: _best("fvu", "rule", ("TopK", "ReLU"))(where(rows, network="mnist 784-256-10")),
          "feature_dictionaries.py"),
    Claim("loss of a bilinear autoencoder, d = 256", "materialized matrices, {torch}", "bilinear_autoencoders",
          one("time_ratio", loss=256), "bilinear_autoencoders.py"),
    Claim("planted functions recovered, mean cosine", "-", "operator_autoencoders",
          one("mean", recovery="functions, truncated modes, proximal gradient"), "operator_autoencoders.py"),
    Claim("memorization by autoencoders, 10 samples", "898 samples", "latent_dynamics",
          lambda rows: ", ".join(f"{where(rows, space='input', training_samples=n)[0]['memorization']:.2g}"
                                 for n in (10, 898)), "latent_dynamics.py"),
    # Scale
    Claim("2,000 checkpoints inspected, compared, processor seconds", "-", "scaling",
          lambda rows: ", ".join(f"{where(rows, what='growth', task=task, along='number', size=2000)[0]['seconds']:.3g}"
                                 for task in ("inspect", "compare")), "scaling.py"),
    Claim("the same killed and resumed: equal", "one run without a kill", "scaling",
          lambda rows: " and ".join("yes" if row["equal"] else "NO" for row in where(rows, what="kill")), "scaling.py"),
)
# fmt: on
