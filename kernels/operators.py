"""The eigensolvers as `torch.library` operators, for everything that traces, maps or fakes a call.

`torch.ops.weightspace_kernels.eigh(a, backend)` returns values (..., n), vectors (..., n, n) and info (...),
`torch.ops.weightspace_kernels.eigvalsh(a, backend)` values and info, for `a` of shape (..., n, n); see
`kernels.dispatch.Solver` for what they promise. Both know fake tensors, vmap and reverse mode; forward mode and
`torch.func` need the functions of `kernels.eigensolver`, since a registered derivative serves neither.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from kernels.dispatch import Projector, Solver, choose_backend, load_backend
from kernels.gradients import eigh_vjp

LIBRARY = torch.library.Library("weightspace_kernels", "DEF")
LIBRARY.define(
    "eigh(Tensor a, str? backend) -> (Tensor values, Tensor vectors, Tensor info)",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "eigvalsh(Tensor a, str? backend) -> (Tensor values, Tensor info)", tags=torch.Tag.pt2_compliant_tag
)


def eigh(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values, vectors and info, not differentiable; without the dispatcher where nobody would notice."""
    if is_plain(a):
        return solve_eigh(a, backend)
    return torch.ops.weightspace_kernels.eigh(a, backend)


def eigvalsh(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """Values and info, not differentiable."""
    if is_plain(a):
        return solve_eigvalsh(a, backend)
    return torch.ops.weightspace_kernels.eigvalsh(a, backend)


def is_plain(a: Tensor) -> bool:
    """Whether a call on `a` is seen by nobody: no compiler, no transform of `torch.func`, no mode, no subclass."""
    return (
        type(a) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


def needs_derivative(a: Tensor) -> bool:
    """Whether reverse or forward mode may ask for a derivative with respect to `a`."""
    if (a.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    # An inner level hides what an outer one asks for, so look at all of them; Dynamo cannot.
    return torch.compiler.is_compiling() or any(
        level.key() != TransformType.Vmap for level in get_interpreter_stack() or ()
    )


def traceable(a: Tensor) -> Tensor:
    """`a`, or a view of it while compiling: Dynamo (torch 2.13) lets the gradient of `torch.func` vanish for an
    argument of the compiled function that is also detached."""
    return a.view_as(a) if torch.compiler.is_compiling() else a


def solve_eigh(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values, vectors and info by the backend itself."""
    solver = _solver(a, backend)
    if a.numel() == 0:
        return _empty_eigh(a, backend)
    n = a.shape[-1]
    if a.ndim == 3:
        return solver.eigh(a)
    values, vectors, info = solver.eigh(a.reshape(-1, n, n))
    return values.reshape(a.shape[:-1]), vectors.reshape(a.shape), info.reshape(a.shape[:-2])


def solve_eigvalsh(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """Values and info by the backend itself."""
    solver = _solver(a, backend, vectors=False)
    if a.numel() == 0:
        return _empty_eigvalsh(a, backend)
    n = a.shape[-1]
    if a.ndim == 3:
        return solver.eigvalsh(a)
    values, info = solver.eigvalsh(a.reshape(-1, n, n))
    return values.reshape(a.shape[:-1]), info.reshape(a.shape[:-2])


def solve_projection(a: Tensor, backend: str | None) -> Tensor | None:
    """The projection onto the positive semidefinite cone where the backend has one of its own."""
    solver = _solver(a, backend)
    if not isinstance(solver, Projector) or a.numel() == 0:
        return None
    return solver.project_psd(a.reshape(-1, *a.shape[-2:]))[0].reshape(a.shape)


def raise_failures(info: Tensor, function: str) -> None:
    """Wait for `info` and raise torch.linalg.LinAlgError if it is not zero everywhere."""
    failed = info.nonzero()
    if not len(failed):
        return
    shown = ", ".join(str(tuple(index.tolist())) for index in failed[:3]) + (
        ", ..." if len(failed) > 3 else ""
    )
    first = int(info[tuple(failed[0])])
    reason = (
        "its lower triangle has a NaN or infinite entry: mask such matrices out"
        if first < 0
        else f"{first} off-diagonal entries did not converge: try backend='torch', or float64"
    )
    raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
        f"`{function}` failed for {len(failed)} of {info.numel()} matrices, first at batch index {shown}; "
        f"of the first {reason}"
    )


def _solver(a: Tensor, backend: str | None, *, vectors: bool = True) -> Solver:
    name = choose_backend(a, backend, vectors=vectors)
    # Complex matrices are left to the operations of torch, whose derivatives they have.
    return load_backend("torch" if a.is_complex() else name)


def _empty_eigh(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
    values, info = _empty_eigvalsh(a, backend)
    return values, a.new_empty(a.shape), info


def _empty_eigvalsh(a: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    real = a.dtype.to_real() if a.is_complex() else a.dtype
    return a.new_empty(a.shape[:-1], dtype=real), a.new_zeros(a.shape[:-2], dtype=torch.int32)


def _map_eigh(
    info: Any, in_dims: tuple[int | None, ...], a: Tensor, backend: str | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    # Any axes before the last two are a batch.
    return torch.ops.weightspace_kernels.eigh(a.movedim(in_dims[0] or 0, 0), backend), (0, 0, 0)


def _map_eigvalsh(
    info: Any, in_dims: tuple[int | None, ...], a: Tensor, backend: str | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return torch.ops.weightspace_kernels.eigvalsh(a.movedim(in_dims[0] or 0, 0), backend), (0, 0)


def _save_eigh(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _differentiate_eigh(
    ctx: Any, by_values: Tensor | None, by_vectors: Tensor | None, _: None
) -> tuple[Tensor | None, None]:
    values, vectors, info = ctx.saved_tensors
    return eigh_vjp(values, vectors, info, by_values, by_vectors), None


def _save_eigvalsh(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.backend = inputs[1]


def _differentiate_eigvalsh(ctx: Any, by_values: Tensor, _: None) -> tuple[Tensor | None, None]:
    values, vectors, info = torch.ops.weightspace_kernels.eigh(ctx.saved_tensors[0], ctx.backend)
    return eigh_vjp(values, vectors, info, by_values, None), None


LIBRARY.impl("eigh", solve_eigh, "CompositeExplicitAutograd")
LIBRARY.impl("eigvalsh", solve_eigvalsh, "CompositeExplicitAutograd")
torch.library.register_fake("weightspace_kernels::eigh", _empty_eigh, lib=LIBRARY)
torch.library.register_fake("weightspace_kernels::eigvalsh", _empty_eigvalsh, lib=LIBRARY)
torch.library.register_vmap("weightspace_kernels::eigh", _map_eigh, lib=LIBRARY)
torch.library.register_vmap("weightspace_kernels::eigvalsh", _map_eigvalsh, lib=LIBRARY)
torch.library.register_autograd(
    "weightspace_kernels::eigh", _differentiate_eigh, setup_context=_save_eigh, lib=LIBRARY
)
torch.library.register_autograd(
    "weightspace_kernels::eigvalsh", _differentiate_eigvalsh, setup_context=_save_eigvalsh, lib=LIBRARY
)
