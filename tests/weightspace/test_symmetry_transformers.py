"""Architectures of the transformers library, tiny and random: every derived group leaves the model's function alone.

The model itself is run with the moved parameters, not the traced description. The whole table, with what is frozen
and why, comes from benchmarks/architectures.py.
"""

import pytest
import torch

from weightspace.permutation import identity, permute, random_permutations
from weightspace.tracing import trace
from weightspace.verification import symmetry

pytest.importorskip("transformers")
from tests.weightspace.transformers_architectures import TRANSFORMERS

TESTED = [  # one or two of every kind of block; all of them in benchmarks/architectures.py
    "albert", "bart", "bert", "bit", "bloom", "clip vision", "convnext", "ctrl", "falcon", "gemma2", "gpt-2",
    "gpt-j", "gpt-neox", "granite", "llama", "mamba", "mixtral", "phi", "qwen3", "regnet", "segformer", "swin", "t5",
    "wav2vec2", "whisper",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TESTED)
def test_moved_parameters_leave_the_function_alone(name):
    architecture = TRANSFORMERS[name]
    module, inputs = architecture.module(), architecture.inputs()
    with torch.no_grad():
        for tensor in [
            *module.parameters(),
            *module.buffers(),
        ]:  # biases of 0 and statistics of 1 hide errors
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor))
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    network = trace(module, inputs)
    spec = symmetry(network)
    assert spec.groups, spec
    assert not any("changes the function" in entry.reason for entry in spec.frozen), spec
    generator = torch.Generator().manual_seed(0)
    elements = random_permutations(spec, generator)
    rest = identity(spec)
    elements = {k: e if not torch.equal(e, rest[k]) else e.roll(1, -1) for k, e in elements.items()}
    moved = permute(network, spec, elements).state_dict()
    state = module.state_dict()
    with torch.no_grad():
        before = module(*inputs)
        touched = 0
        for key, tensor in moved.items():
            if key in state:
                touched += not torch.equal(state[key], tensor)
                state[key].copy_(tensor)
        after = module(*inputs)
    assert touched
    assert float((before - after).abs().max() / before.abs().max()) < 1e-4
