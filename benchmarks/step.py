"""How fast one training step is, ours and our peers': `python -m benchmarks.step [--case NAME]`.

The same shape of model, batches in memory, optimizer, clipping and threads for all, in one process.
Ours goes through `phenoscale.train.train` as a trial does, deterministic and checking each loss;
peers run in a plain loop, spared both. Contenders take turns in rounds of alternating order; ratios
are of one round's runs, and their median counts. On a CPU the machine must have nothing else to do:
threads that wait for one another suffer from neighbours, and not all contenders alike. Needs torch
and timm, neither Ray nor pyarrow; transformers takes part where installed (`make bench-step`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks import step_peers
from benchmarks.figures import figure, machine, publish
from benchmarks.step_cases import CASES, DEFAULTS, PRECISIONS, Case, EnoughError, StepCost, Window
from benchmarks.step_figures import LOOP, OURS, REFERENCE, figures_of, goals_of, notes_of
from phenoscale.config import Trial
from phenoscale.models.build import Model, build_model
from phenoscale.parallel import prepare_process
from phenoscale.peak import matmul_peak
from phenoscale.train import train

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to train."""

    name: str
    """What the table calls it."""
    precision: str
    """fp32 or bf16."""
    run: Callable[[Case, Window, torch.device], None]
    """Trains a new model on the window's batches until the window has seen enough."""
    one_of: str = ""
    """Of those that share this name only the fastest is kept."""

    @property
    def ours(self) -> bool:
        """Whether it is phenoscale's."""
        return self.name.startswith(OURS)


def contenders(
    objective: str, precisions: Sequence[str], threads: int, eager: bool = False
) -> list[Contender]:
    """All that can train an objective here, ours first; without the compiled way if `eager`."""
    found = [
        Contender(f"{OURS}{' compiled' * compiled}, {p}", p, _ours(p, compiled, threads))
        for p in precisions
        for compiled in ([False] if eager else [False, True])
    ]
    for p in precisions:
        if objective == "mae":
            found.append(Contender(f"{REFERENCE}, {p}", p, _peer(step_peers.reference, p, threads)))
        if objective == "mae" and step_peers.has_transformers():
            for attention in ("eager", "sdpa"):
                run = _peer(_hugging_face(attention), p, threads)
                name = f"transformers ViTMAE {attention}, {p}"
                found.append(Contender(name, p, run, one_of=f"transformers ViTMAE, {p}"))
        if objective == "ca_mae":
            found.append(Contender(f"{LOOP}, {p}", p, _peer(step_peers.ChannelLoop, p, threads)))
    return found


def _ours(
    precision: str, compiled: bool, threads: int
) -> Callable[[Case, Window, torch.device], None]:
    def run(case: Case, window: Window, device: torch.device) -> None:
        prepare_process(threads)
        trial = case.trial(precision, compiled, threads)
        model = build_model(trial, channels=case.channel_names, num_classes=1)
        window.watch(model)
        _train_ours(trial, model, window, device)

    return run


def _train_ours(trial: Trial, model: Model, window: Window, device: torch.device) -> None:
    """The one place that calls the spine."""
    train(
        trial,
        model,
        window.batches,
        lambda progress: None,
        steps=window.num_steps,
        device=str(device),
    )


def _peer(
    build: Callable[[Case], nn.Module], precision: str, threads: int
) -> Callable[[Case, Window, torch.device], None]:
    def run(case: Case, window: Window, device: torch.device) -> None:
        prepare_process(threads)  # threads, and the allocator's settings, which peers gain by too
        torch.use_deterministic_algorithms(False)
        model, optim = build(case), case.trial(precision).optim
        window.watch(model)
        step_peers.train_plain(model, window.batches(0, window.num_steps), optim, device)

    return run


def _hugging_face(attention: str) -> Callable[[Case], nn.Module]:
    return lambda case: step_peers.HuggingFaceMAE(case, attention)


def measure(contender: Contender, case: Case, device: torch.device) -> StepCost:
    """One run of a contender: a new model, the steps to warm up, and those that are timed."""
    gc.collect()
    images = case.images()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        if not contender.ours:  # peers have a DataLoader pin their batches; ours pins in its loop
            images = [torch.from_numpy(crops).pin_memory().numpy() for crops in images]
    window = Window(case, images, device)
    with contextlib.suppress(EnoughError):
        contender.run(case, window, device)
    return window.cost()


def chosen(
    case: Case, found: Sequence[Contender], device: torch.device
) -> tuple[Case, list[Contender]]:
    """Runs each contender for a few steps: the case with a batch that fits all, and who takes part.

    That compiles, too. The batch is halved until no contender runs out of memory.
    """
    while True:
        torch.compiler.reset()  # or the shapes of the case before would make these dynamic ones
        try:
            short = dataclasses.replace(case, warmup=1, steps=2)
            wall_s = {c.name: measure(c, short, device).wall_s for c in found}
            break
        except torch.OutOfMemoryError:
            if case.batch == 1:
                raise
        case = dataclasses.replace(case, batch=case.batch // 2)
    best: dict[str, Contender] = {}
    for c in sorted(found, key=lambda c: wall_s[c.name]):
        best.setdefault(c.one_of or c.name, c)
    return case, [c for c in found if c in best.values()]


def compete(
    case: Case, found: Sequence[Contender], rounds: int, device: torch.device
) -> dict[str, list[StepCost]]:
    """What each contender's runs cost, a run per round."""
    costs: dict[str, list[StepCost]] = {c.name: [] for c in found}
    for number in range(rounds):
        print(f"{case.name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for c in found if number % 2 == 0 else reversed(found):
            costs[c.name].append(measure(c, case, device))
    return costs


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description="How fast one training step is.")
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="by device")
    parser.add_argument("--device", help="cpu or cuda; cuda by default where there is one")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch", type=int, help="crops per step; the case's by default")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="by device")
    parser.add_argument("--eager", action="store_true", help="leave the compiled way out")
    parser.add_argument("--json", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    began, here, load = time.perf_counter(), machine(), os.getloadavg()[0]
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fast_bf16 = device.type == "cuda" or here["bf16"]
    precisions = arguments.precision or (list(PRECISIONS) if fast_bf16 else ["fp32"])
    prepare_process(arguments.threads)
    peaks = {p: matmul_peak(device, p) for p in precisions}
    notes = notes_of(device, here, precisions, load)
    figures = [figure(f"matmul peak, {p}", value / 1e9, "GFLOP/s") for p, value in peaks.items()]
    for name in arguments.case or DEFAULTS[device.type]:
        case = CASES[name]
        case = dataclasses.replace(case, batch=arguments.batch or case.batch)
        found = contenders(case.objective, precisions, arguments.threads, arguments.eager)
        case, found = chosen(case, found, device)
        notes.append(f"{name}: {case.channels} channels, {case.batch} crops per step")
        costs = compete(case, found, arguments.rounds, device)
        figures += figures_of(case, costs, peaks, goals_of(case, device, here))
    if any(f["unit"] == "% of peak" and f["value"] > 100 for f in figures):
        notes.append("above 100%: the peak was measured, and kept, while the machine was busy")
    figures.append(figure("whole benchmark", time.perf_counter() - began, "s"))
    publish(figures, arguments.json, notes)


if __name__ == "__main__":
    main()
