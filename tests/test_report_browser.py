"""Report, matrix and feature cards in headless Chromium: at two widths, in light and dark, with links that lead on."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
import torch

import certify
import interp
from weightspace.bundled import path
from weightspace.checkpoint import write_safetensors
from weightspace.report import report
from weightspace.report.templates import load_template

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1280, 390)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
    "--virtual-time-budget=4000", "--window-size=1400,900",
]  # fmt: skip

# Runs in a copy of the page, inside a frame of the width to be measured, and reports to the page around it.
MEASURE = """
document.querySelectorAll("details").forEach(details => details.open = true);
const channels = color => (color.match(/[\\d.]+/g) || []).map(Number);
function background(element) {  // the color behind a text: up to the first opaque one
  for (; element; element = element.parentElement) {
    const color = channels(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color.slice(0, 3);
  }
  return [255, 255, 255];
}
function luminance(color) {
  const [r, g, b] = color.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(element) {
  const style = getComputedStyle(element);
  const ends = [channels(style.color).slice(0, 3), background(element)].map(luminance).sort((a, b) => a - b);
  return (ends[1] + 0.05) / (ends[0] + 0.05);
}
const texts = [...document.body.querySelectorAll("*")].filter(element =>
  [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) &&
  !["SCRIPT", "STYLE"].includes(element.tagName));
const root = document.documentElement;
parent.postMessage({
  page: location.pathname.split("/").pop(),
  width: innerWidth,
  overflow: root.scrollWidth - root.clientWidth,
  dark: luminance(background(document.body)) < 0.2,
  texts: texts.length,
  faint: texts.map(e => [contrast(e), e.tagName, e.className, e.textContent.trim().slice(0, 40)])
    .filter(found => found[0] < 4.5),
  small: texts.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length,
  first: document.querySelector("main section")?.id,
  above: document.querySelector("main section")?.getBoundingClientRect().top + scrollY,
  lost: [...document.querySelectorAll("a[href^='#']")].map(a => a.getAttribute("href").slice(1))
    .filter(name => !document.getElementById(name)),
  broken: [...document.images].filter(image => !image.naturalWidth).length,
}, "*");
"""
COLLECT = """
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  document.querySelector("pre").textContent = JSON.stringify(found);
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of one page of every kind, with names and texts that do not want to fit."""
    folder = tmp_path_factory.mktemp("browser")
    long = "a_name_with_no_place_to_break" * 4
    broken = folder / f"{long}.safetensors"
    write_safetensors(broken, {"c.weight": torch.full((4, 3, 3, 3), torch.nan), long: torch.randn(30, 40)})
    row = {
        "requirement": "R1", "text": "The scores move little. " * 9, "source": long, "model": "model.npz",
        "network_hash": "0" * 64, "test": "Lipschitz constant at most 1", "method": "product of norms",
        "outcome": "holds", "detail": "bound 0.5", "evidence": f"{long}.json", "evidence_sha256": "1" * 64,
        "check_again": f"weightspace check {long}.json model.npz",
    }  # fmt: skip
    rows = [row, {**row, "requirement": "R2", "outcome": "does not hold"}]
    outcomes = {"holds": 1, "does not hold": 1, "undecided": 0}
    matrix = load_template(Path(certify.__file__).parent / "assurance" / "matrix.html.j2", "the matrix")
    samples = torch.rand(200, 64, generator=torch.Generator().manual_seed(0))
    interp.write_feature_cards(
        interp.SparseAutoencoder(64, 16, interp.TopK(3)),
        samples,
        folder / "cards.html",
        images=samples.reshape(-1, 8, 8),
        direction_shape=(8, 8),
        title=long,
    )
    return {
        "report.html": report([path("digits_mlp_a"), broken]).html,
        "matrix.html": matrix.render(
            title=long, requirements_file="r.toml", requirements_sha256="2" * 64, outcomes=outcomes, rows=rows
        ),
        "cards.html": (folder / "cards.html").read_text(),
    }


def measure(pages, folder, scheme):
    """Return what the script found in every page at every width, and what the console said."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium on the PATH")
    for name, text in pages.items():
        (folder / name).write_text(text.replace("</body>", f"<script>{MEASURE}</script></body>"))
    frames = "".join(
        f'<iframe src="{name}" width="{width}" height="800"></iframe>' for name in pages for width in WIDTHS
    )
    around = folder / "around.html"
    around.write_text(f"<!doctype html><pre></pre><script>{COLLECT}</script>{frames}")
    preferred = {"dark": 0, "light": 1}[scheme]
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}",
         f"--blink-settings=preferredColorScheme={preferred}", "--dump-dom", around.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    text = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert text is not None
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = {(seen["page"], seen["width"]): seen for seen in json.loads(unescape(text[1]))}
    assert found.keys() == {(name, width) for name in pages for width in WIDTHS}
    return found, console


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_are_readable(scheme, pages, tmp_path):
    found, console = measure(pages, tmp_path, scheme)
    assert console == []
    for place, seen in found.items():
        assert seen["overflow"] <= 0, f"{place} is wider than its window"
        assert seen["dark"] == (scheme == "dark")
        assert seen["texts"] > 30
        assert seen["faint"] == [], place
        assert seen["small"] == 0, f"{place} has texts below 12 pixels"
        assert seen["lost"] == []
        assert seen["broken"] == 0
    for width in WIDTHS:
        seen = found["report.html", width]
        assert seen["first"] == "summary"
        assert seen["above"] < 640, "the summary begins on the first screen"


@pytest.mark.parametrize(("scheme", "choice"), [("light", "dark"), ("dark", "light")])
def test_reader_may_choose_the_colors(scheme, choice, pages, tmp_path):
    box = f'id="theme-{choice}"'
    chosen = {}
    for name, text in pages.items():
        assert text.count(box) == 1
        chosen[name] = text.replace('id="theme-auto" checked', 'id="theme-auto"').replace(
            box, f"{box} checked"
        )
    found, _ = measure(chosen, tmp_path, scheme)
    for place, seen in found.items():
        assert seen["dark"] == (choice == "dark"), place
        assert seen["faint"] == [], place
