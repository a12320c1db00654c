"""Embedding on real Ray: the bytes of one process, through a kill, and errors as if raised here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.embed_index import embed_index
from phenoscale.embed_plan import EmbedOptions
from phenoscale.export_trial import export_encoder
from phenoscale.on_ray.embed import on_actors
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.parallel import prepare_process
from phenoscale.screens.index import ScreenIndex
from tests.test_export import make_trial
from tests.tiny import of

BY_PLATE = EmbedOptions(shard_sites=72, tolerated_bad_sites=0.01)


@pytest.fixture(scope="module", autouse=True)
def running_ray() -> Iterator[None]:
    """One Ray for all tests."""
    start_ray()
    yield
    stop_ray()


@pytest.fixture(scope="module")
def encoder(tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported DenseNet, whose plates must stay whole."""
    folder = tmp_path_factory.mktemp("encoder")
    channels = ScreenIndex.open(tiny_screen / "index.parquet").channels
    make_trial(folder / "trial", of("wsl", "DenseNet-nano"), channels)
    export_encoder(folder / "trial", folder / "encoder")
    return folder / "encoder"


def parts_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def silent(done: int, sites: int) -> None:
    """Of a test."""


def test_a_run_whose_actor_dies_ends_in_the_bytes_of_one_process(
    tiny_screen: Path, encoder: Path, tmp_path: Path
):
    """It goes on with a folder that lacks three of its shards."""
    index, out, here = tiny_screen / "index.parquet", tmp_path / "out", tmp_path / "here"
    prepare_process(threads=1)  # as its actors do; tests before may have set more
    embed_index(str(encoder), index, here, silent, BY_PLATE)
    shutil.copytree(here, out)
    for number in (0, 1, 3):
        (out / f"part-0000{number}.parquet").unlink()
    kept = (out / "part-00002.parquet").stat().st_mtime_ns
    told: list[tuple[int, int]] = []

    def killing(done: int, sites: int) -> None:
        told.append((done, sites))
        if done == 144:
            assert not json.loads((out / "embedding.json").read_text())["complete"]
            actors = [
                process
                for process in psutil.Process().children(recursive=True)
                if any("MapWorker" in word for word in process.cmdline())
            ]
            assert len(actors) == 1
            actors[0].kill()

    report = embed_index(str(encoder), index, out, killing, BY_PLATE, run=on_actors(actors=1))
    assert (report.written_shards, report.rows, report.bad_sites) == (3, 288, 0)
    assert told == [(72 * shards, 288) for shards in range(1, 5)]
    assert (out / "part-00002.parquet").stat().st_mtime_ns == kept
    assert parts_of(out) == parts_of(here) and len(parts_of(out)) == 5


def test_what_goes_wrong_in_an_actor_is_told_here(tiny_screen: Path, encoder: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_screen, tmp_path / "screen")
    paths = ScreenIndex.open(copy / "index.parquet").table["paths"]
    (copy / paths[100].as_py()[0]).write_bytes(b"damaged")
    index, out = copy / "index.parquet", tmp_path / "out"
    words = ["embed", str(encoder), str(index), "--out", str(out), "--actors", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and not list(out.glob("part-*"))
    assert "phenoscale: Row 100 of the index" in done.stderr
    for wanted, message in (
        (on_actors(actors=1, gpu=True), "1 actors of 1 threads and a GPU each do not fit"),
        (on_actors(actors=1, threads=4096), "Give fewer --actors"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_index(str(encoder), index, out, silent, run=wanted)
