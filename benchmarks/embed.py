"""How fast a screen is embedded: in this process, and by one and two actors of Ray.

Command: python -m benchmarks.embed [--quick] [--json FILE]

A simulated screen of eight plates and encoders of random weights: nano/8 on crops of 64 px, where
reading, writing and Ray weigh most, and S/16 on sites of 256 px, where encoding does. One
thread to a process. "At work" is the speed while shards are written; with its start, Ray's actors
start in it and load the encoder, some seconds each time whatever the screen. Of a process at work
the encoder has all the time but its waiting for images; writing the rows is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure, figure, publish
from experiments import grid
from phenoscale.config import Crops
from phenoscale.embed_index import Runner, embed_index, in_place
from phenoscale.embed_plan import EmbedOptions
from phenoscale.embed_shard import ShardEmbedder, ShardResult, Told
from phenoscale.export_trial import export_encoder
from phenoscale.fit import write_trial
from phenoscale.on_ray.embed import on_actors
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.parallel import prepare_process
from phenoscale.reference import ReferenceModel
from phenoscale.screens.build import build_index
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.screens.simulated.synthetic import simulate_screen
from phenoscale.study_files import StudyFiles

NANO = ScreenSpec(
    num_complexes=8,
    num_opposed=2,
    experimental_batches=4,
    controls_per_batch=16,
    sites_per_well=6,
    size_px=64,
)
SMALL = ScreenSpec(
    num_complexes=2,
    genes_per_complex=2,
    num_opposed=0,
    experimental_batches=4,
    controls_per_batch=4,
    sites_per_well=1,
    size_px=256,
)
OPTIONS = EmbedOptions(shard_sites=1)  # a shard for each plate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to embed, measured."""

    sites: int
    """Sites of the screen."""
    wall_s: float
    """From the command to the finished folder; actors start and load the encoder in it."""
    work_s: float
    """Of writing all shards, summed."""
    waited_s: float
    """Of these, waiting for images."""


def embed_ways(
    name: str, spec: ScreenSpec, backbone: str, size_px: int, rounds: int
) -> list[Figure]:
    """Embeds a screen every way, in turn, some rounds."""
    ways: dict[str, tuple[int, Runner]] = {
        "in place": (1, in_place),
        "1 actor": (1, on_actors(actors=1)),
        "2 actors": (2, on_actors(actors=2)),
    }
    found: dict[str, list[Way]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        index = _screen(Path(folder) / "screen", spec)
        encoder = _encoder(Path(folder), index, backbone, size_px)
        for round_ in range(rounds):
            for way, (_, run) in ways.items():
                out = Path(folder) / f"{way}{round_}"
                found[way].append(_measured(encoder, index, out, run))
    figures = []
    for way, (processes, _) in ways.items():
        rates = [processes * x.sites / x.work_s for x in found[way]]
        whole = [x.sites / x.wall_s for x in found[way]]
        share = [1 - x.waited_s / x.work_s for x in found[way]]
        spread = f"({min(rates):,.1f} to {max(rates):,.1f})"
        figures += [
            figure(f"{name}, {way} at work {spread}", statistics.median(rates), "sites/s"),
            figure(f"{name}, {way} with its start", statistics.median(whole), "sites/s"),
            figure(f"{name}, {way}, not waiting for images", statistics.median(share), ""),
        ]
    return figures


def _measured(encoder: Path, index: Path, out: Path, run: Runner) -> Way:
    """Embeds a screen one way."""
    results: list[ShardResult] = []

    def watched(
        embedder: ShardEmbedder, model: ReferenceModel, shards: Sequence[int], told: Told
    ) -> Iterator[ShardResult]:
        for result in run(embedder, model, shards, told):
            results.append(result)
            yield result

    report = embed_index(str(encoder), index, out, _silent, OPTIONS, run=watched)
    return Way(
        sites=report.num_sites,
        wall_s=report.seconds,
        work_s=sum(x.seconds for x in results),
        waited_s=sum(x.waited_s for x in results),
    )


def _screen(folder: Path, spec: ScreenSpec) -> Path:
    """A simulated screen; its index."""
    build_index(read_manifest(simulate_screen(spec, folder)), folder, folder / "index.parquet")
    return folder / "index.parquet"


def _encoder(folder: Path, index: Path, backbone: str, size_px: int) -> Path:
    """An encoder of random weights, exported."""
    trial = grid.baseline("untrained", backbone, Crops(size_px=size_px, passes=0))
    files = StudyFiles(study_dir=folder / "study", index=index)
    write_trial(trial, files, ScreenIndex.open(index))
    export_encoder(files.trial_dir(trial), folder / "encoder")
    return folder / "encoder"


def _silent(done: int, sites: int) -> None:
    """Nothing is shown."""


def main() -> None:
    """Measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, and no S/16")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    arguments = parser.parse_args()
    quick = arguments.quick
    prepare_process(threads=1)
    start_ray()
    try:
        figures = embed_ways("nano/8, 64 px", NANO, "nano/8", 64, rounds=1 if quick else 3)
        if not quick:
            figures += embed_ways("S/16, 256 px", SMALL, "S/16", 256, rounds=2)
    finally:
        stop_ray()
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
