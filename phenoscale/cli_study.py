"""How verbs name a study that is there: by its directory or its URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyPlace = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Directory or URL of a study, such as runs/quickstart-seed0."
    ),
]


def study_dir(study: str | Path) -> Path:
    """The directory to read: the given one, or a copy of what is at a URL.

    Raises:
        ValueError: if there is no study at the URL.
        OSError: if its store does not answer.
    """
    if "://" not in str(study):
        return Path(study)
    from phenoscale.study_storage import local_copy

    return local_copy(study)
