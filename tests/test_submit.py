"""A study as a job: a real head with a token, real jobs, and the command as a person runs it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from ray.job_submission import JobDetails

from phenoscale.on_ray.job import IN_JOB, check_lasting, check_options, command_of, module_of
from phenoscale.on_ray.submit import NOT_STARTED, STOPPED, _ended
from phenoscale.on_ray.working_dir import check_packed, packed_files
from tests.head import BIN, Head, plain_environment, running_head

TELL = """
import json, os, sys, time
from pathlib import Path
from phenoscale.on_ray.job import check_lasting
files = sorted(str(p) for p in Path().rglob("*") if p.is_file() and "__pycache__" not in str(p))
lasting = []
for place in ("runs", "/shared/runs"):
    try:
        check_lasting(place)
        lasting.append(place)
    except ValueError:
        continue
print("TOLD", json.dumps([sys.argv[1:], files, sorted(os.environ), sys.stdout.isatty(), lasting]))
"""
LINES = """
import sys, time
for line in range(int(sys.argv[1])):
    print("line", line)
    time.sleep(1)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory, and in it what must not go to a cluster."""
    folder = tmp_path_factory.mktemp("code")
    for name, text in {
        "tell.py": TELL,
        "lines.py": LINES,
        ".rayignore": "data/\n",
        ".gitignore": "*.secret\n",
        "data/screen.bin": "x",
        "key.secret": "x",
        "runs/kept.txt": "x",
        ".venv/lib.py": "x",
        ".git/config": "x",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory):
    """On a machine where nobody ran Ray before, by the documented commands."""
    home = tmp_path_factory.mktemp("home")
    tokens = {"RAY_AUTH_MODE": "token"}
    subprocess.run(
        [str(BIN / "ray"), "get-auth-token", "--generate"],
        env=plain_environment(home) | tokens,
        capture_output=True,
        check=True,
    )
    with running_head(home, tokens) as running:
        yield running


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def refused(process: subprocess.Popen) -> str:
    """The one line of a command that sent nothing."""
    code, out, err = ended(process)
    (line,) = err.splitlines()
    assert (code, out) == (2, "") and line.startswith("phenoscale: ")
    return line


class BreakingProxy:
    """Passes bytes on to a port, and breaks every stream of a log after two seconds."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.broken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            here, _ = self._door.accept()
            there = socket.create_connection(("127.0.0.1", self._to))
            if b"/logs/tail" in here.recv(4096, socket.MSG_PEEK):
                threading.Timer(2, self._break, (here, there)).start()
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        other.close()

    def _break(self, *ends: socket.socket) -> None:
        for one in ends:
            try:
                one.shutdown(socket.SHUT_RDWR)
                self.broken += 1
            except OSError:
                continue


def test_a_job_ends_with_its_code_and_nothing_is_lost_when_the_stream_breaks(
    head: Head, code: Path
):
    proxy = BreakingProxy(head.ports["dashboard-port"])
    following = head.submit(
        "lines", "--working-dir", code, "--", 8, address=f"http://127.0.0.1:{proxy.port}"
    )
    status, out, err = ended(following)
    assert [x for x in out.splitlines() if x.startswith("line")] == [f"line {n}" for n in range(8)]
    assert status == 7 and "job lines failed with exit code 7" in err
    assert proxy.broken > 0


def test_a_job_is_left_found_refused_twice_and_stopped(head: Head, code: Path):
    words = ("lines", "--working-dir", code, "--name", "long")
    first = head.submit(*words, "--", 100)
    while (line := first.stdout.readline()) != "line 1\n":
        assert line
    first.send_signal(signal.SIGINT)
    status, _, err = ended(first)
    assert status == 130
    assert f"phenoscale submit --attach long --address {head.jobs}" in err

    again = head.submit("--attach", "long")
    assert "a job long is running" in refused(head.submit(*words, "--", 1))
    stop = next(line for line in err.splitlines() if line.split()[:1] == ["stop"])
    subprocess.run(stop.partition("stop")[2], shell=True, env=head.environment, check=True)
    status, out, err = ended(again)
    assert "line 0\nline 1\n" in out
    assert status == STOPPED and "job long was stopped" in err
    status, out, _ = ended(head.submit(*words, "--no-follow", "--", 1))
    assert status == 0 and out.startswith("job long-2 is submitted\n")


def test_what_reaches_a_job(head: Head, code: Path):
    odd = ["two words", "$HOME; exit 3", "it's"]
    words = ("tell", "--working-dir", code, "--name", "told")
    status, out, _ = ended(head.submit(*words, "--", *odd, CLIENTS_OWN="x"))
    assert status == 0
    told = next(line for line in out.splitlines() if line.startswith("TOLD"))
    arguments, files, environment, terminal, lasting = json.loads(told.removeprefix("TOLD"))
    assert arguments == odd
    assert files == sorted(str(path.relative_to(code)) for path in packed_files(code))
    assert "runs/kept.txt" in files and not {"data/screen.bin", "key.secret"} & set(files)
    assert "CLIENTS_OWN" not in environment and not terminal
    assert lasting == ["/shared/runs"]


def test_refusals_before_anything_is_sent(head: Head, code: Path, tmp_path: Path):
    words = ("tell", "--working-dir", code)
    other = "from phenoscale.on_ray import submit as s; s.HEAD_RESOURCE = 'other'; "
    asked = {
        "no job server answers": head.submit(*words, address="http://127.0.0.1:1"),
        "a job server is http://HOST:8265": head.submit(*words, address="127.0.0.1:8265"),
        "there is no token for it": head.submit(*words, HOME=str(tmp_path)),
        "refuses this token": head.submit(*words, RAY_AUTH_TOKEN="0" * 64),
        "offers other, where the drivers": head.submit(*words, before=other),
        "give either an experiment": head.submit(),
    }
    for says, process in asked.items():
        assert says in refused(process)
    status, _, err = ended(head.submit("--attach", "nothing"))
    assert status == 2 and "has no such job" in err


