"""`interp` beside the dense way, which forms the tensor: OMP_NUM_THREADS=1 python benchmarks/decompose.py.

The dense way is what published code does: form the (o, d, d) tensor, then batched `torch.linalg.eigh`, the singular
value decomposition of its unfolding, or sums over its entries; in the dtype of the layer. `interp` reads the module,
checks it, computes in float64 and returns the finished decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def compared(
    task: str, size: str, dense: Callable[[], Any], ours: Callable[[], Any], slow: bool
) -> dict[str, Any]:
    seconds = measure.interleaved({"dense": dense, "ours": ours}, repeats=3 if slow else 9, warmups=1)
    ratio = seconds["dense"] / seconds["ours"]
    return {"task": task, "size": size, **{f"{k}_ms": 1e3 * v for k, v in seconds.items()}, "ratio": ratio}


def projected(layer: Bilinear, features: Tensor) -> object:
    return torch.linalg.eigh(features @ tensor(layer) @ features.mT)


def embedded(model: BilinearMLP) -> object:
    """The dense way in input space: the embedding multiplied into both factors, the head into the output."""
    (layer,) = model.layers
    whole = Bilinear(model.embedding.in_features, layer.left.out_features, model.head.out_features)
    whole.left.weight.data = layer.left.weight @ model.embedding.weight
    whole.right.weight.data = layer.right.weight @ model.embedding.weight
    whole.output.weight.data = model.head.weight @ layer.output.weight
    return torch.linalg.eigh(tensor(whole))


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for d, h, outputs in LAYERS:
        layer = Bilinear(d, h, outputs)
        size = f"d={d} h={h} outputs={outputs}"
        dense = lambda layer=layer: torch.linalg.eigh(tensor(layer))
        rows.append(compared("layer", size, dense, lambda layer=layer: interp.decompose(layer), d > 512))
    for d, h, outputs in EMBEDDED:
        model = BilinearMLP(d, h, outputs)
        size = f"d={d} embedded in {h}, h={h} outputs={outputs}"
        rows.append(
            compared("embedded", size, lambda m=model: embedded(m), lambda m=model: interp.decompose(m), True)
        )
    for d, h, n, outputs in FEATURES:
        layer, features = Bilinear(d, h, outputs), torch.randn(n, d)
        size = f"d={d} h={h} features={n} outputs={outputs}"
        dense = lambda layer=layer, features=features: projected(layer, features)
        ours = lambda layer=layer, features=features: interp.decompose(layer, features=features)
        rows.append(compared("features", size, dense, ours, True))
    for d, width in HEADS:
        form = FactoredForm(*torch.randn(2, width, d).double(), dtype=torch.float32)
        matrix = form.matrix().float()
        dense = lambda matrix=matrix: torch.linalg.eigh((matrix + matrix.mT) / 2)
        rows.append(
            compared("head QK", f"d={d} width={width}", dense, lambda form=form: form.decompose(), True)
        )
    first, second = Bilinear(784, 256, 10), Bilinear(784, 256, 10)
    size = "d=784 h=256 outputs=10"
    unfolded = lambda: torch.linalg.svd(tensor(first).flatten(1), full_matrices=False)
    rows.append(compared("HOSVD", size, unfolded, lambda: interp.hosvd(first), True))
    rows.append(
        compared(
            "similarity", size, lambda: cosine(first, second), lambda: interp.similarity(first, second), True
        )
    )
    measure.write("decompose", rows, "torch")


def cosine(first: Bilinear, second: Bilinear) -> Tensor:
    a, b = tensor(first), tensor(second)
    return (a * b).sum() / a.norm() / b.norm()


if __name__ == "__main__":
    main()
