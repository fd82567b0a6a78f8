import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.autoencoders.autoencoder import Autoencoder, AutoencoderLoss
from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.input_scaling import InputScaling
from interp.autoencoders.loss_recovered import measure_loss_recovered
from interp.autoencoders.metrics import Metrics, average_max_cosine, evaluate
from interp.autoencoders.operator_autoencoder import OperatorAutoencoder
from interp.autoencoders.recording import activations
from interp.autoencoders.sources import ActivationSource
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.errors import ArchitectureError, NonFiniteError, ShapeError

DTYPES = [torch.float32, torch.float64]
ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-12}


class Threshold(Autoencoder):
    """relu(xE - threshold)D + offset: the plainest autoencoder with dead latents and an offset to see."""

    def __init__(self, encoder: Tensor, decoder: Tensor, *, threshold: float = 0.3, offset: float = 0.0):
        super().__init__()
        self.sample_shape, self.latents = encoder.shape[:1], encoder.shape[1]
        self.scaling = InputScaling("none", tuple(self.sample_shape), dtype=encoder.dtype)
        self.encoder, self.decoder = nn.Parameter(encoder), nn.Parameter(decoder)
        self.threshold, self.offset = threshold, offset

    def encode_scaled(self, x: Tensor) -> Tensor:
        return (x @ self.encoder - self.threshold).relu()

    def decode_scaled(self, codes: Tensor) -> Tensor:
        return codes @ self.decoder + self.offset

    def loss(self, x: Tensor, target: Tensor | None = None, *, progress: float = 1.0) -> AutoencoderLoss:
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        return {}

    def decoder_cosines(self, rows: slice = slice(None), other: Autoencoder | None = None) -> Tensor:
        second = self if other is None else other
        assert isinstance(second, Threshold)
        return nn.functional.normalize(self.decoder[rows]) @ nn.functional.normalize(second.decoder).mT

    def encoder_cosines(self, rows: slice = slice(None)) -> Tensor:
        columns = nn.functional.normalize(self.encoder.mT)
        return columns[rows] @ columns.mT


class Stream(ActivationSource):
    """A source with batches of uneven sizes."""

    def __init__(self, *parts: tuple[Tensor, ...]):
        self.parts = parts

    def pieces(self, epoch: int, seed: int) -> Iterator[Callable[[], tuple[Tensor, ...]]]:
        raise NotImplementedError

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        yield from self.parts


def example(
    dtype: torch.dtype, *, d: int = 6, latents: int = 10, n: int = 203, **options: float
) -> tuple[Threshold, Tensor]:
    generator = torch.Generator().manual_seed(3)
    encoder, decoder, x = (
        torch.randn(shape, generator=generator, dtype=dtype) for shape in ((d, latents), (latents, d), (n, d))
    )
    return Threshold(encoder / d**0.5, decoder / latents**0.5, **options), x + 0.7


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_formulas_on_materialized_data(dtype: torch.dtype) -> None:
    autoencoder, x = example(dtype)
    with torch.no_grad():
        codes = autoencoder.encode(x).double()
        y, x64 = autoencoder(x).double(), x.double()
    error = (x64 - y).square().sum(1)
    spread = (x64 - x64.mean(0)).square().sum(1)
    density = (codes != 0).double().mean(0)
    expected = {
        "samples": len(x),
        "l0": (codes != 0).sum(1).double().mean(),
        "l1": codes.abs().sum(1).mean(),
        "mse": error.mean(),
        "fvu": error.sum() / spread.sum(),
        "explained_variance": 1 - error.sum() / spread.sum(),
        "explained_variance_legacy": (1 - error / spread).mean(),
        "cossim": nn.functional.cosine_similarity(x64, y).mean(),
        "l2_ratio": (y.norm(dim=1) / x64.norm(dim=1)).mean(),
        "relative_reconstruction_bias": y.square().sum(1).mean() / (x64 * y).sum(1).mean(),
        "frac_alive": (density > 0).double().mean(),
        "freq_over_1_percent": (density > 0.01).double().mean(),
        "freq_over_10_percent": (density > 0.1).double().mean(),
    }
    for name, directions in (("encoder", autoencoder.encoder.mT), ("decoder", autoencoder.decoder)):
        cosines = nn.functional.cosine_similarity(directions[:, None], directions[None], dim=2)
        largest = [max(row[j] for j in range(len(row)) if j != i) for i, row in enumerate(cosines.tolist())]
        expected[f"average_max_{name}_cosine_sim"] = sum(largest) / len(largest)
    found = evaluate(autoencoder, x)
    assert found.summary().keys() == expected.keys()
    for name, value in expected.items():
        assert found.summary()[name] == pytest.approx(float(value), rel=ACCURACY[dtype]), name
    torch.testing.assert_close(found.densities, density)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_streaming_equals_one_pass(dtype: torch.dtype, size: int) -> None:
    autoencoder, x = example(dtype)
    whole = evaluate(autoencoder, x).summary()
    for part in (
        evaluate(autoencoder, x, batch_size=size),
        evaluate(autoencoder, Stream(*zip(x.split(size)))),
    ):
        found = part.summary()
        for name in whole.keys() - {
            "explained_variance_legacy"
        }:  # the mean of its batch is part of its definition
            assert found[name] == pytest.approx(whole[name], rel=ACCURACY[dtype]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 1e4])
