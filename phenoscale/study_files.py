"""Where a study reads and writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from phenoscale.config import Trial

TRIAL_FILE = "trial.json"
MODEL_FILE = "model.json"  # what a trial's model follows from beside the trial: channels, classes
SITES_FILE = "sites.parquet"
MAP_FILE = "map.parquet"
PANEL_FILE = "panel.png"
WORKERS_FILE = "workers.json"
BAD_SITES_FILE = "bad_sites.csv"


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

    def trial_dir(self, trial: Trial) -> Path:
        """Directory of one trial."""
        return self.study_dir / "trials" / trial.id
