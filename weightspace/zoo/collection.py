"""`WeightZoo`: the parameters of many networks of one architecture, with what is known about each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from weightspace.errors import ShapeError
from weightspace.network import Network
from weightspace.symmetry_spec import SymmetrySpec
from weightspace.verification import symmetry


@dataclass(frozen=True, eq=False)
class WeightZoo:
    """Many networks of one architecture.

    Attributes:
        parameters: name -> tensor of shape (networks, *shape), in the order of the template.
        template: a network of this architecture; it gives the operations, the shapes and the tensors that
            `parameters` does not name (constants). What it has for the others plays no role.
        labels: class of every network, int64, shape (networks,), or None.
        sources: what every network was made from (an image, a training run), int64, shape (networks,): networks with
            equal numbers are never parted by `split`. Default: each its own.
        measures: name -> one number for every network, shape (networks,): "psnr", "test_accuracy", ...
    Raises:
        ShapeError: tensors of another length, or not of the shape and dtype the template has.

    Examples:
        >>> import torch
        >>> from weightspace import zoo
        >>> inrs = zoo.fit_inrs(torch.rand(10, 8, 8), hidden=(8,), steps=1, progress=False)
        >>> train, test = inrs.split((0.8, 0.2), torch.Generator().manual_seed(0))
        >>> len(train), len(test), train.flat().shape
        (8, 2, torch.Size([8, 33]))
    """

    parameters: Mapping[str, Tensor]
    template: Network
    labels: Tensor | None = None
    sources: Tensor | None = None
    measures: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ShapeError("a WeightZoo needs at least one parameter; `parameters` is empty")
        known = self.template.parameters
        for name, tensor in self.parameters.items():
            if name not in known:
                raise ShapeError(f"parameter {name!r} is none of the template's: {', '.join(known)}")
            shape, dtype = tuple(known[name].shape), known[name].dtype
            if tuple(tensor.shape[1:]) != shape or not tensor.ndim or tensor.dtype != dtype:
                raise ShapeError(
                    f"parameter {name!r} of the zoo is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                    f"the template needs {dtype} of shape (networks, {', '.join(map(str, shape))})"
                )
        ordered = {name: self.parameters[name] for name in known if name in self.parameters}
        object.__setattr__(self, "parameters", MappingProxyType(ordered))
        object.__setattr__(self, "measures", MappingProxyType(dict(self.measures)))
        if self.sources is None:
            object.__setattr__(self, "sources", torch.arange(len(self), device=self.device))
        rows = {"labels": self.labels, "sources": self.sources, **self.parameters, **self.measures}
        for name, tensor in rows.items():
            if tensor is not None and (not tensor.ndim or len(tensor) != len(self)):
                raise ShapeError(
                    f"{name!r} has shape {tuple(tensor.shape)}; {len(self)} networks need that many rows"
                )

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __repr__(self) -> str:
        return f"WeightZoo({len(self):,} networks of {self.weights:,} weights, {self.template!r})"

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def weights(self) -> int:
        """Number of weights of one network."""
        return sum(math.prod(tensor.shape[1:]) for tensor in self.parameters.values())

    @property
    def spec(self) -> SymmetrySpec:
        """The permutation symmetries of the architecture, `weightspace.symmetry(template)`; derived once."""
        return _symmetry(self.template, False)

    @property
    def continuous_spec(self) -> SymmetrySpec:
        """The same with scalings and signs, `weightspace.symmetry(template, continuous=True)`; derived once."""
        return _symmetry(self.template, True)

    def network(self, index: int) -> Network:
        """Return one network, on the CPU."""
        own = {name: tensor[index].detach().cpu().clone() for name, tensor in self.parameters.items()}
        return self.template.replace_parameters(own)

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> WeightZoo:
        """Return the zoo of some of the networks; a single one is `network(index)`."""
        if isinstance(index, int):
            raise ShapeError(f"zoo[{index}] is one network: use zoo.network({index}), or a slice")
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.device)
        return replace(
            self,
            parameters={name: tensor[index] for name, tensor in self.parameters.items()},
            labels=None if self.labels is None else self.labels[index],
            sources=None if self.sources is None else self.sources[index],
            measures={name: values[index] for name, values in self.measures.items()},
        )

    def flat(self) -> Tensor:
        """Return all weights as rows, shape (networks, weights), in the order of the template."""
        return torch.cat([tensor.flatten(1) for tensor in self.parameters.values()], 1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> WeightZoo:
        """Return the zoo on another device, its parameters in another dtype."""
        return replace(
            self,
            parameters={
                name: tensor.to(device, dtype if tensor.is_floating_point() else None)
                for name, tensor in self.parameters.items()
            },
            template=self.template if dtype is None else self.template.astype(dtype),
            labels=None if self.labels is None else self.labels.to(device),
            sources=None if self.sources is None else self.sources.to(device),
            measures={name: values.to(device) for name, values in self.measures.items()},
        )

    def split(
        self, fractions: Sequence[float], generator: torch.Generator | None = None
    ) -> tuple[WeightZoo, ...]:
        """Return disjoint zoos with these fractions of the sources, drawn at random.

        All networks of a source go to the same part. Where there are labels, every part has its fraction of the
        sources of every label, up to one.

        Args:
            fractions: of the sources; what they leave of 1 is left out.
            generator: on the CPU; None is a new one with seed 0.
        Raises:
            ShapeError: fractions that are not positive, or more than 1 together.
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise ShapeError(f"fractions must be positive and at most 1 together; got {tuple(fractions)}")
        generator = generator or torch.Generator().manual_seed(0)
        assert self.sources is not None
        sources, source_of = self.sources.cpu().unique(return_inverse=True)
        label_of = torch.zeros(len(sources), dtype=torch.int64)
        if self.labels is not None:
            label_of[source_of] = self.labels.cpu()
        # Evenly spaced keys within each label: any window of the sorted keys has its share of every label.
        key = torch.empty(len(sources), dtype=torch.float64)
        for label in label_of.unique():
            members = (label_of == label).nonzero()[:, 0]
            members = members[torch.randperm(len(members), generator=generator)]
            start = torch.rand((), generator=generator, dtype=torch.float64)
            key[members] = (torch.arange(len(members)) + start) / len(members)
        ends = torch.tensor([0.0, *fractions], dtype=torch.float64).cumsum(0) * len(sources)
        ends = [min(int(end), len(sources)) for end in ends.round()]
        rank = key.argsort().argsort()[source_of]
        return tuple(self[((rank >= a) & (rank < b)).nonzero()[:, 0]] for a, b in pairwise(ends))

    def save(self, path: str | Path) -> None:
        """Write one `.safetensors` file with the architecture in its metadata; see `zoo.storage`.

        Raises:
            OutputError: the file cannot be written; nothing is left behind.
        """
        from weightspace.zoo.storage import write_zoo

        write_zoo(path, self)

    @classmethod
    def load(cls, path: str | Path) -> WeightZoo:
        """Read what `save` or `ZooWriter` wrote; the tensors of a single file are mapped, not read.

        Raises:
            CheckpointError: the file is missing, truncated, unsafe or no zoo; the message names file and reason.
        """
        from weightspace.zoo.storage import read_zoo

        return read_zoo(path)