def test_scale_changes_only_what_has_units(dtype: torch.dtype, scale: float) -> None:
    autoencoder, x = example(dtype, offset=0.2)
    scaled = Threshold(
        autoencoder.encoder.data,
        autoencoder.decoder.data,
        threshold=autoencoder.threshold * scale,
        offset=autoencoder.offset * scale,
    )
    before, after = evaluate(autoencoder, x).summary(), evaluate(scaled, x * scale).summary()
    for name, value in before.items():
        power = {"mse": scale**2, "l1": scale}.get(name, 1.0)
        assert after[name] == pytest.approx(value * power, rel=30 * ACCURACY[dtype]), name


def test_the_perfect_reconstruction_but_for_an_offset_is_seen() -> None:
    """An error centered before it is squared would call this perfect."""
    identity = torch.eye(4, dtype=torch.float64)
    x = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()
    exact = evaluate(Threshold(identity, identity, threshold=0.0), x)
    assert exact.fvu < 1e-28
    assert exact.relative_reconstruction_bias == pytest.approx(1)
    shifted = evaluate(Threshold(identity, identity, threshold=0.0, offset=1.0), x)
    variance = (x - x.mean(0)).square().sum(1).mean()
    assert shifted.fvu == pytest.approx(float(4 / variance))
    assert shifted.explained_variance == pytest.approx(1 - float(4 / variance))


