"""The examples in the docstrings run and print what they say.

`python tests/test_docstrings.py [PACKAGE...]` runs them without pytest, on whatever packages the interpreter finds: on
an installed wheel when started outside the repository. It exits with status 1 when an example fails.
"""

import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

PACKAGES = ("kernels", "weightspace", "certify", "interp")
# The names that scripts outside the repository rely on.
FIXED = {
    "kernels": "Eigh available_backends eigh eigh_factored eigvalsh project_psd spectral_function top_eigh",
    "weightspace": """
        ActivationMatching Alignment Barrier FrankWolfeMatching Inspection Merged Network
        ParameterGraph StraightThroughMatching SymmetrySpec WeightMatching align barrier
        canonical_hash distance encode inspect merge read symmetry trace""",
    "weightspace.equivariant": "DeepWeightSpaceNet EquivariantLinear InvariantLinear",
    "weightspace.graph": "NeuralGraphNet NeuralGraphTransformer",
    "weightspace.zoo": "WeightZoo fit_inrs",
    "weightspace.testing": "assert_equivariant assert_function_preserved",
    "certify": """
        Ball Box Certificate CheckResult ClosedForm GroupSort Householder LipSDP MaxMin NormProduct
        RobustAccuracy check lipschitz robust_accuracy""",
    "interp": """
        BatchTopK Bilinear BilinearAutoencoder BilinearMLP Decomposition Gated JumpReLU
        LiftedAutoencoder Metrics OperatorAutoencoder ReLU SparseAutoencoder TopK TrainingRun
        adversarial_masks decompose evaluate hosvd load_autoencoder similarity train""",
}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples(packages=PACKAGES):
    """Return the names of the modules that have a line of an example, without importing them."""
    found = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.origin:
            raise SystemExit(f"there is no package {package!r} to take examples from")
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE):
                parts = [package, *path.relative_to(folder).with_suffix("").parts]
                found.append(".".join(parts).removesuffix(".__init__"))
    return found


def run_examples(name):
    """Run the examples of one module: how many docstrings have some, how many failed, and doctest's report.

    Each docstring starts without names, so that what a reader copies is all there is, and with one state of the random
    numbers, which is put back afterwards.
    """
    import torch

    docstrings, failed, report = 0, 0, StringIO()
    for test in doctest.DocTestFinder().find(importlib.import_module(name), globs={}):
        if test.examples:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                docstrings += 1
                failed += doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.write).failed > 0
    return docstrings, failed, report.getvalue()


def pytest_generate_tests(metafunc):  # instead of a decorator, which would need pytest
    if "module" in metafunc.fixturenames:
        metafunc.parametrize("module", modules_with_examples())
    if "package" in metafunc.fixturenames:
        metafunc.parametrize("package", FIXED)


def test_examples_run(module):
    docstrings, failed, report = run_examples(module)
    assert docstrings, f"{module} has lines of examples, but doctest finds none in a docstring"
    assert not failed, report


def test_fixed_names_have_examples(package):
    module, parser = importlib.import_module(package), doctest.DocTestParser()
    names = FIXED[package].split()
    assert names == sorted(names)
    assert [name for name in names if not parser.get_examples(getattr(module, name).__doc__)] == []


def test_examples_run_outside_pytest(tmp_path):
    package = tmp_path / "sums"
    package.mkdir()
    (package / "__init__.py").write_text('def add():\n    """Add.\n\n    >>> 1 + 1\n    2\n    """\n')
    (package / "wrong.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    result = subprocess.run(
        [sys.executable, __file__, "sums"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "Expected:\n    3\nGot:\n    2" in result.stdout
    assert result.stdout.endswith("2 docstrings in 2 modules, 1 failed\n")


def test_status_says_whether_all_examples_hold(tmp_path, monkeypatch, capsys):
    (tmp_path / "differences").mkdir()
    text = '"""\n>>> 2 - 1\n1\n"""\n'
    (tmp_path / "differences" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["differences"]) == 0
    assert capsys.readouterr().out == "1 docstrings in 1 modules, 0 failed\n"
    (tmp_path / "differences" / "__init__.py").write_text("")
    assert main(["differences"]) == 1  # nothing was run


def main(packages):
    modules = modules_with_examples(packages or PACKAGES)
    counts = []
    for name in modules:
        docstrings, failed, report = run_examples(name)
        counts.append((docstrings, failed))
        sys.stdout.write(report)
    docstrings, failed = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    sys.stdout.write(f"{docstrings} docstrings in {len(modules)} modules, {failed} failed\n")
    return 1 if failed or not docstrings else 0


if __name__ == "__main__":
    # Python looks here first, where folders have the names of the packages.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    sys.exit(main(sys.argv[1:]))
