"""`phenoscale index LAYOUT`: every verb, from files to an index that holds what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.screens.index import ScreenIndex
from tests.layout_writers import write_load_data, write_rxrx1
from tests.test_layouts import CASES

WORDS = {
    "rxrx1": ("--no-controls",),
    "rxrx3": (),
    "rxrx3-core": (),
    "jump": ("--prefix", "s3://gallery/x", "--experimental-batch", "b", "--no-controls"),
    "ome-zarr": ("--z", "max", "--experimental-batch", "b", "--no-controls"),
    "pattern": (
        "--template", "{plate}/{well}_s{site}_{channel}.tif", "--channels", "er=ER,dna",
        "--experimental-batch", "b", "--no-controls",
    ),
}  # fmt: skip


def index(layout: str, *words: object) -> Result:
    return CliRunner().invoke(app, ["index", layout, *map(str, words)])


@pytest.mark.parametrize("layout", CASES)
def test_every_layout_has_a_verb(layout: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "screen", tmp_path / "index.parquet"
    folder.mkdir()
    written = CASES[layout][1](folder)
    done = index(layout, folder, "--out", out, *WORDS[layout])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{len(written)} sites, ")
    assert lines[1].startswith("channels ") and lines[1].endswith(f" ({len(written)} sites)")
    found = ScreenIndex.open(out)
    assert lines[-1] == f"{out}: {len(written)} sites, fingerprint {found.fingerprint[:12]}"
    if layout == "pattern":
        assert found.channels == ("ER", "dna")


def test_damaged_sites_are_refused_or_left_out(tmp_path: Path) -> None:
    folder, out = tmp_path / "screen", tmp_path / "index.parquet"
    folder.mkdir()
    write_rxrx1(folder)
    (folder / "images/HUVEC-01/Plate1/AA03_s2_w3.png").write_bytes(b"\x89PNG")
    words = (folder, "--out", out)
    done = index("rxrx1", *words)
    assert done.exit_code == 2 and "AA03_s2_w3.png" in done.stderr and not out.exists()
    done = index("rxrx1", *words, "--damaged", "leave-out")
    assert done.exit_code == 0, done.output
    assert ScreenIndex.open(out).num_sites == 7


def test_a_plate_map_makes_the_controls(tmp_path: Path) -> None:
    write_load_data(tmp_path, "s", "b1", "P", ["A01", "B02"], prefix=str(tmp_path))
    (tmp_path / "map.csv").write_text("Position;Drug;Batch\nA1;DMSO;b1\nB2;x;b1\n")
    words = (tmp_path, "--out", tmp_path / "i.parquet", "--percentiles", 1, 99)
    refused = index("jump", *words)
    assert refused.exit_code == 2
    assert "--experimental-batch NAME" in refused.stderr
    columns = "Position=well,Drug=compound,Batch=experimental_batch"
    mapped = ("--plate-map", tmp_path / "map.csv", "--plate-map-columns", columns)
    done = index(
        "jump", *words, *mapped, "--negative-controls", "DMSO", "--perturbation-type", "compound"
    )
    assert done.exit_code == 0, done.output
    labels = ScreenIndex.open(tmp_path / "i.parquet").metadata()
    assert labels["perturbation"].tolist() == ["negative_control"] * 2 + ["x"] * 2
    assert set(labels["experimental_batch"]) == {"b1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "phenix", "--negative-controls", "DMSO"), "without --plate-map FILE"),
        (("--preset", "opera"), "there are imagexpress, phenix, yokogawa"),
        (("--preset", "phenix", "--incomplete", "drop"), "'drop' is not one of"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, words: tuple, message: str) -> None:
    (tmp_path / "a.tif").touch()
    done = index("pattern", tmp_path, *words)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split())


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    done = index("rxrx1", tmp_path / "none")
    assert done.exit_code == 2 and "none does not exist" in done.stderr