def test_a_far_mean_does_not_drown_the_variance() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    x = 1e4 + torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = evaluate(Threshold(identity, identity, threshold=0.0, offset=1.0), x)
    assert found.fvu == pytest.approx(float(4 / (x - x.mean(0)).square().sum(1).mean()), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sparse", "transcoder", "bilinear", "biased", "operator"])
def test_every_kind_in_the_space_of_its_loss(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 6, dtype=dtype, generator=generator), None
    if kind == "sparse":
        autoencoder = SparseAutoencoder(6, 10, TopK(3), scaling="standard", dtype=dtype)
        autoencoder.prepare(x)
    elif kind == "transcoder":
        autoencoder, y = SparseAutoencoder(6, 10, TopK(3), output_features=4, dtype=dtype), x[:, :4].square()
    elif kind == "operator":
        autoencoder, x = (
            OperatorAutoencoder(2, 5, modes=3, dtype=dtype),
            x[:, :, None].expand(-1, -1, 8).reshape(-1, 2, 24),
        )
        x = x + torch.randn(x.shape, dtype=dtype, generator=generator)
    else:
        autoencoder = BilinearAutoencoder(6, 10, bias=kind == "biased", dtype=dtype)
    with torch.no_grad():
        codes, found = autoencoder.encode(x).double(), autoencoder(x).double()
        wanted = (x if y is None else y).double()
        if isinstance(autoencoder, BilinearAutoencoder):
            padded = autoencoder._padded(autoencoder.scaling.apply(wanted)[0])
            wanted = padded[:, :, None] * padded[:, None, :]
    points = x.shape[2] if kind == "operator" else 1
    error = (wanted - found).square().sum() / points
    result = evaluate(autoencoder, x, targets=y, batch_size=16)
    assert result.mse == pytest.approx(float(error / len(x)), rel=ACCURACY[dtype])
    spread = (wanted - wanted.mean(0)).square().sum() / points
    assert result.fvu == pytest.approx(float(error / spread), rel=ACCURACY[dtype])
    assert result.l0 == pytest.approx(float((codes != 0).sum() / points / len(x)))
    assert result.l1 == pytest.approx(float(codes.abs().sum() / points / len(x)), rel=ACCURACY[dtype])
    whole = evaluate(autoencoder, x, targets=y).explained_variance_legacy
    if kind in ("bilinear", "biased"):
        assert whole is None
    else:
        shares = (wanted - found).square().flatten(1).sum(1) / (wanted - wanted.mean(0)).square().flatten(
            1
        ).sum(1)
        assert whole == pytest.approx(float(1 - shares.mean()), rel=ACCURACY[dtype])


def test_dead_latents_and_rare_ones() -> None:
    encoder = torch.eye(4)
    x = torch.zeros(1000, 4)
    x[:, 0] = 1.0
    x[:50, 1] = 1.0
    x[:1, 2] = 1.0
    found = evaluate(Threshold(encoder, encoder, threshold=0.5), x)
    assert found.densities.tolist() == [1.0, 0.05, 0.001, 0.0]
    assert (found.frac_alive, found.freq_over_1_percent, found.freq_over_10_percent) == (0.75, 0.5, 0.25)
    assert int(found.histogram.sum()) == 3
    occupied = found.histogram.nonzero().flatten()
    lower, upper = found.histogram_edges[occupied], found.histogram_edges[occupied + 1]
    for exponent, low, high in zip([-3.0, math.log10(0.05), 0.0], lower, upper):
        assert float(low) - 1e-9 <= exponent <= float(high) + 1e-9


@pytest.mark.parametrize("latents", [1, 2, 5])
def test_cosines_in_blocks(latents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    directions = nn.functional.normalize(torch.randn(latents, 3, dtype=torch.float64))
    gram = directions @ directions.mT
    whole = average_max_cosine(lambda rows: gram[rows], latents)
    monkeypatch.setattr("interp.autoencoders.metrics.COSINES_AT_A_TIME", 2 * latents)
    parts = average_max_cosine(lambda rows: gram[rows], latents)
    if latents == 1:
        assert math.isnan(whole)
        assert math.isnan(parts)
    else:
        assert parts == pytest.approx(whole, rel=1e-12)
        assert whole < 1 - 1e-9  # no feature is compared with itself
    torch.testing.assert_close(gram.diagonal(), torch.ones(latents, dtype=torch.float64))


def test_results_without_a_value_are_written_as_null() -> None:
    found = evaluate(Threshold(torch.ones(3, 1), torch.ones(1, 3)), torch.ones(5, 3))
    assert math.isnan(found.fvu)
    assert math.isnan(found.average_max_decoder_cosine_sim)
    data = json.loads(found.to_json())
    assert data["fvu"] is None
    assert data["samples"] == 5
    assert len(data["histogram_edges"]) == len(data["histogram"]) + 1
    arrays = {"densities", "histogram", "histogram_edges"}
    assert arrays | found.summary().keys() == data.keys()
    assert {field.name for field in fields(Metrics)} - data.keys() == {"loss_recovered"}
    assert "<td>nan</td>" in found._repr_html_()
    assert "fvu nan" in repr(found)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_activations_are_named(bad: float) -> None:
    autoencoder, x = example(torch.float32)
    x[130, 2] = bad
    for source in (x, Stream(*zip(x.split(64)))):
        with pytest.raises(
            NonFiniteError, match="activations have NaN or infinite entries, first in sample 130"
        ):
            evaluate(autoencoder, source, batch_size=64)


def test_refusals() -> None:
    autoencoder, x = example(torch.float32)
    with pytest.raises(ShapeError, match="n >= 1"):
        evaluate(autoencoder, x[:0])
    with pytest.raises(ShapeError, match="no activations"):
        evaluate(autoencoder, Stream())
    with pytest.raises(ShapeError, match="samples of shape"):
        evaluate(autoencoder, x[:, :4])
    with pytest.raises(ShapeError, match="203 activations and 5 targets"):
        evaluate(autoencoder, x, targets=x[:5])
    with pytest.raises(ShapeError, match="brings its own"):
        evaluate(autoencoder, Stream((x,)), targets=x)
    with pytest.raises(ShapeError, match="hook"):
        evaluate(autoencoder, x, model=nn.Linear(2, 2))
    with pytest.raises(NonFiniteError, match="weights are broken"):
        evaluate(Threshold(torch.full((6, 2), math.nan), torch.ones(2, 6)), x)


def test_targets_are_what_is_compared_and_modes_come_back() -> None:
    autoencoder, x = example(torch.float64)
    autoencoder.train()
    y = x.flip(1)
    by_tensor, by_source = (
        evaluate(autoencoder, x, targets=y).summary(),
        evaluate(autoencoder, Stream((x, y))).summary(),
    )
    assert by_tensor == by_source
    with torch.no_grad():
        error = (y - autoencoder(x)).square().sum()
    assert by_tensor["fvu"] == pytest.approx(float(error / (y - y.mean(0)).square().sum()))
    assert autoencoder.training


# ---- loss recovered ------------------------------------------------------------------------------------------


def language_like_model() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4)).double()
    inputs = torch.randn(3, 8, 7, 5, dtype=torch.float64)  # batches, sequences, positions
    labels = torch.randint(4, (3, 8, 7))
    labels[0, 0] = -100
    return model, list(zip(inputs, labels))


