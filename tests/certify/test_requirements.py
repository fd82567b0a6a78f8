"""Requirements files: read strictly, decided one by one, with evidence that is checked again."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from certify.assurance.assessment import assess
from certify.assurance.decisions import Outcome
from certify.assurance.junit import write_junit
from certify.assurance.requirements import LipschitzLimit, read_requirements
from certify.assurance.traceability import matrix, render_html, render_markdown
from weightspace.errors import WeightspaceError

LIMIT = """
[[requirements]]
id = "{0}"
text = "bounded"
kind = "lipschitz"
max = {1}
"""
PROPERTY = """
[[requirements]]
id = "{0}"
text = "never above"
kind = "property"
region = {{lower = [0, 0, 0], upper = [1, 1, 1]}}
unsafe = [{{matrix = [[-1, 0]], bounds = [{1}]}}]
"""


@pytest.fixture
def job(build, he, tmp_path):
    """job(text) -> a requirements file beside `model.npz`, f(x) = W2 relu(W1 x)."""
    build(he([3, 4, 2]), dtype=torch.float32).save_npz(tmp_path / "model.npz")

    def write(text, name="r.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def outcomes(assessment):
    return {finding.requirement.identifier: finding.outcome for finding in assessment.findings}


def test_one_job_with_every_outcome(job, tmp_path):
    text = (
        'title = "A <b> | B"\nmodel = "model.npz"\n'
        + LIMIT.format("held", 1e6)
        + LIMIT.format("exceeded", 1e-6)
        + PROPERTY.format("safe", -1e6)
        + PROPERTY.format("unsafe", 1e6)
        + PROPERTY.format("timeless", -0.5)
        + "seconds = 0\n"
        + LIMIT.format("lost", 1)
        + 'model = "lost.npz"\n'
    )
    assessment = assess(read_requirements(job(text)), tmp_path / "out")
    found = outcomes(assessment)
    assert found.pop("timeless") is not Outcome.ERROR
    assert found == {
        "held": Outcome.HOLDS,
        "exceeded": Outcome.FAILS,
        "safe": Outcome.HOLDS,
        "unsafe": Outcome.FAILS,
        "lost": Outcome.ERROR,
    }
    root = ElementTree.fromstring(write_junit(assessment))
    assert [suite.get("name") for suite in root] == ["model.npz", "lost.npz"]
    for case in root.iter("testcase"):
        red = case.find("failure") is not None or case.find("error") is not None
        name = case.get("name").split(":")[0]
        assert red != (found.get(name, Outcome.UNDECIDED) is Outcome.HOLDS) or name == "timeless"
        assert case.find("skipped") is None
    assert int(root.get("failures")) + int(root.get("errors")) == sum(
        finding.outcome is not Outcome.HOLDS for finding in assessment.findings
    )
    rows = matrix(assessment)["rows"]
    for row in rows:
        if row["evidence"]:
            assert (tmp_path / "out" / row["evidence"]).is_file()
    html = render_html(assessment)
    assert "A &lt;b&gt; | B" in html
    assert "<script" not in html
    markdown = render_markdown(assessment)
    assert markdown.startswith("# A \\<b\\> \\| B")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(lines) == 2 + len(rows)


def test_evidence_is_reproduced_and_kept_only_while_it_proves(job, build, he, tmp_path):
    path = job(
        'model = "model.npz"\n'
        + LIMIT.format("L", 100)
        + PROPERTY.format("P", -50)
        + PROPERTY.format("Q", 50)
    )
    first, second = (assess(read_requirements(path), tmp_path / name) for name in "ab")
    assert outcomes(first) == {"L": Outcome.HOLDS, "P": Outcome.HOLDS, "Q": Outcome.FAILS}
    assert [finding.evidence_hash for finding in first.findings] == [
        finding.evidence_hash for finding in second.findings
    ]
    assert render_html(first) == render_html(second)
    assert write_junit(first) == write_junit(second)

    def kept(text=None):
        again = assess(read_requirements(job(text) if text else path), tmp_path / "a")
        return {finding.requirement.identifier: finding.kept for finding in again.findings}

    assert kept() == {"L": True, "P": True, "Q": True}
    for name in "LPQ":  # edited evidence proves nothing, and is made again
        file = tmp_path / "a" / "evidence" / f"{name}.json"
        before = file.read_bytes()
        file.write_text(file.read_text().replace('"name": ""', '"name": "x"').replace('"l2"', '"linf"', 1))
        assert file.read_bytes() != before
        assert kept()[name] is False
        assert file.read_bytes() == before
    other = (
        path.read_text().replace("bounds = [-50]", "bounds = [-60]").replace("lower = [0,", "lower = [-1,", 1)
    )
    assert kept(other) == {"L": True, "P": False, "Q": True}
    assert kept(other.replace("max = 100", 'max = 100\nnorm = "linf"'))["L"] is False
    build(he([3, 4, 2], seed=1), dtype=torch.float32).save_npz(tmp_path / "model.npz")
    assert set(kept().values()) == {False}


def test_interrupted_jobs_keep_what_is_finished(job, tmp_path):
    path = job('model = "model.npz"\n' + LIMIT.format("A", 100) + LIMIT.format("B", 100))

    def stop(finding):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assess(read_requirements(path), tmp_path / "out", finished=stop)
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == ["A.json"]
    again = assess(read_requirements(path), tmp_path / "out")
    assert [finding.kept for finding in again.findings] == [True, False]


def test_yaml_says_the_same_as_toml(job):
    toml = read_requirements(job('model = "model.npz"\n' + LIMIT.format("A", 2.5) + "output = [0, 1]\n"))
    text = "model: model.npz\nrequirements:\n- {id: A, text: bounded, kind: lipschitz, max: 2.5, output: [0, 1]}\n"
    yaml = read_requirements(job(text, "r.yaml"))
    assert toml.requirements == yaml.requirements
    assert toml.requirements[0].demand == LipschitzLimit(2.5, output=(0, 1))


def test_robustness(job, tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(8, dtype=np.int64))
    text = """
