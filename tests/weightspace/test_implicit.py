"""Implicit layers solve their equation, differentiate through it, and stay one operation of the network."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from weightspace.errors import ArchitectureError, ConvergenceError, ShapeError
from weightspace.fixed_point import activation_slope, activation_value
from weightspace.layers import Implicit, implicit
from weightspace.network import Network
from weightspace.operations import operation_from_json
from weightspace.reading import read
from weightspace.tracing import trace

ACTIVATIONS = ["ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Absolute"]
DTYPES = [torch.float32, torch.float64]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def contraction(n, norm):
    w = normal(n, n)
    return norm * w / torch.linalg.matrix_norm(w, 2)


def monotone(n, margin, scale):
    """I - W has symmetric part at least `margin`; the spectral norm of W is far above 1."""
    a, b = scale * normal(n, n) / n**0.5, scale * normal(n, n, seed=1) / n**0.5
    return (1 - margin) * torch.eye(n, dtype=torch.float64) - a.T @ a + b - b.T


def infinity_measure(n):
    w = normal(n, n)
    w = 0.9 * w / w.abs().sum(1, keepdim=True)
    return w - torch.diag(w.diag().abs() + 40 * torch.rand(n, dtype=torch.float64))


WEIGHTS = {
    "contraction": contraction(20, 0.99),
    "monotone": monotone(20, 0.1, 5.0),
    "rotation": 0.9 * torch.eye(12, dtype=torch.float64) + 30 * (normal(12, 12) - normal(12, 12).T),
    "infinity norm": infinity_measure(15),
    "triangular": torch.tril(3 * normal(8, 8), -1),
    "one unit": torch.tensor([[-50.0]], dtype=torch.float64),
}
CASES = [
    (w, a) for w in WEIGHTS for a in ACTIVATIONS if a != "Absolute" or w in ("contraction", "triangular")
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "activation"), CASES)
def test_output_solves_the_equation(name, activation, dtype):
    w = WEIGHTS[name].to(dtype)
    u, b = normal(len(w), 3).to(dtype), normal(len(w)).to(dtype)
    for scale in (1e-6, 1.0, 1e4):
        x = scale * normal(2, 8, 3, seed=2).to(dtype)
        z = implicit(x, w, u, b, activation=activation, negative_slope=0.2)
        assert (z.shape, z.dtype) == ((2, 8, len(w)), dtype)
        x, z = x.double(), z.double()
        a = z @ w.double().T + x @ u.double().T + b.double()
        terms = z.abs() @ (w.double().abs().T + torch.eye(len(w))) + x.abs() @ u.double().abs().T + b.abs()
        residual = (z - activation_value(activation, 0.2, a)).abs().amax(-1)
        assert bool((residual <= 20 * torch.finfo(dtype).eps * terms.amax(-1)).all())


def test_contraction_agrees_with_picard_iteration():
    w, u, x = contraction(10, 0.8), normal(10, 3), normal(6, 3, seed=1)
    for activation in ACTIVATIONS:
        z = torch.zeros(6, 10, dtype=torch.float64)
        for _ in range(300):
            z = activation_value(activation, 0.01, z @ w.T + x @ u.T)
        torch.testing.assert_close(implicit(x, w, u, activation=activation), z, rtol=1e-12, atol=1e-12)


def test_samples_do_not_depend_on_each_other():
    torch.manual_seed(0)
    layer = Implicit(3, 7).double()
    x = normal(9, 3)
    torch.testing.assert_close(layer(x)[4], layer(x[4]), rtol=1e-13, atol=1e-13)
    assert layer(x[:0]).shape == (0, 7)


# ---- derivatives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slope_is_the_derivative(activation):
    a = normal(50).requires_grad_()
    (expected,) = torch.autograd.grad(activation_value(activation, 0.3, a).sum(), a)
    torch.testing.assert_close(activation_slope(activation, 0.3, a), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch warns about itself
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_first_and_second_order(activation, bias):
    arguments = [normal(4, 3, seed=2), contraction(5, 0.9), normal(5, 3)] + [normal(5)] * bias
    arguments = [tensor.clone().requires_grad_() for tensor in arguments]

    def function(*tensors):
        return implicit(*tensors, activation=activation, negative_slope=0.2)

    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobian_product_by_two_backward_passes(activation, dtype):
    torch.manual_seed(0)
    layer = Implicit(4, 6, activation, 0.2).to(dtype)
    x = normal(5, 4).to(dtype).requires_grad_()
    z = layer(x)
    direction, dual = normal(5, 4, seed=1).to(dtype), torch.zeros_like(z, requires_grad=True)
    (adjoint,) = torch.autograd.grad(z, x, dual, create_graph=True)
    (image,) = torch.autograd.grad(adjoint, dual, direction)
    a = z @ layer.weight.T + x @ layer.input_weight.T + layer.bias
    d = torch.diag_embed(activation_slope(activation, 0.2, a))
    jacobian = torch.linalg.solve(torch.eye(6, dtype=dtype) - d @ layer.weight, d @ layer.input_weight)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = (jacobian @ direction[..., None])[..., 0]
    torch.testing.assert_close(image, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("trained", [True, False])
def test_function_transforms(trained):
    torch.manual_seed(0)
    layer = Implicit(3, 4, "Tanh").double().requires_grad_(trained)
    x, direction = normal(5, 3), normal(5, 3, seed=1)
    jacobians = torch.stack([torch.autograd.functional.jacobian(layer, row) for row in x])
    torch.testing.assert_close(torch.vmap(torch.func.jacrev(layer))(x), jacobians)
    torch.testing.assert_close(torch.vmap(torch.func.jacfwd(layer))(x), jacobians)
    _, image = torch.func.jvp(layer, (x,), (direction,))
    torch.testing.assert_close(image, (jacobians @ direction[..., None])[..., 0])
    weights = torch.stack([contraction(4, norm) for norm in (0.2, 0.9)])
    found = torch.vmap(lambda w: implicit(x, w, layer.input_weight, activation="Tanh"))(weights)
    expected = [implicit(x, w, layer.input_weight, activation="Tanh") for w in weights]
    torch.testing.assert_close(found, torch.stack(expected))


def test_it_can_be_trained():
    torch.manual_seed(0)
    model = nn.Sequential(Implicit(2, 8), nn.Linear(8, 1))
    x = torch.rand(64, 2) * 2 - 1
    y = x[:, :1] * x[:, 1:]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- as an operation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_network_round_trips(activation, dtype, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), Implicit(3, 5, activation, 0.25)).to(dtype)
    x = normal(6, 4).to(dtype)
    network = trace(module, x)
    node = network.node(network.outputs[0])
    assert node.operation.kind == "Implicit"
    assert node.operation.attributes == {"activation": activation, "negative_slope": 0.25}
    assert node.operation.parameters == {
        "weight": "1.weight", "input_weight": "1.input_weight", "bias": "1.bias"
    }  # fmt: skip
    assert (node.shape, node.dtype) == ((None, 5), str(dtype).removeprefix("torch."))
    torch.testing.assert_close(network.to_module()(x), module(x))
    assert operation_from_json(json.loads(json.dumps(node.operation.to_json()))) == node.operation
    assert Network.from_json(network.to_json(), network.parameters).hash == network.hash
    assert Network.from_networkx(network.to_networkx(), network.parameters).hash == network.hash
    network.save_npz(tmp_path / "network.npz")
    assert read(tmp_path / "network.npz").hash == network.hash
    assert trace(network.to_module(), x).hash == network.hash
    for other in DTYPES:
        converted = network.astype(other)
        found = converted.to_module()(x.to(other))
        assert found.dtype == other
        torch.testing.assert_close(found, module(x).to(other), rtol=1e-5, atol=1e-5)


def test_hash_tells_the_activation_and_the_slope():
    torch.manual_seed(0)
    layers = [Implicit(3, 4, a, s) for a, s in (("ReLU", 0.1), ("LeakyReLU", 0.1), ("LeakyReLU", 0.2))]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    assert len({trace(layer, torch.randn(2, 3)).hash for layer in layers}) == 3


def test_initial_weight_has_norm_one_half():
    torch.manual_seed(0)
    layer = Implicit(3, 40)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight, 2), torch.tensor(0.5))
    assert repr(Implicit(3, 2, "Tanh")) == "Implicit(3, 2, activation='Tanh')"


# ---- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_goes_through_alone(dtype):
    torch.manual_seed(0)
    layer = Implicit(3, 4).to(dtype)
    x = normal(5, 3).to(dtype)
    clean = layer(x)
    x[1, 0], x[3, 2] = np.nan, np.inf
    z = layer(x)
    assert bool(z[[1, 3]].isnan().all())
    torch.testing.assert_close(z[[0, 2, 4]], clean[[0, 2, 4]])
    with torch.no_grad():
        layer.weight[0, 0] = np.nan
    assert bool(layer(x).isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("weight", "activation"), [(2.0, "ReLU"), (1.0, "ReLU"), (1.0, "Absolute")])
def test_equation_without_solution_is_refused(weight, activation, dtype):
    w, u, x = (torch.tensor([[value]], dtype=dtype) for value in (weight, 1.0, 1.0))
    with pytest.raises(ConvergenceError, match=r"did not converge: the layer may not be well-posed \(1 of 1"):
        implicit(x, w, u, activation=activation)


def test_wrong_arguments_are_refused():
    x, w, u = torch.randn(2, 3), torch.eye(4) / 2, torch.randn(4, 3)
    for wrong in ((x, w[:3], u), (x, w, u.T), (x, w, u, torch.zeros(3)), (torch.tensor(1.0), w, u)):
        with pytest.raises(ShapeError, match=r"implicit needs x \(\.\.\., m\)"):
            implicit(*wrong)
    with pytest.raises(ShapeError, match="one dtype"):
        implicit(x.double(), w, u)
    for refused in (lambda: implicit(x, w, u, activation="GELU"), lambda: Implicit(3, 4, "GELU")):
        with pytest.raises(ArchitectureError, match="ReLU, LeakyReLU, Tanh, Sigmoid, Absolute; got 'GELU'"):
            refused()
    description = trace(Implicit(3, 4), x).nodes[1].operation.to_json()
    description["attributes"]["activation"] = "GELU"
    with pytest.raises(ArchitectureError, match="GELU"):
        operation_from_json(description)
