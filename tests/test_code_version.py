"""The version that a results row carries."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from phenoscale import code_version as module
from phenoscale.code_version import code_version

VERSION = importlib.metadata.version("phenoscale")


def version_in(root: Path) -> str:
    """The version as a copy of the module in `root/phenoscale` gives it."""
    (root / "phenoscale").mkdir(exist_ok=True)
    copy = root / "phenoscale" / "code_version.py"
    shutil.copy(module.__file__, copy)
    spec = importlib.util.spec_from_file_location("copied_code_version", copy)
    assert spec is not None and spec.loader is not None
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    return copied.code_version()


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", root, *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    git(tmp_path, "init", "-q")
    return tmp_path


def test_this_version_is_the_packages():
    assert re.fullmatch(rf"{re.escape(VERSION)}(\+[\w.-]+)?", code_version())


def test_an_installed_package_has_its_version_alone(tmp_path: Path):
    assert version_in(tmp_path) == VERSION


def test_a_checkout_without_a_commit_has_its_version_alone(checkout: Path):
    assert version_in(checkout) == VERSION


def test_a_checkout_adds_the_commit_and_whether_files_differ(checkout: Path):
    (checkout / "file").write_text("one")
    git(checkout, "add", "file")
    git(checkout, "commit", "-q", "-m", "first")
    commit = git(checkout, "rev-parse", "--short=10", "HEAD")
    assert version_in(checkout) == f"{VERSION}+{commit}"
    (checkout / "file").write_text("two")
    assert version_in(checkout) == f"{VERSION}+{commit}-dirty"
