"""How many operations a device does in the best case: the measure of what training makes of it."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from phenoscale.cpu import cpu_name
from phenoscale.results import write_json

_SIDE = {"cpu": 1024, "cuda": 8192}
_PIECE_S, _PIECES = 0.05, 5
_QUIET_LOAD = 0.5  # processes that want to run, per core, below which a figure is the last one
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@functools.cache
def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product on a device: measured, not from a datasheet.

    Measured once per node, for so many threads: a file in the user's cache folder keeps it. While
    other work holds the node's CPUs each process measures again, and the best figure is kept.

    Args:
        device: a CPU or CUDA device.
        precision: fp32 or bf16.

    Returns:
        The best of all measurements; a multiply-add counts as two.
    """
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), 0
    else:
        name = f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"
        threads = torch.get_num_threads()
    key = f"{name}, {threads} threads, {precision}, torch {torch.__version__}"
    path = _cache_folder() / "matmul_peak.json"
    known = _known(path)
    if key not in known or not known[key]["undisturbed"]:
        undisturbed = os.getloadavg()[0] < _QUIET_LOAD * (os.cpu_count() or 1)
        best = max(_measured(device, precision), known.get(key, {}).get("flops", 0.0))
        known = _known(path) | {key: {"flops": best, "undisturbed": undisturbed}}
        try:
            write_json(path, known)
        except OSError:
            pass  # a home that cannot be written to: each process then measures for itself
    return known[key]["flops"]


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """What the file holds, but for entries that another version wrote."""
    try:
        found = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return {
        key: entry
        for key, entry in found.items()
        if isinstance(entry, dict) and {"flops", "undisturbed"} <= entry.keys()
    }


def _measured(device: torch.device, precision: str) -> float:
    side = _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(_DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    best = 0.0
    for piece in range(1 + _PIECES):
        products, start = 0, time.perf_counter()
        while time.perf_counter() - start < _PIECE_S:
            torch.mm(a, b, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            products += 1
        if piece:  # the first one warms up
            best = max(best, products * 2 * side**3 / (time.perf_counter() - start))
    return best


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "phenoscale"
