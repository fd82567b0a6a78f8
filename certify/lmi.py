r"""From a `Network` to the linear matrix inequality that bounds its Lipschitz constant.

One description drives every solver. The independent check, `certify/checker.py`, rebuilds all of it itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from certify.constraints import GroupRestricted, SlopeRestricted, constraint_of
from weightspace.errors import ShapeError, UnsupportedOperationError
from weightspace.network import Network, Node, require_finite
from weightspace.operations import (
    AdaptiveAveragePool,
    Attention,
    AveragePool,
    BatchNorm,
    Conv,
    Flatten,
    GroupSort,
    Householder,
    Input,
    LayerNorm,
    Linear,
    MaxPool,
    Opaque,
    Operation,
    PReLU,
    Reshape,
    RMSNorm,
    Scale,
    Softmax,
    Squeeze,
    Unsqueeze,
)

Output = int | tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Hidden:
    """The nonlinearity between two matrices; `operation` None where two matrices meet without one."""

    name: str
    operation: Operation | None
    parameters: dict[str, Tensor]
    constraint: SlopeRestricted | GroupRestricted | None


@dataclass(frozen=True, eq=False)
class Chain:
    r"""A feedforward chain $W_L \phi_K(\dots \phi_1(W_1 x + b_1) \dots) + b_L$ with $K = L - 1$.

    Attributes:
        weights: $W_k$, float64, (out, in); exactly the stored numbers, except that a row difference (output
            pair) is rounded once.
        biases: $b_k$, (out,), rounded where a constant shift is folded in (no bound depends on them).
        hidden: what stands between each two matrices.
        network_hash: of the whole network.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    hidden: tuple[Hidden, ...]
    network_hash: str

    @property
    def slope_restricted(self) -> bool:
        """True where every nonlinearity is scalar with bounded slopes."""
        return all(isinstance(layer.constraint, SlopeRestricted) for layer in self.hidden)

    def require_slopes(self, bounder: str) -> SlopeChain:
        """Return the matrices and slopes alone.

        Raises:
            UnsupportedOperationError: a group activation, or two matrices that meet without one.
        """
        slopes = []
        for layer in self.hidden:
            if not isinstance(layer.constraint, SlopeRestricted):
                kind = layer.operation.kind if layer.operation else "two matrices in a row, the second"
                raise UnsupportedOperationError(
                    f"{bounder} needs scalar activations with bounded slopes between all matrices; "
                    f"found {kind} at node {layer.name!r}; use bounder=NormProduct()"
                )
            slopes.append(layer.constraint)
        return SlopeChain(self.weights, tuple(s.alpha for s in slopes), tuple(s.beta for s in slopes))


