"""Ray's token: whoever talks to a cluster by its address shows it, and none goes without.

Ray switches tokens on by itself for a Ray that it starts in this process, never for a client that
is given an address; that client would be refused by every cluster that asks for a token.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from phenoscale.on_ray.job import IN_JOB

MODE = "RAY_AUTH_MODE"


def use_token() -> None:
    """Makes this process show its token to clusters, unless `RAY_AUTH_MODE` says otherwise.

    The driver of a submitted job has what its cluster's head was started with, and keeps it.

    Raises:
        ValueError: if tokens are on and there is none.
    """
    if MODE not in os.environ and IN_JOB not in os.environ:
        os.environ[MODE] = "token"
        _read_again()
    if os.environ.get(MODE, "").lower() == "token" and not _has_token():
        raise ValueError(
            "a cluster is addressed, and there is no token for it: neither RAY_AUTH_TOKEN, nor a "
            f"file that RAY_AUTH_TOKEN_PATH names, nor {_default_path()}. Copy the cluster's token "
            "into that file, with mode 600; on the machine of the head itself make one, before the "
            f"head starts, with: ray get-auth-token --generate. For a cluster without tokens set "
            f"{MODE}=disabled."
        )


def _has_token() -> bool:
    """Looks where Ray looks, in its order."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return bool(os.environ["RAY_AUTH_TOKEN"].strip())
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _default_path())
    return path.is_file() and bool(path.read_text().strip())


def _default_path() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _read_again() -> None:
    """Ray reads the mode once, when it is imported.

    There is no public way to make it read the mode again; `ray.init` does the same for a Ray that
    it starts. tests/test_security.py notices when that changes.
    """
    if "ray" in sys.modules:
        importlib.import_module("ray._raylet").Config.initialize("")
