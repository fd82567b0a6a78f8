"""Every error the library raises on purpose.

All derive from `WeightspaceError`; the command line prints one as a single line and exits with 2.
A message says what was needed, what was found (with its name and value), and what to do.
"""


class WeightspaceError(Exception):
    """Base of all errors raised on purpose; its text is one line that a user can act on.

    Examples:
        >>> import weightspace
        >>> try:
        ...     weightspace.read("missing.onnx")
        ... except weightspace.WeightspaceError as error:
        ...     type(error).__name__
        'CheckpointError'
    """


class CheckpointError(WeightspaceError):
    """A file is missing, broken, unsafe or not a checkpoint."""


class ArchitectureError(WeightspaceError):
    """The network cannot be told from what was given; the message names the flag that settles it."""


class UnsupportedOperationError(WeightspaceError):
    """An analysis met an operation it has no rule for; the message names it and its place."""


class ShapeError(WeightspaceError, ValueError):
    """Two shapes that must agree do not, or a tensor has the wrong number of axes."""


class SymmetryError(WeightspaceError, ArithmeticError):
    """The weights are so symmetric that an answer which must not depend on the order of neurons is out of reach."""


class NonFiniteError(WeightspaceError, ValueError):
    """A weight is NaN or infinite where the analysis needs finite numbers."""


class OutputError(WeightspaceError):
    """A result cannot be written."""


class MissingDependencyError(WeightspaceError, ImportError):
    """An optional package is needed; the message gives the install command."""


class ConvergenceError(WeightspaceError, ArithmeticError):
    """An iteration did not reach its tolerance; the message has the residual and what makes it converge."""


class ExecutorError(WeightspaceError, RuntimeError):
    """The workers of an executor were lost; the message says what is kept and how to go on."""
