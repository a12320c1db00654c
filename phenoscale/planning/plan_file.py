"""The next runs of a study as an experiment file, which says what is expected and runs it."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from phenoscale.planning.plan_model import run_text
from phenoscale.results import whole_file
from phenoscale.scaling.next_runs import Candidate, NextRuns
from phenoscale.wording import interval

TEMPLATE = "next_runs.py.j2"
_WIDTH = 100  # of a line
_PARTS = ("Crops", "Objective", "Optim", "Placement", "Readers")  # of a trial, to be imported


def write_experiment(
    plan: NextRuns, path: Path, *, study_name: str, question: str, replace: bool = False
) -> Path:
    """Writes the file of a plan's chosen runs.

    Args:
        plan: with at least one chosen run.
        path: file to write, `.py`.
        study_name: name of the study.
        question: what the study asks.
        replace: whether a file that is there may go.

    Raises:
        ValueError: if nothing was chosen, or the file is there.
    """
    if not plan.chosen:
        raise ValueError("No run was chosen, so there is no experiment to write; give more hours.")
    if path.exists() and not replace:
        raise ValueError(f"{path} is there already. Give another name, or --force to replace it.")
    with whole_file(path) as part:
        part.write_text(experiment_text(plan, path.name, study_name, question))
    return path


def experiment_text(plan: NextRuns, file_name: str, study_name: str, question: str) -> str:
    """The source of that file."""
    trials = tuple(candidate.trial for candidate in plan.chosen)
    held_out = {trial.crops.held_out for trial in trials}
    constants, names = {}, {}
    if len(held_out) == 1 and held_out != {()}:
        constants["HELD_OUT"] = literal(held_out.pop(), after=len("HELD_OUT = "))
        names["held_out"] = "HELD_OUT"
    constants["NEXT"] = literal(trials, after=len("NEXT = "), names=names)
    used = [name for name in _PARTS if f"{name}(" in constants["NEXT"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    return environment.get_template(TEMPLATE).render(
        docstring=_docstring(plan, file_name, study_name, question),
        imports=", ".join([*used, "Study", "Trial"]),
        constants=constants,
    )


def literal(
    value: Any, *, indent: int = 0, after: int = 0, names: Mapping[str, str] | None = None
) -> str:
    """Python source of a frozen dataclass, a tuple or a plain value, without fields as by default.

    Args:
        value: what to write.
        indent: spaces that its lines begin with.
        after: characters that stand before it on its first line.
        names: field to the constant that stands for its value.
    """
    plain = _one_line(value, names or {})
    if indent + after + len(plain) + 1 <= _WIDTH or not _is_open(value):
        return plain
    inner = " " * (indent + 4)
    lines = []
    for name, part in _parts(value):
        key = f"{name}=" if name else ""
        text = (names or {}).get(name) or literal(
            part, indent=indent + 4, after=len(key), names=names
        )
        lines.append(f"{inner}{key}{text},\n")
    head = "" if isinstance(value, tuple) else type(value).__name__
    return f"{head}(\n{''.join(lines)}{' ' * indent})"


def _one_line(value: Any, names: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not _is_open(value):
        return repr(value)
    parts = [
        (f"{name}=" if name else "") + (names.get(name) or _one_line(part, names))
        for name, part in _parts(value)
    ]
    if isinstance(value, tuple):
        return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    return f"{type(value).__name__}({', '.join(parts)})"


def _is_open(value: Any) -> bool:
    """Whether a value has parts."""
    return isinstance(value, tuple) or dataclasses.is_dataclass(value)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Items of a tuple, without names; fields of a dataclass that are not as by default."""
    if isinstance(value, tuple):
        return [("", item) for item in value]
    fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return [(field.name, given) for field, given in fields if given != field.default]


def _docstring(plan: NextRuns, file_name: str, study_name: str, question: str) -> str:
    number = len(plan.chosen)
    spent = sum(candidate.gpu_hours for candidate in plan.chosen)
    bought = (
        "certainty of the forecast that is named below"
        if plan.by == "uncertainty"
        else "an expected improvement of the best score"
    )
    paragraphs = [
        f"The study {study_name} asks: {question} These {number} runs take {spent:.3g} of "
        f"{plan.budget_hours:.3g} {plan.hours_are}. They were chosen by {bought}, per hour; "
        f"together they remove {plan.removed:.0%} of the variance of the forecast of "
        f"{plan.target}. The best score so far is {plan.best}.",
        *plan.warnings,
    ]
    head = [
        f"Command: python {file_name} STUDY [--dry-run]",
        f"         ray job submit --working-dir . -- python {file_name} STUDY",
        "Expected (score, with the 95% interval of a new run):",
        *(_wrapped(_expected(candidate), hanging="  ") for candidate in plan.chosen),
    ]
    text = "\n\n".join(["\n".join(head), *(_wrapped(one) for one in paragraphs)])
    first = "The next runs of a study, as `phenoscale plan` chose them."
    # What would end the docstring, or be an escape in it, is written another way.
    return f"{first}\n\n{text}".replace("\\", "/").replace('"""', "'''")


def _expected(candidate: Candidate) -> str:
    seen = candidate.forecast
    return (
        f"- {run_text(candidate.trial)}, seed {candidate.seed}: "
        f"{interval(seen.value, seen.low, seen.high)}, {candidate.gpu_hours:.2g} hours"
    )


def _wrapped(text: str, hanging: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=hanging, break_on_hyphens=False)
