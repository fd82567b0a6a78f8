r"""How often a classifier is right whatever is done to its input within a ball, from below and from above."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from certify import checker
from certify.adversarial_search import AdversarialExamples, find_adversarial_examples
from certify.classifiers import classifier, lower_margins, rebuild, require_ball
from certify.pair_constants import PairConstants, bound_pairs
from weightspace.errors import UnsupportedOperationError
from weightspace.network import Network

CONSTANTS, LINEAR = "pair constants", "linear bounds"
_LARGEST = 2**22  # numbers in the widest layer of a batch of regions


@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    r"""Accuracy of a classifier on n samples: clean, certified within a radius, and left by an attack.

    All of it is about the function of the stored weights in real arithmetic: for every sample, certified implies not
    attacked implies correct.

    Attributes:
        epsilon, norm: the balls $\|x' - x\| \le \epsilon$.
        correct: (n,) bool: the right class wins for certain.
        radii: (n,) float64: no $\|x' - x\|$ up to it changes the class; by constants of pairs, 0 where not correct.
        certified: method -> (n,) bool: correct on the whole ball.
        attack: the adversarial examples found; None without an attack.
        constants: of pairs of outputs, with their certificates; None where only linear bounds were asked for.
        seconds: of wall time.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import digits, load
        >>> _, _, images, labels = digits()
        >>> options = {"epsilon": 0.05, "methods": ("linear bounds",), "restarts": 0}
        >>> found = certify.robust_accuracy(load("digits_maxmin"), images[:10], labels[:10], **options)
        >>> bool((found.certified_samples <= found.correct).all())
        True
    """

    epsilon: float
    norm: str
    correct: Tensor
    radii: Tensor
    certified: Mapping[str, Tensor]
    attack: AdversarialExamples | None
    constants: PairConstants | None
    seconds: float

    @property
    def clean_accuracy(self) -> float:
        """Share of samples whose class is right."""
        return _share(self.correct)

    @property
    def certified_samples(self) -> Tensor:
        """(n,) bool: certified by any method."""
        return torch.stack([*self.certified.values(), torch.zeros_like(self.correct)]).any(0)

    @property
    def certified_accuracy(self) -> float:
        """Share of samples that are right on the whole ball; the truth is at least that."""
        return _share(self.certified_samples)

    @property
    def attacked_accuracy(self) -> float:
        """Share of samples that are right and for which no adversarial example was found; the truth is at most that."""
        return _share(self.correct if self.attack is None else self.correct & ~self.attack.found)

    def certified_accuracy_at(self, epsilons: Sequence[float]) -> Tensor:
        """Return the share of samples with a radius of at least each epsilon, (len(epsilons),): by constants alone."""
        limits = torch.as_tensor(epsilons, dtype=torch.float64)
        return (self.correct & (self.radii >= limits[:, None])).double().mean(1)

    def __repr__(self) -> str:
        return (
            f"RobustAccuracy({len(self.correct)} samples, {self.norm} {self.epsilon:g}: "
            f"clean {self.clean_accuracy:.4f}, attacked {self.attacked_accuracy:.4f}, "
            f"certified {self.certified_accuracy:.4f})"
        )


def robust_accuracy(
    model_or_network: nn.Module | Network,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: str = "l2",
    methods: Sequence[str] = (CONSTANTS, LINEAR),
    constants: PairConstants | None = None,
    clip: tuple[float, float] | None = None,
    steps: int = 40,
    restarts: int = 4,
    executor: Executor | None = None,
    generator: torch.Generator | None = None,
) -> RobustAccuracy:
    r"""Bound the accuracy of a classifier under perturbations $\|x' - x\| \le \epsilon$ from below and from above.

    From below, "pair constants": $r = \min_j (f_y(x) - f_j(x)) / L_{yj}$ with a constant of every difference of two
    outputs, valid everywhere; "linear bounds": $f_y - f_j > 0$ by linear bounds over the ball of each sample. Margins
    at x are enclosures. From above: an attack by projected gradient descent.

    Args:
        x: (n, ...) floating point, in the network's own units.
        y: (n,) integers, the right classes.
        epsilon: of the norm, in the units of x.
        methods: which certificates, of "pair constants" and "linear bounds".
        constants: what `bound_pairs` returned for this network and norm; computed when None.
        clip: the range of valid inputs, as (0, 1) for images. The attack stays inside; l-infinity balls are cut to it.
        steps, restarts: of the attack; restarts=0 is none.
        executor: runs the pairs of outputs.
        generator: of the attack's starting points.
    Raises:
        ShapeError: x and y do not fit each other or the network, classes that do not exist, a negative epsilon, x
            outside `clip`.
        NonFiniteError: NaN or infinite weights, x or epsilon.
        UnsupportedOperationError: an operation, norm or method without a rule, or constants of another network or norm.
    Source: Tsuzuku, Sato, Sugiyama, Lipschitz-margin training (2018), proposition 1, with constants of pairs; Zhang,
    Weng, Chen, Hsieh, Daniel (2018) for linear bounds.

    Examples:
        >>> import certify
        >>> from weightspace.bundled import digits, load
        >>> _, _, images, labels = digits()
        >>> network = load("digits_maxmin")
        >>> options = {"epsilon": 0.05, "methods": ("linear bounds",), "steps": 5, "restarts": 1}
        >>> found = certify.robust_accuracy(network, images[:10], labels[:10], **options)
        >>> found.certified_accuracy <= found.attacked_accuracy <= found.clean_accuracy
        True
    """
    started = time.perf_counter()
    unknown = [method for method in methods if method not in (CONSTANTS, LINEAR)]
    if unknown:
        raise UnsupportedOperationError(
            f"methods has {unknown[0]!r}; choose from {CONSTANTS!r} and {LINEAR!r}"
        )
    network = classifier(model_or_network, x, y)
    require_ball(x, epsilon, norm, clip)
    model = rebuild(network)
    points, labels = x.detach().cpu().flatten(1).double().numpy(), y.detach().cpu().long().numpy()
    margins = lower_margins(model, points, labels)
    correct = margins.min(axis=1, initial=np.inf) > 0
    radii, certified = np.zeros(len(labels)), {}
    if CONSTANTS in methods:
        if constants is None:
            constants = bound_pairs(
                network, norm=norm, pairs=_needed(labels[correct], margins.shape[1]), executor=executor
            )
        elif (constants.network_hash, constants.norm) != (network.hash, norm):
            raise UnsupportedOperationError(
                f"constants is of another network or of the {constants.norm} norm; leave it out to have it computed"
            )
        radii = certified_radii(margins, labels, constants.values)
        certified[CONSTANTS] = torch.from_numpy(correct & (radii >= epsilon))
    if LINEAR in methods:
        held = np.zeros(len(labels), dtype=bool)
        held[correct] = _hold_everywhere(model, points[correct], labels[correct], epsilon, norm, clip)
        certified[LINEAR] = torch.from_numpy(held)
    attack = None
    if restarts:
        attack = find_adversarial_examples(
            network,
            x,
            y,
            epsilon=epsilon,
            norm=norm,
            clip=clip,
            steps=steps,
            restarts=restarts,
            generator=generator,
        )
        for method, mask in certified.items():
            if bool((mask & attack.found).any()):
                sample = int((mask & attack.found).nonzero()[0, 0])
                raise AssertionError(
                    f"sample {sample} is certified by {method} and has an adversarial example"
                )
    return RobustAccuracy(
        float(epsilon), norm, torch.from_numpy(correct), torch.from_numpy(radii), certified, attack,
        constants if CONSTANTS in methods else None, time.perf_counter() - started,
    )  # fmt: skip


def certified_radii(margins: np.ndarray, labels: np.ndarray, constants: np.ndarray) -> np.ndarray:
    r"""Return radii below $\min_j m_j / L_{yj}$, rounded so that margins stay positive up to them; (n,).

    Args:
        margins: lower bounds of $f_y - f_j$, (n, outputs).
        constants: upper bounds of L, (outputs, outputs).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = margins / constants[labels]
    # the quotient may have been rounded up: two numbers below it are less than the true one
    ratios = np.nextafter(np.nextafter(ratios, -np.inf), -np.inf)
    ratios[np.arange(len(labels)), labels] = np.inf
    ratios[(margins > 0) & (constants[labels] == 0)] = np.inf
    return np.where((margins > 0).all(axis=1), np.maximum(ratios.min(axis=1, initial=np.inf), 0.0), 0.0)


