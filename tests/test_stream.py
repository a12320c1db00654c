"""Crops through Ray Data are the crops of the plan: in order, for any workers, from any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from phenoscale.config import Crops, Readers
from phenoscale.crops import Plan
from phenoscale.on_ray import data
from phenoscale.on_ray.data import crop_stream
from phenoscale.on_ray.start import start_ray
from phenoscale.screens.cutter import BadSiteError, CropCutter
from phenoscale.screens.images.readers import is_mapped
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.storage import Root
from tests.screen_on_disk import packed_copy

CROPS = Crops(size_px=24, passes=8, global_batch_size=32, held_out=("batch2/plate2",))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


def cutter_of(screen: Path, **fields) -> CropCutter:
    crops = dataclasses.replace(CROPS, **fields)
    return CropCutter(index_path=str(screen / "index.parquet"), crops=crops, seed=2)


def assert_same(stream, expected) -> None:
    count = 0
    for batch, other in zip(stream, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch.keys() - {"read_cpu_s"}:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)
        count += 1
    assert count > 0


def test_the_helpers_of_ray_data_start_where_the_driver_is(cluster: None):
    """Before any stream: Ray's calls are private, and a new version may have others."""
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    data.settle_helpers()
    assert ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    assert ray.get_actor("datasets_stats_actor", namespace="_dataset_stats_actor")


@pytest.mark.parametrize(
    ("fields", "first", "world"),
    [
        ({}, 0, 1),
        ({}, 7, 2),
        ({"crops_per_read": 4}, 5, 2),
        ({"crops_per_read": 4, "sampling": "plate_wise", "crops_per_plate": 8}, 0, 2),
        ({"sampling": "class_balanced"}, 3, 1),
    ],
)
def test_a_stream_is_the_plan_cut_in_this_process(
    cluster: None, tiny_screen: Path, monkeypatch: pytest.MonkeyPatch, fields, first, world
):
    """Blocks and segments are made so small that there are many of each."""
    monkeypatch.setattr(data, "_BLOCK_BYTES", 200_000)
    monkeypatch.setattr(data, "_SEGMENT_BYTES", 2_000_000)
    cutter = cutter_of(tiny_screen, **fields)
    last = min(cutter.plan.steps, first + 20)
    for rank in range(world):
        stream = crop_stream(cutter, first, last, rank, world, Readers(at_once=2))
        assert_same(stream, cutter.stream(first, last, rank, world))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("room", [100_000, 2_000_000])  # less than a chapter, and more
def test_a_mapped_store_is_cut_by_the_worker_itself(
    tiny_screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads, room
):
    """The crops of the files that were packed, from any step, and nothing is sent through Ray."""
    monkeypatch.setattr(data, "_BLOCK_BYTES", 200_000)
    monkeypatch.setattr(data, "_SEGMENT_BYTES", room)
    monkeypatch.setattr(data, "cut_by_tasks", None)
    files = cutter_of(tiny_screen, crops_per_read=4)
    index = packed_copy(ScreenIndex.open(files.index_path), tmp_path / "packed")
    packed = dataclasses.replace(files, index_path=str(index.location))
    assert packed.is_mapped and not files.is_mapped
    for first, rank in ((0, 0), (13, 1)):
        stream = crop_stream(packed, first, packed.plan.steps, rank, 2, Readers(at_once=threads))
        assert_same(stream, files.stream(first, packed.plan.steps, rank, 2))


def test_a_shard_that_is_gone_is_named_by_the_threads_that_cut(tiny_screen: Path, tmp_path: Path):
    index = packed_copy(ScreenIndex.open(tiny_screen / "index.parquet"), tmp_path / "packed")
    cutter = CropCutter(index_path=str(index.location), crops=CROPS, seed=2)
    (tmp_path / "packed" / "00001.zarr" / "c.0.0.0.0").unlink()
    with pytest.raises(BadSiteError, match=r"00001\.zarr.*tolerated_bad_sites"):
        list(crop_stream(cutter, 0, cutter.plan.steps))


def test_a_remote_store_or_one_with_a_codec_is_not_mapped(tiny_screen: Path, tmp_path: Path, s3):
    screen = ScreenIndex.open(tiny_screen / "index.parquet")
    raw = packed_copy(screen, tmp_path / "raw")
    with_codec = packed_copy(screen, tmp_path / "blosc", raw=False)
    paths = raw.table["paths"][0].as_py()
    assert is_mapped(raw.root, paths)
    assert not is_mapped(Root.of(s3.put(tmp_path / "raw")), paths)
    assert not is_mapped(with_codec.root, paths)
    assert not is_mapped(screen.root, screen.table["paths"][0].as_py())