def concatenate_zoos(zoos: Sequence[WeightZoo]) -> WeightZoo:
    """Return one zoo of the networks of several, one after the other.

    Labels and measures that one of them lacks are left out; sources keep their numbers.
    Raises:
        ShapeError: no zoo, or zoos of different architectures or constants.
    """
    if not zoos:
        raise ShapeError("concatenate_zoos needs at least one zoo; got none")
    first = zoos[0]
    constants = first.template.parameters.keys() - first.parameters.keys()
    for zoo in zoos[1:]:
        same = list(zoo.parameters) == list(first.parameters) and zoo.template.nodes == first.template.nodes
        own = zoo.template.parameters
        if not same or not all(torch.equal(first.template.parameters[name], own[name]) for name in constants):
            raise ShapeError(
                f"zoos of different architectures or constants: {first.template!r} and {zoo.template!r}"
            )
    labels = [zoo.labels for zoo in zoos if zoo.labels is not None]
    shared = [name for name in first.measures if all(name in zoo.measures for zoo in zoos)]
    return WeightZoo(
        {name: torch.cat([zoo.parameters[name] for zoo in zoos]) for name in first.parameters},
        first.template,
        torch.cat(labels) if len(labels) == len(zoos) else None,
        torch.cat([zoo.sources for zoo in zoos if zoo.sources is not None]),
        {name: torch.cat([zoo.measures[name] for zoo in zoos]) for name in shared},
    )


@lru_cache(maxsize=8)
def _symmetry(template: Network, continuous: bool) -> SymmetrySpec:
    return symmetry(template, continuous=continuous)
