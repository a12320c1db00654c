"""A study at a URL: what is copied between it and a node's working copy of it.

The URL is the truth. A node works in its own copy; a trial that ended is pushed, its row last, so
that a row that can be read stands for a trial that is whole. Whoever reads a study pulls what is
new: a file whose size and time are those of the store stays, and a row that the store does not have
is no row.

Checkpoints never pass through here: workers write them to the URL themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from phenoscale.config import Trial
from phenoscale.failures import FAILURE_FILE
from phenoscale.mirror_links import RUNS_FILE, MirrorRuns
from phenoscale.results import CURVE_FILE, ROW_FILE, SAMPLES_FILE
from phenoscale.screens.storage import filesystem_of
from phenoscale.screens.store import Store, copy_all, is_same
from phenoscale.study_files import (
    BAD_SITES_FILE,
    CHECKPOINTS,
    EVIDENCE_FILE,
    FIGURES,
    MAP_FILE,
    MODEL_FILE,
    PANEL_FILE,
    REPORT_FILE,
    SITES_FILE,
    STUDY_FILE,
    TRIAL_FILE,
    TRIALS,
    WORKERS_FILE,
    StudyFiles,
    located,
    working_copy,
)

PULLED = (
    TRIAL_FILE, MODEL_FILE, CURVE_FILE, SAMPLES_FILE, WORKERS_FILE, PANEL_FILE, MAP_FILE,
    BAD_SITES_FILE, EVIDENCE_FILE, FAILURE_FILE, ROW_FILE,
)  # fmt: skip
"""What comparisons, report, plan and mirror read of a trial, and SITES_FILE where it has no map."""


def pull_study(files: StudyFiles) -> None:
    """Makes the working copy agree with storage; at a driver's start.

    Nothing is done for a study without a URL.

    Raises:
        ValueError: if the URL holds credentials, or a file's name leads out of the study.
        RootVanishedError: if the store does not answer, after bounded retries.
    """
    if files.storage is not None:
        _pull(Store.of(files.storage), files.study_dir)


def push_study(files: StudyFiles) -> None:
    """Copies the study's own files to storage: JSON, report and figures; errors as `pull_study`."""
    if files.storage is None:
        return
    folder = files.study_dir
    own = [path for path in folder.glob("*.json") if path.name != RUNS_FILE]
    runs = MirrorRuns.read(folder)
    if runs is not None and runs.has_server:  # a store beside this working copy is nobody else's
        own.append(folder / RUNS_FILE)
    own += [folder / REPORT_FILE, *(folder / FIGURES).glob("*")]
    _push(Store.of(files.storage), folder, own)


def push_trial(files: StudyFiles, trial: Trial) -> None:
    """Copies a trial's folder, without checkpoints, to storage, its row last.

    Also after a failure, for its evidence. Errors as `pull_study`.
    """
    if files.storage is None:
        return
    directory = files.trial_dir(trial)
    found = [p for p in directory.rglob("*") if p.relative_to(directory).parts[0] != CHECKPOINTS]
    _push(Store.of(files.storage), files.study_dir, found)


def pull_trial(files: StudyFiles, trial: Trial) -> None:
    """Copies what a driver reads of a trial that ended from storage; errors as `pull_study`."""
    if files.storage is None:
        return
    store = Store.of(files.storage)
    _fetch(store, files.study_dir, _wanted(store.files(f"{TRIALS}/{trial.id}")))


def local_copy(study: str | Path) -> Path:
    """The directory of a study to read: a path as it is, a copy of what is at a URL.

    The copy is for reading alone: a study that runs on this machine works in another.

    Raises:
        ValueError: if there is no study at the URL; else as `pull_study`.
        RootVanishedError: as `pull_study`.
    """
    place = located(study)
    if isinstance(place, Path):
        return Path(study) if "://" not in str(study) else place
    store, folder = Store.of(place), working_copy(place, "read")
    _pull(store, folder)
    if not (folder / STUDY_FILE).is_file():
        raise ValueError(
            f"There is no study at {store.name}: it has no {STUDY_FILE}. Give the URL of a study's "
            "folder, such as s3://bucket/runs/quickstart-seed0."
        )
    return folder


def train_storage(files: StudyFiles) -> tuple[str, pafs.FileSystem | None]:
    """Where Ray Train and Ray Tune keep their own files: path and, with a URL, its file system."""
    if files.storage is None:
        return str(files.study_dir / "tune"), None
    system, base = filesystem_of(files.storage, patient=True)
    return f"{base}/tune", system


def _pull(store: Store, folder: Path) -> None:
    own = {path: info for path, info in store.files().items() if path.endswith(".json")}
    found = own | _wanted(store.files(TRIALS, recursive=True))
    # What storage does not have is left of a study that was removed, or never got there.
    for path in [*folder.glob("*.json"), *folder.glob(f"{TRIALS}/*/{ROW_FILE}")]:
        if path.name != RUNS_FILE and path.relative_to(folder).as_posix() not in found:
            path.unlink()
    _fetch(store, folder, found)


def _wanted(found: dict[str, pafs.FileInfo]) -> dict[str, pafs.FileInfo]:
    """Of the files of trials, those that are pulled."""
    wanted = {}
    for path, info in found.items():
        folder, _, name = path.rpartition("/")
        compared = name == SITES_FILE and f"{folder}/{MAP_FILE}" not in found
        if folder.count("/") == 1 and (name in PULLED or compared):
            wanted[path] = info
    return wanted


def _fetch(store: Store, folder: Path, found: dict[str, pafs.FileInfo]) -> None:
    """Copies what is new, the rows after all else."""
    for path in found:
        _check(store, folder, path)
    new = [path for path, info in found.items() if not is_same(folder / path, info)]
    _rows_last(lambda path: store.get(path, folder / path, found[path]), new)


def _push(store: Store, folder: Path, paths: Iterable[Path]) -> None:
    """Copies what storage does not have, the rows after all else."""
    names = {
        path.relative_to(folder).as_posix(): path
        for path in paths
        if path.is_file() and not path.is_symlink() and path.suffix != ".part"
    }
    there: dict[str, pafs.FileInfo] = {}
    for parent in {PurePosixPath(name).parent for name in names}:
        there |= store.files("" if parent == PurePosixPath() else str(parent))
    new = [n for n, path in names.items() if n not in there or not is_same(path, there[n])]
    _rows_last(lambda name: store.put(names[name], name), new)


def _rows_last(one: Callable[[str], None], names: Sequence[str]) -> None:
    rows = [name for name in names if name.endswith(f"/{ROW_FILE}")]
    copy_all(one, sorted(set(names) - set(rows)))
    copy_all(one, rows)


def _check(store: Store, folder: Path, path: str) -> None:
    """Refuses a name out of a listing that leads out of the study's folder."""
    inside = (folder / path).resolve().is_relative_to(folder.resolve())
    if not inside or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(
            f"The study {store.name} holds a file {path!r}, whose name leads out of the study; "
            "nothing was read. Remove that file from the store."
        )
