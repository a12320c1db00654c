"""What a cluster can hold at most, and which trials it can not hold at all.

Of a cluster that stays as it is these are its nodes. Of one that grows these are its node groups
with their greatest counts, wherever its autoscaler has them from; so a trial may ask for nodes that
are not there yet, and is refused before anything runs where no group will ever offer them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml  # type: ignore[import-untyped]
from ray._private.state import state  # no public call gives the node groups; Ray Data reads it too

from phenoscale.config import Trial
from phenoscale.on_ray.data import READER_CPUS
from phenoscale.on_ray.train import TRAINER_CPUS
from phenoscale.scheduling import Amounts, fits, total

DRIVER_CPUS = 0.01
"""What a trial's own process holds where a worker group trains."""

_UNLIMITED = 10_000  # nodes of a group without a greatest count
_NOT_COUNTED = ("memory", "object_store_memory", "node:")
_KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one kind."""

    name: str
    """As the cluster calls it."""
    resources: Amounts
    """What each node offers."""
    most: int
    """How many there can be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """All that a cluster can have."""

    groups: tuple[NodeGroup, ...]
    """Its kinds of nodes; those that are there by themselves first."""
    most_nodes: int = _UNLIMITED
    """How many nodes there can be in all."""
    grows: bool = False
    """Whether an autoscaler adds and removes nodes; else these are the nodes that are alive."""

    @property
    def capacity(self) -> dict[str, float]:
        """The most of each resource that there can be, on at most `most_nodes` nodes."""
        found = {}
        for name in {name for group in self.groups for name in group.resources}:
            left, amount = self.most_nodes, 0.0
            for group in sorted(self.groups, key=lambda one: -one.resources.get(name, 0.0)):
                count = min(left, group.most)
                left -= count
                amount += count * group.resources.get(name, 0.0)
            found[name] = amount
        return found

    def describe(self) -> str:
        """Its nodes in words."""
        words = []
        for group in self.groups:
            offered = [f"{x:g} {name}" for name, x in sorted(group.resources.items()) if x]
            words.append(f"{group.most} x {group.name} ({', '.join(offered) or 'nothing'})")
        return "; ".join(words) or "no node at all"


def trial_bundles(trial: Trial) -> list[dict[str, float]]:
    """The bundles of a trial's own placement group.

    The first is that of its own process; then one for each worker, in which the worker's crops are
    cut.
    """
    place = trial.placement
    reading: dict[str, float] = {"CPU": READER_CPUS * place.readers.at_once}
    if place.readers.resource is not None:
        reading[place.readers.resource] = READER_CPUS * place.readers.at_once
    own = TRAINER_CPUS if place.launcher == "in_place" else DRIVER_CPUS
    return [{"CPU": own}, *(dict(reading) for _ in range(place.workers))]


def worker_bundles(trial: Trial, workers: int) -> list[dict[str, float]]:
    """The bundles of the worker group that Ray Train makes for a trial."""
    place = trial.placement
    if place.launcher == "in_place":
        return []
    bundle: dict[str, float] = {"CPU": TRAINER_CPUS, **({"GPU": 1.0} if place.gpu else {})}
    return [dict(bundle) for _ in range(workers)]


def trial_needs(trial: Trial, cluster: Cluster) -> dict[str, float]:
    """All that a trial holds; an elastic one as many workers as there can be."""
    return total(trial_bundles(trial) + worker_bundles(trial, _workers(trial, cluster)))


def check_room(trials: Sequence[Trial], cluster: Cluster) -> None:
    """Refuses a grid of which the cluster can never hold some trial.

    Raises:
        ValueError: naming every such trial and what it lacks.
    """
    reasons = {trial.id: _lack(trial, cluster) for trial in trials}
    if refused := [f"{name}: {reason}" for name, reason in reasons.items() if reason]:
        raise ValueError(
            f"{len(refused)} of {len(trials)} trials can never run here, so nothing was started. "
            f"The cluster has at most {cluster.describe()}.\n  "
            + "\n  ".join(refused)
            + "\nGive them fewer workers or readers, or another cluster."
        )


