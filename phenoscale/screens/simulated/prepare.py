"""A simulated screen ready to train on: rendered once, indexed, shown as it goes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from phenoscale.screens.build import build_index
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.planted import ScreenSpec, design_screen
from phenoscale.screens.simulated.synthetic import simulate_screen, write_relationships
from phenoscale.screens.store import Store, copy_all

_SCREEN_FILE = "screen.json"


def simulated_screen(spec: ScreenSpec, out: Path, console: Console) -> Path:
    """Renders and indexes the screen in `out`, or finds it there.

    Returns:
        `out`, which holds index.parquet, latents.parquet, and the planted relationships as
        complexes.csv, opposed.csv and, both together, relationships.csv.

    Raises:
        ValueError: if `out` holds another screen.
    """
    if (out / _SCREEN_FILE).exists():
        _check_screen(json.loads((out / _SCREEN_FILE).read_text()), spec, str(out))
        if not (out / "complexes.csv").exists():  # from before they were told apart
            write_relationships(design_screen(spec), out)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        console.print(
            f"[bold]simulating[/bold] {spec.num_sites:,} sites of {spec.num_wells:,} wells",
            highlight=False,
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("  rendering", total=spec.num_sites)
            told: list[int] = []

            def tell(done: int, total: int) -> None:
                _show(console, progress, task, told, done, total)

            simulate_screen(spec, out, workers=os.cpu_count() or 1, progress=tell)
    if not (out / "index.parquet").exists():
        build_index(read_manifest(out / "sites.csv"), out, out / "index.parquet")
    return out


def uploaded_screen(spec: ScreenSpec, url: str, rendered: Path, console: Console) -> None:
    """Renders and indexes the screen at a URL, or finds it there.

    Files as `simulated_screen`; screen.json is the last of them, so a screen that has it is whole.

    Args:
        spec: of the screen.
        url: folder of the screen, without credentials.
        rendered: folder of this machine to render it in; removed when all is at the URL.
        console: where a person watches.

    Raises:
        ValueError: if there is another screen at the URL, or the URL holds credentials.
        RootVanishedError: if the store does not answer, after bounded retries.
    """
    store = Store.of(url)
    if (content := store.read(_SCREEN_FILE)) is not None:
        _check_screen(json.loads(content), spec, store.name)
        return
    simulated_screen(spec, rendered, console)
    names = {
        path.relative_to(rendered).as_posix(): path
        for path in rendered.rglob("*")
        if path.is_file()
    }
    console.print(f"  copying {len(names):,} files to {store.name}", highlight=False)
    copy_all(lambda name: store.put(names[name], name), sorted(names.keys() - {_SCREEN_FILE}))
    store.put(names[_SCREEN_FILE], _SCREEN_FILE)
    shutil.rmtree(rendered)


def _check_screen(found: dict[str, Any], spec: ScreenSpec, place: str) -> None:
    # A screen from before there were conditions is a standard one.
    held = {"condition": "standard"} | found["spec"]
    if held != json.loads(json.dumps(asdict(spec))):
        raise ValueError(
            f"{place} holds the screen {held}, wanted is {asdict(spec)}. Give another folder."
        )


def _show(
    console: Console, progress: Progress, task: TaskID, told: list[int], done: int, total: int
) -> None:
    """A bar on a terminal, a line every quarter elsewhere."""
    progress.update(task, completed=done)
    quarter = 4 * done // total
    if not console.is_terminal and quarter not in told:
        told.append(quarter)
        console.print(f"  {done:,} of {total:,} sites rendered", highlight=False)