def cross_entropy(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], change: Callable[[Tensor], Tensor]
) -> float:
    handle = model[1].register_forward_hook(lambda module, arguments, output: change(output))
    with torch.no_grad():
        logits = torch.cat([model.eval()(x).flatten(0, 1) for x, _ in data])
    handle.remove()
    return float(nn.functional.cross_entropy(logits, torch.cat([y.flatten() for _, y in data])))


def test_loss_recovered_agrees_with_losses_by_hand() -> None:
    model, data = language_like_model()
    autoencoder, _ = example(torch.float64)
    model.train()
    found = measure_loss_recovered(autoencoder, model, data, hook="1")
    assert model.training
    assert model[2].training
    hidden = torch.cat([model[1](model[0](x)) for x, _ in data]).flatten(0, 1)
    expected = [
        cross_entropy(model, data, change)
        for change in (
            lambda y: y,
            lambda y: autoencoder(y.flatten(0, 1)).view_as(y),
            torch.zeros_like,
            lambda y: hidden.mean(0).expand_as(y),
        )
    ]
    losses = [found.ce_clean, found.ce_reconstructed, found.ce_zero, found.ce_mean]
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    clean, reconstructed, zero, mean = expected
    assert found.ce_loss_score == pytest.approx((zero - reconstructed) / (zero - clean))
    assert found.ce_loss_score_mean_ablation == pytest.approx((mean - reconstructed) / (mean - clean))
    by_own_loss = measure_loss_recovered(
        autoencoder,
        model,
        [(x, y.clamp(0)) for x, y in data],
        hook="1",
        loss=lambda output, labels: nn.functional.mse_loss(output[..., 0], labels.double()),
    )
    assert by_own_loss.kl_div_score is None


