"""Where a study reads and writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from phenoscale.config import Trial

TRIAL_FILE = "trial.json"
MODEL_FILE = "model.json"  # what a trial's model follows from beside the trial: channels, classes
SITES_FILE = "sites.parquet"
MAP_FILE = "map.parquet"
STUDY_FILE = "study.json"
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
    relationships: Path | None = None
    """entity1,entity2 table of known relationships; needed by recall."""
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


def in_folder(location: str, name: str) -> str:
    """A folder within a local folder or a URL, whose options stay at its end."""
    folder, mark, options = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"
