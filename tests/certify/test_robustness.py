"""Laws of robust accuracy: certified implies not attacked implies correct; constants of pairs and their proofs."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import certify
from certify.adversarial_search import find_adversarial_examples, within
from certify.classifiers import lower_margins, misclassified, rebuild
from certify.pair_constants import LastLayerSDP, bound_pairs, layer_kernel
from certify.robustness import certified_radii, robust_accuracy
from certify.robustness_plots import robustness_figure
from certify.structured.single_output import minimize_l2, minimize_linf
from weightspace.errors import NonFiniteError, ShapeError, UnsupportedOperationError
from weightspace.layers import MaxMin
from weightspace.reading import as_network

NORMS, DTYPES = ("l2", "linf"), (torch.float32, torch.float64)


def samples(count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    centers = 1.2 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 3, (count,), generator=generator)
    return (centers[y] + 0.6 * torch.randn(count, 4, generator=generator)).to(dtype), y


def trained(dtype, *hidden):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), *hidden, nn.Linear(8, 3)).to(dtype)
    x, y = samples(200, dtype, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


CASES = {
    "ReLU": (torch.float32, lambda: (nn.ReLU(), nn.Linear(8, 8), nn.ReLU())),
    "ReLU in double": (torch.float64, lambda: (nn.ReLU(),)),
    "tanh": (torch.float64, lambda: (nn.Tanh(),)),
    "MaxMin": (torch.float32, lambda: (MaxMin(),)),
}


@pytest.fixture(scope="module", params=itertools.product(CASES, NORMS), ids=lambda p: f"{p[0]}-{p[1]}")
def case(request):
    """Return (network, x, y, constants of pairs)."""
    name, norm = request.param
    dtype, hidden = CASES[name]
    network = as_network(trained(dtype, *hidden()))
    return network, *samples(40, dtype, 5), bound_pairs(network, norm=norm)


def test_certified_samples_are_not_attacked_and_attacked_ones_are_wrong(case):
    network, x, y, constants = case
    norm, module = constants.norm, network.to_module()
    certified = attacked = 0
    before = None
    for epsilon in (0.0, 0.3, 1.2):
        found = robust_accuracy(
            network, x, y, epsilon=epsilon, norm=norm, constants=constants, steps=8, restarts=2
        )
        assert not (found.certified_samples & found.attack.found).any()
        assert not (found.certified_samples & ~found.correct).any()
        assert found.certified_accuracy <= found.attacked_accuracy <= found.clean_accuracy
        assert torch.equal(found.certified["pair constants"], found.correct & (found.radii >= epsilon))
        certified += int(found.certified_samples.sum())
        attacked += int((found.correct & found.attack.found).sum())
        points, base = found.attack.inputs[found.attack.found], x[found.attack.found]
        assert points.dtype == x.dtype
        steps = points.double() - base.double()
        assert ((steps.norm(dim=1) if norm == "l2" else steps.abs().amax(1)) <= epsilon).all()
        assert (module(points).argmax(1) != y[found.attack.found]).all()
        if before is not None:  # larger balls are harder to certify
            assert not (found.certified["pair constants"] & ~before.certified["pair constants"]).any()
        before = found
        if epsilon == 0.0:
            assert torch.equal(found.radii > 0, found.correct)
            assert torch.equal(found.correct, module(x).argmax(1) == y)
    assert certified > 0
    assert attacked > 0


def test_random_points_within_the_radius_keep_the_class(case):
    network, x, y, constants = case
    found = robust_accuracy(
        network,
        x,
        y,
        epsilon=0.1,
        norm=constants.norm,
        constants=constants,
        methods=("pair constants",),
        restarts=0,
    )
    assert found.attack is None
    assert found.attacked_accuracy == found.clean_accuracy
    noise = torch.randn(40, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    noise /= noise.norm(dim=2, keepdim=True) if constants.norm == "l2" else noise.abs().amax(2, keepdim=True)
    points = x.double() + 0.999 * found.radii[:, None] * noise
    classes = network.astype(torch.float64).to_module()(points.reshape(-1, 4)).argmax(1).reshape(40, -1)
    assert ((classes == y) | ~found.correct).all()
    shares = found.certified_accuracy_at([0.0, 0.05, 0.1, 1.0, 100.0])
    assert (shares.diff() <= 0).all()
    assert shares[0] == found.clean_accuracy
    assert shares[2] == found.certified_accuracy
    assert shares[-1] == 0


def test_constants_of_pairs_are_proven_below_those_of_the_whole_and_above_what_is_attained(case):
    network, x, _, constants = case
    norm, whole = constants.norm, certify.lipschitz(network, norm=constants.norm).upper_bound
    assert constants.network_hash == network.hash
    assert sorted(constants.certificates) == [(0, 1), (0, 2), (1, 2)]
    assert np.array_equal(constants.values, constants.values.T)
    assert not np.diag(constants.values).any()
    assert (constants.values <= (math.sqrt(2) if norm == "l2" else 2.0) * whole * (1 + 1e-3)).all()
    points = x.double().requires_grad_()
    values = network.astype(torch.float64).to_module()(points)
    for (j, k), certificate in constants.certificates.items():
        (gradient,) = torch.autograd.grad((values[:, j] - values[:, k]).sum(), points, retain_graph=True)
        attained = gradient.norm(dim=1) if norm == "l2" else gradient.abs().sum(1)
        assert float(attained.max()) <= constants.values[j, k]
        assert certificate.output == (j, k)
        assert certificate.upper_bound == constants.values[j, k]
        assert certify.check(certificate, network).valid


@pytest.mark.parametrize("norm", NORMS)
def test_last_layer_program_agrees_with_the_whole_program(norm, build, he):
    network = build(he((5, 9, 3)), dtype=torch.float64)
    reference = bound_pairs(network, norm=norm, bounder=certify.LipSDP(tolerance=1e-6))
    ours = bound_pairs(network, norm=norm, bounder=LastLayerSDP())
    assert (ours.values >= reference.values * (1 - 1e-5)).all()
    assert (ours.values <= reference.values * 1.01).all()


def test_shared_multipliers_give_a_proven_bound(build, he):
    from certify.lmi import chain_of
    from certify.signals import system_of

    network = build(he((4, 7, 7, 6, 3)), dtype=torch.float64)
    system = system_of(network)
    proof = certify.LipSDP().propose(system, "l2").proofs[0]
    shared = tuple(np.array(values) / proof.rho for values in proof.multipliers[:-1])
    kernel = layer_kernel(chain_of(system), shared)
    ours = bound_pairs(network, bounder=LastLayerSDP(shared, kernel))
    best = bound_pairs(network, bounder=certify.LipSDP())
    whole = certify.lipschitz(network).upper_bound
    above = np.triu_indices(3, 1)
    assert (best.values[above] <= ours.values[above] * (1 + 1e-6)).all()
    assert (ours.values[above] <= math.sqrt(2) * whole * 1.01).all()


def test_programs_of_degenerate_layers():
    kernel = np.diag([1.0, 0.0, 4.0])
    solution = minimize_l2(kernel, np.array([2.0, 3.0, 0.0]))
    assert solution.rho == pytest.approx(4.0, rel=1e-2)
    assert solution.multipliers[2] == 0
    assert minimize_l2(kernel, np.zeros(3)) is None
    one = minimize_linf(np.array([[3.0, -4.0, 0.0]]), np.array([2.0]))
    assert one.rho == pytest.approx(14.0, rel=1e-2)
    tiny = minimize_l2(1e-30 * kernel, np.array([2e20, 3e20, 0.0]))
    assert tiny.rho == pytest.approx(4e10, rel=1e-2)


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_the_logits_leaves_the_radii(build, he, norm):
    matrices = he((4, 6, 3))
    x, y = samples(20, torch.float64, 2)
    radii = []
    for factor in (1.0, 2.0**10, 1e-3):
        network = build([matrices[0], factor * matrices[1]], dtype=torch.float64)
        radii.append(robust_accuracy(network, x, y, epsilon=0.1, norm=norm, restarts=0).radii)
    assert torch.allclose(radii[0], radii[1], rtol=3e-3)
    assert torch.allclose(radii[0], radii[2], rtol=3e-3)


def test_radii_by_hand():
    margins = np.array([[np.inf, 2.0, 3.0], [-1.0, np.inf, 5.0], [np.inf, 1.0, 1.0]])
    constants = np.array([[0.0, 4.0, 1.0], [4.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    radii = certified_radii(margins, np.array([0, 1, 0]), constants)
    assert radii[1] == 0
    assert radii[0] < 0.5
    assert radii[0] == pytest.approx(0.5, rel=1e-15)
    assert radii[2] == pytest.approx(0.25, rel=1e-15)
    constants[0, 1:] = 0.0, np.inf  # equal outputs, and a pair without a constant
    assert certified_radii(margins[:1], np.array([0]), constants).tolist() == [0.0]
    constants[0, 2] = 0.0
    assert certified_radii(margins[:1], np.array([0]), constants).tolist() == [np.inf]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_adversarial_examples_stay_in_ball_and_range(dtype, norm):
    model = as_network(trained(dtype, nn.ReLU()))
    x, y = samples(40, dtype, 7)
    x = ((x - x.min()) / (x.max() - x.min())).clamp(0, 1)
    arguments = {"epsilon": 0.1, "norm": norm, "clip": (0.0, 1.0), "steps": 10, "restarts": 3}
    found = find_adversarial_examples(model, x, y, **arguments, generator=torch.Generator().manual_seed(4))
    again = find_adversarial_examples(model, x, y, **arguments, generator=torch.Generator().manual_seed(4))
    assert torch.equal(found.inputs, again.inputs)
    assert torch.equal(found.found, again.found)
    assert found.found.any()
    assert float(found.inputs.min()) >= 0
    assert float(found.inputs.max()) <= 1
    center, points = x.double().numpy(), found.inputs.double().numpy()
    assert within(center, points, 0.1, norm)[found.found.numpy()].all()
    checked = rebuild(model)
    assert misclassified(checked, points, y.numpy())[found.found.numpy()].all()
    margins = lower_margins(checked, points, y.numpy())
    assert (margins[found.found.numpy()].min(axis=1) < 0).all()
    assert torch.equal(found.inputs[~found.found], x[~found.found])


def test_the_ball_is_exact():
    center, small = np.array([[1.0, 0.0]]), 2.0**-53
    point = np.array([[1 + 2 * small, 0.0]])
    assert within(center, point, 2 * small, "linf")[0]
    assert not within(center, point, np.nextafter(2 * small, 0), "linf")[0]
    far = np.array([[-0.3, 0.0]])  # -0.3 - 1 is rounded
    exact = Fraction(1) - Fraction(-0.3)
    for epsilon in (1.3, np.nextafter(1.3, 0), np.nextafter(1.3, 2)):
        assert within(center, far, epsilon, "linf")[0] == (exact <= Fraction(epsilon))
    tiny = np.array([[1.0, 3 * 2.0**-60]])
    assert within(center, tiny, 3 * 2.0**-60, "linf")[0]
    assert within(center, center, 0.0, "l2")[0]
    assert within(center, center, 0.0, "linf")[0]
    origin = np.zeros((1, 2))
    assert not within(origin, np.array([[3e-200, 4e-200]]), 4.9e-200, "l2")[0]
    assert within(origin, np.array([[3e-200, 4e-200]]), 5.1e-200, "l2")[0]
    assert not within(origin, np.array([[3.0, 4.0]]), np.nextafter(5.0, 0), "l2")[0]


def test_what_does_not_fit_is_refused(build, he):
    network = build(he((4, 6, 3)), dtype=torch.float64)
    x, y = samples(6, torch.float64, 0)
    bad = x.clone()
    bad[2, 1] = math.nan
    other = bound_pairs(build(he((4, 6, 3), seed=1), dtype=torch.float64))
    for error, words, arguments, options in (
        (ShapeError, "class 3", (x, y.clamp_min(3)), {}),
        (ShapeError, "class -1", (x, y - (torch.arange(6) == 0) * (y + 1)), {}),
        (ShapeError, "one integer", (x, y[:4]), {}),
        (ShapeError, "one integer", (x, y.double()), {}),
        (ShapeError, r"\(4,\)", (x[:, :3], y), {}),
        (NonFiniteError, "sample 2", (bad, y), {}),
        (NonFiniteError, "epsilon", (x, y), {"epsilon": math.inf}),
        (ShapeError, "negative", (x, y), {"epsilon": -0.1}),
        (ShapeError, "clip", (x, y), {"clip": (0.0, 0.1)}),
        (UnsupportedOperationError, "l1", (x, y), {"norm": "l1"}),
        (UnsupportedOperationError, "another network", (x, y), {"constants": other}),
        (UnsupportedOperationError, "guess", (x, y), {"methods": ("guess",)}),
    ):
        with pytest.raises(error, match=words):
            robust_accuracy(network, *arguments, **{"epsilon": 0.1, **options})
    with pytest.raises(ShapeError, match="0, 3"):
        bound_pairs(network, pairs=[(0, 3)])
    with pytest.raises(ShapeError, match="restarts"):
        find_adversarial_examples(network, x, y, epsilon=0.1, restarts=0)


@pytest.mark.parametrize("norm", NORMS)
def test_convolutional_classifier(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    x = torch.rand(8, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    found = robust_accuracy(model, x, y, epsilon=0.01, norm=norm, clip=(0.0, 1.0), steps=5, restarts=1)
    assert found.clean_accuracy == 1
    assert found.certified_accuracy > 0
    assert found.attack.inputs.shape == x.shape
    assert find_adversarial_examples(model, x, y, epsilon=5.0, norm=norm, steps=10, restarts=2).found.any()


def test_figure(build, he):
    pytest.importorskip("matplotlib")
    network = build(he((4, 6, 3)), dtype=torch.float64)
    x, y = samples(20, torch.float64, 2)
    results = [robust_accuracy(network, x, y, epsilon=e, steps=5, restarts=1) for e in (0.6, 0.2)]
    axes = robustness_figure(results).axes[0]
    curve = next(line for line in axes.lines if line.get_label() == "certified radius")
    heights = np.asarray(curve.get_ydata(), dtype=float)
    assert heights[0] == results[0].clean_accuracy
    assert (np.diff(heights) <= 0).all()
    with pytest.raises(ShapeError, match="one norm"):
        robustness_figure([])
