"""What every benchmark shares: figures with their goals, the machine, the table and the JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from phenoscale.cpu import cpu_flags, cpu_name, multiplies_bf16

_PACKAGES = (
    "phenoscale",
    "numpy",
    "pyarrow",
    "pandas",
    "tifffile",
    "torch",
    "timm",
    "transformers",
    "ray",
    "mlflow",
)


class Figure(TypedDict):
    """One measured number; holds says whether it meets its goal, null where there is none."""

    name: str
    value: float
    unit: str
    goal: float | None
    holds: bool | None


def figure(
    name: str, value: float, unit: str, goal: float | None = None, at_most: bool = False
) -> Figure:
    """Put a measured value beside its goal.

    Args:
        name: What was measured.
        value: The number, in `unit`.
        unit: Unit of value and goal.
        goal: The value to reach; None where there is none.
        at_most: Whether the goal is an upper limit; a lower limit otherwise.

    Returns:
        The figure, ready for `publish`.
    """
    holds = None if goal is None else (value <= goal if at_most else value >= goal)
    return {"name": name, "value": value, "unit": unit, "goal": goal, "holds": holds}


def machine() -> dict[str, object]:
    """Describe this machine: CPU, usable cores, bf16 and AMX, Python and package versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a machine without Ray or MLflow runs the benchmarks of the other sides
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "bf16": multiplies_bf16(),
        "amx": "amx_tile" in cpu_flags(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def publish(figures: Sequence[Figure], json_path: Path | None, notes: Sequence[str] = ()) -> None:
    """Print the figures as a table; where a path is given, write them and the machine as JSON.

    Args:
        figures: What was measured.
        json_path: File for the same; None for none.
        notes: Sentences on how it was measured, and on what was not.
    """
    width = max(len(f["name"]) for f in figures)
    for f in figures:
        goal = ""
        if f["goal"] is not None:
            sign = ">=" if f["holds"] == (f["value"] >= f["goal"]) else "<="
            goal = f"goal {sign} {f['goal']:g}: {'holds' if f['holds'] else 'MISSED'}"
        print(f"{f['name']:<{width}}  {f['value']:>10.4g} {f['unit']:<14} {goal}".rstrip())
    for note in notes:
        print(note)
    here = machine()
    print(f"on {here['cpu']}, {here['cores']} cores, bf16 {here['bf16']}, AMX {here['amx']}")
    if json_path is not None:
        found = {"figures": list(figures), "notes": list(notes), "machine": here}
        text = json.dumps(found, indent=2)
        json_path.write_text(text + "\n", encoding="utf-8")
