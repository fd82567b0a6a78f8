"""The report: complete, self-contained, honest about gaps, every number told in words and traced to its method."""

import json
import math
import os
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from certify.report import section as certify_section
from weightspace.bundled import digits, load, path
from weightspace.checkpoint import write_safetensors
from weightspace.cli import main
from weightspace.common_order import compare
from weightspace.errors import CheckpointError
from weightspace.inspection import inspect
from weightspace.permutation import permute, random_permutations
from weightspace.reading import read
from weightspace.report import comparison, report, weights
from weightspace.report.content import Evaluation, Picture, Severity, Subject, Table
from weightspace.report.descriptions import describe_barrier
from weightspace.report.page import assemble
from weightspace.report.pair_findings import Pair, Verdict, pair_findings
from weightspace.report.similarity import matrix_figure
from weightspace.report.tensor_findings import is_sound
from weightspace.rounded_numbers import rounded_down, rounded_up
from weightspace.verification import symmetry

NAMES = ["digits_mlp_a", "digits_mlp_b", "digits_bilinear"]
VOID = {"meta", "link", "input", "img", "br"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    _, _, inputs, labels = digits()
    folder = tmp_path_factory.mktemp("demo")
    result = report([path(name) for name in NAMES], evaluation=Evaluation("digits", inputs, labels))
    page = result.write(folder / "report")
    return result, page


class Page(HTMLParser):
    """The elements of a page: (tag, attributes, text inside, how many of each are open around it)."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text, [name for name, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1][0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str | None], str]]:
        return [(tag, attributes, "".join(text)) for tag, attributes, text, _ in self.elements if tag in tags]


def data_file(name: str) -> Path:
    root = os.environ.get("WEIGHTSPACE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} below WEIGHTSPACE_DATA")
    return Path(root) / name


def test_every_section_has_numbers(demo):
    data = json.loads(demo[1].with_name("report.json").read_text())
    assert len(data["files"]) == len(NAMES)
    for section in ("overview", "layers", "neurons", "pairs", "certificates", "bilinear"):
        assert data[section], f"section {section} is empty"
    (pair,) = [v for k, v in data["pairs"].items() if "digits_mlp_a" in k and "digits_mlp_b" in k]
    assert pair["barrier_after"]["barrier"] < pair["barrier_before"]["barrier"]
    for bounds in data["certificates"].values():
        assert bounds["sampled_lower_bound"] <= bounds["upper_bound"]
    missing = {(gap["subject"], gap["analysis"]): gap["reason"] for gap in data["not_analyzed"]}
    assert "Multiply at node" in missing["digits_bilinear.safetensors", "Lipschitz bound"]


def test_page_needs_no_other_file(demo):
    html = demo[1].read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "<script" not in html


def test_page_can_be_read_without_seeing_it(demo):
    page = Page(demo[1].read_text())
    assert not page.open
    assert page.all("html")[0][1]["lang"] == "en"
    for landmark in ("main", "nav", "header", "h1"):
        assert len(page.all(landmark)) == 1
    levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    figures = page.all("figcaption")
    pictures = page.all("img")
    assert len(figures) == len(pictures) > 5
    for (_, picture, _), (_, _, caption) in zip(pictures, figures, strict=True):
        assert re.search(r"\d", picture["alt"] or ""), (
            "an alternative text tells what is to be seen, with numbers"
        )
        assert (picture["alt"] or "") not in caption
    assert len(page.all("caption")) == len(page.all("table")) > 4
    assert all(attributes.get("scope") in ("col", "row") for _, attributes, _ in page.all("th"))


def test_summary_comes_first_and_every_number_leads_to_its_method(demo):
    page = Page(demo[1].read_text())
    assert page.all("section")[0][1]["id"] == "summary"
    ids = [attributes["id"] for _, attributes, _, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [(attributes["href"] or "").removeprefix("#") for _, attributes, _ in page.all("a")]
    assert set(links) <= set(ids)
    methods = {f"how-{key}" for key in demo[0].data["methods"]}
    assert methods == {name for name in ids if (name or "").startswith("how-")}
    assert methods <= set(links), "a method that nothing was computed by"
    assert all(
        sentence.methods or sentence.section in ("overview", "not-analyzed") for sentence in demo[0].summary
    )


def test_methods_name_functions_that_exist(demo):
    for method in demo[0].data["methods"].values():
        package, *attributes = method["function"].split(".")
        found = __import__(package)
        for name in attributes:
            found = getattr(found, name)
        assert found.__doc__
        assert method["meaning"]
        assert method["equation"]


def test_json_has_all_numbers_of_the_page_and_is_strict(demo):
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(demo[1].with_name("report.json").read_text(), parse_constant=refuse)
    assert data["keys"].keys() == data.keys()
    known: list[float] = []
    waiting = [data]
    for value in waiting:
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int | float):
            known.append(float(value))
    cells = [
        text for _, attributes, text in Page(demo[1].read_text()).all("td") if attributes["class"] == "number"
    ]
    numbers = [cell.replace(",", "") for cell in cells if cell != "-"]
    assert len(numbers) > 100
    for number in numbers:
        digits = len(number.partition("e")[0].replace(".", "").lstrip("-0"))
        unit = 10.0 ** (math.floor(math.log10(abs(float(number)) or 1.0)) + 1 - max(digits, 1))
        assert any(abs(value - float(number)) <= unit for value in known), number


def test_summary_says_what_the_data_say(demo):
    result, _ = demo
    texts = [sentence.text for sentence in result.summary]
    (pair,) = result.data["pairs"].values()
    (text,) = [text for text in texts if "straight line" in text]
    assert "different networks" in text
    assert f"rises by {pair['barrier_before']['barrier']:.4g}" in text
    assert f"after alignment by {pair['barrier_after']['barrier']:.4g}" in text
    certified = [text for text in texts if ": certified:" in text]
    assert len(certified) == len(result.data["certificates"])
    for text, (name, bounds) in zip(certified, result.data["certificates"].items(), strict=True):
        assert text.startswith(name)
        numbers = re.findall(r"(?:more than|them by) ([\d.e+-]*\d)", text)
        upper, lower = map(float, numbers)
        assert upper >= bounds["upper_bound"] >= bounds["sampled_lower_bound"] >= lower
        assert "(Euclidean)" in text
    assert any("real-valued function" in text for text in texts)


@given(st.floats(1e-300, 1e300), st.integers(1, 8))
def test_bounds_are_rounded_to_the_safe_side(value, digits):
    assert float(rounded_down(value, digits)) <= value <= float(rounded_up(value, digits))
    assert float(rounded_up(value, digits)) <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-12)


def test_worst_comes_first(tmp_path):
    network = load("digits_mlp_a")
    spec = symmetry(network)
    moved = permute(network, spec, random_permutations(spec, torch.Generator().manual_seed(0)))
    broken = {name: tensor.clone() for name, tensor in network.parameters.items()}
    broken["0.weight"][:2] = 0
    broken["4.bias"][:3] = math.nan
    for name, parameters in (("moved", moved.parameters), ("broken", broken)):
        network.replace_parameters(dict(parameters)).save(tmp_path / f"{name}.safetensors")
    files = [path("digits_mlp_a"), tmp_path / "moved.safetensors", tmp_path / "broken.safetensors"]
    subjects = [Subject(file.name, file, inspect(file), read(file), None) for file in files]
    names = [subject.name for subject in subjects]
    result = assemble(
        names, [weights.overview(subjects), comparison.pairs(subjects), weights.layers(subjects)]
    )
    sentences = [(sentence.severity, sentence.text) for sentence in result.summary]
    ranks = [severity.rank for severity, _ in sentences]
    assert ranks == sorted(ranks)
    assert sentences[0] == (Severity.PROBLEM, "broken.safetensors: 4.bias contains 3 NaN entries")
    dead = "2 of 24 units of 0.weight are dead: all their weights in it are zero"
    assert sentences[1] == (Severity.CAUTION, f"broken.safetensors: {dead}")
    assert sentences[2][0] == Severity.GAP
    same = "digits_mlp_a.safetensors and moved.safetensors are the same network up to neuron order"
    assert (Severity.RESULT, same) in sentences
    assert not any("are the same network" in text and "broken" in text for _, text in sentences)
    json.dumps(result.data, allow_nan=False)


def test_more_pairs_than_are_measured_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "PAIRS_MEASURED", 1)
    network = load("digits_mlp_a")
    subjects = [Subject(name, tmp_path, inspect(network), network, None) for name in "abc"]
    section = comparison.pairs(subjects)
    assert list(section.data) == ["a and b"]
    assert [gap.subject for gap in section.gaps] == ["2 further pairs"]
    assert [finding.sentence for finding in section.findings] == ["a and b have identical weights"]


def test_terminal_is_told_the_summary_and_no_file_moves_its_cursor(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x\x1b[2J.safetensors"
    write_safetensors(file, {"c.weight": torch.zeros(4, 3, 3, 3)})
    monkeypatch.setattr(sys, "argv", ["weightspace", "report", str(file), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "caution: x\\x1b[2J.safetensors: c.weight is zero throughout"
    assert lines[1].startswith("not analyzed: Not read as a network: x")
    assert lines[-1].startswith("wrote ")
    assert "\x1b" not in "".join(lines[:-1])


def test_names_from_files_are_escaped(tmp_path):
    attack = "<script>alert(1)</script>.weight"
    write_safetensors(tmp_path / "x.safetensors", {attack: torch.randn(5, 3), "a$b$": torch.randn(30, 30, 2)})
    html = report([tmp_path / "x.safetensors"]).html
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_what_is_no_network_is_inspected_and_listed(tmp_path):
    write_safetensors(tmp_path / "conv.safetensors", {"c.weight": torch.randn(4, 3, 3, 3)})
    result = report([tmp_path / "conv.safetensors"])
    (gap,) = result.gaps
    assert (gap.subject, gap.analysis) == ("conv.safetensors", "reading as a network")
    assert "--architecture" in gap.reason
    assert result.data["layers"]["conv.safetensors"]["tensors"][0]["spectral_norm"] > 0


def test_broken_file_stops_the_report(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        report([tmp_path / "x.safetensors"])


def test_broken_file_among_others_is_listed(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 10)
    result = report([path("digits_mlp_a"), tmp_path / "x.safetensors"])
    assert (result.gaps[0].subject, result.gaps[0].analysis) == ("x.safetensors", "the file")
    assert result.data["certificates"]["digits_mlp_a.safetensors"]["upper_bound"] > 0


def test_identical_and_shifted_networks_are_told_apart(tmp_path):
    network = load("digits_mlp_a")
    network.replace_parameters({"4.bias": network.parameters["4.bias"] + 1}).save(
        tmp_path / "shifted.safetensors"
    )
    network.save(tmp_path / "same.safetensors")
    files = [path("digits_mlp_a"), tmp_path / "same.safetensors", tmp_path / "shifted.safetensors"]
    section = comparison.pairs([Subject(p.name, p, inspect(p), read(p), None) for p in files])
    table = section.blocks[0]
    assert isinstance(table, Table)
    verdicts = {row[0]: row[3] for row in table.rows}
    assert verdicts["digits_mlp_a.safetensors / same.safetensors"] == "identical weights"
    assert verdicts["digits_mlp_a.safetensors / shifted.safetensors"] == "different networks"
    identical, *apart = [finding.sentence for finding in section.findings]
    assert identical == "digits_mlp_a.safetensors and same.safetensors have identical weights"
    assert len(apart) == 2
    for sentence in apart:
        assert "different networks; no data that fits was given; on random inputs" in sentence


def layers(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The weights of a network 8-6-4."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (6, 8), "0.bias": (6,), "2.weight": (4, 6), "2.bias": (4,)}
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


@pytest.mark.parametrize("others", [0, 1])
def test_a_network_that_is_constant_is_in_the_table_and_not_in_the_figure(tmp_path, others):
    write_safetensors(tmp_path / "zero.safetensors", layers(0, 0.0))
    blocked = {
        "0.weight": torch.eye(2, 4) * torch.tensor([[1.0], [0]]),
        "2.weight": torch.tensor([[0.0, 1]] * 3),
    }
    write_safetensors(tmp_path / "blocked.safetensors", blocked)
    write_safetensors(tmp_path / "random.safetensors", layers(0))
    files = [tmp_path / f"{name}.safetensors" for name in ("zero", "blocked", "random")[: 2 + others]]
    subjects = [Subject(file.name, file, inspect(file), read(file), None) for file in files]
    found = certify_section(subjects)
    (table,) = (block for block in found.blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == [file.name for file in files]
    pictures = [block for block in found.blocks if isinstance(block, Picture)]
    assert len(pictures) == others
    for drawn in pictures:
        assert drawn.caption.endswith("2 networks with a bound of 0 not drawn.")
        assert "random.safetensors" in drawn.alt
        assert "zero.safetensors" not in drawn.alt
    assert (
        found.findings[1].sentence
        == "blocked.safetensors: certified: no change of the input moves the outputs"
    )


def test_integer_matrices_are_not_called_sound(tmp_path):
    integers = {"w": torch.zeros(4, 4, dtype=torch.int8), "w2": torch.ones(8, 8, dtype=torch.int8)}
    assert not is_sound(inspect(integers))
    assert is_sound(inspect({"w": torch.eye(3), "steps": torch.tensor(7)}))


@pytest.mark.parametrize("count", [1, 7])
def test_a_barrier_that_is_nan_is_not_called_flat(count):
    loss = comparison.Loss(lambda module: 0.0, "cross entropy, x", "cross entropy", True)
    pair = Pair("a", "b", Verdict.DIFFERENT, loss, math.nan, math.nan, {})
    measured = Pair("c", "d", Verdict.DIFFERENT, loss, 1.0, 0.5, {})
    sentence = pair_findings([pair] * count, "pairs")[0].sentence
    assert "could not be measured" in sentence
    assert "not rise" not in sentence
    mixed = pair_findings([pair, *[measured] * 7], "pairs")[0].sentence
    assert "rises by 1 (most between c and d), after alignment by 0.5; of 1 pair it could not be" in mixed
    nan = (math.nan, math.nan)
    assert "could not be measured" in describe_barrier({"as they are": ((0.0, 1.0), nan)}, "loss")


def test_weights_whose_products_overflow_are_a_gap(tmp_path):
    for seed in (0, 1):
        write_safetensors(tmp_path / f"{seed}.safetensors", layers(seed, 1e21))
    result = report([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    (gap,) = (gap for gap in result.gaps if gap.analysis == "alignment")
    assert "overflow float32" in gap.reason


def test_weights_that_are_not_finite_are_drawn_without_warnings(tmp_path):
    weights = layers(0)
    weights["0.weight"][0, 0], weights["0.bias"][1], weights["2.bias"][1] = math.nan, math.inf, math.nan
    write_safetensors(tmp_path / "x.safetensors", weights)
    html = report([tmp_path / "x.safetensors"]).html
    assert "Weights from -" in html
    assert "Weights from nan" not in html


def test_three_equal_networks_are_drawn_without_warnings(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file in files:
        write_safetensors(file, layers(0))
    assert matrix_figure(compare(files)).axes[0].get_ylim() == (0, 1)


@pytest.mark.parametrize(
    "files",
    [
        ["acasxu/ACASXU_run2a_1_1_batch_2000.onnx"],
        ["kw_provable/mnist.pth"],
        ["rib_modadd/modadd113_seed0.pt", "rib_modadd/modadd113_seed1.pt"],
        ["audio_misc/silero_vad_16k.safetensors"],
    ],
)
def test_real_checkpoints(files, tmp_path):
    result = report([data_file(name) for name in files])
    page = result.write(tmp_path / "report")
    assert page.stat().st_size > 10_000
    assert len(result.data["layers"]) == len(files)
    if files[0].endswith(".onnx"):
        (bounds,) = result.data["certificates"].values()
        assert bounds["upper_bound"] < 2.1e5
    else:
        assert {gap.analysis for gap in result.gaps} >= {"reading as a network"}
