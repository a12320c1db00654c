"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.s3 import LocalS3

# A busy machine is no defect of the code: examples may take as long as they like.
settings.register_profile("phenoscale", deadline=None)
settings.load_profile("phenoscale")

# Before torch is imported, here and in every process that a test starts: one thread each, so that
# sums keep their order and the machine stays usable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Begun in the background, pytest ignores Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    "test_study.py",
    "test_queue_on_ray.py",
    "test_pack.py",
    "test_submit.py",
    "test_security.py",
    "test_mlflow_pages.py",
    "test_study_storage.py",
    "test_stream.py",
    "test_ddp.py",
)
"""Files that take more than half a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that of two processes none is left waiting for the other's last file."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets: $PHENOSCALE_DATA, or shared/data beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PHENOSCALE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PHENOSCALE_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny_screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the screen `tests.tiny.SCREEN`.

    It holds images, index.parquet, relationships.csv and latents.parquet. Made once a run.
    Read it only: a test that changes files copies what it needs.
    """
    from phenoscale.screens.build import build_index
    from phenoscale.screens.layouts.manifest import read_manifest
    from phenoscale.screens.simulated.synthetic import simulate_screen
    from tests.tiny import SCREEN

    folder = tmp_path_factory.mktemp("screens") / "tiny"
    build_index(read_manifest(simulate_screen(SCREEN, folder)), folder, folder / "index.parquet")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    """An object store on the loopback: `s3.put(folder)` gives the URL of a copy of the folder."""
    from tests.s3 import running_s3

    with running_s3() as store:
        yield store
