"""The figure of a circuit for pairs of tokens; matplotlib is imported only when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.token_interactions import PairIntervention, TokenInteractions
from weightspace.errors import ShapeError
from weightspace.report.figures import BLUE, GRAY, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def interaction_figure(
    interactions: TokenInteractions,
    intervention: PairIntervention,
    *,
    token: int,
    names: Sequence[str],
    shown: int = 12,
) -> Figure:
    """Draw the interactions that decide one token, and how well all of them were predicted.

    Left: the interaction of every current (row) and previous (column) token in the logit of `token`, red for
    more, with dots on the pairs that the network expects. Middle: measured against predicted, all triples.
    Right: the strongest triples of both signs among the expected pairs, as predicted (bars) and as measured
    (dots).

    Args:
        token: whose logit the left panel is about.
        names: of all tokens, short.
        shown: how many triples of each sign.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        ShapeError: there is no such token, or the names do not fit.
    """
    size = len(interactions.logits)
    if not 0 <= token < size or len(names) != size:
        raise ShapeError(
            f"interaction_figure needs a token from 0 to {size - 1} and {size} names; "
            f"got token {token} and {len(names)} names"
        )
    figure = new_figure(13.0, 4.6)
    picture, scatter, bars = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.15, 1.0, 0.7]})
    _draw_matrix(picture, interactions.interaction[token].numpy(), names)
    pairs = (interactions.bigram > 1 / size).nonzero()
    picture.scatter(pairs[:, 1].tolist(), pairs[:, 0].tolist(), s=3, color="black")
    picture.set_title(f"interaction in the logit of “{names[token]}”, from the weights", fontsize=9)

    predicted, measured = intervention.predicted.flatten(), intervention.measured.flatten()
    low, high = min(predicted.min(), measured.min()).item(), max(predicted.max(), measured.max()).item()
    scatter.plot([low, high], [low, high], color=GRAY, linewidth=0.8)
    scatter.hexbin(predicted.tolist(), measured.tolist(), gridsize=60, bins="log", cmap="Blues", mincnt=1)
    scatter.set_xlabel("predicted from the weights (logits)", fontsize=8)
    scatter.set_ylabel("measured by writing the pair into text (logits)", fontsize=8)
    scatter.set_title(
        f"{len(predicted):,} triples: correlation {intervention.correlation:.2f}, "
        f"slope {intervention.slope:.2f}",
        fontsize=9,
    )
    triples = [*interactions.strongest(shown), *reversed(interactions.strongest(shown, sign=-1))]
    for place, triple in enumerate(reversed(triples)):
        bars.barh(place, triple.interaction, color=RED if triple.interaction > 0 else BLUE)
        value = intervention.measured[triple.next, triple.current, triple.previous].item()
        bars.plot([value], [place], marker="o", markersize=3, color="black")
    labels = [f"{names[entry.previous]}{names[entry.current]} → {names[entry.next]}" for entry in triples]
    bars.set_yticks(range(len(triples)), labels[::-1], fontsize=8, family="monospace")
    bars.axvline(0.0, color="black", linewidth=0.5)
    bars.set_title("predicted (bars), measured (dots)", fontsize=9)
    for axes in (scatter, bars):
        axes.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _draw_matrix(axes, values, names: Sequence[str]) -> None:
    limit = abs(values).max() or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    axes.set_xticks(range(len(names)), list(names), fontsize=7, family="monospace")
    axes.set_yticks(range(len(names)), list(names), fontsize=7, family="monospace")
    axes.set_xlabel("previous token", fontsize=8)
    axes.set_ylabel("current token", fontsize=8)
    axes.tick_params(length=0)
