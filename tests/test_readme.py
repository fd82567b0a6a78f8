"""What the README shows must run."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    assert "permutation groups" in capsys.readouterr().out


def test_commands_are_the_ones_that_exist():
    from weightspace.cli import COMMANDS

    shown = set(re.findall(r"^weightspace ([\w-]+)", README.read_text(), flags=re.M))
    assert shown == set(COMMANDS) - {"demo"}


def test_picture_and_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert links
    assert all((README.parent / link).exists() for link in links)
