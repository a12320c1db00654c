"""Checkpoints: what is saved comes back, bit for bit."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from phenoscale.checkpoint import MANIFEST, RECORD, Checkpoints
from phenoscale.config import Optim
from phenoscale.optim import WeightAverage, build_optimizer
from phenoscale.screens.storage import writable_folder
from tests.tiny import TINY, TINY_WSL, assert_same_weights, record_of, tiny_batch, tiny_model


def trained(trial, updates: int):
    """A model and its optimizer after some updates."""
    model = tiny_model(trial)
    optimizer = build_optimizer(model, trial.optim)
    for step in range(updates):
        update(trial, model, optimizer, step)
    return model, optimizer


def update(trial, model, optimizer, step: int) -> None:
    """One update on the batch of a step."""
    noise = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    batch = tiny_batch(trial, step)
    model(torch.from_numpy(batch["crops"]), torch.from_numpy(batch["labels"]), noise).backward()
    optimizer.step()
    optimizer.zero_grad()


def saved_in(folder: Path, model, optimizer, steps: int, average=None, **options) -> str:
    """Writes a checkpoint and returns its name."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(model, optimizer, record_of(steps), average, **options)
    return Checkpoints(folder).latest()


@pytest.fixture
def saved(tmp_path: Path):
    """A checkpoint, and the model and optimizer that were saved in it."""
    model, optimizer = trained(TINY, 3)
    name = saved_in(tmp_path / "kept", model, optimizer, 3)
    return Checkpoints(tmp_path / "kept"), name, model, optimizer


@pytest.mark.parametrize("updates", [0, 1])
def test_weights_moments_and_record_come_back(saved, updates: int):
    """Also into what never made an update: a new optimizer has no moments to fill."""
    checkpoints, name, model, optimizer = saved
    other, other_optimizer = trained(TINY, updates)
    assert checkpoints.load(name, other, other_optimizer) == record_of(3)
    assert_same_weights(model, other)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        one, two = optimizer.state[mine], other_optimizer.state[theirs]
        assert one.keys() == two.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_after_loading_an_optimizer_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path):
    trial = dataclasses.replace(TINY, optim=Optim(lr=1e-2, name=name))
    model, optimizer = trained(trial, 3)
    saved_in(tmp_path, model, optimizer, 3)
    other, other_optimizer = trained(trial, 0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.load(checkpoints.latest(), other, other_optimizer)
    for one, using in ((model, optimizer), (other, other_optimizer)):
        update(trial, one, using, 3)
    assert_same_weights(model, other)


def test_the_average_comes_back_and_is_what_counts(tmp_path: Path):
    model, optimizer = trained(TINY, 1)
    average = WeightAverage(model, 0.5)
    update(TINY, model, optimizer, 1)
    average.update(model, 1)
    name = saved_in(tmp_path, model, optimizer, 2, average)
    other, other_optimizer = trained(TINY, 0)
    begun = WeightAverage(other, 0.5)
    Checkpoints(tmp_path).load(name, other, other_optimizer, begun)
    assert_same_weights(model, other)
    assert all(torch.equal(x, begun.weights[key]) for key, x in average.weights.items())
    left = tiny_model(TINY)
    Checkpoints(tmp_path).load_weights(left)
    assert all(torch.equal(x, average.weights[key]) for key, x in left.named_parameters())


def test_the_copy_is_made_before_save_returns(tmp_path: Path):
    model, optimizer = trained(TINY, 2)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model, optimizer, record_of(2))
        update(TINY, model, optimizer, 2)
    other = tiny_model(TINY)
    Checkpoints(tmp_path).load_weights(other)
    assert all(torch.equal(before[name], x) for name, x in other.state_dict().items())


def test_another_model_or_no_checkpoint_is_refused(saved, tmp_path: Path):
    """As a ValueError: torch raises a BaseException, which no launcher's handler catches."""
    checkpoints, name, *_ = saved
    with pytest.raises(ValueError, match="no checkpoint of this trial's model.*model.head"):
        checkpoints.load_weights(tiny_model(TINY_WSL))
    with pytest.raises(ValueError, match="model.head"):
        checkpoints.load(name, *trained(TINY_WSL, 0))
    model, optimizer = trained(TINY, 0)
    with pytest.raises(ValueError, match="Missing key.*average"):
        checkpoints.load(name, model, optimizer, WeightAverage(model, 0.9))
    with pytest.raises(ValueError, match="empty holds no whole checkpoint: train the trial first"):
        Checkpoints(tmp_path / "empty").load_weights(tiny_model(TINY))
    assert Checkpoints(tmp_path / "empty").latest() is None


