"""Laws of zoos: what they hold, how they are split, saved and streamed, and that INRs show their images."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import weightspace
from weightspace.checkpoint import open_checkpoint, write_safetensors
from weightspace.errors import CheckpointError, NonFiniteError, OutputError, ShapeError
from weightspace.zoo import (
    Siren,
    WeightZoo,
    ZooWriter,
    concatenate_zoos,
    fit_inrs,
    pixel_grid,
    render_inrs,
    stream_zoo,
)

DTYPES = [torch.float32, torch.float64]


def images(count: int, height: int = 6, width: int = 5, channels: int | None = None) -> torch.Tensor:
    shape = (count, height, width) if channels is None else (count, channels, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def equal(a: WeightZoo, b: WeightZoo) -> bool:
    return (
        torch.equal(a.flat(), b.flat())
        and list(a.parameters) == list(b.parameters)
        and torch.equal(a.sources, b.sources)
        and (a.labels is None) == (b.labels is None)
        and (a.labels is None or torch.equal(a.labels, b.labels))
        and a.measures.keys() == b.measures.keys()
        and all(torch.equal(a.measures[name], b.measures[name]) for name in a.measures)
    )


@pytest.fixture(scope="module")
def zoo() -> WeightZoo:
    labels = torch.arange(20) % 3
    return fit_inrs(images(20), hidden=(8, 8), steps=3, initializations=2, labels=labels, progress=False)


# ---- implicit representations ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [None, 3])
def test_a_fitted_network_run_on_the_grid_shows_its_image(dtype, channels):
    pictures = images(4, channels=channels)
    zoo = fit_inrs(pictures, hidden=(24, 24), steps=400, dtype=dtype, progress=False)
    assert zoo.flat().dtype == dtype
    shown = render_inrs(zoo, (6, 5))
    assert shown.shape == pictures.shape
    for index in range(4):
        values = zoo.network(index).to_module()(pixel_grid((6, 5), dtype))
        torch.testing.assert_close(values.mT.reshape(pictures[0].shape), shown[index], atol=2e-5, rtol=0)
        error = (shown[index] - pictures[index]).square().mean()
        assert error < 1e-4
        torch.testing.assert_close(-10 * error.log10(), zoo.measures["psnr"][index], atol=0.1, rtol=0)


def test_gradients_written_out_are_those_of_autograd():
    """One step of plain descent from the same start, by Adam's first step: the sign of the gradient."""
    zoo, start = (
        fit_inrs(
            images(3), hidden=(7, 5), steps=steps, learning_rate=1e-6, dtype=torch.float64, progress=False
        )
        for steps in (1, 0)
    )
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in start.parameters.items()}
    (render_inrs(parameters, (6, 5)) - images(3)).square().mean((1, 2)).sum().backward()
    for name, tensor in parameters.items():
        gradient = tensor.grad
        moved = (zoo.parameters[name] - tensor.detach()) / -1e-6
        torch.testing.assert_close(moved, gradient / (gradient.abs() + 1e-8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_batch_size_changes_nothing(dtype):
    options = {"hidden": (8, 6), "steps": 5, "dtype": dtype, "initializations": 2, "progress": False}
    whole, parts = (fit_inrs(images(5), batch=batch, **options) for batch in (100, 3))
    torch.testing.assert_close(
        whole.flat(), parts.flat(), atol=1e-5 if dtype == torch.float32 else 1e-13, rtol=0
    )
    assert whole.sources.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_initial_weights_are_independent_unless_shared():
    options = {"hidden": (8, 8), "steps": 0, "initializations": 2, "progress": False}
    apart, shared = (fit_inrs(images(3), shared_initialization=s, **options) for s in (False, True))
    assert len(apart.flat().unique(dim=0)) == 6
    assert len(shared.flat().unique(dim=0)) == 1
    other = fit_inrs(images(3), generator=torch.Generator().manual_seed(1), **options)
    assert not torch.equal(apart.flat(), other.flat())


def test_initial_weights_have_the_bounds_of_a_siren():
    drawn = fit_inrs(images(200), hidden=(16, 16), steps=0, progress=False)
    module = Siren(2, (400, 400), 1, generator=torch.Generator().manual_seed(0))
    for name, bound in (("layers.0.weight", 1 / 2), ("layers.1.weight", (6 / 16) ** 0.5 / 30)):
        largest = float(drawn.parameters[name].abs().max())
        assert 0.99 * bound < largest <= bound
    assert float(module.layers[1].weight.detach().abs().max()) <= (6 / 400) ** 0.5 / 30


def test_the_template_has_one_group_and_one_sign_per_hidden_layer(zoo):
    assert [group.size for group in zoo.spec.groups] == [8, 8]
    assert {group.kind for group in zoo.continuous_spec.continuous} == {"sign"}
    assert len(zoo.continuous_spec.continuous) == 2


def test_rendering_at_another_size_and_frequency():
    zoo = fit_inrs(images(2), hidden=(8, 8), omega=10.0, steps=2, progress=False)
    shown = render_inrs(zoo, (9, 4))
    torch.testing.assert_close(shown, render_inrs(zoo.parameters, (9, 4), omega=10.0))
    values = zoo.network(1).to_module()(pixel_grid((9, 4))).reshape(9, 4)
    torch.testing.assert_close(values, shown[1], atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_fitted_on_a_gpu_are_those_of_the_cpu():
    options = {"hidden": (8, 8), "steps": 5, "dtype": torch.float64, "progress": False}
    cpu, gpu = (fit_inrs(images(4), device=device, **options) for device in ("cpu", "cuda"))
    assert gpu.device.type == "cuda"
    torch.testing.assert_close(gpu.flat().cpu(), cpu.flat(), atol=1e-10, rtol=0)
    assert gpu.network(1).to_module()(pixel_grid((6, 5), torch.float64)).shape == (30, 1)


def test_divergence_and_wrong_shapes_are_refused():
    with pytest.raises(NonFiniteError, match="image 0; lower learning_rate"):
        fit_inrs(torch.full((2, 4, 4), torch.nan), hidden=(4, 4), steps=2, progress=False)
    with pytest.raises(ShapeError, match=r"\(4, 4\)"):
        fit_inrs(torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="3 labels"):
        fit_inrs(images(2), labels=torch.arange(3))


# ---- the collection --------------------------------------------------------------------------------------


def test_rows_follow_the_index(zoo):
    index = torch.tensor([5, 1, 30])
    part = zoo[index]
    assert len(part) == 3
    assert torch.equal(part.flat(), zoo.flat()[index])
    assert part.labels.tolist() == zoo.labels[index].tolist()
    assert part.network(2) == zoo.network(30)
    assert equal(zoo[4:9], zoo[[4, 5, 6, 7, 8]])
    assert equal(zoo[zoo.labels == 1], zoo[(zoo.labels == 1).nonzero()[:, 0]])
    assert part.spec is zoo.spec
    with pytest.raises(ShapeError, match=r"zoo\.network\(3\)"):
        zoo[3]


def test_template_order_dtype_and_lengths(zoo):
    reordered = WeightZoo(dict(reversed(zoo.parameters.items())), zoo.template)
    assert torch.equal(reordered.flat(), zoo.flat())
    assert zoo.flat().shape == (40, zoo.weights)
    assert zoo.template == zoo.network(0)
    wide = zoo.to(dtype=torch.float64)
    assert wide.flat().dtype == torch.float64
    assert wide.network(1).to_module()(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ShapeError, match="'labels' has shape"):
        WeightZoo(zoo.parameters, zoo.template, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"'layers\.9\.bias'"):
        WeightZoo({"layers.9.bias": torch.zeros(2, 3)}, zoo.template)
    with pytest.raises(ShapeError, match=r"needs torch\.float32"):
        WeightZoo({name: t.double() for name, t in zoo.parameters.items()}, zoo.template)


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.5, 0.5), (0.3, 0.3), (1.0,)])
def test_split_parts_no_source_and_keeps_the_labels_balanced(zoo, fractions):
    parts = zoo.split(fractions, torch.Generator().manual_seed(3))
    sources = [set(part.sources.tolist()) for part in parts]
    for number, fraction in enumerate(fractions):
        assert len(sources[number]) == round(20 * fraction)
        assert len(parts[number]) == 2 * len(sources[number])
        for other in sources[:number]:
            assert not sources[number] & other
        for label in range(3):
            total = len(zoo[zoo.labels == label].sources.unique())
            share = len(parts[number][parts[number].labels == label].sources.unique())
            assert abs(share - fraction * total) < 1.5
    if sum(fractions) == 1:
        assert sum(map(len, parts)) == len(zoo)
    assert all(equal(a, b) for a, b in zip(parts, zoo.split(fractions, torch.Generator().manual_seed(3))))


