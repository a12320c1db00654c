"""Two processes train the same curve as one, whatever their strategy and options."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from phenoscale import checkpoint
from phenoscale.config import Trial
from phenoscale.parallel import mean_over_workers
from phenoscale.train import train
from tests.tiny import STEPS, TINY, TINY_WSL, of, placed, tiny_batches, tiny_model, train_tiny

WORLD = 2
# One case per strategy and option; all of their combinations are in tests/matrix.py.
TRIALS = {
    "mae": TINY,
    "wsl": TINY_WSL,
    "adabn": of("wsl", "DenseNet-nano"),
    "subsets": of("ca_mae", channel_subsets=True),
    "fsdp": placed(TINY, strategy="fsdp"),
    "fsdp-bf16-recompute": placed(of("ca_mae"), "bf16", strategy="fsdp", recompute=True),
    "fsdp-munet": placed(of("munet", "MU-net-nano"), strategy="fsdp", recompute=True),
}
# A share of half a batch rounds otherwise in bf16 products.
CLOSE = {"fsdp-bf16-recompute": 5e-3}


def worker(rank: int, folder: Path) -> None:
    """One of the processes: trains both trials and leaves its curves and checkpoints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    mean = float(mean_over_workers(torch.tensor(float(rank))))
    losses = {name: train_share(name, trial, rank, folder) for name, trial in TRIALS.items()}
    (folder / f"{rank}.json").write_text(json.dumps({"losses": losses, "mean": mean}))
    leave()


def leave() -> None:
    """Ends a worker that has written its results, together with the others.

    Without the interpreter's own end: threads of gloo and of FSDP's groups may still run then, and
    now and then abort the process (torch 2.14).
    """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def train_share(name: str, trial: Trial, rank: int, folder: Path) -> list[float]:
    """Trains one worker's share; its part of the last checkpoint goes to a directory of its own."""

    def report(progress, fill) -> None:
        if fill is not None:
            part = folder / f"{name}-{rank}-{progress['step']}"
            part.mkdir()
            fill(part)

    batches = tiny_batches(trial, rank, WORLD)
    model = tiny_model(trial)
    done = train(trial, model, batches, report, steps=STEPS, rank=rank, world=WORLD)
    state = {
        key: x.full_tensor() if isinstance(x, DTensor) else x
        for key, x in model.state_dict().items()
    }
    torch.save(state, folder / f"{name}-{rank}.pt")
    return done.curve.loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes left."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(worker, (folder,), nprocs=WORLD)
    return folder


def told(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"{rank}.json").read_text())


@pytest.mark.parametrize("name", TRIALS)
def test_two_workers_give_the_losses_of_one(folder: Path, name: str):
    one, two = (told(folder, rank)["losses"][name] for rank in range(WORLD))
    assert one == two
    assert len(one) == STEPS
    alone = train_tiny(TRIALS[name]).curve.loss
    assert one == pytest.approx(alone, rel=CLOSE.get(name, 1e-5))


def test_options_change_no_number_beyond_rounding():
    plain = train_tiny(TINY).curve.loss
    assert train_tiny(placed(TINY, recompute=True)).curve.loss == plain
    assert train_tiny(placed(TINY, compiled=True)).curve.loss == pytest.approx(plain, rel=1e-4)
    low = train_tiny(placed(TINY, "bf16")).curve.loss
    assert low == pytest.approx(plain, rel=2e-2) and low != plain


@pytest.mark.parametrize("name", TRIALS)
def test_all_workers_hold_the_same_weights(folder: Path, name: str):
    one, two = (torch.load(folder / f"{name}-{rank}.pt") for rank in range(WORLD))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", TRIALS)
def test_one_process_reads_the_checkpoint_of_two(folder: Path, name: str, tmp_path: Path):
    """The launcher merges the parts into one directory; then nothing says how many wrote it."""
    for rank in range(WORLD):
        shutil.copytree(folder / f"{name}-{rank}-{STEPS}", tmp_path / "whole", dirs_exist_ok=True)
    model = tiny_model(TRIALS[name])
    checkpoint.load_model(tmp_path / "whole", model)
    saved = torch.load(folder / f"{name}-0.pt")
    assert all(torch.equal(x, saved[key]) for key, x in model.state_dict().items())
    assert checkpoint.read_curve(tmp_path / "whole").loss == told(folder, 0)["losses"][name]


def test_means_are_over_workers(folder: Path):
    assert [told(folder, rank)["mean"] for rank in range(WORLD)] == [0.5, 0.5]


def test_a_process_alone_is_its_own_mean():
    value = torch.tensor(3.0, requires_grad=True)
    assert float(mean_over_workers(value)) == 3.0
