"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no defect of the code: examples may take as long as they like.
settings.register_profile("phenoscale", deadline=None)
settings.load_profile("phenoscale")

# Before torch is imported, here and in every process that a test starts: one thread each, so that
# sums keep their order and the machine stays usable.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
    from phenoscale.screens.index import build_index
    from phenoscale.screens.manifest import read_manifest
    from phenoscale.screens.synthetic import simulate_screen
    from tests.tiny import SCREEN

    folder = tmp_path_factory.mktemp("screens") / "tiny"
    build_index(read_manifest(simulate_screen(SCREEN, folder)), folder, folder / "index.parquet")
    return folder
