"""Check a Lipschitz certificate with numpy and the standard library alone.

    python checker.py CERTIFICATE.json NETWORK.npz        exit 0 valid, 1 invalid, 2 error

`NETWORK.npz` is what `Network.save_npz` writes. Nothing the certificate says about the network is believed: its
hash, its chain of weight matrices, the slopes of its activations and the matrix inequality are rebuilt here.

The claim is about the function in real arithmetic with the stored weights (softplus without its linear cut), not
about floating-point inference. The check itself is rigorous in floating point: it assumes IEEE binary64 and that
`@` sums products in some order, with or without fused operations, but no Strassen-like scheme. Any doubt rejects.

Source: Fazlyab, Robey, Hassani, Morari, Pappas, LipSDP (2019), theorem 2, for the inequality; Rump,
Verification of positive definiteness (2006), for the Cholesky test.
"""

import hashlib
import json
import math
import sys

import numpy as np

FORMAT, VERSION = "weightspace.certificate", 1
NETWORK_FORMAT, NETWORK_VERSION = "weightspace.network", 1
MULTIPLIERS, NORM_PRODUCT = "multipliers", "norm product"
CERTIFIED = "certified: the rigorous check accepted the bound"
FAILED = "failed: no bound was found that the rigorous check accepts; try bounder=NormProduct()"
UNIT = 2.0**-53
TINY, HUGE = 2.0**-300, 2.0**300  # range of scaled multipliers; keeps every product below far from underflow

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


def claim(norm, output):
    """Return the sentence a certificate states; `upper_bound` is its L."""
    if output is None:
        what = "f"
    elif isinstance(output, int):
        what = f"f_{output}"
    else:
        what = f"(f_{output[0]} - f_{output[1]})"
    return (
        f"For all inputs x, y: |{what}(x) - {what}(y)| <= L |x - y| in the {norm} norm, for the function of the "
        "stored weights in real arithmetic; floating-point inference is not covered."
    )


def _number(text):
    if not isinstance(text, str) or float.fromhex(text).hex() != text:
        raise ValueError(f"{text!r} is not a number in float.hex() form")
    return float.fromhex(text)


def _optional(read):
    return lambda value: None if value is None else read(value)


def _listed(read):
    def decode(value):
        if not isinstance(value, list):
            raise ValueError("a list is needed")
        return [read(item) for item in value]

    return decode


def _text(value):
    if not isinstance(value, str):
        raise ValueError("a text is needed")
    return value


def _output(value):
    indices = value if isinstance(value, list) and len(value) == 2 else [value]
    if any(type(index) is not int or index < 0 for index in indices):
        raise ValueError("an index, a pair of indices or null is needed")
    return tuple(indices) if isinstance(value, list) else value


def _one_of(*values):
    def decode(value):
        if not any(type(value) is type(known) and value == known for known in values):
            raise ValueError(f"{value!r} is not one of {values}")
        return value

    return decode


def _versions(value):
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("a table of texts is needed")
    return value


