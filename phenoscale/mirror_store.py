"""Where a study's MLflow store is, whether it answers, and its dashboard; no MLflow here."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

STORE_FILE = "mlflow.db"
ARTIFACTS_DIR = "mlartifacts"
CONNECT_S = 5
"""Seconds until a server that does not accept a connection is taken for gone."""
LOCK_S = 20
"""Seconds that a SQLite store may be locked by others, as long as MLflow itself waits."""


class MirrorError(RuntimeError):
    """The mirror could not be written; the study's files are untouched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirrorProblem:
    """One failure of the mirror, collected instead of raised."""

    what: str
    """What was being written."""
    error: str
    """Type and first line of the last attempt's error."""
    advice: str
    """The command that redoes the mirror."""

    def __str__(self) -> str:
        return (
            f"MLflow: {self.what} failed ({self.error}). "
            f"The study's results are on disk and complete. Mirror them with: {self.advice}"
        )


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


def without_password(text: str) -> str:
    """A URI, or a text with some, as it may be shown: users, passwords and tokens become `***`."""
    text = re.sub(r"//[^/\s]*@", "//***@", text)
    return re.sub(r"(?i)([?&;](?:user|\w*password|\w*token|\w*secret)=)[^&;\s]+", r"\1***", text)


def probe(uri: str) -> None:
    """Asks whether the store is there, since MLflow itself would try for minutes.

    A server that accepts a connection may take its time for answers: it has other writers.
    """
    if uri.startswith("sqlite:///"):
        path = _sqlite_file(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(
            sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
        ) as store:
            store.execute("BEGIN IMMEDIATE")
            store.execute("ROLLBACK")
    elif uri.startswith(("http://", "https://")):
        server = urlsplit(uri)
        host = server.hostname or ""
        if server.scheme in getproxies() and not proxy_bypass(host):
            return  # only the proxy reaches it
        port = server.port or (443 if server.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=CONNECT_S).close()


@contextlib.contextmanager
def opening(uri: str) -> Iterator[None]:
    """Lets one process at a time open a SQLite store: two that create its tables together fail.

    They wait for one another at the store's folder, on one machine; a server does so itself.
    """
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = os.open(_sqlite_file(uri).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def ui_command(study_dir_or_uri: Path | str, port: int = 5000) -> list[str]:
    """Command line of MLflow's dashboard over a study's store, on loopback, with one worker.

    Args:
        study_dir_or_uri: directory of a study (a `Path`), or a database's tracking URI (a `str`).
        port: TCP port on 127.0.0.1.

    Raises:
        ValueError: if the study has no store yet, or the URI is that of a running server.
    """
    uri = study_dir_or_uri
    if isinstance(uri, Path):
        uri = resolve_tracking_uri(uri)
    if uri.startswith(("http://", "https://")):
        raise ValueError(
            f"{without_password(uri)} is a running MLflow server; open it in a browser. A "
            "dashboard is started for stores on disk only, for example sqlite:////absolute/path/mlflow.db."
        )
    uri = resolve_tracking_uri(Path(), uri)
    store = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not store.exists():
        raise ValueError(
            f"there is no MLflow store at {store}; run the study first, or write the store from "
            "its results with: phenoscale sync STUDY_DIR"
        )
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    if artifacts := artifact_location(uri, store.parent):
        command += ["--default-artifact-root", artifacts]
    # MLflow's own list of hosts has the private networks too; through a tunnel the port differs.
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, "--allowed-hosts", "localhost,localhost:*,127.0.0.1,127.0.0.1:*"]
