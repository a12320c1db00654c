"""Which trial starts next: the policy and the budget, on a simulated clock."""

from __future__ import annotations

import dataclasses
import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.budget import Budget
from phenoscale.scheduling import Job, Queue, fits, total

CAPACITY = {"CPU": 8.0, "GPU": 4.0, "readers": 4.0}


def job(name: str, cost: float = 1.0, **needs: float) -> Job:
    return Job(name=name, needs={"CPU": 1.0, **needs}, cost=cost)


@st.composite
def mixes(draw, one_kind: bool = False) -> list[Job]:
    """Trials that fit alone; their cost is the seconds that they take."""
    found = []
    for number in range(draw(st.integers(1, 25))):
        needs = {"CPU": float(draw(st.integers(1, 8)))}
        if not one_kind:
            needs["GPU"] = float(draw(st.integers(0, 4)))
            needs["readers"] = draw(st.integers(0, 8)) / 2
        found.append(Job(name=str(number), needs=needs, cost=float(draw(st.integers(1, 50)))))
    return found


@dataclasses.dataclass
class Run:
    """What became of a simulated grid."""

    started: dict[str, float] = dataclasses.field(default_factory=dict)
    ended: dict[str, float] = dataclasses.field(default_factory=dict)
    idle: list[tuple[dict[str, float], list[Job], list[Job]]] = dataclasses.field(
        default_factory=list
    )
    """At each time at which nothing more started: what was free, who ran and who waited."""


def simulate(queue: Queue) -> Run:
    """Runs a queue's jobs, each as many seconds as it costs.

    Asserts at every start that the running jobs fit.
    """
    run, now = Run(), 0.0
    ends: list[tuple[float, str]] = []
    while True:
        while (started := queue.next()) is not None:
            run.started[started.name] = now
            heapq.heappush(ends, (now + started.cost, started.name))
            assert fits(total(j.needs for j in queue.running.values()), queue.capacity)
        run.idle.append((queue.free(), list(queue.running.values()), list(queue.waiting)))
        if not ends:
            return run
        now, name = heapq.heappop(ends)
        queue.end(name)
        run.ended[name] = now


@given(mixes())
def test_every_trial_of_every_mix_runs_and_nothing_idles_without_a_reason(jobs):
    run = simulate(Queue(jobs, CAPACITY))
    assert set(run.ended) == {j.name for j in jobs}
    for free, running, waiting in run.idle:
        for number, one in enumerate(waiting):
            if fits(one.needs, free):
                ahead = waiting[:number]
                assert any(
                    not any(fits(larger.needs, other.needs) for other in running)
                    for larger in ahead
                ), "it fitted, and no larger one was in need of the room"


@given(mixes(one_kind=True))
def test_with_one_kind_of_resource_nothing_that_fits_ever_waits(jobs):
    for free, _, waiting in simulate(Queue(jobs, CAPACITY)).idle:
        assert not any(fits(one.needs, free) for one in waiting)


@given(mixes())
def test_a_waiting_trial_starts_at_the_latest_when_those_that_ran_before_it_came_first_have_ended(
    jobs,
):
    """No starvation: whoever passes a trial delays it by nothing."""
    order = [one.name for one in Queue(jobs, CAPACITY).waiting]
    run = simulate(Queue(jobs, CAPACITY))
    for number, name in enumerate(order):
        earlier = order[:number]
        # From here on no trial before it waits, and all that ran then, or before it, have ended.
        first = max((run.started[e] for e in earlier), default=0.0)
        ran = [n for n in order if n != name and run.started[n] <= first]
        assert run.started[name] <= max((run.ended[n] for n in ran), default=0.0)


@given(mixes(), st.data())
def test_machines_that_go_and_come_back_leave_no_trial_behind(jobs, data):
    lost = {name: data.draw(st.integers(0, int(x))) * 1.0 for name, x in CAPACITY.items()}
    at = data.draw(st.integers(1, len(jobs)))
    queue = Queue(jobs, CAPACITY)
    now, ends, ended = 0.0, [], 0
    while ended < len(jobs):
        while (one := queue.next()) is not None:
            heapq.heappush(ends, (now + one.cost, one.name))
        if not ends:
            homeless = [one.name for one in queue.lacking_room()]
            assert homeless == [one.name for one in queue.waiting], "nothing says why nothing runs"
            queue.capacity = CAPACITY
            continue
        now, name = heapq.heappop(ends)
        queue.end(name)
        ended += 1
        # The machines that go are those that stand idle.
        queue.capacity = lost if ended == at else queue.capacity


@given(mixes(), st.integers(1, 3))
def test_never_more_trials_at_once_than_were_asked_for(jobs, at_once):
    run = simulate(Queue(jobs, CAPACITY, at_once=at_once))
    assert max(len(running) for _, running, _ in run.idle) <= at_once
    assert len(run.ended) == len(jobs)


