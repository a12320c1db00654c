"""Checkpoints of a trial: sharded, written beside training, valid whole or not at all.

A checkpoint is a folder, `step_00000042-1f3a9c2e`: the tensors in safetensors files, each worker's
part in its own (torch's distributed checkpoint), the record of training in record.json, and
manifest.json, which lists all files and is written when they are there. A folder without a manifest
is no checkpoint, whatever a killed attempt left in it. The name ends in a mark of the attempt, so
that two attempts never write into one folder, even while one does not know yet that it is lost.

Any number of workers and either strategy can read what another wrote. Nothing is pickled.

What a checkpoint holds: weights, the optimizer's moments, the moving average of the weights where
there is one, and the record. That is all there is: the learning rate, the masks, the drop path and
the place in the sampling plan follow from seed and step, and so do the operations spent.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from phenoscale.optim import WeightAverage
from phenoscale.parallel import agreed, distributed
from phenoscale.record import Record
from phenoscale.state import empty_moments, names_in, quiet, read_into, tensors_of

FORMAT = 1
KEEP = 2
"""Checkpoints that are kept: should the last one be damaged, another is there."""
MANIFEST, RECORD = "manifest.json", "record.json"
_IN_PLACE = StagingOptions(False, False, False, False)  # copied before training goes on


class Checkpoints:
    """The checkpoints of one trial; all of its workers save and load together."""

    def __init__(self, root: str | Path, system: AbstractFileSystem | None = None) -> None:
        """Looks at the folder `root`, in a store where `system` is one, else on this machine."""
        self._root = str(root).rstrip("/")
        self._system = system or LocalFileSystem()
        self._attempt: str | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._group: dist.ProcessGroup | None = None
        self._writing: concurrent.futures.Future[None] | None = None

    def latest(self, *, milestone: bool = False) -> str | None:
        """The name of the last checkpoint, or of the last milestone, that is whole; None if none.

        Called on all workers: the first one looks, and the others get its answer. What is still
        being written is waited for, so that the answer follows from the step alone.
        """
        self.wait()
        return agreed(lambda: self._last(milestone))

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        record: Record,
        average: WeightAverage | None = None,
        *,
        milestone: bool = False,
    ) -> None:
        """Copies the state and writes it while training goes on; all workers at the same step.

        Args:
            model: as trained, sharded or not.
            optimizer: its optimizer.
            record: up to here; its steps name the checkpoint.
            average: of the weights, where there is one.
            milestone: whether a spike may lead back to it; it is kept until the next milestone.

        Raises:
            Exception: whatever went wrong with the checkpoint before.
        """
        self.wait()
        if self._thread is None:
            self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
            self._attempt = agreed(lambda: secrets.token_hex(4))
            if distributed():  # of its own, so that it does not mix with training's collectives
                self._group = dist.new_group(backend="gloo")  # type: ignore[assignment]  # a member
        name = f"step_{record.steps:08d}-{self._attempt}"
        stager = DefaultStager(_IN_PLACE)
        tensors: Any = stager.stage(tensors_of(model, optimizer, average))
        stager.close()
        self._writing = self._thread.submit(
            self._write, name, tensors, record.as_json(), record.steps, milestone
        )

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is valid.

        Raises:
            Exception: whatever went wrong with it.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def load(
        self,
        name: str,
        model: nn.Module,
        optimizer: Optimizer,
        average: WeightAverage | None = None,
    ) -> Record:
        """Restores the state in place, on all workers together, and returns the record.

        Raises:
            ValueError: if the checkpoint is not of this model, optimizer and average.
        """
        with self._local(name) as folder:
            state = tensors_of(model, optimizer, average)
            moments = empty_moments(folder, model, optimizer)
            state |= {
                f"optim.{owner}.{key}": x for owner, of in moments.items() for key, x in of.items()
            }
            read_into(folder, state, no_dist=not distributed())
        for owner, parameter in model.named_parameters():
            if owner in moments:
                optimizer.state[parameter] = moments[owner]
        return self.record(name)

    def load_weights(self, model: nn.Module, name: str | None = None) -> Record:
        """Restores the weights alone, or their average where there is one, in one process.

        Args:
            model: as `build_model` makes it.
            name: of the checkpoint; the last one by default.

        Returns:
            The record.

        Raises:
            ValueError: if there is no checkpoint, or it is not of this model.
        """
        name = name or self._last()
        if name is None:
            raise ValueError(f"{self._root} holds no whole checkpoint: train the trial first.")
        with self._local(name) as folder:
            state = {f"model.{key}": x for key, x in model.state_dict().items()}
            averaged = names_in(folder)
            for key, x in model.named_parameters():
                if f"average.{key}" in averaged:
                    state[f"average.{key}"] = state.pop(f"model.{key}").new_empty(x.shape)
            read_into(folder, state, no_dist=True)
        model.load_state_dict({key.partition(".")[2]: x for key, x in state.items()})
        return self.record(name)

    def record(self, name: str) -> Record:
        """The record of training up to a checkpoint."""
        return Record.from_json(self._system.cat_file(f"{self._root}/{name}/{RECORD}").decode())

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Lets what is being written become valid, then ends the thread that writes."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if kind is None:
            self.wait()

    def _write(
        self, name: str, tensors: dict[str, Any], record: str, step: int, milestone: bool
    ) -> None:
        """Writes this worker's part; the first worker adds record and manifest when all are in."""
        place = f"{self._root}/{name}"
        with self._folder_to_fill(place) as folder, quiet():
            dcp.save(
                tensors,
                storage_writer=HuggingFaceStorageWriter(folder, save_distributed=True),
                process_group=self._group,
                no_dist=self._group is None,
            )
        if self._group is not None:
            dist.barrier(self._group)
        if self._group is None or dist.get_rank() == 0:
            self._system.pipe_file(f"{place}/{RECORD}", record.encode())
            manifest = {
                "format": FORMAT,
                "step": step,
                "milestone": milestone,
                "workers": 1 if self._group is None else dist.get_world_size(),
                "files": self._files(name),
            }
            self._commit(name, manifest)
            self._prune(name)
        if self._group is not None:
            dist.barrier(self._group)  # so that all workers agree on what is the latest

    @contextlib.contextmanager
    def _folder_to_fill(self, place: str) -> Iterator[str]:
        """A local folder whose files are in `place` afterwards: it itself, or one to upload."""
        if isinstance(self._system, LocalFileSystem):
            Path(place).mkdir(parents=True, exist_ok=True)
            yield place
            return
        with tempfile.TemporaryDirectory() as folder:
            yield folder
            self._system.makedirs(place, exist_ok=True)
            for file in sorted(Path(folder).iterdir()):
                self._system.put_file(str(file), f"{place}/{file.name}")

    @contextlib.contextmanager
    def _local(self, name: str) -> Iterator[str]:
        """The checkpoint as a local folder."""
        place = f"{self._root}/{name}"
        if isinstance(self._system, LocalFileSystem):
            yield place
            return
        with tempfile.TemporaryDirectory() as folder:
            for file in self._files(name):
                self._system.get_file(f"{place}/{file}", f"{folder}/{file}")
            yield folder

    def _commit(self, name: str, manifest: dict[str, Any]) -> None:
        """Writes the manifest whole or not at all: by a rename on a disk, a store's own way."""
        path, content = f"{self._root}/{name}/{MANIFEST}", json.dumps(manifest, indent=1).encode()
        if isinstance(self._system, LocalFileSystem):
            part = Path(f"{path}.part")
            part.write_bytes(content)
            part.replace(path)
        else:
            self._system.pipe_file(path, content)

    def _files(self, name: str) -> dict[str, int]:
        """Size of each of a checkpoint's files."""
        self._system.invalidate_cache()
        found = self._system.ls(f"{self._root}/{name}", detail=True)
        return {
            Path(entry["name"]).name: int(entry["size"])
            for entry in found
            if entry["type"] == "file" and Path(entry["name"]).name != MANIFEST
        }

    def _folders(self) -> list[str]:
        """Names of all folders, the last step first."""
        self._system.invalidate_cache()
        if not self._system.isdir(self._root):
            return []
        found = self._system.ls(self._root, detail=False)
        return sorted((n for f in found if (n := Path(f).name).startswith("step_")), reverse=True)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest, if it is there and all its files are."""
        try:
            manifest: dict[str, Any] = json.loads(
                self._system.cat_file(f"{self._root}/{name}/{MANIFEST}")
            )
            files = self._files(name)
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{self._root}/{name} has the format {manifest.get('format')}, this version of "
                f"phenoscale reads {FORMAT}. Remove it to train from the start."
            )
        return manifest if manifest["files"].items() <= files.items() else None

    def _whole(self) -> Iterator[tuple[str, bool]]:
        """Names of whole checkpoints, the last one first, and whether each is a milestone."""
        for name in self._folders():
            manifest = self._manifest(name)
            if manifest is not None:
                yield name, manifest["milestone"]

    def _last(self, milestone: bool = False) -> str | None:
        return next((name for name, one in self._whole() if one or not milestone), None)

    def _prune(self, newest: str) -> None:
        """Removes what is older than `newest` and not kept, and what killed attempts left."""
        whole = list(self._whole())
        milestones = [name for name, milestone in whole if milestone]
        kept = {*(name for name, _ in whole[:KEEP]), *milestones[:1]}
        for name in self._folders():
            # Of the same step is what another attempt may be writing right now.
            if name not in kept and name.partition("-")[0] < newest.partition("-")[0]:
                place = f"{self._root}/{name}"
                with contextlib.suppress(FileNotFoundError):
                    self._system.rm_file(f"{place}/{MANIFEST}")  # from here it is no checkpoint
                with contextlib.suppress(FileNotFoundError):
                    self._system.rm(place, recursive=True)
