"""REPAIR: every unit ends with the statistics that were asked for; BatchNorm with those of the whole data."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES, random_parameters
from weightspace.errors import ShapeError
from weightspace.merging import merge
from weightspace.network import Network
from weightspace.paths import barrier, interpolate
from weightspace.repair import reset_batch_norm, restore_statistics
from weightspace.state_dicts import perceptron
from weightspace.tracing import trace
from weightspace.universe import Average


def units(module, inputs, kinds):
    """(mean, standard deviation) of the outputs of all layers of some kinds, by hooks, in order of use."""
    found = []

    def hook(layer, _, output):
        values = output.detach().double()
        values = values.movedim(1, -1) if values.ndim == 4 else values
        found.append((values.flatten(0, -2).mean(0), values.flatten(0, -2).std(0, correction=0)))

    handles = [layer.register_forward_hook(hook) for layer in module.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        module(inputs)
    for handle in handles:
        handle.remove()
    return found


def mlp(bias=True):
    return nn.Sequential(
        nn.Linear(6, 9, bias=bias),
        nn.Tanh(),
        nn.Linear(9, 8, bias=bias),
        nn.ReLU(),
        nn.Linear(8, 3, bias=bias),
    )


def convolutional(bias=True):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=bias), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias), nn.MaxPool2d(2),
        nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2, bias=bias), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3, bias=bias),
    )  # fmt: skip


INPUTS = {mlp: (40, 6), convolutional: (12, 2, 6, 6)}


def inputs(make, dtype=torch.float64, seed=0):
    return torch.randn(INPUTS[make], generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", INPUTS)
def test_statistics_after_repair_are_the_goals_layer_by_layer(make, bias, dtype):
    ends = [random_parameters(make(bias), seed).to(dtype) for seed in range(3)]
    x = inputs(make, dtype)
    shares = (0.5, 0.3, 0.2)
    average = merge(ends, method=Average(), weights=shares, example_inputs=x).model
    result = restore_statistics(average, ends, x.split(7), weights=shares)
    assert isinstance(result.model, nn.Sequential)
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    goals = [units(end, x, kinds) for end in ends]
    found = units(result.model, x, kinds)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert len(result.repaired) == len(found) - 1  # the last layer feeds no nonlinearity
    for layer, (mean, deviation) in enumerate(found[:-1]):
        for row, value in ((0, mean), (1, deviation)):
            goal = sum(share * end[layer][row] for share, end in zip(shares, goals))
            torch.testing.assert_close(value, goal, rtol=tolerance, atol=tolerance)
    last = f"{len(average) - 1}.weight"
    assert torch.equal(result.model.state_dict()[last], average.state_dict()[last])


def test_repair_of_a_network_with_itself_changes_nothing():
    model = random_parameters(mlp())
    repaired = restore_statistics(model, [model, copy.deepcopy(model)], inputs(mlp)).model
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(repaired.state_dict()[name], tensor, rtol=1e-10, atol=1e-10)


def test_a_missing_bias_is_added_to_networks():
    nets = [
        perceptron(
            {f"{i}.weight": p.detach() for i, p in enumerate(random_parameters(mlp(False), s).parameters())}
        )
        for s in range(2)
    ]
    merged = merge(nets, repair_data=inputs(mlp))
    assert sorted(merged.model.parameters) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.weight"]


class Folded(nn.Module):
    """A layer whose bias has no place: the weight is a parameter of the module itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.first)), self.second)


def test_a_bias_without_a_place_gives_a_network_and_says_so():
    ends = [random_parameters(Folded(), seed) for seed in range(2)]
    merged = merge(ends, repair_data=inputs(mlp), example_inputs=inputs(mlp))
    assert isinstance(merged.model, Network)
    assert "no place" in merged.notes[0]


def test_a_dead_unit_is_shifted_not_scaled():
    ends = [random_parameters(mlp(), seed) for seed in range(2)]
    dead = copy.deepcopy(ends[0])
    with torch.no_grad():
        dead[0].weight[3] = 0
    result = restore_statistics(dead, ends, inputs(mlp)).model
    assert torch.equal(result[0].weight[3], torch.zeros(6, dtype=torch.float64))
    goal = sum(units(end, inputs(mlp), nn.Linear)[0][0][3] for end in ends) / 2
    torch.testing.assert_close(result[0].bias[3].detach(), goal)


class Twice(nn.Module):
    """One layer used for two inputs (siamese) and one applied again to what it made."""

    def __init__(self, again):
        super().__init__()
        self.twin, self.step, self.head, self.again = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), again

    def forward(self, x):
        h = torch.tanh(self.twin(x)) + torch.tanh(self.twin(2 * x + 1))
        for _ in range(2 if self.again else 1):
            h = torch.tanh(self.step(h))
        return self.head(h)


def test_shared_layers_are_pooled_or_left_alone_with_the_reason():
    x = inputs(mlp)
    for again in (False, True):
        ends = [random_parameters(Twice(again), seed) for seed in range(2)]
        merged = merge(ends, repair_data=x, example_inputs=x)
        assert [entry.reason for entry in merged.left_alone] == [
            "is applied again to what depends on it"
        ] * 2 * again
        assert len(merged.repaired) == (2 if again else 3)
        aligned = merge(ends, example_inputs=x)
        assert torch.equal(merged.permutations[1]["twin"], aligned.permutations[1]["twin"]) if again else True
    both = torch.cat([x, 2 * x + 1])
    one = [random_parameters(Twice(False), seed) for seed in range(2)]
    result = restore_statistics(one[0], one, x).model
    mean = sum(end.twin(both).mean(0) for end in one) / 2
    torch.testing.assert_close(result.twin(both).mean(0), mean)


