"""Every kind of model under every combination of strategy, precision and options, on two workers.

`make test-matrix`; tests/test_ddp.py has one case per option for every day.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from phenoscale.layout import layout_of
from phenoscale.train import train
from tests.tiny import TINY, of, placed, silent, tiny_batches, tiny_model

WORLD, STEPS = 2, 4
MODELS = {
    "mae": TINY,
    "ca_mae": of("ca_mae"),
    "munet": of("munet", "MU-net-nano"),
    "adabn": of("wsl", "DenseNet-nano"),
}
CELLS = list(itertools.product(("ddp", "fsdp"), ("fp32", "bf16"), (False, True), (False, True)))


def trial_of(name: str, cell: tuple[str, str, bool, bool]):
    """The tiny trial of a model in a cell: strategy, precision, compiled, recompute."""
    strategy, precision, compiled, recompute = cell
    return placed(
        MODELS[name], precision, strategy=strategy, compiled=compiled, recompute=recompute
    )


def worker(rank: int, folder: Path) -> None:
    """One of two processes: trains every cell and leaves its losses."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    losses = {}
    for name, cell in itertools.product(MODELS, CELLS):
        trial = trial_of(name, cell)
        torch.compiler.reset()
        batches = tiny_batches(trial, rank, WORLD)
        model = tiny_model(trial)
        done = train(
            trial,
            model,
            batches,
            silent,
            steps=STEPS,
            rank=rank,
            world=WORLD,
            layout=layout_of(trial, 2, 3, workers=WORLD),
        )
        losses[f"{name} {cell}"] = done.record.curve.loss
        if rank == 0:
            print(name, *cell, flush=True)  # noqa: T201  minutes without a word are long
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    leave()


def leave() -> None:
    """Ends a worker that has written its results, together with the others.

    Without the interpreter's own end: threads of gloo and of FSDP's groups may still run then, and
    now and then abort the process (torch 2.14).
    """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    """The losses of both workers in every cell."""
    folder = tmp_path_factory.mktemp("matrix")
    torch.multiprocessing.spawn(worker, (folder,), nprocs=WORLD)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@functools.cache
def plain(name: str, precision: str) -> list[float]:
    """The losses of one process without any option."""
    trial = placed(MODELS[name], precision)
    done = train(trial, tiny_model(trial), tiny_batches(trial), silent, steps=STEPS)
    return done.record.curve.loss


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_gives_the_losses_of_one_plain_process(losses, name: str, cell):
    one, two = (told[f"{name} {cell}"] for told in losses)
    assert one == two and len(one) == STEPS
    # In bf16 half a batch, a compiled product and a recomputed one round in different places.
    tolerance = 1e-4 if cell[1] == "fp32" else 2e-2
    assert one == pytest.approx(plain(name, cell[1]), rel=tolerance)
