"""study.json: what a study asks and of which screen, and what is refused before it begins."""

from __future__ import annotations

import dataclasses
from typing import Any

from phenoscale.bill import ScreenSize
from phenoscale.config import Study
from phenoscale.maps.gene_pairs import known_pairs
from phenoscale.maps.relationships import load_databases
from phenoscale.maps.score import ALIGNMENTS, HEADLINE_ALIGNMENT
from phenoscale.results import read_optional_json, write_json
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import STUDY_FILE, StudyFiles


def write_description(
    study: Study,
    files: StudyFiles,
    index: ScreenIndex,
    size: ScreenSize,
    command: str,
    facts: dict[str, Any],
    measured: dict[str, float] | None,
) -> None:
    """Writes study.json; refuses to mix two screens in one directory.

    `measured` of None keeps the figures of the run that did the work.
    """
    path = files.study_dir / STUDY_FILE
    old = read_optional_json(path, {})
    given = old.get("screen", {}).get("fingerprint", index.fingerprint)
    if given != index.fingerprint:
        raise ValueError(
            f"{files.study_dir} holds a study of the screen {given[:12]}, this is the screen "
            f"{index.fingerprint[:12]}. Give another directory, or remove that one."
        )
    kept = {name: old[name] for name in ("wall_s", "peak_memory_gib") if name in old}
    metadata = index.metadata()
    classes = index.num_classes
    recalled = study.metric.startswith("recall")
    write_json(
        path,
        {
            "name": study.name,
            "question": study.question,
            # Whoever goes on with a study need not know what was told of its screen.
            "screen": old.get("screen", {})
            | {
                "sites": index.num_sites,
                "wells": len(metadata.groupby(["experimental_batch", "plate", "well"])),
                "genes": int(metadata["gene"].nunique()),
                "perturbations": classes,
                "experimental_batches": int(metadata["experimental_batch"].nunique()),
                "fingerprint": index.fingerprint,
                "channels": list(index.channels),
                **facts,
            },
            "size": dataclasses.asdict(size),
            "readout": study.readout,
            "every_block": study.every_block,
            "bootstrap_rounds": study.bootstrap_rounds,
            "metric": study.metric,
            "alignment": ALIGNMENTS[HEADLINE_ALIGNMENT if recalled else "none"],
            "chance": 0.10 if recalled else 1 / classes,
            "num_trials": len(study.trials),
            "command": command,
            **(kept if measured is None else measured),
        },
    )


def check_databases(study: Study, files: StudyFiles, index: ScreenIndex) -> None:
    """Refuses relationships that the screen's genes have no part in now, not after training.

    Raises:
        ValueError: naming the database.
    """
    if not study.metric.startswith("recall"):
        return
    metadata = index.metadata()
    genes = metadata.loc[~metadata["negative_control"], "gene"].dropna().unique().tolist()
    for name, pairs in load_databases(files.relationships).items():
        try:
            known_pairs(genes, pairs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def check_resumable(files: StudyFiles) -> None:
    """Refuses to go on with a study that is not there.

    Raises:
        ValueError: if no study was begun in this directory, or at this URL.
    """
    if not (files.study_dir / STUDY_FILE).is_file():
        raise ValueError(
            f"There is no study at {files.storage or files.study_dir} to go on with. Give the "
            "storage that it was begun with, or leave out --resume to begin it."
        )
