"""Every kind of model under every combination of strategy, precision and options, on two workers.

And one model on 1, 2 and 4 workers, DDP and FSDP, its shares whole and in four pieces. `make
test-matrix`; tests/test_ddp.py has one case per option for every day.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from phenoscale.layout import Layout, layout_of
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


SIXTEEN = dataclasses.replace(TINY, crops=dataclasses.replace(TINY.crops, global_batch_size=16))
WAYS = list(itertools.product((1, 2, 4), ("ddp", "fsdp"), (1, 4)))
"""Workers, strategy, pieces of a share."""


def group(rank: int, folder: Path, world: int) -> None:
    """One of so many processes: trains 20 steps every way, and leaves its losses."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world
    )
    losses = {}
    for workers, strategy, pieces in WAYS:
        if workers == world:
            done = train(
                SIXTEEN,
                tiny_model(SIXTEEN),
                tiny_batches(SIXTEEN, rank, world),
                silent,
                steps=20,
                rank=rank,
                world=world,
                layout=Layout(strategy=strategy, crops_at_once=16 // world // pieces),
            )
            losses[f"{strategy} {pieces}"] = done.record.curve.loss
    (folder / f"{world}-{rank}.json").write_text(json.dumps(losses))
    leave()


@pytest.fixture(scope="module")
def of_groups(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[float]]]:
    """The losses of 1, 2 and 4 workers; those of the last one."""
    folder = tmp_path_factory.mktemp("groups")
    for world in (1, 2, 4):
        torch.multiprocessing.spawn(group, (folder, world), nprocs=world)
    return {
        world: json.loads((folder / f"{world}-{world - 1}.json").read_text()) for world in (1, 2, 4)
    }


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_twenty_steps_are_the_same_every_way(of_groups, way: tuple[int, str, int]):
    world, strategy, pieces = way
    done = train(SIXTEEN, tiny_model(SIXTEEN), tiny_batches(SIXTEEN), silent, steps=20)
    losses = of_groups[world][f"{strategy} {pieces}"]
    assert losses == pytest.approx(done.record.curve.loss, rel=1e-5) and len(losses) == 20


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
