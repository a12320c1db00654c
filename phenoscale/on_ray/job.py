"""What a study is as a job: its command, its working directory, where its results may lie.

No Ray here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from phenoscale.mirror_store import without_password

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's own name: the driver of a submitted job has it, and it describes the job as JSON."""
_WRITES = re.compile(r"\bStorage\b|from experiments")  # grid.Storage, or a command that has it
_PASSWORD = re.compile(
    r"://[^/\s@:]*:[^/\s@]+@|[?&]([^=&\s]*(password|secret|token)[^=&\s]*|sig)=", re.IGNORECASE
)


def module_of(experiment: str, working_dir: Path) -> str:
    """Name of an experiment as `python -m` takes it, given as a module or as a file.

    Raises:
        ValueError: if it is not below `working_dir`, the only folder that goes to the cluster.
    """
    if not working_dir.is_dir():
        raise ValueError(f"--working-dir {working_dir} is no folder. Give one that holds the code.")
    root = working_dir.resolve()
    if experiment.endswith(".py"):
        path = Path(experiment)
        path = (path if path.exists() else root / path).resolve()
        if not path.is_relative_to(root):
            raise ValueError(
                f"{experiment} lies outside of the working directory {root}, and only that goes to "
                "the cluster. Copy the file there, or give --working-dir."
            )
        name = ".".join(path.relative_to(root).with_suffix("").parts)
    else:
        name = experiment
        path = root / Path(*name.split(".")).with_suffix(".py")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"{experiment} cannot be a module of Python. Give experiments.quickstart, or a file "
            "whose path below the working directory holds letters, digits and _ alone."
        )
    if not path.is_file():
        beside = sorted(one.stem for one in path.parent.glob("[!_]*.py"))
        there = f"; there are {', '.join(beside)}" if beside else ""
        raise ValueError(
            f"there is no experiment {name} in {root}{there}. Give a module such as "
            "experiments.quickstart, or a file such as next_runs.py."
        )
    return name


def command_of(module: str, options: Sequence[str]) -> str:
    """The job's shell command; Python is the one of the cluster."""
    return shlex.join(["python", "-m", module, *options])


def check_options(source: str, options: Sequence[str]) -> None:
    """Refuses options that would lose the results or show a password.

    Args:
        source: text of the experiment; what it takes is seen there, since to ask it would run it.
        options: of its command.

    Raises:
        ValueError: if one of them is such.
    """
    for word in options:
        if _PASSWORD.search(word):
            raise ValueError(
                f"{_without_secret(word)} holds a password or a key, and a job's command can be "
                "read by all who hold the cluster's token. Give it to the nodes' environment "
                "instead; for MLflow: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_URI."
            )
    uri = _value("--tracking-uri", options)
    if uri is not None and not _lasts(uri.removeprefix("sqlite:///")):
        raise ValueError(
            f"--tracking-uri {uri} is relative and would end with the job. Give a server "
            "(http://HOST:5000) or an absolute path (sqlite:////shared/mlflow.db)."
        )
    storage = _value("--storage", options)
    if storage is not None and not _lasts(storage):
        raise ValueError(
            f"--storage {storage} is relative, and the job runs in a copy of the working directory "
            "that Ray deletes. Give an absolute path that every node sees, or a URL."
        )
    if "--dry-run" in options or "--help" in options or storage is not None:
        return
    if _WRITES.search(source):
        raise ValueError(
            "this experiment writes to --storage, by default into the working directory, of which "
            "the job has a copy that Ray deletes. Give --storage as an absolute path that every "
            "node sees, or as a URL."
        )
    if "study_dir" in source and not (options and _lasts(options[0])):
        raise ValueError(
            "this experiment goes on with a study, whose directory must be its first option, as an "
            "absolute path that every node sees, or as a URL."
        )


def check_lasting(storage: str) -> None:
    """Refuses, inside a job, results in a folder that ends with it.

    Raises:
        ValueError: if `storage` is a path in the copy of the working directory that Ray made for
            this job and deletes after it.
    """
    described = json.loads(os.environ.get(IN_JOB) or "{}")
    copied = (described.get("runtime_env") or {}).get("working_dir")
    if copied and "://" not in storage and Path(storage).resolve().is_relative_to(Path.cwd()):
        raise ValueError(
            f"results would go to {storage}, in this job's copy of the working directory, which "
            "Ray deletes after the job. Give --storage as an absolute path that every node sees, "
            "or as a URL."
        )


def _value(option: str, options: Sequence[str]) -> str | None:
    """The last value given to an option, as `--option VALUE` or `--option=VALUE`."""
    found = None
    for place, word in enumerate(options):
        if word == option and place + 1 < len(options):
            found = options[place + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _lasts(place: str) -> bool:
    return "://" in place or place.startswith("/")


def _without_secret(word: str) -> str:
    return without_password(word.partition("?")[0])
