"""Find the quadratic functions that a network computes, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.constants import constant_values
from interp.interpreter import Interpreter, TooDeepError
from interp.quadratic_form import QuadraticForm, form_of_layer
from weightspace.errors import ArchitectureError, ShapeError, UnsupportedOperationError
from weightspace.layers import Bilinear
from weightspace.network import Network, Node, require_finite
from weightspace.reading import default_inputs
from weightspace.tracing import trace

_TOLERANCE = 1e-9  # what float64 rounding explains


def recognize(
    model: nn.Module | Network,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    data: Tensor | None = None,
) -> QuadraticForm:
    """Read a network with one bilinear layer, and any affine maps around it, as one quadratic form.

    Args:
        data: samples, (n, *input_shape), on which gates such as SiLU are fitted; without them a gate is refused.
    Raises:
        UnsupportedOperationError: an operation that is neither affine nor the one product, named with its
            node; a second bilinear layer after the first; no product at all.
        ArchitectureError: several inputs or outputs, no free batch axis, a module whose input shape is
            unknown.
        NonFiniteError: NaN or infinite weights.
        ShapeError: the data do not fit the input.
    """
    forms = recognize_layers(model, example_inputs, data=data)
    form, *later = forms
    if later:
        raise UnsupportedOperationError(
            f"decompose takes one bilinear layer; this network has {len(forms)} after each other, the second reads "
            f"{later[0].left.shape[1] - 1} values: use interp.unfold, or decompose each on its own"
        )
    return form


def recognize_layers(
    model: nn.Module | Network,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    data: Tensor | None = None,
) -> tuple[QuadraticForm, ...]:
    """Read a network as quadratic forms, each a function of the values of the one before.

    The network is cut at values through which everything passes, as late as one bilinear layer allows; residual
    connections across the cuts of a residual stream are part of the forms. Arguments and errors as of `recognize`.
    """
    if type(model) is Bilinear and data is None:  # subclasses may compute something else
        return (form_of_layer(model),)
    if isinstance(model, BilinearAutoencoder):
        return (model.form(),)
    network = _network(model, example_inputs)
    require_finite(network)
    source = _only_input(network)
    exact = network.astype(torch.float64)
    source = exact.node(source.name)
    samples = _samples(exact, source, data)
    dtype = getattr(torch, network.node(network.outputs[0]).dtype)
    with torch.no_grad():
        cuts = _cuts(exact, source, constant_values(exact), samples if data is not None else {})
        forms = []
        for run, start, stop, narrow in cuts:
            embedding = None if narrow is None else run.affine_map(narrow)
            form = run.form(stop, dtype, embedding)
            forms.append(_verified(form, samples[start].flatten(1), samples[stop].flatten(1), run.fitted))
    if not any(len(form.left) for form in forms):
        raise UnsupportedOperationError(
            "decompose needs a bilinear layer, a product of two linear maps of its input; the network has none"
        )
    return tuple(forms)


def _network(model: nn.Module | Network, example_inputs: Tensor | Sequence[Tensor] | None) -> Network:
    if isinstance(model, Network):
        return model
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"decompose needs an nn.Module or a Network, not {type(model).__name__}; "
            "for a file use decompose(weightspace.read(path))"
        )
    if isinstance(model, nn.Bilinear):
        if model.in1_features != model.in2_features:
            raise ArchitectureError(
                f"decompose gives nn.Bilinear one input twice; this one takes {model.in1_features} and "
                f"{model.in2_features} features: wrap it in a module of one input"
            )
        example_inputs = torch.zeros(
            2, model.in1_features, dtype=model.weight.dtype, device=model.weight.device
        )
        model = _SelfBilinear(model)
    return trace(model, default_inputs(model) if example_inputs is None else example_inputs)


class _SelfBilinear(nn.Module):
    """x' W_o x + b_o: an nn.Bilinear whose two inputs are one."""

    def __init__(self, bilinear: nn.Bilinear):
        super().__init__()
        self.bilinear = bilinear

    def forward(self, x: Tensor) -> Tensor:
        return self.bilinear(x, x)


