"""Move the state of an optimizer along with the parameters it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from weightspace.errors import ShapeError
from weightspace.network import Network
from weightspace.permutation import Permutations, permute_tensor, require_elements
from weightspace.symmetry_spec import SymmetrySpec


def permute_optimizer_state(
    state: Mapping[str, Any],
    model: nn.Module | Network,
    *,
    spec: SymmetrySpec,
    permutations: Permutations,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return an optimizer's state dict for the model with its hidden units in another order.

    Every tensor of the shape of its parameter moves with it: exp_avg, exp_avg_sq and max_exp_avg_sq of Adam,
    momentum_buffer of SGD, square_avg of RMSprop. Numbers (steps) stay. Since these optimizers work entry by entry,
    training the permuted model with the permuted state gives the permuted result of the training.

    Args:
        state: `optimizer.state_dict()`; it is left as it is.
        model: the model the optimizer trains, for the names and shapes of its parameters.
        spec: the symmetry, under the model's parameter names.
        permutations: the element that was applied to the model, as of `Alignment.permutations`.
        names: of the optimizer's parameters, in its order. Default: those the state dict records (an optimizer made
            from `named_parameters()`), otherwise all parameters of the model in order, as `model.parameters()` gives.
    Returns:
        A new state dict for `optimizer.load_state_dict`. Its tensors are copies, since an optimizer that loads a state
        goes on to write into its tensors.
    Raises:
        ShapeError: names that do not fit, an element that is none of the spec's, a tensor of the state that is neither
            one number nor of its parameter's shape (the factored moments of Adafactor, say).

    Examples:
        >>> import torch, weightspace
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(module.parameters())
        >>> module(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()
        >>> spec = weightspace.symmetry(module)
        >>> order = {spec.groups[0].name: torch.arange(8).flip(0)}
        >>> state = optimizer.state_dict()
        >>> moved = weightspace.permute_optimizer_state(state, module, spec=spec, permutations=order)
        >>> torch.equal(moved["state"][0]["exp_avg"], state["state"][0]["exp_avg"].flip(0))
        True
    """
    require_elements(spec, permutations)
    shapes = _shapes(model)
    order = [index for group in state["param_groups"] for index in group["params"]]
    names = list(names) if names is not None else _recorded(state) or list(_trained(model))
    if len(names) != len(order):
        raise ShapeError(
            f"the optimizer has {len(order)} parameters; {len(names)} names are known: give `names`"
        )
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ShapeError(f"the model has no parameter {unknown[0]!r}")
    aliases = model.aliases if isinstance(model, Network) else _tied(model, spec)
    moved = {}
    for index, name in zip(order, names, strict=True):
        if index in state["state"]:
            axes = spec.axes.get(name, spec.axes.get(aliases.get(name, name)))
            moved[index] = {
                key: _moved(value, key, name, shapes[name], axes, spec, permutations)
                for key, value in state["state"][index].items()
            }
    others = {key: entry for key, entry in state.items() if key != "state"}
    strangers = {index: entry for index, entry in state["state"].items() if index not in moved}
    return {**copy.deepcopy(others), "state": {**copy.deepcopy(strangers), **moved}}


def _moved(
    value: Any,
    key: str,
    name: str,
    shape: tuple[int, ...],
    axes: Any,
    spec: SymmetrySpec,
    permutations: Permutations,
) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if value.ndim == 0 or axes is None:
        return value.clone()
    if tuple(value.shape) != shape:
        raise ShapeError(
            f"state {key!r} of parameter {name!r} has shape {tuple(value.shape)}, not {shape}; it cannot be moved"
        )
    return permute_tensor(value, axes, permutations, spec.by_name).clone()


def _shapes(model: nn.Module | Network) -> dict[str, tuple[int, ...]]:
    tensors = (
        model.state_dict()
        if isinstance(model, Network)
        else dict(model.named_parameters(remove_duplicate=False))
    )
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _trained(model: nn.Module | Network) -> list[str]:
    if isinstance(model, Network):
        return [name for name in model.parameters if name not in model.buffers]
    return [name for name, _ in model.named_parameters()]


def _recorded(state: Mapping[str, Any]) -> list[str]:
    return [name for group in state["param_groups"] for name in group.get("param_names", ())]


def _tied(model: nn.Module, spec: SymmetrySpec) -> dict[str, str]:
    """Name of a tied parameter -> the name under which the spec knows it."""
    every = dict(model.named_parameters(remove_duplicate=False))
    known = {id(every[name]): name for name in spec.axes if name in every}
    return {name: known[id(tensor)] for name, tensor in every.items() if id(tensor) in known}
