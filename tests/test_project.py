"""The packages as a whole: light imports, one export table each, and no mistaken `kernels`."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["kernels", "weightspace", "certify", "interp"]
packages = pytest.mark.parametrize("package", PACKAGES)


def run_python(code, *path):
    """Run code in a new interpreter that finds packages in `path` first, then in the repository."""
    start = f"import sys; sys.path[:0] = {[str(entry) for entry in [*path, ROOT]]!r}\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", start + code], capture_output=True, text=True, timeout=120, check=False
    )


@packages
def test_import_loads_neither_torch_nor_submodules(package):
    code = f"""
import {package}
heavy = {{"torch", "numpy", "scipy", "networkx", "cvxpy", "matplotlib", "onnx"}} & sys.modules.keys()
inner = [name for name in sys.modules if name.startswith({package!r} + ".")]
others = [name for name in {PACKAGES!r} if name != {package!r} and name in sys.modules]
assert not heavy and not inner and not others, (heavy, inner, others)
dir({package})
assert "torch" not in sys.modules
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@packages
def test_export_table_matches_what_type_checkers_see(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: statement.module
        for block in blocks
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    module = importlib.import_module(package)
    assert seen == module._EXPORTS
    assert list(module._EXPORTS) == sorted(module._EXPORTS) == module.__all__
    assert set(module._EXPORTS) <= set(dir(module))


@packages
def test_every_export_exists_and_shadows_no_module(package):
    module = importlib.import_module(package)
    for name, home in module._EXPORTS.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
        assert importlib.util.find_spec(f"{package}.{name}") is None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@packages
def test_packages_are_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def test_version():
    import weightspace

    try:
        expected = importlib.metadata.version("weightspace")
    except importlib.metadata.PackageNotFoundError:
        expected = "0.0.0+source"
    assert weightspace.__version__ == expected


def test_kernels_cannot_be_mistaken_for_the_other_distribution():
    import kernels

    assert not hasattr(kernels, "__version__")


@pytest.mark.parametrize("keeps_our_files", [False, True], ids=["other folder", "overwritten in place"])
def test_foreign_kernels_is_refused(tmp_path, keeps_our_files):
    foreign = tmp_path / "kernels"
    foreign.mkdir()
    (foreign / "__init__.py").write_text('raise SystemExit("the foreign package was imported")\n')
    if keeps_our_files:
        (foreign / "eigensolver.py").write_text("")
    result = run_python("import weightspace", tmp_path)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError")
    assert str(foreign) in message
    assert "pip uninstall kernels" in message


def test_missing_kernels_is_refused(tmp_path):
    (tmp_path / "weightspace").symlink_to(ROOT / "weightspace")
    code = f"""
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
sys.path[:] = [{str(tmp_path)!r}, *(p for p in sys.path if p != {str(ROOT)!r})]
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
import weightspace
"""
    result = run_python(code)
    assert "none was found" in result.stderr


def test_no_init_file_below_tests():
    # A folder tests/kernels with an __init__.py would be another package called `kernels`.
    assert not list((ROOT / "tests").rglob("__init__.py"))
