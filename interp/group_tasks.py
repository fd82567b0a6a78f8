"""The task of multiplying two elements of a group, and how much of a network is representation theory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.decomposition import decompose
from interp.finite_groups import FiniteGroup
from interp.quadratic_form import QuadraticForm
from interp.recognition import recognize
from interp.representations import irreducible_representations, isotypic_basis, isotypic_projectors
from weightspace.errors import ShapeError
from weightspace.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class GroupData:
    """Pairs of elements as inputs, their products as classes.

    Attributes:
        x, y: of training: one-hot(a) before one-hot(b), shape (m, 2n), and the class ab, shape (m,).
        test_x, test_y: the other pairs; all pairs when all are trained on.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def __repr__(self) -> str:
        return f"GroupData({len(self.x)} training and {len(self.test_x)} test pairs)"


@dataclass(frozen=True, eq=False, repr=False)
class GroupAnalysis:
    r"""What a network with one bilinear layer does with the products of a group.

    H is its `interaction_tensor`, $\phi$ the mean of H over the pairs and answers with the same $c^{-1}ab$,
    and the convolution the function $\phi(c^{-1}ab)$ of c, a, b.

    Attributes:
        group: the group.
        names: of its real irreducible representations, k of them, the trivial one first.
        accuracy: share of all $n^2$ pairs whose product has the largest logit.
        line_energy: share of $\|H\|^2$ in the convolution; see `line_energy`.
        class_energy: share of $\|H\|^2$ in convolutions with a class function, those that no relabeling of
            the task by the group's translations changes; equal to the former for an abelian group.
        block_energy: share of $\|H\|^2$ where a, b and c are in the same representation.
        kernel: $\phi$, shape (n,).
        kernel_energy: share of $\|\phi\|^2$ in each representation, shape (k,).
        purity: energy share of the leading eigenvectors in each representation, shape (k,); see
            `isotypic_purity`; nan for the trivial one.
        explained: share of the centered logits' energy, over all pairs, in the convolution.
        convolution_accuracy, rest_accuracy: of the convolution alone, and of the logits without it. The
            former shows sufficiency only: being a function of $c^{-1}ab$, a convolution is right for all
            pairs as soon as $\phi$ is largest at the identity. The latter shows that nothing else is.
    """

    group: FiniteGroup
    names: tuple[str, ...]
    accuracy: float
    line_energy: float
    class_energy: float
    block_energy: float
    kernel: Tensor
    kernel_energy: Tensor
    purity: Tensor
    explained: float
    convolution_accuracy: float
    rest_accuracy: float

    @property
    def mean_purity(self) -> float:
        """Purity of the representations that are not trivial, weighted by their share in the kernel."""
        weights = self.kernel_energy[1:] / self.kernel_energy[1:].sum()
        return float((weights * self.purity[1:]).nansum())

    def __repr__(self) -> str:
        return (
            f"GroupAnalysis({self.group.name}: accuracy {self.accuracy:.4f}, line energy {self.line_energy:.3f}, "
            f"purity {self.mean_purity:.3f}, explained {self.explained:.3f})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{energy:.3f}</td><td>{purity:.3f}</td></tr>"
            for name, energy, purity in zip(
                self.names, self.kernel_energy.tolist(), self.purity.tolist(), strict=True
            )
        )
        head = "<tr><th>representation</th><th>share of the kernel</th><th>purity</th></tr>"
        return f"<table><caption>{self!r}</caption>{head}{rows}</table>"


