"""A secret planted beside a real study, what listens, and who is let in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest

from phenoscale.config import Crops, Objective, Optim, Trial
from phenoscale.fit import fit_here, write_trial
from phenoscale.mirror_store import ui_command
from phenoscale.on_ray.start import HEAD_RESOURCE
from phenoscale.results import read_rows
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import StudyFiles
from tests.head import BIN, Head, end, free_ports, running_head

SECRET, TOKEN = "planted-0816-4711", "5e" * 32
EVERYWHERE = {"0.0.0.0", "::"}
OPEN_TO_ALL = {
    "gcs_server",
    "raylet",
    "monitor",
    "dashboard",
    "DashboardAgent",
    "worker",
    "driver",
}
"""Kinds of Ray's processes that listen on every interface, whatever one asks for: all are named in
docs/security.md. One more, or one less, and that page has to change."""
EXPERIMENT = """
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from phenoscale.bill import ScreenSize
from phenoscale.config import Crops, Objective, Optim, Study, Trial
from phenoscale.on_ray.study import run_study
from phenoscale.study_files import StudyFiles

SIZE = ScreenSize(
    wells=108, sites_per_well=2, total_sites=288, channels=6, classes=33, site_px=64
)

def trial(lr: float) -> Trial:
    crops = Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",))
    objective = Objective(name="mae", mask_ratio=0.5)
    return Trial(
        objective=objective, backbone="nano/8", crops=crops, optim=Optim(lr=lr), seed=3
    )

def main(screen: Path, storage: Annotated[Path, typer.Option()]) -> None:
    assert os.environ["MY_SECRET"]  # else there is nothing to find
    files = StudyFiles(
        study_dir=storage / "small",
        index=screen / "index.parquet",
        relationships=(str(screen / "relationships.csv"),),
    )
    study = Study(
        name="small", question="?", trials=(trial(3e-3), trial(1e30)), bootstrap_rounds=100
    )
    raise typer.Exit(run_study(study, files, SIZE, command="none", console=Console()))

if __name__ == "__main__":
    typer.run(main)
"""
JOIN = """
import sys
import ray  # before anything is said of tokens, as the modules of a study do
from phenoscale.on_ray.start import start_ray
start_ray(sys.argv[1])
print("joined", ray.cluster_resources()["CPU"])
"""


def trial(lr: float) -> Trial:
    """As the experiment has it."""
    return Trial(
        objective=Objective(name="mae", mask_ratio=0.5),
        backbone="nano/8",
        crops=Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",)),
        optim=Optim(lr=lr),
        seed=3,
    )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory):
    """Where Ray ran before: its token lies in the home, and nobody sets RAY_AUTH_MODE."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    with running_head(home, {"MY_SECRET": SECRET}) as running:
        yield running


@pytest.fixture(scope="module")
def begun(head: Head, tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory):
    """The study, submitted as the pages say, and still running."""
    code = tmp_path_factory.mktemp("code")
    (code / "small_study.py").write_text(EXPERIMENT)
    runs = tmp_path_factory.mktemp("runs")
    command = [
        *(str(BIN / "ray"), "job", "submit", "--address", head.jobs, "--submission-id", "small"),
        *("--working-dir", str(code)),
        *("--entrypoint-resources", json.dumps({HEAD_RESOURCE: 0.001})),
        *("--", "python", "-m", "small_study", str(tiny_screen), "--storage", str(runs)),
    ]
    environment = head.environment | {"RAY_AUTH_MODE": "token", "MY_SECRET": SECRET}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process, runs / "small"
    process.kill()


@pytest.fixture(scope="module")
def studied(begun):
    """Exit code and output of `ray job submit`, and the study's directory."""
    process, folder = begun
    out, _ = process.communicate(timeout=400)
    return process.returncode, out, folder


def kind(process: psutil.Process) -> str:
    """What a process of Ray is, by its command or title."""
    command = " ".join(process.cmdline())
    for name in ("gcs_server", "raylet/raylet", "monitor.py", "dashboard.py", "client.server",
                 "DashboardAgent", "RuntimeEnvAgent", "small_study"):  # fmt: skip
        if name in command:
            plain = name.rpartition("/")[2].removesuffix(".py")
            return "driver" if plain == "small_study" else plain
    return "worker" if "ray::" in command else process.name()


def listening(head: Head) -> list[tuple[str, str, int]]:
    """Kind of process, address and port, of all that listens."""
    found = []
    for process in head.processes():
        try:
            found += [
                (kind(process), end.laddr.ip.removeprefix("::ffff:"), end.laddr.port)
                for end in process.net_connections()
                if end.status == psutil.CONN_LISTEN
            ]
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return found


def machines_address(head: Head) -> str:
    """The address of this machine that Ray chose, which is not the loopback's."""
    return next(ip for k, ip, _ in listening(head) if k == "RuntimeEnvAgent")


