"""Small random networks of every structure that the checker has a rule for, and multipliers for them.

Nothing here uses the bounders: the inequality is the one of `certify/exact.py`, its solution Clarabel's.
"""

from fractions import Fraction
from math import isqrt

import cvxpy
import numpy as np
import torch

from certify import checker
from certify.checking import network_arrays
from certify.exact import inequality, positive_semidefinite
from weightspace.builder import NetworkBuilder
from weightspace.operations import (
    Absolute,
    Add,
    BatchNorm,
    Concat,
    Conv,
    Flatten,
    GroupSort,
    Householder,
    Implicit,
    LeakyReLU,
    Linear,
    Parameter,
    PReLU,
    ReLU,
    Reshape,
    Scale,
    Select,
    SiLU,
    Slice,
    Subtract,
    Tanh,
    Unsqueeze,
)


class Draw:
    """A network under construction: `draw.linear(node, width)` and so on return the new node."""

    def __init__(self, seed, dtype=torch.float64):
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        self.builder, self.count = NetworkBuilder(), 0

    def parameter(self, array):
        self.count += 1
        return self.builder.parameter(f"p{self.count}", torch.as_tensor(np.asarray(array)).to(self.dtype))

    def input(self, width):
        return self.builder.input("x", (None, width), self.dtype)

    def maps(self, channels, *sizes):
        return self.builder.input("x", (None, channels, *sizes), self.dtype)

    def convolution(self, node, channels, kernel, stride=1, padding=0, dilation=1, groups=1, bias=True):
        """Numbers stand for all axes."""
        axes = len(self.builder.shape(node)) - 2
        lists = [n if isinstance(n, tuple) else (n,) * axes for n in (kernel, stride, padding, dilation)]
        each = self.builder.shape(node)[1] // groups
        weight = self.rng.normal(size=(channels, each, *lists[0])) / np.sqrt(each * np.prod(lists[0]))
        names = {"weight": self.parameter(weight)}
        names |= {"bias": self.parameter(self.rng.normal(size=channels))} if bias else {}
        stride, padding, dilation = lists[1:]
        return self.add(Conv(**names, stride=stride, padding=padding, dilation=dilation, groups=groups), node)

    def width(self, node):
        return self.builder.shape(node)[-1]

    def add(self, operation, *nodes):
        return self.builder.add(operation, *nodes)

    def linear(self, node, width, scale=1.0, bias=True):
        weight = self.rng.normal(size=(width, self.width(node))) * scale / np.sqrt(self.width(node))
        weight = self.parameter(weight.round(int(self.rng.integers(1, 9))))
        return self.add(
            Linear(weight=weight, bias=self.parameter(self.rng.normal(size=width)) if bias else None), node
        )

    def householder(self, node, size):
        shape = (self.width(node) // size, size)
        return self.add(Householder(weight=self.parameter(self.rng.normal(size=shape))), node)

    def implicit(self, node, width, **attributes):
        weight = 0.5 * self.rng.normal(size=(width, width)) / np.sqrt(width)
        taking = self.rng.normal(size=(width, self.width(node)))
        names = {"weight": self.parameter(weight), "input_weight": self.parameter(taking)}
        return self.add(
            Implicit(**names, bias=self.parameter(self.rng.normal(size=width)), **attributes), node
        )

    def normalized(self, node):
        n = self.builder.shape(node)[1]
        names = {"running_mean": self.rng.normal(size=n), "running_var": self.rng.random(n) + 0.1}
        names |= {"weight": self.rng.normal(size=n), "bias": self.rng.normal(size=n)}
        return self.add(BatchNorm(**{role: self.parameter(array) for role, array in names.items()}), node)


def residual(d):
    h = d.linear(d.input(2), 3)
    for operation, activation in ((Add(), ReLU()), (Subtract(), Tanh())):
        h = d.add(operation, h, d.linear(d.add(activation, d.linear(h, 2)), 3, 0.5))
    return d.linear(h, 2)


def concatenated(d):
    x = d.input(3)
    h = d.add(ReLU(), d.linear(x, 3))
    both = d.add(Concat(axis=1), h, x, d.add(Slice(axis=1, start=0, stop=3, step=2), d.linear(h, 3)))
    last = d.add(LeakyReLU(negative_slope=0.1), d.linear(d.add(Slice(axis=1, start=1), both), 2))
    return d.add(Concat(axis=1), last, d.add(Slice(axis=1, start=0, stop=1), both))


def selected(d):
    h = d.add(ReLU(), d.linear(d.input(2), 3))
    one = d.add(Unsqueeze(axis=1), d.add(Select(axis=1, index=-1), h))
    h = d.add(Flatten(), d.add(Reshape(shape=(-1, 3, 1)), d.add(Concat(axis=1), one, d.linear(h, 2))))
    return d.linear(d.add(Tanh(), h), 2)


def sorted_in(size):
    def build(d):
        h = d.add(GroupSort(group_size=size), d.linear(d.input(2), 2 * size))
        return d.linear(d.add(GroupSort(group_size=size), d.linear(h, size)), 2)

    return build


def reflected_in(size):
    def build(d):
        h = d.householder(d.linear(d.input(2), 2 * size), size)
        return d.linear(d.householder(d.linear(h, size), size), 2)

    return build


def mixed_groups(d):
    x = d.input(2)
    h = d.add(GroupSort(group_size=2), d.householder(d.linear(x, 4), 2))
    h = d.add(Add(), h, d.add(SiLU(), d.linear(h, 4)))
    return d.linear(d.add(GroupSort(group_size=4), h), 2)


def mixed_slopes(d):
    x = d.input(2)
    a = d.add(SiLU(), d.linear(x, 2))
    b = d.add(PReLU(weight=d.parameter([0.25, -0.5, 1.5])), d.linear(x, 3))
    c = d.add(Absolute(), d.linear(d.add(Concat(axis=1), a, b), 2))
    return d.linear(d.add(LeakyReLU(negative_slope=1.75), d.add(Subtract(), c, a)), 2)


def implicit(d):
    return d.linear(d.implicit(d.input(2), 3, activation="ReLU"), 2)


def implicit_inside(d):
    h = d.implicit(d.add(ReLU(), d.linear(d.input(2), 2)), 2, activation="LeakyReLU", negative_slope=-0.25)
    h = d.implicit(d.add(GroupSort(group_size=2), h), 2, activation="LeakyReLU", negative_slope=0.5)
    return d.linear(d.add(SiLU(), h), 2)


def normalized(d):
    h = d.normalized(d.linear(d.input(2), 3))
    h = d.add(Add(), h, d.linear(d.add(ReLU(), h), 3))
    return d.linear(d.add(ReLU(), d.normalized(h)), 2)


def scaled(d):
    x = d.input(2)
    h = d.add(Scale(factor=0.3, shift=2.0), d.add(ReLU(), d.linear(x, 3)))
    constant = d.add(Parameter(value=d.parameter(d.rng.normal(size=(1, 3)))))
    h = d.add(ReLU(), d.add(Subtract(), constant, d.add(Add(), h, d.linear(x, 3))))
    return d.linear(d.add(Scale(factor=-1 / 3), h), 2)


def pruned(d):
    x = d.input(3)
    h = d.add(ReLU(), d.linear(x, 4))
    h = d.add(GroupSort(group_size=2), d.linear(h, 6))
    h = d.add(Tanh(), d.add(Add(), d.householder(h, 2), h))
    y = d.linear(h, 2)
    for name, tensor in d.builder.parameters.items():
        if tensor.ndim == 2 and tensor.shape[1] > 2:
            keep = torch.as_tensor(d.rng.random(tuple(tensor.shape)) < 0.35)
            d.builder.parameters[name] = tensor * keep
    return y


def chain(d):
    h = d.add(SiLU(), d.linear(d.input(3), 3))
    return d.linear(d.add(LeakyReLU(negative_slope=0.2), d.linear(h, 2)), 2)


STRUCTURES = {
    "residual": residual, "concat": concatenated, "selected": selected,
    "GroupSort 2": sorted_in(2), "GroupSort 3": sorted_in(3),
    "Householder 2": reflected_in(2), "Householder 3": reflected_in(3), "mixed groups": mixed_groups,
    "mixed slopes": mixed_slopes, "implicit": implicit, "implicit inside": implicit_inside,
    "BatchNorm": normalized, "scaled": scaled, "pruned": pruned, "chain": chain,
}  # fmt: skip


def draw_network(structure, seed, dtype=torch.float64):
    d = Draw(seed, dtype)
    return d.builder.build([STRUCTURES[structure](d)])


def model_of(network):
    return checker.rebuild(*network_arrays(network))


def exact_model(network):
    """`model_of` for `certify.exact`: BatchNorm's factors replaced by fractions within 1e-60 of them."""
    model, steps = model_of(network), []
    for step in model.steps:
        if step.relative:
            node = network.node(step.name)
            weights = network.weights(node)
            epsilon = Fraction(node.operation.epsilon)
            factors = [
                Fraction(w) / Fraction(isqrt(int((Fraction(v) + epsilon) * 4**250)), 2**250)
                for w, v in zip(weights["weight"].double().tolist(), weights["running_var"].double().tolist())
            ]
            step = checker.replace(step, matrix=np.array(factors, dtype=object), relative=0.0)
        steps.append(step)
    return checker.Model(tuple(steps))


def inexact_networks():
    """Networks that begin with Linear and BatchNorm, whose factors are then taken as known up to some error."""

    def start(d):
        return d.normalized(d.linear(d.input(2), 4))

    ends = {
        "Linear": lambda d, h: d.linear(d.linear(h, 3), 2),
        "Scale": lambda d, h: d.linear(d.add(Scale(factor=-3.0), h), 2),
        "Add": lambda d, h: d.add(Subtract(), h, d.linear(d.add(Add(), h, d.add(ReLU(), h)), 4)),
        "Concat": lambda d, h: d.linear(d.add(Concat(axis=1), h, d.add(Slice(axis=1, start=2), h)), 2),
        "ReLU": lambda d, h: d.linear(d.add(ReLU(), h), 2),
        "SiLU": lambda d, h: d.linear(d.add(SiLU(), h), 2),
        "GroupSort": lambda d, h: d.linear(d.add(GroupSort(group_size=4), h), 2),
        "Householder": lambda d, h: d.linear(d.householder(h, 2), 2),
        "Implicit": lambda d, h: d.linear(d.implicit(h, 3, activation="LeakyReLU", negative_slope=0.5), 2),
        "output": lambda d, h: h,
    }
    for name, end in ends.items():
        d = Draw(1)
        yield name, d.builder.build([end(d, start(d))])


class Program:
    """min rho subject to M(rho, lambda) >= 0, M as `certify.exact` builds it, for one norm and output."""

    def __init__(self, network, norm, output):
        self.model, self.exact, self.norm, self.output = model_of(network), exact_model(network), norm, output
        self.counts = [step.count for step in self.model.nonlinear]
        self.inputs = self.model.steps[0].width if norm == "linf" else 0
        size = 1 + self.inputs + sum(self.counts)
        self.constant = self.float_matrix(np.zeros(size))
        self.columns = [self.float_matrix(unit) - self.constant for unit in np.eye(size)]

    def proof(self, values):
        """values: rho, input multipliers, multipliers -> the fields of a proof."""
        values = [float(v) for v in values]
        lists = np.split(np.array(values[1 + self.inputs :]), np.cumsum(self.counts)[:-1])
        inputs = values[1 : 1 + self.inputs] if self.norm == "linf" else None
        return {
            "output": self.output, "rho": values[0], "input_multipliers": inputs,
            "multipliers": [part.tolist() for part in lists],
        }  # fmt: skip

    def exact_matrix(self, values):
        p = self.proof(values)
        return inequality(
            self.exact, self.norm, self.output, p["rho"], p["multipliers"], p["input_multipliers"]
        )

    def float_matrix(self, values):
        return np.array(self.exact_matrix(values), dtype=float)

    def at(self, values):
        return self.constant + sum(v * column for v, column in zip(values, self.columns))

    def holds(self, values):
        """Decide in rational arithmetic."""
        implicit = any(step.rule == "implicit" for step in self.model.steps)
        return positive_semidefinite(self.exact_matrix(values), strictly=implicit)

    def solve(self):
        """Return strictly feasible values with rho within about 1 % of the optimum, or None."""
        x = cvxpy.Variable(len(self.columns))
        matrix = self.constant + sum(x[i] * column for i, column in enumerate(self.columns))
        lowest = 1e-7 * np.ones(len(self.columns))
        inside = [(matrix + matrix.T) / 2 >> 1e-6 * np.eye(len(self.constant)), x >= lowest]
        problem = cvxpy.Problem(cvxpy.Minimize(x[0]), inside)
        try:
            problem.solve(solver="CLARABEL")
        except cvxpy.SolverError:
            return None
        if problem.status != "optimal":
            return None
        return np.maximum(x.value, lowest) * 1.01

    def boundary(self, values):
        """Return the least rho for which the rounded matrix is positive definite, others kept."""
        values = values.copy()

        def definite(rho):
            values[0] = rho
            matrix = self.at(values)
            scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
            return (np.diag(matrix) > 0).all() and np.linalg.eigvalsh(matrix * scale * scale[:, None])[0] > 0

        low, high = 0.0, float(values[0])
        while not definite(high):
            high *= 2
            if high > 1e12:
                return None
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if definite(middle) else (middle, high)
        return high
