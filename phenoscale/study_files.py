"""Where a study reads and writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

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
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """Paths of a study; never part of a trial's identity."""

    study_dir: Path
    """Directory of the study: its rows, curves, checkpoints and report."""
    index: Path
    """Parquet index of the screen."""
    relationships: tuple[str, ...] = ()
    """entity1,entity2 tables of known relationships, or names of public databases; needed by
    recall, which is over all of them together and over each."""
    latents: Path | None = None
    """True phenotypes per well; needed by the oracle of a simulated screen."""
    checkpoints: str | None = None
    """Folder or URL of all trials' checkpoints, which every worker of a trial can reach; None for
    each trial's own folder."""

    def checkpoints_of(self, trial: Trial) -> str:
        """Folder or URL of one trial's checkpoints."""
        if self.checkpoints is None:
            return str(self.trial_dir(trial) / CHECKPOINTS)
        return in_folder(self.checkpoints, trial.id)

    def trial_dir(self, trial: Trial) -> Path:
        """Directory of one trial."""
        return self.study_dir / "trials" / trial.id

    def write(self) -> Path:
        """Leaves in the study's directory where it reads, for whoever goes on with it.

        These are this machine's paths: the file is neither reported nor mirrored.
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
        return cls(
            study_dir=study_dir.resolve(),
            index=Path(given["index"]),
            relationships=tuple(given["relationships"]),
            latents=Path(given["latents"]) if given["latents"] else None,
            checkpoints=given["checkpoints"],
        )


def in_folder(location: str, name: str) -> str:
    """A folder within a local folder or a URL, whose options stay at its end."""
    folder, mark, options = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"