# ---- BatchNorm -------------------------------------------------------------------------------------------


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.norm1 = nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.conv, self.norm2 = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5, affine=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        h = F.relu(self.norm1(self.enter(x)))
        return self.head(F.relu(h + self.norm2(self.conv(h))).mean((2, 3)))


@cache
def images():
    generator = torch.Generator().manual_seed(1)
    shift = torch.arange(30.0, dtype=torch.float64)[:, None, None, None] / 10  # batches differ in mean
    return torch.randn(30, 2, 6, 6, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["module", "network"])
def test_batch_norm_reset_is_exact_over_all_data(kind, dtype):
    module = random_parameters(Normalized()).to(dtype)
    x = images().to(dtype)
    given = module if kind == "module" else trace(module, x)
    result = reset_batch_norm(given, x.split(4))
    assert len(result.reset) == 2
    assert result.repaired == ()
    reference = copy.deepcopy(module).train()
    with torch.no_grad():
        expected = reference(x)  # one batch: what training mode normalizes with
    found = (result.model if kind == "module" else result.model.to_module())(x)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **tolerance)
    first = module.enter(x).detach()
    state = result.network.parameters
    torch.testing.assert_close(state["norm1.running_mean"], first.mean((0, 2, 3)), **tolerance)
    torch.testing.assert_close(state["norm1.running_var"], first.var((0, 2, 3), correction=0), **tolerance)


def test_batch_norm_gets_its_reset_and_its_layer_is_left_to_it():
    ends = [random_parameters(Normalized(), seed) for seed in range(2)]
    merged = merge(ends, repair_data=images())
    assert len(merged.reset) == 2
    assert merged.repaired == ()
    assert merged.notes == ()
    assert isinstance(merged.model, Normalized)


def test_repair_of_batch_norm_gives_its_output_the_statistics_of_the_ends():
    ends = [random_parameters(Normalized(), seed) for seed in range(2)]
    average = merge(ends, method=Average(), example_inputs=images()).model
    result = restore_statistics(average, ends, images(), batch_norm="repair")
    assert len(result.repaired) == 1  # the other has no affine part
    goals = [units(end, images(), nn.BatchNorm2d)[0] for end in ends]
    found = units(result.model, images(), nn.BatchNorm2d)[0]
    for row in (0, 1):
        torch.testing.assert_close(found[row], (goals[0][row] + goals[1][row]) / 2)
    with pytest.raises(ShapeError, match="not 'other'"):
        restore_statistics(average, ends, images(), batch_norm="other")


class Pair(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, a, b):
        return self.layers[1:](self.layers[0](a, b))


# ---- data ------------------------------------------------------------------------------------------------


def test_data_may_be_a_tensor_batches_a_loader_or_an_iterator():
    ends = [random_parameters(mlp(), seed) for seed in range(2)]
    x = inputs(mlp)
    labeled = [(batch, torch.zeros(len(batch))) for batch in x.split(9)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=11
    )
    expected = merge(ends, repair_data=x).model.state_dict()
    for data in (x.split(9), labeled, loader, iter(labeled), [x.float()]):
        state = merge(ends, repair_data=data).model.state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-4)


def test_too_few_inputs_and_no_end_points():
    two = nn.Sequential(nn.Bilinear(3, 4, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    two = trace(Pair(random_parameters(two)), [torch.zeros(2, n, dtype=torch.float64) for n in (3, 4)])
    with pytest.raises(ShapeError, match="takes 2 inputs; a batch of the data has 1"):
        restore_statistics(two, [two], [torch.zeros(2, 3)])
    model = random_parameters(mlp())
    with pytest.raises(ShapeError, match="got none"):
        restore_statistics(model, [], inputs(mlp))
    with pytest.raises(ShapeError, match="one weight per end point; got 1 for 2"):
        restore_statistics(model, [model, model], inputs(mlp), weights=(1,))


@pytest.mark.parametrize(
    "kind", ["resnet", "grouped convolutions", "u-net", "encoder layer", "gpt", "llama", "glu"]
)
def test_every_architecture_is_restored_or_left_alone(kind):
    architecture = ARCHITECTURES[kind]
    ends = [trace(architecture.module(seed), architecture.inputs()) for seed in range(2)]
    merged = merge(ends, repair_data=[architecture.inputs(seed=5)])
    assert merged.left_alone == ()
    values = merged.model.to_module()(*architecture.inputs())
    assert bool(values.isfinite().all())


def test_barrier_with_repair_has_the_same_ends_and_a_repaired_middle():
    ends = [random_parameters(mlp(), seed) for seed in range(2)]
    x = inputs(mlp)

    def loss(module):
        return float(module(x).detach().square().sum())

    plain, repaired = (barrier(*ends, loss, points=3, repair_data=data) for data in (None, x))
    assert plain.losses[::2] == pytest.approx(repaired.losses[::2])
    middle = restore_statistics(interpolate(*ends, 0.5), ends, x).model
    assert repaired.losses[1] == pytest.approx(loss(middle))
    assert repaired.losses[1] != pytest.approx(plain.losses[1])
