"""The results row: what one trial, or one baseline, leaves behind, and the table that fits read.

A row is written beside the trial's checkpoint as `row.json`, whole or not at all. Report, fits and
the MLflow mirror read rows and nothing else. Every column is typed and required. A value that does
not exist for a baseline (it has no loss) is null; for a trained trial a missing value is an error,
never a number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROW_FILE = "row.json"
SAMPLES_FILE = "score_samples.json"
CURVE_FILE = "curve.json"
NOT_TRAINED = "none"
BASELINES = ("untrained", "untrained_ca", "reference", "intensity", "oracle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultsRow:
    """One trial or one baseline, measured."""

    trial_id: str
    """Readable name and hash of the trial; the same in Tune, Train, MLflow and on disk."""
    objective: str
    """Label of the objective, such as wsl, mae or mae+, or the name of a baseline."""
    backbone: str
    """Name in the table of backbones; "none" for baselines without a network; of a reference, its
    name and weights."""
    data_fraction: float
    """Share of the training wells, (0, 1]; 0 for baselines, which train on none."""
    seed: int
    """Seed of initialisation, sampling and masking."""
    workers: int
    """Number of data-parallel workers."""
    launcher: str
    """in_place (inside the Tune function) or ray_train."""
    num_parameters: int
    """Parameters of the encoder; 0 without a network."""
    optimizer: str
    """adamw, lion or muon; "none" for baselines."""
    lr: float
    """Peak learning rate; 0 for baselines."""
    lr_source: str
    """Where the rate is from: tuned, transferred, paper or given; "none" for baselines."""
    precision: str
    """Of products, as trained: fp32 or bf16; "none" for baselines."""
    training_flops: float
    """Floating point operations of the whole training (`flops.py`)."""
    crops_seen: int
    """Training crops consumed, repeats included."""
    unique_sites: int
    """Distinct sites that those crops were cut from."""
    unique_crops: int
    """Crops that do not overlap, as many as those sites have room for, at most `crops_seen`: what
    repeats are counted against."""
    steps: int
    """Optimizer updates."""
    train_loss: float | None
    """Mean loss over the last tenth of the steps; null for baselines."""
    held_out_loss: float | None
    """The objective's loss on the held-out plates after the last step; null for baselines."""
    readout: str
    """The read-out that the headline score uses, fixed by the study before training."""
    metric: str
    """Name of the headline score: recall_0.05_0.95 or balanced_accuracy."""
    score: float
    """The headline score, of `readout`."""
    score_low: float
    """Lower end of the score's 95% bootstrap interval."""
    score_high: float
    """Upper end of that interval."""
    protocol: str
    """Name and version of the way of scoring; scores of two protocols are not comparable."""
    score_by_readout: dict[str, float]
    """The same score for every read-out, the headline's among them."""
    score_by_alignment: dict[str, float]
    """The headline score under each alignment, the headline's among them; empty where none is
    used."""
    score_by_database: dict[str, float]
    """The headline score for each database of relationships by itself; empty without any."""
    nuisance: dict[str, float]
    """How well negative controls tell what should not matter: balanced accuracy of plate,
    experimental_batch, row and column, as far as they can be asked, and NAME_chance of each."""
    num_genes: int
    """Genes (or classes) that the score is taken over."""
    num_relationships: int
    """Annotated pairs (or held-out sites) that the score is taken over."""
    sites_skipped: int
    """Unreadable sites that the study's tolerance allowed to skip."""
    attempts: int
    """How often training began, the first time included; 0 for baselines."""
    spikes: int
    """Steps at which the loss jumped."""
    train_s: float
    """Wall seconds in the training loop, of all attempts, waiting for data included."""
    embed_s: float
    """Wall seconds of embedding."""
    score_s: float
    """Wall seconds of alignment, aggregation and scoring."""
    overhead_s: float
    """Wall seconds that the trial held its slot beyond those three."""
    cpu_s: float
    """CPU seconds of the trial's own processes."""
    data_cpu_s: float
    """CPU seconds that data tasks spent reading and cutting."""
    data_wait_s: float
    """Wall seconds in which the training loop waited for crops (part of `train_s`)."""
    communication_s: float
    """Wall seconds in which it waited for other workers with nothing to compute (part of
    `train_s`)."""
    checkpoint_s: float
    """Wall seconds in which checkpoints held it up (part of `train_s`)."""
    utilization: float
    """Model FLOPs utilization: `training_flops` over `train_s`, as a share of the measured matmul
    peak of the trial's workers; 0 for baselines."""
    peak_memory_gib: float
    """Peak resident memory of the trial's largest process, GiB."""
    peak_gpu_memory_gib: float
    """Peak memory of its fullest GPU, GiB; 0 on CPUs."""
    index_fingerprint: str
    """Fingerprint of the screen's index."""
    code_version: str
    """Version of phenoscale, with the commit where it runs from a checkout."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"{field.name} of {self.trial_id} is {value}; a results row holds finite "
                    "numbers only. Find out why the trial has no such value: a missing score is an "
                    "error."
                )
        if not self.is_baseline and (self.train_loss is None or self.held_out_loss is None):
            raise ValueError(
                f"{self.trial_id} ({self.objective}) has train_loss={self.train_loss}, "
                f"held_out_loss={self.held_out_loss}; a trained trial must have both."
            )

    @property
    def is_baseline(self) -> bool:
        """Whether the row is a baseline, which trains nothing."""
        return self.objective in BASELINES

    def as_dict(self) -> dict[str, Any]:
        """Flat mapping in column order; the score stands under its metric's own name.

        A study that scores by recall has the columns `recall_0.05_0.95`, `recall_0.05_0.95_low` and
        `recall_0.05_0.95_high`.
        """
        row = dataclasses.asdict(self)
        columns = {f"score{end}": f"{self.metric}{end}" for end in ("", "_low", "_high")}
        return {columns.get(name, name): value for name, value in row.items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], source: str = "row") -> ResultsRow:
        """Rebuilds a row from `as_dict`; refuses missing, unknown and wrongly typed columns."""
        values = dict(row)
        metric = str(values.get("metric", ""))
        for part in ("", "_low", "_high"):
            if metric + part in values:
                values[f"score{part}"] = values.pop(metric + part)
        expected = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        if missing := sorted(expected.keys() - values.keys()):
            raise ValueError(
                f"{source} lacks the columns {missing}; was it written by another version? Go on "
                "with that version, or give another directory."
            )
        if unknown := sorted(values.keys() - expected.keys()):
            raise ValueError(
                f"{source} has the unknown columns {unknown}; known are {sorted(expected)}."
            )
        for name, kind in expected.items():
            if not _fits(values[name], kind):
                raise ValueError(f"{source}: {name} must be {kind}, got {values[name]!r}.")
        return cls(**values)

    def write(self, trial_dir: Path) -> Path:
        """Writes `row.json` into `trial_dir`, whole or not at all."""
        return write_json(trial_dir / ROW_FILE, self.as_dict())


def read_row(trial_dir: Path) -> ResultsRow:
    """Reads the row of one trial."""
    path = trial_dir / ROW_FILE
    return ResultsRow.from_dict(json.loads(path.read_text()), source=str(path))


def write_samples(trial_dir: Path, samples: Sequence[float]) -> Path:
    """Writes the score on each bootstrap sample, for comparisons in pairs.

    The samples of two trials of a study are of the same genes (or held-out groups), one by one.
    """
    return write_json(trial_dir / SAMPLES_FILE, {"score": [float(value) for value in samples]})


def read_samples(study_dir: Path, rows: Iterable[ResultsRow]) -> dict[str, list[float]]:
    """By trial id the score on each bootstrap sample, of those rows that have them."""
    found = {}
    for row in rows:
        path = study_dir / "trials" / row.trial_id / SAMPLES_FILE
        if path.exists():
            found[row.trial_id] = list(json.loads(path.read_text())["score"])
    return found


def read_rows(study_dir: Path) -> list[ResultsRow]:
    """Reads all rows of a study, trained trials first, each group by id.

    Raises:
        ValueError: if `study_dir` is no study directory.
    """
    trials = study_dir / "trials"
    if not trials.is_dir():
        raise ValueError(
            f"{study_dir} is not a study: it has no folder trials/. Give the directory that "
            "a study was written to, for example runs/quickstart-seed0."
        )
    rows = [read_row(path.parent) for path in sorted(trials.glob(f"*/{ROW_FILE}"))]
    return sorted(rows, key=lambda row: (row.is_baseline, row.trial_id))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when all is written, or vanishes.

    So readers never see half a file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    return path


def read_optional_json(path: Path, default: Any) -> Any:
    """Reads JSON, or gives `default` where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else default


def _fits(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float":
        return number
    if kind == "float | None":
        return number or value is None
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())
