"""The sampling plan: a permutation per pass, the same for any number of workers, from any step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.config import Crops
from phenoscale.crops import CropBatch, Plan, permute

FIELDS = [field.name for field in dataclasses.fields(CropBatch)]


def plan_of(
    num_sites: int = 50,
    batch: int = 8,
    passes: int = 3,
    fingerprint: str = "f" * 64,
    seed: int = 0,
) -> Plan:
    crops = Crops(size_px=16, passes=passes, global_batch_size=batch)
    return Plan.of(crops, fingerprint=fingerprint, seed=seed, num_sites=num_sites)


def values(plan: Plan, steps: range, rank: int = 0, world: int = 1) -> dict[str, np.ndarray]:
    """All fields of some steps, one worker, one after another."""
    batches = [plan.batch(step, rank, world) for step in steps]
    return {name: np.concatenate([getattr(b, name) for b in batches]) for name in FIELDS}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int):
    image = permute(np.arange(size, dtype=np.uint64), size, np.array([key], np.uint64))
    assert np.array_equal(np.sort(image), np.arange(size))


@given(
    size=st.integers(1, 2**40),
    key=st.integers(0, 2**64 - 1),
    positions=st.sets(st.integers(0, 2**40), min_size=2, max_size=50),
)
def test_permute_stays_in_range_and_keeps_positions_apart_at_any_size(
    size: int, key: int, positions: set[int]
):
    inside = np.array(sorted({p % size for p in positions}), np.uint64)
    image = permute(inside, size, np.array([key], np.uint64))
    assert image.min() >= 0 and image.max() < size
    assert len(set(image.tolist())) == len(inside)


def test_each_position_takes_its_own_key():
    """A batch that spans two passes permutes each part by its pass's key."""
    positions, keys = np.arange(40, dtype=np.uint64), np.array([5, 9], np.uint64)
    both = permute(np.tile(positions, 2), 40, np.repeat(keys, 40))
    apart = [permute(positions, 40, keys[i : i + 1]) for i in range(2)]
    assert np.array_equal(both, np.concatenate(apart))
    assert not np.array_equal(apart[0], apart[1])


@given(
    num_sites=st.integers(1, 200), share=st.integers(1, 8), passes=st.integers(1, 5), data=st.data()
)
@settings(max_examples=50)
def test_workers_together_see_the_global_batch(
    num_sites: int, share: int, passes: int, data: st.DataObject
):
    batch = 4 * share
    passes = max(passes, -(-batch // num_sites))
    plan = plan_of(num_sites, batch, passes)
    step = data.draw(st.integers(0, plan.steps - 1))
    whole = values(plan, range(step, step + 1))
    for world in (2, 4):
        parts = [values(plan, range(step, step + 1), rank, world) for rank in range(world)]
        assert_same(whole, {n: np.concatenate([part[n] for part in parts]) for n in FIELDS})


@given(num_sites=st.integers(1, 150), batch=st.integers(1, 40), passes=st.integers(1, 6))
@settings(max_examples=50)
def test_every_pass_visits_every_site_once(num_sites: int, batch: int, passes: int):
    passes = max(passes, -(-batch // num_sites))
    plan = plan_of(num_sites, batch, passes)
    sites = values(plan, range(plan.steps))["site"]
    assert passes * num_sites - batch < len(sites) <= passes * num_sites
    for visit in range(passes):
        seen = sites[visit * num_sites : (visit + 1) * num_sites]
        # The last pass may stop before its end: whole global batches alone are trained on.
        assert len(set(seen.tolist())) == len(seen)


def test_passes_have_an_order_of_their_own():
    sites = values(plan_of(num_sites=64, batch=8, passes=3), range(24))["site"].reshape(3, 64)
    assert len({tuple(order) for order in sites.tolist()}) == 3


@given(first=st.integers(0, 17))
def test_a_resumed_plan_goes_on_where_it_stopped(first: int):
    plan, again = plan_of(), plan_of()
    whole, rest = values(plan, range(plan.steps)), values(again, range(first, again.steps))
    assert_same({n: x[first * 8 :] for n, x in whole.items()}, rest)


def test_seed_and_fingerprint_choose_the_plan():
    plans = [plan_of(), plan_of(seed=1), plan_of(fingerprint="e" * 64)]
    drawn = [values(plan, range(plan.steps)) for plan in plans]
    for name in FIELDS:
        for i, j in ((0, 1), (0, 2), (1, 2)):
            # turn has eight values and site fifty: by chance some agree.
            agree = np.mean(drawn[i][name] == drawn[j][name])
            assert agree < {"turn": 0.3, "site": 0.15}.get(name, 1e-9), (name, i, j)


def test_places_and_turns_are_uniform_and_independent():
    drawn = values(plan_of(num_sites=1000, batch=100, passes=40), range(400))
    count = len(drawn["top"])
    for name in ("top", "left"):
        assert drawn[name].min() >= 0 and drawn[name].max() < 1
        share = np.histogram(drawn[name], bins=20, range=(0, 1))[0] / count
        # Five standard deviations of a binomial share of 1/20 over 40,000 draws.
        assert np.abs(share - 1 / 20).max() < 5 * np.sqrt(0.05 * 0.95 / count)
    turns = np.bincount(drawn["turn"], minlength=8) / count
    assert len(turns) == 8
    assert np.abs(turns - 1 / 8).max() < 5 * np.sqrt(0.125 * 0.875 / count)
    together = np.corrcoef([drawn[name] for name in FIELDS])
    assert np.abs(together - np.eye(4)).max() < 5 / np.sqrt(count)


def test_successive_crops_are_not_alike():
    """Counters that differ in one bit must not give neighbouring places."""
    top = values(plan_of(num_sites=1000, batch=100, passes=40), range(400))["top"]
    for lag in (1, 2, 64, 1000):
        assert abs(np.corrcoef(top[:-lag], top[lag:])[0, 1]) < 0.03


def test_the_plan_is_pinned():
    """Golden values: a plan that changes makes old checkpoints go on with other crops."""
    batch = plan_of(num_sites=1000, batch=4, passes=2, fingerprint="ab" * 32, seed=7).batch(249)
    assert batch.site.tolist() == [163, 98, 502, 706]
    assert batch.turn.tolist() == [0, 2, 7, 0]
    assert batch.top.tolist() == [
        0.14579526732568648,
        0.7020809986334582,
        0.2669087836872016,
        0.3746744672716147,
    ]
    assert batch.left.tolist() == [
        0.135502106400483,
        0.6107978154022256,
        0.38946604627211023,
        0.5514341155026584,
    ]


def test_what_lies_outside_the_plan_is_refused():
    plan = plan_of(num_sites=16, batch=8, passes=1)
    for step in (-1, plan.steps):
        with pytest.raises(ValueError, match=f"Step {step} is outside the plan of 2 steps"):
            plan.batch(step)
    with pytest.raises(ValueError, match="8 does not divide among 3 workers"):
        plan.batch(0, 0, 3)
    with pytest.raises(ValueError, match="fewer crops than one global batch of 8"):
        plan_of(num_sites=7, batch=8, passes=1)
