"""Changes that keep the frame of a file, so that they get past its parser: JSON, zip, safetensors, protobuf, words.

`mutate(kind, data, rng)` returns other bytes; kinds are the keys of `MUTATIONS`.
"""

import copy
import gzip
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

DEEP: Any = 1
for _ in range(300):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**12, 10**30, 10**400, 0.5, -0.0, 1e-320,
    1e308, float("nan"), float("inf"), "", "0", "a", "nan", "inf", "-inf", "0x1.8p+1", "0x1.0p+2000",
    "0x0.0p+0", "١٢", "\ud800", "\0", "../../evil", "/etc/passwd", "a" * 1000, "float32", "float64", "int64",
    "complex64", "save", "relu", "Linear", [], {}, [[]], [None], [1, 2], [-1, 3], [10**9, 10**9], ["a"],
    {"": None}, {"lower": [], "upper": []}, DEEP,
)  # fmt: skip
WORDS = (
    "(", ")", "()", "X_0", "Y_1", "X_9999999", "and", "or", "<=", "-", "*", "1e999", "1e-999", "-0", "١",
    "0x10", "inf", "nan", "9" * 500, "[", "]", "{", "}", "[[a]]", "=", ",", ":", "- ", "&a ", "*a",
    "!!python/object/apply:os.system ", "!!binary ", "!!set ", "!!timestamp ", "<<: *a", "? ", "|", "'", '"',
    '"""', "\\ud800", "\\U00110000", "\t", "\r", "\0", "\ufeff", "1979-05-27T07:32:00Z", "07:32:00", "1_000",
    "true", "null", "~", "id", "region", "unsafe", "kind",
)  # fmt: skip


def mutate(kind: str, data: bytes, rng: Random) -> bytes:
    """Return a changed file; one that its frame does not fit, or one time in eight any, is changed byte by byte."""
    if rng.random() > 1 / 8:
        try:
            return MUTATIONS[kind](data, rng)
        except Exception:  # an earlier change has broken the frame
            pass
    return change_bytes(data, rng)