model = "model.npz"
[[requirements]]
id = "R"
text = "robust"
kind = "robustness"
data = "data.npz"
epsilon = 0.01
min_certified_accuracy = {}
"""
    for least, outcome in ((0.0, Outcome.HOLDS), (1.0, Outcome.FAILS)):
        assessment = assess(read_requirements(job(text.format(least))), tmp_path / "out")
        assert outcomes(assessment) == {"R": outcome}, assessment.findings[0].detail
    evidence = json.loads((tmp_path / "out/evidence/R.json").read_text())
    certified, attacked = (float.fromhex(evidence[f"{name}_accuracy"]) for name in ("certified", "attacked"))
    assert 0 <= certified <= attacked <= 1


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("r.toml", "a = ", "cannot read requirements"),
        ("r.toml", "", "has no 'requirements'"),
        ("r.toml", "requirements = []", "not a list of one or more"),
        ("r.toml", "requirements = [1]", "requirement 1 is not a table"),
        ("r.toml", LIMIT.format("A", 1), "has no 'model'"),
        ("r.toml", 'model = "m"\ntypo = 1' + LIMIT.format("A", 1), "unknown key 'typo'"),
        ("r.toml", 'model = "m"' + LIMIT.format("A", 1) + "limit = 2", r"\(A\) has an unknown key 'limit'"),
        ("r.toml", 'model = "m"' + LIMIT.format("../A", 1), "it names a file"),
        (
            "r.toml",
            'model = "m"' + LIMIT.format("A", 1) + LIMIT.format("a", 1),
            "two requirements have the id",
        ),
        ("r.toml", 'model = "m"' + LIMIT.format("A", "nan"), "must be finite"),
        ("r.toml", 'model = "m"' + LIMIT.format("A", -1), "at least 0"),
        ("r.toml", 'model = "m"' + LIMIT.format("A", "true"), "not a number"),
        ("r.toml", 'model = "m"' + LIMIT.format("A", 1) + "output = -1", "an index or a pair"),
        ("r.toml", 'model = "m"' + LIMIT.format("A", 1) + 'norm = "l1"', "one of l2, linf"),
        ("r.toml", 'model = "m"' + LIMIT.format("A", 1) + 'region = "none.json"', "none.json"),
        (
            "r.toml",
            'model = "m"' + LIMIT.format("A", 1) + "region = {lower = [1], upper = [0]}",
            "exchange the two",
        ),
        (
            "r.toml",
            'model = "m"' + LIMIT.format("A", 1).replace("lipschitz", "speed"),
            "must be one of lipschitz",
        ),
        ("r.toml", 'model = "m"' + PROPERTY.format("A", 1).replace("[[-1, 0]]", "[[-1], [0, 1]]"), "unsafe"),
        ("r.toml", 'model = "m"' + PROPERTY.format("A", 1).replace("[[-1, 0]]", "[]"), "one bound per row"),
        ("r.toml", 'model = "m"' + PROPERTY.format("A", '"x"'), "unsafe"),
        ("r.toml", 'model = "m"' + PROPERTY.format("A", 1) + 'vnnlib = "none.vnnlib"', "none.vnnlib"),
        ("r.yaml", "a: [", "cannot read requirements"),
        ("r.yaml", "a: 1\na: 2", "'a' stands twice"),
        ("r.yaml", "!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("r.yaml", "[" * 1000, "nested too deeply|cannot read"),
        (
            "r.yaml",
            "model: m\nrequirements: [{id: A, text: t, kind: lipschitz, max: 1e-3}]",
            "in YAML write 1.0e-3",
        ),
        ("r.yaml", "model: m\nrequirements: [{id: A, text: no, kind: lipschitz, max: 1}]", "not text"),
    ],
)
def test_broken_files_end_in_one_clear_error(job, name, text, reason):
    with pytest.raises(WeightspaceError, match=reason) as caught:
        read_requirements(job(text, name))
    assert "r." in str(caught.value)
