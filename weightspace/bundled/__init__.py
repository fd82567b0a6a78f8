"""Networks and data that come with the library: what `weightspace demo`, the tutorials and the tests run on.

`train.py` beside this file made the checkpoints; `accuracy.json` says how well each of them does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.network import Network

FOLDER = Path(__file__).parent
_NAMES = ("digits_mlp_a", "digits_mlp_b", "digits_resnet", "digits_maxmin", "digits_bilinear")


def names() -> tuple[str, ...]:
    """Return the names of the bundled networks.

    Examples:
        >>> from weightspace.bundled import names
        >>> names()
        ('digits_mlp_a', 'digits_mlp_b', 'digits_resnet', 'digits_maxmin', 'digits_bilinear')
    """
    return _NAMES


def path(name: str) -> Path:
    """Return the file of a bundled network, `.safetensors` with its architecture inside.

    Raises:
        CheckpointError: no bundled network has this name.

    Examples:
        >>> from weightspace.bundled import path
        >>> path("digits_maxmin").name
        'digits_maxmin.safetensors'
    """
    if name not in _NAMES:
        from weightspace.errors import CheckpointError

        raise CheckpointError(f"no bundled network is called {name!r}; there are {', '.join(_NAMES)}")
    return FOLDER / f"{name}.safetensors"


def load(name: str) -> Network:
    """Read a bundled network; it takes images as rows of 64 pixels and returns 10 logits.

    Raises:
        CheckpointError: no bundled network has this name.

    Examples:
        >>> from weightspace.bundled import digits, load
        >>> network = load("digits_mlp_a")
        >>> network.to_module()(digits()[2]).shape
        torch.Size([450, 10])
    """
    from weightspace.reading import read

    return read(path(name))


def accuracies() -> dict[str, dict[str, object]]:
    """Return name -> description, seed, test_accuracy, train_accuracy, test_images, train_images.

    Examples:
        >>> from weightspace.bundled import accuracies
        >>> accuracies()["digits_mlp_a"]["test_accuracy"] > 0.9
        True
    """
    import json

    return json.loads((FOLDER / "accuracy.json").read_text(encoding="utf-8"))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x_train, y_train, x_test, y_test of scikit-learn's 8 x 8 handwritten digits, always split alike.

    x: float32, shape (n, 64), pixels from 0 to 1 in row-major order; y: int64, shape (n,). 1347 images train
    and 450 test, stratified by class.
    Source: Alpaydin and Kaynak, Optical recognition of handwritten digits (1998), the test part, through
    `sklearn.datasets.load_digits`.

    Examples:
        >>> from weightspace.bundled import digits
        >>> [tuple(part.shape) for part in digits()]
        [(1347, 64), (1347,), (450, 64), (450,)]
    """
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels / 16.0, labels, test_size=450, random_state=0, stratify=labels
    )
    return (
        torch.as_tensor(train_x, dtype=torch.float32),
        torch.as_tensor(train_y, dtype=torch.int64),
        torch.as_tensor(test_x, dtype=torch.float32),
        torch.as_tensor(test_y, dtype=torch.int64),
    )
