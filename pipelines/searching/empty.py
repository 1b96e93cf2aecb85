"""The page of no search at all; light, as the stage then has nothing else to do."""

from pathlib import Path

from pipelines.scoring import pages
from segcore.data.atomic import write_file

TEMPLATES = Path(__file__).with_name("templates")


def write_none(page: Path) -> None:
    """Write the page of no search."""
    write_page(page, pages.environment(TEMPLATES).get_template("none.html.j2").render())


def write_page(page: Path, text: str) -> None:
    """Write a page whole or not at all, in a folder that is made if it is not there."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_file(page, text.encode())
