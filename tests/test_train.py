"""The spine, driven by the tiny trial: golden losses, exact resume, refusals, reports."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phenoscale import checkpoint
from phenoscale.config import Trial
from phenoscale.optim import learning_rate
from phenoscale.train import (
    CHECKPOINTS,
    REPORTS,
    NonFiniteLossError,
    Trained,
    due,
    held_out_loss,
    random_draws,
    train,
)
from tests.tiny import (
    GOLDEN,
    STEPS,
    TINY,
    TINY_WSL,
    ZOO,
    golden_losses,
    name_of,
    part,
    silent,
    tiny_batch,
    tiny_batches,
    tiny_model,
    train_tiny,
)

BOTH = pytest.mark.parametrize("trial", [TINY, TINY_WSL], ids=lambda t: t.objective.name)
EVERY = pytest.mark.parametrize("trial", ZOO, ids=name_of)


class Listener:
    """A `report` that remembers, and keeps the checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[dict[str, Any]] = []
        self.saved: dict[int, Path] = {}

    def __call__(self, progress: dict[str, Any], fill: Callable[[Path], None] | None) -> None:
        self.told.append(progress)
        if fill is not None:
            directory = self.folder / str(progress["step"])
            directory.mkdir(parents=True)
            fill(directory)
            self.saved[progress["step"]] = directory


def listened(trial: Trial, folder: Path, **options) -> tuple[torch.nn.Module, Trained, Listener]:
    model, listener = tiny_model(trial), Listener(folder)
    done = train(trial, model, tiny_batches(trial), listener, **{"steps": STEPS, **options})
    return model, done, listener


@EVERY
def test_losses_fall_on_one_fixed_batch(trial: Trial):
    done = train(trial, tiny_model(trial), tiny_batches(trial, fixed=True), silent, steps=20)
    losses = done.curve.loss
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[3] < losses[0]  # after three updates
    assert losses[-1] < 0.9 * losses[0]


def test_golden_losses():
    """Held to what they were; other CPUs round otherwise. `python -m tests.tiny --write-golden`."""
    expected, measured = json.loads(GOLDEN.read_text()), golden_losses()
    assert measured.keys() == expected.keys() == {name_of(trial) for trial in ZOO}
    for objective, losses in expected.items():
        assert measured[objective] == pytest.approx(losses, rel=1e-5), objective


@BOTH
def test_twice_the_same_trial_gives_the_same_bits(trial: Trial):
    assert train_tiny(trial).curve.loss == train_tiny(trial).curve.loss


def test_another_seed_is_another_training():
    other = dataclasses.replace(TINY, seed=1)
    assert train_tiny(other).curve.loss[0] != train_tiny(TINY).curve.loss[0]


@BOTH
def test_a_resumed_trial_is_the_undisturbed_one_bit_for_bit(trial: Trial, tmp_path: Path):
    model, done, listener = listened(trial, tmp_path / "whole")
    assert sorted(listener.saved) == [4, 7, 10]
    for step in (4, 7):
        again, rest, _ = listened(trial, tmp_path / f"from{step}", resume=listener.saved[step])
        assert rest.curve.step == done.curve.step == list(range(STEPS))
        assert rest.curve.loss == done.curve.loss
        assert rest.curve.lr == done.curve.lr
        assert rest.curve.crops_per_s[:step] == done.curve.crops_per_s[:step]
        for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(one, two), name


def test_a_resumed_trial_asks_for_the_rest_alone(tmp_path: Path):
    _, _, listener = listened(TINY, tmp_path)
    asked: list[tuple[int, int]] = []

    def batches(first: int, last: int):
        asked.append((first, last))
        return tiny_batches(TINY)(first, last)

    train(TINY, tiny_model(TINY), batches, silent, steps=STEPS, resume=listener.saved[7])
    assert asked == [(7, STEPS)]


