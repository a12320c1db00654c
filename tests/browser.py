"""A real Chromium for the tests of pages: what it draws, asks for and complains of."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs chromium on the PATH and playwright (a development requirement) to drive it",
)


@dataclasses.dataclass(kw_only=True)
class Seen:
    """A page that was opened, and what the browser noticed."""

    page: Page
    """The page."""
    complaints: list[str]
    """Errors and warnings of the console, and exceptions of scripts."""
    requests: list[str]
    """Addresses that were asked for, the page itself first."""

    def unfold(self) -> None:
        """Opens all that is folded, and waits until every figure in it is drawn."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        self.wait("[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg'))")

    def wait(self, expression: str) -> None:
        """Until an expression is true; the page's policy forbids the driver's own way to wait."""
        for _ in range(200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Starts the browser of the system, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser,
    place: Path | str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
) -> Iterator[Seen]:
    """Opens a file, or an address, at a width in CSS pixels, in a light or a dark scheme."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    seen = Seen(page=page, complaints=[], requests=[])
    page.on(
        "console",
        lambda m: seen.complaints.append(m.text) if m.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(place.as_uri() if isinstance(place, Path) else place)
    yield seen
    context.close()
