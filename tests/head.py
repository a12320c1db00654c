"""A cluster's head on this machine, with a home, a token and ports of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from phenoscale.on_ray.start import HEAD_RESOURCE

BIN = Path(sys.executable).parent
_PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
# Not options: two heads on one machine would want the same, and one would go without.
_METRICS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
_SUBMIT = "import typer; from phenoscale.cli_submit import submit; typer.run(submit)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A running head."""

    folder: Path
    """Its sessions; short, since sockets lie there."""
    ports: dict[str, int]
    """By their options of `ray start`."""
    environment: dict[str, str]
    """Of a client with the token, which says nothing of how tokens are used."""

    @property
    def jobs(self) -> str:
        """Address of the job server."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    @property
    def logs(self) -> Path:
        """What Ray writes."""
        return self.folder / "session_latest"

    def processes(self) -> list[psutil.Process]:
        """All of the head's, workers and drivers among them."""
        own = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(self.folder) in " ".join(process.info["cmdline"] or [])
            or f":{self.ports['port']}" in " ".join(process.info["cmdline"] or [])
        ]
        below: set[psutil.Process] = set(own)
        for process in own:
            try:
                below.update(process.children(recursive=True))
            except psutil.NoSuchProcess:  # it has just ended
                continue
        return list(below)

    def submit(
        self, *words: object, address: str | None = None, before: str = "", **environment: str
    ) -> subprocess.Popen:
        """`phenoscale submit` with these words, started; `before` it, code of ours runs."""
        command = [sys.executable, "-c", before + _SUBMIT, "--address", address or self.jobs]
        return subprocess.Popen(
            [*command, *map(str, words)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def plain_environment(home: Path) -> dict[str, str]:
    """The environment of a person who has said nothing of Ray, whose home is `home`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
    return kept | path | {"RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running_head(home: Path, secrets: Mapping[str, str]) -> Iterator[Head]:
    """Runs a head for a block.

    Args:
        home: HOME of the head and its clients; the token lies there.
        secrets: environment of the head alone.
    """
    folder = Path(tempfile.mkdtemp(prefix="head"))
    client = plain_environment(home)
    try:
        for attempt in (0, 1):  # a port may be taken before the head comes to it
            ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
            head = Head(folder=folder, ports=ports, environment=client)
            command = [
                *(str(BIN / "ray"), "start", "--head", "--num-cpus=4", f"--temp-dir={folder}"),
                *("--dashboard-host=127.0.0.1", "--object-store-memory=200000000"),
                *("--min-worker-port=0", "--max-worker-port=0"),
                *(f"--{name}={port}" for name, port in ports.items()),
                *("--resources", json.dumps({HEAD_RESOURCE: 1})),
            ]
            metrics = dict(zip(_METRICS, map(str, free_ports(len(_METRICS))), strict=True))
            begun = subprocess.run(
                command,
                env=client | dict(secrets) | metrics,
                capture_output=True,
                text=True,
                timeout=120,
            )
            if begun.returncode == 0:
                break
            end(head.processes())
            assert attempt == 0, begun.stdout + begun.stderr
        yield head
    finally:
        end(head.processes())
        shutil.rmtree(folder, ignore_errors=True)


def end(processes: Sequence[psutil.Process]) -> None:
    """Kills them and waits."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=20)
