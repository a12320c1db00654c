"""The sampling plan: every site once a round, the same for any number of workers, from any step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.config import SAMPLINGS, Crops
from phenoscale.crops import WINDOW_GROUPS, CropBatch, Plan, lanes, permute, pieces

FIELDS = [field.name for field in dataclasses.fields(CropBatch)]


def plan_of(
    num_sites: int = 50,
    batch: int = 8,
    passes: int = 3,
    fingerprint: str = "f" * 64,
    seed: int = 0,
    **fields,
) -> Plan:
    crops = Crops(size_px=16, passes=passes, global_batch_size=batch)
    sizes = np.full(-(-num_sites // 10), 10)  # groups of ten sites, the last one of the rest
    sizes[-1] -= sizes.sum() - num_sites
    return Plan.of(crops, fingerprint=fingerprint, seed=seed, group_sizes=sizes, **fields)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of every sampling, over groups of any size, empty ones among them."""
    sampling = draw(st.sampled_from(SAMPLINGS))
    per_read, per_plate = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3]))
    batch = 4 * per_plate * draw(st.integers(1, 4))
    sizes = np.array(draw(st.lists(st.integers(0, 40), min_size=1, max_size=12)))
    sizes[sizes < per_plate] = 0
    sizes[0] = max(sizes[0], 8)
    rounds = draw(st.integers(-(-batch // int(np.sum(sizes // per_plate * per_plate))), 12))
    crops = Crops(
        size_px=16,
        passes=per_read * rounds,
        global_batch_size=batch,
        crops_per_read=per_read,
        sampling=sampling,
        crops_per_plate=per_plate,
    )
    classes = np.random.default_rng(0).integers(0, 4, sizes.sum())
    of_group = np.split(classes, np.cumsum(sizes)[:-1])
    return Plan.of(
        crops,
        fingerprint="f" * 64,
        seed=draw(st.integers(0, 3)),
        group_sizes=sizes,
        labels=lambda groups: np.concatenate([of_group[g] for g in groups]),
    )


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


@given(plan=plans(), data=st.data())
@settings(max_examples=150)
def test_workers_together_see_the_global_batch_from_any_step(plan: Plan, data: st.DataObject):
    """1, 2 and 4 workers, resumed at any step: always the same crops in the same places."""
    first = data.draw(st.integers(0, plan.steps - 1))
    steps = range(first, min(plan.steps, first + 20))
    block = plan.crops(0, plan.steps, range(plan.global_batch_size))
    whole = {name: getattr(block, name)[steps].ravel() for name in FIELDS}
    again = dataclasses.replace(plan, _rounds={}, _balanced={})
    for world in (1, 2, 4):
        parts = [
            again.crops(steps.start, steps.stop, plan.lanes(rank, world)) for rank in range(world)
        ]
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=1).ravel()
            for name in FIELDS
        }
        assert_same(whole, joined)
        assert_same(
            {name: whole[name].reshape(len(steps), -1)[0] for name in FIELDS},
            {
                name: np.concatenate(
                    [getattr(again.batch(first, r, world), name) for r in range(world)]
                )
                for name in FIELDS
            },
        )


@given(plan=plans())
@settings(max_examples=150)
def test_a_read_serves_its_crops_in_one_lane_of_one_chapter(plan: Plan):
    """So a worker that cuts a chapter reads each site once, however many workers there are."""
    sites = plan.crops(0, plan.steps, range(plan.global_batch_size)).site
    assert plan.steps % plan.crops_per_read == 0
    for first in range(0, plan.steps, plan.chapter_steps):
        chapter = sites[first : first + plan.chapter_steps]
        reads = len(chapter) // plan.crops_per_read
        for lane in chapter.T:
            counts = np.unique(lane, return_counts=True)[1]
            assert len(counts) <= reads and np.all(counts % plan.crops_per_read == 0)


@given(plan=plans())
@settings(max_examples=150)
def test_every_round_visits_every_site_at_most_once(plan: Plan):
    if plan.labels is not None:
        return
    sites = plan.crops(0, plan.steps, range(plan.global_batch_size)).site
    units = plan.group_sizes // plan.unit
    rounds = -(-plan.steps * plan.global_batch_size // (int(units.sum()) * plan.unit))
    counts = np.bincount(sites.ravel(), minlength=int(plan.group_sizes.sum()))
    ceiling = -(-rounds // plan.crops_per_read) * plan.crops_per_read
    assert counts.max() <= ceiling
    if plan.unit == 1 and plan.steps * plan.global_batch_size == plan.crops_per_read * len(counts):
        assert counts.min() == counts.max()


def test_crops_of_a_read_are_spread_over_many_batches():
    crops = Crops(size_px=16, passes=8, crops_per_read=4, global_batch_size=8)
    plan = Plan.of(crops, fingerprint="f", seed=0, group_sizes=np.full(10, 50))
    assert plan.chapter_steps == 8
    lanes = plan.crops(0, 400, range(8)).site.reshape(50, 8, 8).transpose(0, 2, 1).reshape(-1, 8)
    gaps = [np.diff(np.flatnonzero(lane == site)) for lane in lanes for site in np.unique(lane)]
    # Of four places drawn from eight, neighbours are (8 + 1) / (4 + 1) apart on average.
    assert 1.7 < np.mean(np.concatenate(gaps)) < 1.9


def test_plate_wise_batches_hold_runs_of_one_plate():
    sizes = np.array([30, 0, 22, 64, 9])
    crops = Crops(
        size_px=16, passes=6, global_batch_size=24, sampling="plate_wise", crops_per_plate=8
    )
    plan = Plan.of(crops, fingerprint="f", seed=0, group_sizes=sizes)
    sites = plan.crops(0, plan.steps, range(24)).site
    plates = np.searchsorted(np.cumsum(sizes), sites, side="right").reshape(plan.steps, 3, 8)
    assert np.array_equal(plates.min(-1), plates.max(-1))
    runs = sites.reshape(-1, 8)
    assert all(len(set(run)) == 8 for run in runs.tolist())
    per_round = 3 + 2 + 8 + 1
    shares = np.bincount(plates[..., 0].ravel(), minlength=5) / (plan.steps * 3)
    assert np.abs(shares - np.array([3, 0, 2, 8, 1]) / per_round).max() < 0.08
    orders = {tuple(sorted(run)) for run in runs.tolist() if run[0] < 30}
    assert len(orders) > 3  # a plate is cut into other runs in every round
    with pytest.raises(ValueError, match="2 plates have fewer sites than the 8 crops"):
        Plan.of(crops, fingerprint="f", seed=0, group_sizes=np.array([30, 3, 7]))


def test_class_balanced_sampling_draws_classes_evenly():
    labels = np.repeat([0, 1, 2, 3], [900, 60, 30, 10])
    of_group = np.split(np.random.default_rng(1).permutation(labels), 20)
    flat = np.concatenate(of_group)
    crops = Crops(size_px=16, passes=4, global_batch_size=40, sampling="class_balanced")
    plan = Plan.of(
        crops,
        fingerprint="f",
        seed=0,
        group_sizes=np.full(20, 50),
        labels=lambda groups: np.concatenate([of_group[g] for g in groups]),
    )
    sites = plan.crops(0, plan.steps, range(40)).site
    drawn = np.bincount(flat[sites.ravel()], minlength=4)
    assert drawn.tolist() == [1000] * 4
    of_largest = np.bincount(sites.ravel(), minlength=1000)[flat == 0]
    assert of_largest.max() <= 4 and np.mean(of_largest > 0) > 0.5
    of_smallest = np.bincount(sites.ravel(), minlength=1000)[flat == 3]
    assert of_smallest.min() == of_smallest.max() == 100
    with pytest.raises(ValueError, match="class_balanced sampling needs the classes"):
        Plan.of(crops, fingerprint="f", seed=0, group_sizes=np.full(20, 50))


def test_a_window_bounds_the_groups_that_a_batch_touches_and_fills_it():
    sizes = np.full(20 * WINDOW_GROUPS, 40)
    crops = Crops(size_px=16, passes=3, global_batch_size=1000)
    plan = Plan.of(crops, fingerprint="f", seed=0, group_sizes=sizes)
    per_window = WINDOW_GROUPS * 40
    touched = [np.unique(plan.batch(step).site // 40) for step in range(plan.steps)]
    assert max(len(groups) for groups in touched) <= 2 * WINDOW_GROUPS
    inside = [t for step, t in enumerate(touched) if (step * 1000) % per_window < per_window - 1000]
    assert min(len(groups) for groups in inside) > 0.99 * WINDOW_GROUPS
    # Windows are of groups from all over the index, others in each round.
    assert all(np.ptp(groups) > 0.9 * len(sizes) for groups in inside)
    later = -(-int(sizes.sum()) // 1000)
    assert len(np.intersect1d(touched[0], touched[later])) < 0.3 * WINDOW_GROUPS


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
    assert batch.site.tolist() == [333, 368, 92, 306]
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
        with pytest.raises(ValueError, match="not all inside the plan of 2 steps"):
            plan.batch(step)
    with pytest.raises(ValueError, match="fewer crops than one global batch of 8"):
        plan_of(num_sites=7, batch=8, passes=1)


@given(units=st.integers(1, 40), unit=st.integers(1, 5), world=st.integers(1, 12))
def test_workers_share_a_batch_in_order_whole_units_and_as_evenly_as_can_be(units, unit, world):
    shares = [lanes(units * unit, unit, rank, world) for rank in range(world)]
    assert [lane for share in shares for lane in share] == list(range(units * unit))
    sizes = [len(share) for share in shares]
    assert all(size % unit == 0 for size in sizes)
    assert max(sizes) - min(sizes) <= unit


@given(
    units=st.integers(1, 40),
    unit=st.integers(1, 5),
    world=st.integers(1, 6),
    at_once=st.integers(1, 9) | st.none(),
)
def test_pieces_cut_every_share_and_are_as_many_everywhere(units, unit, world, at_once):
    size, at_once = units * unit, at_once and at_once * unit
    if units < world:
        return
    cut = [pieces(size, unit, rank, world, at_once) for rank in range(world)]
    assert len({len(of_worker) for of_worker in cut}) == 1
    for rank, of_worker in enumerate(cut):
        share = range(len(lanes(size, unit, rank, world)))
        assert [place for piece in of_worker for place in share[piece]] == list(share)
        sizes = [len(share[piece]) for piece in of_worker]
        assert all(n > 0 and n % unit == 0 for n in sizes)
        assert at_once is None or max(sizes) <= at_once + unit