def split_products(
    group: FiniteGroup,
    *,
    train_share: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> GroupData:
    """Make the pairs of elements with their products, a random share of them for training.

    Args:
        train_share: in (0, 1]; 1 trains and tests on all pairs, in order.
        generator: of the split; None is a new one with seed 0.
    Raises:
        ShapeError: `train_share` leaves no pair to train on, or is above 1.

    Examples:
        >>> import interp
        >>> data = interp.split_products(interp.FiniteGroup.cyclic(5), train_share=0.6)
        >>> data.x.shape, data.test_x.shape
        (torch.Size([15, 10]), torch.Size([10, 10]))
    """
    count = group.order
    trained = round(train_share * count**2)
    if not 0 < trained <= count**2:
        raise ShapeError(f"train_share must be above 0 and at most 1; it is {train_share}")
    x, y = _all_pairs(group, dtype), group.table.flatten()
    if trained == count**2:
        return GroupData(x, y, x, y)
    order = torch.randperm(count**2, generator=generator or torch.Generator().manual_seed(0))
    train, test = order[:trained], order[trained:]
    return GroupData(x[train], y[train], x[test], y[test])


def interaction_tensor(layer_or_model: nn.Module | Network, group: FiniteGroup) -> Tensor:
    r"""Return what the logits owe to both factors together, H, shape (n, n, n) over c, a, b.

    $$H_{cab} = 2\,(Q_c)_{ab} - \mathrm{mean}_{c'}\, 2\,(Q_{c'})_{ab}$$
    with $Q_c$ the quadratic form of logit c and (a, b) an entry of its block of first and second factor: the
    logits without what depends on a or on b alone, centered since softmax ignores a common shift. float64.

    Args:
        layer_or_model: of one bilinear layer or squares; 2n inputs, one-hot(a) before one-hot(b), n logits.
    Raises:
        ShapeError: the network has other numbers of inputs or outputs.
        UnsupportedOperationError: it is no quadratic form; see `recognize`.

    Examples:
        >>> import interp
        >>> from weightspace.layers import Bilinear
        >>> interp.interaction_tensor(Bilinear(10, 16, 5), interp.FiniteGroup.cyclic(5)).shape
        torch.Size([5, 5, 5])
    """
    return _interaction(recognize_task(layer_or_model, group), group)


def _interaction(form: QuadraticForm, group: FiniteGroup) -> Tensor:
    count = group.order
    left, right = form.left[:, :-1], form.right[:, :-1]
    pairs = torch.einsum("ha,hb->hab", left[:, :count], right[:, count:])
    pairs += torch.einsum("ha,hb->hab", right[:, :count], left[:, count:])
    tensor = (form.output @ pairs.flatten(1)).unflatten(1, (count, count))
    return tensor - tensor.mean(0)


def average_lines(tensor: Tensor, group: FiniteGroup) -> Tensor:
    r"""Average a function of c, a, b, shape (n, n, n), over $c^{-1}ab = g$; returns $\phi(g)$, shape (n,)."""
    _require_cube(tensor, group)
    sums = tensor.new_zeros(group.order)
    sums.index_add_(0, group.differences.flatten().to(tensor.device), tensor.flatten())
    return sums / group.order**2


def line_energy(tensor: Tensor, group: FiniteGroup) -> float:
    r"""Return the share of a tensor's energy in its best convolution, $|G|^2 \|\phi\|^2 / \|H\|^2$.

    $\phi$ is `average_lines`. It is 1 for $H_{cab} = \phi(c^{-1}ab)$ and $1/|G|^2$ expected of a random
    tensor. For addition modulo n it is the share of the discrete Fourier transform over (c, a, b) at the
    frequencies (-k, k, k).

    Args:
        tensor: H, shape (n, n, n) over c, a, b, centered over c. 0 has line energy 0.
    Raises:
        ShapeError: another shape.
    """
    _require_cube(tensor, group)
    total = tensor.square().sum()
    return float(group.order**2 * average_lines(tensor, group).square().sum() / total) if total else 0.0


def isotypic_purity(layer_or_model: nn.Module | Network, group: FiniteGroup) -> Tensor:
    r"""Return how pure the eigenvectors of each representation's output direction are, shape (k,).

    The output direction of $\rho$ is its character, $u_c \propto \chi_\rho(c)$ ($\cos 2\pi kc/n$ for
    addition). A convolution has in it a form whose eigenvectors lie in the part of $\rho$ of both inputs, of
    rank 2 `block` (4 for addition). Purity is the share of the energy of the 2 `block` leading eigenvectors
    in that part, $\mathrm{tr}(P\,(\Pi_\rho \oplus \Pi_\rho)) / \mathrm{tr} P$ with P their projector: the
    same for any basis of a degenerate eigenspace, unless the rank cuts through one. nan for the trivial
    representation, to which centered logits owe nothing, and for a zero form.

    Eigenvectors of a class mislead instead: a class mixes all representations. Squares also need constants,
    which cancel $u^2$ and $v^2$: such an eigenvector among the leading ones counts as impure.

    Raises:
        ShapeError, UnsupportedOperationError: as `interaction_tensor`.
    """
    recognize_task(layer_or_model, group)
    representations = irreducible_representations(group)
    projectors = isotypic_projectors(group)
    directions = torch.stack([representation.character for representation in representations[1:]])
    widest = max(2 * representation.block for representation in representations)
    decomposition = decompose(layer_or_model, directions=directions, top=widest, pad=False)
    purity = torch.full((len(representations),), torch.nan, dtype=torch.float64)
    for index, representation in enumerate(representations[1:]):
        values = decomposition.values[index, : 2 * representation.block].abs()
        kept = values > decomposition.tolerance * values[:1]  # a zero eigenvalue's vector means nothing
        vectors = decomposition.vectors[index, : 2 * representation.block][kept].double()
        halves = vectors.unflatten(1, (2, group.order)) @ projectors[index + 1]
        if len(vectors):
            purity[index + 1] = halves.square().sum() / vectors.square().sum()
    return purity


def analyze_group_task(layer_or_model: nn.Module | Network, group: FiniteGroup) -> GroupAnalysis:
    """Measure how much of a network trained on the products of a group is a convolution, and how pure it is.

    Args:
        layer_or_model: of one bilinear layer or squares; 2n inputs, one-hot(a) before one-hot(b), n logits.
    Raises:
        ShapeError: the network has other numbers of inputs or outputs.
        UnsupportedOperationError: it is no quadratic form; see `recognize`.
    Source: Morwani, Edelman, Oncescu, Zhao, Kakade, Feature emergence via margin maximization (2023), for
        the features to expect; Chughtai, Chan, Nanda, A toy model of universality (2023), for explaining
        logits by representations.

    Examples:
        >>> import interp
        >>> from weightspace.layers import Bilinear
        >>> found = interp.analyze_group_task(Bilinear(10, 16, 5), interp.FiniteGroup.cyclic(5))
        >>> found.names, 0 <= found.line_energy <= 1
        (('0', '1', '2'), True)
    """
    form = recognize_task(layer_or_model, group)
    interaction = _interaction(form, group)
    projectors = isotypic_projectors(group)
    logits = form(_all_pairs(group, torch.float64)).mT.reshape(interaction.shape)
    logits = logits - logits.mean(0)
    kernel = average_lines(interaction, group)
    convolution = kernel[group.differences]
    rest = logits - convolution
    rest = torch.where(rest.abs() > 1e-9 * logits.abs().max(), rest, 0.0)  # rounding answers nothing
    central = torch.empty_like(kernel)
    for members in map(list, group.conjugacy_classes):
        central[members] = kernel[members].mean()
    parts = projectors @ kernel
    energy = _positive_energy(interaction)
    basis, part = isotypic_basis(group)
    spectrum = torch.einsum("cab,cd,ae,bf->def", interaction, basis, basis, basis).square()
    within = spectrum[(part[:, None, None] == part[:, None]) & (part[:, None] == part)].sum()
    return GroupAnalysis(
        group,
        tuple(representation.name for representation in irreducible_representations(group)),
        _accuracy(logits, group),
        line_energy(interaction, group),
        float(group.order**2 * central.square().sum() / energy),
        float(within / energy),
        kernel,
        parts.square().sum(1) / _positive_energy(kernel),
        isotypic_purity(layer_or_model, group),
        float(convolution.square().sum() / _positive_energy(logits)),
        _accuracy(convolution, group),
        _accuracy(rest, group),
    )


def recognize_task(layer_or_model: nn.Module | Network, group: FiniteGroup) -> QuadraticForm:
    """Read a network as a quadratic form of 2n inputs and n outputs, `recognize` with errors that name the group."""
    form = recognize(layer_or_model)
    inputs, outputs = form.left.shape[1] - 1, len(form.output)
    if (inputs, outputs) != (2 * group.order, group.order):
        raise ShapeError(
            f"a network for {group.name} needs {2 * group.order} inputs, one-hot(a) before one-hot(b), and "
            f"{group.order} outputs; this one has {inputs} and {outputs}"
        )
    return form


def _all_pairs(group: FiniteGroup, dtype: torch.dtype) -> Tensor:
    one_hot = torch.eye(group.order, dtype=dtype)
    return torch.cat([one_hot.repeat_interleave(group.order, 0), one_hot.repeat(group.order, 1)], 1)


def _accuracy(logits: Tensor, group: FiniteGroup) -> float:
    return float((logits.argmax(0) == group.table).double().mean())


def _positive_energy(tensor: Tensor) -> Tensor:
    return tensor.square().sum().clamp_min(torch.finfo(tensor.dtype).tiny)


def _require_cube(tensor: Tensor, group: FiniteGroup) -> None:
    if tensor.shape != (group.order,) * 3:
        raise ShapeError(
            f"a function of c, a, b in {group.name} has shape {(group.order,) * 3}; got {tuple(tensor.shape)}"
        )
