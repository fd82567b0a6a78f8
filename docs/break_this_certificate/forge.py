"""What a forger does to a certificate and to a network file. The verdict on them is `checker.py`'s, unchanged.

Runs in the browser beside the checker, which it uses as a forger would: for the digest and for the network's hash.
"""

import contextlib
import io
import json
import math
import time

import checker
import numpy as np

EDIT, DIGEST, EVERYTHING = "edit", "digest", "everything"


def describe(certificate_path, network_path):
    """Return what the page shows of a certificate and its network, as JSON."""
    with open(certificate_path, encoding="utf-8") as file:
        fields = checker.parse_certificate(file.read())
    _, parameters = checker.load_network(network_path)
    matrices = {name: array for name, (_, array) in parameters.items() if array.ndim == 2}
    return json.dumps({
        "bound": fields["upper_bound"],
        "optimum": fields["optimum_lower_bound"],
        "sampled": fields["sampled_lower_bound"],
        "method": fields["method"],
        "claim": fields["claim"],
        "hash": fields["network_hash"],
        "tensors": {
            name: {
                "shape": array.shape,
                "largest": [int(i) for i in np.unravel_index(np.abs(array).argmax(), array.shape)],
            }
            for name, array in matrices.items()
        },
    })  # fmt: skip


def weight(network_path, name, row, column):
    """Return one weight."""
    return float(checker.load_network(network_path)[1][name][1][row, column])


def forge(certificate_path, network_path, request):
    """Write forged.json and forged.npz as `request` (JSON: bound, change, effort) asks.

    bound: the number to be claimed. change: None, or {tensor, row, column, value}. effort: "edit" leaves all else as it
    was, "digest" recomputes the digest, "everything" also writes the rho and the network hash that go with the edits.
    """
    request = json.loads(request)
    with open(certificate_path, encoding="utf-8") as file:
        data = json.load(file)
    with np.load(network_path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if request["change"]:
        change = request["change"]
        array = arrays[f"parameter:{change['tensor']}"].copy()
        array[change["row"], change["column"]] = change["value"]
        arrays[f"parameter:{change['tensor']}"] = array
    np.savez("forged.npz", **arrays)
    claimed = request["bound"]
    certified = float.fromhex(data["upper_bound"])
    edited = claimed != certified or request["change"] is not None
    if claimed != certified:
        data["upper_bound"] = claimed.hex()
    if edited and request["effort"] == EVERYTHING:
        if claimed != certified:
            data["proofs"][0]["rho"] = (claimed * claimed * (1 - 2.0**-50)).hex()
        for name in ("optimum_lower_bound", "sampled_lower_bound"):
            if data[name] is not None and not float.fromhex(data[name]) <= claimed:
                data[name] = None
        data["network_hash"] = checker.network_hash(*checker.load_network("forged.npz"))
    if edited and request["effort"] in (DIGEST, EVERYTHING):
        data["digest"] = checker.digest(data)
    with open("forged.json", "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)


def check(certificate_path, network_path):
    """Run `python checker.py CERTIFICATE.json NETWORK.npz`; returns exit code, output and seconds as JSON."""
    output = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = checker.main([certificate_path, network_path])
    seconds = time.perf_counter() - started
    return json.dumps({"code": code, "output": output.getvalue().strip(), "seconds": seconds})


def lowest(certificate_path, network_path, request, steps=20):
    """Return the lowest bound that the checker accepts from a forger who changes everything, by bisection."""
    request = {**json.loads(request), "effort": EVERYTHING}

    def accepted(bound):
        forge(certificate_path, network_path, json.dumps({**request, "bound": bound}))
        return json.loads(check("forged.json", "forged.npz"))["code"] == 0

    high = json.loads(describe(certificate_path, network_path))["bound"]
    if not accepted(high):
        return math.nan
    low = high / 2
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if accepted(middle) else (middle, high)
    return high
