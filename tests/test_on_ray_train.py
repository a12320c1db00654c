"""A Ray Train group on a local Ray: its helpers, and errors that no attempt would get past."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from experiments import grid
from phenoscale.config import Crops, Placement
from phenoscale.fit import write_trial
from phenoscale.on_ray.start import is_local, start_ray, stop_ray
from phenoscale.on_ray.train import _backend, _SlimTrainer, train_group
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.opened import BadSiteError
from phenoscale.study_files import StudyFiles

CROPS = Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",))
TRIAL = grid.trained(
    "mae",
    "nano/8",
    CROPS,
    lr=1e-3,
    mask_ratio=0.5,
    seed=0,
    placement=Placement(launcher="ray_train"),
)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    start_ray()
    yield
    stop_ray()


class Attempts(ray.train.UserCallback):
    """Leaves a line for each attempt that ended with an error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_exception(self, run_context, worker_exceptions) -> None:
        with self.path.open("a") as lines:
            lines.write(f"{sorted(worker_exceptions)}\n")


def test_what_no_attempt_gets_past_is_tried_once(local_ray, tiny_screen: Path, tmp_path: Path):
    screen = tmp_path / "screen"
    shutil.copytree(tiny_screen, screen)
    for path in list(screen.glob("images/**/*.tif*"))[::2]:
        path.write_bytes(b"no image")
    files = StudyFiles(study_dir=tmp_path / "study", index=screen / "index.parquet")
    write_trial(TRIAL, files, ScreenIndex.open(files.index))
    with pytest.raises(BadSiteError, match="tolerated_bad_sites"):
        train_group(TRIAL, files, [Attempts(tmp_path / "attempts")])
    assert (tmp_path / "attempts").read_text() == "[0]\n"


def test_the_trainer_leaves_out_two_helpers_and_nothing_else(local_ray, tmp_path: Path):
    """Ray's hook is private: this says when a new version of Ray has another."""

    def helpers(kind: type[DataParallelTrainer]) -> list[str]:
        trainer = kind(
            print,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(storage_path=str(tmp_path)),
        )
        return [type(one).__name__ for one in trainer._create_default_callbacks()]

    assert is_local()
    left_out = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    all_of_them = helpers(DataParallelTrainer)
    assert left_out <= set(all_of_them)
    assert helpers(_SlimTrainer) == [name for name in all_of_them if name not in left_out]


def test_one_cpu_worker_needs_no_process_group():
    assert type(_backend(TRIAL.placement)) is ray.train.BackendConfig
    two = dataclasses.replace(TRIAL.placement, workers=2)
    assert _backend(two).backend == "gloo"
    assert _backend(dataclasses.replace(two, gpu=True)).backend == "nccl"
