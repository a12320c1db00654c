"""The study's best encoder as a registered model of MLflow: one version per best trial.

What is registered is the folder that `phenoscale export` writes, so whoever downloads it loads it
with `phenoscale.export.load_encoder`; MLflow runs none of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from phenoscale.config import Trial
from phenoscale.mirror_store import without_password
from phenoscale.mirror_values import fraction_text
from phenoscale.results import ResultsRow
from phenoscale.screens.storage import writable_folder
from phenoscale.study_files import FILES_FILE, TRIAL_FILE, StudyFiles
from phenoscale.wording import interval

if TYPE_CHECKING:
    from phenoscale.checkpoint import Checkpoints

ALIAS = "best"
FOLDER = "encoder"
"""Of the trial's artifacts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestEncoder:
    """The trial whose encoder is registered."""

    study_dir: Path
    """The study's directory."""
    model: str
    """Name of the registered model."""
    row: ResultsRow
    """The trial's row."""
    run_id: str
    """Its run."""
    measured: str
    """Digest of the row: a trial that is measured again is another version."""


def model_name(study: str) -> str:
    """The study's name without the signs that MLflow refuses in names of models."""
    return re.sub(r"[/:]", "-", study)


def register(client: Any, best: BestEncoder) -> str:
    """Makes the best trial's encoder the version of its study's model that is called "best".

    What is there already stays: a second call, or one after half of the first, adds what lacks.

    Args:
        client: an `mlflow.MlflowClient`.
        best: what to register.

    Returns:
        A sentence that says what is registered, or why nothing is.
    """
    if best.row.is_baseline:
        return f"No encoder is registered: the best is the baseline {best.row.objective}."
    version = _version(client, best)
    if version is None:
        try:
            version = _new_version(client, best)
        except (ValueError, OSError) as error:  # no checkpoint is left, or none is within reach
            return f"No encoder is registered: {_reason(error)}"
    named = client.get_registered_model(best.model).aliases.get(ALIAS)
    if str(named) != str(version.version):
        client.set_registered_model_alias(best.model, ALIAS, str(version.version))
    page = f"#/models/{quote(best.model, safe='')}/versions/{version.version}"
    return (
        f"The best trial's encoder is version {version.version} of the registered model "
        f'[{best.model}]({page}), by the alias "{ALIAS}".'
    )


def _version(client: Any, best: BestEncoder) -> Any | None:
    """The version that this measurement of the trial was registered as."""
    found = client.search_model_versions(f"name = '{best.model}'")
    same = [v for v in found if v.tags.get("phenoscale.row") == best.measured]
    return min(same, key=lambda version: int(version.version), default=None)


def _new_version(client: Any, best: BestEncoder) -> Any:
    """Exports the trial into its run's artifacts, and registers them."""
    from phenoscale.export_trial import CARD_FILE, export_encoder  # torch, at a study's end alone

    row = best.row
    directory = best.study_dir / "trials" / row.trial_id
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / FOLDER
        export_encoder(directory, out, checkpoints=_checkpoints(best.study_dir, directory))
        card = (out / CARD_FILE).read_text()
        client.log_artifacts(best.run_id, str(out), FOLDER)
    if not client.search_registered_models(f"name = '{best.model}'"):
        client.create_registered_model(
            best.model,
            tags={"phenoscale.study": best.model, "metric": row.metric},
            description=f"Best encoders of the study {best.model}, by {row.metric}.",
        )
    run = client.get_run(best.run_id)
    return client.create_model_version(
        best.model,
        source=f"{run.info.artifact_uri}/{FOLDER}",
        run_id=best.run_id,
        description=card,
        tags={
            "phenoscale.row": best.measured,
            "trial_id": row.trial_id,
            "objective": row.objective,
            "backbone": row.backbone,
            "data_fraction": fraction_text(row.data_fraction),
            "seed": str(row.seed),
            "fingerprint": row.index_fingerprint,
            "metric": row.metric,
            "score": f"{row.score:.4f}",
            "interval": interval(row.score, row.score_low, row.score_high),
        },
    )


def _checkpoints(study_dir: Path, directory: Path) -> Checkpoints | None:
    """The trial's checkpoints, where the study says that they lie elsewhere."""
    from phenoscale.checkpoint import Checkpoints

    if not (study_dir / FILES_FILE).is_file():
        return None
    files = StudyFiles.read(study_dir)
    try:
        trial = Trial.from_dict(json.loads((directory / TRIAL_FILE).read_text()))
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        return None  # the export says what is wrong with the trial
    system, root = writable_folder(files.checkpoints_of(trial))
    return Checkpoints(root, system)


def _reason(error: Exception) -> str:
    """An error as the end of a sentence, in one line, naming nobody's folders."""
    text = " ".join(without_password(str(error)).split())
    return re.sub(r"(?<![\w:/])/[^\s,;:]*/", "", text)[:300]