FIELDS = {
    "format": _one_of(FORMAT), "version": _one_of(VERSION), "status": _one_of(CERTIFIED, FAILED),
    "claim": _text, "kind": _one_of(MULTIPLIERS, NORM_PRODUCT), "norm": _one_of("l2", "linf"),
    "region": _one_of(None), "output": _optional(_output), "method": _text, "network_hash": _text,
    "upper_bound": _optional(_number), "optimum_lower_bound": _optional(_number),
    "sampled_lower_bound": _optional(_number), "rho": _optional(_number),
    "multipliers": _optional(_listed(_listed(_number))), "layer_norms": _optional(_listed(_number)),
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
    if fields["claim"] != claim(fields["norm"], fields["output"]):
        raise Refused("the certificate's claim does not fit its norm and output")
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


def _slopes(kind, attributes, width, weight):
    """Return arrays (alpha, beta), each (width,), that enclose every difference quotient of an activation.

    `float` reads attributes, since infinite ones are stored as texts.
    """
    low = np.full(width, math.nan)
    high = low.copy()
    if kind == "LeakyReLU":
        slope = float(attributes["negative_slope"])
        low[:], high[:] = min(slope, 1.0), max(slope, 1.0)
    elif kind == "PReLU":
        if weight.shape not in ((1,), (width,)):
            raise Refused(f"PReLU has slopes of shape {weight.shape} for {width} features")
        low[:], high[:] = np.minimum(weight, 1.0), np.maximum(weight, 1.0)
    elif kind == "ELU" and float(attributes["input_scale"]) > 0:
        scale = float(attributes["scale"])
        left = scale * float(attributes["alpha"]) * float(attributes["input_scale"])
        # outward: three roundings; numpy's min and max keep NaN
        sides = [0.0, scale, math.nextafter(left * (1 + 2.0**-50), math.copysign(math.inf, left))]
        low[:], high[:] = np.min(sides), np.max(sides)
    else:
        if kind == "Softplus":
            beta, threshold = float(attributes["beta"]), float(attributes["threshold"])
            if not (beta > 0 and threshold >= 20):
                raise Refused("Softplus needs beta > 0 and threshold >= 20")
        name = attributes["name"] if kind == "Pointwise" else kind
        name = f"GELU {attributes['approximate']}" if kind == "GELU" else name
        if name not in SLOPES:
            raise Refused(f"operation {name} has no slopes")
        low[:], high[:] = SLOPES[name]
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise Refused(f"operation {kind} has no finite slopes")
    return low, high


def _linf_constant(kind, attributes, shape, weight):
    """Return the l-infinity constant of a group activation, 1-Lipschitz in l2; None where it has no rule."""
    if attributes["axis"] % len(shape) != len(shape) - 1:
        raise Refused(f"{kind} does not act on the features")
    if kind == "GroupSort" or weight is None:
        if attributes["group_size"] < 1 or shape[-1] % attributes["group_size"]:
            raise Refused("GroupSort does not divide its features")
        return 1.0
    sizes = np.abs(weight).max(axis=1)
    if len(sizes) * weight.shape[1] != shape[-1] or not sizes.min() > 0:
        raise Refused("Householder directions do not fit or vanish")
    return None


def rebuild_chain(graph, parameters):
    """Return (weights, hidden) of a feedforward chain.

    weights: W_1 .. W_L, (out, in). hidden: one entry between each two: ("slopes", alpha, beta),
    ("group", l-infinity constant or None) or ("none",). Identities stand in where two activations meet or an
    activation comes first or last. Before the first matrix, reshaping only renames the entries of the input.
    """
    nodes = {entry["name"]: entry for entry in graph["nodes"]}
    if len(graph["outputs"]) != 1 or sum(entry["kind"] == "Input" for entry in graph["nodes"]) != 1:
        raise Refused("one input and one output are needed")
    path = [nodes[graph["outputs"][0]]]
    while path[-1]["kind"] != "Input":
        if len(path[-1]["inputs"]) != 1:
            raise Refused(f"node {path[-1]['name']!r} has several inputs; a chain is needed")
        path.append(nodes[path[-1]["inputs"][0]])
    weights, hidden, shape = [], [], path[-1]["shape"]
    for entry in reversed(path[:-1]):
        kind, before, shape = entry["kind"], shape, entry["shape"]
        attributes, roles = entry["attributes"], entry["parameters"]
        if kind in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
            same = (
                before == shape
                and len(shape) == 2
                and (
                    (kind == "Reshape"
                    and attributes["shape"] == [-1, shape[1]])
                    or (kind == "Flatten"
                    and attributes["start"] == 1)
                )
            )
            if (weights or hidden) and not same:
                raise Refused(f"{kind} after the first layer")
            continue
        if shape != (before[:-1] + shape[-1:] if kind == "Linear" else before):
            raise Refused(f"{kind} cannot turn shape {before} into {shape}")
        if kind == "Scale" and attributes["factor"] == 1 and math.isfinite(float(attributes["shift"])):
            continue  # a shift: increments pass unchanged
        if kind == "Linear":
            weight = _array(parameters, roles["weight"])
            weight = weight.T if attributes["transposed"] else weight
            if weight.ndim != 2 or weight.shape != (shape[-1], before[-1]):
                raise Refused(f"weight of node {entry['name']!r} does not fit")
            if "bias" in roles and _array(parameters, roles["bias"]).shape != (shape[-1],):
                raise Refused(f"bias of node {entry['name']!r} does not fit")
            if len(weights) > len(hidden):
                hidden.append(("none",))
            weights.append(np.ascontiguousarray(weight))
        else:
            if len(weights) == len(hidden):
                weights.append(np.eye(before[-1]))
            weight = _array(parameters, roles["weight"]) if roles else None
            if kind in ("GroupSort", "Householder"):
                hidden.append(("group", _linf_constant(kind, attributes, shape, weight)))
            else:
                if kind == "PReLU" and weight is not None and weight.size != 1 and len(shape) != 2:
                    raise Refused("PReLU does not act on the features")
                hidden.append(("slopes", *_slopes(kind, attributes, shape[-1], weight)))
    if len(weights) == len(hidden):
        weights.append(np.eye(shape[-1]))
    return weights, hidden


def select_output(weights, output):
    """Replace the last matrix by the row, or the rounded difference of two rows, that `output` asks for."""
    if output is None:
        return weights
    rows = weights[-1]
    indices = output if isinstance(output, tuple) else (output,)
    if max(indices) >= rows.shape[0]:
        raise Refused(f"output {output} does not exist; there are {rows.shape[0]}")
    row = rows[indices[0]] if len(indices) == 1 else rows[indices[0]] - rows[indices[1]]
    return [*weights[:-1], row[None, :]]


def prune(weights, slopes, multipliers):
    """Drop neurons whose incoming row or outgoing column is zero: their increment is 0 or unused."""
    weights, slopes, multipliers = list(weights), list(slopes), list(multipliers)
    changed = True
    while changed:
        changed = False
        for k in range(len(slopes)):
            alive = weights[k].any(axis=1) & weights[k + 1].any(axis=0)
            if not alive.all():
                weights[k], weights[k + 1] = weights[k][alive], weights[k + 1][:, alive]
                slopes[k] = tuple(side[alive] for side in slopes[k])
                multipliers[k] = multipliers[k][alive]
                changed = True
    return weights, slopes, multipliers


# ---- rigorous floating point -------------------------------------------------------------------------------


def gamma(n):
    """Return n u / (1 - n u), the relative error of n roundings, enlarged for being computed itself."""
    return 1.0001 * n * UNIT / (1 - n * UNIT)


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


def _in_range(values, low=TINY, high=HUGE):
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


def positive_definite(diagonals, errors, couplings, coupling_errors):
    """Prove that every symmetric matrix within `errors` of a block-tridiagonal one is positive semidefinite.

    diagonals: (n_k, n_k), of which the lower triangle counts; couplings: block k+1 by block k. Errors are
    entrywise. Scaling the diagonal by powers of two into [1/2, 2) is exact; then a shift that covers the
    errors and those of the factorization itself is subtracted, and Cholesky must run through.

    Returns:
        the smallest pivot, in units in which the diagonal is about 1.
    Raises:
        Refused: it did not.
    Source: Rump, Verification of positive definiteness (2006), theorem 2.3; order of summation free.
    """
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
    sizes = [len(p) for p in powers]
    error = 1.0001 * np.concatenate(sums).max()  # NaN stays NaN and is refused below
    trace = 1.0001 * sum(np.trace(block) for block in blocks)
    length = max(a + b for a, b in zip([0, *sizes], [*sizes, 0], strict=True)) + 3
    factor_error = gamma(length) / (1 - gamma(length))
    shift = 1.001 * (error + factor_error * trace) + sum(sizes) ** 2 * 2.0**-400
    if not math.isfinite(shift):
        raise Refused("the error bound of the matrix inequality is not finite")
    smallest = math.inf
    carried = None
    for k, block in enumerate(blocks):
        n = sizes[k]
        np.fill_diagonal(block, np.nextafter(np.diagonal(block) - shift, -math.inf))
        if carried is not None:
            block = block - carried @ carried.T
        tall = np.vstack([block, lower[k]]) if k < len(lower) else block
        for j in range(n):
            column = tall[j:, j] - tall[j:, :j] @ tall[j, :j]
            pivot = float(column[0])
            if not pivot > 0:
                raise Refused("the matrix inequality does not hold, or too narrowly to be proven")
            smallest = min(smallest, pivot)
            tall[j:, j] = column / math.sqrt(pivot)
            tall[j, j] = math.sqrt(pivot)
        carried = tall[n:]
    return smallest


def gram_bounded(weight, square, square_error=0.0):
    """Prove square * I - W'W >= 0; returns the margin. `square` is known up to `square_error`."""
    wide = weight.T if weight.shape[0] < weight.shape[1] else weight
    gram, error = _gram(wide, np.ones(wide.shape[0]), 8)
    identity = np.eye(wide.shape[1])
    block, error = _add(square * identity, square_error * identity, -gram, error)
    return positive_definite([block], [error], [], [])


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


def row_sum_bound(weight):
    """Return an upper bound of the largest absolute row sum, the l-infinity norm of `weight`."""
    largest = float(np.abs(weight).sum(axis=1).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    return math.nextafter(largest * (1 + 4 * (weight.shape[1] + 8) * UNIT), math.inf)


def product_bound(norms, hidden, norm):
    """Return the product of layer norms and activation constants, rounded upward."""
    factors = list(norms)
    for entry in hidden:
        if entry[0] == "slopes":
            factors.append(float(np.abs(np.concatenate(entry[1:])).max(initial=0.0)))
        elif entry[0] == "group" and norm == "linf":
            if entry[1] is None:
                raise Refused("Householder activations have no rule in the l-infinity norm")
            factors.append(entry[1])
    if 0.0 in factors:
        return 0.0
    product = 1.0
    for factor in factors:
        product = product if factor == 1.0 else math.nextafter(product * factor, math.inf)
    return product


# ---- the check ---------------------------------------------------------------------------------------------


def check_norms(weights, hidden, norms, norm):
    """Prove that `norms` bound the weights' norms; returns (bound, margin)."""
    if len(norms) != len(weights) or not all(math.isfinite(value) and value >= 0 for value in norms):
        raise Refused("the layer norms are not one finite non-negative number per layer")
    margin = math.inf
    for weight, value in zip(weights, norms, strict=True):
        if not weight.any():
            continue
        if norm == "linf":
            if value < row_sum_bound(weight):
                raise Refused(f"a layer's l-infinity norm is not proven to be at most {value}")
            continue
        scaled, exponent = scale_weights(weight)
        size = float(_in_range(np.ldexp(value, -exponent), 2.0**-100, 2.0**100))
        margin = min(margin, gram_bounded(scaled, size * size, UNIT * size * size))
    return product_bound(norms, hidden, norm), margin


def check_multipliers(weights, hidden, rho, multipliers):
    """Prove the matrix inequality of a certificate; returns (bound, margin)."""
    if any(entry[0] != "slopes" for entry in hidden):
        raise Refused("multipliers prove bounds of chains with slope-restricted activations only")
    lam = [np.array(values, dtype=np.float64) for values in multipliers]
    if [len(values) for values in lam] != [len(weight) for weight in weights[:-1]]:
        raise Refused("the multipliers are not one per hidden neuron")
    if not all(np.isfinite(values).all() and (values >= 0).all() for values in lam):
        raise Refused("a multiplier is negative or not finite")
    if not (math.isfinite(rho) and rho >= 0):
        raise Refused("rho is negative or not finite")
    weights, slopes, lam = prune(weights, [entry[1:] for entry in hidden], lam)
    if any(weight.size == 0 or not weight.any() for weight in weights):
        return 0.0, math.inf  # the function is constant
    if not rho > 0:
        raise Refused("rho is zero and the function is not constant")
    margin = chain_bounded(weights, slopes, rho, lam)
    return math.nextafter(math.sqrt(rho), math.inf), margin


def check_certificate(fields, graph, parameters):
    """Check a parsed certificate against a network; returns the margin.

    Raises:
        Refused: the certificate is of another network, or its bound is not proven.
        Unreadable: the network's description is broken.
    """
    try:
        with np.errstate(all="ignore"):
            bound, margin = _prove(fields, graph, parameters)
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


def _prove(fields, graph, parameters):
    if fields["network_hash"] != network_hash(graph, parameters):
        raise Refused("the certificate is of another network: the hashes differ")
    upper = fields["upper_bound"]
    if fields["status"] != CERTIFIED or upper is None or not math.isfinite(upper):
        raise Refused("the certificate states no bound")
    weights, hidden = rebuild_chain(graph, parameters)
    weights = select_output(weights, fields["output"])
    if fields["kind"] == NORM_PRODUCT:
        return check_norms(weights, hidden, fields["layer_norms"], fields["norm"])
    if fields["norm"] != "l2":
        raise Refused("multipliers prove l2 bounds only")
    return check_multipliers(weights, hidden, fields["rho"], fields["multipliers"])


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
    upper = fields["upper_bound"]
    sys.stdout.write(f"valid: upper bound {upper!r}, margin {margin:.3g}\n{fields['claim']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