def test_largest_first_by_gpus_then_cpus_then_cost():
    jobs = [job("a", 9), job("b", 1, CPU=2), job("c", 1, GPU=1), job("d", 10), job("e", 2, GPU=1)]
    assert [j.name for j in Queue(jobs, CAPACITY).waiting] == ["e", "c", "b", "d", "a"]


def test_a_small_trial_passes_a_large_one_only_while_a_larger_one_runs():
    jobs = [job("four", 5, CPU=4), job("four too", 4, CPU=4), job("one", 1), job("three", 1, CPU=3)]
    queue = Queue(jobs, {"CPU": 6})
    assert [queue.next().name, queue.next().name, queue.next()] == ["four", "one", None]
    queue.end("four")
    assert queue.next().name == "four too", "its room was kept"


def test_nothing_passes_a_trial_whose_room_no_running_one_will_leave():
    jobs = [job("gpu", 9, GPU=1), job("wide", 1, CPU=8), job("small", 1)]
    queue = Queue(jobs, CAPACITY)
    assert queue.next().name == "gpu"
    assert queue.next() is None, "small would keep wide waiting after gpu has ended"
    queue.end("gpu")
    assert queue.next().name == "wide"


# The budget: hours pass as a test says.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now * 3600


def jobs_of(*costs: float, **options) -> list[Job]:
    return [dataclasses.replace(job(f"{cost:g}", cost), **options) for cost in costs]


def test_on_cpus_the_cheapest_trial_goes_first_and_alone_and_is_the_measurement():
    clock = Clock()
    jobs = [*jobs_of(8, 4, 1), dataclasses.replace(job("baseline", 0.5), is_baseline=True)]
    budget = Budget(jobs, limit_hours=10, clock=clock)
    queue = Queue(jobs, CAPACITY, admits=budget.admits)
    assert queue.next().name == "1"
    budget.began("1")
    assert queue.next() is None
    clock.now += 1  # so 8 takes 8 hours, 4 takes 4
    queue.end("1")
    budget.ended("1", done=True)
    assert budget.expected_hours("8") == pytest.approx(8)
    assert queue.next().name == "8"
    budget.chosen("8")
    assert queue.next().name == "baseline", "1 + 8 + 4 are more than 10"
    budget.began("8")
    budget.began("baseline")
    assert queue.next() is None
    clock.now += 4  # in half of the time that was expected
    for name in ("8", "baseline"):
        budget.ended(name, done=True)
        queue.end(name)
    assert budget.spent_hours() == pytest.approx(9)
    assert queue.next() is None and [j.name for j in queue.waiting] == ["4"]


def test_a_measurement_that_fails_is_followed_by_another():
    clock = Clock()
    budget = Budget(jobs_of(2, 1), limit_hours=10, clock=clock)
    queue = Queue(jobs_of(2, 1), CAPACITY, admits=budget.admits)
    assert queue.next().name == "1"
    budget.began("1")
    clock.now += 3
    budget.ended("1", done=False)
    queue.end("1")
    assert budget.expected_hours("2") is None and budget.spent_hours() == 3
    assert queue.next().name == "2"


def test_on_gpus_the_bill_tells_before_any_trial_has_ended():
    clock = Clock()
    jobs = jobs_of(4, 2, holds=8, bill_hours=1.0)
    jobs = [dataclasses.replace(j, bill_hours=j.cost) for j in jobs]
    budget = Budget(jobs, limit_hours=5, clock=clock)
    queue = Queue(jobs, CAPACITY, admits=budget.admits)
    assert queue.next().name == "4"
    budget.began("4")
    assert queue.next() is None, "4 + 2 are more than 5"
    clock.now += 0.25  # times eight GPUs
    budget.ended("4", done=True)
    queue.end("4")
    assert budget.spent_hours() == 2
    assert queue.next().name == "2", "which is expected to take one"


def test_hours_of_earlier_runs_and_of_failed_attempts_count():
    clock = Clock()
    jobs = jobs_of(3, 2, 1)
    budget = Budget(jobs, limit_hours=6, spent_hours={"1": 1.0, "2": 1.5}, ended=["1"], clock=clock)
    assert budget.spent_hours() == 2.5
    assert budget.admits(jobs[0]) and budget.admits(jobs[1])
    budget.began("2")
    clock.now += 0.5
    budget.ended("2", done=False)
    assert budget.hours("2") == pytest.approx(2.0)
    budget.began("3")
    assert not budget.admits(jobs[1]), "3 spent, 3 expected, 2 more"
    clock.now += 5
    assert budget.spent_hours() == pytest.approx(8), "a running trial is not ended"
