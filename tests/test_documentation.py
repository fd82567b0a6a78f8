"""The site: builds without warnings, is complete, leads nowhere wrong, asks no other host, and its checker checks."""

import ast
import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import numpy as np
import pytest

from tests.browser import CHROMIUM, DRIVER, Browser, serve
from weightspace.cli import COMMANDS

ROOT = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml")
NETWORKS = ("digits_mlp_a", "digits_maxmin", "acasxu_1_1")


def _missing() -> list[str]:
    found = []
    for name in NEEDED:
        try:
            if importlib.util.find_spec(name) is None:
                found.append(name)
        except ModuleNotFoundError:
            found.append(name)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; several test processes share one build."""
    if _missing():
        pytest.skip(f"needs the extra `docs`: {', '.join(_missing())} cannot be imported")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / "documentation", base / "documentation.txt"
    try:
        folder.mkdir()
    except FileExistsError:  # another process builds
        while not done.exists():
            time.sleep(0.2)
    else:
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        part = done.with_suffix(".part")
        part.write_text(f"{result.returncode}\n{result.stdout}{result.stderr}", encoding="utf-8")
        part.replace(done)
    code, _, log = done.read_text(encoding="utf-8").partition("\n")
    assert code == "0", log[-3000:]
    assert "WARNING" not in log
    return folder


class Page(HTMLParser):
    """What a page refers to, and where it can be pointed at."""

    CODE = ("code", "pre", "script", "style")

    def __init__(self, path: Path):
        super().__init__()
        self.loaded, self.links, self.anchors, self.equations = [], [], set(), 0
        self.prose, self._code = [], 0  # the text outside code
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.equations += tag == "math"
        self._code += tag in self.CODE
        if tag == "a" and values.get("href") is not None:
            self.links.append(values["href"])
        names = ("src", "srcset", "poster", "data") + (("href",) if tag == "link" else ())
        self.loaded += [values[name] for name in names if tag != "a" and values.get(name)]

    def handle_endtag(self, tag):
        self._code -= tag in self.CODE

    def handle_data(self, data):
        if not self._code:
            self.prose.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_the_pages_that_must_exist(pages):
    expected = {
        "index.html", "which_tool.html", "mathematics.html", "certificates.html", "command_line.html",
        "benchmarks.html", "changelog.html", "contributing.html", "break_this_certificate/index.html",
    }  # fmt: skip
    assert expected <= pages.keys()
    shown = [link for link in pages["index.html"].links if link.startswith("tutorials/")]
    assert list(dict.fromkeys(shown)) == sorted(set(shown))
    for path in sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.ipynb")):
        assert f"tutorials/{path.stem}.html" in pages


def test_no_page_loads_from_another_host(site, pages):
    for name, page in pages.items():
        outside = [source for source in page.loaded if urlparse(source).netloc]
        assert not outside, name
    for path in site.rglob("*.css"):
        outside = re.findall(
            r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", path.read_text(encoding="utf-8")
        )
        assert not outside, path


def test_every_link_leads_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            address, anchor = urldefrag(urljoin(f"http://site/{name}", link))
            target = urlparse(address)
            if target.netloc != "site" or target.scheme != "http":
                continue
            file = unquote(target.path).lstrip("/") or "index.html"
            lost = anchor and file in pages and unquote(anchor) not in pages[file].anchors
            if lost or not (site / file).is_file():
                broken.append((name, link))
    assert not broken


def _public_names():
    for package in ("kernels", "weightspace", "certify", "interp"):
        yield from (f"{package}.{name}" for name in importlib.import_module(package).__all__)
    for package in ("equivariant", "graph", "zoo", "matching"):
        module = importlib.import_module(f"weightspace.{package}")
        exported = importlib.import_module("weightspace").__all__ if package == "matching" else ()
        yield from (f"{module.__name__}.{name}" for name in module.__all__ if name not in exported)
    for name in ("layers", "testing", "bundled"):
        tree = ast.parse(
            Path(importlib.import_module(f"weightspace.{name}").__file__).read_text(encoding="utf-8")
        )
        defined = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        yield from (f"weightspace.{name}.{node.name}" for node in defined if not node.name.startswith("_"))


def test_every_public_name_is_explained(pages):
    anchors = set().union(*(page.anchors for name, page in pages.items() if name.startswith("api/")))
    names = list(_public_names())
    assert len(names) > 250
    assert not [name for name in names if name not in anchors]


def test_every_command_is_explained(pages):
    text = pages["command_line.html"].text
    assert [name for name in COMMANDS if f'id="weightspace-{name}"' not in text] == []
    assert text.count("Usage: weightspace") == len(COMMANDS) + 1


def test_equations_are_written_out(pages):
    assert pages["mathematics.html"].equations > 80
    assert pages["api/kernels.html"].equations > 50
    for name, page in pages.items():
        assert 'class="arithmatex"' not in page.text, name
        left = re.findall(r"\$\S[^$]*\\[A-Za-z]+|\\(?:frac|sum|lambda|top|le|Vert)\b", "".join(page.prose))
        assert not left, name


def test_the_certificate_page_keeps_its_word(tmp_path, monkeypatch):
    text = (ROOT / "docs/certificates.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    command, verdict, claim = re.search(r"```console\n\$ (.*)\n(.*)\n(.*)\n```", text).groups()
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "docs/certificates.md", "exec"), {})
    words = command.split()
    assert words[0] == "python"
    result = subprocess.run(
        [sys.executable, "-S", "-P", *words[1:]], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(np.__file__).parents[1])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = result.stdout.splitlines()
    number = re.compile(r"\d+\.\d+(?:e-\d+)?")
    assert number.sub("#", printed[0]) == number.sub("#", verdict)
    assert float(number.findall(printed[0])[0]) == pytest.approx(float(number.findall(verdict)[0]), rel=1e-4)
    assert printed[1] == claim


@pytest.fixture
def forge(site, tmp_path, monkeypatch):
    """What runs in the browser, here: the site's copy of the checker and the code that forges."""
    place = site / "break_this_certificate"
    monkeypatch.syspath_prepend(place)
    monkeypatch.syspath_prepend(place / "data")
    for name in ("forge", "checker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("forge")
    yield module, place / "data"
    for name in ("forge", "checker"):
        sys.modules.pop(name, None)


def test_forgeries_are_refused_by_what_should_refuse_them(forge):
    module, data = forge
    assert (data / "checker.py").read_bytes() == (ROOT / "certify/checker.py").read_bytes()
    names = [one["name"] for one in json.loads((data / "networks.json").read_text())["networks"]]
    assert {"digits_mlp_a", "digits_maxmin"} <= set(names) <= set(NETWORKS)
    for name in names:
        paths = str(data / f"{name}.json"), str(data / f"{name}.npz")
        facts = json.loads(module.describe(*paths))
        bound = facts["bound"]
        last, shape = list(facts["tensors"].items())[-1]
        row, column = shape["largest"]
        change = {"tensor": last, "row": row, "column": column}
        change["value"] = 2 * module.weight(paths[1], last, row, column)
        cases = [
            (bound, None, "everything", "valid"),
            (1.01 * bound, None, "everything", "valid"),
            (0.99 * bound, None, "edit", "digest does not match"),
            (0.99 * bound, None, "digest", "below the proven one"),
            (0.99 * bound, None, "everything", "matrix inequality does not hold"),
            (bound, change, "edit", "hashes differ"),
            (bound, change, "digest", "hashes differ"),
            (bound, change, "everything", "matrix inequality does not hold"),
        ]
        for claimed, edit, effort, reason in cases:
            module.forge(*paths, json.dumps({"bound": claimed, "change": edit, "effort": effort}))
            result = json.loads(module.check("forged.json", "forged.npz"))
            assert result["code"] == (0 if reason == "valid" else 1)
            assert reason in result["output"], (name, effort)
    lowest = module.lowest(*paths, json.dumps({"bound": bound, "change": None, "effort": "edit"}))
    assert bound * (1 - 1e-4) < lowest <= bound


def test_the_answer_of_the_generic_solver_is_refused(forge):
    module, data = forge
    network = str(data / "generic_solver.npz")
    claimed, ours = (str(data / f"{name}.json") for name in ("generic_solver", "generic_solver_ours"))
    answers = [json.loads(module.describe(path, network)) for path in (claimed, ours)]
    assert answers[0]["bound"] < 0.95 * answers[1]["optimum"]
    assert 1002.6 < answers[1]["optimum"] <= answers[1]["bound"] < 1002.7
    assert json.loads(module.check(ours, network))["code"] == 0
    refusal = json.loads(module.check(claimed, network))
    assert refusal["code"] == 1
    assert "matrix inequality does not hold" in refusal["output"]


# ---- in the browser ----------------------------------------------------------------------------------------

STATE = """
const place = document.getElementById(arguments[0]), text = place.querySelector("pre").textContent;
return !place.hidden && place.dataset.state !== "working" && [place.dataset.state, text];
"""
ASK = """
const set = (id, value, kind) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(kind));
};
document.getElementById("reset").click();
set("bound", arguments[0], "input");
document.querySelector(`input[value="${arguments[1]}"]`).checked = true;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium: no chromium, or no chromedriver, on the PATH")
    window = Browser(tmp_path_factory.mktemp("profile"), (390, 844))
    yield window
    window.close()


def test_pages_fit_a_phone_and_show_equations(site, browser):
    with serve(site) as address:
        for page in ("index.html", "mathematics.html", "which_tool.html", "api/interp.html"):
            browser.open(address + page)
            assert browser.run("return document.documentElement.scrollWidth") <= 390, page
        browser.open(address + "mathematics.html")
        fraction, digit = browser.run(
            "return ['mfrac', 'mn'].map(name => document.querySelector(name).getBoundingClientRect().height)"
        )
        assert fraction > 1.5 * digit  # laid out one above the other
        requested = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert requested
        assert all(name.startswith(address) for name in requested)
        assert browser.messages() == []


def test_break_this_certificate(site, browser):
    place = site / "break_this_certificate"
    with serve(site) as address:
        browser.open(address + "break_this_certificate/index.html")
        state = browser.wait("return document.getElementById('runtime').dataset.state")
        if not (place / "pyodide").is_dir():
            assert state == "missing"  # said on the page
            pytest.skip("needs Pyodide in the cache: python docs/fetch_pyodide.py")
        browser.run("document.getElementById('start').click()")
        ended = "const s = document.getElementById('runtime').dataset.state; return s !== 'loading' && s"
        assert browser.wait(ended) == "ready"
        certified = float(browser.run("return document.getElementById('bound').value"))

        def verdict(bound: float, effort: str, change: bool = False):
            browser.run(ASK, bound, effort)
            if change:
                browser.run("document.getElementById('change').click()")
                browser.wait(
                    "return document.getElementById('old').textContent && document.getElementById('value').value"
                )
            browser.run(
                "document.getElementById('verdict').dataset.state = 'working'; document.getElementById('check').click()"
            )
            return browser.wait(STATE, "verdict")

        def solver(button: str):
            browser.run(
                "document.getElementById('solver-verdict').dataset.state = 'working';"
                "document.getElementById(arguments[0]).click()", button
            )  # fmt: skip
            return browser.wait(STATE, "solver-verdict")

        cases = [
            (verdict(certified, "edit"), "valid", f"upper bound {certified!r}"),
            (verdict(0.99 * certified, "edit"), "refused", "digest does not match"),
            (verdict(0.99 * certified, "everything"), "refused", "matrix inequality does not hold"),
            (verdict(certified, "edit", change=True), "refused", "hashes differ"),
            (verdict(certified, "everything", change=True), "refused", "matrix inequality does not hold"),
            (solver("check-solver"), "refused", "matrix inequality does not hold"),
            (solver("check-recorded"), "refused", "matrix inequality does not hold"),
            (solver("check-ours"), "valid", "upper bound 1002.6"),
        ]
        for (state, text), expected, reason in cases:
            assert (state, reason in text) == (expected, True), text
        requested = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all(name.startswith(address) for name in requested)
        assert browser.messages() == []


def test_the_runtime_is_the_one_that_was_pinned(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    fetch = importlib.import_module("fetch_pyodide")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cached_files() == []
    folder = fetch.cache_folder()
    folder.mkdir(parents=True)
    for name in fetch.RUNTIME:
        (folder / name).write_bytes(b"")
    wheel = {"file_name": "numpy.whl", "sha256": hashlib.sha256(b"right").hexdigest()}
    (folder / "pyodide-lock.json").write_text(json.dumps({"packages": {"numpy": wheel}}))
    (folder / "numpy.whl").write_bytes(b"wrong")
    assert fetch.cached_files() == []
    (folder / "numpy.whl").write_bytes(b"right")
    assert [path.name for path in fetch.cached_files()] == [*fetch.RUNTIME, "numpy.whl"]
