"""What a user of the wheel meets, away from the repository: python .ci/installed.py REPOSITORY.

Run by the interpreter into which the wheel is installed: the packages come from it, the compiled eigensolver is in it
when a compiler was there, every command has its help, the first report is written, the imports of every tutorial work.
"""

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Check everything; the first that fails ends the run with its message."""
    repository = Path(sys.argv[1]).resolve()
    import certify
    import interp
    import kernels
    import weightspace
    from weightspace.cli import COMMANDS

    for package in (kernels, weightspace, certify, interp):
        home = Path(package.__file__)
        assert repository not in home.parents, f"{home} is in the repository"
    if shutil.which("cc"):
        assert "simd" in kernels.available_backends(), (
            f"only {kernels.available_backends()}: the wheel has no extension"
        )

    program = Path(sys.executable).with_name("weightspace")
    for command in ([], *([name] for name in COMMANDS)):
        shown = _run(program, *command, "--help")
        assert "Usage: weightspace" in shown, shown
    print(f"--help of {len(COMMANDS)} commands")

    with tempfile.TemporaryDirectory() as folder:
        print(_run(program, "demo", "-o", f"{folder}/report"))
        assert (Path(folder) / "report" / "report.html").stat().st_size > 100_000

    tutorials = sorted((repository / "tutorials").glob("[0-9]*.py"))
    for tutorial in tutorials:
        imports = [
            node
            for node in ast.walk(ast.parse(tutorial.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(imports, []), tutorial.name, "exec"), {})
    print(f"imports of {len(tutorials)} tutorials")


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


main()
