"""Takes the pictures of a report that the documentation shows, in headless Chromium.

Command: python docs/screenshots.py runs/laptop-seed0/report.html docs/laptop_study
Needs chromium on the PATH and playwright (a development requirement).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

VIEWS = (  # name, width and height in px, colours
    ("page-desktop", 1280, 1500, "light"),
    ("page-phone", 390, 1500, "dark"),
)
COLOURS = 128  # a page has few; fewer bytes in the repository


def main(report: Path, out: Path) -> None:
    """Opens the report at each size and writes a PNG of its top."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("There is no chromium on the PATH; install it to take pictures.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, colours in VIEWS:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if colours == "dark" else "light",
            )
            page.goto(report.resolve().as_uri())
            page.wait_for_timeout(3000)  # until the figures in sight are drawn
            path = out / f"{name}.png"
            page.screenshot(path=path)
            with Image.open(path) as picture:
                few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