def test_an_experiment_is_a_module_or_a_file_of_the_working_directory(code: Path, tmp_path: Path):
    root = Path(__file__).parents[1]
    assert module_of("experiments.quickstart", root) == "experiments.quickstart"
    assert module_of(str(code / "tell.py"), code) == "tell"
    assert command_of("tell", ["a b", "$x"]) == "python -m tell 'a b' '$x'"
    for experiment, says in {
        "nothing": "there are lines, tell",
        str(tmp_path / "next_runs.py"): "lies outside of the working directory",
        "next-runs": "cannot be a module of Python",
    }.items():
        with pytest.raises(ValueError, match=says):
            module_of(experiment, code)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--storage", "runs"], "--storage runs is relative"),
        (["--storage=runs"], "--storage runs is relative"),
        ([], "Give --storage as an absolute path"),
        (["--storage", "/runs", "--tracking-uri", "sqlite:///m.db"], "m.db is relative"),
        (["--storage", "/runs", "--tracking-uri=mlruns"], "mlruns is relative"),
        (["--tracking-uri", "http://me:secret@host:5000"], r"http://\*\*\*@host:5000 holds"),
        (["--storage", "s3://bucket?secret_key=secret"], "s3://bucket holds a password"),
    ],
)
def test_options_that_lose_results_or_show_a_password_are_refused(options, says):
    with pytest.raises(ValueError, match=says) as refusal:
        check_options("storage: grid.Storage", options)
    assert "secret" not in str(refusal.value).replace("secret_key", "")


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (
            "storage: grid.Storage",
            ["--storage", "s3://bucket/runs", "--tracking-uri", "http://h:1"],
        ),
        ("storage: grid.Storage", ["--storage=/r", "--tracking-uri=sqlite:////r/mlflow.db"]),
        ("storage: grid.Storage", ["--dry-run"]),
        ("study_dir: Path", ["/shared/runs/study"]),
        ("", ["anything", "relative"]),
    ],
)
def test_options_that_last_are_taken(source, options):
    check_options(source, options)


def test_every_experiment_here_is_asked_where_it_writes():
    for path in (Path(__file__).parents[1] / "experiments").glob("[!_]*.py"):
        if "typer.run(" in path.read_text():
            with pytest.raises(ValueError, match="Give --storage as an absolute path"):
                check_options(path.read_text(), ["--seed", "1"])


def test_a_study_to_go_on_with_must_last():
    with pytest.raises(ValueError, match="whose directory must be its first option"):
        check_options("study_dir: Path", ["runs/study"])


def test_a_driver_refuses_the_folder_that_ends_with_its_job(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_lasting("runs")
    monkeypatch.setenv(IN_JOB, json.dumps({"runtime_env": {}}))
    check_lasting("runs")
    monkeypatch.setenv(IN_JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}}))
    check_lasting("/shared/runs")
    check_lasting("s3://bucket/runs")
    for place in ("runs", str(tmp_path / "runs")):
        with pytest.raises(ValueError, match="Ray deletes after the job"):
            check_lasting(place)


def test_a_working_directory_that_is_too_large_says_what_is_large(tmp_path: Path):
    (tmp_path / "tell.py").write_text(TELL)
    (tmp_path / "screens").mkdir()
    with (tmp_path / "screens" / "one.bin").open("wb") as stream:
        stream.truncate(600 * 2**20)  # sparse
    with pytest.raises(ValueError, match=r"has 600 MiB.*largest: screens 600 MiB.*\.rayignore"):
        check_packed(tmp_path, tmp_path / "tell.py")
    (tmp_path / ".rayignore").write_text("screens/\n")
    check_packed(tmp_path, tmp_path / "tell.py")
    (tmp_path / ".gitignore").write_text("tell.py\n")
    with pytest.raises(ValueError, match="is left out"):
        check_packed(tmp_path, tmp_path / "tell.py")


def test_this_repository_sends_its_code_alone():
    root = Path(__file__).parents[1]
    sent = {str(path.relative_to(root)) for path in packed_files(root)}
    assert {"phenoscale/on_ray/data.py", "experiments/quickstart.py", "pyproject.toml"} <= sent
    assert not [path for path in sent if path.startswith((".git/", ".venv/", "runs/", "mlruns/"))]
    assert sum((root / path).stat().st_size for path in sent) < 20 * 2**20


@pytest.mark.parametrize(
    ("status", "code", "given", "says"),
    [
        ("SUCCEEDED", 0, 0, "succeeded"),
        ("FAILED", 3, 3, "failed with exit code 3"),
        ("FAILED", -9, 137, "exit code 137"),
        ("FAILED", None, NOT_STARTED, "RUNTIME_ENV_SETUP_FAILURE: no such package"),
        ("STOPPED", None, STOPPED, "was stopped"),
    ],
)
def test_exit_codes(status, code, given, says):
    info = JobDetails(
        type="SUBMISSION", entrypoint="python", status=status, driver_exit_code=code,
        error_type="RUNTIME_ENV_SETUP_FAILURE", message="no such\npackage",
    )  # fmt: skip
    found = _ended("one", info)
    assert found.code == given and says in found.text
