"""docs/your_own_screen.md is what its commands do; `make page` runs it to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phenoscale.screens.index import ScreenIndex

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "run_page.py"


def run(page: Path, folder: Path, *options: str, data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, page, "--folder", folder, *options]
    environment = os.environ | {"PHENOSCALE_DATA": str(data)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_from_real_images_and_a_plate_map_to_a_contact_sheet(tmp_path: Path, real_data: Path):
    page = ROOT / "docs" / "your_own_screen.md"
    done = run(page, tmp_path, "--until", "Pack it", data=real_data)
    assert done.returncode == 0, done.stdout + done.stderr
    index = ScreenIndex.open(tmp_path / "transfluor.parquet")
    assert (index.num_sites, index.channels) == (72, ("GFP",))
    assert index.labels()[1] == ("agonist", "negative_control")
    assert (tmp_path / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_command_that_fails_stops_the_page(tmp_path: Path):
    page = tmp_path / "page.md"
    blocks = "echo one > one\nfalse\necho two > two\n", "touch three\n"
    page.write_text("\n".join(f"```sh\n{block}```\n" for block in blocks))
    done = run(page, tmp_path / "here", data=tmp_path)
    assert done.returncode != 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["one"]
    assert "$ echo one > one" in done.stdout


@pytest.mark.parametrize("heading", ["Nowhere", "Pack"])
def test_a_heading_that_is_not_there_is_named(tmp_path: Path, heading: str):
    page = ROOT / "docs" / "your_own_screen.md"
    done = run(page, tmp_path, "--until", heading, data=tmp_path)
    assert done.returncode != 0 and repr(heading) in done.stderr
