"""Print the lower bounds of pyproject.toml as constraints for pip, torch excepted: python .ci/lowest.py."""

import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for line in [*project["dependencies"], *extras["onnx"], *extras["report"]]:
    requirement = Requirement(line)
    (lowest,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
    print(f"{requirement.name}=={version('torch').split('+')[0] if requirement.name == 'torch' else lowest}")
