"""What a name of an ONNX graph can stand for besides a value computed from the input: `Known` and `Sizes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import UnsupportedOperationError


class NotConstantError(Exception):
    """A rule needs a constant where the graph computes a value; the operation becomes opaque."""


@dataclass(frozen=True, eq=False)
class Known:
    """An array that depends on no input. `transposed_of` is the weight it is the transpose of, if any."""

    array: np.ndarray
    name: str
    trained: bool = False
    transposed_of: Known | None = None


@dataclass(frozen=True, eq=False)
class Sizes:
    """An array computed from the batch size: its values at the two sizes of `builder.BATCHES`."""

    arrays: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class OnnxCall:
    """One node of the graph; `wanted` are the positions of the outputs that something uses."""

    kind: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    wanted: tuple[int, ...]
    proto: Any


# onnx.TensorProto.DataType
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32,
    7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128, 16: torch.bfloat16, 17: torch.float8_e4m3fn, 19: torch.float8_e5m2,
}  # fmt: skip


def to_tensor(array: np.ndarray, name: str) -> Tensor:
    """Return a copy of an array as a tensor.

    Raises:
        UnsupportedOperationError: text, or a number format torch lacks.
    """
    try:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(np.array(array.view(np.int16), order="C")).view(torch.bfloat16)
        if array.dtype.name in ("float8_e4m3fn", "float8_e5m2"):
            return torch.from_numpy(np.array(array.view(np.uint8), order="C")).view(
                getattr(torch, array.dtype.name)
            )
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise UnsupportedOperationError(
            f"the array {name!r} has dtype {array.dtype.name}, which torch has not; store it as float32"
        ) from error
