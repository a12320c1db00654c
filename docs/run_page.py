"""Runs the commands of a page, in order, in a folder of its own: `python docs/run_page.py PAGE`.

Every ```sh block of the page is run as it stands, by bash, which stops at the first command that
fails. $DATA is the folder of data sets ($PHENOSCALE_DATA, or shared/data beside the checkout),
$REPO the repository; `python` and `phenoscale` are those of the interpreter that runs this script.

    python docs/run_page.py docs/your_own_screen.md [--folder DIR] [--until HEADING]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def commands(page: str, until: str | None = None) -> list[str]:
    """The page's blocks of shell commands, up to a heading."""
    if until is not None:
        page, found, _ = page.partition(f"## {until}\n")
        if not found:
            raise ValueError(f"The page has no heading {until!r}.")
    return re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def run(page: Path, folder: Path, until: str | None = None) -> None:
    """Runs a page's commands in a folder; raises CalledProcessError where one fails."""
    data = os.environ.get("PHENOSCALE_DATA", str(REPO.parent / "shared" / "data"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "DATA": data, "REPO": str(REPO), "PATH": path}
    for block in commands(page.read_text(), until):
        print("\n".join(f"$ {line}" for line in block.splitlines()), flush=True)
        # Each command in the folder, whatever the one before did.
        script = "set -euo pipefail\n" + block
        subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True)


def main() -> None:
    """Reads the arguments and runs the page."""
    parser = argparse.ArgumentParser(description="Run the commands of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--folder", type=Path, help="an empty folder to run in; else a new one")
    parser.add_argument("--until", help="stop before this heading")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        run(arguments.page, folder, arguments.until)


if __name__ == "__main__":
    main()
