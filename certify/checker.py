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

FORMAT, VERSION = "weightspace.certificate", 2
NETWORK_FORMAT, NETWORK_VERSION = "weightspace.network", 1
MULTIPLIERS, NORM_PRODUCT = "multipliers", "norm product"
CERTIFIED = "certified: the rigorous check accepted the bound"
FAILED = "failed: no bound was found that the rigorous check accepts; try bounder=NormProduct()"
UNIT = 2.0**-53

SLOPES = {
    "ReLU": (0.0, 1.0), "Tanh": (0.0, 1.0), "Softplus": (0.0, 1.0), "Clip": (0.0, 1.0),
    "Sigmoid": (0.0, 0.25), "Absolute": (-1.0, 1.0), "SiLU": (-0.09984, 1.09984),
    "GELU none": (-0.12891, 1.12891), "GELU tanh": (-0.129, 1.129),
    "atan": (0.0, 1.0), "softsign": (0.0, 1.0), "log_sigmoid": (0.0, 1.0), "erf": (0.0, 1.12838),
    "hardsigmoid": (0.0, 0.16666668), "hardswish": (-0.5000001, 1.5000001),  # torch takes 1/6 in single precision
    "mish": (-0.11253, 1.0885),
    "sin": (-1.0, 1.0), "cos": (-1.0, 1.0),
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


def digest(fields):
    """SHA-256 over the certificate's fields without `digest`."""
    return hashlib.sha256(canonical_json({k: v for k, v in fields.items() if k != "digest"})).hexdigest()


def claim(norm, output, region=None, arithmetic="real"):
    """Return the sentence a certificate states; `upper_bound` is its L, `region` None or a box."""
    name = "f" if arithmetic == "real" else "f32"
    what = name if output is None else f"{name}_{output}"
    if isinstance(output, tuple):
        what = f"({name}_{output[0]} - {name}_{output[1]})"
    inputs = "inputs x, y" if arithmetic == "real" else "float32 inputs x, y"
    inside = "" if region is None else " in the box `region`"
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
FIELDS = {
    "format": _one_of(FORMAT), "version": _one_of(VERSION), "status": _one_of(CERTIFIED, FAILED),
    "claim": _text, "kind": _one_of(MULTIPLIERS, NORM_PRODUCT), "norm": _one_of("l2", "linf"),
    "region": _optional(_record({"lower": _listed(_number), "upper": _listed(_number)})),
    "output": _optional(_output), "activations": _listed(_text), "arithmetic": _one_of("real", "float32"),
    "delta": _optional(_number), "method": _text, "network_hash": _text, "upper_bound": _optional(_number),
    "optimum_lower_bound": _optional(_number), "sampled_lower_bound": _optional(_number),
    "cuts": _listed(_index), "proofs": _listed(_record(PROOF)), "layer_norms": _optional(_listed(_number)),
    "seconds": _number, "versions": _versions, "digest": _text,
}  # fmt: skip


def parse_certificate(text):
    """Read a certificate: field -> value, numbers decoded.

    Raises:
        Unreadable: not a certificate, another version, missing, unknown or mistyped fields.
        Refused: the digest or the claim does not match the fields: the file was edited.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("it is not a weightspace certificate")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise ValueError(f"its version is {data.get('version')!r}, this program reads {VERSION}")
        if data.keys() != FIELDS.keys():
            raise ValueError(f"its fields differ from the format by {sorted(data.keys() ^ FIELDS.keys())}")
        fields = {}
        for name, decode in FIELDS.items():
            try:
                fields[name] = decode(data[name])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"field {name!r}: {error}") from error
        expected = digest(data)
    except (ValueError, TypeError, RecursionError, UnicodeError) as error:
        raise Unreadable(f"the certificate cannot be read: {error}; write it again with `certify`") from error
    if data["digest"] != expected:
        raise Refused("the certificate was edited: its digest does not match its content")
    if fields["claim"] != claim(fields["norm"], fields["output"], fields["region"], fields["arithmetic"]):
        raise Refused("the certificate's claim does not fit its norm, output, region and arithmetic")
    return fields


# ---- the network file --------------------------------------------------------------------------------------


def load_network(path):
    """Read what `Network.save_npz` wrote: the graph (from JSON) and name -> (dtype, array)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        graph = json.loads(arrays.pop("network").tobytes().decode("ascii"))
        return graph, arrays_to_parameters(graph, arrays)
    except Exception as error:  # zip, zlib, numpy and JSON each have their own
        reason = f"{type(error).__name__} {error}"
        raise Unreadable(f"{path} is not a network written by save_npz: {reason}") from error


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

LINEAR = ("same", "linear", "scale", "sum", "concat", "rows")
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
ROW_BY_ROW = ("Linear", "Scale", "LeakyReLU", "ELU", "GELU", "Pointwise", *SLOPES)


@dataclass(frozen=True, eq=False)
class Step:
    """One node; `rule` says how its increment h, flattened row-major per sample, follows from those of `inputs`.

    input     h = x
    same      h = h_1: reshaping, or adding a constant, `bias`
    linear    h = W h_1, W = matrix
    scale     h = d h_1, d = matrix (width,), known up to the relative error `relative`
    sum       h = sum_i s_i h_i, s = matrix
    concat    h = (h_1, h_2, ..)
    rows      h = h_1[matrix]
    slopes    h = v, low <= v / h_1 <= high
    groups    h = h_1 - c h_1 + u, u = B v, |u_g| <= |c h_1|_g; c = matrix (groups, n, n), B = basis (groups, n, r)
    implicit  h = v, low <= v / y <= high with y = U h_1 + W v, W = matrix, U = basis
    """

    name: str
    kind: str
    rule: str
    inputs: tuple
    shape: tuple
    matrix: Any = None
    basis: Any = None
    bias: Any = None
    low: Any = None
    high: Any = None
    relative: float = 0.0
    label: str = ""
    attributes: dict = field(default_factory=dict)
    single: bool = True  # its parameters are exact in float32

    @property
    def width(self):
        return math.prod(self.shape[1:])

    @property
    def count(self):
        """Number of multipliers: neurons or groups."""
        return len(self.matrix) if self.rule == "groups" else self.width

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
        """(node, matrix) of every Linear node: the order of `layer_norms`."""
        return [(step.name, step.matrix) for step in self.steps if step.rule == "linear"]

    @cached_property
    def chain(self):
        """W_1 .. W_L of a chain in which slope-restricted activations alternate with matrices, else None.

        Identities stand in where two activations meet, or one comes first or last.
        """
        weights, hidden = [], 0
        for index, step in enumerate(self.steps[1:], 1):
            if step.inputs != (index - 1,) or step.rule not in ("same", "linear", "slopes"):
                return None
            if step.rule == "linear" and len(weights) > hidden:
                return None
            if step.rule == "linear":
                weights.append(step.matrix)
            elif step.rule == "slopes":
                weights += [np.eye(step.width)] * (len(weights) == hidden)
                hidden += 1
        return weights + [np.eye(self.steps[-1].width)] * (len(weights) == hidden)


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
    steps, positions, constants = [], {}, {}
    single = all(len(entry["shape"]) == 1 for entry in entries if entry["kind"] == "Input")
    for entry in entries:
        name, roles = entry["name"], entry["parameters"]
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
    name, kind, attributes, shape = entry["name"], entry["kind"], entry["attributes"], tuple(entry["shape"])
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
    if kind == "Concat":
        features(attributes["axis"])
        return step("concat", (before[0][0], sum(one[1] for one in before)))
    if len(before) != 1:
        raise Refused(f"{place} has {len(before)} inputs; the check has no rule for it")
    (given,) = before
    if kind in RESHAPING:
        return step("same", _reshaped(place, kind, attributes, given))
    if kind == "Scale":
        factor = float(attributes["factor"])
        if not (math.isfinite(factor) and math.isfinite(float(attributes["shift"]))):
            raise Refused(f"{place} is not finite")
        if factor == 1:
            return step("same", given)
        return step("scale", given, matrix=np.full(math.prod(given[1:]), factor))
    if kind in ("Slice", "Select"):
        width = features(attributes["axis"])
        if kind == "Select":
            return step("rows", given[:1], matrix=np.arange(width)[attributes["index"]][None])
        chosen = np.arange(width)[attributes["start"] : attributes["stop"] : attributes["step"]]
        if attributes["step"] < 1 or not len(chosen):
            raise Refused(f"{place} selects nothing or backwards")
        return step("rows", (given[0], len(chosen)), matrix=chosen)
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
        width = features()
        if any(tensor.shape != (width,) for tensor in tensors.values()):
            raise Refused(f"{place} has parameters that do not fit {width} features")
        variance = tensors["running_var"] + float(attributes["epsilon"])
        if not (variance > 0).all():
            raise Refused(f"{place} has a variance that is not positive")
        weight = _in_range(tensors.get("weight", np.ones(width)))
        # sum, root and quotient: each rounding moves the result by at most u
        return step("scale", given, matrix=weight / np.sqrt(_in_range(variance)), relative=gamma(4))
    if kind in ("GroupSort", "Householder"):
        matrix, basis = _groups(place, kind, attributes, features(attributes["axis"]), tensors.get("weight"))
        return step("groups", given, matrix=matrix, basis=basis, label=f"{kind} {matrix.shape[1]}")
    if kind == "PReLU" and tensors["weight"].size != 1:
        features()
    low, high = _slopes(kind, attributes, place, math.prod(given[1:]), tensors.get("weight"))
    label = attributes["name"] if kind == "Pointwise" else kind
    return step("slopes", given, low=low, high=high, label=label)


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
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise Refused(f"{place} has no finite slopes")
    return low, high


def _groups(place, kind, attributes, width, weight):
    """Return (c, B) of every group: c = I - Pi up to gamma(n + 4) |c|, B a basis of its range, free of error."""
    if kind == "GroupSort":
        n = attributes["group_size"]
        if type(n) is not int or n < 1 or width % n:
            raise Refused(f"{place} cannot sort {width} features in groups of {n}")
        c, basis = np.eye(n) - 1.0 / n, np.ones((1, 1))
        if n > 1:
            basis = np.vstack([np.eye(n - 1), -np.ones((1, n - 1))])
        return np.broadcast_to(c, (width // n, n, n)), np.broadcast_to(basis, (width // n, *basis.shape))
    if weight.ndim != 2 or weight.size != width or not np.abs(weight).max(axis=1).all():
        raise Refused(f"{place} has directions that do not fit {width} features or vanish")
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
    if step.rule == "linear":
        return size(step.matrix) @ values[0]
    if step.rule == "scale":
        return (size(step.matrix) * values[0].T).T
    if step.rule == "sum":
        return size(step.matrix)[0] * values[0] + size(step.matrix)[1] * values[1]
    if step.rule == "concat":
        return np.concatenate(values)
    return values[0][step.matrix] if step.rule == "rows" else values[0]


def structure(model, output):
    """Return per step which of its coordinates of z count: a mask over inputs, neurons or groups; else None.

    A coordinate is left out of the inequality where exact zeros in the weights make its increment zero or keep the
    output from depending on it. Implicit layers, whose inequality also proves that they have a solution, stay whole.
    """
    steps, last = model.steps, model.steps[-1]
    if output is not None:  # equal entries of two rows of the last matrix are zeros of their difference
        rows = select_rows(last.matrix if last.rule == "linear" else np.eye(last.width), output)
        inputs = last.inputs if last.rule == "linear" else (len(steps) - 1,)
        before = steps[:-1] if last.rule == "linear" else steps
        steps = (*before, Step("output", "Linear", "linear", inputs, (None, 1), matrix=rows))
    alive = []
    for step in steps:
        given = [alive[i] for i in step.inputs]
        if step.rule in LINEAR:
            alive.append(_linear(step, given, absolute=True) > 0)
        elif step.rule == "groups":
            reached = (step.matrix != 0) @ given[0].reshape(step.count, -1, 1) > 0
            alive.append(given[0] | reached.reshape(-1))
        else:
            alive.append(given[0] if step.rule == "slopes" else np.ones(step.width, dtype=bool))
    used = [np.zeros(step.width, dtype=bool) for step in steps]
    used[-1][:] = True
    masks: list[Any] = [None] * len(steps)
    for k in range(len(steps) - 1, -1, -1):
        step, need = steps[k], used[k]
        if step.rule == "input":
            masks[k] = need
            continue
        passed = [need] * len(step.inputs)
        if step.rule == "linear":
            passed = [np.abs(step.matrix).T @ need > 0]
        elif step.rule == "scale":
            passed = [need & (step.matrix != 0)]
        elif step.rule == "concat":
            passed = np.split(need, np.cumsum([steps[i].width for i in step.inputs])[:-1])
        elif step.rule == "rows":
            passed = [np.zeros(steps[step.inputs[0]].width, dtype=bool)]
            passed[0][step.matrix] = need
        elif step.rule == "slopes":
            masks[k] = need & alive[k]
            passed = [masks[k]]
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
    if (
        model.chain is None
        or sorted(set(cuts)) != list(cuts)
        or not 1 <= cuts[0] <= cuts[-1] <= len(nonlinear)
    ):
        raise Refused(f"cuts {list(cuts)} do not ascend along the activations of a slope-restricted chain")
    places = [nonlinear[cut - 1] for cut in cuts]
    parts = []
    for first, last in zip([0, *places], [*places, len(model.steps)], strict=True):
        head = replace(model.steps[first], rule="input", inputs=(), label="")
        body = [replace(step, inputs=(k,)) for k, step in enumerate(model.steps[first + 1 : last])]
        parts.append(Model((head, *body)))
    constants = [float(np.abs([model.steps[k].low, model.steps[k].high]).max(initial=0.0)) for k in places]
    return parts, constants


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


def _gram(weight, factors, extra):
    """Return W' diag(factors) W and an entrywise bound of its error."""
    value = weight.T @ (factors[:, None] * weight)
    size = np.abs(weight).T @ (np.abs(factors)[:, None] * np.abs(weight))
    return value, gamma(weight.shape[0] + extra) * size


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


def gram_bounded(weight, square, square_error=0.0):
    """Prove square * I - W'W >= 0; returns the margin. `square` is known up to `square_error`.

    The 8 roundings in excess also cover entries of W that are rounded themselves, as differences of rows are.
    """
    wide = weight.T if weight.shape[0] < weight.shape[1] else weight
    gram, error = _gram(wide, np.ones(wide.shape[0]), 8)
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


# ---- the matrix inequality ---------------------------------------------------------------------------------


def chain_bounded(weights, slopes, rho, multipliers):
    """Prove M(rho, multipliers) >= 0 for a chain with slopes in [alpha, beta]; returns the margin.

    z'Mz = rho |x|^2 - |W_L v_K|^2 + 2 sum_i lambda_i (v_i - alpha_i y_i)(v_i - beta_i y_i), y = W_k v_{k-1}.
    """
    if len(weights) == 1:
        scaled, exponent = scale_weights(weights[0])
        return gram_bounded(scaled, float(_in_range(np.ldexp(rho, -2 * exponent))))
    scaled, exponents = zip(*[scale_weights(weight) for weight in weights], strict=True)
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
        block = rho * np.eye(scaled[0].shape[1]) if k < 0 else np.diag(2 * lam[k])
        error = np.zeros_like(block)
        if k == 0 and not keep_input:
            side = lam[0] * slopes[0][1]
            ratio = side / rho
            term = -(side[:, None] * (scaled[0] @ scaled[0].T)) * ratio
            size = np.abs(side)[:, None] * (np.abs(scaled[0]) @ np.abs(scaled[0]).T) * np.abs(ratio)
            term_error = gamma(scaled[0].shape[1]) * size + gamma(8) * (np.abs(term) + np.abs(term.T))
            block, error = _add(block, error, term, term_error)
        if k < last:
            low, high = slopes[k + 1]
            if low.any():
                block, error = _add(block, error, *_gram(scaled[k + 1], 2 * lam[k + 1] * low * high, 8))
            coupling = -(_in_range(low + high, 2.0**-120) * lam[k + 1])[:, None] * scaled[k + 1]
            couplings.append(coupling)
            coupling_errors.append(gamma(4) * np.abs(coupling))
        else:
            value, term_error = _gram(scaled[-1], np.ones(len(scaled[-1])), 8)
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
            strengths.append(np.repeat(values, step.basis.shape[2]) if step.rule == "groups" else 2 * values)
        places.append(slice(start, sum(map(len, strengths))))
    strength = _in_range(np.concatenate(strengths), 2.0**-600, 2.0**600)
    powers = np.frexp(strength)[1] // 2
    strength, signals = np.ldexp(strength, -2 * powers), []
    total = _Assembly(strength)
    for step, mask, at in zip(model.steps, masks, places, strict=True):
        given = [signals[i] for i in step.inputs]
        if step.rule in LINEAR:
            signals.append(_pass(step, given))
        elif step.rule == "groups":
            signals.append(_pass_groups(step, mask, at, given[0], powers[at], strength[at], total))
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
    masks = structure(model, output)
    if not implicit and not masks[0].any():
        return 0.0, math.inf  # the output is constant
    if norm == "l2" and model.chain is not None:
        if not rho > 0:
            raise Refused("rho is zero and the function is not constant")
        kept = [mask for step, mask in zip(model.steps, masks, strict=True) if step.label]
        chosen, last = [slice(None), *kept, slice(None)], select_rows(model.chain[-1], output)
        chain = [w[chosen[k + 1]][:, chosen[k]] for k, w in enumerate([*model.chain[:-1], last])]
        if not all(weight.any() for weight in chain):
            return 0.0, math.inf  # the difference of two equal outputs
        slopes = [(step.low[mask], step.high[mask]) for step, mask in zip(model.nonlinear, kept, strict=True)]
        lam = [np.array(values, float)[mask] for values, mask in zip(multipliers, kept, strict=True)]
        margin = chain_bounded(chain, slopes, rho, lam)
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
        raise Refused(f"the region's corners are not one number for each of {size} inputs")
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
        raise Refused("the region is not finite or has a lower end above its upper one")
    return lower, upper


def _require_output(model, output):
    if output is not None and max(np.ravel(output)) >= model.steps[-1].width:
        raise Refused(f"output {output} does not exist; there are {model.steps[-1].width}")


def check_proofs(model, norm, output, cuts, proofs):
    """Prove the matrix inequalities of a certificate; returns (bound, smallest margin).

    Args:
        cuts: positions of nonlinearities, from 1, after which the chain is cut; l2 only.
        proofs: tables of output, rho, multipliers, input_multipliers; one per sub-chain, in linf one per scalar output.
    Raises:
        Refused: an inequality is not proven, or the proofs are not those that the claim needs.
    """
    _require_output(model, output)
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
    """Prove that `layer_norms` bound the norms of the Linear nodes; returns (bound of the network, margin).

    Raises:
        Refused: a norm is not proven, or a step has no constant of its own.
    """
    _require_output(model, output)
    if output is not None and model.steps[-1].rule != "linear":
        raise Refused(f"the norm of output {output} needs a Linear at the end, not {model.steps[-1].kind}")
    if len(layer_norms) != len(model.linears) or not all(math.isfinite(v) and v >= 0 for v in layer_norms):
        raise Refused(f"the layer norms are not {len(model.linears)} finite numbers >= 0, one per Linear")
    margin, constants, norms = math.inf, [], iter(layer_norms)
    for step in model.steps:
        given = [constants[i] for i in step.inputs]
        if step.rule == "linear":
            value = next(norms)
            matrix = select_rows(step.matrix, output) if step is model.steps[-1] else step.matrix
            if norm == "linf" and value < row_sum_bound(matrix, roundings=2):
                raise Refused(f"the l-infinity norm of {step.name!r} is not proven to be at most {value}")
            if norm == "l2" and matrix.any():
                margin = min(margin, norm_bounded(matrix, value))
            constants.append(_times(value, given[0]))
        elif step.rule in ("slopes", "scale"):
            sides = [step.matrix] if step.rule == "scale" else [step.low, step.high]
            size = float(np.abs(np.concatenate(sides)).max(initial=0.0))
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
    delta, lower, higher = fields["delta"], None, None
    if region is not None:
        lower, higher = _require_box(model, region["lower"], region["upper"])
    if (fields["arithmetic"] == "float32") != (delta is not None) or (delta is not None and region is None):
        raise Refused("float32 arithmetic needs a region and delta, real arithmetic has no delta")
    if delta is not None:
        needed = float32_delta(model, lower, higher, norm, output)
        if not (math.isfinite(delta) and delta >= needed / (1 + 2.0**-28)):
            raise Refused(f"the stated delta {delta!r} is below the derived one {needed!r}")
    if fields["kind"] == NORM_PRODUCT:
        if fields["proofs"] or fields["cuts"] or fields["layer_norms"] is None:
            raise Refused("a norm product has layer norms and neither proofs nor cuts")
        return check_norms(model, norm, output, fields["layer_norms"])
    if fields["layer_norms"] is not None:
        raise Refused("a certificate with multipliers has no layer norms")
    return check_proofs(model, norm, output, fields["cuts"], fields["proofs"])


def main(arguments):
    """Check one certificate; returns the exit status."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python checker.py CERTIFICATE.json NETWORK.npz\n")
        return 2
    try:
        with open(arguments[0], encoding="utf-8") as file:
            fields = parse_certificate(file.read())
        margin = check_certificate(fields, *load_network(arguments[1]))
    except Refused as error:
        sys.stdout.write(f"invalid: {error}\n")
        return 1
    except (OSError, ValueError, MemoryError) as error:
        sys.stderr.write(f"error: {error or 'out of memory'}\n")
        return 2
    delta = "" if fields["delta"] is None else f", delta {fields['delta']!r}"
    found = f"upper bound {fields['upper_bound']!r}{delta}, margin {margin:.3g}"
    sys.stdout.write(f"valid: {found}\n{fields['claim']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