def _only_input(network: Network) -> Node:
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ArchitectureError(
            f"decompose needs one input and one output; the network has {len(network.inputs)} inputs "
            f"({', '.join(node.name for node in network.inputs)}) and {len(network.outputs)} outputs"
        )
    source = network.inputs[0]
    shape = tuple(size for size in source.shape[1:] if size is not None)
    if not source.shape or source.shape[0] is not None or len(shape) != len(source.shape) - 1:
        raise ArchitectureError(
            f"decompose needs an input whose first axis is the batch; {source.name!r} has shape "
            f"{source.shape}; give example inputs of shape (batch, features)"
        )
    if not getattr(torch, source.dtype).is_floating_point:
        raise ArchitectureError(
            f"decompose needs a floating input; {source.name!r} has dtype {source.dtype}: "
            "decompose the layers after the embedding (interp.find_sites)"
        )
    return source


def _samples(network: Network, source: Node, data: Tensor | None) -> dict[str, Tensor]:
    """Every node's value on the data, or on random inputs that serve to verify the forms alone."""
    shape = source.shape[1:]
    if data is None:
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(8, *(size or 1 for size in shape), dtype=torch.float64, generator=generator)
    elif data.ndim < 2 or tuple(data.shape[1:]) != shape or len(data) < 2:
        raise ShapeError(
            f"data needs the shape (n, {', '.join(str(size) for size in shape)}), at least two samples; "
            f"it has {tuple(data.shape)}"
        )
    with torch.no_grad():
        return network.to_module().values(data.double().cpu())  # type: ignore[operator]


def _cuts(
    network: Network, source: Node, constants: Mapping[str, Tensor], data: Mapping[str, Tensor]
) -> list[tuple[Interpreter, str, str, str | None]]:
    """Interpreters with the nodes where each begins and ends, and the narrowest affine node in between."""
    moving = _relevant(network, constants)
    passages = _passages(network, moving)
    found = []
    while True:
        run = Interpreter(network, source, constants, data)
        start, stop, narrow = source.name, source.name, None
        size = run.size
        for node in moving[1 + [node.name for node in moving].index(start) :]:
            try:
                run.add(node)
            except TooDeepError:
                if stop == start:
                    raise
                break
            if node.name in passages and node.name not in run.gates:
                stop = node.name
                width = run.values[stop][0].numel()
                if width < size and run.is_affine(stop):
                    narrow, size = stop, width
        else:
            stop = network.outputs[0]
        found.append((run, start, stop, narrow))
        if stop == network.outputs[0]:
            return found
        source = network.node(stop)


def _relevant(network: Network, constants: Mapping[str, Tensor]) -> list[Node]:
    """The nodes between input and output."""
    needed = set(network.outputs)
    for node in reversed(network.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return [node for node in network.nodes if node.name in needed and node.name not in constants]


def _passages(network: Network, moving: list[Node]) -> set[str]:
    """The nodes through which everything passes: no earlier value is used after them."""
    position = {node.name: index for index, node in enumerate(moving)}
    last_use = [0] * len(moving)
    for index, node in enumerate(moving):
        for name in node.inputs:
            if name in position:
                last_use[position[name]] = index
    found, furthest = set(), 0
    for index, node in enumerate(moving):
        if furthest <= index:
            found.add(node.name)
        furthest = max(furthest, last_use[index])
    return found


def _verified(form: QuadraticForm, x: Tensor, expected: Tensor, fitted: bool) -> QuadraticForm:
    """Compare with the network that was run: an exact form must agree, a fitted one gets its residual."""
    got = form(x)
    if fitted:
        missed = (expected - got).square().mean(0).sum()
        return replace(form, residual=float(missed / (expected - expected.mean(0)).square().mean(0).sum()))
    # Large terms may cancel in the output: rounding is measured against the terms.
    error = float((got - expected).abs().max() / form.magnitude(x).max().clamp_min(1e-300))
    if not error <= _TOLERANCE:
        raise ArchitectureError(
            f"the form found differs from the network by {error:.1e}; please report this network"
        )
    return form
