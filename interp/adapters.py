"""Low-rank adapters (LoRA) as factored forms."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.factored_form import FactoredForm
from weightspace.checkpoint import open_checkpoint
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError, WeightspaceError

# The two factors as libraries name them: down is A (r, d_in), up is B (d_out, r).
_DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight")
_UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight")


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    r"""One low-rank update $\Delta W = s\,B A$.

    Attributes:
        name: of the layer, as the file calls it.
        update: $\Delta W$, d_out x d_in; eigenvalues where it is square, singular values always.
        scale: s, alpha / r or what the caller gave.
    """

    name: str
    update: FactoredForm
    scale: float

    def __repr__(self) -> str:
        return f"Adapter({self.name}, {self.update!r}, scale {self.scale:g})"


def find_adapters(
    source: str | Path | Mapping[str, Tensor], *, scale: float | None = None
) -> tuple[Adapter, ...]:
    r"""Read the low-rank updates of an adapter, in the order of the file.

    Args:
        source: a folder or file of an adapter (safetensors or a PyTorch state dict), or its tensors by name: PEFT's
            `lora_A` and `lora_B`, or `lora_down`, `lora_up` and `alpha`.
        scale: s; default alpha / r with the tensor `alpha` of a layer, or with `lora_alpha` of the
            `adapter_config.json` beside the file (and its `alpha_pattern`; alpha / sqrt(r) with `use_rslora`), else 1.
    Raises:
        ArchitectureError: no such factors, or one without the other.
        ShapeError: factors that do not fit, or of a convolution.
        NonFiniteError: NaN or infinite weights, named.
        CheckpointError: the file cannot be read.
    Source: Hu et al., LoRA: Low-rank adaptation of large language models (2022), section 4.1.

    Examples:
        >>> import interp, torch
        >>> tensors = {"q.lora_A.weight": torch.randn(2, 8), "q.lora_B.weight": torch.randn(8, 2)}
        >>> (adapter,) = interp.find_adapters(tensors)
        >>> adapter.name, adapter.scale
        ('q', 1.0)
    """
    if isinstance(source, Mapping):
        tensors, config = dict(source), {}
    else:
        tensors, config = _read(Path(source))
        try:
            return _adapters(tensors, config, scale)
        except WeightspaceError as error:
            raise type(error)(f"{source}: {error}") from error
    return _adapters(tensors, config, scale)


def _adapters(
    tensors: Mapping[str, Tensor], config: Mapping[str, object], scale: float | None
) -> tuple[Adapter, ...]:
    found = []
    for name in tensors:
        ending = next((ending for ending in _DOWN if name.endswith(ending)), None)
        if ending is None:
            continue
        layer = name.removesuffix(ending)
        other = layer + _UP[_DOWN.index(ending)]
        if other not in tensors:
            raise ArchitectureError(
                f"adapter {layer!r} has {name!r} but no {other!r}; the file is incomplete"
            )
        factor = _scale(layer, tensors, config, len(tensors[name])) if scale is None else scale
        found.append(Adapter(layer, _update(name, tensors[name], other, tensors[other], factor), factor))
    if not found:
        raise ArchitectureError(
            "no low-rank factors: no tensor is named lora_A or lora_down; find_adapters reads adapters, not models"
        )
    return tuple(found)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    if path.is_dir():
        files = [path / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            raise ArchitectureError(
                f"{str(path)!r} has no adapter_model.safetensors or adapter_model.bin; name the file"
            )
    else:
        file = path
    described = file.parent / "adapter_config.json"
    config: dict[str, object] = {}
    if described.exists():
        try:
            config = json.loads(described.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("it is no object")
        except (ValueError, OSError, RecursionError) as error:
            raise ArchitectureError(
                f"{str(described)!r} is no JSON object: {error}; mend it or move it away"
            ) from error
    return open_checkpoint(file).state_dict(), config


def _scale(layer: str, tensors: Mapping[str, Tensor], config: Mapping[str, object], rank: int) -> float:
    if rank == 0:
        raise ShapeError(f"the factors of {layer!r} have rank 0; leave them out")
    alpha = tensors.get(f"{layer}.alpha")
    if alpha is not None:
        if alpha.numel() != 1 or alpha.is_complex():
            raise ShapeError(f"'{layer}.alpha' has shape {tuple(alpha.shape)}; it is one number")
        return float(alpha) / rank
    given = config.get("lora_alpha")
    patterns = config.get("alpha_pattern")
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        if len(re.findall(r"[*+{]", pattern)) > 2:  # a file must not choose a search that takes years
            raise ArchitectureError(f"alpha_pattern {pattern[:60]!r} has more than two repetitions; give scale=")
        try:
            applies = re.fullmatch(rf"(.*\.)?{pattern}", layer)
        except re.error as error:
            raise ArchitectureError(f"alpha_pattern {pattern[:60]!r} is no pattern: {error}; mend it") from error
        given = value if applies else given
    if not isinstance(given, int | float):
        return 1.0
    if not abs(given) < 1e300:
        raise NonFiniteError(f"lora_alpha of {layer!r} is not finite; mend adapter_config.json")
    return given / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _update(down: str, a: Tensor, up: str, b: Tensor, scale: float) -> FactoredForm:
    if a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0]:
        raise ShapeError(
            f"{down!r} and {up!r} need shapes (r, d_in) and (d_out, r); they have {tuple(a.shape)} and "
            f"{tuple(b.shape)}: adapters of convolutions are not read"
        )
    for name, tensor in ((down, a), (up, b)):
        if not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{name!r} has NaN or infinite entries")
    dtype = a.dtype if a.dtype == torch.float64 else torch.float32
    return FactoredForm(scale * b.detach().double().cpu().mT, a.detach().double().cpu(), dtype=dtype)
