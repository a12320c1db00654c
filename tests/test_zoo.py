"""The zoo against the papers' figures, its page, and its command."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest

from phenoscale import flops, gpus, zoo
from phenoscale.backbones import BACKBONES
from phenoscale.config import TRAINED_OBJECTIVES
from phenoscale.zoo import CHANNELS, CLASSES, ZOO, System, measure
from tests.test_cli import loaded_after

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# The papers round: encoders to a million; decoders, DenseNet and MU-net are "about"; G to 0.1 B.
# CA-MAE's encoders are those of the same name, with the projection of one channel instead of six.
WITHIN = {"encoder": 0.03, "rest": 0.065, "whole": 0.04}
PUBLISHED = [(system, part) for system in ZOO for part in system.published]


@pytest.mark.parametrize(("system", "part"), PUBLISHED, ids=lambda x: getattr(x, "name", x))
def test_parameters_are_those_that_the_papers_give(system: System, part: str):
    found = measure(system).parameters[part] / 1e6
    assert found == pytest.approx(system.published[part], rel=WITHIN[part])


def test_every_figure_of_the_papers_is_in_the_zoo():
    given = {(part, millions) for system in ZOO for part, millions in system.published.items()}
    assert given >= {
        ("encoder", 22),
        ("encoder", 86),
        ("encoder", 304),
        ("rest", 25),
        ("whole", 28),
        ("whole", 52),
        ("whole", 135),
        ("whole", 1900),
    }
    giant = next(measure(system) for system in ZOO if system.name == "MAE-G/8+")
    assert round(giant.parameters["whole"] / 1e9, 1) == 1.9


def test_every_objective_and_backbone_has_a_row():
    assert len({system.name for system in ZOO}) == len(ZOO)
    assert {system.objective for system in ZOO} == set(TRAINED_OBJECTIVES)
    assert {system.backbone for system in ZOO} == set(BACKBONES)


@pytest.mark.parametrize("system", ZOO, ids=lambda system: system.name)
def test_a_row_is_measured_by_the_formulas(system: System):
    row, trial = measure(system), system.trial()
    assert row.parameters["encoder"] + row.parameters["rest"] == row.parameters["whole"]
    assert row.parameters["whole"] == flops.model_parameters(trial, CHANNELS, CLASSES)
    assert row.training_flops == 3 * flops.forward_flops(trial, CHANNELS, CLASSES)
    assert row.state_bytes == 12 * row.parameters["whole"]
    room = gpus.GPU_BYTES * (1 - gpus.RESERVE)
    needed = gpus.gpu_bytes(
        trial, CHANNELS, CLASSES, crops=zoo.CROPS_PER_GPU, gpus=row.gpus, strategy=row.strategy
    )
    assert needed <= room
    assert (row.strategy == "ddp") == (row.gpus == 1)


def test_the_page_holds_the_table_that_the_code_makes():
    """After a change: `phenoscale models --markdown`, between the page's two marks."""
    inside = re.search("<!-- zoo: begin -->\n(.*?)\n<!-- zoo: end -->", PAGE.read_text(), re.DOTALL)
    assert inside is not None and inside[1] == zoo.markdown()


def test_the_page_names_every_objective_and_readout():
    from phenoscale.config import READOUTS
    from phenoscale.results import BASELINES

    page = PAGE.read_text()
    assert all(f"`{name}`" in page for name in (*TRAINED_OBJECTIVES, *BASELINES, *READOUTS))


def cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("option", [None, "--json", "--markdown"])
def test_the_command_prints_every_row_at_once(option: str | None):
    words = ["models"] + ([option] if option else [])
    before = cpu_s_of_children()
    text, loaded = loaded_after("from phenoscale.cli import app; app()", *words)
    assert cpu_s_of_children() - before < 1, "half a second where nothing else runs"
    assert loaded == set()
    assert all(system.name in text for system in ZOO)
    if option == "--json":
        rows = json.loads(text)
        assert [row["name"] for row in rows] == [system.name for system in ZOO]
        large = next(row for row in rows if row["name"] == "MAE-L/8+")
        assert large["objective"] == "mae+" and large["strategy"] == "ddp"
        assert large["published_parameters"] == {"encoder": 304e6, "rest": 25e6}
        assert large["parameters"]["encoder"] == 302_614_528
    elif option == "--markdown":
        assert text.strip() == zoo.markdown()
