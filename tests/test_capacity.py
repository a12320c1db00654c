"""What a cluster can hold, and which trials are refused, with the reason."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from phenoscale.config import Placement, Readers
from phenoscale.on_ray import capacity
from phenoscale.on_ray.capacity import (
    Cluster,
    NodeGroup,
    check_room,
    trial_bundles,
    trial_needs,
    worker_bundles,
)
from phenoscale.on_ray.start import HEAD_RESOURCE, READERS_RESOURCE
from tests.tiny import TINY

HEAD = NodeGroup(name="head", resources={HEAD_RESOURCE: 1.0}, most=1)
READERS = NodeGroup(name="cpu", resources={"CPU": 16.0, READERS_RESOURCE: 16.0}, most=4)
GPUS = NodeGroup(name="gpu", resources={"CPU": 12.0, "GPU": 2.0}, most=3)
CLUSTER = Cluster(groups=(HEAD, READERS, GPUS))


def placed(**options):
    return dataclasses.replace(TINY, placement=Placement(**{"launcher": "ray_train", **options}))


def refusal(trial, cluster: Cluster) -> str:
    with pytest.raises(ValueError, match="can never run here") as caught:
        check_room([TINY, trial], cluster)
    (line,) = [x for x in str(caught.value).splitlines() if x.strip().startswith(trial.id + ":")]
    return line.partition(": ")[2]


def test_a_trial_holds_a_bundle_for_itself_and_one_for_each_workers_readers():
    assert trial_bundles(TINY) == [{"CPU": 1}, {"CPU": 1}] and worker_bundles(TINY, 1) == []
    trial = placed(workers=2, gpu=True, readers=Readers(at_once=3, resource=READERS_RESOURCE))
    reading = {"CPU": 3, READERS_RESOURCE: 3}
    assert trial_bundles(trial) == [{"CPU": 0.01}, reading, reading]
    assert worker_bundles(trial, 2) == [{"CPU": 1, "GPU": 1}] * 2
    assert trial_needs(trial, CLUSTER) == {"CPU": 8.01, "GPU": 2, READERS_RESOURCE: 6}


def test_a_head_without_cpus_counts_nothing_and_groups_count_their_most():
    assert CLUSTER.capacity["CPU"] == 4 * 16 + 3 * 12
    assert CLUSTER.capacity["GPU"] == 6
    few = dataclasses.replace(CLUSTER, most_nodes=3)
    assert (few.capacity["CPU"], few.capacity["GPU"]) == (48, 6)


def test_what_fits_is_not_refused():
    check_room([TINY, placed(workers=6, gpu=True), placed(workers=8)], CLUSTER)
    check_room(
        [placed(workers=2)],
        Cluster(groups=(NodeGroup(name="here", resources={"CPU": 5.0}, most=1),)),
    )


@pytest.mark.parametrize(
    ("options", "groups", "reason"),
    [
        ({"gpu": True}, (READERS,), "it needs 1 GPUs, and no node has any"),
        ({"gpu": True, "workers": 7}, (READERS, GPUS), "it needs 14.01 CPU and 7 GPU at once"),
        (
            {"readers": Readers(at_once=20)}, (READERS, GPUS),
            "one of its processes needs 20 CPU, more than any node has",
        ),
        (
            {"readers": Readers(resource=READERS_RESOURCE)}, (GPUS,),
            f"its readers need nodes that offer the resource '{READERS_RESOURCE}', and none does",
        ),
        (
            {"workers": 4}, (NodeGroup(name="a", resources={"CPU": 5.0}, most=1),),
            "it needs 8.01 CPU: its workers would take what there is, and leave no CPU to the "
            "readers of their crops",
        ),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused_with_the_reason(options, groups, reason):
    assert refusal(placed(**options), Cluster(groups=groups)) == reason


def test_all_that_is_refused_is_listed_in_one_error():
    trials = [placed(gpu=True), placed(workers=3), TINY]
    with pytest.raises(ValueError) as caught:
        check_room(trials, Cluster(groups=(NodeGroup(name="a", resources={"CPU": 3.0}, most=1),)))
    text = str(caught.value)
    assert "2 of 3 trials can never run here, so nothing was started" in text
    assert all(trial.id in text for trial in trials[:2]) and f"{TINY.id}: " not in text
    assert "The cluster has at most 1 x a (3 CPU)" in text


def test_bundles_are_counted_on_nodes_and_not_in_sums():
    trial = placed(workers=3, readers=Readers(at_once=2))  # bundles of 2, 2, 2, 1, 1, 1 and 0.01
    small = NodeGroup(name="small", resources={"CPU": 3.01}, most=3)
    check_room([trial], Cluster(groups=(small,)))
    narrow = NodeGroup(name="narrow", resources={"CPU": 1.9}, most=9)
    wide = NodeGroup(name="wide", resources={"CPU": 3.0}, most=2)
    assert refusal(trial, Cluster(groups=(narrow, wide))).startswith("it needs 9.01 CPU")


def test_an_elastic_trial_counts_the_workers_that_there_can_be():
    trial = placed(workers=8, min_workers=2, gpu=True)
    assert trial_needs(trial, CLUSTER)["GPU"] == 6
    assert "at once" in refusal(placed(workers=8, min_workers=7, gpu=True), CLUSTER)


def test_the_autoscalers_configuration_gives_the_groups():
    config = {
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0, HEAD_RESOURCE: 1}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 16, "memory": 10**9}, "min_workers": 0},
            "gpu": {"resources": {"CPU": 12, "GPU": 2}, "max_workers": 3},
            "off": {"resources": {"CPU": 99}, "max_workers": 0},
        },
    }
    cluster = capacity._of_config(config)
    assert {g.name: (dict(g.resources), g.most) for g in cluster.groups} == {
        "cpu": ({"CPU": 16.0}, 5),
        "gpu": ({"CPU": 12.0, "GPU": 2.0}, 3),
    }
    assert cluster.most_nodes == 5


def test_the_file_of_this_clusters_autoscaler_is_found_among_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As `ray start --head --autoscaling-config` starts it, beside that of another cluster."""
    addresses = ("10.0.0.1:6379", "10.0.0.2:6379")
    processes = []
    for number, address in enumerate(addresses):
        path = tmp_path / f"{number}.json"
        types = {"available_node_types": {f"group{number}": {"resources": {"CPU": 1}}}}
        path.write_text(json.dumps(types))
        words = [f"--gcs-address={address}", f"--autoscaling-config={path}"]
        sleep = "import time; time.sleep(60)"
        processes.append(subprocess.Popen([sys.executable, "-c", sleep, *words]))
    try:
        for address, group in zip(addresses, ("group0", "group1"), strict=True):
            context = SimpleNamespace(gcs_address=address)
            monkeypatch.setattr(capacity.ray, "get_runtime_context", lambda c=context: c)
            assert list(capacity._autoscaler_config()["available_node_types"]) == [group]
        other = SimpleNamespace(gcs_address="10.0.0.3:6379")
        monkeypatch.setattr(capacity.ray, "get_runtime_context", lambda: other)
        assert capacity._autoscaler_config() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_rays_private_call_for_reported_groups_is_there():
    """It is None on Ray's own autoscaler, and what it gives elsewhere has these fields."""
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    assert callable(capacity.state.get_cluster_config)
    group = NodeGroupConfig(name="cpu", resources={"CPU": 4}, max_count=-1)
    config = ClusterConfig(node_group_configs=[group])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity.state, "get_cluster_config", lambda: config)
        (found,) = capacity._reported().groups
    assert (found.name, dict(found.resources)) == ("cpu", {"CPU": 4.0}) and found.most > 1000
