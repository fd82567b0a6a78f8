"""Circuits of a bilinear transformer read from its weights, and confirmed by writing other characters into text.

One layer, 4 heads, width 64, a bilinear MLP of 128 units, no normalization, trained on the language reference in
Python's own documentation (pydoc_data.topics, letters and spaces only, nothing is downloaded). From the weights alone
comes what every pair of last characters does to every next one; then

pairs: every pair is written into held-out contexts, interactions against those predicted, all 27^3 triples;
swaps: in held-out contexts as they are only the previous character is replaced by another; change of all logits;
circuits: the strongest interactions, in the places of the held-out text where their two characters stand: the logit
    of the third, centered over all characters, less its mean with every other character in the place of the first.

Three seeds, about one minute of one core each; the figure of the first in docs/bilinear_text.png.

    OMP_NUM_THREADS=1 python benchmarks/bilinear_text.py
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor

from interp.bilinear_transformer import BilinearTransformer
from interp.classifier_training import train_classifier
from interp.interaction_plots import interaction_figure
from interp.token_interactions import (
    TokenInteractions,
    TokenTriple,
    confirm_interactions,
    read_interactions,
)

SEEDS = (0, 1, 2)
CONTEXT = 32
NAMES = "␣abcdefghijklmnopqrstuvwxyz"
FIGURE = Path(__file__).parent.parent / "docs" / "bilinear_text.png"


def text() -> Tensor:
    """The language reference as indices of characters, 0 for anything but a letter."""
    letters = re.sub("[^a-z]+", " ", " ".join(topics[name] for name in sorted(topics)).lower())
    return torch.tensor([0 if c == " " else NAMES.index(c) for c in letters])


def windows(data: Tensor) -> tuple[Tensor, Tensor]:
    count = (len(data) - 1) // CONTEXT
    return data[: count * CONTEXT].reshape(count, -1), data[1 : count * CONTEXT + 1].reshape(count, -1)


def centered_logits(model: BilinearTransformer, contexts: Tensor) -> Tensor:
    with torch.no_grad():
        logits = torch.cat([model(part)[:, -1] for part in contexts.split(2048)]).double()
    return logits - logits.mean(1, keepdim=True)


def swaps(
    model: BilinearTransformer, interactions: TokenInteractions, contexts: Tensor, generator: torch.Generator
) -> dict[str, object]:
    """Replace the previous character of every context by a random one; predicted against measured change."""
    changed = contexts.clone()
    changed[:, -2] = torch.randint(len(NAMES), (len(contexts),), generator=generator)
    measured = centered_logits(model, changed) - centered_logits(model, contexts)
    logits = interactions.logits - interactions.logits.mean(0)
    current, old, new = contexts[:, -1], contexts[:, -2], changed[:, -2]
    predicted = (logits[:, current, new] - logits[:, current, old]).T
    flat = torch.stack([predicted.flatten(), measured.flatten()])
    return {
        "contexts": len(contexts),
        "correlation": round(float(torch.corrcoef(flat)[0, 1]), 3),
        "slope": round(float((flat[0] * flat[1]).sum() / flat[0].square().sum()), 3),
    }


def circuit(
    model: BilinearTransformer, interactions: TokenInteractions, data: Tensor, triple: TokenTriple
) -> dict[str, object]:
    """The next character where the pair stands in held-out text, against all others in the place of its first."""
    rows = data.unfold(0, CONTEXT, 1)
    rows = rows[(rows[:, -2] == triple.previous) & (rows[:, -1] == triple.current)][:100]
    size = len(NAMES)
    others = torch.tensor([token for token in range(size) if token != triple.previous])
    changed = rows.repeat_interleave(len(others), 0)
    changed[:, -2] = others.repeat(len(rows))
    logits = interactions.logits[:, triple.current] - interactions.logits[:, triple.current].mean(0)
    entry: dict[str, object] = {
        "circuit": f"{NAMES[triple.previous]}{NAMES[triple.current]} -> {NAMES[triple.next]}",
        "interaction": round(triple.interaction, 2),
        "places": len(rows),
    }
    if len(rows):
        before, after = (centered_logits(model, contexts) for contexts in (rows, changed))
        change = before[:, triple.next].mean() - after[:, triple.next].mean()
        expected = logits[triple.next, triple.previous] - logits[triple.next, others].mean()
        entry |= {
            "predicted_change": round(float(expected), 2),
            "measured_change": round(float(change), 2),
            "probability": round(float(before.softmax(1)[:, triple.next].mean()), 4),
            "probability_swapped": round(float(after.softmax(1)[:, triple.next].mean()), 4),
        }
    return entry


def main() -> None:
    data = text()
    split = int(0.95 * len(data))
    x, y = windows(data[:split])
    x_test, y_test = windows(data[split:])
    rows: list[dict[str, object]] = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = BilinearTransformer(len(NAMES), 64, heads=4, hidden=128, context=CONTEXT)
        started = time.process_time()
        run = train_classifier(
            model,
            x,
            y,
            test=(x_test, y_test),
            epochs=12,
            batch_size=64,
            learning_rate=5e-3,
            weight_decay=0.1,
            noise=0.0,
            progress=sys.stderr.isatty(),
            generator=generator,
        )
        seconds = time.process_time() - started
        with torch.no_grad():
            loss = F.cross_entropy(model(x_test).flatten(0, 1), y_test.flatten())
        rows.append(
            {
                "seed": seed,
                "characters": split,
                "test_accuracy": round(run.test_accuracy or 0.0, 4),
                "test_loss_nats": round(float(loss), 4),
                "cpu_seconds": round(seconds, 1),
            }
        )
        started = time.process_time()
        interactions = read_interactions(model)
        rows.append(
            {
                "seed": seed,
                "reading_cpu_seconds": round(time.process_time() - started, 3),
                **{f"share: {name}": round(share, 3) for name, share in interactions.shares.items()},
            }
        )
        contexts = data[split:].unfold(0, CONTEXT, 1)
        contexts = contexts[torch.randperm(len(contexts), generator=generator)]
        pairs = confirm_interactions(interactions, model, contexts[:32])
        rows.append(
            {
                "seed": seed,
                "intervention": "pairs",
                "contexts": 32,
                "correlation": round(pairs.correlation, 3),
                "slope": round(pairs.slope, 3),
            }
        )
        swapped = swaps(model, interactions, contexts[:4000], generator)
        rows.append({"seed": seed, "intervention": "swaps", **swapped})
        for sign in (1, -1):
            for triple in interactions.strongest(8, sign=sign):
                measured = pairs.measured[triple.next, triple.current, triple.previous]
                rows.append(
                    {
                        "seed": seed,
                        **circuit(model, interactions, data[split:], triple),
                        "measured_interaction": round(float(measured), 2),
                    }
                )
        if seed == 0:
            figure = interaction_figure(interactions, pairs, token=0, names=NAMES)
            figure.savefig(FIGURE, dpi=100)
        for row in rows:
            if row["seed"] == seed:
                print(row, file=sys.stderr, flush=True)
    write("bilinear_text", rows, "torch", "weightspace")


if __name__ == "__main__":
    main()