def test_what_is_not_whole_is_no_checkpoint(tmp_path: Path):
    """Whatever a kill leaves: no manifest, half of one, a file cut short, a file missing."""
    model, optimizer = trained(TINY, 1)
    first = saved_in(tmp_path, model, optimizer, 1)

    def newer() -> Path:
        return tmp_path / saved_in(tmp_path, model, optimizer, 2)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    for damage in (
        lambda place: (place / MANIFEST).unlink(),
        lambda place: cut(place / MANIFEST),
        lambda place: cut(next(place.glob("*.safetensors"))),
        lambda place: (place / RECORD).unlink(),
    ):
        place = newer()
        assert Checkpoints(tmp_path).latest() == place.name != first
        damage(place)
        assert Checkpoints(tmp_path).latest() == first
        shutil.rmtree(place)


def test_a_format_of_another_version_is_refused(saved):
    checkpoints, name, *_ = saved
    path = Path(checkpoints._root) / name / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has the format 2, this version of phenoscale reads 1"):
        checkpoints.latest()


def test_two_attempts_never_write_into_one_folder(tmp_path: Path):
    """The one that does not know yet that it is lost writes the same steps as the next one."""
    lost, optimizer = trained(TINY, 1)
    model, other_optimizer = trained(TINY, 2)
    with Checkpoints(tmp_path) as one, Checkpoints(tmp_path) as two:
        one.save(lost, optimizer, record_of(5))
        two.save(model, other_optimizer, record_of(5))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and {name[:13] for name in names} == {"step_00000005"}
    read = tiny_model(TINY)
    for name in names:
        Checkpoints(tmp_path).load_weights(read, name)
        assert any(
            all(torch.equal(a, b) for a, b in zip(x.parameters(), read.parameters(), strict=True))
            for x in (lost, model)
        )


def test_the_last_two_are_kept_and_the_last_milestone(tmp_path: Path):
    model, optimizer = trained(TINY, 1)
    (tmp_path / "step_00000002-killed").mkdir()
    (tmp_path / "step_00000002-killed" / "shard.safetensors").touch()
    with Checkpoints(tmp_path) as checkpoints:
        for steps in range(1, 7):
            checkpoints.save(model, optimizer, record_of(steps), milestone=steps in (1, 3))
    assert sorted(int(path.name[5:13]) for path in tmp_path.iterdir()) == [3, 5, 6]
    assert Checkpoints(tmp_path).latest(milestone=True).startswith("step_00000003")


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path):
    model, optimizer = trained(TINY, 1)
    (tmp_path / "file").touch()
    with pytest.raises(OSError), Checkpoints(tmp_path / "file") as checkpoints:
        checkpoints.save(model, optimizer, record_of(1))


def test_nothing_is_pickled(saved):
    """safetensors and JSON alone: what can be read without running what is in it."""
    checkpoints, name, *_ = saved
    files = {path.suffix for path in (Path(checkpoints._root) / name).iterdir()}
    assert files == {".safetensors", ".json"}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_store_of_objects_holds_checkpoints_too(kind: str, request: pytest.FixtureRequest):
    url = "memory://trial"
    if kind == "s3":
        folder = request.getfixturevalue("tmp_path") / "folder"
        folder.mkdir()
        (folder / "anything").touch()
        address, mark, options = request.getfixturevalue("s3").put(folder).partition("?")
        url = f"{address}/checkpoints{mark}{options}"
    system, root = writable_folder(url)
    model, optimizer = trained(TINY, 2)
    assert Checkpoints(root, system).latest() is None
    with Checkpoints(root, system) as checkpoints:
        for steps in (1, 2, 3):
            checkpoints.save(model, optimizer, record_of(steps))
    kept = Checkpoints(root, system)
    assert len({path.split("/")[-2] for path in system.find(root)}) == 2
    other, other_optimizer = trained(TINY, 0)
    assert kept.load(kept.latest(), other, other_optimizer) == record_of(3)
    assert_same_weights(model, other)


def test_nothing_is_said_about_the_missing_process_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The warnings of the format would stand in a study's output once a checkpoint."""
    model, optimizer = trained(TINY, 1)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        name = saved_in(tmp_path, model, optimizer, 1)
        Checkpoints(tmp_path).load(name, model, optimizer)
        Checkpoints(tmp_path).load_weights(model)
    assert caplog.records == []
