"""Repairs: linear regression against its robust counterpart in one program, and ACAS Xu networks.

    OMP_NUM_THREADS=1 python benchmarks/repair.py regression     rounds and seconds as inputs grow
    OMP_NUM_THREADS=1 python benchmarks/repair.py networks       ACAS Xu, at most 4 minutes each

Needs WEIGHTSPACE_DATA (acasxu) for the networks. Their change is measured on inputs drawn from the whole input domain
that the repair did not see. Every proof is checked for the repaired network, and must be refused for the original.
"""

from __future__ import annotations

import argparse

import cvxpy
import numpy as np
import torch
from acasxu import FOLDER, MEAN, RANGE, network_file, read_property
from measure import interleaved, write

from certify import Box, Polyhedron, Property
from certify.checking import check_text
from certify.evaluation import flat_function
from certify.network_repair import repair
from certify.regression_repair import fit_repaired
from weightspace import read

DOMAIN = np.array([[0, 60760], [-np.pi, np.pi], [-np.pi, np.pi], [100, 1200], [0, 1200]]).T
REPAIRS = [  # network, properties, margin
    ((1, 7), (3,), None),
    ((1, 7), (3, 4), None),
    ((1, 8), (3, 4), None),
    ((1, 9), (3, 4), None),
    ((2, 1), (2,), 0.02),
    ((2, 9), (8,), None),
]


def fit_robustly(x: torch.Tensor, y: torch.Tensor, property: Property, margin: float) -> float:
    """Return the optimum of the robust counterpart: the least value over the box is W'a center - |W'a| radius."""
    lower, upper = np.array(property.region.lower), np.array(property.region.upper)
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    weight, bias = cvxpy.Variable((y.shape[1], x.shape[1])), cvxpy.Variable((1, y.shape[1]))
    slopes = [np.array(one.matrix[0]) @ weight for one in property.unsafe]
    constraints = [
        slope @ center - cvxpy.abs(slope) @ radius + bias @ np.array(one.matrix[0]) >= one.bounds[0] + margin
        for slope, one in zip(slopes, property.unsafe, strict=True)
    ]
    features = np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1)
    orthogonal, factor = np.linalg.qr(features)
    goal = orthogonal.T @ y.numpy()
    rest = float(np.square(y.numpy()).sum() - np.square(goal).sum())
    residual = factor @ cvxpy.vstack([weight.T, bias]) - goal
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(residual)), constraints)
    problem.solve(solver=cvxpy.CLARABEL)
    return (float(np.square(residual.value).sum()) + rest) / len(x)


def regression() -> None:
    rows = []
    for inputs in (2, 5, 10, 20, 50, 100):
        generator = torch.Generator().manual_seed(inputs)
        x = torch.randn(1000, inputs, generator=generator, dtype=torch.float64)
        y = x @ torch.randn(inputs, 2, generator=generator, dtype=torch.float64)
        y = y + 0.1 * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
        size = inputs**0.5
        unsafe = (  # y_0 > -size / 2, y_0 < 2 size, y_0 + y_1 > -1
            Polyhedron([[1.0, 0.0]], [-size / 2]),
            Polyhedron([[-1.0, 0.0]], [-2 * size]),
            Polyhedron([[1.0, 1.0]], [-1.0]),
        )
        property = Property(Box([-1.0] * inputs, [1.0] * inputs), unsafe, f"{inputs} inputs")
        margin = 1e-6 * float(y.abs().max())
        result = fit_repaired(x, y, property, margin=margin)
        (verdict,) = result.verdicts
        assert verdict.certificate is not None
        assert result.network is not None
        assert check_text(verdict.certificate, result.network)
        seconds = interleaved(
            {
                "ours": lambda x=x, y=y, p=property, m=margin: fit_repaired(x, y, p, margin=m),
                "robust counterpart": lambda x=x, y=y, p=property, m=margin: fit_robustly(x, y, p, m),
            },
            repeats=3,
            warmups=1,
        )
        rows.append(
            {
                "inputs": inputs,
                "rounds": result.rounds,
                "corners taken": len(result.constraints),
                "corners and half-spaces": 3 * 2.0**inputs,
                "error": result.error,
                "error without constraints": result.free_error,
                "error / robust counterpart - 1": result.error / fit_robustly(x, y, property, margin) - 1,
                "seconds, with proof": seconds["ours"],
                "seconds, robust counterpart without proof": seconds["robust counterpart"],
            }
        )
    write("repair_regression", rows, "numpy", "torch", "cvxpy", "clarabel")


def property_8() -> Property:
    """The advice (the least output) is "clear of conflict" or "weak left"."""
    lines = (FOLDER / "acasxu_prop_8_input_prenormalized.txt").read_text().split("\n")
    ends = np.array([[float(end) for end in line.strip("[] ").split(",")] for line in lines if line.strip()])
    box = Box((ends[:, 0] - MEAN) / RANGE, (ends[:, 1] - MEAN) / RANGE)
    rows = np.eye(5)
    unsafe = (Polyhedron([rows[j] - rows[0], rows[j] - rows[1]], [0.0, 0.0]) for j in (2, 3, 4))
    return Property(box, tuple(unsafe), "property 8")


def domain_samples(count: int, seed: int) -> torch.Tensor:
    low, high = torch.from_numpy((DOMAIN - MEAN) / RANGE)
    shares = torch.rand(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * shares


def networks() -> None:
    torch.set_num_threads(1)
    rows = []
    for place, numbers, margin in REPAIRS:
        network = read(network_file(*place))
        asked = tuple(property_8() if number == 8 else read_property(number) for number in numbers)
        result = repair(
            network, asked, domain_samples(5000, 0), margin=margin, seconds=240.0, verify_seconds=40.0
        )
        certificates = [one.certificate for one in result.verdicts if one.certificate is not None]
        unseen = domain_samples(20000, 1)
        with torch.no_grad():
            before, after = flat_function(network)(unseen), flat_function(result.network)(unseen)
        rows.append(
            {
                "network": f"{place[0]}_{place[1]}",
                "properties": " ".join(map(str, numbers)),
                "status": result.status.name,
                "proofs checked": sum(bool(check_text(text, result.network)) for text in certificates),
                "proofs refused for the original": sum(
                    not check_text(text, network) for text in certificates
                ),
                "rounds": result.rounds,
                "counterexamples": len(result.constraints),
                "margin": result.margin,
                "last verdict": result.verdicts[-1].reason,
                "root mean squared change": float((after - before).square().mean().sqrt()),
                "spread of outputs": float((before - before.mean(0)).square().mean().sqrt()),
                "same advice": float((before.argmin(1) == after.argmin(1)).double().mean()),
                "seconds": result.seconds,
            }
        )
        print(rows[-1], flush=True)
    write("repair_networks", rows, "numpy", "torch", "cvxpy", "clarabel")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("regression", "networks"))
    {"regression": regression, "networks": networks}[parser.parse_args().part]()
