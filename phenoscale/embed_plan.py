"""What an embedding of a screen is to hold: options, checked against the encoder and the index."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from phenoscale.embed_folder import LEVELS, EmbeddingFacts, claim_folder
from phenoscale.embed_screen import channel_numbers
from phenoscale.embed_shard import ADDED_FIELDS, ShardEmbedder
from phenoscale.export import read_facts
from phenoscale.maps.aggregate import WELL_COLUMNS, WELL_KEY
from phenoscale.reference import TIMM, ReferenceModel, load_model
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import IMAGE_COLUMNS

SHARD_SITES = 4096
_RANDOM = "random"
_OF_SITES = ("site_id", "site")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How a screen is embedded."""

    channels: tuple[str, ...] | None = None
    """Those to use, by name; None for the encoder's own, or all of the screen's where the encoder
    takes any."""
    readouts: tuple[str, ...] | None = None
    """The columns of vectors; None for all that the encoder has."""
    every_block: bool = False
    """Whether to read each block of a transformer too, where `readouts` is None."""
    level: str = "site"
    """site: mean over tiles; well: mean over its readable sites; crop: a row per tile."""
    weights: str | None = None
    """Of a timm model: a file, "random", or None for those at the hub."""
    feed: str | None = None
    """Of a timm model: one_by_one or three_by_three."""
    size_px: int | None = None
    """Side of the tiles, for an encoder that was not trained on crops of one size."""
    precision: str = "fp32"
    """fp32, or bf16 for products in bf16."""
    tolerated_bad_sites: float = 0.0
    """Share of unreadable sites, [0, 1), that may be left out."""
    shard_sites: int = SHARD_SITES
    """Sites of a shard, at most, unless one plate has more: minutes of work, megabytes of rows."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level!r}; one of {', '.join(LEVELS)} is required.")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; fp32 or bf16 is required.")
        if not 0 <= self.tolerated_bad_sites < 1:
            raise ValueError(
                f"tolerated_bad_sites is {self.tolerated_bad_sites}; a share in [0, 1) is required."
            )
        if self.size_px is not None and self.size_px < 1:
            raise ValueError(f"The side of a tile is {self.size_px} px; give a positive number.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """An embedding that can begin."""

    embedder: ShardEmbedder
    """Of the shards."""
    model: ReferenceModel
    """Loaded in this process."""
    left_out: tuple[str, ...]
    """Columns of the index that rows of wells cannot have: they differ between sites of a well."""


def plan_embedding(
    spec: str,
    screen: ScreenIndex,
    out: str | os.PathLike[str],
    options: EmbedOptions,
    device: str = "cpu",
) -> Planned:
    """Loads the encoder, checks that all fits, and claims the folder.

    Args:
        spec: the encoder: a folder that `phenoscale export` wrote, or timm:NAME.
        screen: to embed.
        out: the folder, a path or a URL.
        options: of the run.
        device: where the encoder runs in this process.

    Raises:
        ValueError: if the encoder cannot be loaded, channels or read-outs are missing, a column of
            the index has the name of one of ours, or `out` holds other things.
    """
    spec = spec if spec.startswith(TIMM) else os.path.abspath(spec)
    weights = options.weights
    if weights is not None and weights != _RANDOM:
        weights = os.path.abspath(weights)
    names = _channels(spec, options.channels, screen)
    model = load_model(spec, channels=names, weights=weights, feed=options.feed, device=device)
    size_px = _tile_px(spec, options.size_px, model.facts.size_px)
    readouts = _readouts(model, names, size_px, options)
    metadata, left_out = _metadata(screen, options.level, readouts)
    facts = EmbeddingFacts(
        encoder=model.facts.name,
        weights_sha256=model.facts.digest,
        feed=model.facts.feed,
        index_fingerprint=screen.fingerprint,
        channels=list(names),
        size_px=size_px,
        level=options.level,
        readouts=readouts,
        precision=options.precision,
        shard_sites=options.shard_sites,
    )
    embedder = ShardEmbedder(
        spec=spec,
        weights=weights,
        index=screen.location,
        out=claim_folder(out, facts),
        facts=facts,
        plan=_plan(screen, options.shard_sites),
        metadata=metadata,
        tolerated_bad_sites=options.tolerated_bad_sites,
    )
    return Planned(embedder=embedder, model=model, left_out=left_out)


def _plan(screen: ScreenIndex, shard_sites: int) -> tuple[tuple[range, ...], ...]:
    """Rows of the plates of each shard: neighbours, as many as fit."""
    shards: list[list[range]] = []
    sites = shard_sites
    for first, rows in zip(screen.plates["first_row"], screen.plates["rows"], strict=True):
        if sites + rows > shard_sites:
            shards.append([])
            sites = 0
        shards[-1].append(range(int(first), int(first + rows)))
        sites += rows
    return tuple(tuple(plates) for plates in shards)


def _channels(spec: str, given: Sequence[str] | None, screen: ScreenIndex) -> tuple[str, ...]:
    """Channels to use, which the screen has."""
    own: Sequence[str] = screen.channels
    if not spec.startswith(TIMM):
        facts = read_facts(Path(spec))
        own = own if facts.kind == "channel_agnostic_transformer" else facts.channels
    names = tuple(given or own)
    channel_numbers(names, screen.channels)
    return names


def _tile_px(spec: str, given: int | None, own: int | None) -> int:
    """Side of the tiles: what the encoder was trained on, or what is given."""
    if own is None and given is None:
        raise ValueError(
            f"{spec} takes tiles of any size. Say which by --crop-px: the side of a tile in pixels."
        )
    if given is not None and own is not None and not spec.startswith(TIMM) and given != own:
        raise ValueError(f"{spec} was trained on crops of {own} px, not {given}. Leave it out.")
    return given or own or 0


def _readouts(
    model: ReferenceModel,
    channels: Sequence[str],
    size_px: int,
    options: EmbedOptions,
) -> dict[str, int]:
    """The read-outs to write and the width of each, found by reading a blank tile."""
    wanted = options.readouts
    every = options.every_block or any(name.startswith("block_") for name in wanted or ())
    device = next(model.encoder.parameters()).device
    blank = torch.zeros(1, len(channels), size_px, size_px, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        read = model.encoder.read(blank, channels, every_block=every)
    there = {name: int(x.shape[1]) for name, x in read.items()}
    if missing := [name for name in wanted or () if name not in there]:
        raise ValueError(
            f"{model.facts.name} has no read-out {', '.join(missing)}; it has {', '.join(there)}."
        )
    # In the encoder's order, whatever the order of the options.
    return {name: d for name, d in there.items() if wanted is None or name in wanted}


def _metadata(
    screen: ScreenIndex, level: str, readouts: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns of the index that the rows have, and those that rows of wells cannot have."""
    names = [name for name in screen.take([]).column_names if name not in IMAGE_COLUMNS]
    ours = {*readouts, *(field.name for field in ADDED_FIELDS[level])}
    if clash := [name for name in names if name in ours]:
        raise ValueError(
            f"{screen.location} has the column {', '.join(clash)}, which is the name of a read-out "
            "or of another column of `phenoscale embed`. Rename it in the manifest and build the "
            "index again."
        )
    if level != "well":
        return tuple(names), ()
    shared = (*WELL_KEY, *WELL_COLUMNS)  # those of one well must agree, which `maps/` checks
    differing = _differing(screen, [name for name in names if name not in (*shared, *_OF_SITES)])
    gone = (*_OF_SITES, *differing)
    return tuple(name for name in names if name not in gone), tuple(differing)


def _differing(screen: ScreenIndex, names: Sequence[str]) -> list[str]:
    """Columns whose values differ between sites of a well somewhere in the index."""
    found: set[str] = set()
    last: pa.Table | None = None
    for _, rows in screen.scan([*WELL_KEY, *names]):
        table = rows if last is None else pa.concat_tables([last, rows])
        last = table.slice(len(table) - 1)
        # Sites of a well are neighbours.
        codes = {n: pd.factorize(table[n].to_pandas().astype(str))[0] for n in table.column_names}
        same = np.all([np.diff(codes[name]) == 0 for name in WELL_KEY], axis=0)
        found |= {name for name in names if (np.diff(codes[name])[same] != 0).any()}
    return [name for name in names if name in found]
