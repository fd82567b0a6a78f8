"""`interp` beside the dense way, which forms the tensor: OMP_NUM_THREADS=1 python benchmarks/decompose.py.

The dense way is what published code does: form the (o, d, d) tensor, then batched `torch.linalg.eigh`, the singular
value decomposition of its unfolding, or sums over its entries. `interp` reads the module, checks it, and returns the
finished decomposition. Eigenproblems are solved in the dtype of the row by both; our `hosvd` and `similarity` always
compute in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import measure
import torch
from torch import Tensor

import interp
from interp.factored_form import FactoredForm
from weightspace.layers import Bilinear, BilinearMLP

LAYERS = [  # d, h, outputs
    (64, 128, 64),
    (256, 64, 16),
    (512, 2048, 4),
    (784, 256, 10),
    (1024, 512, 4),
    (1024, 64, 4),
    (2048, 64, 1),
    (2048, 256, 1),
    (2048, 512, 1),
    (4096, 64, 1),
]
EMBEDDED = [(784, 256, 10), (784, 512, 10)]
FEATURES = [(256, 256, 2048, 1), (256, 1024, 2048, 1), (512, 512, 4096, 1)]  # d, h, n, outputs
HEADS = [(768, 64), (2048, 64), (4096, 128)]  # d, head width


def tensor(layer: Bilinear) -> Tensor:
    """The symmetric (o, d, d) tensor."""
    left, right, output = (part.weight.detach() for part in (layer.left, layer.right, layer.output))
    form = (left.mT * output[:, None, :]) @ right
    return (form + form.mT) / 2


def dense_layer(layer: Bilinear) -> object:
    return torch.linalg.eigh(tensor(layer))


def dense_embedded(model: BilinearMLP) -> object:
    """In input space: the embedding multiplied into both factors, the head into the output."""
    (layer,) = model.layers
    whole = Bilinear(model.embedding.in_features, layer.left.out_features, model.head.out_features)
    whole.left.weight.data = layer.left.weight @ model.embedding.weight
    whole.right.weight.data = layer.right.weight @ model.embedding.weight
    whole.output.weight.data = model.head.weight @ layer.output.weight
    return torch.linalg.eigh(tensor(whole))


def dense_features(layer: Bilinear, features: Tensor) -> object:
    return torch.linalg.eigh(features @ tensor(layer) @ features.mT)


def dense_matrix(matrix: Tensor) -> object:
    return torch.linalg.eigh((matrix + matrix.mT) / 2)


def dense_hosvd(layer: Bilinear) -> object:
    return torch.linalg.svd(tensor(layer).flatten(1), full_matrices=False)


def dense_cosine(first: Bilinear, second: Bilinear) -> Tensor:
    a, b = tensor(first), tensor(second)
    return (a * b).sum() / a.norm() / b.norm()


def cases(dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], object], Callable[[], object]]]:
    """Task, size, the dense way and ours."""
    decompose = partial(interp.decompose, solved_in=dtype)
    for d, h, outputs in LAYERS:
        layer = Bilinear(d, h, outputs).to(dtype)
        yield (
            "layer",
            f"d={d} h={h} outputs={outputs}",
            partial(dense_layer, layer),
            partial(decompose, layer),
        )
    for d, h, outputs in EMBEDDED:
        model = BilinearMLP(d, h, outputs).to(dtype)
        size = f"d={d} embedded in {h}, h={h} outputs={outputs}"
        yield "embedded", size, partial(dense_embedded, model), partial(decompose, model)
    for d, h, n, outputs in FEATURES:
        layer, features = Bilinear(d, h, outputs).to(dtype), torch.randn(n, d, dtype=dtype)
        size = f"d={d} h={h} features={n} outputs={outputs}"
        ours = partial(decompose, layer, features=features)
        yield "features", size, partial(dense_features, layer, features), ours
    for d, width in HEADS:
        form = FactoredForm(*torch.randn(2, width, d).double(), dtype=dtype)
        matrix = form.matrix().to(dtype)
        yield (
            "head QK",
            f"d={d} width={width}",
            partial(dense_matrix, matrix),
            partial(form.decompose, solved_in=dtype),
        )
    first, second = (Bilinear(784, 256, 10).to(dtype) for _ in range(2))
    size = "d=784 h=256 outputs=10"
    yield "HOSVD", size, partial(dense_hosvd, first), partial(interp.hosvd, first)
    yield "similarity", size, partial(dense_cosine, first, second), partial(interp.similarity, first, second)


def main() -> None:
    torch.manual_seed(0)
    rows = []
    found = ((dtype, case) for dtype in (torch.float32, torch.float64) for case in cases(dtype))
    for dtype, (task, size, dense, ours) in found:
        ours()
        with torch.no_grad():
            started = time.perf_counter()
            dense()
            taken = time.perf_counter() - started
            repeats = 9 if taken < 0.2 else 3 if taken < 5 else 1
            seconds = measure.interleaved({"dense": dense, "ours": ours}, repeats=repeats, warmups=0)
        ratio = seconds["dense"] / seconds["ours"]
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "task": task,
                "size": size,
                **{f"{k}_ms": 1e3 * v for k, v in seconds.items()},
                "ratio": ratio,
            }
        )
        print(rows[-1], flush=True)
    measure.write("decompose", rows, "torch")


if __name__ == "__main__":
    main()
