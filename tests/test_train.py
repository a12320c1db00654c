"""The spine, driven by the tiny trial: golden losses, exact resume, refusals, reports."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phenoscale.checkpoint import Checkpoints
from phenoscale.config import Optim, Placement, Trial
from phenoscale.feed import StalledError
from phenoscale.guard import NonFiniteError
from phenoscale.layout import Layout
from phenoscale.optim import build_optimizer, learning_rate
from phenoscale.train import (
    REPORTS,
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
    assert_same_weights,
    golden_losses,
    name_of,
    part,
    silent,
    stopped,
    tiny_batch,
    tiny_batches,
    tiny_model,
    train_tiny,
)

BOTH = pytest.mark.parametrize("trial", [TINY, TINY_WSL], ids=lambda t: t.objective.name)
EVERY = pytest.mark.parametrize("trial", ZOO, ids=name_of)


class Listener:
    """A `report` that remembers."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __call__(self, progress: dict[str, Any]) -> None:
        self.told.append(progress)


def listened(trial: Trial, folder: Path, **options) -> tuple[torch.nn.Module, Trained, Listener]:
    """Trains a tiny trial with checkpoints in a folder."""
    model, listener = tiny_model(trial), Listener()
    with Checkpoints(folder) as checkpoints:
        options = {"steps": STEPS, "checkpoints": checkpoints, **options}
        done = train(trial, model, tiny_batches(trial), listener, **options)
    return model, done, listener


@EVERY
def test_losses_fall_on_one_fixed_batch(trial: Trial):
    done = train(trial, tiny_model(trial), tiny_batches(trial, fixed=True), silent, steps=20)
    losses = done.record.curve.loss
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
    assert train_tiny(trial).record.curve.loss == train_tiny(trial).record.curve.loss


def test_another_seed_is_another_training():
    other = dataclasses.replace(TINY, seed=1)
    assert train_tiny(other).record.curve.loss[0] != train_tiny(TINY).record.curve.loss[0]


AVERAGED = dataclasses.replace(TINY, optim=dataclasses.replace(TINY.optim, average=0.9))
LION, MUON = (
    dataclasses.replace(TINY_WSL, optim=Optim(lr=3e-3, name=name)) for name in ("lion", "muon")
)


@pytest.mark.parametrize("at", [5, 8])
@pytest.mark.parametrize(
    "trial", [TINY, TINY_WSL, AVERAGED, LION, MUON], ids=["mae", "wsl", "average", "lion", "muon"]
)
def test_a_resumed_trial_is_the_undisturbed_one_bit_for_bit(trial: Trial, at: int, tmp_path: Path):
    model, done, _ = listened(trial, tmp_path / "whole")
    stopped(trial, tmp_path / "two", at)
    again, rest, _ = listened(trial, tmp_path / "two")
    assert rest.first_step == (4 if at == 5 else 7) and rest.record.attempts == 2
    assert rest.record.curve.step == done.record.curve.step == list(range(STEPS))
    for name in ("loss", "lr", "grad_norm"):
        assert getattr(rest.record.curve, name) == getattr(done.record.curve, name)
    assert_same_weights(model, again)
    kept = [Checkpoints(tmp_path / name) for name in ("whole", "two")]
    one, two = tiny_model(trial), tiny_model(trial)
    for checkpoints, copy in zip(kept, (one, two), strict=True):
        checkpoints.load_weights(copy)
    assert_same_weights(one, two)


def test_a_resumed_trial_asks_for_the_rest_alone(tmp_path: Path):
    stopped(TINY, tmp_path, 8)
    asked: list[tuple[int, int]] = []

    def batches(first: int, last: int):
        asked.append((first, last))
        return tiny_batches(TINY)(first, last)

    train(TINY, tiny_model(TINY), batches, silent, steps=STEPS, checkpoints=Checkpoints(tmp_path))
    assert asked == [(7, STEPS)]


def test_a_finished_trial_resumed_changes_nothing(tmp_path: Path):
    model, done, _ = listened(TINY, tmp_path)
    again, rest, silence = listened(TINY, tmp_path)
    assert rest.record.curve.loss == done.record.curve.loss and silence.told == []
    assert_same_weights(model, again)


