"""Requirements on networks, from a TOML or YAML file.

    title = "Collision avoidance"
    model = "controller.onnx"                 # of every requirement that names none

    [[requirements]]
    id = "R1"
    text = "The advisory changes by at most 10 per unit of input."
    source = "hazard analysis, H-3"           # optional
    kind = "lipschitz"
    max = 10.0
    norm = "l2"                               # or "linf"
    region = {lower = [0, 0], upper = [1, 1]} # or {center, radius}, the name of a JSON file, or nothing
    output = [0, 1]                           # optional: an index, or a pair for the difference

    [[requirements]]
    id = "R2"
    text = "Never clear of conflict while an intruder is near."
    kind = "property"
    vnnlib = "prop_1.vnnlib"                  # or a region (a box) and
    unsafe = [{matrix = [[1, -1]], bounds = [0]}]   # the union of all y with matrix y <= bounds
    seconds = 60                              # after which it is unknown

    [[requirements]]
    id = "R3"
    text = "Nine of ten digits stay right under small changes."
    kind = "robustness"
    data = "test.npz"                         # arrays x and y
    epsilon = 0.1
    norm = "l2"
    min_certified_accuracy = 0.9

Names of files are relative to this one and stay beside or below it. A model may be a table {file, architecture,
activation, layout}, see `weightspace.read`; an architecture in Python is run only if the caller says so.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from certify.properties import Polyhedron, Property
from certify.region_files import read_region, region_of
from certify.regions import Box, Region
from certify.signals import Output
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.network import Network

SUFFIXES = (".toml", ".yaml", ".yml")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BYTES = 2**26
_DEPTH = 100  # of nested brackets in YAML
_REPRESENTATION = reprlib.Repr()  # in YAML a few lines can stand for billions of entries
_REPRESENTATION.maxstring = _REPRESENTATION.maxother = 100


@dataclass(frozen=True)
class ModelFile:
    """Where a network is read from.

    Attributes:
        path: of the file.
        name: the path as the requirement gives it.
        architecture, activation, layout: as for `weightspace.read`.
    """

    path: Path
    name: str
    architecture: str | None = None
    activation: str | None = None
    layout: str | None = None

    def read(self) -> Network:
        """Return the network.

        Raises:
            WeightspaceError: as `weightspace.read`.
        """
        from weightspace.reading import read

        return read(self.path, architecture=self.architecture, activation=self.activation, layout=self.layout)


@dataclass(frozen=True)
class LipschitzLimit:
    """The Lipschitz constant is at most `limit`; the other fields are those of `certify.lipschitz`."""

    limit: float
    norm: str = "l2"
    region: Region | None = None
    output: Output = None


@dataclass(frozen=True)
class SafeOutputs:
    """All properties hold; the search may take `seconds` for each requirement."""

    properties: tuple[Property, ...]
    seconds: float = 60.0


@dataclass(frozen=True)
class CertifiedAccuracy:
    """At least the share `minimum` of the samples in `data` is classified right within `epsilon` of each."""

    data: Path
    epsilon: float
    norm: str
    minimum: float


Demand = LipschitzLimit | SafeOutputs | CertifiedAccuracy


@dataclass(frozen=True)
class Requirement:
    """One requirement on one network.

    Attributes:
        identifier: letters, digits, ".", "_" and "-"; names the evidence file.
        text: for people.
        source: where it comes from.
        model: the network.
        demand: what must hold.
    """

    identifier: str
    text: str
    source: str
    model: ModelFile
    demand: Demand


@dataclass(frozen=True)
class Requirements:
    """A file of requirements.

    Attributes:
        title: of the matrix.
        path: of the file.
        digest: SHA-256 of its bytes.
        requirements: in the order of the file.
    """

    title: str
    path: Path
    digest: str
    requirements: tuple[Requirement, ...]


def read_requirements(path: str | Path, *, run_architectures: bool = False) -> Requirements:
    """Read a TOML or YAML file; the module's docstring shows the form. Boxes and VNN-LIB files it names are read too.

    Args:
        run_architectures: accept models with an architecture `file.py:function`, which is run when they are read.
    Raises:
        WeightspaceError: it or a file it names cannot be read, a key is missing, unknown or doubled, a value is of the
            wrong type or out of range; the message names the requirement and the key.

    Examples:
        >>> import certify, pathlib, tempfile
        >>> from weightspace.bundled import load
        >>> text = '''
        ... title = "Digits"
        ... [[requirements]]
        ... id = "R1"
        ... text = "The scores change by at most 10 per unit of input."
        ... kind = "lipschitz"
        ... max = 10.0
        ... model = "digits.safetensors"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "requirements.toml")
        ...     _ = path.write_text(text)
        ...     load("digits_maxmin").save(f"{folder}/digits.safetensors")
        ...     [entry.identifier for entry in certify.read_requirements(path).requirements]
        ['R1']
    """
    path = Path(path)
    content = _content(path)
    data = _parse(content, path)
    top = _Table(data, f"{str(path)!r}", path.parent)
    title = top.take("title", _text, path.stem)
    shared = top.take("model", _model, None)
    entries = top.take("requirements", _tables)
    top.finish()
    found: dict[str, Requirement] = {}
    for place, entry in enumerate(entries, 1):
        requirement = _requirement(_Table(entry, f"{str(path)!r}, requirement {place}", path.parent), shared)
        code = requirement.model.architecture
        if code and not code.endswith(".json") and not run_architectures:
            raise WeightspaceError(
                f"{str(path)!r}, requirement {place}: the architecture {code!r} is Python that would be run; if you "
                "trust it, say --run-architectures (in Python run_architectures=True)"
            )
        known = requirement.identifier.casefold()  # two file names that some systems do not tell apart
        if known in found:
            raise WeightspaceError(f"{str(path)!r}: two requirements have the id {requirement.identifier!r}")
        found[known] = requirement
    return Requirements(title, path, hashlib.sha256(content).hexdigest(), tuple(found.values()))


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read requirements {str(path)!r}: {error.strerror}") from error
    if len(content) > _BYTES:
        raise CheckpointError(f"requirements {str(path)!r} have more than {_BYTES >> 20} MB; split them")
    return content


def _parse(content: bytes, path: Path) -> Any:
    try:
        text = content.decode("utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else _parse_yaml(text)
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"cannot read requirements {str(path)!r}: {reason}") from error


def _parse_yaml(text: str) -> Any:
    import yaml

    _require_shallow(text)

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice: the last one would silently replace a requirement."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = [key.value for key, _ in node.value]
            doubled = next((key for k, key in enumerate(keys) if key in keys[:k]), None)
            if doubled is not None:
                raise ValueError(f"key {doubled!r} stands twice{node.start_mark}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _require_shallow(text: str) -> None:
    """Refuse brackets in brackets in .. before the parser spends minutes on them: it is quadratic in their depth.

    Raises:
        ValueError: more than `_DEPTH` are open at a place.
    """
    depth = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if bracket[0] in "[{" else max(depth - 1, 0)
        if depth > _DEPTH:
            raise ValueError(f"more than {_DEPTH} nested brackets")


class _Table:
    """A table whose keys are taken one by one; what is left over is unknown."""

    def __init__(self, data: Any, place: str, folder: Path):
        self.place, self.folder = place, folder
        if not isinstance(data, Mapping):
            raise WeightspaceError(f"{place} is not a table of keys and values")
        self.data, self.known = dict(data), []

    def take(self, key: str, read: Callable[[Any, str, Path], Any], *default: Any) -> Any:
        """Return what `read` makes of the value of `key`; without a default the key must be there."""
        self.known.append(key)
        if key not in self.data:
            if not default:
                raise WeightspaceError(f"{self.place} has no {key!r}; add it")
            return default[0]
        try:
            return read(self.data.pop(key), f"{self.place}: {key}", self.folder)
        except WeightspaceError as error:  # of a file it names, which knows nothing of the requirement
            if str(error).startswith(self.place):
                raise
            raise WeightspaceError(f"{self.place}: {key}: {error}") from error

    def finish(self) -> None:
        """Refuse the keys that nobody asked for."""
        if self.data:
            raise WeightspaceError(
                f"{self.place} has an unknown key {next(iter(self.data))!r}; the keys are {', '.join(self.known)}"
            )


def _requirement(table: _Table, shared: ModelFile | None) -> Requirement:
    identifier = table.take("id", _identifier)
    table.place = f"{table.place} ({identifier})"
    text, source = table.take("text", _text), table.take("source", _text, "")
    model = table.take("model", _model, shared)
    if model is None:
        raise WeightspaceError(f"{table.place} has no 'model'; add it here or at the top of the file")
    kind = table.take("kind", _one_of(*_DEMANDS))
    demand = _DEMANDS[kind](table)
    table.finish()
    return Requirement(identifier, text, source, model, demand)


def _lipschitz(table: _Table) -> LipschitzLimit:
    return LipschitzLimit(
        table.take("max", _number(low=0.0)),
        table.take("norm", _one_of("l2", "linf"), "l2"),
        table.take("region", _region, None),
        table.take("output", _output, None),
    )


def _property(table: _Table) -> SafeOutputs:
    seconds = table.take("seconds", _number(low=0.0), 60.0)
    if "vnnlib" in table.data:
        return SafeOutputs(table.take("vnnlib", _vnnlib), seconds)
    table.known.append("vnnlib")
    region = table.take("region", _region)
    if not isinstance(region, Box):
        raise WeightspaceError(f"{table.place}: region is a ball; a property needs a box")
    unsafe = tuple(table.take("unsafe", _polyhedra))
    if not unsafe:
        raise WeightspaceError(f"{table.place}: unsafe is empty; give at least one {{matrix, bounds}}")
    return SafeOutputs((Property(region, unsafe),), seconds)


def _robustness(table: _Table) -> CertifiedAccuracy:
    return CertifiedAccuracy(
        table.take("data", _path),
        table.take("epsilon", _number(low=0.0)),
        table.take("norm", _one_of("l2", "linf"), "l2"),
        table.take("min_certified_accuracy", _number(low=0.0, high=1.0)),
    )


_DEMANDS: dict[str, Callable[[_Table], Demand]] = {
    "lipschitz": _lipschitz, "property": _property, "robustness": _robustness,
}  # fmt: skip


def _text(value: Any, place: str, folder: Path) -> str:
    if not isinstance(value, str):
        raise WeightspaceError(f"{place} is {_shown(value)}, not text; put it in quotation marks")
    return value


def _identifier(value: Any, place: str, folder: Path) -> str:
    if not _IDENTIFIER.fullmatch(_text(value, place, folder)):
        raise WeightspaceError(
            f"{place} {_shown(value)} is not made of letters, digits, '.', '_' and '-', at most 100; it names a file"
        )
    return value


def _path(value: Any, place: str, folder: Path) -> Path:
    """The path of a file that is named, which must not lead out of the folder: files may come from strangers."""
    name = _text(value, place, folder)
    spellings = (PurePosixPath(name), PureWindowsPath(name))
    if "\0" in name or any(one.is_absolute() or one.drive or ".." in one.parts for one in spellings):
        raise WeightspaceError(
            f"{place} is {_shown(value)}, which lies outside of the folder of the requirements; move them above it"
        )
    return folder / name


def _number(low: float, high: float = math.inf) -> Callable[[Any, str, Path], float]:
    def read(value: Any, place: str, folder: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = "; in YAML write 1.0e-3, not 1e-3" if isinstance(value, str) else ""
            raise WeightspaceError(f"{place} is {_shown(value)}, not a number{hint}")
        if not low <= value <= min(high, sys.float_info.max):  # a whole number may be beyond all doubles
            upper = "" if high == math.inf else f" and at most {high:g}"
            raise WeightspaceError(f"{place} is {_shown(value)}; it must be finite, at least {low:g}{upper}")
        return float(value)

    return read


def _one_of(*choices: str) -> Callable[[Any, str, Path], str]:
    def read(value: Any, place: str, folder: Path) -> str:
        if value not in choices:
            raise WeightspaceError(f"{place} is {_shown(value)}; it must be one of {', '.join(choices)}")
        return value

    return read


def _output(value: Any, place: str, folder: Path) -> Output:
    match value:
        case int() if type(value) is int and value >= 0:
            return value
        case [int() as first, int() as second] if {type(first), type(second)} == {int} and min(value) >= 0:
            return first, second
    raise WeightspaceError(f"{place} is {_shown(value)}; it must be an index or a pair of indices")


def _region(value: Any, place: str, folder: Path) -> Region:
    return read_region(_path(value, place, folder)) if isinstance(value, str) else region_of(value, place)


def _vnnlib(value: Any, place: str, folder: Path) -> tuple[Property, ...]:
    from certify.assurance.vnnlib import read_vnnlib

    return read_vnnlib(_path(value, place, folder))


def _tables(value: Any, place: str, folder: Path) -> list:
    if not isinstance(value, list) or not value:
        raise WeightspaceError(f"{place} is {_shown(value)}, not a list of one or more tables")
    return value


def _polyhedra(value: Any, place: str, folder: Path) -> list[Polyhedron]:
    polyhedra = []
    for entry in _tables(value, place, folder):
        table = _Table(entry, place, folder)
        matrix, bounds = (table.take(key, lambda value, *_: value) for key in ("matrix", "bounds"))
        table.finish()
        try:
            polyhedra.append(Polyhedron(matrix, bounds))
        except (ValueError, TypeError, OverflowError) as error:
            raise WeightspaceError(f"{place}: {error}") from error
    return polyhedra


def _model(value: Any, place: str, folder: Path) -> ModelFile:
    if isinstance(value, str):
        return ModelFile(_path(value, place, folder), value)
    table = _Table(value, place, folder)
    name = table.take("file", _text)
    architecture = table.take("architecture", _path, None)  # file.py:function, also relative to this file
    others = [table.take(key, _text, None) for key in ("activation", "layout")]
    table.finish()
    return ModelFile(_path(name, place, folder), name, architecture and str(architecture), *others)


def _shown(value: Any) -> str:
    text = _REPRESENTATION.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
