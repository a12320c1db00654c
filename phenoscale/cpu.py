"""What this machine's CPU says of itself (Linux)."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def _fields() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}


def cpu_name() -> str:
    """The model's name, or what the platform calls it."""
    return _fields().get("model name", platform.processor() or platform.machine())


def cpu_flags() -> frozenset[str]:
    """Its instruction sets, such as avx2 or amx_bf16."""
    return frozenset(_fields().get("flags", "").split())


def multiplies_bf16() -> bool:
    """Whether it has instructions for bf16 products."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