def http_status(url: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def grpc_status(address: str, method: str, token: str | None = None) -> str:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/ray.rpc.{method}")
        headers = [("authorization", f"Bearer {token}")] if token else None
        try:
            call(b"", timeout=20, metadata=headers)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def test_what_listens_on_every_interface_is_known(head: Head, begun):
    wide: set[str] = set()
    while "driver" not in wide:  # it comes last
        assert begun[0].poll() is None
        found = listening(head)
        wide |= {name for name, ip, _ in found if ip in EVERYWHERE}
        time.sleep(1)
    assert wide == OPEN_TO_ALL
    where = {ip for _, ip, port in found if port == head.ports["dashboard-port"]}
    assert where == {"127.0.0.1"}, "dashboard and job server"


def test_who_has_no_token_is_refused(head: Head, begun):
    """All doors but metrics and health, which docs/security.md says."""
    here, ports = machines_address(head), head.ports
    agent = f"http://{here}:{ports['dashboard-agent-listen-port']}"
    for url in (
        f"{head.jobs}/api/jobs/",
        f"{head.jobs}/api/v0/nodes",
        f"{agent}/api/job_agent/jobs/small/logs",
        f"http://{here}:{ports['runtime-env-agent-port']}/",
    ):
        assert (http_status(url), http_status(url, "0" * 64)) == (401, 403)
    assert http_status(f"{head.jobs}/api/jobs/", TOKEN) == 200
    metrics = f"http://{here}:{ports['metrics-export-port']}/metrics"
    assert http_status(metrics) == 200
    with urllib.request.urlopen(metrics) as answer:
        text = answer.read()
    assert SECRET.encode() not in text and TOKEN.encode() not in text

    doors = {
        "NodeInfoGcsService/GetAllNodeInfo": {ports["port"]},
        "RayletDriver/ClusterInfo": {ports["ray-client-server-port"]},
        "ReporterService/GetTraceback": {ports["dashboard-agent-grpc-port"]},
        "NodeManagerService/GetNodeStats": {p for k, _, p in listening(head) if k == "raylet"},
        "ObjectManagerService/Pull": {p for k, _, p in listening(head) if k == "raylet"},
    }
    for method, candidates in doors.items():
        for token in (None, "0" * 64):
            found = {grpc_status(f"{here}:{port}", method, token) for port in candidates}
            assert found - {"UNIMPLEMENTED"} == {"UNAUTHENTICATED"}, method
    assert (
        grpc_status(f"{here}:{ports['port']}", "NodeInfoGcsService/GetAllNodeInfo", TOKEN) == "OK"
    )


def test_a_driver_joins_with_the_token_alone(head: Head, begun, tmp_path: Path):
    address = f"{machines_address(head)}:{head.ports['port']}"

    def join(**environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", JOIN, address],
            env=head.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    ways = {
        "joined 4": join(),
        "there is no token for it": join(HOME=str(tmp_path)),
        "no cluster at": join(RAY_AUTH_TOKEN="0" * 64),
        "no cluster at ": join(RAY_AUTH_MODE="disabled"),
    }
    for says, process in ways.items():
        assert says in "".join(process.communicate(timeout=200))


def test_a_job_trains_as_this_process_does_and_fails_with_the_name(studied, tiny_screen, tmp_path):
    code, out, folder = studied
    assert code == 1
    good, diverging = trial(3e-3), trial(1e30)
    assert f"1 trials failed: {diverging.id}" in out
    assert [row.trial_id for row in read_rows(folder)] == [good.id]

    files = StudyFiles(study_dir=tmp_path, index=tiny_screen / "index.parquet")
    write_trial(good, files, ScreenIndex.open(files.index))
    fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
    here = fit(good, files, lambda update: None).record.curve.loss
    there = json.loads((folder / "trials" / good.id / "curve.json").read_text())["loss"]
    assert here == there


def test_the_planted_secret_and_the_token_are_nowhere(head: Head, studied):
    _, out, folder = studied
    request = urllib.request.Request(
        f"{head.jobs}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request) as answer:
        jobs = answer.read()
    assert b"small_study" in jobs
    written = [path for top in (folder, head.logs / "logs") for path in top.rglob("*")]
    files = [path for path in written if path.is_file()]
    names = {path.name for path in files}
    assert {"mlflow.db", "report.html", "row.json", "job-driver-small.log"} <= names
    texts = {str(path): path.read_bytes() for path in files}
    texts |= {"jobs": jobs, "terminal": out.encode()}
    for secret in (SECRET, TOKEN):
        assert not [name for name, text in texts.items() if secret.encode() in text]


def test_the_dashboard_of_mlflow_listens_on_the_loopback(studied):
    (port,) = free_ports(1)
    server = psutil.Popen(
        ui_command(studied[2], port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        where: set[str] = set()
        while not where:
            assert server.poll() is None
            time.sleep(0.2)
            where = {
                found.laddr.ip
                for process in [server, *server.children(recursive=True)]
                for found in process.net_connections()
                if found.status == psutil.CONN_LISTEN
            }
        assert where == {"127.0.0.1"}
    finally:
        end([*server.children(recursive=True), server])
