"""`kernels.extreme_eigh` beside ARPACK (`scipy.sparse.linalg.eigsh`): python benchmarks/extremal.py.

Both get the same operator and tolerance. "found" stops when the k pairs have converged, as ARPACK does; "verified"
also looks for missed eigenvalues, which ARPACK does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import numpy as np
import scipy.sparse.linalg
import torch

import kernels

TOLERANCE = 1e-8
Operator = Callable[[torch.Tensor], torch.Tensor]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gram(n: int, rank: int, decay: float) -> Operator:
    factor = draw(n, rank) * torch.arange(1, rank + 1, dtype=torch.float64) ** -decay
    return lambda x: factor @ (factor.mT @ x)


def hessian(width: int, samples: int) -> Operator:
    """Products with the Hessian of a least-squares loss, by double backward, for all columns at once."""
    inputs, target = draw(samples, width), draw(samples, width).roll(1, 0)
    weights = draw(width * width) / width**0.5

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        return ((inputs @ parameters.view(width, width)).tanh() - target).square().mean()

    def times_hessian(columns: torch.Tensor) -> torch.Tensor:
        parameters = weights.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(parameters), parameters, create_graph=True)
        (product,) = torch.autograd.grad(gradient, parameters, columns.mT, is_grads_batched=True)
        return product.mT

    return times_hessian


def problems() -> Iterator[tuple[str, int, Operator]]:
    yield "Gram, rank 500", 2000, gram(2000, 500, 0.0)
    yield "Gram, rank 300, decaying", 8000, gram(8000, 300, 1.0)
    yield "Gram, rank 200", 20000, gram(20000, 200, 0.0)
    symmetric = draw(2000, 2000)
    symmetric = symmetric + symmetric.mT
    yield "dense", 2000, symmetric.matmul
    diagonal = draw(10000, 1)
    yield "diagonal", 10000, lambda x: diagonal * x
    yield "Hessian", 4096, hessian(64, 256)


def main() -> None:
    rows = []
    for name, n, operator in problems():
        for k in (4, 16):
            products = {"arpack": 0}

            def matvec(x: np.ndarray, operator: Operator = operator, products: dict = products) -> np.ndarray:
                products["arpack"] += 1
                return operator(torch.from_numpy(x.reshape(-1, 1)))[:, 0].numpy()

            linear = scipy.sparse.linalg.LinearOperator((n, n), matvec=matvec, dtype=np.float64)
            start = np.random.default_rng(0).standard_normal(n)

            def arpack(linear=linear, k=k, start=start) -> np.ndarray:
                return scipy.sparse.linalg.eigsh(linear, k, which="LA", tol=TOLERANCE, v0=start)[0]

            def ours(
                verify: bool, operator: Operator = operator, n: int = n, k: int = k
            ) -> kernels.ExtremeEigh:
                return kernels.extreme_eigh(operator, n, k, tolerance=TOLERANCE, verify=verify)

            expected, found, verified = arpack(), ours(False), ours(True)
            row = {"operator": name, "n": n, "k": k, "arpack_products": products["arpack"]}
            row |= {"found_products": found.iterations, "verified_products": verified.iterations}
            row["difference"] = float(
                np.abs(verified.values.numpy() - np.sort(expected)).max() / expected.max()
            )
            seconds = measure.interleaved(
                {"arpack": arpack, "found": lambda: ours(False), "verified": lambda: ours(True)},
                repeats=5,
                warmups=1,
            )
            row |= {f"{key}_ms": 1e3 * value for key, value in seconds.items()}
            row["found_ratio"] = seconds["arpack"] / seconds["found"]
            row["verified_ratio"] = seconds["arpack"] / seconds["verified"]
            rows.append(row)
    measure.write("extremal", rows, "torch", "scipy")


if __name__ == "__main__":
    main()
