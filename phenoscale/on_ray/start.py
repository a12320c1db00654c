"""Starting Ray, or joining a cluster, with the settings that a study needs."""

from __future__ import annotations

import logging
import os

import psutil
import ray

from phenoscale.on_ray.data import settle_helpers
from phenoscale.on_ray.token import use_token

HEAD_RESOURCE = "phenoscale_head"
"""Custom resource of a cluster's head node: the drivers of studies run there."""
READERS_RESOURCE = "phenoscale_readers"
"""Custom resource of a cluster's CPU nodes that read and cut crops."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # 2 s by default, paid at each Train run's end
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # a report that not all workers make is an error
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows and MLflow take their place
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output engine is the one that verbose=0 silences
}
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_LOCAL_ENVIRONMENT = {
    _WATCHER: "0",  # an actor more per Train run; no spot nodes here
}
_OBJECT_STORE_BYTES = 2**31


def is_local() -> bool:
    """Whether this process, a driver's or a worker's, belongs to a Ray that `start_ray` began."""
    return os.environ.get(_WATCHER) == _LOCAL_ENVIRONMENT[_WATCHER]


def stop_ray() -> None:
    """Leaves the cluster, and ends it where `start_ray` began it."""
    ray.shutdown()


def start_ray(address: str | None = None) -> None:
    """Starts a local Ray, or joins the cluster at `address`.

    A worker holds one of Ray's CPUs and its reader another (Ray shares what training leaves among
    the streams in whole CPUs, and a stream without one waits for ever). So half of a cluster's CPUs
    train, and a local Ray counts each core twice: a reader needs a fifth of a core, not one of its
    own. It counts one more, of which the processes that drive worker groups hold some hundredths.

    Either asks every client for its token (docs/security.md). Inside a submitted job the address
    comes from the environment.

    Raises:
        ValueError: if a cluster is addressed, and there is no token for it.
        ConnectionError: if it does not answer, or not to this token.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    for name, value in (_ENVIRONMENT if address else _ENVIRONMENT | _LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if address:
        _join(address)
        settle_helpers()
    else:
        ray.init(
            "local",
            num_cpus=2 * (psutil.cpu_count() or 1) + 1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )


def _join(address: str) -> None:
    use_token()
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:  # Ray says the same of a wrong token and of no cluster
        raise ConnectionError(
            f"no cluster at {address} answers to this token. Give the address that its head was "
            "started with, such as HEAD:6379, and the token of that head."
        ) from error
