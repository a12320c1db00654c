"""The data benchmark: its arithmetic, and a tiny case through the real code of every way."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections import Counter

import numpy as np
import psutil
import pytest

from benchmarks import data
from benchmarks.data_cases import CASES, checksums, expected, grouped, scaled
from benchmarks.data_cost import Cost, tree_cpu_s
from benchmarks.data_peers import Job

PACKAGES = ("zarr", "streaming", "webdataset", "grain")
TINY = dataclasses.replace(
    CASES["tiff1080"],
    name="tiny",
    channels=2,
    site_px=96,
    sites=8,
    crops_per_read=4,
    packed_visits=2,
    crop_px=32,
    plan_batch=2,
    global_batch=8,
)
Prepared = tuple[dict[bool, Job], dict[bool, Counter[int]]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A tiny 16-bit case on disk, packed, with the checksums of its crops."""
    return data.prepare(TINY, tmp_path_factory.mktemp("tiny"), None)[:2]


# Those through Ray Data are left to the benchmark itself, which checks every crop as this does.
@pytest.mark.parametrize("name", [n for n, way in data.WAYS.items() if way.host != "ray"])
def test_every_way_delivers_the_planned_crops(name: str, prepared: Prepared):
    for package in PACKAGES:
        if package in name.lower() and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; pip install -e '.[bench]' brings it")
    jobs, planned = prepared
    way = data.WAYS[name]
    run = way.open(jobs[way.packed])
    for _ in range(2):  # a second run is as whole as the first
        batches = list(run())
        assert sum(map(len, batches)) == jobs[way.packed].case.crops(way.packed)
        if way.delivers:
            found = Counter(sum(map(checksums, batches), []))
            assert found == planned[way.packed]


def test_another_pixel_is_another_checksum():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, 1, 8, 8), np.uint8)
    reads = grouped(np.array([0, 1, 1, 0]), np.array([0, 1, 2, 3]), np.array([4, 3, 2, 1]), 2)
    crops = np.stack(
        [truth[0, :, :4, 4:], truth[1, :, 1:5, 3:7], truth[1, :, 2:6, 2:6], truth[0, :, 3:7, 1:5]]
    )
    assert Counter(checksums(crops)) == expected(truth, reads, 4)
    crops[2, 0, 1, 1] ^= 1
    assert (expected(truth, reads, 4) - Counter(checksums(crops))).total() == 1


def test_reads_group_crops_by_site_and_visit():
    site = np.array([2, 0, 1, 0, 2, 1, 1, 0, 2, 1, 2, 0])
    number = np.arange(12)
    reads = grouped(site, number, number + 100, per_read=2)
    assert sorted(reads.site[:3]) == sorted(reads.site[3:]) == [0, 1, 2]  # visit after visit
    assert (site[reads.top] == reads.site[:, None]).all()
    assert sorted(reads.top.ravel()) == list(number)
    assert (reads.left == reads.top + 100).all()
    assert [len(batch) for batch in reads.batches(8)] == [4, 2]
    assert all(reads.site[numbers].tolist() == [s, s] for s, numbers in enumerate(reads.of_site()))
    with pytest.raises(ValueError, match="do not divide into reads of 3"):
        grouped(site, number, number, per_read=3)


def test_grey_values_are_scaled_by_their_channel():
    image = np.array([[[0, 100, 150, 300]], [[7, 7, 8, 9]]], np.uint16)
    found = scaled(image, np.array([[100.0, 200.0], [7.0, 7.0]]))
    assert found.tolist() == [[[0, 0, 128, 255]], [[0, 0, 0, 0]]]


def test_ratios_are_of_medians_and_the_best_peer_counts():
    cpu_ms = dict.fromkeys(data.WAYS, 10.0) | {
        data.FILES: 4.0, data.FILES_RAY: 5.2, data.PACKED: 1.0, data.PACKED_RAY: 1.1,
        data.PACKED_SENT: 2.0, data.PLAIN_RAY: 3.9, data.CODEC_PACKED: 0.7, "grain": 1.6,
    }  # fmt: skip
    costs = {
        name: [Cost(100, ms * 0.1 * factor, 0.5) for factor in (9.0, 1.0, 0.5)]
        for name, ms in cpu_ms.items()
    }
    found = {f["name"]: f for f in data.figures_of("c", costs)}
    assert found["c | grain | CPU"]["value"] == pytest.approx(1.6)
    assert found["c | grain | rate"]["value"] == 200
    goals = {
        "grain / ours, packed, no Ray": (1.6, True),
        "grain / ours, packed, Ray worker": (1.6 / 1.1, False),
        "grain / ours, packed, Ray Data": (0.8, False),
        "codec alone, packed / ours, packed, no Ray": (0.7, True),
        "codec alone, packed / ours, packed, Ray worker": (0.7 / 1.1, True),
        "codec alone, packed / ours, packed, Ray Data": (0.35, False),
        "ours, files, Ray Data / ours, files, no Ray": (1.3, False),
        "ours, packed, Ray worker / plain Ray Data, packed": (1.1 / 3.9, True),
        "ours, packed, Ray Data / plain Ray Data, packed": (2.0 / 3.9, False),
    }
    ratios = {name: f for name, f in found.items() if f["goal"] is not None}
    assert {n: (pytest.approx(f["value"]), f["holds"]) for n, f in ratios.items()} == {
        f"c | {name}": value for name, value in goals.items()
    }


def test_the_time_of_children_counts_alive_or_reaped():
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    script = (
        "import subprocess, sys\n"
        "child = [sys.executable, '-c', sys.argv[1] + 'input()']\n"
        "alive = subprocess.Popen(child, stdin=subprocess.PIPE)\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]])\n"
        "print('ready', flush=True); input(); alive.communicate(b'\\n')\n"
    )
    command = [sys.executable, "-c", script, burn]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        spent = tree_cpu_s(psutil.Process(parent.pid))
        # The reaped child is 0.4 s whole; the other has burnt for as long as that took, or more.
        assert len(spent) == 2
        assert spent[parent.pid] >= 0.38
        assert sum(spent.values()) - spent[parent.pid] >= 0.1
        parent.communicate("\n")
