#!/usr/bin/env python
"""Write the software bill of materials: everything `pip install weightspace` brings along, as CycloneDX JSON.

    .venv/bin/python .ci/sbom.py [--extra onnx --extra report ..] [-o sbom.json]

What is needed is told by the metadata of the installed distributions: from `weightspace` (with the extras asked for)
along `Requires-Dist`, markers evaluated for this machine. Tools that happen to be in the same environment are left
out. Names, versions, licenses and package URLs are those that `cyclonedx-py environment` reports. There is neither a
time nor a random serial number in it, so that the same environment gives the same bytes.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "weightspace"


def required(name: str, extras: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return name -> extras of everything that a distribution needs on this machine, itself included.

    Raises:
        PackageNotFoundError: a requirement is not installed, so that the list would be incomplete.
    """
    found: dict[str, frozenset[str]] = {}
    pending = [(canonicalize_name(name), extras)]
    while pending:
        name, wanted = pending.pop()
        known = found.get(name)
        if known is not None and wanted <= known:
            continue
        found[name] = wanted | (known or frozenset())
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in (*found[name], "")
            )
            if applies:
                pending.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def bill(extras: frozenset[str]) -> dict[str, Any]:
    """Return the bill of this environment, cut down to what is required."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--no-validate"]
    whole = json.loads(subprocess.run([*command, sys.executable], check=True, capture_output=True).stdout)
    needed = required(ROOT, extras)
    known = {canonicalize_name(component["name"]): component for component in whole["components"]}
    root = known[ROOT]
    places = {known[name]["bom-ref"]: name for name in needed}
    components = sorted((known[name] for name in needed if name != ROOT), key=lambda one: one["bom-ref"])
    dependencies = []
    for entry in sorted(whole["dependencies"], key=lambda one: one["ref"]):
        if entry["ref"] in places:
            kept = sorted(ref for ref in entry.get("dependsOn", []) if ref in places)
            dependencies.append({"ref": entry["ref"], **({"dependsOn": kept} if kept else {})})
    for component in [root, *components]:
        component.setdefault(
            "purl", f"pkg:pypi/{canonicalize_name(component['name'])}@{component['version']}"
        )
        component["licenses"] = [
            _named(one) for one in component.get("licenses") or _license(component["name"])
        ]
        references = component.pop(
            "externalReferences", []
        )  # of what was installed from a folder of this machine
        if kept := [one for one in references if not one["url"].startswith("file:")]:
            component["externalReferences"] = kept
    asked = {"name": "weightspace:extras", "value": ",".join(sorted(extras))}
    return {
        **{key: whole[key] for key in ("$schema", "bomFormat", "specVersion", "version")},
        "metadata": {"component": {**root, "type": "library"}, "properties": [asked]},
        "components": components,
        "dependencies": dependencies,
    }


def _license(name: str) -> list[dict[str, Any]]:
    """The first line of the license text, of packages that name it in no other way."""
    line = (distribution(name).metadata.get("License") or "").split("\n")[0]
    return [{"license": {"name": line or "not stated in the metadata of the package"}}]


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """Give a license that is known by its trove classifier the last part of that as its name."""
    words = entry.get("license", {}).get("name", "")
    return (
        {"license": {**entry["license"], "name": words.rpartition(" :: ")[2]}} if " :: " in words else entry
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--extra", action="append", default=[], help="of weightspace: onnx, report, ..")
    parser.add_argument("-o", "--output", type=Path, default=Path("sbom.json"))
    chosen = parser.parse_args(arguments)
    found = bill(frozenset(chosen.extra))
    chosen.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"{chosen.output}: {len(found['components'])} packages\n")


if __name__ == "__main__":
    main(sys.argv[1:])
