"""A simulated screen is rendered once, shown as it goes, and never taken for another."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.simulated.prepare import simulated_screen
from tests.tiny import SCREEN

SPEC = dataclasses.replace(SCREEN, sites_per_well=1, seed=3)


def prepare(out: Path, spec=SPEC) -> tuple[Path, str]:
    """The folder, and what a person saw."""
    seen = io.StringIO()
    return simulated_screen(spec, out, Console(file=seen, width=120)), seen.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("prepare") / "deep" / "screen"
    folder, seen = prepare(out)
    assert folder == out
    return out, seen


def test_everything_that_a_study_reads_is_there(made: tuple[Path, str]):
    out, _ = made
    index = ScreenIndex.open(out / "index.parquet")
    assert index.num_sites == SPEC.num_sites
    assert all((out / name).is_file() for name in ("relationships.csv", "latents.parquet"))


def test_a_person_sees_what_is_made_and_how_far_it_is(made: tuple[Path, str]):
    first, *lines = made[1].splitlines()
    assert first == f"simulating {SPEC.num_sites} sites of {SPEC.num_wells} wells"
    done = [int(line.split()[0]) for line in lines]
    assert all(line.endswith(f"of {SPEC.num_sites} sites rendered") for line in lines)
    assert 2 <= len(done) <= 5 and done == sorted(done) and done[-1] == SPEC.num_sites


def test_a_screen_that_is_there_is_found_and_left_alone(made: tuple[Path, str]):
    out, _ = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare(out) == (out, "")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_missing_index_is_made_again(made: tuple[Path, str]):
    out, _ = made
    path = out / "index.parquet"
    fingerprint = ScreenIndex.open(path).fingerprint
    path.unlink()
    assert prepare(out) == (out, "")
    assert ScreenIndex.open(path).fingerprint == fingerprint


def test_another_screen_in_the_folder_is_an_error(made: tuple[Path, str]):
    out, _ = made
    with pytest.raises(ValueError, match="holds the screen .*'seed': 3.*'seed': 4.*another folder"):
        prepare(out, dataclasses.replace(SPEC, seed=4))
