"""Refuses a cluster file in which a value of your own is still to be filled in.

Command: python cluster/check.py FILE...

Such values are written REPLACE_ and a name: subnets, keys, buckets, images. No cloud takes them for
real ones, so a file that was not checked fails as well, only later.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

_PLACEHOLDER = re.compile(r"REPLACE_[A-Z0-9_]+")


def placeholders(text: str) -> dict[str, list[int]]:
    """Values that are still to be filled in, each with its lines, counted from 1."""
    found: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.lstrip().startswith("#"):
            for name in _PLACEHOLDER.findall(line):
                found.setdefault(name, []).append(number)
    return found


def main(paths: Sequence[str]) -> int:
    """Checks files, says what is missing, and returns the exit code: 1 where anything is."""
    if not paths:
        sys.stderr.write("Give at least one file: python cluster/check.py cluster/aws.yaml\n")
        return 2
    missing = {path: placeholders(Path(path).read_text()) for path in paths}
    for path, found in missing.items():
        for name, lines in found.items():
            where = ", ".join(map(str, lines))
            sys.stderr.write(f"{path}: {name} is still to be filled in (line {where}).\n")
    return 1 if any(missing.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
