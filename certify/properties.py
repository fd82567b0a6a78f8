"""Input-output properties of a network: what its outputs must never be while its inputs stay in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from certify.regions import Box
from weightspace.errors import NonFiniteError, ShapeError

Rows = Tensor | np.ndarray | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Polyhedron:
    r"""All outputs y with $A y \le b$.

    Attributes:
        matrix: A, one row per inequality; kept as tuples of floats.
        bounds: b.
    Raises:
        ShapeError: not one bound per row, or no rows.
        NonFiniteError: NaN or infinite numbers.

    Examples:
        >>> import certify
        >>> certify.Polyhedron([[1.0, -1.0], [1.0, 0.0]], [0.0, 5.0])  # y_0 <= y_1 and y_0 <= 5
        Polyhedron(matrix=((1.0, -1.0), (1.0, 0.0)), bounds=(0.0, 5.0))
    """

    matrix: tuple[tuple[float, ...], ...]
    bounds: tuple[float, ...]

    def __init__(self, matrix: Rows, bounds: Tensor | np.ndarray | Sequence[float]):
        a, b = np.asarray(matrix, dtype=np.float64), np.asarray(bounds, dtype=np.float64)
        if a.ndim != 2 or b.shape != a.shape[:1] or not a.size:
            raise ShapeError(
                f"Polyhedron needs one bound per row of its matrix; the shapes are {a.shape} and {b.shape}"
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise NonFiniteError("Polyhedron needs finite numbers; its matrix or its bounds are not")
        object.__setattr__(self, "matrix", tuple(map(tuple, a.tolist())))
        object.__setattr__(self, "bounds", tuple(b.tolist()))


@dataclass(frozen=True)
class Property:
    r"""$f(x) \notin U$ for all x in a box, U being a union of polyhedra.

    Attributes:
        region: the inputs it speaks about, in the network's own units.
        unsafe: the polyhedra whose union is U; an empty union holds always.
        name: for messages and reports.
    Raises:
        ShapeError: the polyhedra speak about different numbers of outputs.

    Examples:
        >>> import certify
        >>> unsafe = certify.Polyhedron([[1.0, -1.0]], [0.0])  # y_0 <= y_1
        >>> certify.Property(certify.Box([0.0], [1.0]), (unsafe,), name="class 0 wins").region
        Box(1 inputs)
    """

    region: Box
    unsafe: tuple[Polyhedron, ...]
    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "unsafe", tuple(self.unsafe))
        sizes = {len(polyhedron.matrix[0]) for polyhedron in self.unsafe}
        if len(sizes) > 1:
            raise ShapeError(
                f"Property {self.name!r} has polyhedra in {sorted(sizes)} outputs; all need one number"
            )

    def require_outputs(self, count: int, of: str = "the network") -> None:
        """Make sure that the property speaks about as many outputs as there are.

        Raises:
            ShapeError: it does not.
        """
        if self.unsafe and len(self.unsafe[0].matrix[0]) != count:
            raise ShapeError(
                f"property {self.name!r} speaks about {len(self.unsafe[0].matrix[0])} outputs; {of} has {count}"
            )
