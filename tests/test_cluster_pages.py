"""Every command in the pages of cluster/ exists, with its options, and so does every file."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "cluster").glob("*.md"))
# Programs that are not ours to check; their arguments are looked at for files of this repository.
FOREIGN = {
    *("aws", "gcloud", "kubectl", "helm", "docker", "sbatch", "squeue", "scancel", "sacct", "ssh"),
    *("chmod", "cp", "printf", "umask"),
}


def commands(text):
    """Commands of a page's indented blocks, lines that end in a backslash put together."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("    ") and line.strip():
            yield from line.strip().split(" && ")


def tree_of(program):
    """The command tree of a program that is a click application."""
    if program == "ray":
        from ray.scripts.scripts import cli
    elif program == "mlflow":
        from mlflow.cli import cli
    else:
        import typer

        from phenoscale.cli import app

        return typer.main.get_command(app)
    return cli


def check_click(words):
    """Raises AssertionError unless verbs and options are those of the program."""
    command = tree_of(words[0])
    rest = words[1:]
    while hasattr(command, "commands"):  # typer's groups are not click's
        assert rest and rest[0] in command.commands, f"{words[0]} has no {rest[:1]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    own = rest[: rest.index("--")] if "--" in rest else rest
    for word in own:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert option in known, f"{shlex.join(words)}: no option {option}"


def check_python(words):
    """Raises AssertionError unless the module or script is there, with its options."""
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
        if words[2].startswith("experiments."):
            check_experiment(words[2], words[3:])
    else:
        assert (ROOT / words[1]).exists(), f"no file {words[1]}"


def check_experiment(module, words):
    import typer

    application = typer.Typer()
    application.command()(importlib.import_module(module).main)
    known = {opt for p in typer.main.get_command(application).params for opt in p.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{module} has no {word}"


def check_command(line):
    """Raises AssertionError, naming what is not there, unless every part of a command exists."""
    words = shlex.split(line, comments=True)
    if words[0] == "export":
        return
    if words[0] in ("ray", "mlflow", "phenoscale"):
        check_click(words)
    elif words[0] == "python":
        check_python(words)
    else:
        assert words[0] in FOREIGN, f"unknown program {words[0]}"
    if "--" in words:
        check_command(shlex.join(words[words.index("--") + 1 :]))
    for word in words:
        named = re.sub(r"^(file://)?", "", word)
        if named.startswith("cluster/"):
            assert (ROOT / named).exists(), f"no file {named}"
        if word == "cluster/slurm.sbatch":
            check_experiment(words[words.index(word) + 1], words[words.index(word) + 2 :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists(page):
    found = list(commands(page.read_text()))
    assert found
    for line in found:
        check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "ray upp x.yaml",
        "ray start --hed",
        "ray job submit --adress x -- python -m experiments.quickstart",
        "python -m experiments.quickstart --sed 1",
        "python cluster/missing.py",
        "kubectl apply -f cluster/missing.yaml",
        "frobnicate",
        "phenoscale frobnicate",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises(AssertionError):
        check_command(line)


def test_every_file_named_is_there_and_every_file_named_somewhere():
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`([A-Za-z_]+\.(?:py|yaml|json|sbatch|dockerignore))`", text))
    files = {path.name for path in (ROOT / "cluster").iterdir() if path.is_file()}
    assert named <= files
    assert files - {page.name for page in PAGES} <= named | {"Dockerfile"}
    assert {page.name for page in PAGES} - {"README.md"} <= set(
        re.findall(r"\]\((\w+\.md)\)", text)
    )
