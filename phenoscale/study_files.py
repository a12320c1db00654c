"""Where a study reads and writes: a folder that every node sees, or a URL.

A study at a URL has a working copy on every node, in a scratch folder that is the node's own:
`study_storage.py` copies between the two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from phenoscale.config import Trial
from phenoscale.results import write_json

TRIAL_FILE = "trial.json"
MODEL_FILE = "model.json"  # what a trial's model follows from beside the trial: channels, classes
SITES_FILE = "sites.parquet"
MAP_FILE = "map.parquet"
STUDY_FILE = "study.json"
FILES_FILE = "files.json"
COMPARISONS_FILE = "comparisons.json"
FAILURES_FILE = "failures.json"
REPORT_FILE = "report.html"
FIGURES = "figures"  # folder of the static figures
PANEL_FILE = "panel.png"
WORKERS_FILE = "workers.json"
BAD_SITES_FILE = "bad_sites.csv"
EVIDENCE_FILE = "non_finite.json"
TRACE_FILE = "trace.json"
TRIALS = "trials"
CHECKPOINTS = "checkpoints"
SCRATCH_VARIABLE = "PHENOSCALE_SCRATCH"
"""Environment variable of a node: its folder for working copies of studies at a URL."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """Paths of a study; never part of a trial's identity.

    Pickled, it arrives on another node with the working copy of that node.
    """

    study_dir: Path
    """Directory of the study: its rows, curves, checkpoints and report. With `storage`, this
    node's working copy of it."""
    index: Path | str
    """Parquet index of the screen, a path or a URL."""
    relationships: tuple[str, ...] = ()
    """entity1,entity2 tables of known relationships, paths or URLs, or names of public databases;
    needed by recall, which is over all of them together and over each."""
    latents: Path | str | None = None
    """True phenotypes per well, a path or a URL; needed by the oracle of a simulated screen."""
    checkpoints: str | None = None
    """Folder or URL of all trials' checkpoints, which every worker of a trial can reach; None for
    each trial's own folder, in `storage` where there is one."""
    storage: str | None = None
    """URL of the study's directory, where its nodes share no disk. `study_storage` copies from and
    to it, and says where Ray keeps its own files: `study_storage.train_storage`."""

    @classmethod
    def at(
        cls,
        storage: str | Path,
        name: str,
        *,
        index: Path | str,
        relationships: tuple[str, ...] = (),
        latents: Path | str | None = None,
    ) -> StudyFiles:
        """The files of the study `name` in a folder, or at a URL, that holds studies."""
        root = located(storage)
        url = in_folder(root, name) if isinstance(root, str) else None
        return cls(
            study_dir=working_copy(url) if url else Path(root) / name,
            index=index,
            relationships=relationships,
            latents=latents,
            storage=url,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another node's scratch folder may lie elsewhere."""
        return _received, ({f.name: getattr(self, f.name) for f in dataclasses.fields(self)},)

    def checkpoints_of(self, trial: Trial) -> str:
        """Folder or URL of one trial's checkpoints."""
        if self.checkpoints is not None:
            return in_folder(self.checkpoints, trial.id)
        if self.storage is not None:
            return in_folder(self.storage, f"{TRIALS}/{trial.id}/{CHECKPOINTS}")
        return str(self.trial_dir(trial) / CHECKPOINTS)

    def trial_dir(self, trial: Trial) -> Path:
        """Directory of one trial."""
        return self.study_dir / TRIALS / trial.id

    def write(self) -> Path:
        """Leaves in the study's directory where it reads, for whoever goes on with it.

        These may be this machine's paths: the file is neither reported nor mirrored.
        """
        given = dataclasses.asdict(self)
        del given["study_dir"]
        paths = {name: str(x) if isinstance(x, Path) else x for name, x in given.items()}
        return write_json(self.study_dir / FILES_FILE, paths)

    @classmethod
    def read(cls, study_dir: Path) -> StudyFiles:
        """What `write` left.

        Raises:
            ValueError: if no study was run in this directory by this version.
        """
        path = study_dir / FILES_FILE
        if not path.is_file():
            raise ValueError(
                f"{study_dir} has no {FILES_FILE}, so where its screen lies is not known. Give the "
                "directory of a study, such as runs/quickstart-seed0; run its command once if it "
                "was moved here."
            )
        given = json.loads(path.read_text())
        storage = given.get("storage")
        return cls(
            study_dir=working_copy(storage) if storage else study_dir.resolve(),
            index=located(given["index"]),
            relationships=tuple(given["relationships"]),
            latents=located(given["latents"]) if given["latents"] else None,
            checkpoints=given["checkpoints"],
            storage=storage,
        )


def _received(given: dict[str, Any]) -> StudyFiles:
    if given["storage"] is not None:
        given = given | {"study_dir": working_copy(given["storage"])}
    return StudyFiles(**given)


def located(given: str | Path) -> Path | str:
    """A place as a person gives it: a URL as it is, anything else as an absolute path."""
    text = str(given)
    if "://" not in text:
        return Path(text).expanduser().resolve()
    parts = urlsplit(text)
    return Path(unquote(parts.path)) if parts.scheme == "file" else text


def in_folder(location: str, name: str) -> str:
    """A folder or file within a local folder or a URL, whose options stay at its end."""
    folder, mark, options = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"


def working_copy(url: str, kind: str = "study") -> Path:
    """This node's folder for what lies at a URL; it need not exist.

    Args:
        url: of a folder, such as a study's.
        kind: a first part of its path: copies of other kinds are kept apart.

    Raises:
        ValueError: if the scratch folder is another user's.
    """
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    digest = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
    return scratch() / kind / f"{name}-{digest}"


def scratch() -> Path:
    """This node's scratch folder: $PHENOSCALE_SCRATCH, or one in the temporary folder.

    Raises:
        ValueError: if it is another user's.
    """
    if given := os.environ.get(SCRATCH_VARIABLE):
        return Path(given).resolve()
    folder = Path(tempfile.gettempdir()).resolve() / f"phenoscale-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ValueError(
            f"The scratch folder {folder} belongs to another user. Remove it, or name another "
            f"folder in the environment variable {SCRATCH_VARIABLE}."
        )
    return folder
