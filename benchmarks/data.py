"""What a crop costs, our ways and our peers': `python -m benchmarks.data [--case NAME] [--quick]`.

On the same images and crops, and with as many crops to a read: crops per second and CPU seconds per
1,000 crops, all processes of a way counted. Flips and quarter turns follow on the device, the same
for all; what they cost on a core is a row of its own. Medians of paired runs in alternating order;
the goals are ratios of medians. Peers are in the extra `bench` (`make bench-data` installs them).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import data_ours, data_peers, data_ray
from benchmarks.data_cases import CASES, Case, decode_site, expected, scaled, write_files
from benchmarks.data_cost import Cost, Host, Open
from benchmarks.data_peers import Job
from benchmarks.figures import Figure, figure, publish
from phenoscale.on_ray.pack import pack_screen

ROUNDS, QUICK_ROUNDS = 5, 1
SETTLE_S = (
    3  # in which Ray ends the idle workers of the way before, or its cost would be this way's
)
GOAL_PEERS, GOAL_CODEC, GOAL_RAY_FILES, GOAL_PLAIN = 1.5, 0.6, 1.25, 0.5


@dataclasses.dataclass(frozen=True)
class Way:
    """One way from files to batches."""

    open: Open
    """Prepares it."""
    host: str
    """Ways of one name share a process, one of them running at a time."""
    packed: bool = True
    """Whether it reads a packed copy, and so the longer run of crops."""
    delivers: bool = True
    """Whether it delivers crops; the codecs alone do not."""


FILES, FILES_RAY = "ours, files, no Ray", "ours, files, Ray Data"
PACKED, PACKED_RAY = "ours, packed, no Ray", "ours, packed, Ray worker"
PACKED_SENT = "ours, packed, Ray Data"
PLAIN_RAY = "plain Ray Data, packed"
CODEC_FILES, CODEC_PACKED = "codec alone, files", "codec alone, packed"
TURNS = "turns alone"
WAYS = {
    FILES: Way(data_ours.files_in_process, "ours", packed=False),
    FILES_RAY: Way(data_ray.files_on_ray, "ray", packed=False),
    PACKED: Way(data_ours.packed_in_process, "ours"),
    PACKED_RAY: Way(data_ray.packed_on_ray, "ray"),
    PACKED_SENT: Way(data_ray.packed_sent, "ray"),
    PLAIN_RAY: Way(data_ray.plain_ray, "ray"),
    CODEC_FILES: Way(data_ours.codec_files, "codecs", packed=False, delivers=False),
    CODEC_PACKED: Way(data_ours.codec_packed, "codecs", delivers=False),
    TURNS: Way(data_ours.turns_alone, "codecs", delivers=False),
    "torch DataLoader, files": Way(data_peers.torch_raw, "torch", packed=False),
    "torch DataLoader, Zarr": Way(data_peers.zarr_sites, "torch"),
    "torch DataLoader, Zarr Blosc": Way(data_peers.zarr_blosc, "torch"),
    "streaming": Way(data_peers.streaming_raw, "streaming"),
    "streaming, LZ4": Way(data_peers.streaming_lz4, "streaming"),
    "webdataset": Way(data_peers.webdataset_raw, "webdataset"),
    "webdataset, LZ4": Way(data_peers.webdataset_lz4, "webdataset"),
    "grain": Way(data_peers.grain_raw, "grain"),
    "grain, LZ4": Way(data_peers.grain_lz4, "grain"),
}
PEERS = tuple(name for name, way in WAYS.items() if way.open.__module__ == data_peers.__name__)


def prepare(
    case: Case, folder: Path, real_data: Path | None
) -> tuple[dict[bool, Job], dict[bool, Counter[int]], str]:
    """Writes a case's files, index, packed store and pixels.

    Args:
        case: the case.
        folder: an empty folder.
        real_data: folder of real data sets; None for simulated images alone.

    Returns:
        The jobs over files (False) and packed copies (True), the checksums that each must deliver,
        and where the pixels come from.
    """
    origin = write_files(case, folder / "screen", real_data)
    index = data_ours.index_files(case, folder)
    found = index.scale(0, 0)
    scale = None if found is None else np.array(found)
    truth = np.lib.format.open_memmap(
        folder / "truth.npy",
        mode="w+",
        dtype=np.uint8,
        shape=(case.sites, case.channels, case.site_px, case.site_px),
    )
    for site in range(case.sites):
        image = decode_site(case, folder / "screen", site)
        truth[site] = image if scale is None else scaled(image, scale)
    truth.flush()
    pack_screen(
        data_ours.raw_index(folder), data_ours.packed_index(folder).parent, Console(quiet=True)
    )
    jobs, checksums = {}, {}
    for packed in (False, True):
        reads = data_ours.planned_reads(case, folder, packed)
        jobs[packed] = Job(case, folder, reads, scale, folder / "truth.npy")
        checksums[packed] = expected(truth, reads, case.crop_px)
    return jobs, checksums, origin


def measure(case: Case, rounds: int, real_data: Path | None) -> list[Figure]:
    """Measures all ways of one case.

    Args:
        case: the case.
        rounds: paired runs.
        real_data: folder of real data sets; None for simulated images alone.

    Returns:
        The figures.

    Raises:
        RuntimeError: if a way delivers other crops than the plan says.
    """
    with tempfile.TemporaryDirectory() as name:
        jobs, checksums, origin = prepare(case, Path(name), real_data)
        print(f"{case.name}: {case.sites} sites of {case.channels} x {case.site_px} px, {origin}")
        hosts = {
            host: Host(
                {n: (way.open, jobs[way.packed]) for n, way in WAYS.items() if way.host == host}
            )
            for host in dict.fromkeys(way.host for way in WAYS.values())
        }
        try:
            with ThreadPoolExecutor(max_workers=2) as pool:
                list(pool.map(lambda host: _check(hosts[host], host, checksums), hosts))
            costs: dict[str, list[Cost]] = {way_name: [] for way_name in WAYS}
            for number in range(rounds):
                for way_name in list(WAYS) if number % 2 == 0 else reversed(WAYS):
                    if WAYS[way_name].host == "ray":
                        time.sleep(SETTLE_S)
                    costs[way_name].append(hosts[WAYS[way_name].host].measure(way_name))
        finally:
            for host in hosts.values():
                host.close()
    return figures_of(case.name, costs)


def _check(host: Host, name: str, checksums: Mapping[bool, Counter[int]]) -> None:
    """Runs all ways of a host once, which warms them up, and compares every crop with the plan."""
    for way_name, way in WAYS.items():
        if way.host != name:
            continue
        delivered, planned = host.crops(way_name), checksums[way.packed]
        if way.delivers and delivered != planned:
            raise RuntimeError(
                f"The way {way_name!r} does not deliver the planned crops: "
                f"{(planned - delivered).total()} of {planned.total()} are missing or differ."
            )


def figures_of(case: str, costs: Mapping[str, Sequence[Cost]]) -> list[Figure]:
    """The table of one case, and its ratios of medians with their goals.

    Args:
        case: its name.
        costs: the runs of every way.
    """
    cpu_ms = {
        name: statistics.median(run.cpu_s / run.crops * 1e3 for run in runs)
        for name, runs in costs.items()
    }
    rate = {
        name: statistics.median(run.crops / run.wall_s for run in runs)
        for name, runs in costs.items()
    }
    out = []
    for name in costs:
        # Milliseconds per crop and seconds per 1,000 crops are the same number.
        out.append(figure(f"{case} | {name} | CPU", cpu_ms[name], "s/1,000 crops"))
        out.append(figure(f"{case} | {name} | rate", rate[name], "crops/s"))
    best = min((name for name in costs if name in PEERS), key=cpu_ms.__getitem__)
    for ours in (PACKED, PACKED_RAY, PACKED_SENT):
        ratio = cpu_ms[best] / cpu_ms[ours]
        out.append(figure(f"{case} | {best} / {ours}", ratio, "x CPU", GOAL_PEERS))
        ratio = cpu_ms[CODEC_PACKED] / cpu_ms[ours]
        out.append(figure(f"{case} | {CODEC_PACKED} / {ours}", ratio, "x CPU", GOAL_CODEC))
    ratio = cpu_ms[FILES_RAY] / cpu_ms[FILES]
    out.append(
        figure(f"{case} | {FILES_RAY} / {FILES}", ratio, "x CPU", GOAL_RAY_FILES, at_most=True)
    )
    for ours in (PACKED_RAY, PACKED_SENT):
        ratio = cpu_ms[ours] / cpu_ms[PLAIN_RAY]
        out.append(
            figure(f"{case} | {ours} / {PLAIN_RAY}", ratio, "x CPU", GOAL_PLAIN, at_most=True)
        )
    return out


def smaller(case: Case) -> Case:
    """An eighth of a case's sites, and of the plan's batch with them; each visited more often.

    CPU time is counted in ticks of 10 ms, and a run of fewer crops would be a handful of them.
    """
    return dataclasses.replace(
        case,
        sites=case.sites // 8,
        plan_batch=case.plan_batch // 8,
        packed_visits=case.packed_visits * 4,
    )


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description="What a crop costs, our ways and our peers'.")
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="all by default")
    parser.add_argument("--quick", action="store_true", help="one small run of png512")
    parser.add_argument("--json", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    began = time.perf_counter()
    real = os.environ.get("PHENOSCALE_DATA")
    real_data = Path(real) if real else None
    names = arguments.case or (["png512"] if arguments.quick else list(CASES))
    figures = []
    for name in names:
        case = smaller(CASES[name]) if arguments.quick else CASES[name]
        figures += measure(case, QUICK_ROUNDS if arguments.quick else ROUNDS, real_data)
    figures.append(figure("whole benchmark", time.perf_counter() - began, "s"))
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
