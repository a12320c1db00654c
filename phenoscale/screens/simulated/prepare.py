"""A simulated screen ready to train on: rendered once, indexed, shown as it goes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from phenoscale.screens.build import build_index
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.planted import ScreenSpec, design_screen
from phenoscale.screens.simulated.synthetic import simulate_screen, write_relationships


def simulated_screen(spec: ScreenSpec, out: Path, console: Console) -> Path:
    """Renders and indexes the screen in `out`, or finds it there.

    Returns:
        `out`, which holds index.parquet, latents.parquet, and the planted relationships as
        complexes.csv, opposed.csv and, both together, relationships.csv.

    Raises:
        ValueError: if `out` holds another screen.
    """
    if (out / "screen.json").exists():
        # A screen from before there were conditions is a standard one.
        held = {"condition": "standard"} | json.loads((out / "screen.json").read_text())["spec"]
        if held != json.loads(json.dumps(asdict(spec))):
            raise ValueError(
                f"{out} holds the screen {held}, wanted is {asdict(spec)}. Give another folder."
            )
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


def _show(
    console: Console, progress: Progress, task: TaskID, told: list[int], done: int, total: int
) -> None:
    """A bar on a terminal, a line every quarter elsewhere."""
    progress.update(task, completed=done)
    quarter = 4 * done // total
    if not console.is_terminal and quarter not in told:
        told.append(quarter)
        console.print(f"  {done:,} of {total:,} sites rendered", highlight=False)
