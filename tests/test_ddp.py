"""Two processes train the same curve as one, whatever their strategy and options."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from phenoscale.checkpoint import Checkpoints
from phenoscale.config import Trial
from phenoscale.guard import NonFiniteError
from phenoscale.layout import layout_of
from phenoscale.parallel import Gradient, agreed, gathered, sum_over_workers
from phenoscale.train import random_draws, train
from tests.tiny import (
    STEPS,
    TINY,
    TINY_WSL,
    of,
    placed,
    silent,
    stopped,
    tiny_batches,
    tiny_model,
    train_tiny,
    with_optim,
)

WORLD = 2
SEVEN = dataclasses.replace(TINY, crops=dataclasses.replace(TINY.crops, global_batch_size=7))
"""A global batch of seven crops, three and four of which are a worker's."""
# One case per strategy and option; all of their combinations are in tests/matrix.py.
TRIALS = {
    "mae": TINY,
    "wsl": TINY_WSL,
    "adabn": of("wsl", "DenseNet-nano"),
    "subsets": of("ca_mae", channel_subsets=True),
    "pieces": placed(TINY, crops_at_once=1),
    "uneven": placed(SEVEN, crops_at_once=2),
    "fsdp": placed(TINY, strategy="fsdp"),
    "fsdp-uneven": placed(SEVEN, strategy="fsdp", crops_at_once=1),
    "fsdp-pieces": placed(TINY, strategy="fsdp", crops_at_once=1),
    "fsdp-average": placed(with_optim(TINY, average=0.9), strategy="fsdp"),
    "fsdp-muon": placed(with_optim(TINY, name="muon"), strategy="fsdp"),
    "fsdp-bf16-recompute": placed(of("ca_mae"), "bf16", strategy="fsdp", recompute=True),
    "fsdp-munet": placed(of("munet", "MU-net-nano"), strategy="fsdp", recompute=True),
}
# A share of half a batch rounds otherwise in bf16 products, which Muon's iterations are too.
CLOSE = {"fsdp-bf16-recompute": 5e-3, "fsdp-muon": 5e-3}
CHANGED = {"ddp": TINY, "fsdp": TRIALS["fsdp-average"]}
"""Trials that are stopped at one world size and go on at another."""


def worker(rank: int, folder: Path) -> None:
    """One of the processes: trains all trials and leaves curves and checkpoints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    total = sum_over_workers(torch.tensor(float(rank + 1))).item()
    losses = {name: train_share(name, trial, rank, folder) for name, trial in TRIALS.items()}
    for name, trial in CHANGED.items():
        layout = layout_of(trial, 2, 3, workers=WORLD)
        stopped(trial, folder / f"two-{name}", 8, rank=rank, world=WORLD, layout=layout)
        losses[f"from-one-{name}"] = train_share(f"one-{name}", trial, rank, folder)
    told = {
        "losses": losses,
        "total": total,
        "numbers": gathered(rank),
        "first": agreed(lambda: rank),
        "one_reference": its_graph_holds_the_held_reference(rank),
        "non_finite": told_of_a_loss_that_is_no_number(rank),
        "stalled": told_of_a_worker_that_does_not_come(rank),
    }
    (folder / f"{rank}.json").write_text(json.dumps(told))
    os._exit(0)  # the group is broken, as it is meant to be


def train_share(name: str, trial: Trial, rank: int, folder: Path) -> list[float]:
    """Trains one worker's share, from the last checkpoint in its folder."""
    model = tiny_model(trial)
    with Checkpoints(folder / name) as checkpoints:
        done = train(
            trial,
            model,
            tiny_batches(trial, rank, WORLD),
            silent,
            steps=STEPS,
            checkpoints=checkpoints,
            rank=rank,
            world=WORLD,
            layout=layout_of(trial, 2, 3, workers=WORLD),
        )
    assert checkpoints.latest().startswith(f"step_{STEPS:08d}")
    state = {
        key: x.full_tensor() if isinstance(x, DTensor) else x
        for key, x in model.state_dict().items()
    }
    torch.save(state, folder / f"{name}-{rank}.pt")
    if rank == 0:
        (folder / f"{name}.communication.json").write_text(
            json.dumps(done.record.curve.communication_s)
        )
    return done.record.curve.loss


def its_graph_holds_the_held_reference(rank: int) -> bool:
    """Where DDP looks for unused parameters, its node of the graph finds it by a weak reference."""
    trial = TRIALS["subsets"]
    model = tiny_model(trial)
    gradient = Gradient(model, torch.device("cpu"), trial.placement)
    batch = next(tiny_batches(trial, rank, WORLD)(0, 1))
    crops, labels = torch.as_tensor(batch["crops"]), torch.as_tensor(batch["labels"])
    loss = gradient._wrapped(crops, labels, random_draws(trial, 0, model)[: len(crops)])
    return loss.grad_fn.ddp_weakref is gradient._reference


