"""What a page of a report is made of, and how it becomes HTML that needs no network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from phenoscale.reports.figure_parts import Figure
from phenoscale.reports.report_tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page."""

    caption: str
    """What it shows."""
    source: str
    """The PNG as a data URI."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it, in this order. `code` in texts stands in backticks."""

    id: str
    """Where links lead to."""
    title: str
    """The heading."""
    texts: tuple[str, ...] = ()
    """Paragraphs."""
    facts: tuple[tuple[str, str], ...] = ()
    """Terms and what is said of them."""
    figures: tuple[Figure, ...] = ()
    """Figures; two or more stand side by side where there is room."""
    full_width: bool = False
    """Whether figures stand below one another all the same."""
    tables: tuple[Table, ...] = ()
    """Tables; those without rows are left out."""
    pictures: tuple[Picture, ...] = ()
    """Pictures."""
    folded: str = ""
    """If given, all but the texts is folded under these words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """A report, whether of one study or of several."""

    kind: str
    """What it is, above the name."""
    name: str
    """The heading."""
    question: str
    """What was asked; may be empty."""
    answer: tuple[str, ...]
    """The first sentences."""
    notes: tuple[str, ...]
    """What else is to be known, one sentence or two each."""
    sections: tuple[Section, ...]
    """The rest."""

    @property
    def figures(self) -> list[Figure]:
        """All figures, in the order of the page."""
        return [figure for section in self.sections for figure in section.figures]

    def html(self) -> str:
        """One file that holds everything; the same for the same page."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["coded"] = _coded
        return environment.get_template("page.html.j2").render(
            page=self,
            specifications=_script_json(self.figures),
            plotly=get_plotlyjs() if self.figures else "",
        )


def _coded(text: str) -> Markup:
    """Escaped text, with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _script_json(value: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
