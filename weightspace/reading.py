"""`read`: a network from any supported file."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoint import Checkpoint, open_checkpoint
from weightspace.errors import ArchitectureError, CheckpointError, WeightspaceError
from weightspace.module import NetworkModule
from weightspace.network import Network
from weightspace.state_dicts import perceptron

EMBEDDED = "weightspace.network"  # the metadata key under which Network.save keeps the architecture


def read(
    path: str | Path,
    *,
    architecture: nn.Module | Network | str | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    activation: str | None = None,
    layout: str | None = None,
) -> Network:
    """Read a network from `.onnx`, `.pt2`, a Hugging Face folder, `.safetensors`, `.pt`, `.pth` or `.npz`.

    Files written by `Network.save` and `Network.save_npz` carry their architecture. Any other state dict needs
    `architecture`; without it, it is read as a plain multilayer perceptron if its shapes allow just that.

    Args:
        architecture: an `nn.Module` to load the weights into; `file.py:function`, a function without arguments
            that returns such a module, or a pair of module and example inputs (the file is run: name only
            files you trust); a `Network` or the path of its JSON.
        example_inputs: what to trace the module with; derived when its first layer is Linear.
        activation: nonlinearity of a plain perceptron (`state_dicts.ACTIVATIONS`), default "relu".
        layout: "out-in" or "in-out" storage of its matrices, when shapes leave it open.
    Raises:
        CheckpointError: the file is missing, broken or unsafe.
        ArchitectureError: the network cannot be told from it; the message names the flag that settles it.

    Examples:
        >>> import weightspace
        >>> from weightspace.bundled import path
        >>> network = weightspace.read(path("digits_mlp_a"))
        >>> list(network.parameters)
        ['0.bias', '0.weight', '2.bias', '2.weight', '4.bias', '4.weight']
    """
    path = Path(path)
    try:
        if path.suffix == ".onnx":
            from weightspace.onnx_format import read_onnx

            network = read_onnx(path)
        elif path.suffix == ".pt2":
            from weightspace.pt2_format import read_pt2

            network = read_pt2(path)
        elif path.is_dir() and (path / "config.json").exists() and architecture is None:
            from weightspace.huggingface import read_huggingface

            network = read_huggingface(path)
        else:
            network = _from_checkpoint(
                open_checkpoint(path), architecture, example_inputs, activation, layout
            )
    except WeightspaceError as error:  # of what is inside, which does not know where it stands
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    return replace(network, metadata={**network.metadata, "source": path.name})


def _from_checkpoint(
    checkpoint: Checkpoint,
    architecture: nn.Module | Network | str | None,
    example_inputs: Tensor | Sequence[Tensor] | None,
    activation: str | None,
    layout: str | None,
) -> Network:
    tensors = checkpoint.state_dict()
    if architecture is not None:
        return _with_architecture(tensors, architecture, example_inputs, str(checkpoint.path))
    if EMBEDDED in checkpoint.metadata:
        return Network.from_json(checkpoint.metadata[EMBEDDED], tensors)
    if "network" in tensors and tensors["network"].dtype == torch.uint8:
        return _from_npz(tensors)
    return perceptron(tensors, activation=activation, layout=layout)


def _from_npz(arrays: Mapping[str, Tensor]) -> Network:
    try:
        text = bytes(arrays["network"].tolist()).decode()
        halves = set(json.loads(text).get("bfloat16", ()))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its array 'network' is not the JSON of a network ({error})") from error
    parameters = {}
    for key, tensor in arrays.items():
        if key.startswith("parameter:"):
            name = key.removeprefix("parameter:")
            parameters[name] = tensor.view(torch.bfloat16) if name in halves else tensor
    return Network.from_json(text, parameters)


def _with_architecture(
    tensors: Mapping[str, Tensor],
    architecture: nn.Module | Network | str,
    example_inputs: Tensor | Sequence[Tensor] | None,
    source: str,
) -> Network:
    if isinstance(architecture, str):
        architecture, example_inputs = _named(architecture, example_inputs, tensors)
    if isinstance(architecture, Network):
        missing = [name for name in architecture.parameters if name not in tensors]
        strange = [name for name in tensors if name not in architecture.state_dict()]
        if missing or strange:
            which = f"{missing[0]!r} is missing" if missing else f"{strange[0]!r} is not in the architecture"
            raise ArchitectureError(f"{source} does not fit the architecture: {which}")
        return architecture.replace_parameters({name: tensors[name] for name in architecture.parameters})
    architecture = copy.deepcopy(architecture)
    try:
        architecture.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ArchitectureError(f"{source} does not fit {type(architecture).__name__}: {reason}") from error
    from weightspace.tracing import trace

    return trace(architecture, example_inputs if example_inputs is not None else default_inputs(architecture))


def as_network(
    network_or_module: Network | nn.Module, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> Network:
    """Return a `Network`, tracing a module when one is given.

    Raises:
        ArchitectureError: neither of the two, or a module that cannot be traced.
    """
    if isinstance(network_or_module, Network):
        return network_or_module
    if not isinstance(network_or_module, nn.Module):
        raise ArchitectureError(
            f"a Network or an nn.Module is needed, not {type(network_or_module).__name__}"
        )
    from weightspace.tracing import trace

    return trace(
        network_or_module, default_inputs(network_or_module) if example_inputs is None else example_inputs
    )


def default_inputs(module: nn.Module) -> list[Tensor]:
    """Return inputs of zeros, a batch of two, for a module whose first parametrized layer is Linear.

    Raises:
        ArchitectureError: any other first layer, whose input shape its weights do not tell.
    """
    if isinstance(module, NetworkModule):
        return [
            torch.zeros([2 if n is None else n for n in node.shape], dtype=getattr(torch, node.dtype))
            for node in module.network.inputs
        ]
    for child in module.modules():
        if isinstance(child, nn.Linear):
            weight = child.weight
            return [torch.zeros(2, child.in_features, dtype=weight.dtype, device=weight.device)]
        if next(child.parameters(recurse=False), None) is not None:
            break
    raise ArchitectureError(
        f"the input shape of {type(module).__name__} cannot be told from its first layer; give example_inputs "
        "(on the command line: let the function of --architecture return a pair of module and example inputs)"
    )


def _named(
    text: str, example_inputs: Tensor | Sequence[Tensor] | None, tensors: Mapping[str, Tensor]
) -> tuple[nn.Module | Network, Tensor | Sequence[Tensor] | None]:
    if text.endswith(".json") or text.lstrip().startswith("{"):
        try:
            content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{text}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{text}: not a text file, hence no JSON of a network") from error
        try:
            return Network.from_json(content, tensors), example_inputs
        except ArchitectureError as error:
            raise ArchitectureError(f"architecture {text[:200]}: {error}") from error
    function = _function(text)
    try:
        result = function()
    except Exception as error:
        raise ArchitectureError(f"{text} failed: {type(error).__name__}: {error}") from error
    if isinstance(result, tuple) and len(result) == 2:
        result, example_inputs = result
    if not isinstance(result, nn.Module | Network):
        raise ArchitectureError(f"{text} returned {type(result).__name__}; it must return an nn.Module")
    return result, example_inputs


def _function(text: str) -> Callable[[], Any]:
    """Return the function named by `file.py:function`; the file is run."""
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ArchitectureError(
            f"architecture {text!r} is not of the form file.py:function, nor the path of a .json"
        )
    if not Path(file).is_file():
        raise ArchitectureError(f"architecture file {file!r} does not exist")
    spec = importlib.util.spec_from_file_location(f"weightspace_architecture_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ArchitectureError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise ArchitectureError(f"{file} has no function {name!r}")
    return getattr(module, name)
