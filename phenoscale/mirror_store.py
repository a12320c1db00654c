"""Where a study's MLflow store is, and whether it can be written to; no MLflow here."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from pathlib import Path

STORE_FILE = "mlflow.db"
ARTIFACTS_DIR = "mlartifacts"
PROBE_S = 5
"""Seconds that a server or a locked store may take for its first answer."""


def resolve_tracking_uri(study_dir: Path, tracking_uri: str | None = None) -> str:
    """The given store, else MLFLOW_TRACKING_URI, else SQLite in the study's directory."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(study_dir.resolve())
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def default_uri(study_dir: Path) -> str:
    """A SQLite file in the study's directory."""
    return f"sqlite:///{study_dir / STORE_FILE}"


def artifact_location(uri: str, study_dir: Path) -> str | None:
    """Beside a SQLite store, with the study for another database, else where the server says."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS_DIR).as_uri()
    if re.match(r"(mysql|postgresql|mssql)\b", uri):
        return (study_dir / ARTIFACTS_DIR).as_uri()
    return None


def without_password(uri: str) -> str:
    """The URI as it may be shown: user and password become `***`."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def probe_sqlite(uri: str) -> None:
    """Asks a SQLite store for a write lock, and lets go: MLflow itself would retry for minutes."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=PROBE_S, isolation_level=None)) as store:
        store.execute("BEGIN IMMEDIATE")
        store.execute("ROLLBACK")
