"""Imports point down: in fresh interpreters, and by contracts that bite."""

from __future__ import annotations

import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import phenoscale

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(phenoscale.__path__, "phenoscale.")
    if not module.name.startswith("phenoscale.on_ray")
)
PLAIN = {
    "backbones",
    "bill",
    "code_version",
    "config",
    "crops",
    "flops",
    "gpus",
    "memory",
    "rates",
    "results",
    "slot",
    "study_files",
    "zoo",
}
ARRAY_SIDE = {"screens", "maps", "compare", "report", "progress"}
IMPORT = """
import importlib, sys
blocked, modules = sys.argv[1].split(), sys.argv[2].split()
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
for name in blocked:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} could be imported")
for name in modules:
    importlib.import_module(name)
"""


def of(parts: set[str]) -> list[str]:
    """The modules in these parts of the package."""
    return [name for name in MODULES if name.split(".")[1] in parts]


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (["ray", "mlflow"], MODULES),
        (["ray", "mlflow", "torch", "timm"], of(ARRAY_SIDE)),
        (["ray", "mlflow", "torch", "timm", "pandas", "pyarrow", "psutil"], of(PLAIN)),
        (["ray", "mlflow", "torch", "timm", "pandas", "pyarrow", "scipy"], ["phenoscale.cli"]),
        (["ray", "mlflow", "torch", "timm"], ["experiments.quickstart", "experiments.real_images"]),
    ],
    ids=["package", "array_side", "plain", "cli", "experiments"],
)
def test_modules_import_without(blocked: list[str], modules: list[str]):
    assert modules
    command = [sys.executable, "-c", IMPORT, " ".join(blocked), " ".join(modules)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def lint(folder: Path) -> dict[str, str]:
    """Contracts of a copy of the tree, KEPT or BROKEN."""
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert tool is not None, "import-linter is not installed; it is among the dev dependencies"
    done = subprocess.run([tool, "--no-cache"], cwd=folder, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        for verdict in ("KEPT", "BROKEN"):
            name, said, _ = line.partition(f" {verdict}")
            if said:
                found[name] = verdict
    assert found, done.stdout + done.stderr
    assert (done.returncode == 0) == ("BROKEN" not in found.values())
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the contracts speak about."""
    for name in ("phenoscale", "experiments", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(copy: Path, file: str, line: str) -> None:
    """Adds an import to a module of the copy."""
    with (copy / file).open("a") as module:
        module.write(f"\n{line}\n")


def test_the_contracts_are_kept():
    assert set(lint(ROOT).values()) == {"KEPT"}


VIOLATIONS = {
    "Imports point down": ("phenoscale/config.py", "from phenoscale import flops"),
    "The package knows no experiment and no benchmark": (
        "phenoscale/run.py",
        "from experiments import grid",
    ),
    "Only on_ray imports ray": ("phenoscale/train.py", "import ray"),
    "Only tracking imports mlflow": (
        "phenoscale/reports/report.py",
        "def f():\n    from mlflow import client",
    ),
    "The torch side knows no screens, maps or tables": (
        "phenoscale/models/vit.py",
        "import pandas",
    ),
    "The array side, comparisons and the report know no torch": (
        "phenoscale/maps/vectors.py",
        "import torch",
    ),
    "The plain layer needs numpy alone": ("phenoscale/backbones.py", "import scipy"),
}


def test_the_contracts_bite(copy: Path):
    assert set(lint(copy)) == set(VIOLATIONS)
    for file, line in VIOLATIONS.values():
        plant(copy, file, line)
    assert lint(copy) == dict.fromkeys(VIOLATIONS, "BROKEN")


def test_one_violation_breaks_one_contract(copy: Path):
    plant(copy, "phenoscale/train.py", "import ray")
    torch_side = "The torch side knows no screens, maps or tables"
    broken = {name for name, verdict in lint(copy).items() if verdict == "BROKEN"}
    assert broken == {"Only on_ray imports ray", torch_side}


def test_a_new_module_has_to_choose_its_layer(copy: Path):
    (copy / "phenoscale" / "another.py").write_text('"""Nothing."""\n')
    assert lint(copy)["Imports point down"] == "BROKEN"