def find_cluster() -> Cluster:
    """What the cluster that this process has joined can have at most."""
    grows = _reported() or _of_config(_autoscaler_config())
    if grows is None:
        return alive_cluster()
    head = [_static(node) for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
    return Cluster(
        groups=(*head, *grows.groups), most_nodes=grows.most_nodes + len(head), grows=True
    )


def alive_cluster() -> Cluster:
    """The nodes that are there now."""
    return Cluster(groups=tuple(_static(node) for node in ray.nodes() if node["Alive"]))


def _static(node: dict[str, Any]) -> NodeGroup:
    return NodeGroup(name=node["NodeManagerAddress"], resources=_counted(node["Resources"]), most=1)


def _counted(resources: Amounts) -> dict[str, float]:
    return {
        name: float(amount)
        for name, amount in resources.items()
        if not name.startswith(_NOT_COUNTED) and amount
    }


def _reported() -> Cluster | None:
    """The node groups that an autoscaler has reported to the cluster; Ray's own does not (2.60)."""
    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    groups = [
        NodeGroup(
            name=group.name,
            resources=_counted(group.resources),
            most=_UNLIMITED if group.max_count < 0 else group.max_count,
        )
        for group in config.node_group_configs
        if group.max_count
    ]
    return Cluster(groups=tuple(groups))


def _of_config(config: dict[str, Any] | None) -> Cluster | None:
    """The worker groups of a cluster's configuration, as `ray up` and KubeRay have it."""
    if config is None:
        return None
    most = int(config.get("max_workers", _UNLIMITED))
    groups = [
        NodeGroup(
            name=name,
            resources=_counted(kind.get("resources", {})),
            most=int(kind.get("max_workers", most)),
        )
        for name, kind in config["available_node_types"].items()
        if name != config.get("head_node_type") and kind.get("max_workers", most)
    ]
    return Cluster(groups=tuple(groups), most_nodes=most)


def _autoscaler_config() -> dict[str, Any] | None:
    """The configuration that this cluster's autoscaler works by; None if there is none.

    Drivers run on the head, so the autoscaler is a process beside this one and names its file; in
    Kubernetes it is in a container beside this one and asks for the RayCluster, as is done here.
    """
    ours = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        paths = [word for word in words if word.startswith("--autoscaling-config=")]
        if ours in words and paths:
            path = Path(paths[0].partition("=")[2]).expanduser()
            return dict(yaml.safe_load(path.read_text()))
    cluster = os.environ.get("RAY_CLUSTER_NAME")
    if cluster and (_KUBERNETES / "namespace").exists():
        from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

        # Without the right to read the RayCluster the nodes that are there are all that is known.
        with contextlib.suppress(OSError):  # as requests' errors are
            namespace = (_KUBERNETES / "namespace").read_text().strip()
            return dict(AutoscalingConfigProducer(cluster, namespace)())
    return None


def _workers(trial: Trial, cluster: Cluster) -> int:
    """Workers that a trial can have: fewer than it asks for only where it is elastic."""
    place = trial.placement
    for workers in range(place.workers, (place.min_workers or place.workers) - 1, -1):
        if _unplaced(trial_bundles(trial) + worker_bundles(trial, workers), cluster) is None:
            return workers
    return place.min_workers or place.workers


def _lack(trial: Trial, cluster: Cluster) -> str | None:
    """Why no nodes that there can be hold a trial; None if some do."""
    own, group = trial_bundles(trial), worker_bundles(trial, _workers(trial, cluster))
    lacking = _unplaced(own + group, cluster)
    if lacking is None:
        return None
    capacity, needs = cluster.capacity, total(own + group)
    resource = trial.placement.readers.resource
    if resource is not None and resource not in capacity:
        return f"its readers need nodes that offer the resource {resource!r}, and none does"
    if "GPU" in needs and "GPU" not in capacity:
        return f"it needs {needs['GPU']:g} GPUs, and no node has any"
    if not any(fits(lacking, one.resources) for one in cluster.groups):
        return f"one of its processes needs {_words(lacking)}, more than any node has"
    if _unplaced([*own[:1], *group], cluster) is None:
        return (
            f"it needs {_words(needs)}: its workers would take what there is, and leave no CPU to "
            "the readers of their crops"
        )
    return f"it needs {_words(needs)} at once"


def _unplaced(bundles: Sequence[Amounts], cluster: Cluster) -> Amounts | None:
    """The first bundle that finds no room when all are put onto nodes, the largest first."""
    opened: list[dict[str, float]] = []
    left = {number: group.most for number, group in enumerate(cluster.groups)}
    order = sorted(
        bundles, key=lambda one: (one.get("GPU", 0.0), len(one), one.get("CPU", 0.0)), reverse=True
    )
    for bundle in order:
        room = next((node for node in opened if fits(bundle, node)), None)
        if room is None:
            fitting = [n for n in left if left[n] and fits(bundle, cluster.groups[n].resources)]
            if not fitting or len(opened) >= cluster.most_nodes:
                return bundle
            # The plainest node that will do: GPUs are for those that need them.
            kind = min(fitting, key=lambda n: tuple(_size(cluster.groups[n].resources)))
            left[kind] -= 1
            room = dict(cluster.groups[kind].resources)
            opened.append(room)
        for name, amount in bundle.items():
            room[name] -= amount
    return None


def _size(resources: Amounts) -> tuple[float, int, float]:
    return resources.get("GPU", 0.0), len(resources), -resources.get("CPU", 0.0)


def _words(needs: Amounts) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in sorted(needs.items()))
