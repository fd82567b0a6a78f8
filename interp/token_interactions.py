"""How the last two tokens decide the next one, read from the weights of a bilinear transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.bilinear_transformer import BilinearTransformer
from weightspace.errors import ShapeError

PATHS = ("direct", "current x previous", "current x current", "previous x previous", "context")


@dataclass(frozen=True)
class TokenTriple:
    """Two tokens in the order of the text, the one that may follow, and the interaction in logits."""

    previous: int
    current: int
    next: int
    interaction: float


@dataclass(frozen=True, eq=False, repr=False)
class TokenInteractions:
    r"""Logits of the next token as a function of the last two, all other tokens being the mean token.

    All tensors are (v, v, v) with the axes next, current, previous, in float64, unless said otherwise.

    Attributes:
        paths: the summands of the logits by the way they take through the network, with the residual stream
            as $r = r_a + r_b + r_0$: what the current token wrote (itself, and what the heads copy from it),
            what the heads copied from the previous one, and the rest. "direct" is $u_c \cdot r$, past the MLP;
            "current x previous" $2\, r_a^\top B_c r_b$, the AND of both in the MLP; "current x current" and
            "previous x previous" the squares; "context" what has $r_0$ in it.
        attention: of every head from the current token to the previous one, (heads, v, v), axes head,
            current, previous.
        position: of the current token.
    """

    paths: dict[str, Tensor]
    attention: Tensor
    position: int

    @property
    def logits(self) -> Tensor:
        """Sum of the paths."""
        return torch.stack(list(self.paths.values())).sum(0)

    @property
    def interaction(self) -> Tensor:
        """What of the logits belongs to the pair and the next token, and to no two of the three alone."""
        return isolate_interaction(self.logits)

    @property
    def shares(self) -> dict[str, float]:
        r"""Share of every path in the interaction, $\langle P, T \rangle / \langle T, T \rangle$; they sum to 1."""
        total = self.interaction
        return {
            name: float((isolate_interaction(path) * total).sum() / total.square().sum())
            for name, path in self.paths.items()
        }

    @property
    def bigram(self) -> Tensor:
        """Probability of the next token given the current one, (next, current), over mean previous tokens."""
        return self.logits.mean(2).softmax(0)

    def strongest(self, count: int = 20, *, sign: int = 1) -> list[TokenTriple]:
        """Return the triples of largest interaction of that sign, among those that matter to the network.

        Its own `bigram` must give the second token more than one part in v after the first: of pairs that
        never occur the weights say something, too, but nothing that training looked at. For a negative
        interaction, the third after the second likewise: only what usually follows can be suppressed.
        """
        size = len(self.bigram)
        expected = self.bigram > 1 / size
        matters = expected[None] if sign > 0 else expected[None] & expected[:, :, None]
        values = torch.where(matters, sign * self.interaction, 0.0).flatten()
        found = values.topk(min(count, len(values)))
        return [
            TokenTriple(index % size, index // size % size, index // size**2, sign * value)
            for value, index in zip(found.values.tolist(), found.indices.tolist(), strict=True)
            if value > 0
        ]

    def __repr__(self) -> str:
        share = self.shares["current x previous"]
        return f"TokenInteractions({len(self.logits)} tokens, {share:.0%} of the interaction by the product)"


@dataclass(frozen=True, eq=False, repr=False)
class PairIntervention:
    r"""Interactions read from weights against those measured by writing token pairs into real contexts.

    Attributes:
        predicted, measured: isolated interactions, shape (v, v, v), axes next, current, previous.
        correlation, slope: of measured against predicted over all triples; the line passes through 0, where
            both have their mean.
        contexts: how many contexts the measurement averages.
    """

    predicted: Tensor
    measured: Tensor
    correlation: float
    slope: float
    contexts: int

    def __repr__(self) -> str:
        return (
            f"PairIntervention(correlation {self.correlation:.3f}, slope {self.slope:.2f} over "
            f"{self.measured.numel()} triples in {self.contexts} contexts)"
        )


def isolate_interaction(logits: Tensor) -> Tensor:
    """Subtract from (v, v, v) the sum of functions of two axes each that leaves least (means along every axis)."""
    for axis in range(3):
        logits = logits - logits.mean(axis, keepdim=True)
    return logits


def read_interactions(model: BilinearTransformer, *, position: int | None = None) -> TokenInteractions:
    r"""Read from the weights alone what every pair of last tokens does to every next token.

    Every other token is replaced by the mean of all embeddings. Then attention scores, values and the form
    $B_c = \mathrm{sym}(W^\top \mathrm{diag}(P^\top u_c)\, V)$ of every token c give
    $$\ell_c(a, b) = u_c \cdot r + r^\top B_c r,\quad r = r_a + r_b + r_0,$$
    and its summands. Of the pair alone, at position 1, this is the network exactly. Memory grows with $v^3$:
    for characters, not for words.

    Args:
        position: of the current token; default the last of the context.
    Raises:
        ShapeError: there is no such position, or no token before it.
    Source: Elhage et al., A mathematical framework for transformer circuits (2021), on the query-key and the
        output-value circuit; Pearce, Dooms, Rigg, Oramas, Sharkey, Bilinear MLPs enable weight-based
        mechanistic interpretability (2024), section 5.
    """
    context = len(model.positions)
    position = context - 1 if position is None else position
    if not 1 <= position < context:
        raise ShapeError(
            f"position must be from 1 to {context - 1}, the last of the context; it is {position}"
        )
    embedding, places = (weight.detach().double() for weight in (model.embedding.weight, model.positions))
    current, previous = embedding + places[position], embedding + places[position - 1]
    others = embedding.mean(0) + places[: position - 1]

    query, *keys = (
        _by_head(layer.weight, model.heads, tokens)
        for layer, tokens in (
            (model.query, current), (model.key, current), (model.key, previous), (model.key, others),
        )
    )  # fmt: skip
    scores = (  # axes head, current, previous, place looked at
        (query * keys[0]).sum(-1)[:, :, None, None],
        (query @ keys[1].mT)[..., None],
        (query @ keys[2].mT)[:, :, None],
    )
    every = (model.heads, len(embedding), len(embedding), -1)
    pattern = (torch.cat([score.expand(every) for score in scores], -1) / query.shape[-1] ** 0.5).softmax(-1)

    moved = [_moved(model, tokens) for tokens in (current, previous, others)]
    from_current = current[:, None] + torch.einsum("hab,had->abd", pattern[..., 0], moved[0])
    from_previous = torch.einsum("hab,hbd->abd", pattern[..., 1], moved[1])
    from_others = torch.einsum("habs,hsd->abd", pattern[..., 2:], moved[2])
    paths = _paths(model, from_current, from_previous, from_others)
    return TokenInteractions(dict(zip(PATHS, paths, strict=True)), pattern[..., 1].clone(), position)


def confirm_interactions(
    interactions: TokenInteractions, model: BilinearTransformer, contexts: Tensor
) -> PairIntervention:
    """Write every pair of tokens into the end of real contexts and compare the logits with those predicted.

    Args:
        interactions: of the model.
        contexts: tokens, shape (n, position + 1); the last two of each are replaced.
    Raises:
        ShapeError: the contexts have another length.
    """
    size = len(interactions.logits)
    if contexts.ndim != 2 or contexts.shape[1] != interactions.position + 1 or not len(contexts):
        raise ShapeError(
            f"the interactions were read at position {interactions.position} and need contexts "
            f"(n, {interactions.position + 1}); got {tuple(contexts.shape)}"
        )
    tokens = torch.arange(size, device=contexts.device)
    pairs = torch.cartesian_prod(tokens, tokens).flip(1)  # rows (previous, current), the current one outside
    total = torch.zeros_like(interactions.logits)
    with torch.no_grad():
        for context in contexts:
            rows = torch.cat([context[:-2].expand(len(pairs), -1), pairs], 1)
            logits = model(rows)[:, -1].to(total)
            total += logits.reshape(size, size, size).permute(2, 0, 1) / len(contexts)
    predicted, measured = interactions.interaction, isolate_interaction(total)
    product = float((predicted * measured).sum())
    square = float(predicted.square().sum())
    correlation = product / (square * float(measured.square().sum())) ** 0.5
    return PairIntervention(predicted, measured, correlation, product / square, len(contexts))


def _by_head(weight: Tensor, heads: int, x: Tensor) -> Tensor:
    """Return the tokens' queries, keys or values, (heads, tokens, width of a head)."""
    return (x @ weight.detach().double().mT).unflatten(-1, (heads, -1)).transpose(0, 1)


def _moved(model: BilinearTransformer, x: Tensor) -> Tensor:
    """Return what every head writes when it looks at a token, O V x, (heads, tokens, width)."""
    output = model.output.weight.detach().double().unflatten(1, (model.heads, -1))
    return torch.einsum("dhq,htq->htd", output, _by_head(model.value.weight, model.heads, x))


def _paths(model: BilinearTransformer, a: Tensor, b: Tensor, rest: Tensor) -> list[Tensor]:
    """Split the logits of a + b + rest, each (v, v, width), in the order of `PATHS`."""
    left, right, output, head = (
        layer.weight.detach().double()
        for layer in (model.mlp.left, model.mlp.right, model.mlp.output, model.head)
    )

    def form(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("ch,abh->cab", head @ output, (x @ left.mT) * (y @ right.mT))

    everything = a + b + rest
    split = [form(a, b) + form(b, a), form(a, a), form(b, b)]
    context = form(everything, everything) - split[0] - split[1] - split[2]
    return [torch.einsum("cd,abd->cab", head, everything), *split, context]
