"""Laws of networks that multiply in a group: line energy, purity, units, margins, composed solutions, figures."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace
from interp.classifier_training import accuracy, train_classifier
from interp.finite_groups import FiniteGroup
from interp.group_margins import margin_ratio, maximum_margin
from interp.group_plots import fourier_spectrum_figure, unit_spectrum_figure
from interp.group_spectra import dominant_representations, fourier_spectrum, pair_spectrum
from interp.group_tasks import (
    analyze_group_task,
    average_lines,
    interaction_tensor,
    isotypic_purity,
    line_energy,
    split_products,
)
from interp.group_units import describe_units
from interp.partial_solutions import factorization_error, find_partial_solutions
from interp.representations import irreducible_representations, isotypic_projectors
from weightspace.checkpoint import open_checkpoint
from weightspace.layers import Bilinear, BilinearMLP

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
QUATERNIONS = (
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 4, 3, 6, 5, 0, 7, 2],
    [2, 7, 4, 1, 6, 3, 0, 5],
)  # e, i, j from the left


class Squares(nn.Module):
    def __init__(self, features, output):
        super().__init__()
        self.features = nn.Linear(features.shape[1], features.shape[0], bias=False)
        self.output = nn.Linear(output.shape[1], output.shape[0], bias=False)
        self.to(features.dtype)
        with torch.no_grad():
            self.features.weight.copy_(features)
            self.output.weight.copy_(output)

    def forward(self, x):
        return self.output(self.features(x) ** 2)


def quaternions():
    """Products of i and j: powers i^n, then i^n j, found by applying the two from the left."""
    _, i, j = (torch.tensor(row) for row in QUATERNIONS)
    words = [[]]
    rows = {tuple(range(8)): []}
    for word in words:
        for letter in (i, j):
            new = [*word, letter]
            row = torch.arange(8)
            for one in new:
                row = one[row]
            if tuple(row.tolist()) not in rows:
                rows[tuple(row.tolist())] = new
                words.append(new)
    table = torch.tensor(sorted(rows))  # the row of an element starts with its image of 0, itself
    return FiniteGroup("Q8", table, tuple("01234567"))


GROUPS = {
    "Z5": lambda: FiniteGroup.cyclic(5),
    "Z6": lambda: FiniteGroup.cyclic(6),
    "S3": lambda: FiniteGroup.symmetric(3),
    "D4": lambda: FiniteGroup.dihedral(4),
    "Q8": quaternions,
}
groups = pytest.mark.parametrize("name", GROUPS)


def optimal_network(group):
    """All translates of the unit of largest gain in each representation, with the predicted shares."""
    shares = maximum_margin(group).shares
    x, y, z = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(group.order)] * 3, indexing="ij"))
    inverse, table = group.inverses, group.table
    own = torch.arange(group.order)
    # (x, y, z): a -> x a y^-1, b -> y b z^-1 and c -> x c z^-1 keep c = ab.
    moved = [table[table[left][:, own], inverse[right][:, None]] for left, right in ((x, y), (y, z), (x, z))]
    features, output = [], []
    for representation, share in zip(irreducible_representations(group), shares, strict=True):
        if share:
            entry = representation.matrices[:, 0, 0]
            u, v, w = (entry[element] for element in moved)
            features.append(torch.cat([u, v], 1))
            output.append(w * (share / (entry.norm() ** 3 * len(x))))
    return squares_as_bilinear(torch.cat(features), torch.cat(output).mT)


def squares_as_bilinear(features, output):
    """The same function as `Squares`, in a layer that is read without tracing."""
    layer = Bilinear(features.shape[1], *output.mT.shape).double()
    with torch.no_grad():
        for linear, weight in ((layer.left, features), (layer.right, features), (layer.output, output)):
            linear.weight.copy_(weight)
    return layer


def random_network(kind, group, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    count = group.order
    if kind == "squares":
        return Squares(torch.randn(7, 2 * count, dtype=dtype), torch.randn(count, 7, dtype=dtype))
    if kind == "bilinear":
        return Bilinear(2 * count, 7, count, bias=True).to(dtype)
    return BilinearMLP(2 * count, 2 * count, count, residual=True, bias=True).to(dtype)


def test_products_are_split_without_loss():
    group = FiniteGroup.symmetric(3)
    data = split_products(group, train_share=0.7, generator=torch.Generator().manual_seed(1))
    x, y = torch.cat([data.x, data.test_x]), torch.cat([data.y, data.test_y])
    pairs = {tuple(row.nonzero().flatten().tolist()): int(c) for row, c in zip(x, y, strict=True)}
    assert pairs == {(a, 6 + b): int(group.table[a, b]) for a in range(6) for b in range(6)}
    assert len(data.x) == 25
    everything = split_products(group, dtype=torch.float64)
    assert torch.equal(everything.y, group.table.flatten())
    assert torch.equal(everything.test_x, everything.x)
    for share in (0.0, 1.1):
        with pytest.raises(weightspace.ShapeError, match=f"it is {share}"):
            split_products(group, train_share=share)


@dtypes
@pytest.mark.parametrize("kind", ["squares", "bilinear", "mlp"])
def test_interaction_is_the_mixed_difference_of_the_logits(kind, dtype):
    group = FiniteGroup.symmetric(3)
    model = random_network(kind, group, dtype)
    with torch.no_grad():
        logits = model(split_products(group, dtype=dtype).x).mT.unflatten(1, (6, 6)).double()
    tensor = interaction_tensor(model, group)

    def mixed(values):
        values = values - values.mean(0)
        return values - values[:, :1] - values[:, :, :1] + values[:, :1, :1]

    scale = float(logits.abs().max())
    assert torch.allclose(
        mixed(tensor), mixed(logits), atol=scale * (1e-5 if dtype == torch.float32 else 1e-12)
    )
    assert torch.allclose(tensor.mean(0), torch.zeros(6, 6).double(), atol=1e-12)


@dtypes
@pytest.mark.parametrize("order", [5, 8])
def test_line_energy_of_addition_is_a_share_of_the_fourier_transform(order, dtype):
    group = FiniteGroup.cyclic(order)
    tensor = torch.randn(order, order, order, dtype=dtype, generator=torch.Generator().manual_seed(0))
    tensor = tensor - tensor.mean(0)
    power = torch.fft.fftn(tensor).abs().square()
    k = torch.arange(order)
    line = float(power[-k % order, k, k].sum() / power.sum())
    assert line_energy(tensor, group) == pytest.approx(line, rel=1e-5 if dtype == torch.float32 else 1e-12)


@groups
def test_line_energy_is_one_for_convolutions_and_small_for_noise(name):
    group = GROUPS[name]()
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(group.order, dtype=torch.float64, generator=generator)
    kernel -= kernel.mean()
    convolution = kernel[group.differences]
    assert line_energy(convolution, group) == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(average_lines(convolution, group), kernel, atol=1e-12)
    draws = torch.randn(400, *[group.order] * 3, dtype=torch.float64, generator=generator)
    energies = torch.tensor([line_energy(draw - draw.mean(0), group) for draw in draws])
    error = float(energies.std() / 20)
    assert float(energies.mean()) == pytest.approx(1 / group.order**2, abs=4 * error)
    assert line_energy(torch.zeros_like(convolution), group) == 0.0
    with pytest.raises(weightspace.ShapeError, match=r"got \(2, 2\)"):
        line_energy(torch.zeros(2, 2), group)


@groups
def test_the_predicted_network_is_pure_and_reaches_the_largest_margin(name):
    group = GROUPS[name]()
    model = optimal_network(group)
    analysis = analyze_group_task(model, group)
    assert analysis.accuracy == analysis.convolution_accuracy == 1.0
    assert analysis.rest_accuracy < 1.0
    for share in (analysis.line_energy, analysis.class_energy, analysis.block_energy, analysis.explained):
        assert share == pytest.approx(1.0, abs=1e-9)
    assert torch.allclose(analysis.purity[1:], torch.ones(len(analysis.names) - 1).double(), atol=1e-9)
    assert math.isnan(analysis.purity[0])
    assert margin_ratio(model, group) == pytest.approx(1.0, abs=1e-9)

    units = describe_units(model, group)
    ones = torch.ones_like(units.strength)
    assert torch.allclose(units.concentration, ones, atol=1e-9)
    assert torch.allclose(units.alignment, ones, atol=1e-9)
    assert torch.allclose(units.shares, maximum_margin(group).shares, atol=1e-9)
    assert int(units.counts.sum()) == int(units.active.sum()) == len(ones)
    assert (units.phase is not None) == group.is_cyclic_table
    if units.phase is not None:
        assert float(units.phase.abs().max()) < 1e-9
    assert "accuracy 1.0000" in repr(analysis)
    assert "representation" in analysis._repr_html_()


@groups
def test_no_network_near_the_predicted_one_has_a_larger_margin(name):
    group = GROUPS[name]()
    torch.manual_seed(0)
    for size in (1e-3, 1e-2, 1e-1):
        model = optimal_network(group)
        with torch.no_grad():
            for weight in model.parameters():
                weight += size * weight.std() * torch.randn_like(weight)
        assert margin_ratio(model, group) < 1.0


def test_margins_agree_with_the_closed_forms():
    for p in (3, 5, 31):
        expected = math.sqrt(2 / 27) / (math.sqrt(p) * (p - 1))
        margin = maximum_margin(FiniteGroup.cyclic(p))
        assert margin.quadratic == pytest.approx(expected, rel=1e-9)
        assert margin.quadratic == 2 * margin.bilinear
        assert torch.allclose(margin.shares[1:], torch.tensor(2 / (p - 1)).double(), atol=1e-9)
    for degree, dimensions in ((3, [1, 2]), (4, [1, 2, 3, 3])):
        group = FiniteGroup.symmetric(degree)
        weights = torch.tensor(dimensions).double() ** 2.5
        margin = maximum_margin(group)
        assert margin.quadratic == pytest.approx(
            2 / (27 * group.order) ** 0.5 / float(weights.sum()), rel=1e-9
        )
        assert torch.allclose(margin.shares[1:], weights / weights.sum(), atol=1e-9)
    assert maximum_margin(FiniteGroup.cyclic(1)).quadratic == math.inf


def test_margin_ratio_does_not_see_what_the_classifier_does_not():
    group = FiniteGroup.symmetric(3)
    layer = optimal_network(group)
    with torch.no_grad():
        scale = torch.rand(len(layer.left.weight), 1, dtype=torch.float64) + 0.5
        layer.left.weight *= scale
        layer.right.weight /= scale
        layer.output.weight.mul_(3).add_(torch.randn(1, len(scale), dtype=torch.float64))
    assert margin_ratio(layer, group) == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(weightspace.UnsupportedOperationError, match="biases"):
        margin_ratio(Bilinear(12, 5, 6, bias=True), group)


@dtypes
@pytest.mark.parametrize("kind", ["squares", "bilinear"])
def test_analysis_does_not_see_invariances_of_the_network(kind, dtype):
    group = FiniteGroup.symmetric(3)
    model = random_network(kind, group, dtype)
    purity, analysis = isotypic_purity(model, group), analyze_group_task(model, group)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert bool(((purity[1:] > 0) & (purity[1:] <= 1 + 1e-9)).all())
    order = torch.randperm(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "output.weight":
                weight.copy_(
                    weight[:, order] + torch.randn(1, 7, dtype=dtype)
                )  # a common shift of the logits
            elif len(weight) == 7:
                weight.copy_(weight[order])
    after = analyze_group_task(model, group)
    assert torch.allclose(after.purity[1:], purity[1:], atol=tolerance)
    for field in ("accuracy", "line_energy", "class_energy", "block_energy", "explained", "rest_accuracy"):
        assert getattr(after, field) == pytest.approx(getattr(analysis, field), abs=tolerance)
    assert analysis.class_energy <= analysis.line_energy <= 1.0
    assert float(analysis.kernel_energy.sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", ["Z5", "S3", "D4"])
def test_alignment_is_at_most_one(name):
    group = GROUPS[name]()
    for kind in ("squares", "bilinear"):
        units = describe_units(random_network(kind, group), group)
        assert float(units.alignment.abs().max()) <= 1 + 1e-9
        assert torch.allclose(units.spectrum.sum(1), torch.ones(7).double(), atol=1e-9)


@pytest.mark.parametrize(("name", "kind"), [("Z7", "bilinear"), ("S3", "bilinear"), ("S3", "squares")])
def test_trained_networks_are_group_convolutions(name, kind):
    group = FiniteGroup.cyclic(7) if name == "Z7" else FiniteGroup.symmetric(3)
    torch.manual_seed(0)
    data = split_products(group)
    count = group.order
    model = (
        Bilinear(2 * count, 64, count)
        if kind == "bilinear"
        else Squares(0.2 * torch.randn(64, 2 * count), 0.1 * torch.randn(count, 64))
    )
    run = train_classifier(
        model, data.x, data.y, epochs=600, batch_size=None, learning_rate=1e-2, weight_decay=1.0, noise=0.0,
        betas=(0.9, 0.98), progress=False,
    )  # fmt: skip
    analysis, units = analyze_group_task(model, group), describe_units(model, group)
    assert run.train_accuracy == analysis.accuracy == accuracy(model, data.x, data.y) == 1.0
    assert analysis.line_energy > 0.9
    assert analysis.explained > 0.9
    assert units.average(units.concentration) > 0.85
    assert units.average(units.alignment) > 0.9
    assert 0.5 < margin_ratio(model, group) <= 1.0
    assert analysis.mean_purity > 0.95


def test_another_loss_is_minimized():
    group = FiniteGroup.cyclic(5)
    torch.manual_seed(0)
    data = split_products(group)

    def squared(logits, y):
        return (logits - torch.eye(5)[y]).square().sum(1).mean()

    model = Bilinear(10, 32, 5)
    run = train_classifier(
        model, data.x, data.y, epochs=400, batch_size=None, learning_rate=1e-2, weight_decay=0.0, noise=0.0,
        loss=squared, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        assert float(squared(model(data.x), data.y)) < 0.01 * float(run.losses[0])


def composed_network(order, prime=7):
    """For every frequency, the product of two partial solutions, as phases of a and of b."""
    third, quarter = 2 * math.pi / 3, math.pi / 2
    if order == 6:
        phases = [(j * third + s * math.pi, j * third) for j in range(3) for s in range(2)]
    else:
        phases = [((s + t) * quarter, -s * quarter) for s in range(2) for t in range(2)]
    features, output = [], []
    numbers = torch.arange(prime).double() * 2 * math.pi / prime
    for k in range(1, prime // 2 + 1):
        for a, b in phases:
            features.append(torch.cat([(k * numbers + a).cos(), (k * numbers + b).cos()]))
            output.append((k * numbers + a + b).cos())
    return Squares(torch.stack(features), torch.stack(output, 1))


@pytest.mark.parametrize("order", [4, 6])
def test_composed_solutions_are_recognized(order):
    group = FiniteGroup.cyclic(7)
    model = composed_network(order)
    with torch.no_grad():
        model.features.weight[0] *= -3.0  # the scale and the sign inside a unit do not matter
        model.output.weight[:, 0] /= 9.0
    solutions = find_partial_solutions(model, group)
    assert [solution.frequency for solution in solutions] == [1, 2, 3]
    assert sorted(unit for solution in solutions for unit in solution.units) == list(range(3 * order))
    for solution in solutions:
        assert solution.order == order
        assert solution.factors == (2, order // 2)
        assert solution.factorization_error == pytest.approx(0.0, abs=1e-6)
        assert solution.alignment == pytest.approx(1.0, abs=1e-9)
        assert solution.spurious == pytest.approx(0.0, abs=1e-9)
        assert solution.offset == pytest.approx(2.0 if order == 4 else 0.0, abs=1e-9)
    analysis = analyze_group_task(model, group)
    assert analysis.line_energy == pytest.approx(1.0, abs=1e-9)
    assert (analysis.explained == pytest.approx(1.0, abs=1e-9)) == (order == 6)
    assert margin_ratio(composed_network(6), group) == pytest.approx(1.0, abs=1e-9)


def test_units_that_are_no_product_are_told_apart():
    z = torch.randn(20, 3, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    assert min(factorization_error(draw, (2, 3)) for draw in z) > 0.02
    rows, columns = z[:, :, :2], z[:, :, 2:5]
    products = (rows[..., None] * columns[..., None, :]).flatten(2)
    shuffled = products[:, :, torch.randperm(6)]
    assert max(factorization_error(draw, (2, 3)) for draw in shuffled) < 1e-6


def test_what_the_theory_does_not_cover_is_refused():
    symmetric, cyclic = FiniteGroup.symmetric(3), FiniteGroup.cyclic(6)
    model = random_network("bilinear", symmetric)
    with pytest.raises(weightspace.UnsupportedOperationError, match="S3 is another group"):
        find_partial_solutions(model, symmetric)
    with pytest.raises(weightspace.UnsupportedOperationError, match="two different maps"):
        find_partial_solutions(model, cyclic)
    wrong = FiniteGroup.cyclic(5)
    for verb in (analyze_group_task, interaction_tensor, isotypic_purity, describe_units, margin_ratio):
        with pytest.raises(weightspace.ShapeError, match="has 12 and 6"):
            verb(model, wrong)


@dtypes
@groups
def test_spectra_add_up_to_the_energy(name, dtype):
    group = GROUPS[name]()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(group.order, 4, dtype=dtype, generator=generator)
    spectrum = fourier_spectrum(weight, group)
    expected = (isotypic_projectors(group) @ weight.double()).square().sum(1)
    assert torch.allclose(spectrum, expected, atol=1e-10)
    assert torch.allclose(fourier_spectrum(weight[:, 0], group), spectrum[:, 0], atol=1e-12)
    pairs = torch.randn(group.order, group.order, 3, dtype=dtype, generator=generator)
    energy = pair_spectrum(pairs, group)
    assert torch.allclose(energy.sum((0, 1)), pairs.double().square().sum((0, 1)), rtol=1e-10)
    with pytest.raises(weightspace.ShapeError, match=r"\(3, 2\)"):
        fourier_spectrum(torch.zeros(3, 2), group)
    with pytest.raises(weightspace.ShapeError, match=r"\(3, 3\)"):
        pair_spectrum(torch.zeros(3, 3), group)


def test_spectrum_of_addition_is_the_fourier_power():
    weight = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = torch.fft.rfft(weight, dim=0).abs().square() / 9
    power[1:] *= 2  # k and -k
    assert torch.allclose(fourier_spectrum(weight, FiniteGroup.cyclic(9)), power, atol=1e-12)


def test_dominant_representation_of_a_function_through_one():
    group = FiniteGroup.cyclic(9)
    angle = torch.arange(9).double() * 2 * math.pi / 9
    pure = (2 * angle[:, None] + 2 * angle).cos() + (2 * angle).sin() + 5.0
    values = torch.stack([pure, pure + (3 * angle).cos(), torch.ones(9, 9).double()], 2)
    representation, share = dominant_representations(pair_spectrum(values, group))
    assert representation[:2].tolist() == [2, 2]
    assert share.tolist() == pytest.approx([1.0, 2 / 3, 0.0], abs=1e-9)


def test_figures_show_the_spectra():
    group = FiniteGroup.symmetric(3)
    model = optimal_network(group)
    spectrum = fourier_spectrum(model.left.weight[:, :6].mT, group)
    names = [own.name for own in irreducible_representations(group)]
    figure = fourier_spectrum_figure({"first": spectrum, "second": spectrum[:, 0]}, names=names)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx((spectrum.sum(1) / spectrum.sum()).tolist(), abs=1e-12)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # a notebook shows it whichever backend is set
    with pytest.raises(weightspace.ShapeError, match=r"lengths \[3, 5\]"):
        fourier_spectrum_figure({"first": spectrum, "second": torch.zeros(5)})

    units = describe_units(model, group)
    picture = unit_spectrum_figure(units).axes[0].images[0].get_array()
    assert picture.shape == (3, len(units.strength))
    dominant = torch.as_tensor(picture.data).argmax(0)
    assert bool((dominant.diff() >= 0).all())
    assert torch.equal(dominant.bincount(minlength=3), units.counts)
    dead = Bilinear(12, 5, 6)
    nn.init.zeros_(dead.output.weight)
    with pytest.raises(weightspace.ShapeError, match="all weights are 0"):
        unit_spectrum_figure(describe_units(dead, group))


def test_fourier_structure_of_trained_transformers():
    path = Path(os.environ.get("WEIGHTSPACE_DATA", "")) / "rib_modadd" / "modadd113_seed2.pt"
    if not os.environ.get("WEIGHTSPACE_DATA") or not path.exists():
        pytest.skip("WEIGHTSPACE_DATA has no rib_modadd")
    group, state = FiniteGroup.cyclic(113), open_checkpoint(path).state_dict()
    power = fourier_spectrum(state["embed.W_E"][:113], group)[1:].sum(1)
    assert float(power.topk(4).values.sum() / power.sum()) > 0.9

    def attention(name):
        weight, bias = state[f"blocks.0.attn.W_{name}"], state[f"blocks.0.attn.b_{name}"]
        return torch.einsum("...d,hdk->...hk", x, weight) + bias

    a, b = torch.meshgrid(torch.arange(113), torch.arange(113), indexing="ij")
    tokens = torch.stack([a, b, torch.full_like(a, 113)], -1)
    x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"]
    scores = torch.einsum("abhk,abshk->abhs", attention("Q")[:, :, 2], attention("K")) / 32**0.5
    mixed = torch.einsum("abhs,abshk->abhk", scores.softmax(-1), attention("V"))
    read = (
        x[:, :, 2]
        + torch.einsum("abhk,hkd->abd", mixed, state["blocks.0.attn.W_O"])
        + state["blocks.0.attn.b_O"]
    )
    units = (read @ state["blocks.0.mlp.W_in"][:, :128] + state["blocks.0.mlp.b_in"][:128]).relu()
    frequency, share = dominant_representations(pair_spectrum(units, group))
    assert float(share.median()) > 0.9
    assert set(frequency.tolist()) <= set((power.topk(4).indices + 1).tolist())
