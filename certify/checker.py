"""Check a Lipschitz certificate with numpy and the standard library alone.

    python checker.py CERTIFICATE.json NETWORK.npz        exit 0 valid, 1 invalid, 2 error

`NETWORK.npz` is what `Network.save_npz` writes. Nothing the certificate says about the network is believed: its
hash, its linear maps, the slopes of its activations and the matrix inequality are rebuilt here.

A certificate of kind "multipliers" proves M(rho, lambda) >= 0 for a quadratic form in z = (x, v_1 .. v_K), the
increments, between two inputs, of the input and of every nonlinearity; every other increment is H z with a matrix H:

    z'Mz = rho |x|^2 - |F z|^2 + sum_i 2 lambda_i (v_i - alpha_i y_i)(v_i - beta_i y_i)
                               + sum_g lambda_g (|u_g|^2 - |c Y_g|^2)

Real increments make every lambda-term <= 0, so that |F z| <= sqrt(rho) |x|. Groups (GroupSort, Householder) pass
Pi Y on, Pi = 11'/n or I - ww'/w'w; only u in the range of c = I - Pi is new. In the l-infinity norm, with one output
w z, rho |x|^2 - |F z|^2 becomes 2 t (rho t - w z) + sum_i mu_i (x_i^2 - t^2), t = |x|_inf, and |w z| <= rho t.

Every claim is about the function in real arithmetic with the stored weights (softplus without its linear cut); with
arithmetic "float32" a bound of the rounding errors of inference is added. The check itself is rigorous in floating
point: it assumes IEEE binary64 and that `@` sums products in some order, with or without fused operations, but no
Strassen-like scheme. Any doubt rejects.

Sources: Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019), theorem 2; Pauli, Havens, Araujo, et al., Novel
quadratic constraints for extending LipSDP (2024), for groups; Rump, Verification of positive definiteness (2006).
"""

import hashlib
import json
import math
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

FORMAT, VERSION = "weightspace.certificate", 3
NETWORK_FORMAT, NETWORK_VERSION = "weightspace.network", 1
MULTIPLIERS, NORM_PRODUCT = "multipliers", "norm product"
CERTIFIED = "certified: the rigorous check accepted the bound"
FAILED = "failed: no bound was found that the rigorous check accepts; try bounder=NormProduct()"
UNIT = 2.0**-53
EXPANDED = 2**28  # bytes that a compressed file may take in memory whatever its size
ROOM = 2**28  # entries of the largest matrix that is formed: a short file may describe a network of any size

UNBOUNDED = ("square", "exp", "expm1")
SLOPES = {
    "ReLU": (0.0, 1.0), "Tanh": (0.0, 1.0), "Softplus": (0.0, 1.0), "Clip": (0.0, 1.0),
    "Sigmoid": (0.0, 0.25), "Absolute": (-1.0, 1.0), "SiLU": (-0.09984, 1.09984),
    "GELU none": (-0.12891, 1.12891), "GELU tanh": (-0.129, 1.129),
    "atan": (0.0, 1.0), "softsign": (0.0, 1.0), "log_sigmoid": (0.0, 1.0), "erf": (0.0, 1.12838),
    "hardsigmoid": (0.0, 0.16666668), "hardswish": (-0.5000001, 1.5000001),  # torch takes 1/6 in single precision
    "mish": (-0.11253, 1.0885),
    "sin": (-1.0, 1.0), "cos": (-1.0, 1.0),
    "square": (-math.inf, math.inf), "exp": (0.0, math.inf), "expm1": (0.0, math.inf),  # with a region only
}  # fmt: skip


class Failure(ValueError):
    """Why a certificate was not accepted, as one printable line whatever the files put into it."""

    def __init__(self, reason):
        line = " ".join(reason.split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class Unreadable(Failure):
    """A file is broken or of a version this program does not know: nothing can be said about it."""


class Refused(Failure):
    """The certificate was read and does not hold for this network, or could not be proven to."""


# ---- the certificate file ----------------------------------------------------------------------------------


def canonical_json(value):
    """Return the one spelling of a JSON value that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True).encode("ascii")


def parse_json(text):
    """Read JSON; a name must not stand twice in an object, since programs differ in which of the two they keep.

    Raises:
        ValueError: it is no JSON.
        Refused: a name stands twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs):
    result = dict(pairs)
    if len(result) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for place, name in enumerate(names[1:]) if name == names[place])
        raise Refused(f"the file was edited: the name {twice[:60]!r} stands twice")
    return result


def digest(fields):
    """SHA-256 over the certificate's fields without `digest`."""
    return hashlib.sha256(canonical_json({k: v for k, v in fields.items() if k != "digest"})).hexdigest()


def claim(norm, output, region=None, arithmetic="real"):
    """Return the sentence a certificate states; `upper_bound` is its L, `region` None, a box or a ball."""
    name = "f" if arithmetic == "real" else "f32"
    what = name if output is None else f"{name}_{output}"
    if isinstance(output, tuple):
        what = f"({name}_{output[0]} - {name}_{output[1]})"
    inputs = "inputs x, y" if arithmetic == "real" else "float32 inputs x, y"
    inside = "" if region is None else f" in the {'ball' if 'radius' in region else 'box'} `region`"
    difference = f"For all {inputs}{inside}: |{what}(x) - {what}(y)| <= L |x - y|"
    if arithmetic == "real":
        return (
            f"{difference} in the {norm} norm, for the function of the stored weights in real arithmetic; "
            "floating-point inference is not covered."
        )
    return (
        f"{difference} + 2 delta in the {norm} norm, f32 being the network evaluated in IEEE float32, sums in any "
        "order, with or without fused multiply-add; a difference of two outputs is taken in real arithmetic."
    )


def _number(text):
    if not isinstance(text, str) or float.fromhex(text).hex() != text:
        raise ValueError(f"{text!r} is not a number in float.hex() form")
    return float.fromhex(text)


def _plain(needed, accepts):
    def read(value):
        if not accepts(value):
            raise ValueError(f"{repr(value)[:60]} is not {needed}")
        return value

    return read


def _one_of(*values):
    return _plain(
        f"one of {values}", lambda v: any(type(v) is type(known) and v == known for known in values)
    )


def _optional(read):
    return lambda value: None if value is None else read(value)


def _listed(read):
    needed = _plain("a list", lambda value: isinstance(value, list))
    return lambda value: [read(item) for item in needed(value)]


def _record(readers):
    needed = _plain(
        f"a table of {[*readers]}", lambda value: isinstance(value, dict) and value.keys() == readers.keys()
    )
    return lambda value: {name: readers[name](item) for name, item in needed(value).items()}


def _either(*readers):
    """Read with the first reader whose fields fit."""

    def read(value):
        keys = value.keys() if isinstance(value, dict) else ()
        return next((reader for reader, names in readers if names == {*keys}), readers[0][0])(value)

    return read


_text = _plain("a text", lambda value: isinstance(value, str))
_index = _plain("an index", lambda value: type(value) is int and value >= 0)
_versions = _plain(
    "a table of texts",
    lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
)


def _output(value):
    if isinstance(value, list) and len(value) == 2:
        return tuple(map(_index, value))
    return _index(value)


PROOF = {
    "output": _optional(_output), "rho": _number, "multipliers": _listed(_listed(_number)),
    "input_multipliers": _optional(_listed(_number)),
}  # fmt: skip
REGION = _either(
    (_record({"lower": _listed(_number), "upper": _listed(_number)}), {"lower", "upper"}),
    (_record({"center": _listed(_number), "radius": _number}), {"center", "radius"}),
)
RELAXATION = {"lower": _listed(_number), "upper": _listed(_number)}
FIELDS = {
    "format": _one_of(FORMAT), "version": _one_of(VERSION), "status": _one_of(CERTIFIED, FAILED),
    "claim": _text, "kind": _one_of(MULTIPLIERS, NORM_PRODUCT), "norm": _one_of("l2", "linf"),
    "region": _optional(REGION), "relaxations": _optional(_listed(_record(RELAXATION))),
    "output": _optional(_output), "activations": _listed(_text), "arithmetic": _one_of("real", "float32"),
    "delta": _optional(_number), "method": _text, "network_hash": _text, "upper_bound": _optional(_number),
    "optimum_lower_bound": _optional(_number), "sampled_lower_bound": _optional(_number),
    "cuts": _listed(_index), "proofs": _listed(_record(PROOF)), "layer_norms": _optional(_listed(_number)),
    "seconds": _number, "versions": _versions, "digest": _text,
}  # fmt: skip
PROPERTY_FORMAT, VERDICT_FORMAT = "weightspace.property", "weightspace.verdict"
PROPERTY_CLAIM = (
    "For no input x in the box `region` is f(x) in one of the polyhedra `unsafe`, {y: matrix y <= bounds}, for the "
    "function of the stored weights in real arithmetic; floating-point inference is not covered."
)
PROPERTY_FIELDS = {
    "format": _one_of(PROPERTY_FORMAT), "version": _one_of(VERSION), "claim": _one_of(PROPERTY_CLAIM), "name": _text,
    "network_hash": _text, "region": _record({"lower": _listed(_number), "upper": _listed(_number)}),
    "unsafe": _listed(_record({"matrix": _listed(_listed(_number)), "bounds": _listed(_number)})),
    "splits": _listed(_plain("an input or -1", lambda value: type(value) is int and value >= -1)),
    "method": _text, "versions": _versions, "digest": _text,
}  # fmt: skip


def parse_certificate(text):
    """Read a certificate: field -> value, numbers decoded.

    Raises:
        Unreadable: not a certificate, another version, missing, unknown or mistyped fields.
        Refused: the digest or the claim does not match the fields, or a name stands twice: the file was edited.
    """
    try:
        data = parse_json(text)
        if not isinstance(data, dict) or data.get("format") not in (FORMAT, PROPERTY_FORMAT):
            raise ValueError("it is not a weightspace certificate")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ValueError(f"its version is {data.get('version')!r}, this program reads {VERSION}")
        readers = FIELDS if data["format"] == FORMAT else PROPERTY_FIELDS
        if data.keys() != readers.keys():
            raise ValueError(f"its fields differ from the format by {sorted(data.keys() ^ readers.keys())}")
        fields = {}
        for name, decode in readers.items():
            try:
                fields[name] = decode(data[name])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"field {name!r}: {error}") from error
        expected = digest(data)
    except Refused:
        raise
    except (ValueError, TypeError, RecursionError, UnicodeError) as error:
        raise Unreadable(f"the certificate cannot be read: {error}; write it again with `certify`") from error
    if data["digest"] != expected:
        raise Refused("the certificate was edited: its digest does not match its content")
    if fields["format"] == PROPERTY_FORMAT:
        expected = PROPERTY_CLAIM
    else:
        expected = claim(fields["norm"], fields["output"], fields["region"], fields["arithmetic"])
    if fields["claim"] != expected:
        raise Refused("the certificate's claim does not fit its other fields")
    return fields


# ---- the network file --------------------------------------------------------------------------------------


