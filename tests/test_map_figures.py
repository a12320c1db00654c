"""Pictures of a perturbation map: what they show, what they leave out, and the report with them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from phenoscale.maps.files.map_files import write_map
from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.reports import map_figures
from phenoscale.reports.map_figures import cluster_order, make_map_figures
from phenoscale.reports.report import make_report, write_page
from phenoscale.study_files import MAP_FILE, REPORT_FILE
from tests.browser import chromium, needs_chromium, opened
from tests.fabricated import make_study
from tests.test_report import page


def planted_map(groups: int = 8, size: int = 5, noise: float = 0.4) -> PerturbationMap:
    """Groups of near vectors, in an order that hides them: name = group and member."""
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(groups, 40)), size, axis=0)
    values += rng.normal(0, noise, values.shape)
    names = np.array([f"g{row // size}m{row % size}" for row in range(len(values))], dtype=object)
    order = rng.permutation(len(values))
    facts = {"readout": "patch_mean"}
    return PerturbationMap(vectors=values[order], names=tuple(names[order]), facts=facts)


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    shape = [int(side) for side in packed["shape"].split(",")]
    return np.frombuffer(base64.b64decode(packed["bdata"]), "<f4").reshape(shape)


def test_the_heat_map_holds_the_cosines_with_groups_side_by_side() -> None:
    found = planted_map()
    heat, _ = make_map_figures(found)
    (data,) = heat["data"]
    assert sorted(data["x"]) == sorted(found.names) and data["x"] == data["y"]
    cosines = unpacked(data["z"])
    rows = [found.names.index(name) for name in data["x"]]
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, unit[rows] @ unit[rows].T, atol=1e-6)
    groups = [name.split("m")[0] for name in data["x"]]
    changes = sum(one != other for one, other in zip(groups, groups[1:], strict=False))
    assert changes == 7  # each of the eight groups is one run
    assert "all 40 perturbations" in heat["note"]
    off = np.abs(cosines[~np.eye(40, dtype=bool)])
    assert 0.98 <= (off <= data["zmax"]).mean() and data["zmin"] == -data["zmax"]


def test_the_optimal_order_puts_alike_neighbours_nearer_than_the_input() -> None:
    found = planted_map(noise=1.5)
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    order, cluster = cluster_order(unit)
    assert sorted(order) == list(range(40))

    def steps(rows: np.ndarray) -> float:
        return float((unit[rows[1:]] * unit[rows[:-1]]).sum())

    shuffled = [steps(np.random.default_rng(seed).permutation(40)) for seed in range(50)]
    assert steps(order) > max(shuffled)
    assert len(cluster) == 40


def test_the_plane_keeps_groups_together_and_colours_them() -> None:
    found = planted_map()
    _, plane = make_map_figures(found)
    others, *clusters = plane["data"]
    assert others["name"] == "others" and others["text"] == [] and len(clusters) == 8
    for cluster in clusters:
        assert len({name.split("m")[0] for name in cluster["text"]}) == 1
        assert re.fullmatch(r"g\dm\d, g\dm\d \+3", cluster["name"])
    places = {
        name: np.array(place)
        for d in plane["data"]
        for name, *place in zip(d["text"], d["x"], d["y"], strict=True)
    }
    assert set(places) == set(found.names)
    for name, place in places.items():
        other = min(
            (o for o in places if o != name), key=lambda o: ((places[o] - place) ** 2).sum()
        )
        assert other.split("m")[0] == name.split("m")[0]
    assert "8 largest of 8 clusters" in plane["note"]


def test_known_groups_give_the_colours_if_given() -> None:
    found = planted_map()
    groups = {name: f"complex {name[1]}" for name in found.names if name[1] in "012"}
    _, plane = make_map_figures(found, groups=groups)
    assert [d["name"] for d in plane["data"]] == ["others", "complex 0", "complex 1", "complex 2"]
    assert [len(d["text"]) for d in plane["data"]] == [25, 5, 5, 5]
    assert "3 largest of 3 known groups" in plane["note"]


def test_a_large_map_is_cut_down_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_figures, "HEAT_NAMES", 10)
    monkeypatch.setattr(map_figures, "PLANE_NAMES", 30)
    found = planted_map()
    heat, plane = make_map_figures(found)
    strongest = np.argsort(-np.linalg.norm(found.vectors, axis=1))[:10]
    assert set(heat["data"][0]["x"]) == {found.names[row] for row in strongest}
    assert "10 of 40 perturbations, those with the longest vectors" in heat["note"]
    shown = [name for d in plane["data"] for name in d["text"]]
    assert len(shown) == 30 and len(set(shown)) == 30 and set(shown) <= set(found.names)
    assert "30 of 40 perturbations, drawn at random with a fixed seed" in plane["note"]
    group = [f"g3m{member}" for member in range(5)]
    pairs = pd.DataFrame(
        [(a, b) for a in group for b in group if a < b] + [("g1m0", "absent")],
        columns=["entity1", "entity2"],
    )
    heat, _ = make_map_figures(found, pairs)
    assert set(heat["data"][0]["x"]) == set(group)
    assert "5 of 40 perturbations, those with most known partners" in heat["note"]


def test_pictures_are_the_same_each_time_and_need_five_directions() -> None:
    found = planted_map()
    assert json.dumps(make_map_figures(found)) == json.dumps(make_map_figures(found))
    values = found.vectors.copy()
    values[:2] = 0
    zeros = PerturbationMap(vectors=values, names=found.names)
    for figure in make_map_figures(zeros):
        assert figure["note"].endswith("; 2 with an all-zero vector are left out")
    assert found.names[0] not in make_map_figures(zeros)[0]["data"][0]["x"]
    values[4:] = 0
    assert make_map_figures(PerturbationMap(vectors=values, names=found.names)) == []


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose best trial, and another, left a map."""
    study_dir = tmp_path_factory.mktemp("runs") / "with-map"
    rows = make_study(study_dir)
    trained = [row for row in rows if row.launcher == "in_place" and not row.is_baseline]
    best, worst = max(trained, key=lambda r: r.score), min(trained, key=lambda r: r.score)
    write_map(planted_map(48), study_dir / "trials" / best.trial_id / MAP_FILE)
    write_map(planted_map(2), study_dir / "trials" / worst.trial_id / MAP_FILE)
    write_page(make_report(study_dir), study_dir / REPORT_FILE)
    return study_dir