def test_exact_and_zero_reconstructions_score_one_and_zero() -> None:
    model, data = language_like_model()
    eye = torch.eye(6, dtype=torch.float64)
    exact = Threshold(torch.cat([eye, -eye], 1), torch.cat([eye, -eye]), threshold=0.0)
    hidden = torch.cat([model[1](model[0](x)).detach() for x, _ in data]).flatten(0, 1)
    found = evaluate(exact, hidden, model=model, hook="1", loader=data)
    assert found.ce_loss_score == pytest.approx(1)
    assert found.kl_div_score == pytest.approx(1)
    assert json.loads(found.to_json())["ce_zero"] == pytest.approx(found.loss_recovered.ce_zero)
    nothing = measure_loss_recovered(Threshold(0 * eye, eye), model, data, hook="1")
    assert nothing.ce_loss_score == pytest.approx(0)
    assert nothing.kl_div_score == pytest.approx(0)


def test_a_transcoder_reads_the_input_of_the_module() -> None:
    model, data = language_like_model()
    with torch.no_grad():
        model[0].bias.zero_()
    eye = torch.eye(5, dtype=torch.float64)
    weight = model[0].weight.detach().mT
    transcoder = Threshold(torch.cat([eye, -eye], 1), torch.cat([weight, -weight]), threshold=0.0)
    found = measure_loss_recovered(transcoder, model, data, hook="0", transcodes=True)
    assert found.ce_loss_score == pytest.approx(1)

    class ByKeyword(nn.Module):
        """The same network, its first module called by keyword."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rest = model[0], model[1:]

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.inner(input=x))

    again = measure_loss_recovered(transcoder, ByKeyword(), data, hook="inner", transcodes=True)
    assert again == found
    eye_only = Threshold(torch.cat([eye, -eye], 1), torch.cat([eye, -eye]), threshold=0.0)
    inputs = measure_loss_recovered(eye_only, ByKeyword(), data, hook="inner:input")
    assert inputs.ce_loss_score == pytest.approx(1)


def test_places_are_those_that_activations_records() -> None:
    """Of a convolution, by its axis of features, and of the input of a module."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)).double()
    data = [(torch.randn(5, 2, 5, 5, dtype=torch.float64), torch.randint(4, (5,))) for _ in range(3)]
    eye = torch.eye(6, dtype=torch.float64)
    lossy, exact = (
        Threshold(eye, eye),
        Threshold(torch.cat([eye, -eye], 1), torch.cat([eye, -eye]), threshold=0.0),
    )
    for place, same in (("1", "2:input"), ("0", "1:input")):
        source = activations(model, place, data, axis=1)
        found = evaluate(lossy, source, model=model, hook=place, loader=data, axis=1)
        assert found.samples == 3 * 5 * 9
        assert 0 < found.loss_recovered.ce_loss_score < 1
        assert measure_loss_recovered(lossy, model, data, hook=same, axis=1) == found.loss_recovered
        assert measure_loss_recovered(exact, model, data, hook=place, axis=1).ce_loss_score == pytest.approx(
            1
        )


def test_refusals_of_models() -> None:
    model, data = language_like_model()
    autoencoder, _ = example(torch.float64)
    with pytest.raises(ArchitectureError, match=r"no module 'blocks.3'.* 0, 1, 2, 3"):
        measure_loss_recovered(autoencoder, model, data, hook="blocks.3")
    with pytest.raises(ShapeError, match=r"takes samples of shape \(6,\); at '3' they are \(4,\)"):
        measure_loss_recovered(autoencoder, model, data, hook="3")
    with pytest.raises(ShapeError, match="read once"):
        measure_loss_recovered(autoencoder, model, iter(data), hook="1")
    with pytest.raises(ShapeError, match="empty"):
        measure_loss_recovered(autoencoder, model, [], hook="1")
    with pytest.raises(ShapeError, match="loss of your own"):
        measure_loss_recovered(autoencoder, model, [(data[0][0], data[0][1][0])], hook="1")
    twice = nn.Sequential(nn.Linear(5, 6), shared := nn.Tanh(), shared, nn.Linear(6, 4)).double()
    with pytest.raises(ArchitectureError, match="2 times"):
        measure_loss_recovered(autoencoder, twice, data, hook="1")
    with torch.no_grad():
        model[3].bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="as it is"):
        measure_loss_recovered(autoencoder, model, data, hook="1")
