"""Embedding a screen on Ray: a pool of actors, each with the encoder loaded, a shard at a time.

An actor that dies is replaced and its shard begun anew; of a killed run the finished shards stay.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
from collections.abc import Iterator, Sequence

import numpy as np
import ray
import ray.data

from phenoscale.embed_index import Runner
from phenoscale.embed_shard import ShardEmbedder, ShardResult, Told
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.parallel import prepare_process
from phenoscale.reference import ReferenceModel

_MOST_BLOCKS = 1000  # Ray Data's cost is per block


def on_actors(
    *,
    actors: int | None = None,
    gpu: bool | None = None,
    threads: int = 1,
    address: str | None = None,
) -> Runner:
    """How `embed_index` embeds on Ray.

    Args:
        actors: processes that encode; as many as the cluster has GPUs, or CPUs for, if None.
        gpu: whether each takes a GPU; where the cluster has any, if None.
        threads: CPU threads of each.
        address: of a Ray cluster, whose nodes see index, encoder and output under the same names; a
            local Ray is started and stopped where there is none, unless this process has one.

    Returns:
        A runner, which raises ValueError if a local Ray has no room for the actors.
    """

    def run(
        embedder: ShardEmbedder, model: ReferenceModel, shards: Sequence[int], told: Told
    ) -> Iterator[ShardResult]:
        del model  # each actor loads its own
        began = not ray.is_initialized()
        if began:
            start_ray(address)
        try:
            there = ray.cluster_resources()
            on_gpu = bool(there.get("GPU")) if gpu is None else gpu
            # A reader works beside each encoder.
            fitting = int(there.get("GPU", 1)) if on_gpu else int(there["CPU"]) // (2 * threads)
            count = actors or max(1, fitting)
            if not (address or os.environ.get("RAY_ADDRESS")):
                _check_room(count, threads, on_gpu, there)
            for result in _each(embedder, shards, count, threads, on_gpu):
                told(embedder.sites(result.shard))
                yield result
        finally:
            if began:
                stop_ray()

    return run


def _check_room(actors: int, threads: int, gpu: bool, there: dict[str, float]) -> None:
    """A cluster may grow; actors that a machine alone has no room for would be awaited for ever."""
    cpus, gpus = int(there["CPU"]), int(there.get("GPU", 0))
    if actors * threads > cpus or (gpu and actors > gpus):
        raise ValueError(
            f"{actors} actors of {threads} threads{' and a GPU' if gpu else ''} each do not fit: "
            f"Ray has {cpus} CPUs here (two for each core) and {gpus} GPUs. Give fewer --actors, "
            "or fewer --threads."
        )


def _each(
    embedder: ShardEmbedder, shards: Sequence[int], actors: int, threads: int, gpu: bool
) -> Iterator[ShardResult]:
    """Embeds shards in the actors and yields results as they come."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.range(
        len(shards), override_num_blocks=min(len(shards), _MOST_BLOCKS)
    ).map_batches(
        _Actor,
        fn_constructor_kwargs={
            "embedder": embedder,
            "shards": list(shards),
            "threads": threads,
            "device": "cuda" if gpu else "cpu",
        },
        batch_size=1,
        num_cpus=threads,
        num_gpus=1 if gpu else 0,
        # One at a time: else the actor that is up first takes shards that others could begin.
        compute=ray.data.ActorPoolStrategy(
            size=min(actors, len(shards)), max_tasks_in_flight_per_actor=1
        ),
    )
    for row in dataset.iter_rows():
        if row["error"]:
            # What went wrong in an actor is told as if it had gone wrong here.
            raise pickle.loads(row["error"])
        facts = json.loads(row["result"])
        yield ShardResult(**facts | {"bad": tuple(facts["bad"])})


class _Actor:
    """A process that embeds shards with one loaded encoder."""

    def __init__(
        self, embedder: ShardEmbedder, shards: list[int], threads: int, device: str
    ) -> None:
        self._embedder, self._shards = embedder, shards
        self._threads, self._device = threads, device
        self._model: ReferenceModel | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str] | list[bytes]]:
        """Embeds one shard: the result as JSON, or what a user can mend, which Ray would bury."""
        try:
            result = self._written(self._shards[int(batch["id"][0])])
        except (ValueError, OSError) as error:
            return {"result": [""], "error": [pickle.dumps(error)]}
        return {"result": [json.dumps(dataclasses.asdict(result))], "error": [b""]}

    def _written(self, shard: int) -> ShardResult:
        if self._model is None:
            prepare_process(self._threads)
            self._model = self._embedder.load(self._device)
        return self._embedder.write(shard, self._model, _silent)


def _silent(sites: int) -> None:
    """Progress is told shard by shard."""
