"""The step benchmark's table: rates, utilization, ratios with their goals, and what it lacks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import step_peers
from benchmarks.figures import Figure, figure
from benchmarks.step_cases import PRECISIONS, Case, StepCost
from phenoscale.flops import training_flops

GOAL_REFERENCE_FP32, GOAL_PEER, GOAL_AMX_PEAK = 2.5, 1.5, 35.0  # on a CPU with AMX
GOAL_REFERENCE_BF16, GOAL_GPU_PEAK = 1.5, 45.0  # on a GPU
GOAL_LOOP = 2.0  # anywhere
BUSY = 0.5  # load average, over a minute, from which other processes spoil the figures of a CPU
OURS, REFERENCE, LOOP = "phenoscale", "reference MAE", "loop over channels"


def figures_of(
    case: Case,
    costs: Mapping[str, Sequence[StepCost]],
    peaks: Mapping[str, float],
    goals: Mapping[str, float],
) -> list[Figure]:
    """The table of one case.

    Args:
        case: the case.
        costs: the runs of every contender, by its name.
        peaks: FLOP/s of a matrix product by precision.
        goals: by "peak", or the name of a contender (or "best peer"); those that hold here.
    """
    flops = training_flops(case.trial("fp32"), case.channels, 1, 1)
    rate = {
        name: statistics.median(r.crops / r.wall_s for r in runs) for name, runs in costs.items()
    }
    ours = [name for name in costs if name.startswith(OURS)]
    best = max(ours, key=rate.__getitem__)
    out = []
    for name, runs in costs.items():
        row, precision = f"{case.name} | {name} |", name.rpartition(", ")[2]
        cpu_ms = statistics.median(r.cpu_s / r.crops * 1e3 for r in runs)
        out.append(figure(f"{row} rate", rate[name], "crops/s"))
        out.append(figure(f"{row} wall", 1e3 / rate[name], "ms/crop"))
        out.append(figure(f"{row} CPU", cpu_ms, "ms/crop"))
        peak_gib = [r.peak_gib for r in runs if r.peak_gib is not None]
        if peak_gib:
            out.append(figure(f"{row} GPU memory", max(peak_gib), "GiB"))
        share = 100 * flops * rate[name] / peaks[precision]
        goal = goals.get("peak") if name == best and precision == "bf16" else None
        out.append(figure(f"{row} utilization", share, "% of peak", goal))
    peers = [name for name in costs if name not in ours]
    for name in peers:
        out += _ratios(f"{case.name} | {best} / {name}", costs[best], costs[name], goals.get(name))
    if len(peers) > 1:
        peer = max(peers, key=rate.__getitem__)
        label = f"{case.name} | {best} / best peer ({peer})"
        out += _ratios(label, costs[best], costs[peer], goals.get("best peer"))
    return out


def _ratios(
    label: str, ours: Sequence[StepCost], theirs: Sequence[StepCost], goal: float | None
) -> list[Figure]:
    """How many times as fast ours is: the median over rounds, and the extremes."""
    found = [(a.crops / a.wall_s) / (b.crops / b.wall_s) for a, b in zip(ours, theirs, strict=True)]
    return [
        figure(label, statistics.median(found), "x", goal),
        figure(f"{label}, lowest", min(found), "x"),
        figure(f"{label}, highest", max(found), "x"),
    ]


def goals_of(case: Case, device: torch.device, here: Mapping[str, Any]) -> dict[str, float]:
    """The goals that hold for a case on this device, as `figures_of` takes them."""
    if not case.has_goals:
        return {}
    if case.objective == "ca_mae":
        return {f"{LOOP}, {p}": GOAL_LOOP for p in PRECISIONS}
    if device.type == "cuda":
        return {f"{REFERENCE}, bf16": GOAL_REFERENCE_BF16, "peak": GOAL_GPU_PEAK}
    if here["amx"]:
        return {
            f"{REFERENCE}, fp32": GOAL_REFERENCE_FP32,
            "best peer": GOAL_PEER,
            "peak": GOAL_AMX_PEAK,
        }
    return {}


def notes_of(
    device: torch.device, here: Mapping[str, Any], precisions: Sequence[str], load: float
) -> list[str]:
    """What the table was measured with, and what it lacks; `load` is the load average before."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else here["cpu"]
    out = [
        f"device: {name}; {torch.get_num_threads()} threads; torch {torch.__version__}; "
        f"{', '.join(precisions)}",
        "utilization: operations of phenoscale's model, which is of the same shape, for all",
    ]
    if not gpu and load > BUSY:
        out.append(f"NOT TO BE RELIED ON: the machine was busy, its load average {load:.1f}")
    if not gpu and not here["bf16"]:
        out.append("this CPU multiplies no bf16: fp32 figures only")
    if gpu or not here["amx"]:
        out.append(
            f"not measured here: a CPU with AMX (goals {GOAL_REFERENCE_FP32:g}x the fp32 "
            f"reference, {GOAL_PEER:g}x the best peer, {GOAL_AMX_PEAK:g}% of the bf16 peak)"
        )
    if not gpu:
        out.append(
            f"not measured here: a GPU (goals {GOAL_REFERENCE_BF16:g}x the bf16 reference, "
            f"{GOAL_GPU_PEAK:g}% of the bf16 peak)"
        )
    if not step_peers.has_transformers():
        out.append("transformers ViTMAE: not installed")
    return out
