"""One page per package from its export table and its docstrings; `mkdocstrings` renders the entries."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class ApiPage:
    """A page: the package whose names it lists, and modules whose further names stand below them."""

    package: str
    title: str
    modules: tuple[str, ...] = ()
    only: str = ""  # of the package's names, those that live below this module
    without: str = ""

    @property
    def file(self) -> str:
        return f"api/{self.only or self.package}.md"


PAGES = (
    ApiPage("kernels", "kernels"),
    ApiPage(
        "weightspace",
        "weightspace",
        (
            "weightspace.layers",
            "weightspace.matching",
            "weightspace.permutation",
            "weightspace.report",
            "weightspace.bundled",
            "weightspace.testing",
        ),
    ),
    ApiPage("weightspace.equivariant", "weightspace.equivariant"),
    ApiPage("weightspace.graph", "weightspace.graph"),
    ApiPage("weightspace.zoo", "weightspace.zoo"),
    ApiPage("certify", "certify", ("certify.bounders",)),
    ApiPage("interp", "interp", without="interp.autoencoders"),
    ApiPage("interp", "interp: autoencoders", only="interp.autoencoders"),
)


def public_names(module: str) -> dict[str, str]:
    """Return the public names of a module -> the module that defines each, without importing it."""
    path = _source(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    if "_EXPORTS" in values:
        return ast.literal_eval(values["_EXPORTS"])
    origins = {
        alias.asname or alias.name: node.module or module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if "__all__" in values:
        return {name: origins.get(name, module) for name in sorted(ast.literal_eval(values["__all__"]))}
    defined = (node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    return {name: module for name in defined if not name.startswith("_")}


def names_on(page: ApiPage) -> dict[str, str]:
    """Return the dotted names a page documents -> the modules that define them."""
    found = {
        f"{page.package}.{name}": home
        for name, home in public_names(page.package).items()
        if home.startswith(page.only) and not (page.without and home.startswith(page.without))
    }
    exported = {name.rpartition(".")[2] for name in found}
    for module in page.modules:
        own = public_names(module)
        found |= {f"{module}.{name}": home for name, home in own.items() if name not in exported}
    return found


def render(page: ApiPage) -> str:
    """Return the page as Markdown: an overview, then every name under the module that defines it."""
    groups: dict[str, list[str]] = {}
    for name, home in names_on(page).items():
        groups.setdefault(home, []).append(name)
    lines = [f"# {page.title}", "", _docstring(page.only or page.package), ""]
    lines += ["| name | what it is |", "|---|---|"]
    for home in sorted(groups):
        for name in sorted(groups[home]):
            short = name.removeprefix(f"{page.package}.")
            lines.append(f"| [`{short}`](#{name}) | {_summary(home, name.rpartition('.')[2])} |")
    for home in sorted(groups):
        lines += ["", f"## {home} {{ #module-{home} }}", "", _docstring(home)]
        lines += [f"\n::: {name}" for name in sorted(groups[home])]
    return "\n".join(lines) + "\n"


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _docstring(module: str) -> str:
    return ast.get_docstring(ast.parse(_source(module).read_text(encoding="utf-8"))) or ""


def _summary(module: str, name: str) -> str:
    """Return the first line of a name's docstring, as a cell of a table."""
    path = _source(module)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return _cell((ast.get_docstring(node) or "").split("\n\n")[0])
        imported = isinstance(node, ast.ImportFrom) and node.module not in (None, module)
        if imported and name in (alias.asname or alias.name for alias in node.names):
            return _summary(node.module, name)
    return ""


def _cell(text: str) -> str:
    """Return text without the sign that ends a cell, in equations and outside."""
    parts = " ".join(text.replace("$$", "$").split()).split("$")
    equations = (part.replace("\\|", r"\Vert ").replace("|", r"\vert ").strip() for part in parts[1::2])
    parts[::2] = [part.replace("|", "&#124;") for part in parts[::2]]
    parts[1::2] = equations
    return "$".join(parts)
