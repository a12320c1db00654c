"""cluster/slurm.sbatch, run by bash with real Ray; Slurm's own programs start everything here."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[1] / "cluster/slurm.sbatch"

# Runs its command as a node of the job, here.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# Names the job's nodes, and notes what else it is asked for.
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then
    for _ in $(seq "$NODES"); do hostname; done
else
    echo "$*" >> "$SLURM_SUBMIT_DIR/asked"
fi
"""
EXPERIMENT = """
import os, sys, time
import ray

ray.init(sys.argv[2], log_to_driver=False, logging_level="ERROR")
mode = oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777)
print(len(ray.nodes()), ray.cluster_resources()["phenoscale_head"], mode, *sys.argv[3:], flush=True)
if "--wait" not in sys.argv:
    sys.exit(7)
open("waiting", "w").close()
try:
    time.sleep(300)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as a job of so many nodes: job(nodes, *options of the experiment)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/one.py").write_text(EXPERIMENT)
    processes = []

    def start(nodes, *options):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "NODES": str(nodes),
            "SLURM_JOB_ID": str(free_job()),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_ON_NODE": "1",
            "SLURM_SUBMIT_DIR": str(tmp_path / "shared"),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            ["bash", SCRIPT, "one", *options],
            cwd=tmp_path / "shared",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append((process, environment["SLURM_JOB_ID"]))
        return process

    yield start
    for process, _ in processes:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=150)
    assert not [path.name for path in (tmp_path / "shared").glob(".phenoscale-*")]
    for _, number in processes:
        assert not Path(f"/tmp/phenoscale-{number}").exists()
        assert not left(number)


def free_job():
    """A job's number whose ports nobody has."""
    for _ in range(100):
        number = 100_000 + secrets.randbelow(900_000)
        base = 20000 + number % 1000 * 10
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("", base))
                two.bind(("", base + 1))
            except OSError:
                continue
            return number
    raise AssertionError("no free ports")


def left(number):
    """Processes of a job that still run."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"/tmp/phenoscale-{number}" in " ".join(process.info["cmdline"] or ())
    ]


def test_the_script_is_clean():
    subprocess.run([Path(sys.executable).parent / "shellcheck", SCRIPT], check=True)
    assert SCRIPT.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.slow
def test_a_study_runs_on_all_nodes_and_its_exit_code_is_the_jobs(job):
    process = job(2, "--storage", "/shared")
    output, _ = process.communicate(timeout=300)
    assert "2 1.0 0o600 --storage /shared" in output
    assert process.returncode == 7, output


@pytest.mark.slow
def test_near_its_time_limit_the_study_is_stopped_and_the_job_queued_again(job, tmp_path):
    process = job(1, "--wait")
    deadline = time.monotonic() + 300
    while not (tmp_path / "shared/waiting").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    token = next((tmp_path / "shared").glob(".phenoscale-*/token"))
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert "interrupted" in output
    assert process.returncode == 0, output
    assert (tmp_path / "shared/asked").read_text().startswith("requeue ")