def test_a_finished_trial_resumed_changes_nothing(tmp_path: Path):
    model, done, listener = listened(TINY, tmp_path / "whole")
    again, rest, silence = listened(TINY, tmp_path / "again", resume=listener.saved[STEPS])
    assert rest.curve == done.curve and silence.told == []
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_the_last_checkpoint_holds_the_trained_weights(tmp_path: Path):
    model, done, listener = listened(TINY, tmp_path)
    other = tiny_model(TINY)
    checkpoint.load_model(listener.saved[STEPS], other)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    assert checkpoint.read_curve(listener.saved[STEPS]) == done.curve


def test_reports_come_at_the_due_steps(tmp_path: Path):
    steps = 45
    _, done, listener = listened(TINY, tmp_path, steps=steps)
    wanted = due(steps, REPORTS) | due(steps, CHECKPOINTS)
    assert [told["step"] for told in listener.told] == sorted(step + 1 for step in wanted)
    assert set(listener.saved) == {step + 1 for step in due(steps, CHECKPOINTS)}
    for told in listener.told:
        assert told["steps"] == steps
        assert told["loss"] == done.curve.loss[told["step"] - 1]
        assert told["crops_per_s"] == done.curve.crops_per_s[told["step"] - 1]


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 1000])
def test_due_steps_are_even_and_end_at_the_last(steps: int):
    at = sorted(due(steps, 20))
    assert at[-1] == steps - 1 and at[0] >= 0
    assert len(at) == min(steps, 20)
    gaps = {b - a for a, b in zip(at, at[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_curve_holds_the_schedule_and_the_counts(tmp_path: Path):
    done = train_tiny(TINY)
    assert done.curve.step == list(range(STEPS))
    assert done.curve.lr == [learning_rate(TINY.optim, step, STEPS) for step in range(STEPS)]
    assert done.data_cpu_s == STEPS * 8 * 0.125  # what the batches say that they cost
    assert 0 <= done.data_wait_s <= done.train_s
    assert done.curve.bad_rows == []
    assert (done.first_step, done.crops) == (0, STEPS * 8)


def test_rows_that_were_passed_over_are_counted_once_and_travel_with_the_checkpoint():
    def batches(first: int, last: int):
        for step in range(first, last):
            batch = tiny_batch(TINY, step)
            batch["bad"][:2] = (3, 70 + step % 2)
            yield batch

    done = train(TINY, tiny_model(TINY), batches, silent, steps=4)
    assert done.curve.bad_rows == [3, 70, 71]


class Diverging(torch.nn.Module):
    """A model whose loss stops being a number at one step."""

    def __init__(self, inner: torch.nn.Module, at: int, value: float) -> None:
        super().__init__()
        self.inner, self.layers = inner, inner.layers
        self.draws, self.shared_draws = inner.draws, inner.shared_draws
        self.at, self.value, self.calls = at, value, 0
        self.before: dict[str, torch.Tensor] = {}

    def forward(self, crops, labels, noise):
        loss = self.inner(crops, labels, noise)
        if self.calls == self.at:
            self.before = {name: x.clone() for name, x in self.state_dict().items()}
            loss = loss * self.value
        self.calls += 1
        return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(value: float, tmp_path: Path):
    model, listener = Diverging(tiny_model(TINY), 3, value), Listener(tmp_path)
    with pytest.raises(NonFiniteLossError) as error:
        train(TINY, model, tiny_batches(TINY), listener, steps=STEPS)
    for named in (TINY.id, "step 3", "worker 0", "24, 25, 26", "0.003"):
        assert named in str(error.value)
    assert model.calls == 4
    assert all(torch.equal(model.before[name], x) for name, x in model.state_dict().items())
    assert [told["step"] for told in listener.told] == [1, 2, 3]


def test_the_error_names_the_worker():
    model = Diverging(tiny_model(TINY), 0, math.nan)
    with pytest.raises(NonFiniteLossError, match="step 0, worker 1"):
        train(TINY, model, tiny_batches(TINY, 1, 2), silent, steps=1, rank=1, world=2)


def test_a_stream_that_ends_early_is_an_error():
    def batches(first: int, last: int):
        return tiny_batches(TINY)(first, last - 2)

    with pytest.raises(RuntimeError, match=f"{TINY.id}, worker 0.*nothing at step 8 of 10"):
        train(TINY, tiny_model(TINY), batches, silent, steps=STEPS)


def test_a_short_batch_is_an_error():
    def batches(first: int, last: int):
        for step in range(first, last):
            yield {name: x[: 8 - step] for name, x in tiny_batch(TINY, step).items()}

    with pytest.raises(RuntimeError, match="gave 7 at step 1 of 10; the plan has 8 crops"):
        train(TINY, tiny_model(TINY), batches, silent, steps=STEPS)


class Recorder(torch.nn.Module):
    """A model that keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.draws, self.shared_draws = 4, 2
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def forward(self, crops, labels, noise):
        self.seen.append((crops, labels, noise))
        return self.weight.square().sum()

    def layers(self):
        return []


def test_workers_together_see_the_crops_and_masks_of_one():
    def seen(rank: int, world: int):
        model = Recorder()
        batches = tiny_batches(TINY, rank, world)
        train(TINY, model, batches, silent, steps=3, rank=rank, world=world)
        return model.seen

    for world in (2, 4):
        parts = zip(*[seen(rank, world) for rank in range(world)], strict=True)
        for whole, shares in zip(seen(0, 1), parts, strict=True):
            for i in range(3):  # crops, labels, noise
                assert torch.equal(whole[i], torch.cat([share[i] for share in shares]))


def test_masks_depend_on_seed_and_step_alone():
    model = Recorder()
    torch.manual_seed(1)
    one = random_draws(TINY, 5, model)
    torch.manual_seed(2)
    assert torch.equal(one, random_draws(TINY, 5, model))
    assert one.shape == (8, 4 + 2) and one.min() >= 0 and one.max() < 1
    assert one[:, :4].unique().numel() == 32, "each crop has draws of its own"
    assert torch.equal(one[:, 4:], one[:1, 4:].expand(8, -1)), "these the whole step shares"
    seeded = dataclasses.replace(TINY, seed=1)
    for other in (random_draws(TINY, 6, model), random_draws(seeded, 5, model)):
        assert not torch.equal(one[:, :4], other[:, :4]) and not torch.equal(one[0], other[0])
    largest = dataclasses.replace(TINY, seed=2**31 - 1)
    assert random_draws(largest, 2**31 + 10, model, crops=3).shape == (3, 6)


def test_held_out_loss_is_the_mean_over_crops_not_over_batches():
    model = tiny_model(TINY_WSL)
    whole = tiny_batch(TINY_WSL, 99)
    uneven = [{n: x[a:b] for n, x in whole.items()} for a, b in ((0, 6), (6, 8))]
    loss = held_out_loss(TINY_WSL, model, iter(uneven))
    assert loss == pytest.approx(held_out_loss(TINY_WSL, model, iter([whole])), rel=1e-6)
    alone = [held_out_loss(TINY_WSL, model, iter([batch])) for batch in uneven]
    assert loss != pytest.approx(sum(alone) / 2, rel=1e-4)


def test_held_out_loss_uses_masks_that_training_never_uses():
    model = tiny_model(TINY)
    batches = [tiny_batch(TINY, 99), part(tiny_batch(TINY, 98), 0, 2)]
    total = 0.0
    with torch.no_grad():
        for number, batch in enumerate(batches):
            size = len(batch["crops"])
            noise = random_draws(TINY, 2**31 + number, model, crops=size)
            crops, labels = (torch.from_numpy(batch[n]) for n in ("crops", "labels"))
            total += size * float(model(crops, labels, noise))
    assert held_out_loss(TINY, model, iter(batches)) == pytest.approx(total / 12, rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_held_out_loss_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no held-out sites; name plates in crops.held_out"):
        held_out_loss(TINY, tiny_model(TINY), iter([]))
