"""The version that a results row carries."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from pathlib import Path


@functools.lru_cache(maxsize=1)
def code_version() -> str:
    """Version of the package; of a git checkout also the commit, and "dirty" where files differ."""
    version = importlib.metadata.version("phenoscale")
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return version
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return version
    return f"{version}+{described.stdout.strip()}"