def _hold_everywhere(
    model: checker.Model,
    points: np.ndarray,
    labels: np.ndarray,
    epsilon: float,
    norm: str,
    clip: tuple[float, float] | None,
) -> np.ndarray:
    """Return where all margins are positive over the ball of the sample, by linear bounds; (n,) bool."""
    held = np.zeros(len(labels), dtype=bool)
    outputs, widest = model.steps[-1].width, max(step.width for step in model.steps)
    for label in np.unique(labels):
        rows = np.eye(outputs)[label] - np.delete(np.eye(outputs), label, axis=0)
        places = np.flatnonzero(labels == label)
        for part in np.array_split(places, max(1, -(-len(places) * widest // _LARGEST))):
            try:
                with np.errstate(all="ignore"):
                    least = checker.Bounds(model, _balls(points[part], epsilon, norm, clip)).minimum(rows)[0]
            except checker.Refused as error:
                raise UnsupportedOperationError(
                    f"no linear bounds over the balls: {error}; leave {LINEAR!r} out of methods"
                ) from error
            held[part] = (least > 0).all(axis=1)
    return held


def _balls(
    points: np.ndarray, epsilon: float, norm: str, clip: tuple[float, float] | None
) -> checker.Regions:
    if norm == "l2":
        return checker.balls(points, np.full(len(points), float(epsilon)))
    low, high = np.nextafter(points - epsilon, -np.inf), np.nextafter(points + epsilon, np.inf)
    if clip is not None:
        low, high = np.maximum(low, clip[0]), np.minimum(high, clip[1])
    return checker.boxes(low, high)


def _needed(labels: np.ndarray, outputs: int) -> list[tuple[int, int]]:
    """Return the pairs of a right class and any other one."""
    return [(int(label), other) for label in np.unique(labels) for other in range(outputs) if other != label]


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
