"""A Ray cluster of this machine alone, whose nodes an autoscaler starts and ends.

The nodes are processes here, started by Ray's own autoscaler (v2) through its provider for tests.
Everything runs under a token of its own, in a folder of its own, and is gone at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from phenoscale.on_ray.start import HEAD_RESOURCE

HEAD_ID = "f" * 51 + "00000"  # as Ray's provider for tests counts its nodes
NODE_CPUS = 2  # room for one small trial: a worker and its reader
STORE_BYTES = 2**30
IDLE_S = 6.0  # without work until a node goes


class LocalCluster:
    """A head and its autoscaler; the nodes come and go with the work."""

    def __init__(self, folder: Path, nodes: int) -> None:
        """Starts the head, which offers no CPU.

        Args:
            folder: for all that Ray writes; a short path, since sockets lie in it.
            nodes: most nodes beside the head.
        """
        port = _free_port()
        self.address, self._folder = f"{_own_ip()}:{port}", str(folder)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {"RAY_AUTH_TOKEN_PATH": str(token)}
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(_autoscaling(self.address, nodes)))
        head = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}"]
        head += [f"--ray-client-server-port={_free_port()}", f"--dashboard-port={_free_port()}"]
        head += ["--dashboard-host=127.0.0.1", "--disable-usage-stats", f"--temp-dir={folder}/ray"]
        head += ["--num-cpus=0", f"--object-store-memory={STORE_BYTES}"]
        head += [f"--resources={json.dumps({HEAD_RESOURCE: 1})}", f"--autoscaling-config={config}"]
        head += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        subprocess.run(
            head,
            env={**os.environ, **self.environment, **_head_environment()},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "start.err").open("w"),
        )

    def nodes(self) -> list[psutil.Process]:
        """The raylets of the nodes that are alive, the head's among them."""
        return self._processes("/raylet/raylet")

    def kill_node_in_training(self) -> bool:
        """Kills one node with all its processes while a trial's own process runs on it."""
        for raylet in self.nodes():
            family = _children(raylet)
            if any(_name(p).startswith("ray::ImplicitFunc") for p in family):  # Tune's trainable
                for process in (raylet, *family):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                return True
        return False

    def stop(self) -> None:
        """Ends every process that belongs to this cluster, and no other."""
        ours = self._processes()
        _kill(ours + [child for p in ours for child in _children(p)])

    def _processes(self, program: str = "") -> list[psutil.Process]:
        """Whoever was started with this cluster's address or folder; workers are their children."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]  # none of one that has ended
            ours = any(self.address in word or self._folder in word for word in words)
            if ours and program in words[0] and process.pid != os.getpid():
                found.append(process)
        return found


def _autoscaling(address: str, nodes: int) -> dict[str, Any]:
    """The configuration of Ray's autoscaler with its provider for tests.

    As `external`, since the wheel lacks a file that the provider's own name asks for (ray 2.60).
    """
    node = {"CPU": NODE_CPUS, "object_store_memory": STORE_BYTES}
    none: dict[str, Any] = {"resources": {}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    lists = ["initialization", "setup", "head_setup", "worker_setup", "head_start_ray"]
    lists += ["worker_start_ray"]
    return {
        "cluster_name": "local",
        "max_workers": nodes,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "available_node_types": {
            "node": none | {"resources": node, "max_workers": nodes},
            "ray.head.default": none | {"resources": {"CPU": 0, HEAD_RESOURCE: 1}},
        },
        **{f"{name}_commands": [] for name in lists},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def _head_environment() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",  # drivers set it themselves, `token.py`
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }


@contextlib.contextmanager
def local_cluster(nodes: int) -> Iterator[LocalCluster]:
    """A cluster of this machine, for the time of the block; Ray's settings are the process's."""
    folder = Path(tempfile.mkdtemp(prefix="grow"))
    try:
        cluster = LocalCluster(folder, nodes)
        before = {name: os.environ.get(name) for name in cluster.environment}
        os.environ.update(cluster.environment)
        try:
            yield cluster
        finally:
            cluster.stop()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_ip() -> str:
    """The address by which Ray knows this machine, whatever its head is told; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        try:
            out.connect(("192.0.2.1", 80))
        except OSError:  # no network at all
            return "127.0.0.1"
        return str(out.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