@pytest.mark.parametrize("fractions", [(), (0.8, 0.3), (1.2, -0.2)])
def test_impossible_splits_are_refused(zoo, fractions):
    with pytest.raises(ShapeError, match="fractions"):
        zoo.split(fractions)


def test_concatenation(zoo):
    assert equal(concatenate_zoos([zoo[:7], zoo[7:]]), zoo)
    other = fit_inrs(images(2), hidden=(8, 9), steps=0, progress=False)
    with pytest.raises(ShapeError, match="different architectures"):
        concatenate_zoos([zoo, other])


# ---- storage ---------------------------------------------------------------------------------------------


class Normalized(nn.Module):
    """A module with a buffer and a constant."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        self.register_buffer("mask", torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return self.layers(x) * self.mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_zoo_is_read_back(zoo, tmp_path, dtype):
    zoo = zoo.to(dtype=dtype)
    zoo.save(tmp_path / "zoo.safetensors")
    back = WeightZoo.load(tmp_path / "zoo.safetensors")
    assert equal(zoo, back)
    assert back.template.to_json() == zoo.template.to_json()
    assert all(back.network(i) == zoo.network(i) for i in (0, 39))


def test_constants_of_the_template_are_kept(tmp_path):
    network = weightspace.trace(Normalized().eval(), torch.zeros(3, 3))
    names = [name for name in network.parameters if name != "mask"]
    zoo = WeightZoo({name: torch.stack([network.parameters[name]] * 3) for name in names}, network)
    other = WeightZoo(zoo.parameters, network.replace_parameters({"mask": torch.tensor([1.0, 3.0])}))
    with pytest.raises(ShapeError, match="architectures or constants"):
        concatenate_zoos([zoo, other])
    zoo.save(tmp_path / "zoo.safetensors")
    assert WeightZoo.load(tmp_path / "zoo.safetensors").network(2) == network


@pytest.mark.parametrize("shard_size", [1, 7, 40, 100])
def test_shards_hold_what_was_appended(zoo, tmp_path, shard_size):
    path = tmp_path / "zoo.json"
    with ZooWriter(path, shard_size) as writer:
        for start in (0, 3, 20):
            writer.append(zoo[start : {0: 3, 3: 20, 20: 40}[start]])
    assert len(writer) == 40
    assert equal(WeightZoo.load(path), zoo)
    batches = list(stream_zoo(path, 6))
    assert equal(concatenate_zoos(batches), zoo)
    shuffled = list(stream_zoo(path, 6, torch.Generator().manual_seed(1)))
    assert max(map(len, shuffled)) <= 6
    rows = concatenate_zoos(shuffled).flat()
    assert not torch.equal(rows, zoo.flat())
    assert torch.equal(rows.sort(0).values, zoo.flat().sort(0).values)


def test_an_interrupted_writer_leaves_whole_shards_and_goes_on(zoo, tmp_path):
    path = tmp_path / "zoo.json"

    def interrupted():
        with ZooWriter(path, 10) as writer:
            writer.append(zoo[:25])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert equal(WeightZoo.load(path), zoo[:20])
    with ZooWriter(path, 10) as writer:
        assert len(writer) == 20
        writer.append(zoo[len(writer) :])
    assert equal(WeightZoo.load(path), zoo)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"zoo-{number:05d}.safetensors" for number in range(4)),
        "zoo.json",
    ]
    other = fit_inrs(images(2), hidden=(8, 9), steps=0, progress=False)
    with ZooWriter(path) as writer, pytest.raises(ShapeError, match="different architectures"):
        writer.append(other)


def test_a_single_file_is_streamed_too(zoo, tmp_path):
    zoo.save(tmp_path / "zoo.safetensors")
    assert equal(concatenate_zoos(list(stream_zoo(tmp_path / "zoo.safetensors", 9))), zoo)
    with pytest.raises(ShapeError, match="batch_size is 0"):
        next(stream_zoo(tmp_path / "zoo.safetensors", 0))


def test_broken_files_end_in_one_error(zoo, tmp_path):
    path = tmp_path / "zoo.safetensors"
    zoo.save(path)
    data = path.read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"zoo\.safetensors"):
            WeightZoo.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        WeightZoo.load(tmp_path / "missing.safetensors")


def test_files_that_contradict_themselves_are_refused(zoo, tmp_path):
    path = tmp_path / "zoo.safetensors"
    zoo.save(path)
    checkpoint = open_checkpoint(path)
    tensors, metadata = {n: t.clone() for n, t in checkpoint.state_dict().items()}, dict(checkpoint.metadata)
    description = json.loads(metadata["weightspace.zoo"])
    attacks = [
        (tensors, {}),
        (tensors, {"weightspace.zoo": "[" * 5000}),
        (tensors, {"weightspace.zoo": json.dumps({**description, "version": 99})}),
        (tensors, {"weightspace.zoo": json.dumps({**description, "architecture": "{}"})}),
        ({**tensors, "labels": torch.zeros(3, dtype=torch.int64)}, metadata),
        ({name: t for name, t in tensors.items() if name != "sources"}, metadata),
        ({name: t for name, t in tensors.items() if name != "parameter:layers.0.bias"}, metadata),
        ({**tensors, "parameter:layers.0.bias": torch.zeros(40, 9)}, metadata),
        ({**tensors, "parameter:layers.0.bias": torch.tensor(0.0)}, metadata),
        ({**tensors, "surprise:x": torch.zeros(40)}, metadata),
    ]
    for number, (content, text) in enumerate(attacks):
        broken = tmp_path / f"broken{number}.safetensors"
        write_safetensors(broken, content, text)
        with pytest.raises(CheckpointError, match=f"broken{number}"):
            WeightZoo.load(broken)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "weightspace.zoo", "version": 1, "shards": ["../../x"]}', "[" * 9999]
)
def test_broken_indices_are_refused(tmp_path, text):
    path = tmp_path / "zoo.json"
    path.write_text(text)
    for read in (WeightZoo.load, ZooWriter, lambda path: list(stream_zoo(path, 2))):
        with pytest.raises(CheckpointError, match=r"zoo\.json"):
            read(path)


def test_a_missing_or_exchanged_shard_is_named(zoo, tmp_path):
    path = tmp_path / "zoo.json"
    with ZooWriter(path, 30) as writer:
        writer.append(zoo)
    zoo.save(tmp_path / "zoo-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"zoo-00001.*holds 40 networks, the index says 10"):
        WeightZoo.load(path)
    (tmp_path / "zoo-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="zoo-00001"):
        list(stream_zoo(path, 8))
    with pytest.raises(OutputError, match=r"ends in \.json"):
        ZooWriter(tmp_path / "zoo")
