"""Which symmetries are found in a hundred architectures, and does moving them keep the function?

The zoo of tests/weightspace/architectures.py (thirteen modules of the comparison with other tools, and further ones)
and the architectures of the transformers library in tests/weightspace/transformers_architectures.py, all with random
parameters and running statistics. Each module itself, not its description, is run before and after its parameters
were moved by a random element of the whole permutation group; a change above 1e-4 counts as a silent break. About
5 minutes.

    python benchmarks/architectures.py
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from measure import write

from weightspace.permutation import permute, random_permutations
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.tracing import trace
from weightspace.verification import symmetry

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "weightspace"))
from architectures import FURTHER, ZOO
from transformers_architectures import TRANSFORMERS

BREAK = 1e-4


def examine(family: str, name: str, architecture) -> dict:
    """Trace, derive, move, run."""
    started = time.perf_counter()
    row = {"family": family, "architecture": name}
    try:
        module, inputs = architecture.module(), architecture.inputs()
        network = trace(module, inputs)
        spec = symmetry(network)
    except Exception as error:  # a table of what works names what does not
        return {**row, "groups": 0, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    change = max((moved_change(module, inputs, network, spec, seed) for seed in range(3)), default=0.0)
    reasons = Counter(entry.reason.split(" at ")[0].split(":")[0] for entry in spec.frozen)
    return {
        **row,
        "groups": len(spec.groups),
        "within heads or groups": sum(bool(group.within) for group in spec.groups),
        "change": change,
        "silent_break": change > BREAK,
        "frozen": ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def moved_change(module, inputs, network, spec: SymmetrySpec, seed: int) -> float:
    """Relative change of the module's output when a random group element moves its parameters."""
    elements = random_permutations(spec, torch.Generator().manual_seed(seed))
    moved = permute(network, spec, elements).state_dict()
    state = module.state_dict()
    kept = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        before = module(*inputs)
        for key, tensor in moved.items():
            if key in state:
                state[key].copy_(tensor)
        after = module(*inputs)
        for key, tensor in kept.items():
            state[key].copy_(tensor)
    return float((before - after).abs().max() / before.abs().max())


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    for family, table in (("zoo", ZOO), ("further", FURTHER), ("transformers", TRANSFORMERS)):
        for name, architecture in table.items():
            rows.append(examine(family, name, architecture))
            print(rows[-1], file=sys.stderr, flush=True)
    for family in ("zoo", "further", "transformers"):
        own = [row for row in rows if row["family"] == family]
        found = sum(row["groups"] > 0 for row in own)
        breaks = sum(row.get("silent_break", False) for row in own)
        rows.append(
            {"family": family, "architecture": "all", "count": len(own), "found": found, "breaks": breaks}
        )
    write("architectures", rows, "torch", "transformers", "weightspace")


if __name__ == "__main__":
    main()
