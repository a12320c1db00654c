"""Encoders on a screen that they were not trained on: its recall, with what channels it has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from phenoscale.config import Crops
from phenoscale.embed_screen import embed_screen
from phenoscale.export import load_encoder
from phenoscale.maps.recall import paired_difference
from phenoscale.maps.relationships import all_pairs, load_databases
from phenoscale.maps.score import score_recall
from phenoscale.parallel import prepare_process
from phenoscale.results import write_json
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.site_reader import SiteReader
from phenoscale.study_files import MAP_FILE, StudyFiles

TRANSFER_FILE = "transfer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """One encoder, or the intensity statistics, on a screen."""

    name: str
    """What it is called in tables; the name of its folder."""
    encoder: Path | None
    """Folder of an exported encoder; None for intensity statistics."""
    channels: tuple[str, ...] | None = None
    """Names of the screen's channels that it sees; None for all."""
    readout: str | None = None
    """The read-out that is scored with an interval; by default the encoder's own."""


def score_transfer(case: Transfer, files: StudyFiles, rounds: int) -> dict[str, Any]:
    """Embeds the screen and scores its perturbation map; leaves transfer.json and map.parquet.

    What is there already is not computed again.

    Args:
        case: encoder and channels.
        files: index and relationships of the screen; `study_dir` is where the folders go.
        rounds: of the bootstrap.

    Returns:
        name, channels, readout, recall with its interval, recall of every read-out, num_genes,
        num_relationships.
    """
    directory = files.study_dir / case.name
    done = directory / TRANSFER_FILE
    if done.exists():
        return _row(directory)
    prepare_process(threads=1)
    loaded = load_encoder(case.encoder) if case.encoder else None
    size_px = loaded.facts.size_px if loaded else 1
    reader = SiteReader(index_path=str(files.index), crops=Crops(size_px=size_px))
    encoder = loaded.encoder if loaded else None
    embeddings, _ = embed_screen(reader, encoder, size_px, _silent, channels=case.channels)
    readout = case.readout or (loaded.facts.readout if loaded else "statistics")
    metadata = ScreenIndex.open(files.index).metadata()
    databases = load_databases(files.relationships)
    score, table = score_recall(embeddings, metadata, databases, readout=readout, rounds=rounds)
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, directory / MAP_FILE)
    row = {
        "name": case.name,
        "channels": list(case.channels or reader.channels),
        "readout": readout,
        "recall": score.headline.value,
        "low": score.headline.low,
        "high": score.headline.high,
        "by_readout": score.by_readout,
        "num_genes": score.num_genes,
        "num_relationships": score.num_relationships,
    }
    write_json(done, row)
    return row


def transfer_difference(
    one: str, others: Sequence[str], files: StudyFiles, rounds: int
) -> dict[str, float]:
    """Recall of one transfer less the mean of others', on the same bootstrap samples of genes.

    Args:
        one: name of a scored `Transfer`.
        others: names.
        files: as for `score_transfer`.
        rounds: of the bootstrap.

    Returns:
        value, low, high.
    """
    maps, genes = [], []
    for name in (one, *others):
        folder = files.study_dir / name
        readout = _row(folder)["readout"]
        table = pq.read_table(folder / MAP_FILE, columns=["gene", readout])
        maps.append(np.array(table[readout].to_pylist(), dtype=np.float64))
        genes.append(table["gene"].to_pylist())
    assert all(names == genes[0] for names in genes), "one screen has one list of genes"
    pairs = all_pairs(load_databases(files.relationships))
    return dataclasses.asdict(paired_difference(maps[:1], maps[1:], genes[0], pairs, rounds=rounds))


def _silent(done: int, sites: int) -> None:
    """Of several screens that are embedded at once, whole ones are counted."""


def _row(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / TRANSFER_FILE).read_text()))