@dataclass(frozen=True, eq=False)
class SlopeChain:
    r"""The data of LipSDP for a chain: $W_1 .. W_L$ and slopes $[\alpha_k, \beta_k]$ of each hidden layer.

    $M(\rho, \lambda) = \rho E - F'F + \sum_i \lambda_i (p_i q_i' + q_i p_i') \succeq 0$ with
    $p_i = e_i - \alpha_i y_i$, $q_i = e_i - \beta_i y_i$ on $z = (x, v_1, .., v_K)$, $y_k = W_k v_{k-1}$,
    $F z = W_L v_K$, gives Lip <= sqrt(rho).
    Source: Fazlyab et al., LipSDP (2019), theorem 2.
    """

    weights: tuple[np.ndarray, ...]
    alpha: tuple[np.ndarray, ...]
    beta: tuple[np.ndarray, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """n_0 (inputs), n_1 .. n_K (hidden neurons)."""
        return tuple(weight.shape[1] for weight in self.weights)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each block of z starts, and the size N of z."""
        return np.cumsum([0, *self.widths])

    def constant_matrix(self) -> np.ndarray:
        """Return -F'F, shape (N, N)."""
        matrix = np.zeros((self.offsets[-1], self.offsets[-1]))
        start = self.offsets[-2]
        matrix[start:, start:] = -self.weights[-1].T @ self.weights[-1]
        return matrix

    def multiplier_matrix(self, layer: int, neuron: int) -> scipy.sparse.coo_array:
        """Return p q' + q p' of one neuron, (N, N)."""
        size = self.offsets[-1]
        place = self.offsets[layer + 1] + neuron
        columns = np.arange(self.offsets[layer], self.offsets[layer + 1])
        row = self.weights[layer][neuron]
        low, high = self.alpha[layer][neuron], self.beta[layer][neuron]
        p = scipy.sparse.coo_array((np.append(-low * row, 1.0), (np.append(columns, place),)), (size,))
        q = scipy.sparse.coo_array((np.append(-high * row, 1.0), (np.append(columns, place),)), (size,))
        outer = scipy.sparse.kron(p.reshape((size, 1)), q.reshape((1, size)))
        total = (outer + outer.T).tocoo()
        total.eliminate_zeros()  # kron stores whole blocks
        return total

    def affine_map(self, multipliers: str) -> scipy.sparse.csc_array:
        """Return the columns vec(E), vec(sum of p q' + q p') per `multipliers`, "neuron" or "layer"; (N^2, m)."""
        size = int(self.offsets[-1])
        inputs = np.arange(self.widths[0]) * (size + 1)
        columns = [
            scipy.sparse.coo_array((np.ones(len(inputs)), (inputs, np.zeros_like(inputs))), (size**2, 1))
        ]
        for layer, width in enumerate(self.widths[1:]):
            each = [self.multiplier_matrix(layer, i).reshape((size**2, 1)) for i in range(width)]
            if multipliers == "layer":
                total = each[0]
                for matrix in each[1:]:
                    total = total + matrix
                each = [total]
            columns += each
        return scipy.sparse.csc_array(scipy.sparse.hstack(columns))

    def matrix(self, rho: float, multipliers: Sequence[np.ndarray]) -> np.ndarray:
        """Return M(rho, lambda), dense (N, N)."""
        size = self.offsets[-1]
        matrix = self.constant_matrix()
        matrix[range(self.widths[0]), range(self.widths[0])] += rho
        for k, values in enumerate(multipliers):
            before, here = slice(*self.offsets[k : k + 2]), slice(*self.offsets[k + 1 : k + 3])
            p, q = np.zeros((len(values), size)), np.zeros((len(values), size))
            p[:, here] = q[:, here] = np.eye(len(values))
            p[:, before] = -self.alpha[k][:, None] * self.weights[k]
            q[:, before] = -self.beta[k][:, None] * self.weights[k]
            half = p.T @ (values[:, None] * q)
            matrix += half + half.T
        return matrix


def chain_of(network: Network, output: Output = None) -> Chain:
    """Read a feedforward chain out of a network.

    Accepted: reshaping of the input, then Linear and activations. Where two activations meet, or one comes first
    or last, an identity matrix stands in.

    Args:
        output: None, one output, or a pair (j, k) for the difference of outputs j and k.
    Raises:
        UnsupportedOperationError: any other operation; the message names it, its node and a remedy.
        NonFiniteError: a parameter with NaN or infinity.
        ShapeError: `output` does not exist.
    """
    require_finite(network)
    path = _path(network)
    weights: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    hidden: list[Hidden] = []
    shift = 0.0  # added to what the next matrix takes

    def append_identity(width: int) -> None:
        weights.append(np.eye(width))
        biases.append(np.full(width, shift))

    for before, node in itertools.pairwise(path):
        operation, tensors = node.operation, network.weights(node)
        if isinstance(operation, Flatten | Reshape | Squeeze | Unsqueeze):
            if (weights or hidden) and node.shape != before.shape:
                raise UnsupportedOperationError(
                    f"{operation.kind} at node {node.name!r} changes the shape after the first layer, which the "
                    "certificates of this version do not follow; reshape the input or the result outside"
                )
        elif isinstance(operation, Linear):
            if len(weights) > len(hidden):
                hidden.append(Hidden(node.name, None, {}, None))
            weight = operation.matrix(_floating(tensors["weight"], node))
            weights.append(np.ascontiguousarray(weight.double().numpy()))
            bias = tensors.get("bias")
            moved = shift * weights[-1].sum(axis=1)
            biases.append(moved if bias is None else moved + bias.double().numpy())
            shift = 0.0
        elif isinstance(operation, Scale) and operation.factor == 1:
            if len(weights) > len(hidden):
                biases[-1] = biases[-1] + operation.shift
            else:
                shift += operation.shift
        else:
            _refuse(node)
            width = _width(node)
            if len(weights) == len(hidden):
                append_identity(width)
                shift = 0.0
            constraint = constraint_of(operation, tensors, width, node.name)
            hidden.append(Hidden(node.name, operation, tensors, constraint))
    if len(weights) == len(hidden):
        append_identity(_width(path[-1]))
    chain = Chain(tuple(weights), tuple(biases), tuple(hidden), network.hash)
    return chain if output is None else _select(chain, output)


def _path(network: Network) -> list[Node]:
    if len(network.outputs) != 1 or len(network.inputs) != 1:
        raise UnsupportedOperationError(
            f"certify needs a network with one input and one output; this one has {len(network.inputs)} and "
            f"{len(network.outputs)}; wrap it so that one tensor goes in and one comes out"
        )
    path = [network.node(network.outputs[0])]
    while not isinstance(path[-1].operation, Input):
        node = path[-1]
        if len(node.inputs) != 1:
            raise UnsupportedOperationError(
                f"{node.operation.kind} at node {node.name!r} has {len(node.inputs)} inputs; this version "
                "certifies chains of Linear layers and activations only"
            )
        path.append(network.node(node.inputs[0]))
    return path[::-1]


def _floating(weight: Tensor, node: Node) -> Tensor:
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UnsupportedOperationError(
            f"Linear at node {node.name!r} has a {weight.dtype} weight; certify needs real floating point"
        )
    return weight


def _width(node: Node) -> int:
    width = node.shape[-1] if node.shape else None
    if width is None:
        raise UnsupportedOperationError(
            f"{node.operation.kind} at node {node.name!r} has no fixed width (shape {node.shape}); certify needs one"
        )
    return width


def _refuse(node: Node) -> None:
    """Refuse operations that are no activation on the features, each with its reason."""
    operation = node.operation
    if isinstance(operation, Opaque):
        raise UnsupportedOperationError(
            f"{operation.name} at node {node.name!r} is not known to this version"
        )
    place = f"{operation.kind} at node {node.name!r}"
    if isinstance(operation, BatchNorm | Scale):
        raise UnsupportedOperationError(
            f"{place} would have to be folded into the weights, and the fold has no rigorous check yet; "
            "fold it yourself (the certificate then speaks about the folded network)"
        )
    if isinstance(operation, Softmax | Attention):
        raise UnsupportedOperationError(
            f"{place} has no global Lipschitz bound in this version; certify the network up to its input (the logits)"
        )
    if isinstance(operation, LayerNorm | RMSNorm):
        raise UnsupportedOperationError(
            f"{place} has no useful global Lipschitz bound; certify a network without it"
        )
    if isinstance(operation, Conv | AveragePool | AdaptiveAveragePool | MaxPool):
        raise UnsupportedOperationError(
            f"{place} is not covered by this version, which certifies Linear chains"
        )
    if (
        isinstance(operation, GroupSort | Householder)
        and operation.axis % len(node.shape) != len(node.shape) - 1
    ):
        raise UnsupportedOperationError(
            f"{place} sorts along axis {operation.axis} of shape {node.shape}, not along the features (the last axis)"
        )
    if isinstance(operation, PReLU) and len(node.shape) != 2:
        raise UnsupportedOperationError(
            f"{place} has shape {node.shape}; per-channel slopes need (batch, features)"
        )


def _select(chain: Chain, output: Output) -> Chain:
    rows, bias = chain.weights[-1], chain.biases[-1]
    indices = output if isinstance(output, tuple) else (output,)
    if len(indices) not in (1, 2) or not all(type(j) is int and 0 <= j < len(rows) for j in indices):
        raise ShapeError(
            f"output={output!r} must be an index or a pair of indices below {len(rows)}, the output width"
        )
    first, *second = (int(j) for j in indices if j is not None)
    row, shift = rows[first], bias[first]
    for other in second:
        row, shift = row - rows[other], shift - bias[other]
    weights, biases = (*chain.weights[:-1], row[None, :]), (*chain.biases[:-1], np.array([shift]))
    return replace(chain, weights=weights, biases=biases)
