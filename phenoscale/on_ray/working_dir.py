"""The working directory of a job, looked at before it is sent."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

LARGEST_BYTES = 2**29
"""Of what is sent: Ray's own limit, though of its compressed copy."""


def check_packed(working_dir: Path, source: Path) -> None:
    """Refuses a working directory that is too large, or that leaves its experiment out.

    Ray would read and compress all of it first, which with a screen in it takes for ever.

    Raises:
        ValueError: if it is so.
    """
    files = packed_files(working_dir)
    if source.resolve() not in {path.resolve() for path in files}:
        raise ValueError(
            f"{source} is left out of the working directory by a .gitignore or .rayignore. Move "
            "it, or name it there with a ! before it."
        )
    sizes: Counter[str] = Counter()
    for path in files:
        sizes[path.relative_to(working_dir).parts[0]] += path.stat().st_size
    if sizes.total() > LARGEST_BYTES:
        largest = ", ".join(f"{n} {size / 2**20:.0f} MiB" for n, size in sizes.most_common(3))
        raise ValueError(
            f"the working directory {working_dir} has {sizes.total() / 2**20:.0f} MiB, and at most "
            f"{LARGEST_BYTES >> 20} MiB go to a cluster; the largest: {largest}. Name what the "
            "code does not need in a file .rayignore there, written as .gitignore is."
        )


def packed_files(working_dir: Path) -> list[Path]:
    """Files that Ray would send, by its own rules: no .git, .venv, nor what ignore files name.

    Ray has no public way to ask. tests/test_submit.py compares with what a job finds.
    """
    files: list[Path] = []
    left_out = packaging._get_excludes(
        working_dir, ray_constants.get_runtime_env_default_excludes()
    )
    packaging._dir_travel(
        working_dir,
        [left_out],
        lambda path: files.append(path) if path.is_file() else None,
        include_gitignore=os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1",
        logger=logging.getLogger(__name__),  # Ray's own tells every ignore file
    )
    return files
