"""One shard of a screen's embeddings: whole plates, read ahead of the encoder and written as rows.

Whatever runs it (this process, or an actor of Ray), the bytes of a shard are the same: which tiles
are encoded together depends on the plate alone.

Shapes: S sites, T tiles of a site, D width.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from phenoscale.ahead import Watch, ahead
from phenoscale.code_version import code_version
from phenoscale.config import Crops
from phenoscale.embed import TILES_AT_ONCE, device_of, embed_tiles, tiles_of
from phenoscale.embed_folder import EmbeddingFacts, read_footer, shard_schema, write_shard
from phenoscale.embed_screen import adapt, channel_numbers
from phenoscale.maps.aggregate import wells_from_sites
from phenoscale.maps.vectors import checked_vectors
from phenoscale.models.build import AnyEncoder
from phenoscale.models.densenet import DenseNetEncoder
from phenoscale.reference import ReferenceModel, load_model
from phenoscale.screens.errors import ImageError
from phenoscale.screens.opened import Batch, opened_screen
from phenoscale.screens.site_reader import SiteReader
from phenoscale.screens.storage import Root

READERS = {"cpu": 1, "cuda": 8}
"""Threads that read ahead of the encoder; for a GPU a number that is not measured."""
ADDED_FIELDS: dict[str, tuple[pa.Field, ...]] = {
    "site": (),
    "well": (pa.field("num_sites", pa.int64(), nullable=False),),
    "crop": (
        pa.field("x_px", pa.int32(), nullable=False),
        pa.field("y_px", pa.int32(), nullable=False),
    ),
}
"""By level, what rows have beside the index's metadata: a well's readable sites; the top left
corner of a crop in its site."""

Told = Callable[[int], None]
"""What is told how many sites were done since it was told last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of a shard."""

    shard: int
    """Its number."""
    rows: int
    """Rows of its file."""
    bad: tuple[int, ...]
    """Rows of the index that could not be read and are left out."""
    written: bool = False
    """Whether it was written now; else it was found whole."""
    seconds: float = 0.0
    """Wall time of writing it."""
    waited_s: float = 0.0
    """Of these, how long the encoder waited for images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardEmbedder:
    """Embeds the shards of a screen; a value that any process can be sent."""

    spec: str
    """The encoder, as `load_model` takes it."""
    weights: str | None
    """Its weights, as `load_model` takes them."""
    index: str
    """Index of the screen, a path or a URL."""
    out: Root
    """The folder of the shards."""
    facts: EmbeddingFacts
    """What they hold."""
    plan: tuple[tuple[range, ...], ...]
    """Rows of the index of each plate of each shard."""
    metadata: tuple[str, ...]
    """Columns of the index that go into the shards."""
    tolerated_bad_sites: float
    """Share of unreadable sites, of the whole screen, that may be left out."""

    def load(self, device: str) -> ReferenceModel:
        """Loads the encoder and makes sure that it is the one of the facts."""
        model = load_model(
            self.spec,
            channels=self.facts.channels,
            weights=self.weights,
            feed=self.facts.feed if self.facts.feed != "together" else None,
            device=device,
        )
        if model.facts.digest != self.facts.weights_sha256:
            raise ValueError(
                f"The weights of {self.spec} have the SHA-256 {model.facts.digest} here, not "
                f"{self.facts.weights_sha256} as where the command was given. Give every node the "
                "same files."
            )
        return model

    def sites(self, shard: int) -> int:
        """Sites of a shard, readable or not."""
        return sum(len(plate) for plate in self.plan[shard])

    def find(self, shard: int) -> ShardResult | None:
        """Looks for a shard of an earlier run.

        Args:
            shard: its number.

        Returns:
            None if it must be written: it is missing, not whole, or lacks a site that can be read.
        """
        footer = read_footer(self.out, shard, self.facts.digest)
        if footer is None or any(map(self._readable, footer["bad"])):
            return None
        return ShardResult(shard=shard, rows=footer["rows"], bad=tuple(footer["bad"]))

    def write(self, shard: int, model: ReferenceModel, told: Told) -> ShardResult:
        """Embeds the sites of a shard and writes it.

        Args:
            shard: its number.
            model: what `load` gives.
            told: called after every few sites.

        Raises:
            ValueError: if a site is unreadable and none is tolerated, sites of a plate differ in
                size, a well's sites disagree on its metadata, or embeddings are not finite.
        """
        began = time.monotonic()
        waited, bad = Watch(), list[int]()
        tables = (
            table
            for plate in self.plan[shard]
            for table in self._plate(plate, model.encoder, waited, bad, told)
        )

        def footer() -> dict[str, Any]:
            digest, version = self.facts.digest, code_version()
            return {"digest": digest, "shard": shard, "bad": bad, "code_version": version}

        rows = write_shard(self.out, shard, self._schema(), tables, footer)
        return ShardResult(
            shard=shard,
            rows=rows,
            bad=tuple(bad),
            written=True,
            seconds=time.monotonic() - began,
            waited_s=waited.seconds,
        )

    def _plate(
        self, plate: range, encoder: AnyEncoder, waited: Watch, bad: list[int], told: Told
    ) -> Iterator[pa.Table]:
        """The rows of a plate; of crops those of a few sites at a time."""
        metadata = opened_screen(self.index).index.take(plate).select(self.metadata)
        metadata = metadata.replace_schema_metadata(None).combine_chunks()
        vectors: dict[str, list[np.ndarray]] = {name: [] for name in self.facts.readouts}
        kept = np.ones(len(plate), bool)
        for batch, tiles in self._encoded(plate, encoder, waited):
            bad += batch["bad"][batch["bad"] >= 0].tolist()
            good = batch["bad"] < 0
            here = batch["rows"] - plate.start
            kept[here] = good
            for name, x in tiles.items():
                if self.facts.level != "crop":
                    x = x.mean(dim=1)  # (S, D)
                vectors[name].append(x.flatten(0, -2).cpu().numpy())
            if self.facts.level == "crop":
                yield self._crops(metadata, here[good], good, vectors, batch["images"].shape[-2:])
            told(len(good))
        if self.facts.level == "crop":
            return
        whole = {name: np.concatenate(x)[kept] for name, x in vectors.items()}
        metadata = metadata.filter(pa.array(kept))
        if self.facts.level == "site":
            yield self._table(metadata, whole)
        elif kept.any():
            yield self._wells(metadata, whole)

    def _encoded(
        self, plate: range, encoder: AnyEncoder, waited: Watch
    ) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
        """The sites of a plate as they are read, and their tiles' embeddings, (S, T, D)."""
        facts, device = self.facts, device_of(encoder).type
        crops = Crops(size_px=facts.size_px, tolerated_bad_sites=self.tolerated_bad_sites)
        reader = SiteReader(index_path=self.index, crops=crops)
        picked = channel_numbers(facts.channels, reader.channels)
        row = opened_screen(self.index).row(plate.start)
        tiles = max(1, len(tiles_of(row.height_px, row.width_px, facts.size_px)))
        sites = max(1, TILES_AT_ONCE[device] // tiles)
        if isinstance(encoder, DenseNetEncoder):
            adapt(encoder, reader, plate, facts.size_px, facts.channels, picked)

        def read(first: int) -> tuple[Batch, torch.Tensor]:
            batch = reader.read(first, min(first + sites, plate.stop))
            images = batch["images"] if picked is None else batch["images"][:, picked]
            tensor = torch.from_numpy(images)
            return batch, tensor.pin_memory() if device == "cuda" else tensor

        coming = ahead(read, range(plate.start, plate.stop, sites), READERS[device])
        for batch, images in waited.timed(coming):
            yield (
                batch,
                embed_tiles(
                    encoder,
                    images,
                    facts.size_px,
                    facts.channels,
                    list(facts.readouts),
                    precision=facts.precision,
                ),
            )

    def _crops(
        self,
        metadata: pa.Table,
        sites: np.ndarray,
        good: np.ndarray,
        vectors: dict[str, list[np.ndarray]],
        shape_px: tuple[int, int],
    ) -> pa.Table:
        """A row for each tile of the readable sites of a batch."""
        corners = tiles_of(*shape_px, self.facts.size_px)
        of_site = metadata.take(pa.array(np.repeat(sites, len(corners))))
        for field, values in zip(ADDED_FIELDS["crop"], corners.T, strict=True):
            of_site = of_site.append_column(field, pa.array(np.tile(values, len(sites))))
        kept = np.repeat(good, len(corners))
        return self._table(of_site, {name: x.pop()[kept] for name, x in vectors.items()})

    def _wells(self, metadata: pa.Table, vectors: dict[str, np.ndarray]) -> pa.Table:
        """The means of each well, with the metadata that all its sites share."""
        joined = np.concatenate(list(vectors.values()), axis=1)
        means, wells = wells_from_sites(joined, metadata.to_pandas())
        # Out of the index, whose types a data frame would not keep.
        names, first = np.unique(metadata["well"].to_pylist(), return_index=True)
        assert names.tolist() == wells["well"].tolist(), "a plate's wells come sorted by name"
        table = metadata.take(pa.array(first))
        table = table.append_column(
            *ADDED_FIELDS["well"], pa.array(wells["num_sites"].to_numpy(np.int64))
        )
        ends = np.cumsum(list(self.facts.readouts.values()))[:-1]
        parts = np.split(means.astype(np.float32), ends, axis=1)
        return self._table(table, dict(zip(vectors, parts, strict=True)))

    def _table(self, metadata: pa.Table, vectors: dict[str, np.ndarray]) -> pa.Table:
        """Rows of a shard, whose vectors are all finite."""
        for name, x in vectors.items():
            if len(x):
                checked_vectors(x, name=name, rows=len(metadata))
            values = pa.array(np.ascontiguousarray(x, np.float32).ravel())
            column = pa.FixedSizeListArray.from_arrays(values, x.shape[1])
            metadata = metadata.append_column(name, column)
        return metadata.select(self._schema().names).cast(self._schema())

    def _schema(self) -> pa.Schema:
        of_index = opened_screen(self.index).index.take([]).schema
        fields = [of_index.field(name) for name in self.metadata if name in of_index.names]
        fields += ADDED_FIELDS[self.facts.level]
        return shard_schema(fields, self.facts)

    def _readable(self, row: int) -> bool:
        screen = opened_screen(self.index)
        try:
            screen.whole(screen.row(row))
        except ImageError:
            return False
        return True