def told_of_a_loss_that_is_no_number(rank: int) -> dict:
    """What the second worker's crops do to both, which stop at the same step."""

    def batches(first: int, last: int):
        for batch in tiny_batches(TINY, rank, WORLD)(first, last):
            yield batch | {"labels": batch["labels"] * 0 + (rank == 1)}

    model = tiny_model(TINY_WSL)
    model.register_forward_hook(
        lambda module, given, loss: loss * (math.nan if given[1][0] else 1.0)
    )
    try:
        train(TINY_WSL, model, batches, silent, steps=2, rank=rank, world=WORLD)
    except NonFiniteError as error:
        return {"message": str(error), **error.evidence}
    raise AssertionError("it passed in silence")


def told_of_a_worker_that_does_not_come(rank: int) -> str:
    """The first worker waits in a collective for the second, which never comes."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=2))
    if rank == 1:
        time.sleep(4)  # alive, and elsewhere
        return ""
    try:
        dist.all_reduce(torch.zeros(()), group=group)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it went on alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes left."""
    folder = tmp_path_factory.mktemp("ddp")
    for name, trial in CHANGED.items():
        stopped(trial, folder / f"one-{name}", 8)
    torch.multiprocessing.spawn(worker, (folder,), nprocs=WORLD)
    return folder


def told(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"{rank}.json").read_text())


@pytest.mark.parametrize("name", TRIALS)
def test_two_workers_give_the_losses_of_one(folder: Path, name: str):
    one, two = (told(folder, rank)["losses"][name] for rank in range(WORLD))
    assert one == two
    assert len(one) == STEPS
    alone = train_tiny(TRIALS[name]).record.curve.loss
    assert one == pytest.approx(alone, rel=CLOSE.get(name, 1e-5))


@pytest.mark.parametrize("name", CHANGED)
def test_a_trial_goes_on_with_more_workers_or_fewer(folder: Path, name: str):
    trial = CHANGED[name]
    whole = train_tiny(trial).record.curve.loss
    losses = told(folder, 0)["losses"]
    assert losses[f"from-one-{name}"] == pytest.approx(whole, rel=1e-5)
    with Checkpoints(folder / f"two-{name}") as checkpoints:
        batches, model = tiny_batches(trial), tiny_model(trial)
        rest = train(trial, model, batches, silent, steps=STEPS, checkpoints=checkpoints)
    assert rest.first_step == 7
    assert rest.record.curve.loss == pytest.approx(whole, rel=1e-5)


def test_options_change_no_number_beyond_rounding():
    """Compiled layers are in tests/matrix.py: they take a minute to compile."""
    plain = train_tiny(TINY).record.curve.loss
    assert train_tiny(placed(TINY, recompute=True)).record.curve.loss == plain
    low = train_tiny(placed(TINY, "bf16")).record.curve.loss
    assert low == pytest.approx(plain, rel=2e-2) and low != plain


@pytest.mark.parametrize("name", TRIALS)
def test_all_workers_hold_the_same_weights(folder: Path, name: str):
    one, two = (torch.load(folder / f"{name}-{rank}.pt") for rank in range(WORLD))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", [name for name in TRIALS if name != "fsdp-average"])
def test_one_process_reads_the_checkpoint_of_two(folder: Path, name: str):
    model = tiny_model(TRIALS[name])
    record = Checkpoints(folder / name).load_weights(model)
    saved = torch.load(folder / f"{name}-0.pt")
    assert all(torch.equal(x, saved[key]) for key, x in model.state_dict().items())
    assert record.curve.loss == told(folder, 0)["losses"][name]


def test_workers_speak_of_the_same(folder: Path):
    for rank in range(WORLD):
        assert (told(folder, rank)["total"], told(folder, rank)["numbers"]) == (3.0, [0, 1])
        assert told(folder, rank)["first"] == 0


def test_no_collection_of_garbage_can_cut_a_graph_from_its_model(folder: Path):
    assert all(told(folder, rank)["one_reference"] for rank in range(WORLD))


def test_a_process_alone_speaks_for_itself():
    assert sum_over_workers(torch.tensor(3.0)).item() == 3.0
    assert (gathered("a"), agreed(lambda: "b")) == (["a"], "b")


def test_all_workers_stop_at_the_loss_of_one_that_is_no_number(folder: Path):
    one, two = (told(folder, rank)["non_finite"] for rank in range(WORLD))
    assert one == two
    assert "loss nan at step 0, worker 1" in one["message"]
    assert "index rows [4, 5, 6, 7]" in one["message"]
    assert (one["workers"], one["rows"]) == ([1], list(range(8)))
    assert one["losses"][0] > 0 and one["losses"][1] is None


def test_a_worker_that_does_not_come_is_an_error_and_no_hang(folder: Path):
    assert "Timed out" in told(folder, 0)["stalled"]


def test_time_spent_waiting_for_workers_is_told(folder: Path):
    waited = json.loads((folder / "mae.communication.json").read_text())
    assert len(waited) == STEPS and all(seconds > 0 for seconds in waited)
