"""The software bill of materials is complete, has nothing else in it, is valid CycloneDX and always the same."""

import importlib.util
import json
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom makes the list of packages")
SCRIPT = Path(__file__).parents[1] / ".ci" / "sbom.py"


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bill(sbom):
    return sbom.bill(frozenset({"report"}))


def needs(name, extras=()):
    """Requirements of an installed distribution that hold on this machine."""
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def test_every_requirement_of_what_is_listed_is_listed(bill):
    listed = {canonicalize_name(one["name"]): one for one in bill["components"]}
    reached, pending = set(), [("weightspace", ("report",))]
    while pending:
        name, extras = pending.pop()
        for requirement in needs(name, extras):
            found = canonicalize_name(requirement.name)
            assert found in listed or found == "weightspace", f"{name} needs {requirement}"
            if found in listed:
                assert requirement.specifier.contains(listed[found]["version"], prereleases=True)
                if found not in reached:
                    pending.append((found, tuple(requirement.extras)))
                reached.add(found)
    assert reached == set(listed), "something is listed that nothing needs"
    assert {"torch", "numpy", "matplotlib", "pyyaml"} <= set(listed)
    assert not {"pytest", "ruff", "cyclonedx-bom", "atheris", "onnx"} & set(listed)


def test_every_package_has_its_version_license_and_url(bill):
    for one in [bill["metadata"]["component"], *bill["components"]]:
        assert one["version"] == distribution(one["name"]).version
        assert one["purl"].startswith(f"pkg:pypi/{canonicalize_name(one['name'])}@")
        names = [
            entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]
            for entry in one["licenses"]
        ]
        assert names
        assert all(names)
    known = {one["bom-ref"] for one in [bill["metadata"]["component"], *bill["components"]]}
    assert {entry["ref"] for entry in bill["dependencies"]} == known
    assert all(set(entry.get("dependsOn", [])) <= known for entry in bill["dependencies"])


def test_it_is_valid_and_always_the_same(sbom, bill, tmp_path, capsys):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    path = tmp_path / "sbom.json"
    sbom.main(["--extra", "report", "-o", str(path)])
    assert f"{len(bill['components'])} packages" in capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == bill
    assert "timestamp" not in bill["metadata"]
    assert "serialNumber" not in bill
    assert str(Path(__file__).parents[1]) not in text, "a folder of this machine is in the list"
    kinds = {
        json.dumps([[*entry, *entry.get("license", {})] for entry in one["licenses"]]): one
        for one in bill["components"]
    }
    some = {
        **bill,
        "components": [*kinds.values()],
        "dependencies": bill["dependencies"][:5],
    }  # all take many seconds
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(some)) is None
