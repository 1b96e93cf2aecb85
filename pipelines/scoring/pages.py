"""Pages of reports: templates of a room with the style that all pages share."""

import math
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("templates")


def environment(templates: Path) -> Any:
    """A jinja2 environment over a folder of templates, which may include "style.css"."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, STYLE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["figure"] = figure
    return found


def figure(value: float | None, digits: int = 3) -> str:
    """A figure as pages show it; n/a where it is not defined."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"
