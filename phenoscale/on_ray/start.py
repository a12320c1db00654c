"""Starting Ray, or joining a cluster, with the settings that a study needs."""

from __future__ import annotations

import logging
import os

import psutil
import ray

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # 2 s by default, paid at each Train run's end
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # a report that not all workers make is an error
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows and MLflow take their place
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output engine is the one that verbose=0 silences
}
_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor more per Train run; no spot nodes here
}
_OBJECT_STORE_BYTES = 2**31


def stop_ray() -> None:
    """Leaves the cluster, and ends it where `start_ray` began it."""
    ray.shutdown()


def start_ray(address: str | None = None) -> int:
    """Starts a local Ray, or joins the cluster at `address`, and returns how many workers fit.

    A worker holds one of Ray's CPUs and its reader another (Ray shares what training leaves among
    the streams in whole CPUs, and a stream without one waits for ever). So half of a cluster's CPUs
    train, and a local Ray counts each core twice: a reader needs a fifth of a core, not one of its
    own.

    A local Ray listens on this machine for its dashboard alone, which is off, and asks every client
    for its token. Inside a submitted job the address comes from the environment.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    for name, value in (_ENVIRONMENT if address else _ENVIRONMENT | _LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if address:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            "local",
            num_cpus=2 * (psutil.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    return max(1, int(ray.cluster_resources()["CPU"]) // 2)