def test_one_block_of_all_lanes_is_handed_on_without_a_copy(cluster: None, tiny_screen: Path):
    cutter = cutter_of(tiny_screen)
    batches = list(crop_stream(cutter, 0, 3))
    assert_same(batches, cutter.stream(0, 3))
    assert not batches[0]["crops"].flags.owndata and not batches[0]["crops"].flags.writeable


@given(
    share=st.integers(1, 64),
    per_read=st.sampled_from([1, 2, 5]),
    step_bytes=st.integers(1, 10**9),
    data_=st.data(),
)
@settings(max_examples=60)
def test_segments_cover_the_steps_and_are_bounded(share, per_read, step_bytes, data_):
    crops = Crops(
        size_px=16, passes=20 * per_read, crops_per_read=per_read, global_batch_size=2 * share
    )
    plan = Plan.of(crops, fingerprint="f", seed=0, group_sizes=np.array([150]))
    first = data_.draw(st.integers(0, plan.steps - 1))
    segments = data._segments(plan, first, plan.steps, step_bytes)
    runs = [run for segment in segments for run in segment]
    assert [s for begin, end in runs for s in range(begin, end)] == list(range(first, plan.steps))
    assert all(begin % plan.chapter_steps == 0 for begin, _ in runs[1:])
    for segment in segments:
        # One chapter is the least that a segment can hold.
        assert (segment[-1][1] - segment[0][0]) * step_bytes <= data._SEGMENT_BYTES or (
            len(segment) == 1
        )


def test_readers_run_in_their_bundle_of_the_trials_group(cluster: None, tiny_screen: Path):
    """All CPUs are the group's: a task outside of it would wait for ever."""
    cpus = ray.cluster_resources()["CPU"]
    group = placement_group([{"CPU": cpus - 3}, {"CPU": 1}, {"CPU": 2}])
    ray.get(group.ready())
    cutter = cutter_of(tiny_screen)

    @ray.remote(num_cpus=1)
    def trial(world: int) -> list[list[str]]:
        return [
            [
                bytes(batch["group"][0]).decode()
                for batch in crop_stream(_Telling(cutter), 0, 4, rank, world, Readers(at_once=2))
            ]
            for rank in range(1, world)
        ]

    try:
        place = PlacementGroupSchedulingStrategy(group, 0)
        told = ray.get(trial.options(scheduling_strategy=place).remote(2), timeout=60)
        assert set(sum(told, [])) == {group.id.hex()}
        # A worker of Ray Train is in a group of workers alone, whose bundles are not the readers'.
        assert data._bundle(group, rank=0, world=3) is None
    finally:
        remove_placement_group(group)


def test_readers_keep_to_the_nodes_that_offer_their_resource(tiny_screen: Path, tmp_path: Path):
    """Two nodes on this machine, one for readers: all crops are cut there, a mapped store's too."""
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the tests before
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        reader = cluster.add_node(num_cpus=1, resources={"reader": 1})
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        index = packed_copy(ScreenIndex.open(tiny_screen / "index.parquet"), tmp_path / "packed")
        cutter = CropCutter(index_path=str(index.location), crops=CROPS, seed=2)
        assert cutter.is_mapped
        stream = crop_stream(_Telling(cutter), 0, 4, readers=Readers(resource="reader"))
        nodes = {bytes(batch["node"][0]).decode() for batch in stream}
        assert nodes == {reader.node_id}
    finally:
        ray.shutdown()
        cluster.shutdown()


class _Telling:
    """A cutter that tells on which node, and in which placement group, it cuts."""

    def __init__(self, cutter: CropCutter) -> None:
        self._cutter, self.plan, self.crop_bytes = cutter, cutter.plan, cutter.crop_bytes
        self.is_mapped = cutter.is_mapped

    def blocks(self, first: int, last: int, lanes: range, steps: int):
        group = ray.util.get_current_placement_group()
        told = {
            "node": ray.get_runtime_context().get_node_id(),
            "group": group.id.hex() if group else "none",
        }
        for batch in self._cutter.blocks(first, last, lanes, steps):
            for name, text in told.items():
                letters = np.frombuffer(text.encode(), np.uint8)
                batch[name] = np.broadcast_to(letters, (*batch["rows"].shape, len(text))).copy()
            yield batch
