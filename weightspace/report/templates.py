"""Pages from jinja2 templates that stand beside the code; `base.html.j2` here is what all of them extend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightspace.errors import MissingDependencyError

_SHARED = Path(__file__).parent


def load_template(path: Path, what: str) -> Any:
    """Return a template that escapes what it is given and refuses what it is not given.

    It may extend `base.html.j2` and import `parts.html.j2`, which stand beside this file: one style for all pages.

    Args:
        path: of the template file.
        what: is made with it, for the message: "the report".
    Raises:
        MissingDependencyError: the extra `report` is not installed: jinja2, and matplotlib, which pages with figures
            need after minutes of work.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'for {what}, {error.name} is missing; install it with: pip install "weightspace[report]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)
