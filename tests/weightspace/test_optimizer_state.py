"""Training a permuted model with the permuted optimizer state is permuting after training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES
from weightspace.errors import ShapeError
from weightspace.optimizer_state import permute_optimizer_state
from weightspace.permutation import permute, random_permutations
from weightspace.repair import written_into
from weightspace.tracing import trace
from weightspace.verification import symmetry

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True),
}


def train(module, optimizer, batches):
    module.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        output = module(inputs)
        F.cross_entropy(output.flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
    module.eval()


def batches(architecture, module, start, count):
    for seed in range(start, start + count):
        (inputs,) = architecture.inputs(seed=seed)
        with torch.no_grad():
            shape = module(inputs).shape
        generator = torch.Generator().manual_seed(seed)
        yield inputs, torch.randint(shape[-1], shape[:-1], generator=generator)


def moved(module, network, spec, permutations):
    state = module.state_dict()
    current = network.replace_parameters({n: state[n].clone() for n in network.parameters if n in state})
    return written_into(module, current, permute(current, spec, permutations))


CASES = [("llama", kind) for kind in OPTIMIZERS] + [
    (name, kind) for name in ("resnet", "tied gpt", "grouped convolutions") for kind in ("adam", "sgd")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_training_commutes_with_permuting(name, kind):
    architecture = ARCHITECTURES[name]
    module = architecture.module()
    network = trace(module, architecture.inputs())
    spec = symmetry(network)
    permutations = random_permutations(spec, torch.Generator().manual_seed(1))
    optimizer = OPTIMIZERS[kind](module.parameters())
    train(module, optimizer, list(batches(architecture, module, 0, 4)))

    other = moved(module, network, spec, permutations)
    twin = OPTIMIZERS[kind](other.parameters())
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    twin.load_state_dict(permute_optimizer_state(state, module, spec=spec, permutations=permutations))
    for index, entry in before["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(state["state"][index][k]))
            for k, v in entry.items()
        )

    later = list(batches(architecture, module, 4, 5))
    train(module, optimizer, later)
    train(other, twin, later)
    expected = moved(module, network, spec, permutations).state_dict()
    start = moved(architecture.module(), network, spec, permutations).state_dict()
    for key, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-9, atol=1e-9)
    assert any(not torch.allclose(start[key], tensor, rtol=1e-3) for key, tensor in expected.items())


def test_nothing_is_shared_with_the_state_given():
    """An optimizer that loads a state goes on to write into its tensors."""
    module, spec, permutations = small()
    state = stepped(torch.optim.Adam(module.parameters()), module)
    result = permute_optimizer_state(state, module, spec=spec, permutations=permutations)
    for index, entry in state["state"].items():
        assert all(value.data_ptr() != result["state"][index][key].data_ptr() for key, value in entry.items())


def small():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    spec = symmetry(module)
    return module, spec, {spec.groups[0].name: torch.tensor([1, 2, 3, 0])}


def stepped(optimizer, module):
    module(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def test_names_come_from_the_state_the_argument_or_the_model():
    module, spec, permutations = small()
    reverse = list(module.named_parameters())[::-1]
    state = stepped(torch.optim.Adam(reverse), module)  # the state dict records the names
    names = [name for name, _ in reverse]
    bare = copy.deepcopy(state)
    del bare["param_groups"][0]["param_names"]
    traced = trace(module, torch.zeros(2, 3))
    results = [
        permute_optimizer_state(state, module, spec=spec, permutations=permutations),
        permute_optimizer_state(bare, traced, spec=spec, permutations=permutations, names=names),
    ]
    index = permutations[spec.groups[0].name]
    for result in results:
        at = names.index("0.weight")
        assert torch.equal(result["state"][at]["exp_avg"], state["state"][at]["exp_avg"][index])
        at = names.index("2.weight")
        assert torch.equal(result["state"][at]["exp_avg_sq"], state["state"][at]["exp_avg_sq"][:, index])
        assert result["state"][at]["step"] == 1


def test_frozen_parameters_without_state_and_several_groups():
    module, spec, permutations = small()
    module[0].weight.requires_grad_(False)
    layers = [{"params": module[0].parameters(), "lr": 0.1}, {"params": module[2].parameters()}]
    state = stepped(torch.optim.SGD(layers, 1e-2, momentum=0.9), module)
    assert 0 not in state["state"]
    result = permute_optimizer_state(state, module, spec=spec, permutations=permutations)
    assert result["param_groups"] == state["param_groups"]
    assert set(result["state"]) == set(state["state"])


def test_refusals():
    module, spec, permutations = small()
    state = stepped(torch.optim.Adam(module.parameters()), module)
    with pytest.raises(ShapeError, match="has 4 parameters; 2 names"):
        permute_optimizer_state(
            state, module, spec=spec, permutations=permutations, names=["0.weight", "0.bias"]
        )
    with pytest.raises(ShapeError, match="no parameter 'x'"):
        permute_optimizer_state(state, module, spec=spec, permutations=permutations, names=["x"] * 4)
    with pytest.raises(ShapeError, match="no permutation"):
        permute_optimizer_state(
            state, module, spec=spec, permutations={spec.groups[0].name: torch.zeros(4).long()}
        )
    factored = stepped(torch.optim.Adafactor(module.parameters()), module)
    with pytest.raises(ShapeError, match=r"'row_var' of parameter '0.weight' has shape"):
        permute_optimizer_state(factored, module, spec=spec, permutations=permutations)
