"""The measured peak of this machine's matrix products, and the file that keeps it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from phenoscale import peak
from phenoscale.peak import matmul_peak

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matmul_peak.cache_clear()
    yield tmp_path / "phenoscale" / "matmul_peak.json"
    matmul_peak.cache_clear()


def test_a_figure_that_a_cpu_can_have(cache: Path):
    measured = matmul_peak(CPU, "fp32")
    assert 1e9 < measured < 1e14
    (entry,) = json.loads(cache.read_text()).values()
    assert entry["flops"] == measured


@pytest.mark.parametrize(("load", "times"), [(0.0, 1), (9.0, 2)])
def test_it_is_measured_once_where_nothing_disturbs_it(
    load: float, times: int, monkeypatch: pytest.MonkeyPatch
):
    figures = iter([2e9, 1e9])
    calls = []

    def measured(device: torch.device, precision: str) -> float:
        calls.append(precision)
        return next(figures)

    monkeypatch.setattr(peak, "_measured", measured)
    monkeypatch.setattr(os, "getloadavg", lambda: (load * os.cpu_count(), 0, 0))
    for _ in range(2):
        matmul_peak.cache_clear()  # as another process
        assert matmul_peak(CPU, "fp32") == 2e9
    assert len(calls) == times


def test_a_home_that_cannot_be_written_to_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert matmul_peak(CPU, "fp32") > 0


@pytest.mark.parametrize("content", ["", "half a fi", '{"a CPU": 1e9}'])
def test_a_file_that_makes_no_sense_is_measured_over(content: str, cache: Path):
    cache.parent.mkdir()
    cache.write_text(content)
    assert matmul_peak(CPU, "fp32") > 0
    assert all("flops" in entry for entry in json.loads(cache.read_text()).values())
