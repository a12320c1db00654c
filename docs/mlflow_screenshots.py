"""Takes the pictures of MLflow that docs/mlflow.md shows, in headless Chromium.

Command: python docs/mlflow_screenshots.py STUDY_DIR docs/mlflow
The study must have an MLflow store of its own (phenoscale sync STUDY_DIR). Needs chromium on the
PATH and playwright (a development requirement).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from phenoscale.mirror_links import LOCAL_PAGE, MirrorRuns
from phenoscale.mirror_model import model_name
from phenoscale.mirror_store import ui_command
from phenoscale.tracking import ENVIRONMENT

PATIENCE_MS = 180_000
COLOURS = 64  # a page has few; fewer bytes in the repository


def main(study_dir: Path, out: Path) -> None:
    """Opens each page and writes a PNG of it."""
    left = MirrorRuns.read(study_dir)
    chromium = shutil.which("chromium")
    if left is None or chromium is None:
        raise SystemExit("Needed are chromium on the PATH, and a study that `sync` has mirrored.")
    facts = json.loads((study_dir / "study.json").read_text())
    best = json.loads((study_dir / "comparisons.json").read_text())["best"]
    model = quote(model_name(facts["name"]), safe="")
    out.mkdir(parents=True, exist_ok=True)
    with served(study_dir) as base, sync_playwright() as driver:
        run = left.link(left.runs[best]).replace(LOCAL_PAGE, base)
        pages = {  # name: address, what is there once it is drawn
            "view": (left.view(base), ".js-plotly-plot .scatterlayer .point"),
            "table": (left.view(base).replace("&compareRunsMode=CHART", ""), ".ag-row"),
            "trial": (f"{run}?workflowType=machine_learning", "text=Registered models"),
            "model": (
                f"{base}/#/models/{model}/versions/1?workflowType=machine_learning",
                "text=How it was trained",
            ),
        }
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (address, drawn) in pages.items():
            page = browser.new_page(viewport={"width": 1400, "height": 820})
            page.goto(address)
            page.locator(drawn).first.wait_for(timeout=PATIENCE_MS)
            _take(page, out / f"{name}.png")
            page.close()
        browser.close()


def _take(page: Page, path: Path) -> None:
    """A picture without the panel that MLflow opens beside its pages."""
    for button in page.locator('[aria-label="Close"]').all():
        with contextlib.suppress(Exception):
            button.click(timeout=1000)
    page.wait_for_timeout(8000)  # the other figures
    page.screenshot(path=path)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


@contextlib.contextmanager
def served(study_dir: Path) -> Iterator[str]:
    """MLflow over the study's store, as `phenoscale ui` serves it; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**ENVIRONMENT, **os.environ}
    command = ui_command(study_dir, port)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{base}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield base
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