def test_the_last_checkpoint_holds_the_trained_weights(tmp_path: Path):
    model, done, _ = listened(TINY, tmp_path)
    other = tiny_model(TINY)
    record = Checkpoints(tmp_path).load_weights(other)
    assert_same_weights(model, other)
    assert record.curve.loss == done.record.curve.loss


def test_the_average_is_what_a_trial_leaves(tmp_path: Path):
    model, _, _ = listened(AVERAGED, tmp_path)
    left = tiny_model(AVERAGED)
    Checkpoints(tmp_path).load_weights(left)
    trained, first = model.encoder.norm.weight, torch.ones_like(model.encoder.norm.weight)
    average = left.encoder.norm.weight
    assert not torch.equal(average, trained)
    assert (average - first).norm() < (trained - first).norm(), "it lags behind"


def test_reports_come_at_the_due_steps(tmp_path: Path):
    steps = 45
    _, done, listener = listened(TINY, tmp_path, steps=steps)
    assert [told["step"] for told in listener.told] == sorted(s + 1 for s in due(steps, REPORTS))
    for told in listener.told:
        assert told["steps"] == steps
        assert told["loss"] == done.record.curve.loss[told["step"] - 1]
        assert told["crops_per_s"] == done.record.curve.crops_per_s[told["step"] - 1]
        assert 0 <= told["waited"] <= 1


def test_time_that_passed_is_reported_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("phenoscale.clock.TICK_S", 0.0)
    hasty = dataclasses.replace(TINY, placement=Placement(save_every_s=1e-6))
    _, _, listener = listened(hasty, tmp_path, steps=25)
    assert [told["step"] for told in listener.told] == list(range(1, 26))
    left = {path.name[:13] for path in tmp_path.iterdir()}
    assert left == {"step_00000024", "step_00000025"}, "the last two"


