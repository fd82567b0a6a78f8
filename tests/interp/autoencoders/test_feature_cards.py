import base64
import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from interp.autoencoders.autoencoder import Autoencoder
from interp.autoencoders.bilinear_autoencoder import BilinearAutoencoder
from interp.autoencoders.feature_cards import describe_features, write_feature_cards
from interp.autoencoders.metrics import evaluate
from interp.autoencoders.operator_autoencoder import OperatorAutoencoder
from interp.autoencoders.sparse_autoencoder import SparseAutoencoder
from interp.autoencoders.top_k import TopK
from weightspace.errors import OutputError, ShapeError

DTYPES = [torch.float32, torch.float64]


def example(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Autoencoder, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "operator":
        x = torch.randn(60, 1, 16, dtype=dtype, generator=generator)
        return OperatorAutoencoder(1, 6, modes=4, dtype=dtype), x
    x = torch.randn(60, 9, dtype=dtype, generator=generator)
    if kind == "sparse":
        return SparseAutoencoder(9, 14, TopK(4), dtype=dtype), x
    return BilinearAutoencoder(9, 12, mixing=6 if kind == "mixed" else None, dtype=dtype), x


KINDS = ["sparse", "bilinear", "mixed", "operator"]


class Page(HTMLParser):
    """Which tags a page has, with their attributes, and all its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_cards_say_what_the_codes_say(kind: str, dtype: torch.dtype, batch_size: int) -> None:
    autoencoder, x = example(kind, dtype)
    with torch.no_grad():
        codes = autoencoder.eval().encode(x)
    found = describe_features(autoencoder, x, features=range(autoencoder.latents), batch_size=batch_size)
    assert float(found.importance.sum()) == pytest.approx(1)
    cosines = autoencoder.decoder_cosines().clone()
    cosines.fill_diagonal_(-torch.inf)
    for index, card in enumerate(found.cards):
        values = codes[:, index].reshape(len(x), -1)
        values = values.gather(1, values.abs().argmax(1, keepdim=True))[:, 0]
        active = values[values != 0]
        assert card.index == index
        assert card.density == pytest.approx(float((codes[:, index] != 0).double().mean()))
        # Codes of smaller batches are rounded otherwise, so that the extremes may lie an ulp outside.
        inside = active.double().clamp(float(card.edges[0]), float(card.edges[-1]))
        expected = torch.histogram(inside, card.edges) if len(active) else None
        assert int(card.counts.sum()) == len(active)
        if expected is not None:
            torch.testing.assert_close(card.counts.double(), expected.hist)
        order = values.abs().argsort(descending=True)[: min(8, len(active))]
        torch.testing.assert_close(card.activations.abs(), values[order].abs())
        torch.testing.assert_close(card.activations, values[card.top])
        torch.testing.assert_close(card.samples, x[card.top])
        torch.testing.assert_close(card.cosines, cosines[index].sort(descending=True).values[:5])
        torch.testing.assert_close(cosines[index][card.neighbors], card.cosines)


@pytest.mark.parametrize("dtype", DTYPES)
def test_direction_and_importance_of_linear_decoders(dtype: torch.dtype) -> None:
    autoencoder, x = example("sparse", dtype)
    found = describe_features(autoencoder, x)
    with torch.no_grad():
        codes = autoencoder.eval().encode(x).double()
        shares = codes.square().mean(0) * autoencoder.decoder_weight.double().square().sum(1)
    torch.testing.assert_close(found.importance, shares / shares.sum(), rtol=1e-5, atol=0)
    assert [card.index for card in found.cards] == shares.argsort(descending=True).tolist()
    for card in found.cards:
        torch.testing.assert_close(card.direction, autoencoder.decoder_weight[card.index].detach())
        assert card.spectrum is None


def test_spectrum_of_quadratic_latents_is_that_of_decompose() -> None:
    autoencoder, x = example("mixed")
    found = describe_features(autoencoder, x, features=[4, 1])
    for card in found.cards:
        form = autoencoder.decode_scaled(torch.eye(6, dtype=torch.float64))[card.index].detach()
        expected = torch.linalg.eigvalsh(form)
        assert card.spectrum is not None
        torch.testing.assert_close(card.spectrum.sort().values, expected)
        assert card.direction is None


def test_a_dead_feature_has_a_card_and_nothing_on_it(tmp_path: Path) -> None:
    autoencoder, x = example("sparse")
    with torch.no_grad():
        autoencoder.encoder_bias[3] = -1e6
    found = write_feature_cards(autoencoder, x, tmp_path / "cards.html", features=[3])
    (card,) = found.cards
    assert (card.density, card.importance, len(card.top), int(card.counts.sum())) == (0, 0, 0, 0)
    assert "dead: active in none" in Page(tmp_path / "cards.html").text


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_stands_alone_and_describes_its_pictures(kind: str, tmp_path: Path) -> None:
    autoencoder, x = example(kind)
    images, shape = (None, None) if kind == "operator" else (x.reshape(-1, 3, 3), (3, 3))
    path = tmp_path / "cards.html"
    found = write_feature_cards(
        autoencoder, x, path, images=images, direction_shape=shape, features=[0, 2, 5], title="Nine numbers"
    )
    page = Page(path)
    assert page.text.count("Feature ") == len(found.cards) == 3
    ids = {attributes["id"] for tag, attributes in page.tags if tag == "article"}
    assert ids == {"feature-0", "feature-2", "feature-5"}
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "href"):
            link = attributes.get(name)
            assert link is None or link.startswith("data:") or link.removeprefix("#") in ids, link
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    assert not re.search(r"url\(|@import|https?://", path.read_text())
    assert ("Eigenvalues" in page.text) == (kind in ("bilinear", "mixed"))
    assert ("Decoder direction" in page.text) == (kind in ("sparse", "operator"))
    for name, value in evaluate(autoencoder, x).summary().items():
        assert name in page.text
        assert value is None or isinstance(value, int) or f"{value:.4g}" in page.text


def test_pictures_are_the_samples(tmp_path: Path) -> None:
    autoencoder, x = example("sparse")
    images = x.reshape(-1, 3, 3)
    found = write_feature_cards(
        autoencoder, x, tmp_path / "cards.html", images=images, direction_shape=(3, 3), features=[0], top=2
    )
    sources = [dict(a)["src"] for tag, a in Page(tmp_path / "cards.html").tags if tag == "img"]
    direction, *samples = [
        torch.from_numpy(imread(io.BytesIO(base64.b64decode(source.partition(",")[2]))))[..., :3]
        for source in sources
    ]
    assert direction.shape == (3, 3, 3)
    low, high = images.min(), images.max()
    for picture, index in zip(samples, found.cards[0].top, strict=True):
        gray = (images[index] - low) / (high - low)
        torch.testing.assert_close(picture[..., 0].double(), gray, atol=1 / 100, rtol=0)


@pytest.mark.parametrize("depth", ["floats", "bytes"])
def test_pictures_in_color(depth: str, tmp_path: Path) -> None:
    autoencoder, x = example("sparse")
    images = torch.rand(60, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    given = images if depth == "floats" else (255 * images).to(torch.uint8)
    found = write_feature_cards(autoencoder, x, tmp_path / "cards.html", images=given, features=[1], top=1)
    (source,) = [dict(a)["src"] for tag, a in Page(tmp_path / "cards.html").tags if tag == "img"]
    picture = torch.from_numpy(imread(io.BytesIO(base64.b64decode(source.partition(",")[2]))))[..., :3]
    torch.testing.assert_close(picture, images[found.cards[0].top[0]], atol=1 / 200, rtol=0)


ATTACK = '<script>alert(1)</script>"><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e'


def test_texts_and_titles_never_become_html(tmp_path: Path) -> None:
    autoencoder, x = example("sparse")
    path = tmp_path / "cards.html"
    write_feature_cards(autoencoder, x, path, texts=[ATTACK] * len(x), title=ATTACK)
    page = Page(path)
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    assert ATTACK in page.text
    assert html.escape(ATTACK, quote=False) not in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_long_texts_are_cut_and_examples_without_words_are_numbered(tmp_path: Path) -> None:
    autoencoder, x = example("sparse")
    path = tmp_path / "cards.html"
    write_feature_cards(autoencoder, x, path, texts=["word " * 1000] * len(x), features=[0], top=1)
    assert 10 < Page(path).text.count("word") < 200
    found = write_feature_cards(autoencoder, x, path, features=[0], top=1)
    assert f"sample {int(found.cards[0].top[0])}" in Page(path).text


def test_refusals_leave_the_old_page(tmp_path: Path) -> None:
    autoencoder, x = example("sparse")
    path = tmp_path / "cards.html"
    path.write_text("old")
    with pytest.raises(ShapeError, match="there is no 14"):
        write_feature_cards(autoencoder, x, path, features=[14])
    with pytest.raises(ShapeError, match="images"):
        write_feature_cards(autoencoder, x, path, images=torch.zeros(3, 3, 3))
    with pytest.raises(ShapeError, match="60 samples and 1 texts"):
        write_feature_cards(autoencoder, x, path, texts=["a"])
    with pytest.raises(ShapeError, match="at least one sample"):
        write_feature_cards(autoencoder, x, path, top=0)
    assert path.read_text() == "old"
    with pytest.raises(OutputError, match="does not exist"):
        write_feature_cards(autoencoder, x, tmp_path / "missing" / "cards.html")