def change_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, set, remove, repeat, cut off or overwrite by a number."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, kind = rng.randrange(len(changed)), rng.randrange(6)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.randrange(256)
        elif kind == 2:
            del changed[place : place + rng.choice((1, 2, 8, 64))]
        elif kind == 3:
            changed[place:place] = changed[place : place + rng.choice((1, 4, 32))]
        elif kind == 4 and rng.random() < 0.2:
            del changed[place:]
        else:
            number = rng.choice((0, 1, 2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            changed[place : place + 8] = struct.pack(rng.choice("<>") + "Q", number)
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def change_value(value: Any, rng: Random) -> Any:
    """Change one entry of nested tables and lists: another value, gone, twice, renamed, or exchanged with another."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holders = [*_holders(value)]
        if not holders:
            return rng.choice(VALUES)
        holder = rng.choice(holders)
        key = rng.choice([*holder]) if isinstance(holder, dict) else rng.randrange(len(holder))
        kind, old = rng.randrange(9), holder[key]
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other = rng.choice(holders)
            holder[key] = copy.deepcopy(rng.choice([*other.values()] if isinstance(other, dict) else other))
        elif kind == 5 and isinstance(old, int | float) and not isinstance(old, bool):
            holder[key] = rng.choice((old + 1, old - 1, -old, old * 2, float(old), str(old)))
        elif kind == 6 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(old))
        elif kind == 7 and isinstance(holder, dict):
            holder[rng.choice(("", "a", "name", *(word for word in WORDS if word.isalpha())))] = holder.pop(
                key
            )
        elif kind == 8 and isinstance(old, str):
            holder[key] = _text(old, rng)
        else:
            holder[key] = [old]
    return value


def _text(text: str, rng: Random) -> str:
    if text[:2] == '{"':
        return json.dumps(change_value(json.loads(text), rng))
    if re.fullmatch(r"-?0x[\d.a-f]+p[+-]\d+", text):
        number = float.fromhex(text)
        factor = rng.choice((0.0, -1.0, 0.5, 2.0, 1 - 2.0**-40, 1 + 2.0**-40, 1e300, float("nan")))
        return (number * factor).hex()
    return change_bytes(text.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")


def _holders(value: Any) -> Any:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict | list) and one:
            yield one
            pending.extend(one.values() if isinstance(one, dict) else one)


def _json(data: bytes, rng: Random) -> bytes:
    text = json.dumps(change_value(json.loads(data), rng), ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.05:  # a name that stands twice
        text = re.sub(r'("\w+": (\d+|"\w*"|null))(?=[,}])', r"\1, \1", text, count=rng.randrange(1, 5))
    if rng.random() < 0.03:
        text = text.replace("1", rng.choice(("[" * 100_000, "9" * 5000, "1e999999999", "-")), 1)
    return text.encode("utf-8", "surrogatepass")


def _prefixed_json(data: bytes, rng: Random) -> bytes:
    first = bytes([rng.randrange(4)]) if rng.random() < 0.1 else data[:1]
    if data[1:9] + data[1:2] and data[9:10] == b"{":  # our own format is a safetensors file
        return first + _safetensors(data[1:], rng)
    return first + _json(data[1:], rng)


def _safetensors(data: bytes, rng: Random) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__", {})
    embedded = [name for name, text in metadata.items() if text[:1] == "{"]
    if embedded and rng.random() < 0.7:
        name = rng.choice(embedded)
        metadata[name] = json.dumps(change_value(json.loads(metadata[name]), rng))
    else:
        header = change_value(header, rng)
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        rest = change_bytes(rest, rng)
    stated = len(text) + (rng.choice((-1, 1, 2**40, -len(text))) if rng.random() < 0.05 else 0)
    return struct.pack("<Q", max(stated, 0)) + text + rest


def _zip(data: bytes, rng: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [[member.filename, archive.read(member)] for member in archive.infolist()]
    kind, part = rng.randrange(10), rng.choice(parts)
    if kind == 0:
        parts.remove(part)
    elif kind == 1:
        part[0] = rng.choice((part[0] + "x", "../../evil", "/evil", "", rng.choice(parts)[0]))
    elif kind == 2:
        parts.append([part[0], part[1]])
    elif part[1][:6] == b"\x93NUMPY":
        part[1] = _npy(part[1], rng)
    elif part[1][:1] == b"{":
        part[1] = _json(part[1], rng)
    else:
        part[1] = change_bytes(part[1], rng)
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return file.getvalue()


def _npy(data: bytes, rng: Random) -> bytes:
    if data[10:11] != b"{":
        return change_bytes(data, rng)
    length = struct.unpack("<H", data[8:10])[0]
    header, rest = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    if b'"' in rest and b"{" in rest[:1] and rng.random() < 0.8:
        rest = _json(rest, rng)
        header = re.sub(r"\(\d+,\)", f"({len(rest)},)", header)
        return data[:8] + struct.pack("<H", len(header)) + header.encode("latin1") + rest
    choices = (
        (r"'descr': '[^']*'", f"'descr': '{rng.choice(DTYPES)}'"),
        (r"'descr': '[^']*'", "'descr': [('a', '<f4'), ('b', '|O')]"),
        (r"\([\d, ]*\)", rng.choice(("()", "(-1,)", "(1000000000000,)", "(0, 10000000000000)", "(2, 3, 4)", "(1.5,)"))),
        ("False|True", rng.choice(("True", "False", "None"))),
        ("}", rng.choice(("", "}}", "," * 9, "}" + "[" * 200))),
    )  # fmt: skip
    pattern, new = rng.choice(choices)
    header = re.sub(pattern, lambda _: new, header, count=1).encode("latin1")
    return data[:8] + struct.pack("<H", len(header)) + header + rest


def _protobuf(data: bytes, rng: Random) -> bytes:
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(data)
    messages = [*_messages(model)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        message = rng.choice(messages)
        field = rng.choice(message.DESCRIPTOR.fields)
        held = getattr(message, field.name)
        repeated = not isinstance(held, str | bytes | int | float) and hasattr(held, "__len__")
        if repeated and len(held) and rng.random() < 0.3:
            del held[rng.randrange(len(held))]
        elif field.message_type is not None:
            same = [one for one in messages if one.DESCRIPTOR is field.message_type]
            new = rng.choice(same) if same else None
            if rng.random() < 0.3:
                message.ClearField(field.name)
            elif new is not None and repeated:
                held.add().CopyFrom(copy.deepcopy(new))
            elif new is not None:
                held.CopyFrom(copy.deepcopy(new))
        else:
            new = _scalar(field, messages, rng)
            if repeated and len(held) and rng.random() < 0.7:
                held[rng.randrange(len(held))] = new
            elif repeated:
                held.append(new)
            else:
                setattr(message, field.name, new)
    return model.SerializeToString()


def _scalar(field: Any, messages: list[Any], rng: Random) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        known = [one.name for one in messages if getattr(one, "name", "")]
        text = rng.choice(
            (*KINDS, *known, "", "x", "../../evil", "/etc/passwd", "weights.bin", "1" * 40, "axis", "-1")
        )
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, 1.0, -1.5, 1e30, float("nan"), float("inf")))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return rng.choice((0, 1, 2, 2**31, 2**32 - 1))
    large = (2**40, -(2**62)) if field.cpp_type == field.CPPTYPE_INT64 else ()
    return rng.choice((0, 1, 2, 3, -1, -2, 7, 17, 2**31 - 1, *large))


DTYPES = ("|O", ">f8", "<f2", "|V8", "<U3", "<M8[s]", "|b1", "<c8", "|S0", "<f16")
KINDS = (
    "Add", "MatMul", "Gemm", "Conv", "Reshape", "Concat", "Slice", "Gather", "Expand", "Tile", "Range",
    "Where", "If", "Loop", "Split", "Pad", "Resize", "OneHot", "EyeLike", "Cast", "Shape", "Squeeze",
    "Unsqueeze", "ReduceSum", "BatchNormalization", "LSTM", "Einsum", "ConstantOfShape", "HannWindow",
    "RegexFullMatch", "Softmax", "ConvTranspose", "AveragePool", "TopK",
)  # fmt: skip


def _messages(message: Any) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if hasattr(value, "__len__") else (value,):
                yield from _messages(one)


def _words(data: bytes, rng: Random) -> bytes:
    packed = data[:2] == b"\x1f\x8b"
    parts = re.split(r"(\W)", (gzip.decompress(data) if packed else data).decode())
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, kind = rng.randrange(len(parts)), rng.randrange(4)
        if kind == 0:
            parts[place] = rng.choice(WORDS)
        elif kind == 1:
            parts.insert(place, rng.choice(WORDS))
        elif kind == 2:
            parts[place] = parts[rng.randrange(len(parts))]
        else:
            start = rng.randrange(len(parts))
            parts[place:place] = parts[start : start + rng.choice((1, 4, 20))]
    if rng.random() < 0.02:
        parts.insert(rng.randrange(len(parts)), rng.choice("([{-") * 100_000)
    text = "".join(parts).encode("utf-8", "surrogatepass")
    return gzip.compress(text, mtime=0) if packed else text


MUTATIONS: dict[str, Callable[[bytes, Random], bytes]] = {
    "bytes": change_bytes, "json": _json, "prefixed json": _prefixed_json, "safetensors": _safetensors, "zip": _zip,
    "npy": _npy, "protobuf": _protobuf, "words": _words,
}  # fmt: skip
FRAMES = {
    "adapter": "json", "autoencoder": "prefixed json", "certificate": "json", "checked_network": "json",
    "huggingface": "json", "index": "json", "journal": "words", "network_json": "json", "npy": "npy", "npz": "zip",
    "onnx": "protobuf", "pickle": "zip", "pickle_stream": "bytes", "pt2": "zip", "pt2_graph": "json", "region": "json",
    "safetensors": "safetensors", "symmetry": "json", "toml": "words", "verdict": "json", "vnnlib": "words",
    "yaml": "words", "zoo": "safetensors", "zoo_index": "json",
}  # fmt: skip