def test_a_machine_that_is_about_to_go_leaves_a_checkpoint_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("phenoscale.clock.TICK_S", 0.0)
    calls = itertools.count()
    stopped(TINY, tmp_path, 3, interrupted=lambda: next(calls) == 1)
    _, rest, _ = listened(TINY, tmp_path)
    assert rest.first_step == 2


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 1000])
def test_due_steps_are_even_and_end_at_the_last(steps: int):
    at = sorted(due(steps, 20))
    assert at[-1] == steps - 1 and at[0] >= 0
    assert len(at) == min(steps, 20)
    gaps = {b - a for a, b in zip(at, at[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_curve_holds_the_schedule_and_the_counts(tmp_path: Path):
    done = train_tiny(TINY)
    assert done.record.curve.step == list(range(STEPS))
    assert done.record.curve.lr == [learning_rate(TINY.optim, step, STEPS) for step in range(STEPS)]
    assert done.data_cpu_s == STEPS * 8 * 0.125  # what the batches say that they cost
    assert 0 <= done.data_wait_s <= done.train_s
    assert done.record.bad_rows == []
    assert (done.first_step, done.crops) == (0, STEPS * 8)


def test_times_of_a_step_are_part_of_it(tmp_path: Path):
    _, done, _ = listened(TINY, tmp_path)
    record, curve = done.record, done.record.curve
    step_s = np.array([8 / speed for speed in curve.crops_per_s])
    parts = np.array([curve.data_s, curve.communication_s])
    assert (parts >= 0).all() and (parts.sum(axis=0) <= step_s).all()
    assert [step for step, s in enumerate(curve.checkpoint_s) if s] == sorted(due(STEPS, 3))
    assert record.train_s == pytest.approx(step_s.sum() + record.checkpoint_s)
    assert record.checkpoint_s == pytest.approx(sum(curve.checkpoint_s))
    assert record.data_wait_s == pytest.approx(sum(curve.data_s))


def test_a_trace_is_written_where_one_is_asked_for(tmp_path: Path):
    train(
        TINY, tiny_model(TINY), tiny_batches(TINY), silent, steps=6, trace=tmp_path / "a/trace.json"
    )
    events = json.loads((tmp_path / "a/trace.json").read_text())["traceEvents"]
    assert any("aten::addmm" in event.get("name", "") for event in events)


def test_rows_that_were_passed_over_are_counted_once_and_travel_with_the_checkpoint():
    def batches(first: int, last: int):
        for step in range(first, last):
            batch = tiny_batch(TINY, step)
            batch["bad"][:2] = (3, 70 + step % 2)
            yield batch

    done = train(TINY, tiny_model(TINY), batches, silent, steps=4)
    assert done.record.bad_rows == [3, 70, 71]


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
def test_a_loss_that_is_no_number_stops_before_the_update(value: float):
    model, listener = Diverging(tiny_model(TINY), 3, value), Listener()
    with pytest.raises(NonFiniteError) as error:
        train(TINY, model, tiny_batches(TINY), listener, steps=STEPS)
    for named in (TINY.id, "loss", "step 3", "worker 0", "24, 25, 26", "0.003"):
        assert named in str(error.value)
    assert error.value.evidence == {
        "trial_id": TINY.id,
        "step": 3,
        "workers": [0],
        "losses": [None],
        "gradient_is_finite": False,
        "rows": list(range(24, 32)),
    }
    assert model.calls == 4
    assert all(torch.equal(model.before[name], x) for name, x in model.state_dict().items())
    assert [told["step"] for told in listener.told] == [1, 2, 3]


def test_a_gradient_that_is_no_number_stops_before_the_update():
    class Steep(Diverging):
        """A loss that is a number and whose derivative is none."""

        def forward(self, crops, labels, noise):
            loss = super().forward(crops, labels, noise)
            if self.calls == 4:
                loss.register_hook(lambda gradient: gradient * math.inf)
            return loss

    model = Steep(tiny_model(TINY), 3, 1.0)
    with pytest.raises(NonFiniteError, match="gradient of norm (nan|inf) at step 3") as error:
        train(TINY, model, tiny_batches(TINY), silent, steps=STEPS)
    assert (error.value.evidence["workers"], error.value.evidence["losses"][0] > 0) == ([], True)
    assert all(torch.equal(model.before[name], x) for name, x in model.state_dict().items())


class Jumping(Diverging):
    """A model whose loss is ten times what it should be at one step."""

    def __init__(self, inner: torch.nn.Module, at: int) -> None:
        super().__init__(inner, at, 10.0)


@pytest.mark.parametrize("rollback", [False, True])
def test_a_loss_that_jumps_is_noted_and_may_lead_back(rollback: bool, tmp_path: Path):
    optim = dataclasses.replace(TINY.optim, rollback=rollback)
    trial, steps = dataclasses.replace(TINY, optim=optim), 60
    model = Jumping(tiny_model(trial), 45)
    done = train(
        trial,
        model,
        tiny_batches(trial),
        silent,
        steps=steps,
        checkpoints=Checkpoints(tmp_path / "jumping"),
    )
    assert done.record.spikes == [45]
    assert done.record.curve.loss[45] > 5 * done.record.curve.loss[44]
    assert done.record.curve.step == list(range(steps))
    if not rollback:
        assert done.record.rolled_back == []
        return
    assert done.record.rolled_back == [40, 45]
    # What an undisturbed trial has after 40 steps takes up the batches behind the spike.
    stopped(trial, tmp_path / "plain", 45, steps=steps)
    kept = Checkpoints(tmp_path / "plain")
    other = tiny_model(trial)
    optimizer = build_optimizer(other, trial.optim)
    assert kept.load(kept.latest(milestone=True), other, optimizer).steps == 40
    batch = tiny_batch(trial, 46)
    crops, labels = (torch.from_numpy(batch[name]) for name in ("crops", "labels"))
    loss = other(crops, labels, random_draws(trial, 46, other)).item()
    assert done.record.curve.loss[46] == loss


def test_crops_that_do_not_come_are_an_error():
    patient = dataclasses.replace(TINY, placement=Placement(stall_s=0.3))
    released = threading.Event()

    def batches(first: int, last: int):
        yield from tiny_batches(TINY)(first, 2)
        released.wait(60)

    with pytest.raises(StalledError, match="No crops came for 0.3 s"):
        train(patient, tiny_model(patient), batches, silent, steps=STEPS)
    released.set()


def test_in_pieces_a_batch_gives_the_losses_of_the_whole():
    """Of sizes that do not divide it, too: each piece counts by its crops."""
    whole = train_tiny(TINY).record.curve
    for at_once in (2, 3):
        done = train(
            TINY,
            tiny_model(TINY),
            tiny_batches(TINY),
            silent,
            steps=STEPS,
            layout=Layout(crops_at_once=at_once),
        )
        assert done.record.curve.loss == pytest.approx(whole.loss, rel=1e-5)
        assert done.record.curve.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)


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