def test_the_report_shows_the_map_of_the_best_trial(study_dir: Path, tmp_path: Path) -> None:
    source, shown = (study_dir / REPORT_FILE).read_text(), page(study_dir)
    (raw,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', source)
    figures = {figure["id"]: figure for figure in json.loads(raw)}
    assert list(figures)[-2:] == ["map-heat", "map-plane"]
    assert len(figures["map-heat"]["data"][0]["x"]) == 240
    assert "<h2>The perturbation map of the best trial</h2>" in shown
    assert "--map trials/mae-micro-16-f1-s0-00000005" in shown
    assert 'id="map-heat"' in shown and 'id="map-plane"' in shown
    assert make_report(study_dir).html() == source
    make_study(tmp_path)
    without = make_report(tmp_path).html()
    assert "map-heat" not in without and "The perturbation map of the best" not in without
    assert len(source) - len(without) < 1e6


def test_a_damaged_map_is_named(tmp_path: Path) -> None:
    make_study(tmp_path)
    best = tmp_path / "trials" / "mae-micro-16-f1-s0-00000005"
    (best / MAP_FILE).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"map.parquet is no Parquet file"):
        make_report(tmp_path)


@needs_chromium
def test_a_browser_draws_both_pictures(study_dir: Path) -> None:
    with chromium() as browser, opened(browser, study_dir / REPORT_FILE) as seen:
        seen.wait("document.querySelector('#map-plane .point') !== null")
        assert seen.page.evaluate("document.querySelectorAll('#map-heat image').length") == 1
        assert seen.page.evaluate("document.querySelectorAll('#map-plane .point').length") == 240
        assert seen.complaints == []