def load_network(path):
    """Read what `Network.save_npz` wrote: the graph (from JSON) and name -> (dtype, array).

    Raises:
        Unreadable: the file is no such file, or would take more memory than its size.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            require_plain_archive(archive.zip)
            arrays = {name: archive[name] for name in archive.files}
        graph = parse_json(arrays.pop("network").tobytes().decode("ascii"))
        return graph, arrays_to_parameters(graph, arrays)
    except Exception as error:  # zip, zlib, numpy and JSON each have their own
        reason = f"{type(error).__name__} {error}"
        raise Unreadable(f"{path} is not a network written by save_npz: {reason}") from error


def require_plain_archive(archive):
    """Raise ValueError unless an open zip of arrays takes as much memory as its arrays, and each name stands once.

    A few bytes may state a shape of any size, and a compressed file may expand a thousandfold.
    """
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("two arrays have the same name")
    expanded = sum(member.file_size for member in members)
    if expanded > EXPANDED and expanded > 100 * sum(member.compress_size for member in members):
        raise ValueError(f"it expands to {expanded} bytes, more than a hundred times its size")
    for member in members:
        with archive.open(member) as file:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[np.lib.format.read_magic(file)](file)
            if dtype.hasobject or not dtype.itemsize or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} has no plain numbers, or fewer than its shape {shape} says")


def arrays_to_parameters(graph, arrays):
    """Return name -> (dtype, array in this machine's byte order) from the arrays `parameter:NAME`."""
    halves, parameters = set(graph["bfloat16"]), {}
    for key, array in arrays.items():
        name = key.removeprefix("parameter:")
        dtype = "bfloat16" if name in halves else array.dtype.name
        parameters[name] = dtype, array.astype(array.dtype.newbyteorder("="), copy=False)
    return parameters


def network_hash(graph, parameters):
    """Compute `Network.hash`: a Merkle hash over operations, attributes, shapes, dtypes and weight bytes."""
    if graph["format"] != NETWORK_FORMAT or graph["version"] != NETWORK_VERSION:
        raise Unreadable(
            f"the network's format is {graph['format']!r} {graph['version']!r}; update this program"
        )
    digests, inputs = {}, []
    for entry in graph["nodes"]:
        if entry["name"] in digests:  # else another node could be hashed than the one that is bounded
            raise Unreadable(f"two nodes are named {entry['name']!r}")
        position = None
        if entry["kind"] == "Input":
            position = len(inputs)
            inputs.append([entry["shape"], entry["dtype"]])
        tensors = {}
        for role, name in entry["parameters"].items():
            dtype, array = parameters[name]
            header = canonical_json([dtype, list(array.shape)])
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            tensors[role] = hashlib.sha256(header + little.tobytes()).hexdigest()
        used = [digests[name] for name in entry["inputs"]]
        description = [
            entry["kind"], entry["attributes"], entry["shape"], entry["dtype"], position, used, tensors,
        ]  # fmt: skip
        digests[entry["name"]] = hashlib.sha256(canonical_json(description)).hexdigest()
    returned = [digests[name] for name in graph["outputs"]]
    return hashlib.sha256(canonical_json([inputs, returned])).hexdigest()


def _array(parameters, name):
    dtype, array = parameters[name]
    if dtype == "bfloat16":
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype not in ("float16", "float32", "float64"):
        raise Refused(f"parameter {name!r} is {dtype}; floating point is needed")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise Refused(f"parameter {name!r} is not finite")
    return array


# ---- the network as steps ----------------------------------------------------------------------------------

LINEAR = ("same", "linear", "scale", "average", "sum", "concat", "rows")
UNROLLED = 2**25  # entries up to which the matrix of a convolution or a mean is written out
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
ROW_BY_ROW = ("Linear", "Scale", "LeakyReLU", "ELU", "GELU", "Pointwise", *SLOPES)


@dataclass(frozen=True, eq=False)
class Step:
    """One node; `rule` says how its increment h, flattened row-major per sample, follows from those of `inputs`.

    input     h = x, of which those in the mask `matrix` move, or all
    same      h = h_1: reshaping, or adding a constant, `bias`
    linear    h = W h_1, W = matrix
    scale     h = d h_1, d = matrix (width,), known up to the relative error `relative`
    average   h = S h_1 channel by channel, S = matrix (positions after, before) up to `relative`
    sum       h = sum_i s_i h_i, s = matrix
    concat    h = (h_1, h_2, ..)
    rows      h = h_1[matrix]
    slopes    h = v, low <= v / h_1 <= high
    shifted   h = low h_1 + r v, 0 <= v / h_1 <= 1, r = matrix (width,); without v where r = 0
    groups    h = h_1 - c h_1 + u, u = B v, |u_g| <= |c h_1|_g; c = matrix (groups, n, n), B = basis (groups, n, r)
    maxima    h_g = (mean of window g of h_1) + v_g, |v_g| <= sqrt(1 - 1/n) |c Y_g|; matrix (maxima, n) lists windows,
              -1 for none
    implicit  h = v, low <= v / y <= high with y = U h_1 + W v, W = matrix, U = basis

    The matrix of a convolution or mean of more than UNROLLED entries is a Kernel, or None; then only norms have a rule.
    """

    name: str
    kind: str
    rule: str
    inputs: tuple
    shape: tuple
    matrix: Any = None
    basis: Any = None
    bias: Any = None
    sums: Any = None  # of a mean: upper bounds of the largest row and column sums of S
    low: Any = None
    high: Any = None
    relative: float = 0.0
    label: str = ""
    attributes: dict = field(default_factory=dict)
    single: bool = True  # its parameters are exact in float32
    bias_error: Any = 0.0

    @property
    def width(self):
        return math.prod(self.shape[1:])

    @property
    def count(self):
        """Number of multipliers: neurons or groups."""
        return len(self.matrix) if self.rule in ("groups", "maxima") else self.width

    @property
    def curve(self):
        """The name of its activation in `CURVES`."""
        return f"GELU {self.attributes['approximate']}" if self.label == "GELU" else self.label

    @cached_property
    def norm(self):
        """An upper bound of |matrix|_2."""
        return spectral_norm_bound(self.matrix)


@dataclass(frozen=True, eq=False)
class Model:
    """The steps that the output depends on, in the order of the network's nodes; the last one is the output.

    They act on one of `tokens` rows of features.
    """

    steps: tuple
    tokens: int = 1

    @property
    def nonlinear(self):
        return [step for step in self.steps if step.label]

    @property
    def linears(self):
        """(node, matrix or Kernel) of every Linear and Conv node: the order of `layer_norms`."""
        return [(step.name, step.matrix) for step in self.steps if step.rule == "linear"]

    @property
    def sequential(self):
        """Every step sees the one before it alone."""
        return all(step.inputs == (index,) for index, step in enumerate(self.steps[1:]))

    @property
    def chain(self):
        """W_1 .. W_L of a chain in which slope-restricted activations alternate with matrices, else None.

        Identities stand in where two activations meet, or one comes first or last. Matrices that follow each other are
        multiplied; `chain_errors` bounds the errors of that.
        """
        return None if self._chain is None else [weight for weight, _ in self._chain]

    @property
    def chain_errors(self):
        """Entrywise bounds of the errors of `chain`; None stands for no error."""
        return None if self._chain is None else [error for _, error in self._chain]

    @cached_property
    def _chain(self):
        if not self.sequential:
            return None
        pairs, current = [], None
        for step in self.steps[1:]:
            if step.rule == "slopes":
                pairs.append(current or (_identity(step.width), None))
                current = None
            elif step.rule in ("linear", "scale", "average"):
                current = _compose(step, current, self.steps[step.inputs[0]].width)
            elif step.rule != "same":
                return None
        return [*pairs, current or (_identity(self.steps[-1].width), None)]


def _compose(step, current, width):
    """Return (S W, E) from (W, E): a linear step after a matrix known up to E entrywise; None is the identity."""
    require_unrolled([step])
    if current is None and step.rule == "linear":
        return step.matrix, None
    if step.width * width > UNROLLED:
        raise Refused(f"{step.kind} at node {step.name!r} makes a matrix of more than {UNROLLED} entries")
    weight, error = current or (_identity(width), None)
    _in_range(weight)  # else products could underflow, which no relative error covers
    _in_range(step.matrix)
    terms = 1 if step.rule == "scale" else step.matrix.shape[1]
    size = _linear(step, [np.abs(weight)], absolute=True)
    total = (gamma(terms + 2) + 2 * step.relative) * size
    if error is not None:
        total = total + (1 + 3 * step.relative) * _linear(step, [error], absolute=True)
    return _linear(step, [weight]), 1.0001 * total


def require_room(place, *sizes):
    """Raise Refused where a matrix of these sizes has more entries than `ROOM`."""
    if math.prod(sizes) > ROOM:
        raise Refused(f"{place} needs a matrix of {' x '.join(map(str, sizes))} entries, more than {ROOM}")


def _identity(width):
    require_room("a matrix of features", width, width)
    return np.eye(width)


def require_unrolled(steps):
    """Raise where the matrix of a step was too large to be written out."""
    for step in steps:
        if isinstance(step.matrix, Kernel) or (step.rule == "average" and step.matrix is None):
            raise Refused(
                f"{step.kind} at node {step.name!r} has a matrix of more than {UNROLLED} entries; only a product of "
                "norms has a rule for it"
            )


def rebuild(graph, parameters):
    """Return the `Model` of a network with one input and one output.

    Raises:
        Refused: an operation without a rule, named with its node; a shape that does not fit.
    """
    entries = graph["nodes"]
    if len(graph["outputs"]) != 1 or sum(entry["kind"] == "Input" for entry in entries) != 1:
        raise Refused("one input and one output are needed")
    needed = set(graph["outputs"])
    for entry in reversed(entries):
        if entry["name"] in needed:
            needed.update(entry["inputs"])
    entries, tokens = _one_row([entry for entry in entries if entry["name"] in needed])
    steps, positions, constants, total = [], {}, {}, 0
    single = all(len(entry["shape"]) == 1 for entry in entries if entry["kind"] == "Input")
    for entry in entries:
        name, roles = entry["name"], entry["parameters"]
        total += math.prod(n for n in entry["shape"][1:] if n is not None)
        require_room(f"the network up to node {name!r}", 4, total)
        if single:
            entry = _batched(entry)
        tensors = {role: _array(parameters, key) for role, key in roles.items()}
        dtypes = {parameters[key][0] for key in roles.values()}
        if entry["kind"] == "Parameter":
            constants[name] = tensors["value"], dtypes
            continue
        inputs = tuple(positions[used] for used in entry["inputs"] if used not in constants)
        fixed = {place: constants[used] for place, used in enumerate(entry["inputs"]) if used in constants}
        dtypes = dtypes.union(*(others for _, others in fixed.values()))
        values = {place: value for place, (value, _) in fixed.items()}
        step = _step(entry, inputs, [steps[i].shape for i in inputs], tensors, values)
        positions[name] = len(steps)
        steps.append(replace(step, single="float64" not in dtypes))
    if graph["outputs"][0] not in positions:
        raise Refused("the output does not depend on the input")
    return Model(tuple(steps), tokens)


def _one_row(entries):
    """Return (entries, tokens): what a chain does to each row of features, where axes stand between batch and features.

    In l2 and in l-infinity alike, the Lipschitz constant of one row is the constant of all of them.
    """
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in entries}
    taken = {shapes[name][1:-1] for entry in entries if entry["kind"] == "Linear" for name in entry["inputs"]}
    if not any(taken):
        return entries, 1
    middle, reduced, free = max(taken), [], set()
    for entry in entries:
        name, kind, used, shape = entry["name"], entry["kind"], entry["inputs"], shapes[entry["name"]]
        place, before = f"{kind} at node {name!r}", [shapes[one] for one in used]
        if kind in RESHAPING and len(used) == 1 and used[0] in free:
            if tuple(_reshaped(place, kind, entry["attributes"], before[0])) != shape:
                raise Refused(f"{place} cannot turn shape {before[0]} into {shape}")
            entry = {**entry, "kind": "Scale", "attributes": {"factor": 1, "shift": 0}}
            free.add(name)
        elif kind == "Input" and all(type(n) is int for n in shape[1:]):
            free.add(name)
        elif len(used) != 1 or shape[1:-1] != middle or before[0][1:-1] != middle or kind not in ROW_BY_ROW:
            raise Refused(
                f"{place} takes {before} to {shape}; with axes between batch and features, chains are covered"
            )
        reduced.append({**entry, "shape": [shape[0], math.prod(shape[1:]) // math.prod(middle)]})
    return reduced, math.prod(middle)


def _batched(entry):
    """Describe a node of a network that takes one vector, without a batch, as one of a batch."""
    attributes = dict(entry["attributes"])
    if entry["kind"] in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
        raise Refused(f"{entry['kind']} at node {entry['name']!r} reshapes an input without a batch axis")
    if attributes.get("axis", -1) >= 0:
        attributes["axis"] += 1
    shape = entry["shape"] if entry["kind"] == "Parameter" else [None, *entry["shape"]]
    return {**entry, "attributes": attributes, "shape": shape}


def _step(entry, inputs, before, tensors, constants):
    """Return the step of one node; `before` are the shapes of its inputs that vary, axis 0 being the batch."""
    name, kind, shape = entry["name"], entry["kind"], tuple(entry["shape"])
    attributes: Any = entry["attributes"]
    place = f"{kind} at node {name!r}"

    def step(rule, expected, **others):
        if shape != tuple(expected):
            raise Refused(f"{place} cannot turn shapes {before} into {shape}")
        return Step(name, kind, rule, inputs, shape, attributes=attributes, **others)

    def features(axis=1):
        if axis not in (1, -1) or not all(len(one) == 2 for one in before):
            raise Refused(
                f"{place}: axis {axis} of shapes {before}, where axis 1 of (batch, features) is needed"
            )
        return before[0][1]

    if kind == "Input":
        if (
            not shape
            or not all(type(n) is int and n >= 0 for n in shape[1:])
            or "float" not in entry["dtype"]
        ):
            raise Refused(f"{place} is {entry['dtype']} {shape}; floating point (batch, sizes) is needed")
        return step("input", shape)
    if constants and (kind not in ("Add", "Subtract") or not inputs):
        raise Refused(f"{place} acts on a constant; only a sum or difference with one has a rule")
    if kind in ("Add", "Subtract"):
        if any(one != before[0] for one in before) or len(before) + len(constants) != 2:
            raise Refused(f"{place} adds shapes {before}; two equal ones are needed")
        if not constants:
            return step("sum", before[0], matrix=np.array([1.0, 1.0 if kind == "Add" else -1.0]))
        bias = _spread(place, constants, shape)
        if kind == "Subtract" and 0 in constants:
            return step("scale", before[0], matrix=np.full(bias.shape, -1.0), bias=bias)
        return step("same", before[0], bias=bias)
    if kind == "Concat":  # along axis 1, flat samples are joined end to end
        (first, _, *rest), axis = before[0], attributes["axis"]
        if axis not in (1, 1 - len(before[0])) or any(one[:1] + one[2:] != (first, *rest) for one in before):
            raise Refused(f"{place} joins shapes {before} along axis {axis}; only axis 1 has a rule")
        return step("concat", (first, sum(one[1] for one in before), *rest))
    if (kind == "Multiply" and len(inputs) == 2 and inputs[0] == inputs[1]) or (
        kind == "Power" and attributes["exponent"] == 2
    ):
        kind, attributes, inputs, before = "Pointwise", {"name": "square"}, inputs[:1], before[:1]
    if len(before) != 1:
        raise Refused(f"{place} has {len(before)} inputs; the check has no rule for it")
    (given,) = before
    if kind in RESHAPING:
        return step("same", _reshaped(place, kind, attributes, given))
    if kind == "Scale":
        factor = float(attributes["factor"])
        if not (math.isfinite(factor) and math.isfinite(float(attributes["shift"]))):
            raise Refused(f"{place} is not finite")
        bias = (
            np.full(math.prod(given[1:]), float(attributes["shift"])) if float(attributes["shift"]) else None
        )
        if factor == 1:
            return step("same", given, bias=bias)
        return step("scale", given, matrix=np.full(math.prod(given[1:]), factor), bias=bias)
    if kind in ("Slice", "Select"):
        axis = attributes["axis"] % len(given)
        if not axis:
            raise Refused(f"{place}: axis 0 of {given} is the batch")
        places = np.arange(math.prod(given[1:])).reshape(given[1:])
        if kind == "Select":
            chosen = np.take(places, attributes["index"], axis=axis - 1)
            return step("rows", (given[0], *chosen.shape), matrix=chosen.reshape(-1))
        part = slice(attributes["start"], attributes["stop"], attributes["step"])
        chosen = places[(slice(None),) * (axis - 1) + (part,)]
        if attributes["step"] < 1 or not chosen.size:
            raise Refused(f"{place} selects nothing or backwards")
        return step("rows", (given[0], *chosen.shape), matrix=chosen.reshape(-1))
    if kind in ("Conv", "AveragePool", "AdaptiveAveragePool", "MaxPool"):
        return _windowed(place, kind, attributes, given, shape, tensors, step)
    if kind in ("Linear", "Implicit"):
        width, weight = features(), tensors["weight"]
        weight = weight.T if attributes.get("transposed") else weight
        taking = tensors["input_weight"] if kind == "Implicit" else weight
        square = kind == "Linear" or weight.shape == (len(weight),) * 2
        if weight.ndim != 2 or taking.shape != (len(weight), width) or not square:
            raise Refused(f"{place} has a weight that does not fit {width} features")
        bias = tensors.get("bias", np.zeros(len(weight)))
        if bias.shape != (len(weight),):
            raise Refused(f"{place} has a bias of shape {bias.shape}; ({len(weight)},) is needed")
        weight, expected = np.ascontiguousarray(weight), (given[0], len(weight))
        if kind == "Linear":
            return step("linear", expected, matrix=weight, bias=bias)
        activation = attributes["activation"]
        low, high = _slopes(activation, attributes, place, len(weight), None)
        label = f"Implicit {activation}"
        return step("implicit", expected, matrix=weight, basis=taking, low=low, high=high, label=label)
    if kind == "BatchNorm":
        if len(given) < 2:
            raise Refused(f"{place} takes shape {given}; (batch, channels, ..) is needed")
        width, repeats = given[1], math.prod(given[2:])
        if any(tensor.shape != (width,) for tensor in tensors.values()):
            raise Refused(f"{place} has parameters that do not fit {width} features")
        variance = tensors["running_var"] + float(attributes["epsilon"])
        if not (variance > 0).all():
            raise Refused(f"{place} has a variance that is not positive")
        weight = _in_range(tensors.get("weight", np.ones(width)))
        # sum, root and quotient: each rounding moves the result by at most u
        matrix, mean = weight / np.sqrt(_in_range(variance)), tensors["running_mean"]
        bias = tensors.get("bias", np.zeros(width)) - matrix * mean
        error = gamma(8) * (np.abs(bias) + np.abs(matrix * mean))
        matrix, bias, error = (np.repeat(one, repeats) for one in (matrix, bias, error))
        return step("scale", given, matrix=matrix, relative=gamma(4), bias=bias, bias_error=error)
    if kind in ("GroupSort", "Householder"):
        matrix, basis = _groups(place, kind, attributes, features(attributes["axis"]), tensors.get("weight"))
        return step("groups", given, matrix=matrix, basis=basis, label=f"{kind} {matrix.shape[1]}")
    if kind == "PReLU" and tensors["weight"].size != 1:
        if len(given) < 2 or tensors["weight"].shape != given[1:2]:
            raise Refused(f"{place} has slopes of shape {tensors['weight'].shape} for shape {given}")
        tensors = {"weight": np.repeat(tensors["weight"], math.prod(given[2:]))}
    low, high = _slopes(kind, attributes, place, math.prod(given[1:]), tensors.get("weight"))
    label = attributes["name"] if kind == "Pointwise" else kind
    return step("slopes", given, low=low, high=high, label=label)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution whose matrix is too large to be written out: weight (out, in / groups, ..), stride, dilation."""

    weight: Any
    stride: tuple
    dilation: tuple
    groups: int


def _windowed(place, kind, attributes, given, shape, tensors, step):
    """Return the step of a convolution or a pool on (batch, channels, positions along 1 to 3 axes)."""
    if len(given) < 3 or not all(type(n) is int and n > 0 for n in given[1:]):
        raise Refused(f"{place} takes shape {given}; (batch, channels, sizes) is needed")
    channels, *sizes = given[1:]
    outputs, axes = list(shape[2:]), len(sizes)
    if len(outputs) != axes or not all(type(n) is int and n > 0 for n in outputs):
        raise Refused(f"{place} cannot turn shape {given} into {shape}")
    if kind == "AdaptiveAveragePool":
        size = attributes["size"]
        if len(size) != axes or any(n not in (None, -1, out) for n, out in zip(size, outputs, strict=True)):
            raise Refused(f"{place} cannot turn shape {given} into {shape}")
        means = [_adaptive_means(place, *one) for one in zip(sizes, outputs, strict=True)]
        return _average(given, outputs, means, step)
    weight = tensors["weight"] if kind == "Conv" else np.zeros((0, 0))
    kernel = list(weight.shape[2:] if kind == "Conv" else attributes["kernel"])
    dilation = list(attributes.get("dilation", [1] * axes))
    stride, padding = list(attributes["stride"]), list(attributes["padding"])
    lists = kernel, stride, dilation, [n + 1 for n in padding]
    if not all(len(one) == axes and all(type(n) is int and n > 0 for n in one) for one in lists):
        raise Refused(f"{place} has a kernel, stride, padding or dilation that does not fit {axes} axes")
    expected = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        if room < 0:
            raise Refused(f"{place} has windows larger than its input {given}")
        count = room // s + 1
        if attributes.get("ceil") and room % s and count * s < n + p:  # a last window that starts inside
            count += 1
        expected.append(count)
    windows = sizes, outputs, kernel, stride, padding, dilation
    if expected != outputs:
        raise Refused(f"{place} cannot turn shape {given} into {shape}")
    if kind == "AveragePool":
        counted = bool(attributes["count_padding"])
        lines = zip(sizes, outputs, kernel, stride, padding, strict=True)
        return _average(given, outputs, [_moving_means(place, *line, counted) for line in lines], step)
    if kind == "MaxPool":
        require_room(place, channels, *outputs, *kernel)
        table = np.full((math.prod(outputs), math.prod(kernel)), -1)
        for place_, (_, rows, columns) in enumerate(_taps(*windows)):
            table[rows, place_] = columns
        if not (table >= 0).any(axis=1).all():
            raise Refused(f"{place} has a window that lies in the padding")
        shifted = table + math.prod(sizes) * np.arange(channels)[:, None, None]
        table = np.where(table < 0, -1, shifted).reshape(-1, table.shape[1])
        return step("maxima", (given[0], channels, *outputs), matrix=table, label=kind)
    out, groups = len(weight), attributes["groups"]
    if attributes["transposed"]:
        raise Refused(f"{place} is transposed; the check has no rule for it")
    if type(groups) is not int or groups < 1 or channels % groups or out % groups or not weight.size:
        raise Refused(f"{place} cannot split {channels} channels into {groups} groups")
    bias = tensors.get("bias", np.zeros(out))
    if weight.shape[1] != channels // groups or bias.shape != (out,):
        raise Refused(f"{place} has a weight or bias that does not fit {channels} channels")
    size = out * math.prod(outputs) * channels * math.prod(sizes)
    matrix = Kernel(weight, tuple(stride), tuple(dilation), groups)
    if size <= UNROLLED:
        matrix = np.zeros((out, math.prod(outputs), channels, math.prod(sizes)))
        each, other = out // groups, channels // groups
        for offset, rows, columns in _taps(*windows):
            for g in range(groups):  # indices apart from each other come first in what is assigned to
                ours, theirs = slice(g * each, (g + 1) * each), slice(g * other, (g + 1) * other)
                matrix[ours, rows, theirs, columns] = weight[(ours, slice(None), *offset)]
        matrix = matrix.reshape(out * math.prod(outputs), -1)
    expected = (given[0], out, *outputs)
    return step("linear", expected, matrix=matrix, bias=np.repeat(bias, math.prod(outputs)))


def _taps(sizes, outputs, kernel, stride, padding, dilation):
    """Yield (offset in the window, outputs, inputs): the flat positions that it joins, none of them in the padding."""
    for offset in np.ndindex(*kernel):
        rows, columns = [], []
        for n, count, s, p, d, o in zip(sizes, outputs, stride, padding, dilation, offset, strict=True):
            reached = s * np.arange(count) - p + d * o
            inside = (reached >= 0) & (reached < n)
            rows.append(np.flatnonzero(inside))
            columns.append(reached[inside])
        yield (
            offset,
            np.ravel_multi_index(np.meshgrid(*rows, indexing="ij"), outputs).reshape(-1),
            np.ravel_multi_index(np.meshgrid(*columns, indexing="ij"), sizes).reshape(-1),
        )


def _moving_means(place, n, count, kernel, stride, padding, counted):
    """Return (windows as a mask, divisors) along one axis; the divisor counts padding or does not."""
    starts = stride * np.arange(count) - padding
    require_room(place, n, count)
    inside = (np.arange(n) >= starts[:, None]) & (np.arange(n) < starts[:, None] + kernel)
    divisors = np.minimum(starts + kernel, n + padding) - starts if counted else inside.sum(axis=1)
    if not (divisors > 0).all():
        raise Refused(f"{place} has a window that lies in the padding")
    return inside, divisors


def _adaptive_means(place, n, count):
    require_room(place, n, count)
    starts, ends = np.arange(count) * n // count, -(-(np.arange(count) + 1) * n // count)
    inside = (np.arange(n) >= starts[:, None]) & (np.arange(n) < ends[:, None])
    return inside, ends - starts


def _average(given, outputs, means, step):
    """A mean over boxes is a mean along each axis: S = S_1 x S_2 .. (Kronecker), of positive entries."""
    divisors = [divisor for _, divisor in means]
    exact = all((divisor & (divisor - 1) == 0).all() for divisor in divisors)  # powers of two
    rows = columns = 1.0
    for inside, divisor in means:
        axis = inside / divisor[:, None]
        rows *= float(axis.sum(axis=1).max()) * (1 + gamma(len(axis.T) + 3))
        columns *= float(axis.sum(axis=0).max()) * (1 + gamma(len(axis) + 3))
    matrix = None
    if math.prod(outputs) * math.prod(given[2:]) <= UNROLLED:
        matrix = np.ones((1, 1))
        for inside, divisor in means:
            matrix = np.kron(matrix, inside / divisor[:, None])
    expected, relative = (*given[:2], *outputs), 0.0 if exact else gamma(2 * len(means))
    return step("average", expected, matrix=matrix, sums=(_up(rows), _up(columns)), relative=relative)


def _spread(place, constants, shape):
    """Return the constant operand of a sum as one flat sample."""
    (value,) = constants.values()
    try:
        return np.broadcast_to(value, (1, *shape[1:])).reshape(-1)
    except ValueError as error:
        raise Refused(f"{place} adds a constant of shape {value.shape} to {shape}") from error


def _reshaped(place, kind, attributes, shape):
    """Return the shape that a reshaping gives; the batch must stay axis 0, so that samples stay rows."""
    if kind == "Reshape":
        target = list(attributes["shape"])
        known = math.prod(n for n in target[1:] if n != -1)
        if -1 in target[1:] and known:
            target[target.index(-1, 1)] = math.prod(shape[1:]) // known
        if target[0] == -1:
            target[0] = shape[0]
        kept = target[0] == shape[0] and math.prod(target[1:]) == math.prod(shape[1:])
        if kept and list(attributes["shape"]).count(-1) < 2 and -1 not in target:
            return target
    elif kind == "Flatten":
        start, end = attributes["start"] % len(shape), attributes["end"] % len(shape)
        if 1 <= start <= end:
            return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    else:
        axis = attributes["axis"] % (len(shape) + (kind == "Unsqueeze"))
        if axis and kind == "Unsqueeze":
            return (*shape[:axis], 1, *shape[axis:])
        if axis and shape[axis] == 1:
            return (*shape[:axis], *shape[axis + 1 :])
    raise Refused(f"{place} does not keep the batch of shape {shape} as axis 0")


def _slopes(kind, attributes, place, width, weight):
    """Return arrays (low, high), each (width,), that enclose every difference quotient of an activation.

    `float` reads attributes, since infinite ones are stored as texts.
    """
    name = attributes.get("name") if kind == "Pointwise" else kind
    name = f"GELU {attributes.get('approximate')}" if kind == "GELU" else name
    if kind == "LeakyReLU":
        slope = float(attributes["negative_slope"])
        sides = min(slope, 1.0), max(slope, 1.0)
    elif kind == "PReLU":
        if weight.shape not in ((1,), (width,)):
            raise Refused(f"{place} has slopes of shape {weight.shape} for {width} features")
        sides = np.minimum(weight, 1.0), np.maximum(weight, 1.0)
    elif kind == "ELU" and float(attributes["input_scale"]) > 0:
        scale = float(attributes["scale"])
        left = scale * float(attributes["alpha"]) * float(attributes["input_scale"])
        # outward: three roundings; numpy's min and max keep NaN
        ends = [0.0, scale, math.nextafter(left * (1 + 2.0**-50), math.copysign(math.inf, left))]
        sides = np.min(ends), np.max(ends)
    elif name not in SLOPES:
        raise Refused(f"{place} ({name}) has no rule in this check")
    else:
        sides = SLOPES[name]
        if kind == "Softplus" and not (
            float(attributes["beta"]) > 0 and float(attributes["threshold"]) >= 20
        ):
            raise Refused(f"{place} needs beta > 0 and threshold >= 20")
        if kind == "Clip" and any(math.isnan(float(attributes[end] or 0)) for end in ("lower", "upper")):
            raise Refused(f"{place} has an end that is not a number")
    low, high = (np.full(width, side, dtype=np.float64) for side in sides)
    if name not in UNBOUNDED and not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise Refused(f"{place} has no finite slopes")
    return low, high


def _groups(place, kind, attributes, width, weight):
    """Return (c, B) of every group: c = I - Pi up to gamma(n + 4) |c|, B a basis of its range, free of error."""
    if kind == "GroupSort":
        n = attributes["group_size"]
        if type(n) is not int or n < 1 or width % n:
            raise Refused(f"{place} cannot sort {width} features in groups of {n}")
        require_room(place, n, n)
        c, basis = np.eye(n) - 1.0 / n, np.ones((1, 1))
        if n > 1:
            basis = np.vstack([np.eye(n - 1), -np.ones((1, n - 1))])
        return np.broadcast_to(c, (width // n, n, n)), np.broadcast_to(basis, (width // n, *basis.shape))
    if weight.ndim != 2 or weight.size != width or not np.abs(weight).max(axis=1).all():
        raise Refused(f"{place} has directions that do not fit {width} features or vanish")
    require_room(place, *weight.shape, weight.shape[1])
    powers = np.frexp(np.abs(weight).max(axis=1, keepdims=True))[1]
    w = _in_range(np.ldexp(weight, -powers))  # exact in this range; only the direction counts
    if ((w == 0) != (weight == 0)).any():
        raise Refused(f"{place} has a direction with entries too small for the check")
    return w[:, :, None] * w[:, None, :] / (w * w).sum(axis=1)[:, None, None], w[:, :, None]


def activation_names(model):
    """Return the names of the nonlinearities that the output depends on, in the order of the multipliers."""
    return [step.label for step in model.nonlinear]


def select_rows(rows, output):
    """Return all rows, one of them, or the rounded difference of two, as `output` asks."""
    if output is None:
        return rows
    if isinstance(output, tuple):
        return (rows[output[0]] - rows[output[1]])[None]
    return rows[output][None]


def _linear(step, values, absolute=False):
    """Apply a linear step, or the absolute value of its matrix, to arrays (width, ...)."""
    size = np.abs if absolute else np.asarray
    require_unrolled([step])
    if step.rule == "linear":
        return size(step.matrix) @ values[0]
    if step.rule == "scale":
        return (size(step.matrix) * values[0].T).T
    if step.rule == "average":
        return _channelwise(step.matrix, values[0])
    if step.rule == "sum":
        return size(step.matrix)[0] * values[0] + size(step.matrix)[1] * values[1]
    if step.rule == "concat":
        return np.concatenate(values)
    return values[0][step.matrix] if step.rule == "rows" else values[0]


def _channelwise(matrix, values):
    """Apply a matrix to the positions of every channel of an array (channels * positions, ...)."""
    rest = values.shape[1:]
    given = values.reshape(-1, matrix.shape[1], math.prod(rest))
    return (matrix @ given).reshape(-1, *rest)


def structure(model, output):
    """Return per step which of its coordinates of z count: a mask over inputs, neurons or groups; else None.

    A coordinate is left out of the inequality where exact zeros in the weights make its increment zero or keep the
    output from depending on it. Implicit layers, whose inequality also proves that they have a solution, stay whole.
    """
    steps, last = model.steps, model.steps[-1]
    if output is not None:  # equal entries of two rows of the last matrix are zeros of their difference
        rows = select_rows(last.matrix if last.rule == "linear" else _identity(last.width), output)
        inputs = last.inputs if last.rule == "linear" else (len(steps) - 1,)
        before = steps[:-1] if last.rule == "linear" else steps
        steps = (*before, Step("output", "Linear", "linear", inputs, (None, 1), matrix=rows))
    alive = []
    for step in steps:
        given = [alive[i] for i in step.inputs]
        if step.rule in LINEAR:
            alive.append(_linear(step, given, absolute=True) > 0)
        elif step.rule == "maxima":
            alive.append((np.append(given[0], False)[step.matrix]).any(axis=1))
        elif step.rule == "groups":
            reached = (step.matrix != 0) @ given[0].reshape(step.count, -1, 1) > 0
            alive.append(given[0] | reached.reshape(-1))
        elif step.rule == "shifted":
            alive.append(given[0] & ((step.low != 0) | (step.matrix != 0)))
        elif step.rule == "input" and step.matrix is not None:
            alive.append(step.matrix)
        else:
            alive.append(given[0] if step.rule == "slopes" else np.ones(step.width, dtype=bool))
    used = [np.zeros(step.width, dtype=bool) for step in steps]
    used[-1][:] = True
    masks: list[Any] = [None] * len(steps)
    for k in range(len(steps) - 1, -1, -1):
        step, need = steps[k], used[k]
        if step.rule == "input":
            masks[k] = need & alive[k]
            continue
        passed = [need] * len(step.inputs)
        if step.rule == "linear":
            passed = [np.abs(step.matrix).T @ need > 0]
        elif step.rule == "scale":
            passed = [need & (step.matrix != 0)]
        elif step.rule == "average":
            passed = [_channelwise(step.matrix.T, need.astype(float)) > 0]
        elif step.rule == "maxima":
            masks[k] = (
                need & alive[k] & ((step.matrix >= 0).sum(axis=1) > 1)
            )  # of one entry, the maximum is the mean
            reached = np.zeros(steps[step.inputs[0]].width + 1, dtype=bool)
            reached[step.matrix[need]] = True
            passed = [reached[:-1]]
        elif step.rule == "concat":
            passed = np.split(need, np.cumsum([steps[i].width for i in step.inputs])[:-1])
        elif step.rule == "rows":
            passed = [np.zeros(steps[step.inputs[0]].width, dtype=bool)]
            passed[0][step.matrix] = need
        elif step.rule == "slopes":
            masks[k] = need & alive[k]
            passed = [masks[k]]
        elif step.rule == "shifted":
            passed = [need & alive[k]]
            masks[k] = passed[0] & (step.matrix != 0)
        elif step.rule == "groups":
            touched, shape = step.matrix != 0, (step.count, -1, 1)
            back = touched @ need.reshape(shape) > 0
            masks[k] = (back & (touched @ alive[step.inputs[0]].reshape(shape) > 0)).any(axis=(1, 2))
            passed = [need | back.reshape(-1)]
        elif step.rule == "implicit":
            masks[k] = np.ones(step.width, dtype=bool)
            passed = [step.basis.any(axis=0)]
        for i, more in zip(step.inputs, passed, strict=True):
            used[i] |= more
    return masks[: len(model.steps)]


def split(model, cuts):
    """Return the sub-chains that end before the `cuts`-th nonlinearities (counted from 1) and the constants of those.

    The Lipschitz constants of all multiply to one of the whole.
    """
    if not cuts:
        return [model], []
    nonlinear = [k for k, step in enumerate(model.steps) if step.label]
    kinds = {model.steps[k].rule for k in nonlinear}
    if (
        not (model.sequential and kinds <= {"slopes", "maxima"})
        or sorted(set(cuts)) != list(cuts)
        or not 1 <= cuts[0] <= cuts[-1] <= len(nonlinear)
    ):
        raise Refused(f"cuts {list(cuts)} do not ascend along a chain of scalar activations and maxima")
    places = [nonlinear[cut - 1] for cut in cuts]
    parts = []
    for first, last in zip([0, *places], [*places, len(model.steps)], strict=True):
        head = replace(model.steps[first], rule="input", inputs=(), label="", matrix=None)
        body = [replace(step, inputs=(k,)) for k, step in enumerate(model.steps[first + 1 : last])]
        parts.append(Model((head, *body)))
    return parts, [_constant(model.steps[k]) for k in places]


def _constant(step, norm="l2"):
    """Return an upper bound of the Lipschitz constant of scalar functions or maxima."""
    if step.rule == "maxima":
        windows = np.bincount(step.matrix[step.matrix >= 0]).max(initial=0)  # that one entry belongs to
        return 1.0 if norm == "linf" or windows == 1 else _up(math.sqrt(windows))
    return float(np.abs([step.low, step.high]).max(initial=0.0))


# ---- rigorous floating point -------------------------------------------------------------------------------


def gamma(n):
    """Return n u / (1 - n u), the relative error of n roundings, enlarged for being computed itself."""
    return 1.0001 * n * UNIT / (1 - n * UNIT)


def _up(value):
    return math.nextafter(value, math.inf)


def _times(a, b):
    return a * b if 0.0 in (a, b) or 1.0 in (a, b) else _up(a * b)


def _size(array):
    """An upper bound of the Frobenius norm; its absolute part covers squares that underflow."""
    return 1.0001 * float(np.linalg.norm(array)) + 2.0**-480


def scale_weights(weight):
    """Return (W / 2^a, a) with norm near 1; exact or refused."""
    vector = np.cos(np.arange(weight.shape[1], dtype=np.float64))
    unit = weight / np.abs(weight).max()
    for _ in range(10):
        vector = unit.T @ (unit @ vector)
        vector /= np.abs(vector).max() or 1.0
    size = np.linalg.norm(unit @ vector) / np.linalg.norm(vector) if vector.any() else 1.0
    exponent = math.frexp(np.abs(weight).max())[1] + math.frexp(max(size, 1.0))[1]
    scaled = np.ldexp(weight, -exponent)
    sizes = np.abs(scaled[scaled != 0])
    exact = np.array_equal(np.ldexp(scaled, exponent), weight)
    if not (exact and sizes.min() >= 2.0**-160 and sizes.max() <= 2.0**20):
        raise Refused("the entries of one weight matrix span more than 48 decades")
    return scaled, exponent


def _in_range(values, low=2.0**-300, high=2.0**300):
    """Return the values, refused unless each is 0 or of a size that keeps products far from underflow."""
    sizes = np.abs(np.atleast_1d(values))
    if not (np.isfinite(sizes).all() and ((sizes == 0) | ((sizes >= low) & (sizes <= high))).all()):
        raise Refused("a number is not finite or out of the range in which the check is rigorous")
    return values


def _gram(weight, factors, extra, weight_error=None):
    """Return W' diag(factors) W and an entrywise bound of its error; W is known up to `weight_error` entrywise."""
    value = weight.T @ (factors[:, None] * weight)
    size = np.abs(weight).T @ (np.abs(factors)[:, None] * np.abs(weight))
    error = gamma(weight.shape[0] + extra) * size
    if weight_error is not None:
        both = weight_error.T @ (np.abs(factors)[:, None] * (2 * np.abs(weight) + weight_error))
        error += 1.001 * 0.5 * (both + both.T)
    return value, error


def _add(diagonal, error, term, term_error):
    total = diagonal + term
    return total, error + term_error + UNIT * np.abs(total)


def _eliminate(tall, count):
    """Overwrite the first `count` columns of [A; B] by those of its Cholesky factor; returns the smallest pivot.

    By 64 columns at a time: what earlier columns contribute is one product. Each entry thus stays one sum of an entry
    of the matrix and products of its factor, taken in some order, which is all that Rump's bound asks.
    """
    smallest = math.inf
    for start in range(0, count, 64):
        panel = tall[start:, start : min(start + 64, count)]
        width = panel.shape[1]
        panel -= tall[start:, :start] @ tall[start : start + width, :start].T
        for j in range(width):
            column = panel[j:, j] - panel[j:, :j] @ panel[j, :j]
            pivot = float(column[0])
            if not pivot > 0:
                raise Refused("the matrix inequality does not hold, or too narrowly to be proven")
            smallest = min(smallest, pivot)
            panel[j:, j] = column / math.sqrt(pivot)
            panel[j, j] = math.sqrt(pivot)
    return smallest


def _factor(blocks, lower, error):
    """Prove that every symmetric matrix within `error` (2-norm) of a block-tridiagonal one is positive definite.

    blocks: (n_k, n_k), of which the lower triangle counts; lower: block k+1 by block k. A shift that covers the error
    and those of the factorization itself is subtracted, and Cholesky must run through.

    Returns:
        the smallest pivot.
    Raises:
        Refused: it did not.
    Source: Rump, Verification of positive definiteness (2006), theorem 2.3; order of summation free.
    """
    sizes = [len(block) for block in blocks]
    trace = 1.0001 * sum(np.trace(block) for block in blocks)
    length = max(a + b for a, b in zip([0, *sizes], [*sizes, 0], strict=True)) + 3
    factor_error = gamma(length) / (1 - gamma(length))
    shift = 1.001 * (error + factor_error * trace) + sum(sizes) ** 2 * 2.0**-400
    if not math.isfinite(shift):
        raise Refused("the error bound of the matrix inequality is not finite")
    smallest, carried = math.inf, None
    for k, block in enumerate(blocks):
        np.fill_diagonal(block, np.nextafter(np.diagonal(block) - shift, -math.inf))
        if carried is not None:
            block = block - carried @ carried.T
        tall = np.vstack([block, lower[k]]) if k < len(lower) else block
        smallest = min(smallest, _eliminate(tall, sizes[k]))
        carried = tall[sizes[k] :]
    return smallest


def positive_definite(diagonals, errors, couplings, coupling_errors):
    """`_factor` with entrywise errors, after the diagonal is scaled into [1/2, 2) by powers of two, which is exact."""
    powers = []
    for block in diagonals:
        pivots = np.diagonal(block)
        if not (np.isfinite(block).all() and (pivots >= 2.0**-310).all()):
            raise Refused("the matrix inequality has a diagonal entry that is not positive")
        powers.append(np.frexp(pivots)[1] // 2)
    sums = []
    for k, power in enumerate(powers):
        both = np.ldexp(np.maximum(errors[k], errors[k].T), -(power[:, None] + power))
        sums.append(both.sum(axis=1))
    blocks = [np.ldexp(block, -(p[:, None] + p)) for block, p in zip(diagonals, powers, strict=True)]
    lower = []
    for k, coupling in enumerate(couplings):
        shift = -(powers[k + 1][:, None] + powers[k])
        lower.append(np.ldexp(coupling, shift))
        error = np.ldexp(coupling_errors[k], shift)
        sums[k] = sums[k] + error.sum(axis=0)
        sums[k + 1] = sums[k + 1] + error.sum(axis=1)
    return _factor(blocks, lower, 1.0001 * np.concatenate(sums).max())  # NaN stays NaN and is refused


def gram_bounded(weight, square, square_error=0.0, weight_error=None):
    """Prove square * I - W'W >= 0; returns the margin. `square` is known up to an error, W up to entrywise ones.

    The 8 roundings in excess also cover entries of W that are rounded themselves, as differences of rows are.
    """
    flip = weight.shape[0] < weight.shape[1]
    wide = weight.T if flip else weight
    off = weight_error if weight_error is None or not flip else weight_error.T
    gram, error = _gram(wide, np.ones(wide.shape[0]), 8, off)
    identity = np.eye(wide.shape[1])
    block, error = _add(square * identity, square_error * identity, -gram, error)
    return positive_definite([block], [error], [], [])


def norm_bounded(weight, value):
    """Prove |W|_2 <= value; returns the margin."""
    scaled, exponent = scale_weights(weight)
    size = float(_in_range(np.ldexp(value, -exponent), 2.0**-100, 2.0**100))
    return gram_bounded(scaled, size * size, UNIT * size * size)


def row_sum_bound(weight, roundings=4):
    """Return an upper bound of the largest absolute row sum, the l-infinity norm of `weight`.

    One rounding per term is enough; the check allows for two and a bounder for four, so that the two agree on machines
    that sum in different orders.
    """
    largest = float(np.abs(weight).sum(axis=1).max(initial=0.0))
    return _up(largest * (1 + roundings * (weight.shape[1] + 8) * UNIT)) if largest else 0.0


def spectral_norm_bound(weight):
    """Return an upper bound of |W|_2: a proven guess, or sqrt(|W|_1 |W|_inf) where that is smaller or all there is."""
    simple = _up(math.sqrt(row_sum_bound(weight))) * _up(math.sqrt(row_sum_bound(weight.T))) * (1 + 2.0**-50)
    if simple == 0:
        return 0.0
    guess = float(np.linalg.norm(weight, 2)) * (1 + 1e-6)
    try:
        norm_bounded(weight, guess)
    except Refused:
        return _up(simple)
    return min(guess, _up(simple))


# ---- activations over intervals ----------------------------------------------------------------------------

SLACK = 1e-12  # far above the errors of exp, tanh and their like, which no standard bounds
PARTS = 16  # stretches of an interval on which a curved activation is enclosed


def _sigmoid(y):
    return 0.5 * (1 + np.tanh(0.5 * y))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu_tanh(y):
    near = np.clip(y, -12.0, 12.0)  # beyond, f' is 0 or 1 up to 1e-50
    inner = math.sqrt(2 / math.pi) * (near + 0.044715 * near**3)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * near**2)
    half = 0.5 * (1 + np.tanh(inner))
    return y * half, half + 0.5 * near * slope / np.cosh(inner) ** 2


def _mish(y):
    t = np.tanh(np.logaddexp(0, y))
    return y * t, t + y * _sigmoid(y) * (1 - t) * (1 + t)


# label -> (y -> (f, f'), ((point, f' there), ..)): between the points f' is monotone
CURVES = {
    "Tanh": (lambda y: (np.tanh(y), 1 - np.tanh(y) ** 2), ((0.0, 1.0),)),
    "Sigmoid": (lambda y: (_sigmoid(y), _sigmoid(y) * _sigmoid(-y)), ((0.0, 0.25),)),
    "atan": (lambda y: (np.arctan(y), 1 / (1 + y * y)), ((0.0, 1.0),)),
    "softsign": (lambda y: (y / (1 + np.abs(y)), 1 / (1 + np.abs(y)) ** 2), ((0.0, 1.0),)),
    "erf": (lambda y: (_erf(y), 2 / math.sqrt(math.pi) * np.exp(-y * y)), ((0.0, 1.12838),)),
    "log_sigmoid": (lambda y: (-np.logaddexp(0, -y), _sigmoid(-y)), ()),
    "SiLU": (
        lambda y: (y * _sigmoid(y), _sigmoid(y) * (1 + y * _sigmoid(-y))),
        ((-2.39936, -0.09984), (2.39936, 1.09984)),
    ),
    "GELU none": (
        lambda y: (
            y * 0.5 * (1 + _erf(y / math.sqrt(2))),
            0.5 * (1 + _erf(y / math.sqrt(2))) + y * np.exp(-y * y / 2) / math.sqrt(2 * math.pi),
        ),
        ((-math.sqrt(2), -0.12891), (math.sqrt(2), 1.12891)),
    ),
    "GELU tanh": (_gelu_tanh, ((-1.4182, -0.129), (1.4182, 1.129))),
    "mish": (_mish, ((-2.2565, -0.11253), (1.4906, 1.0885))),
    "square": (lambda y: (y * y, 2 * y), ()),
    "exp": (lambda y: (np.exp(y), np.exp(y)), ()),
    "expm1": (lambda y: (np.expm1(y), np.exp(y)), ()),
}  # fmt: skip


def _pieces(step) -> Any:
    """Return (kinks ascending, slopes of the pieces) of an activation linear between kinks, or None."""
    if step.label == "ReLU":
        return [0.0], [0.0, 1.0]
    if step.label == "Absolute":
        return [0.0], [-1.0, 1.0]
    if step.label == "LeakyReLU":
        return [0.0], [float(step.attributes["negative_slope"]), 1.0]
    if step.label == "PReLU":
        return [0.0], [np.where(step.low < 1, step.low, step.high), 1.0]
    if step.label == "Clip":
        lower, upper = step.attributes["lower"], step.attributes["upper"]
        ends = [-math.inf if lower is None else float(lower), math.inf if upper is None else float(upper)]
        return ends, [0.0, 1.0, 0.0]
    return None


def _evaluate(step, y):
    """Return (f, f', error of f) of an activation at y; where f' jumps, one of its sides."""
    kind, attributes = step.curve, step.attributes
    if kind == "Clip":
        (lower, upper), _ = _pieces(step)
        value = np.minimum(np.maximum(y, lower), upper)
        return value, (value == y) * 1.0, 0.0 * y
    pieces = _pieces(step)
    if pieces is not None:
        left, right = pieces[1]
        value, slope = np.where(y < 0, left * y, right * y), np.where(y < 0, left, right)
        return value, slope, 2 * UNIT * np.abs(value) + 2.0**-1000
    if kind == "ELU":
        scale, rate = float(attributes["scale"]), float(attributes["input_scale"])
        steep = scale * float(attributes["alpha"])
        below = np.minimum(y, 0.0)
        value = np.where(y < 0, steep * np.expm1(rate * below), scale * y)
        slope = np.where(y < 0, steep * rate * np.exp(rate * below), scale)
    elif kind == "Softplus":
        beta = float(attributes["beta"])
        value, slope = np.logaddexp(0, beta * y) / beta, _sigmoid(beta * y)
    elif kind in ("sin", "cos"):
        value, slope = (np.sin(y), np.cos(y)) if kind == "sin" else (np.cos(y), -np.sin(y))
    elif kind in CURVES:
        value, slope = CURVES[kind][0](y)
    else:
        raise Refused(f"{kind} at node {step.name!r} has no bounds over a region")
    return value, slope, SLACK * (1 + np.abs(value) + np.abs(y))


def slopes_over(step, low, high):
    """Return (a, b) with a <= (f(y) - f(z)) / (y - z) <= b for y, z in [low, high], entry by entry.

    The hull of f' over the interval: at its ends and at what lies between them of the points where f' turns or jumps.
    """
    pieces = _pieces(step)
    least, most = np.full(low.shape, math.inf), np.full(low.shape, -math.inf)
    if pieces is not None:
        kinks, slopes = pieces
        for left, right, slope in zip([-math.inf, *kinks], [*kinks, math.inf], slopes, strict=True):
            met = (low < right) & (high > left) | (low == high) & (low <= right) & (high >= left)
            least = np.where(met, np.minimum(least, slope), least)
            most = np.where(met, np.maximum(most, slope), most)
        return least, most
    ends = [_evaluate(step, end)[1] for end in (low, high)]
    least, most = np.minimum(*ends), np.maximum(*ends)
    points = CURVES[step.curve][1] if step.curve in CURVES else ()
    if step.curve == "ELU":
        scale, rate = float(step.attributes["scale"]), float(step.attributes["input_scale"])
        points = ((0.0, scale), (0.0, scale * float(step.attributes["alpha"]) * rate))
    elif step.curve in (
        "sin",
        "cos",
    ):  # f' reaches 1 at 2 pi k and -1 at pi + 2 pi k, for cos a quarter further
        for value, start in ((1.0, 0.0), (-1.0, math.pi)):
            turns = (low - start + (math.pi / 2 if step.curve == "cos" else 0.0)) / (2 * math.pi)
            met = np.floor(turns + (high - low) / (2 * math.pi) + 1e-6) > np.floor(turns - 1e-6)
            met |= np.abs(turns) > 1e6
            least, most = (
                np.where(met, np.minimum(least, value), least),
                np.where(met, np.maximum(most, value), most),
            )
    for point, value in points:
        met = (low <= point + 0.01) & (high >= point - 0.01)
        least, most = (
            np.where(met, np.minimum(least, value), least),
            np.where(met, np.maximum(most, value), most),
        )
    slack = SLACK * (1 + np.maximum(np.abs(least), np.abs(most)))
    return np.maximum(least - slack, step.low), np.minimum(most + slack, step.high)


def offsets_over(step, low, high, slope):
    """Return (below, above) with slope y + below <= f(y) <= slope y + above for y in [low, high], entry by entry."""
    pieces = _pieces(step)
    least, most = np.full(low.shape, math.inf), np.full(low.shape, -math.inf)
    if pieces is not None:  # f(y) - slope y is least and most at an end or a kink
        for point in [low, high, *pieces[0]]:
            y = np.clip(point, low, high)
            value, _, error = _evaluate(step, y)
            error = error + 3 * UNIT * (np.abs(value) + np.abs(slope * y)) + 2.0**-1000
            least = np.minimum(least, value - slope * y - error)
            most = np.maximum(most, value - slope * y + error)
        return least, most
    last, before, off = None, None, 0.0
    for part in range(PARTS + 1):
        y = np.minimum(low + (high - low) * (part / PARTS), high) if part else low
        y = high if part == PARTS else y
        value, _, error = _evaluate(step, y)
        error = error + 8 * UNIT * (np.abs(value) + np.abs(slope * y)) + 2.0**-1000
        value = value - slope * y
        if last is not None:  # on a stretch f - slope y lies in the cones that start at its ends
            flat, steep = slopes_over(step, before, y)
            flat, steep = flat - slope, steep - slope
            width = (y - before) * (1 + 2.0**-40)
            spread = np.where(steep > flat, steep - flat, 1.0)
            share = np.where((flat < 0) & (steep > 0), -flat * steep / spread, 0.0) * width * (1 + 2.0**-40)
            mean = (steep * last - flat * value) / spread
            inside = (flat < 0) & (steep > 0)
            size = np.abs(last) + np.abs(value) + width * (np.abs(flat) + np.abs(steep))
            room = error + off + SLACK * size
            least = np.minimum(least, np.where(inside, mean - share, np.minimum(last, value)) - room)
            mean = (steep * value - flat * last) / spread
            most = np.maximum(most, np.where(inside, mean + share, np.maximum(last, value)) + room)
        last, before, off = value, y, error
    return least, most


def _undecided(step, low, high):
    """Return where tighter intervals could tighten what follows: not where an activation is one line on them."""
    pieces = _pieces(step)
    if pieces is None:
        return low < high
    return np.any([(low < kink) & (high > kink) for kink in pieces[0]], axis=0)


@dataclass(frozen=True, eq=False)
class Lines:
    """low y + below <= f(y) <= high y + above while y stays in its interval; each (B, width)."""

    low: Any
    below: Any
    high: Any
    above: Any


def lines_over(step, low, high, slopes=None):
    """Return `Lines` of an activation over [low, high]; `slopes` (low, high) fixes theirs, else they are chosen here.

    Of some slopes, the chord and those at ends and middle, the lines nearest to f at the middle of the interval.
    """
    if slopes is not None:
        below, above = (
            offsets_over(step, low, high, slopes[0])[0],
            offsets_over(step, low, high, slopes[1])[1],
        )
        return Lines(*np.broadcast_arrays(slopes[0], below, slopes[1], above))
    if step.label == "ReLU":
        crossing = (low < 0) & (high > 0)
        chord = np.where(crossing, high / np.where(crossing, high - low, 1.0), (low >= 0) * 1.0)
        above = np.maximum(-chord * low, high - chord * high) * (1 + 2.0**-48)
        above = np.where(crossing, above + 2.0**-52 * high + 2.0**-1000, 0.0)  # chord high is rounded
        return Lines(np.where(crossing, (high > -low) * 1.0, chord), np.zeros_like(low), chord, above)
    middle, width = low / 2 + high / 2, high - low
    ends = [_evaluate(step, end)[0] for end in (low, high)]
    chord = np.where(width > 0, (ends[1] - ends[0]) / np.where(width > 0, width, 1.0), 0.0)
    chord = np.clip(chord, *slopes_over(step, low, high))
    pieces = _pieces(step)
    tried = [chord, *(pieces[1] if pieces else [_evaluate(step, y)[1] for y in (low, middle, high)])]
    lines = None
    for slope in tried:
        slope = np.broadcast_to(slope, low.shape)
        below, above = offsets_over(step, low, high, slope)
        if lines is None:
            lines = Lines(slope, below, slope, above)
            continue
        under = slope * middle + below > lines.low * middle + lines.below
        over = slope * middle + above < lines.high * middle + lines.above
        lines = Lines(
            np.where(under, slope, lines.low), np.where(under, below, lines.below),
            np.where(over, slope, lines.high), np.where(over, above, lines.above),
        )  # fmt: skip
    return lines


# ---- linear bounds over regions ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Regions:
    """B convex sets of inputs: boxes |x - center| <= reach, or balls |x - center|_2 <= radius; center (B, n).

    Of a ball, reach is its radius in every entry; radius is (B,), or None of boxes.
    """

    center: Any
    reach: Any
    radius: Any = None

    def away(self, coefficients, absolute):
        """Return max a (x - center) over x, but for rounding, for coefficients a (B or 1, m, n), (B, m)."""
        if self.radius is None:
            return _apply(absolute, self.reach)
        # squares of coefficients below 2^-511 underflow
        return (np.linalg.norm(coefficients, axis=2) + 2.0**-500) * self.radius[:, None]


def boxes(lower, upper):
    """Return the boxes with corners (B, n)."""
    center = lower / 2 + upper / 2
    reach = np.maximum(upper - center, center - lower)
    return Regions(center, np.where(lower == upper, reach, np.nextafter(reach, math.inf)))


def balls(center, radius):
    """Return the balls around center (B, n) with radius (B,)."""
    radius = np.asarray(radius, dtype=np.float64)
    return Regions(center, np.broadcast_to(radius[:, None], center.shape), radius)


def region_of(model, region):
    """Return the region of a certificate as `Regions` of one member.

    Raises:
        Refused: it does not fit the input.
    """
    if model.tokens > 1:
        raise Refused("a region is covered for inputs of shape (batch, features) only")
    if "radius" not in region:
        lower, upper = _require_box(model, region["lower"], region["upper"])
        return boxes(lower[None], upper[None])
    center, radius = np.array(region["center"], dtype=np.float64), region["radius"]
    if center.shape != (model.steps[0].width,) or not np.isfinite(center).all():
        raise Refused(f"the region's center is not one number for each of {model.steps[0].width} inputs")
    if not (math.isfinite(radius) and radius >= 0):
        raise Refused(f"the region's radius {radius!r} is not a number of at least 0")
    return balls(center[None], [radius])


def _apply(rows, vectors):
    """Return rows (B or 1, m, n) times vectors (B or 1, n), (B, m)."""
    if len(rows) == 1:
        return vectors @ rows[0].T
    return np.matmul(rows, np.broadcast_to(vectors, (len(rows), vectors.shape[1]))[:, :, None])[:, :, 0]


RELU = Step("", "ReLU", "slopes", (), (None, 1), label="ReLU")


class Bounds:
    """Enclosures of every step's values over regions, and of linear functions of them, all rounding included.

    Intervals are carried forward; where an activation needs it, that of its input is cut with what linear bounds give
    when they are substituted backward to the input. The backward pass takes its coefficients as they are computed and
    charges each rounding with the size of the value that the coefficient multiplies (`costs`).

    Args:
        relaxations: per activation (lower, upper), the slopes of its lines, (width,) or (B, width); None chooses them.
        backward: False keeps to intervals.
    Attributes:
        low, high: per step, (B, width).
        lines: per step, of activations.
    Raises:
        Refused: a step without a rule, values beyond 2^300.
    Sources: Zhang, Weng, Chen, Hsieh, Daniel, Efficient neural network robustness certification with general
    activation functions (2018), theorem 3.2; Singh, Gehr, Puschel, Vechev, An abstract domain for certifying neural
    networks (2019).
    """

    def __init__(self, model, regions, relaxations=None, backward=True):
        self.model, self.regions = model, regions
        self.low, self.high, self.lines, self.costs = [], [], [], []
        chosen, curved = iter(relaxations or []), regions.radius is not None
        for step in model.steps:
            lines = None
            if step.rule == "input":
                low, high = _outward(regions.center, regions.reach)
            elif step.rule in LINEAR:
                low, high = self._interval(step)
            elif step.rule == "slopes":
                j = step.inputs[0]
                if backward and curved:
                    self._sharpen(j, step)
                slopes = next(chosen) if relaxations is not None else None
                lines = lines_over(step, self.low[j], self.high[j], slopes)
                low, high = offsets_over(step, self.low[j], self.high[j], 0.0)
                curved = True
            elif step.rule in ("groups", "maxima"):
                if folds(step) is None:
                    low, high = self._sorted(step)
                else:
                    low, high, lines = self._fold(step)
                curved = True
            else:
                raise Refused(f"{step.kind} at node {step.name!r} has no bounds over a region")
            if not (np.maximum(np.abs(low), np.abs(high)) <= 2.0**300).all():
                raise Refused(
                    f"the values of node {step.name!r} are not finite or beyond 2^300 over the region"
                )
            self.low.append(low)
            self.high.append(high)
            self.lines.append(lines)
            self.costs.append(self._cost(step, lines))

    def size(self, k):
        """Return an upper bound of the sizes of the values of step k, (B, width)."""
        return np.maximum(np.abs(self.low[k]), np.abs(self.high[k]))

    def _interval(self, step):
        """Return the interval of a linear step from those before it."""
        centers = [self.low[i] / 2 + self.high[i] / 2 for i in step.inputs]
        reaches = [
            np.nextafter(np.maximum(self.high[i] - c, c - self.low[i]), math.inf)
            for i, c in zip(step.inputs, centers, strict=True)
        ]
        value = _linear(step, [c.T for c in centers]).T
        reach = _linear(step, [r.T for r in reaches], absolute=True).T
        size = _linear(
            step, [np.abs(c).T + r.T for c, r in zip(centers, reaches, strict=True)], absolute=True
        ).T
        bias = 0.0 if step.bias is None else step.bias
        terms = (step.matrix.shape[1] if step.rule in ("linear", "average") else 2) + 8
        error = (gamma(terms) + 2 * step.relative) * (size + np.abs(bias)) + step.bias_error
        return _outward(value + bias, reach + 1.001 * error + 2.0**-900)

    def _sorted(self, step):
        """Return the interval of sorted groups or maxima, which are monotone."""
        low, high = self.low[step.inputs[0]], self.high[step.inputs[0]]
        if step.rule == "maxima":
            inside = step.matrix >= 0
            return [np.where(inside, end[:, step.matrix], -math.inf).max(axis=2) for end in (low, high)]
        shape = (len(low), step.count, step.width // step.count)
        return [np.sort(end.reshape(shape), axis=2).reshape(low.shape) for end in (low, high)]

    def _fold(self, step):
        """Return (low, high, lines) of groups h = y + D max(d, 0), d = E y: `folds`. The lines are of max(d, 0)."""
        k, (along, back), each = step.inputs[0], folds(step), range(step.count)
        shape = (len(self.low[k]), step.count, -1)
        size, reach = self.size(k).reshape(shape), (self.high[k] - self.low[k]).reshape(shape)
        middle = (np.abs(along) * size).sum(axis=2)  # |d| at most, but for rounding
        rows = np.zeros((2, step.count, step.count, along.shape[1]))
        rows[0, each, each], rows[1, each, each] = along, -along
        least, _ = self.minimum(rows.reshape(2 * step.count, -1), k)
        low, high = least[:, : step.count], -least[:, step.count :]
        bound = middle * (1 + 2.0**-40)
        low, high = np.maximum(low, -bound), np.minimum(high, bound)
        lines = lines_over(RELU, low, np.maximum(low, high))
        ends = [back * np.maximum(end, 0.0)[:, :, None] for end in (low, high)]
        slack = gamma(along.shape[1] + 16) * (size + np.abs(back) * bound[:, :, None]) + 2.0**-900
        below = self.low[k].reshape(shape) + np.minimum(*ends) - slack
        above = below + reach + np.abs(ends[1] - ends[0]) + 2 * slack
        return below.reshape(len(below), -1), above.reshape(len(below), -1), lines

    def _cost(self, step, lines):
        """Return the errors of one backward substitution through a step, per unit of |coefficient|, (B, width).

        Of the sums with the offsets of lines, with biases and with these errors themselves, too.
        """
        rounding = 1.01 * gamma(step.width + 16)
        if lines is not None and step.rule == "groups":
            (along, back), size = folds(step), self.size(step.inputs[0])
            size = size.reshape(len(size), step.count, -1)
            steep = np.maximum(np.abs(lines.low), np.abs(lines.high))
            offset = np.maximum(np.abs(lines.below), np.abs(lines.above))
            reached = (np.abs(along) * size).sum(axis=2) * steep + offset
            return (4 * rounding * (size + np.abs(back) * reached[:, :, None])).reshape(len(size), -1)
        if lines is not None:
            steep = np.maximum(np.abs(lines.low), np.abs(lines.high))
            return rounding * (
                steep * self.size(step.inputs[0]) + np.maximum(np.abs(lines.below), np.abs(lines.above))
            )
        if step.rule in LINEAR:
            size = _linear(step, [self.size(i).T for i in step.inputs], absolute=True).T
            bias = 0.0 if step.bias is None else np.abs(step.bias)
            return 1.0001 * ((rounding + 2 * step.relative) * (size + bias) + step.bias_error)
        return rounding * self.size(len(self.costs))

    def _sharpen(self, k, step):
        """Cut the interval of step k, the input of an activation, with linear bounds where that can matter."""
        needed = _undecided(step, self.low[k], self.high[k])
        places = np.flatnonzero(needed.any(axis=0))
        widest = max(one.width for one in self.model.steps[: k + 1])
        together = max(32, 2**17 // (len(self.low[k]) * widest))  # rows whose coefficients stay in cache
        parts = -(-2 * len(places) // together)
        low, high = self.low[k].copy(), self.high[k].copy()
        for some in np.array_split(places, parts) if parts else ():
            rows = np.zeros((2 * len(some), self.model.steps[k].width))
            rows[range(len(some)), some], rows[range(len(some), 2 * len(some)), some] = 1.0, -1.0
            least = self.minimum(rows, k)[0]
            # where it is not needed nothing changes, so that no region's bounds depend on the other regions
            inner = np.maximum(low[:, some], least[:, : len(some)])
            outer = np.minimum(high[:, some], -least[:, len(some) :])
            low[:, some] = np.where(needed[:, some], inner, low[:, some])
            high[:, some] = np.where(needed[:, some], outer, high[:, some])
        self.low[k], self.high[k] = low, np.maximum(low, high)

    def minimum(self, rows, k=-1):
        """Return lower bounds of rows (m, width) times the values of step k, and what they come from.

        Returns:
            (B, m) lower bounds, and the coefficients a of linear bounds a x + b, (B or 1, m, inputs).
        """
        k %= len(self.costs)
        pending = {k: np.asarray(rows, dtype=np.float64)[None]}
        total = np.zeros((len(self.regions.center), len(rows)))
        slack = np.zeros_like(total)
        for i in range(k, 0, -1):
            if i not in pending:
                continue
            step, c = self.model.steps[i], pending.pop(i)
            if step.rule in LINEAR:
                total = total - _apply(np.abs(c), self.costs[i])
                if step.bias is not None:
                    total = total + c @ step.bias
                parts = zip(step.inputs, _transposed(step, c, self.model), strict=True)
            elif step.rule == "groups" and self.lines[i] is not None:
                lines, (along, back) = self.lines[i], folds(step)
                each = c.reshape(*c.shape[:2], *back.shape)
                factor = (each * back).sum(axis=3)  # of max(d, 0)
                positive, negative = np.maximum(factor, 0.0), np.minimum(factor, 0.0)
                total = total - _apply(np.abs(c), self.costs[i])
                total = total + _apply(positive, lines.below) + _apply(negative, lines.above)
                factor = positive * lines.low[:, None] + negative * lines.high[:, None]
                part = each + factor[..., None] * along
                parts = [(step.inputs[0], part.reshape(*part.shape[:2], -1))]
            else:
                lines, positive, negative = self.lines[i], np.maximum(c, 0.0), np.minimum(c, 0.0)
                below, above = (self.low[i], self.high[i]) if lines is None else (lines.below, lines.above)
                total = (
                    total + _apply(positive, below - self.costs[i]) + _apply(negative, above + self.costs[i])
                )
                parts = ()
                if lines is not None:
                    alone = len(c) == len(lines.low)  # then in place
                    positive = np.multiply(positive, lines.low[:, None], out=positive if alone else None)
                    positive += np.multiply(negative, lines.high[:, None], out=negative if alone else None)
                    parts = [(step.inputs[0], positive)]
            slack += 4 * UNIT * np.abs(total)
            for j, part in parts:
                if j in pending:
                    part = pending[j] + part
                    slack += UNIT * _apply(np.abs(part), self.size(j))
                pending[j] = part
        c = pending.get(0, np.zeros((1, len(rows), self.model.steps[0].width)))
        regions, absolute = self.regions, np.abs(c)
        middle, away = _apply(c, regions.center), regions.away(c, absolute)
        slack += gamma(c.shape[2] + 16) * (_apply(absolute, np.abs(regions.center)) + away + np.abs(total))
        bound = total + middle - away - (1.001 * slack + 2.0**-500)
        if not np.isfinite(bound).all():
            raise Refused("the linear bounds overflow over the region")
        return np.nextafter(bound, -math.inf), c


def folds(step) -> Any:
    """Return (E, D), (groups, n) each, of groups that are h = y + D max(E y, 0); None of others.

    Sorted pairs: E = (1, -1), D = (-1, 1). Reflections: E = -w, D = 2 w / w'w up to gamma(n + 4) |D|.
    """
    if step.kind == "Householder":
        w = step.basis[:, :, 0]
        return -w, 2 * w / (w * w).sum(axis=1, keepdims=True)
    if step.kind == "GroupSort" and step.width == 2 * step.count:
        return np.tile([1.0, -1.0], (step.count, 1)), np.tile([-1.0, 1.0], (step.count, 1))
    return None


def _outward(value, reach):
    """Return an enclosure of [value - reach, value + reach]."""
    return np.nextafter(value - reach, -math.inf), np.nextafter(value + reach, math.inf)


def _transposed(step, c, model):
    """Return what coefficients c (B, m, width) of a linear step are in its inputs, one array per input."""
    if step.rule == "linear":
        return [(c.reshape(-1, c.shape[2]) @ step.matrix).reshape(*c.shape[:2], step.matrix.shape[1])]
    if step.rule == "scale":
        return [c * step.matrix]
    if step.rule == "average":
        channels = c.reshape(*c.shape[:2], -1, step.matrix.shape[0])
        return [(channels @ step.matrix).reshape(*c.shape[:2], -1)]
    if step.rule == "sum":
        return [c * sign for sign in step.matrix]
    if step.rule == "concat":
        return np.split(c, np.cumsum([model.steps[i].width for i in step.inputs])[:-1], axis=2)
    if step.rule == "rows":
        spread = np.zeros((*c.shape[:2], model.steps[step.inputs[0]].width))
        for place, row in enumerate(step.matrix):
            spread[:, :, row] += c[:, :, place]
        return [spread]
    return [c]


def relaxations_of(model, relaxations):
    """Return the slopes of a certificate's lines as arrays, one pair per activation.

    Raises:
        Refused: they do not fit.
    """
    counts = [step.width for step in model.steps if step.rule == "slopes"]
    pairs = [(np.array(one["lower"]), np.array(one["upper"])) for one in relaxations]
    if [(len(a), len(b)) for a, b in pairs] != [(n, n) for n in counts]:
        raise Refused(f"the relaxations are not {counts} slopes, one per neuron of every activation")
    if not all(np.isfinite(side).all() for pair in pairs for side in pair):
        raise Refused("a slope of the relaxations is not finite")
    return pairs


def localize(model, regions, relaxations=None):
    """Return the model over one region: inputs that it fixes do not move, slopes are those that occur over it.

    An activation becomes h = low h_1 + r v, 0 <= v / h_1 <= 1 with r >= high - low; where r = 0 it is linear.
    """
    bounds, moving = Bounds(model, regions, relaxations), regions.reach[0] > 0
    steps = [replace(model.steps[0], matrix=moving)]
    for step in model.steps[1:]:
        before = steps[step.inputs[0]]
        if (
            step.rule == "linear" and before.rule == "shifted"
        ):  # what does not move is left out: smaller norms
            step = replace(step, matrix=step.matrix * ((before.low != 0) | (before.matrix != 0)))
        if step.rule == "slopes":
            low, high = (
                side[0] for side in slopes_over(step, *(b[step.inputs[0]] for b in (bounds.low, bounds.high)))
            )
            rest = np.where(high > low, np.nextafter(high - low, math.inf), 0.0)
            step = replace(step, rule="shifted", low=low, high=high, matrix=rest)
            (j,) = step.inputs
            if before.rule == "linear" and sum(j in one.inputs for one in model.steps) == 1:
                steps[j] = replace(before, matrix=before.matrix * ((low != 0) | (rest != 0))[:, None])
        steps.append(step)
    return replace(model, steps=tuple(steps))


def kernel_norm_bound(kernel, norm):
    """Return an upper bound of the norm of a convolution with zero padding, whatever the size of its input.

    Its matrix is a part of the operator T on the whole lattice, hence |W| <= |T|. In l-infinity |T| is the largest
    absolute sum over the taps of an output. In l2, with the sublattices that a stride leaves as channels, T is a
    convolution by matrices K_o without stride, and so are G = T T', G^2, G^4, ..: |T|^(2 m) = |G^m| <= sum_o |G_o|_F.
    Source: Delattre, Barthelemy, Araujo, Allauzen, Efficient bound of Lipschitz constant for convolutional layers by
    Gram iteration (2023), here on the infinite lattice, where zero padding is no approximation.
    """
    weight = kernel.weight
    if norm == "linf":
        return row_sum_bound(weight.reshape(len(weight), -1))
    if not weight.any():
        return 0.0
    exponent = math.frexp(np.abs(weight).max())[1]
    weight = _in_range(np.ldexp(weight, -exponent), 2.0**-160)
    each = len(weight) // kernel.groups
    parts = [_without_stride(weight[k : k + each], kernel) for k in range(0, len(weight), each)]
    return _up(math.ldexp(max(_lattice_norm_bound(part) for part in parts), exponent))


def _without_stride(weight, kernel):
    """Return (offsets .., out, in * sublattices): a kernel of stride and dilation 1 for the sublattices as channels."""
    extents = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], kernel.dilation, strict=True)]
    counts = [-(-extent // s) for extent, s in zip(extents, kernel.stride, strict=True)]
    spread = np.zeros((*weight.shape[:2], *[c * s for c, s in zip(counts, kernel.stride, strict=True)]))
    taps = [slice(0, extent, d) for extent, d in zip(extents, kernel.dilation, strict=True)]
    spread[(slice(None), slice(None), *taps)] = weight
    axes, pairs = len(counts), zip(counts, kernel.stride, strict=True)
    split = spread.reshape(*weight.shape[:2], *[n for pair in pairs for n in pair])
    order = [*range(2, 2 + 2 * axes, 2), 0, 1, *range(3, 3 + 2 * axes, 2)]
    return split.transpose(order).reshape(*counts, len(weight), -1)


def _lattice_norm_bound(kernel):
    """Return an upper bound of the l2 norm of a convolution by matrices, kernel (offsets .., out, in).

    Errors are bounded in the sum of Frobenius norms S, in which | |A| * |B| | <= S_A S_B.
    """
    axes = kernel.ndim - 2
    adjoint = np.swapaxes(kernel, -1, -2)[(slice(None, None, -1),) * axes]
    if kernel.shape[-2] > kernel.shape[-1]:
        kernel, adjoint = adjoint, kernel
    power, shift, best = 2, 0, math.inf  # |T|^power <= 2^shift (S_current + error)
    current = _convolve(kernel, adjoint)
    error = 1.001 * gamma(kernel[..., 0, :].size + 2) * _size_sum(kernel) ** 2 + 2.0**-400
    while True:
        total = 1.001 * (_size_sum(current) + error)
        best = min(best, total ** (1 / power) * 2.0 ** (shift / power) * (1 + 2.0**-40))
        count = current[..., 0, :].size  # terms of an entry
        if power >= 32 or count**2 * current.shape[-1] > 4e9:
            return best
        exponent = math.frexp(total)[1]
        current, error = np.ldexp(current, -exponent), math.ldexp(error, -exponent)
        size = 1.001 * _size_sum(current)
        error = 1.001 * (2 * error * size + error * error + gamma(count + 2) * size * size) + 2.0**-400
        current, power, shift = _convolve(current, current), 2 * power, 2 * (shift + exponent)


def _size_sum(kernel):
    """Return sum_o |K_o|_F up to the factor 1.001."""
    return float(np.sqrt((kernel * kernel).sum(axis=(-1, -2))).sum()) + 2.0**-500


def _convolve(left, right):
    """Return sum_a L_a R_(o-a) for every offset o."""
    axes, (n, k), m = left.ndim - 2, left.shape[-2:], right.shape[-1]
    sizes = [a + b - 1 for a, b in zip(left.shape[:axes], right.shape[:axes], strict=True)]
    flat = np.moveaxis(right, -2, 0).reshape(k, -1)
    result = np.zeros((n, *sizes, m))
    for offset in np.ndindex(*left.shape[:axes]):
        block = tuple(slice(o, o + b) for o, b in zip(offset, right.shape[:axes], strict=True))
        result[(slice(None), *block)] += (left[offset] @ flat).reshape(n, *right.shape[:axes], m)
    return np.moveaxis(result, 0, -2)


# ---- the matrix inequality ---------------------------------------------------------------------------------


def chain_bounded(weights, slopes, rho, multipliers, weight_errors=None):
    """Prove M(rho, multipliers) >= 0 for a chain with slopes in [alpha, beta]; returns the margin.

    z'Mz = rho |x|^2 - |W_L v_K|^2 + 2 sum_i lambda_i (v_i - alpha_i y_i)(v_i - beta_i y_i), y = W_k v_{k-1}.
    The weights are known up to the entrywise bounds `weight_errors`, None where they are exact.
    """
    scaled, exponents = zip(*[scale_weights(weight) for weight in weights], strict=True)
    off = [
        None if error is None else np.ldexp(error, -exponent) + 2.0**-400
        for error, exponent in zip(weight_errors or [None] * len(weights), exponents, strict=True)
    ]
    if len(weights) == 1:
        return gram_bounded(scaled[0], float(_in_range(np.ldexp(rho, -2 * exponents[0]))), 0.0, off[0])
    total, passed, lam = sum(exponents), 0, []
    for k, values in enumerate(multipliers):  # v_k -> 2^passed v_k, everything divided by 4^total: exact
        passed += exponents[k]
        lam.append(_in_range(np.ldexp(values, 2 * (passed - total))))
    rho = float(_in_range(np.ldexp(rho, -2 * total)))
    for low, high in slopes:
        _in_range(np.concatenate([low, high]), 2.0**-60, 2.0**20)
    last = len(lam) - 1
    diagonals, errors, couplings, coupling_errors = [], [], [], []
    keep_input = bool(slopes[0][0].any())
    for k in range(-1 if keep_input else 0, last + 1):
        require_room("the matrix inequality", *[scaled[0].shape[1] if k < 0 else len(lam[k])] * 2)
        block = rho * np.eye(scaled[0].shape[1]) if k < 0 else np.diag(2 * lam[k])
        error = np.zeros_like(block)
        if k == 0 and not keep_input:
            side = lam[0] * slopes[0][1]
            ratio = side / rho
            term = -(side[:, None] * (scaled[0] @ scaled[0].T)) * ratio
            size = np.abs(side)[:, None] * (np.abs(scaled[0]) @ np.abs(scaled[0]).T) * np.abs(ratio)
            term_error = gamma(scaled[0].shape[1]) * size + gamma(8) * (np.abs(term) + np.abs(term.T))
            if off[0] is not None:
                both = off[0] @ (2 * np.abs(scaled[0]) + off[0]).T
                term_error += 1.001 * 0.5 * np.abs(side)[:, None] * (both + both.T) * np.abs(ratio)
            block, error = _add(block, error, term, term_error)
        if k < last:
            low, high = slopes[k + 1]
            if low.any():
                block, error = _add(
                    block, error, *_gram(scaled[k + 1], 2 * lam[k + 1] * low * high, 8, off[k + 1])
                )
            factors = _in_range(low + high, 2.0**-120) * lam[k + 1]
            coupling = -factors[:, None] * scaled[k + 1]
            couplings.append(coupling)
            coupling_errors.append(gamma(4) * np.abs(coupling))
            if off[k + 1] is not None:
                coupling_errors[-1] += 1.001 * np.abs(factors)[:, None] * off[k + 1]
        else:
            value, term_error = _gram(scaled[-1], np.ones(len(scaled[-1])), 8, off[-1])
            block, error = _add(block, error, -value, term_error)
        diagonals.append(block)
        errors.append(error)
    return positive_definite(diagonals, errors, couplings, coupling_errors)


class _Assembly:
    """M = diagonal + sum of E C + C'E' + sum of G' diag(d) G, and a bound of all errors in the 2-norm."""

    def __init__(self, diagonal):
        self.matrix, self.error, self.terms = np.diag(diagonal), 0.0, 4
        self.sizes = 2 * len(diagonal) * diagonal.max(initial=0.0)  # of the terms added up, Frobenius norms

    def cross(self, at, factors, rows, error):
        """Add factor_i rows_i to row i and to column i of `at`; the rows are known up to `error`."""
        rows, size = factors[:, None] * rows, _size(factors[:, None] * rows)
        self.matrix[at] += rows
        self.matrix[:, at] += rows.T
        self.error += 2 * np.abs(factors).max(initial=0.0) * error + 2 * gamma(4) * size
        self.sizes += 2 * size

    def gram(self, rows, factors, error):
        """Add rows' diag(factors) rows; the rows are known up to `error`."""
        largest, size = np.abs(factors).max(initial=0.0), _size(rows)
        self.matrix += rows.T @ (factors[:, None] * rows)
        self.error += largest * (error * (2 * size + error) + gamma(len(rows) + 8) * size * size)
        self.sizes += largest * size * size
        self.terms += 1

    def result(self):
        return self.matrix, 1.001 * (self.error + gamma(self.terms) * self.sizes)


def inequality(model, norm, output, rho, multipliers, input_multipliers=None):
    """Return M(rho, multipliers) and a bound of its error in the 2-norm; see the top of this file.

    Coordinates are (t), x, v_1 .. v_K, of groups the w with u = B w. Each is measured in a power of two that makes the
    diagonal about 1, so that one number per signal H, the Frobenius norm of its error, describes all errors.
    """
    linf, masks, lists = norm == "linf", structure(model, output), iter(multipliers)
    strengths, places = [np.full(int(linf), 2.0 * rho)], []
    for step, mask in zip(model.steps, masks, strict=True):
        start = sum(map(len, strengths))
        if step.rule == "input":
            strengths.append(np.array(input_multipliers)[mask] if linf else np.full(mask.sum(), float(rho)))
        elif step.label:
            values = np.array(next(lists), dtype=np.float64)[mask]
            if step.rule == "groups":
                values = np.repeat(values, step.basis.shape[2])
            strengths.append(values if step.rule in ("groups", "maxima") else 2 * values)
        places.append(slice(start, sum(map(len, strengths))))
    strength = _in_range(np.concatenate(strengths), 2.0**-600, 2.0**600)
    powers = np.frexp(strength)[1] // 2
    strength, signals = np.ldexp(strength, -2 * powers), []
    for step in model.steps:
        require_room(f"{step.kind} at node {step.name!r}", max(step.width, len(strength)), len(strength))
    total = _Assembly(strength)
    for step, mask, at in zip(model.steps, masks, places, strict=True):
        given = [signals[i] for i in step.inputs]
        if step.rule in LINEAR:
            signals.append(_pass(step, given))
        elif step.rule == "maxima":
            signals.append(_pass_maxima(step, mask, at, given[0], powers[at], strength[at], total))
        elif step.rule == "groups":
            signals.append(_pass_groups(step, mask, at, given[0], powers[at], strength[at], total))
        elif step.rule == "shifted":
            signals.append(_pass_shifted(step, mask, at, given[0], powers[at], strength[at], total))
        else:
            fresh = np.zeros((step.width, len(strength)))
            fresh[np.flatnonzero(mask), np.arange(len(strength))[at]] = np.ldexp(1.0, -powers[at])
            signals.append((fresh, 0.0))
            if step.rule == "input":
                continue
            rows, error = given[0]
            if step.rule == "implicit":
                norm_in = spectral_norm_bound(step.basis) if error else 0.0
                outside = _multiply(step.basis, norm_in, rows, error)
                inside = _multiply(step.matrix, 0.0, fresh, 0.0)
                rows, error = outside[0] + inside[0], outside[1] + inside[1]
                error += gamma(2) * _size(rows)
            rows, error = np.ldexp(rows[mask], powers[at][:, None]), _most(powers[at]) * error
            low, high = step.low[mask], step.high[mask]
            total.cross(at, -0.5 * strength[at] * (low + high), rows, error)
            if (low * high).any():
                total.gram(rows, strength[at] * low * high, error)
    rows, error = select_rows(signals[-1][0], output), 2 * signals[-1][1]
    error += gamma(2) * _size(rows)
    if linf:
        total.cross(slice(0, 1), -np.ldexp(1.0, -powers[:1]), rows, error)
        taken = np.ldexp(strength[places[0]], 2 * (powers[places[0]] - powers[0])).sum()
        total.matrix[0, 0] -= taken
        total.error += gamma(len(masks[0]) + 4) * taken
    else:
        total.gram(rows, -np.ones(len(rows)), error)
    return total.result()


def _most(powers):
    return 2.0 ** int(powers.max(initial=-600))


def _multiply(matrix, norm, value, error):
    """Return W H and its error, |W|_2 e + gamma | |W| |H| |_F."""
    rounding = gamma(matrix.shape[1] + 2) * _size(np.abs(matrix) @ np.abs(value))
    return matrix @ value, 1.001 * (norm * error + rounding)


def _pass(step, given):
    """Return (H, e) of a linear step: the true H is within e in the Frobenius norm."""
    values, errors = zip(*given, strict=True)
    error = sum(errors)
    if step.rule == "linear":
        return _multiply(step.matrix, step.norm if error else 0.0, values[0], error)
    value = _linear(step, values)
    if step.rule == "average":
        size = _size(_linear(step, [np.abs(values[0])]))
        error *= _up(math.sqrt(step.sums[0] * step.sums[1])) * (1 + 2.0**-50)
        error += (gamma(step.matrix.shape[1] + 2) + 2 * step.relative) * size
    if step.rule == "scale":
        error *= float(np.abs(step.matrix).max(initial=0.0))
    if step.rule in ("scale", "sum"):
        error += (gamma(2) + 2 * step.relative) * _size(value)
    return value, 1.001 * error


def _pass_groups(step, mask, at, given, powers, strength, total):
    """Return (H, e) after groups, Pi Y + B w, and add lambda (w'B'B w - |c Y|^2) to the inequality."""
    (rows, error), (groups, size, r) = given, step.basis.shape
    width = rows.shape[1]
    powers, strength, basis = powers.reshape(-1, r), strength.reshape(-1, r)[:, 0], step.basis[mask]
    own = np.arange(width)[at].reshape(-1, r)
    y = rows.reshape(groups, size, width)
    cy = step.matrix @ y
    error += gamma(2 * size + 8) * 3 * _size(rows)  # | |c| |_2 <= 2, and c is known up to gamma(size + 4) |c|
    scaled = np.ldexp(cy[mask], powers[:, :1, None]).reshape(-1, width)
    total.gram(scaled, -np.repeat(strength, size), _most(powers) * error)
    blocks = strength[:, None, None] * (basis.transpose(0, 2, 1) @ basis)
    total.matrix[own[:, :, None], own[:, None, :]] += blocks - strength[:, None, None] * np.eye(r)
    # without error for GroupSort; for Householder, blocks are 1 x 1
    total.error += gamma(size + 8) * blocks.max(initial=0.0)
    total.sizes += width * blocks.max(initial=0.0)
    y = y - cy
    places = np.flatnonzero(mask)[:, None, None], np.arange(size)[:, None], own[:, None, :]
    y[places] = basis * np.ldexp(1.0, -powers)[:, None, :]
    return y.reshape(-1, width), 1.001 * error


def _pass_shifted(step, mask, at, given, powers, strength, total):
    """Return (H, e) after an activation over a region, low Y + r v, and add 2 lambda v (v - Y) to the inequality."""
    rows, error = given
    total.cross(at, -0.5 * strength, np.ldexp(rows[mask], powers[:, None]), _most(powers) * error)
    passed = step.low[:, None] * rows
    error = 1.001 * (np.abs(step.low).max(initial=0.0) * error + gamma(4) * _size(passed))
    passed[np.flatnonzero(mask), np.arange(rows.shape[1])[at]] += np.ldexp(step.matrix[mask], -powers)
    return passed, error


def _pass_maxima(step, mask, at, given, powers, strength, total):
    """Return (H, e) after maxima, mean + v, and add lambda (v^2 - (1 - 1/n) |c Y|^2) of every window.

    An increment of a maximum is a convex combination p'Y of those of its window, p >= 0, 1'p = 1. It is the mean of Y
    and v = (p - 1/n)'Y = (p - 1/n)'c Y with |p - 1/n|^2 = |p|^2 - 1/n <= 1 - 1/n.
    """
    rows, error = given
    inside = step.matrix >= 0
    sizes = inside.sum(axis=1)
    y = np.vstack([rows, np.zeros((1, rows.shape[1]))])[step.matrix]  # (maxima, n, N)
    means = y.sum(axis=1) / sizes[:, None]
    taken = float(np.bincount(step.matrix[inside]).max())  # windows of one entry
    reach = error * math.sqrt(taken) * 1.001
    rounding = gamma(step.matrix.shape[1] + 8) * _size(y)
    centered = (y - means[:, None, :]) * inside[:, :, None] * np.sqrt(1 - 1 / sizes)[:, None, None]
    scaled = np.ldexp(centered[mask], powers[:, None, None]).reshape(-1, rows.shape[1])
    factors = -np.repeat(strength, step.matrix.shape[1])
    total.gram(scaled, factors, _most(powers) * 1.001 * (reach + 3 * rounding))
    means[np.flatnonzero(mask), np.arange(rows.shape[1])[at]] = np.ldexp(1.0, -powers)
    return means, 1.001 * (reach + rounding)


def _prove(model, norm, proof):
    """Prove the inequality of one proof; returns (its Lipschitz constant, margin).

    M > 0 with all lambda > 0 also proves that z = phi(W z + U x + b) of an Implicit layer has one solution: put 0 for
    x, t and all that comes before the layer, any v for the layer, and v = alpha y, u = c Y for nonlinearities after it
    that depend on it, so that their terms vanish. (For later Implicit layers v = alpha (W v + U h) can be solved:
    the same argument, last layer first, shows that v = alpha W v has no solution but 0.) What is left of z'Mz > 0
    is q(v, W v) = sum 2 lambda (v - alpha W v)(v - beta W v) > |F z|^2 >= 0 for all v != 0. For G(v) = v -
    phi(W v + c) the slopes give q(dv - dG, W dv) <= 0, hence |dG| >= const |dv|: G is injective with closed range,
    which by invariance of domain is open as well: a bijection.
    """
    output, rho, multipliers = proof["output"], proof["rho"], proof["multipliers"]
    weights, inputs = proof["input_multipliers"], model.steps[0].width
    counts = [step.count for step in model.nonlinear]
    if [len(values) for values in multipliers] != counts:
        raise Refused(f"the multipliers are not {counts}, one per neuron or group of every nonlinearity")
    if (norm == "linf") != (weights is not None) or (weights is not None and len(weights) != inputs):
        raise Refused(f"input multipliers are one per input ({inputs}) in the l-infinity norm, none in l2")
    for values in [[rho], weights or [], *multipliers]:
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise Refused("rho or a multiplier is negative or not finite")
    pairs = zip(model.nonlinear, multipliers, strict=True)
    implicit = [values for step, values in pairs if step.rule == "implicit"]
    if not all(value > 0 for values in implicit for value in values):
        raise Refused("a multiplier of an Implicit layer is zero; it proves a solution only when positive")
    require_unrolled(model.steps)
    if len(model.steps) == 1 and norm == "l2" and output is None:
        return 1.0, math.inf  # nothing stands between two cuts
    masks = structure(model, output)
    if not implicit and not masks[0].any():
        return 0.0, math.inf  # the output is constant
    if norm == "l2" and model.chain is not None:
        if not rho > 0:
            raise Refused("rho is zero and the function is not constant")
        kept = [mask for step, mask in zip(model.steps, masks, strict=True) if step.label]
        chosen, last = [slice(None), *kept, slice(None)], select_rows(model.chain[-1], output)
        chain = [w[chosen[k + 1]][:, chosen[k]] for k, w in enumerate([*model.chain[:-1], last])]
        errors = list(model.chain_errors or [])
        if errors[-1] is not None and output is not None:  # of the difference of two rows
            errors[-1] = 1.001 * errors[-1][list(np.ravel(output))].sum(axis=0, keepdims=True)
        errors = [None if e is None else e[chosen[k + 1]][:, chosen[k]] for k, e in enumerate(errors)]
        if not all(w.any() or (e is not None and e.any()) for w, e in zip(chain, errors, strict=True)):
            return 0.0, math.inf  # the difference of two equal outputs
        if not all(weight.any() for weight in chain):
            raise Refused("a product of matrices may be zero up to rounding")
        slopes = [(step.low[mask], step.high[mask]) for step, mask in zip(model.nonlinear, kept, strict=True)]
        lam = [np.array(values, float)[mask] for values, mask in zip(multipliers, kept, strict=True)]
        margin = chain_bounded(chain, slopes, rho, lam, errors)
    else:
        matrix, error = inequality(model, norm, output, rho, multipliers, weights)
        if not (np.isfinite(matrix).all() and (matrix.diagonal() > 0).all()):
            raise Refused("the matrix inequality has a diagonal entry that is not positive")
        margin = _factor([matrix], [], error)
    return (rho if norm == "linf" else _up(math.sqrt(rho))), margin


def _require_box(model, lower, upper):
    """Return the corners as arrays."""
    lower, upper = np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)
    size = model.steps[0].width * model.tokens
    if not lower.shape == upper.shape == (size,):
        raise Refused(
            f"the region's corners are not one number for each of {size} inputs: they have {lower.size}, {upper.size}"
        )
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
        raise Refused("the region is not finite or has a lower end above its upper one")
    return lower, upper


def _require_output(model, output):
    if output is not None and max(np.ravel(output)) >= model.steps[-1].width:
        raise Refused(f"output {output} does not exist; there are {model.steps[-1].width}")


def _require_slopes(model):
    for step in model.steps:
        if step.rule == "slopes" and not (np.isfinite(step.low).all() and np.isfinite(step.high).all()):
            raise Refused(f"{step.label} at node {step.name!r} has no finite constant without a region")


def check_proofs(model, norm, output, cuts, proofs):
    """Prove the matrix inequalities of a certificate; returns (bound, smallest margin).

    Args:
        cuts: positions of nonlinearities, from 1, after which the chain is cut; l2 only.
        proofs: tables of output, rho, multipliers, input_multipliers; one per sub-chain, in linf one per scalar output.
    Raises:
        Refused: an inequality is not proven, or the proofs are not those that the claim needs.
    """
    _require_output(model, output)
    _require_slopes(model)
    if norm == "linf":
        if cuts:
            raise Refused("cuts belong to l2 certificates")
        outputs = list(range(model.steps[-1].width)) if output is None else [output]
        models, constants = [model] * len(outputs), []
    else:
        models, constants = split(model, cuts)
        outputs = [None] * len(cuts) + [output]
    if [proof["output"] for proof in proofs] != outputs:
        raise Refused(f"the proofs are of outputs {[proof['output'] for proof in proofs]}, not {outputs}")
    results = [_prove(part, norm, proof) for part, proof in zip(models, proofs, strict=True)]
    margin = min((margin for _, margin in results), default=math.inf)
    if norm == "linf":
        return max((bound for bound, _ in results), default=0.0), margin
    bound = 1.0
    for factor in [*(factor for factor, _ in results), *constants]:
        bound = _times(bound, factor)
    return bound, margin


def check_norms(model, norm, output, layer_norms):
    """Prove that `layer_norms` bound the norms of the Linear and Conv nodes; returns (bound of the network, margin).

    Raises:
        Refused: a norm is not proven, or a step has no constant of its own.
    """
    _require_output(model, output)
    _require_slopes(model)
    if output is not None and model.steps[-1].rule != "linear":
        raise Refused(f"the norm of output {output} needs a Linear at the end, not {model.steps[-1].kind}")
    if len(layer_norms) != len(model.linears) or not all(math.isfinite(v) and v >= 0 for v in layer_norms):
        raise Refused(f"the layer norms are not {len(model.linears)} finite numbers >= 0, one per Linear")
    margin, constants, norms = math.inf, [], iter(layer_norms)
    for step in model.steps:
        given = [constants[i] for i in step.inputs]
        if step.rule == "linear" and isinstance(step.matrix, Kernel):
            value = next(norms)
            if output is not None and step is model.steps[-1]:
                raise Refused(f"the norm of output {output} needs a Linear at the end, not {step.kind}")
            if not value >= kernel_norm_bound(step.matrix, norm):
                raise Refused(f"the {norm} norm of {step.name!r} is not proven to be at most {value}")
            constants.append(_times(value, given[0]))
        elif step.rule == "linear":
            value = next(norms)
            matrix = select_rows(step.matrix, output) if step is model.steps[-1] else step.matrix
            if norm == "linf" and value < row_sum_bound(matrix, roundings=2):
                raise Refused(f"the l-infinity norm of {step.name!r} is not proven to be at most {value}")
            if norm == "l2" and matrix.any():
                margin = min(margin, norm_bounded(matrix, value))
            constants.append(_times(value, given[0]))
        elif step.rule == "average":
            size = step.sums[0] if norm == "linf" else _up(math.sqrt(_times(*step.sums)))
            constants.append(_times(_up(size), given[0]))
        elif step.rule in ("slopes", "shifted", "maxima", "scale"):
            size = (
                float(np.abs(step.matrix).max(initial=0.0)) if step.rule == "scale" else _constant(step, norm)
            )
            size = _up(size * (1 + 2 * step.relative)) if step.relative else size
            constants.append(_times(size, given[0]))
        elif step.rule == "sum":
            constants.append(_up(given[0] + given[1]))
        elif step.rule == "concat" and norm == "linf":
            constants.append(max(given))
        elif step.rule == "concat":
            total = 0.0
            for one in given:
                total = _up(total + _up(one * one))
            constants.append(_up(math.sqrt(total)))
        elif step.rule == "implicit" or (step.kind == "Householder" and norm == "linf"):
            raise Refused(f"{step.kind} at node {step.name!r} has no constant of its own in the {norm} norm")
        else:
            constants.append(given[0] if given else 1.0)
    return constants[-1], margin


# ---- inference in float32 ----------------------------------------------------------------------------------

SINGLE_UNIT, SINGLE_TINY, SINGLE_LARGEST = 2.0**-24, 2.0**-149, (2 - 2.0**-23) * 2.0**127
SINGLE_KINDS = (
    "Input", "Linear", "ReLU", "LeakyReLU", "PReLU", "Absolute", "Clip", "GroupSort", "Add", "Subtract", "Concat",
    "Slice", "Select", "Flatten", "Reshape", "Squeeze", "Unsqueeze",
)  # fmt: skip


def float32_delta(model, lower, upper, norm, output):
    """Bound |f32(x) - f(x)| for all float32 x with lower <= x <= upper; f32 is the network in IEEE float32.

    Two bounds follow every value, entry by entry: a of its size in real arithmetic, e of its error. A sum of n
    products and a bias, in any order, fused or not: e <- |W| e + gamma (|W| (a + e) + |b|) + k 2^-149, the last for
    underflow, gamma = k u / (1 - k u), k = n + 2, u = 2^-24. A difference of two outputs is taken in real arithmetic
    after inference. Source: Higham, Accuracy and stability of numerical algorithms (2002), section 3.1.

    Raises:
        Refused: an operation of more than one rounding per product, float64 weights, numbers beyond float32.
    """
    wider = 1 + 2.0**-28  # covers the float64 roundings made here
    lower, upper = _require_box(model, lower, upper)
    _require_output(model, output)
    if model.tokens > 1:
        raise Refused("float32 inference is covered for values of shape (batch, features) only")
    sizes, errors = [], []
    for step in model.steps:
        if step.kind not in SINGLE_KINDS:
            raise Refused(f"{step.kind} at node {step.name!r} has no bound of its float32 rounding errors")
        if not step.single:
            raise Refused(f"{step.name!r} has float64 weights, which float32 inference would round")
        given, off = [sizes[i] for i in step.inputs], [errors[i] for i in step.inputs]
        if step.rule == "input":
            size, error = np.maximum(np.abs(lower), np.abs(upper)), np.zeros(step.width)
        elif step.rule in LINEAR:
            terms = step.matrix.shape[1] if step.rule == "linear" else 0
            shift = 0.0 if step.bias is None else np.abs(step.bias)
            reached = [one + other for one, other in zip(given, off, strict=True)]
            size = wider * (_linear(step, given, absolute=True) + shift)
            error = wider * _linear(step, off, absolute=True)
            if step.rule in ("linear", "sum") or step.bias is not None:
                if (terms + 2) * SINGLE_UNIT > 0.1:
                    raise Refused(f"{step.name!r} sums {terms} products, too many for float32")
                rounding = (terms + 2) * SINGLE_UNIT / (1 - (terms + 2) * SINGLE_UNIT)
                total = _linear(step, reached, absolute=True) + shift
                error = wider * (error + rounding * total + (terms + 2) * SINGLE_TINY)
        else:
            size, error = _activated_in_single(step, given[0], off[0], wider)
        if not ((size + error) * (1 + 2.0**-10) < SINGLE_LARGEST).all():  # so does every partial sum
            raise Refused(f"the values of node {step.name!r} may overflow in float32 within the region")
        sizes.append(size)
        errors.append(error)
    error = errors[-1] if output is None else errors[-1][list(np.ravel(output))]
    if isinstance(output, tuple):
        return wider * wider * float(error.sum())  # one factor to spare, for sums in another order
    return wider * wider * float(np.linalg.norm(error) if norm == "l2" else error.max(initial=0.0))


def _activated_in_single(step, size, error, wider):
    """Return the bounds (a, e) after an activation; sorting, max and | | are exact and do not enlarge errors."""
    if step.kind == "GroupSort":
        shape = (step.count, step.width // step.count)
        return [np.repeat(one.reshape(shape).max(axis=1), shape[1]) for one in (size, error)]
    if step.kind in ("LeakyReLU", "PReLU"):
        # one product; the slope itself may have been rounded to float32
        steep = np.maximum(np.abs(step.low), np.abs(step.high))
        if not (steep < 2.0**100).all():
            raise Refused(f"{step.kind} at node {step.name!r} has a slope too large for a bound in float32")
        rounding = 4 * SINGLE_UNIT * steep * (size + error) + SINGLE_TINY * (1 + size + error)
        return wider * steep * size, wider * (steep * error + rounding)
    if step.kind == "Clip":
        for name, sign in (("lower", 1), ("upper", -1)):
            end = step.attributes[name]
            end = -sign * math.inf if end is None else float(end)
            size = np.maximum(size, sign * end)  # a lower end above 0 or an upper one below
            if abs(end) <= SINGLE_LARGEST and float(np.float32(end)) != end:
                error = error + wider * (2 * SINGLE_UNIT * abs(end) + SINGLE_TINY)
    return size, error


# ---- the check ---------------------------------------------------------------------------------------------


def check_certificate(fields, graph, parameters):
    """Check a parsed certificate against a network; returns the margin.

    Raises:
        Refused: the certificate is of another network, or its bound is not proven.
        Unreadable: the network's description is broken.
    """
    try:
        with np.errstate(all="ignore"):
            if fields["format"] == PROPERTY_FORMAT:
                return _check_property(fields, graph, parameters)
            bound, margin = _check(fields, graph, parameters)
    except Failure:
        raise
    except Exception as error:  # whatever a broken description runs into
        reason = f"{type(error).__name__} {error}"
        raise Unreadable(f"the certificate or the network is broken: {reason}") from error
    upper = fields["upper_bound"]
    if not upper >= bound:
        raise Refused(f"the stated bound {upper!r} is below the proven one {bound!r}")
    for name in ("optimum_lower_bound", "sampled_lower_bound"):
        if fields[name] is not None and not fields[name] <= upper:
            raise Refused(f"the stated bound is below its own {name}")
    return margin


def _check(fields, graph, parameters):
    if fields["network_hash"] != network_hash(graph, parameters):
        raise Refused("the certificate is of another network: the hashes differ")
    upper, norm, output, region = (fields[name] for name in ("upper_bound", "norm", "output", "region"))
    if fields["status"] != CERTIFIED or upper is None or not math.isfinite(upper):
        raise Refused("the certificate states no bound")
    model = rebuild(graph, parameters)
    _require_output(model, output)
    if fields["activations"] != activation_names(model):
        raise Refused(f"the network's activations are {activation_names(model)}, not {fields['activations']}")
    delta, relaxations = fields["delta"], fields["relaxations"]
    boxed = region is not None and "lower" in region
    if (fields["arithmetic"] == "float32") != (delta is not None) or (delta is not None and not boxed):
        raise Refused("float32 arithmetic needs a box and delta, real arithmetic has no delta")
    if relaxations is not None and region is None:
        raise Refused("relaxations need a region")
    if region is not None:
        regions = region_of(model, region)
    if delta is not None and region is not None:
        needed = float32_delta(model, region["lower"], region["upper"], norm, output)
        if not (math.isfinite(delta) and delta >= needed / (1 + 2.0**-28)):
            raise Refused(f"the stated delta {delta!r} is below the derived one {needed!r}")
    if relaxations is not None:
        model = localize(model, regions, relaxations_of(model, relaxations))
    if fields["kind"] == NORM_PRODUCT:
        if fields["proofs"] or fields["cuts"] or fields["layer_norms"] is None:
            raise Refused("a norm product has layer norms and neither proofs nor cuts")
        return check_norms(model, norm, output, fields["layer_norms"])
    if fields["layer_norms"] is not None:
        raise Refused("a certificate with multipliers has no layer norms")
    return check_proofs(model, norm, output, fields["cuts"], fields["proofs"])


def divide(lower, upper, splits):
    """Return the corners (leaves, n) of the boxes that `splits`, a tree in preorder, divides a box into.

    An entry i >= 0 halves the box at hand along input i, lower half first; -1 keeps it. Halves share their boundary.

    Raises:
        Refused: it is no tree, or names an input that does not exist.
    """
    require_room("the splitting of the region", sum(split < 0 for split in splits), len(lower))
    pending, lowers, uppers = [(lower, upper)], [], []
    for split in splits:
        if not pending or split >= len(lower):
            raise Refused("the splits are no tree of halved boxes")
        low, high = pending.pop()
        if split < 0:
            lowers.append(low)
            uppers.append(high)
            continue
        middle = halfway(low[split], high[split])
        left, right = high.copy(), low.copy()
        left[split] = right[split] = middle
        pending += [(right, high), (low, left)]
    if pending:
        raise Refused("the splits are no tree of halved boxes")
    return np.array(lowers), np.array(uppers)


def halfway(low, high):
    """Return where boxes are halved, between low and high."""
    return np.minimum(np.maximum(low / 2 + high / 2, low), high)


def least_excess(model, regions, polyhedra):
    """Return (B, polyhedra) lower bounds of max (A y - b) over each region, positive where no output is in {A y <= b}.

    Returns:
        the bounds, and the coefficients of the linear bounds of all rows, (B or 1, rows, inputs).
    """
    rows = np.concatenate([np.array(one["matrix"], dtype=np.float64) for one in polyhedra])
    limits = np.concatenate([np.array(one["bounds"], dtype=np.float64) for one in polyhedra])
    values, coefficients = Bounds(model, regions).minimum(rows)
    values = np.nextafter(values - limits, -math.inf)
    starts = np.cumsum([0, *(len(one["bounds"]) for one in polyhedra[:-1])])
    return np.maximum.reduceat(values, starts, axis=1), coefficients


def _check_property(fields, graph, parameters):
    if fields["network_hash"] != network_hash(graph, parameters):
        raise Refused("the certificate is of another network: the hashes differ")
    model, region = rebuild(graph, parameters), fields["region"]
    if model.tokens > 1:
        raise Refused("a property is covered for inputs of shape (batch, features) only")
    lower, upper = _require_box(model, region["lower"], region["upper"])
    outputs, polyhedra = model.steps[-1].width, fields["unsafe"]
    for one in polyhedra:
        if not one["bounds"] or [len(row) for row in one["matrix"]] != [outputs] * len(one["bounds"]):
            raise Refused(f"a polyhedron has not one bound for each row of {outputs} numbers")
        if not all(math.isfinite(value) for row in [*one["matrix"], one["bounds"]] for value in row):
            raise Refused("a polyhedron has a number that is not finite")
    lowers, uppers = divide(lower, upper, fields["splits"])
    margin, rows = math.inf, sum(len(one["bounds"]) for one in polyhedra)
    widest = max(step.width for step in model.steps)
    require_room("the property", rows, widest)
    together = max(1, min(256, ROOM // 16 // max(1, rows * widest)))
    for start in range(0, len(lowers) if polyhedra else 0, together):
        part = slice(start, start + together)
        excess, _ = least_excess(model, boxes(lowers[part], uppers[part]), polyhedra)
        margin = min(margin, float(excess.min()))
        if not margin > 0:
            raise Refused("on a part of the region, linear bounds do not exclude an unsafe output")
    return margin


def certificates_in(text):
    """Return the texts of the certificates in a file: itself, or those in what `weightspace verify` wrote.

    Raises:
        Refused: it is such a file and does not prove everything it is about.
    """
    try:
        data = parse_json(text)
        if data["format"] != VERDICT_FORMAT:
            return [text]
        found, edited = [entry["certificate"] for entry in data["properties"]], data["digest"] != digest(data)
        asked = [(entry["region"], entry["unsafe"]) for entry in data["properties"]]
        proved = [one and (one["region"], one["unsafe"]) for one in found]
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, RecursionError):
        return [text]  # which `parse_certificate` will not read
    if edited:
        raise Refused("the verdict file was edited: its digest does not match its content")
    if not found or None in found:
        raise Refused("the verdict is not that everything is proved")
    if proved != asked:
        raise Refused(
            "a certificate of the verdict is about another region or other outputs than its property"
        )
    return [json.dumps(certificate) for certificate in found]


def main(arguments):
    """Check one file of certificates; returns the exit status."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python checker.py CERTIFICATE.json NETWORK.npz\n")
        return 2
    name = arguments[0]
    try:
        with open(name, encoding="utf-8") as file:
            certificates = [parse_certificate(text) for text in certificates_in(file.read())]
        name = arguments[1]
        network = load_network(name)
        margins = [check_certificate(fields, *network) for fields in certificates]
    except Refused as error:
        sys.stdout.write(f"invalid: {error}\n")
        return 1
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "out of memory"
        sys.stderr.write(f"error: {Failure(reason if name in reason else f'{name}: {reason}')}\n")
        return 2
    for fields, margin in zip(certificates, margins, strict=True):
        found = f"margin {margin:.3g}"
        if fields["format"] == FORMAT:
            delta = "" if fields["delta"] is None else f", delta {fields['delta']!r}"
            found = f"upper bound {fields['upper_bound']!r}{delta}, {found}"
        sys.stdout.write(f"valid: {found}\n{fields['claim']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
