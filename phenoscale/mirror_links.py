"""Which MLflow run is which trial's: left beside the rows by the mirror, links for the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from phenoscale.mirror_view import view_fragment
from phenoscale.results import write_json

RUNS_FILE = "mlflow.json"
LOCAL_PAGE = "http://127.0.0.1:5000"
"""What `phenoscale ui` opens over a store that no server stands before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirrorRuns:
    """Where a study is mirrored."""

    tracking_uri: str
    """The store, without a password."""
    experiment_id: str
    """The study's experiment."""
    parent: str
    """Id of the study's run."""
    runs: dict[str, str]
    """Trial id to run id."""

    def write(self, study_dir: Path) -> Path:
        """Leaves `mlflow.json` in the study's directory."""
        return write_json(study_dir / RUNS_FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, study_dir: Path) -> MirrorRuns | None:
        """What `write` left; None for a study that was never mirrored."""
        path = study_dir / RUNS_FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    @property
    def has_server(self) -> bool:
        """Whether a server answers for the store; else `phenoscale ui` must run for the links."""
        return self.tracking_uri.startswith(("http://", "https://"))

    def link(self, run_id: str) -> str:
        """The page of one run."""
        return f"{self._base(LOCAL_PAGE)}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def view(self, local_page: str = LOCAL_PAGE) -> str:
        """The page of the study's saved view."""
        return f"{self._base(local_page)}/{view_fragment(self.experiment_id)}"

    def _base(self, base: str) -> str:
        if self.has_server:
            parts = urlsplit(self.tracking_uri)
            host = parts.netloc.rpartition("@")[2]  # the user's name is nobody else's
            base = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        return base

    @property
    def links(self) -> dict[str, str]:
        """Trial id to the page of its run."""
        return {trial_id: self.link(run_id) for trial_id, run_id in self.runs.items()}


def ui_page(study_dir: Path, port: int) -> str:
    """What to open once `phenoscale ui` serves a study: its view, or all there is to choose from.

    A study has a store of its own, whose first experiment it is.
    """
    page = f"http://127.0.0.1:{port}"
    left = MirrorRuns.read(study_dir)
    return left.view(page) if left and not left.has_server else f"{page}/#/experiments/1/runs"
