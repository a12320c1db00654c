"""The lines of a scorecard: each score of one embedding under one alignment, or why it has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from phenoscale.maps.aggregate import WELL_KEY, aggregate, genes_from_wells
from phenoscale.maps.consistency import (
    replicate_consistency,
    signal_consistency,
    signal_magnitude,
    significant_share,
)
from phenoscale.maps.gene_pairs import Similarity
from phenoscale.maps.interval import Interval
from phenoscale.maps.nuisance import TARGETS, predict_nuisance
from phenoscale.maps.position import position_null
from phenoscale.maps.proximity import correct_proximity_bias, proximity_bias
from phenoscale.maps.ranking import Draws, Retrieval
from phenoscale.maps.recall import TAILS, recall_by_database, restrict
from phenoscale.maps.retrieval import (
    gene_compound,
    phenotypic_activity,
    replicate_retrieval,
    shared_target,
    sister_guides,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is scored, and how."""

    alignments: tuple[str, ...] = ("pca_cs", "tvn")
    """Names in `score.ALIGNMENTS`."""
    tails: tuple[tuple[float, float], ...] = (TAILS,)
    """Of relationship recall."""
    genes: Collection[str] | None = None
    """The map is restricted to these; None for all."""
    arms: pd.DataFrame | None = None
    """Chromosome arm of each gene (`proximity.load_arms`): the map is corrected by it."""
    null_perturbations: tuple[str, ...] | None = None
    """Perturbations without effect, such as guides of unexpressed genes, that signal is held
    against; None for draws of negative controls."""
    nuisance_columns: tuple[str, ...] = ()
    """Columns of numbers that are scored as if they were embeddings, such as a cell count."""
    rounds: int = 1000
    """Bootstrap samples of every interval."""
    seed: int = 0
    """Of everything that is drawn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One score."""

    embedding: str
    """Whose score: the embedding in question, or one that stands beside it."""
    alignment: str
    """Under which alignment."""
    score: str
    """What was measured: recall_0.05_0.95, mean_average_precision, ...."""
    of: str
    """On what: a database, a retrieval task, a nuisance."""
    value: float | None
    """The score; None where the data have none, and `note` says why."""
    low: float | None = None
    """Lower end of its 95% interval, where it has one."""
    high: float | None = None
    """Upper end."""
    chance: float | None = None
    """What an embedding without signal has, where that is known."""
    count: int | None = None
    """How many things it is taken over."""
    counted: str = ""
    """What they are."""
    note: str = ""
    """What else must be known."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What an embedding is scored as."""

    embedding: str
    """Its name."""
    alignment: str
    """The alignment that its wells went through."""
    options: Options
    """What is scored, and how."""

    def line(self, score: str, of: str, value: Interval | float | None, **more: Any) -> Line:
        """One line; `more` are its other fields."""
        if isinstance(value, Interval):
            more |= {"low": value.low, "high": value.high}
            value = value.value
        return Line(
            embedding=self.embedding,
            alignment=self.alignment,
            score=score,
            of=of,
            value=value,
            **more,
        )

    def recalls(
        self,
        aligned: np.ndarray,
        table: pd.DataFrame,
        databases: Mapping[str, pd.DataFrame],
        left_out: Mapping[str, int],
        similarity: Similarity = "cosine",
    ) -> Iterator[Line]:
        """Relationship recall of the map of genes, from wells."""
        if databases:
            vectors, names, _ = genes_from_wells(aligned, table)
            told = [f"{n} {what.replace('_', ' ')}" for what, n in left_out.items() if n]
            yield from self.map_recalls(vectors, names, databases, told, similarity)

    def map_recalls(
        self,
        vectors: np.ndarray,
        names: list[str],
        databases: Mapping[str, pd.DataFrame],
        told: list[str],
        similarity: Similarity = "cosine",
    ) -> Iterator[Line]:
        """Relationship recall of a map; `told` are notes on how it came about."""
        if self.options.arms is not None and similarity == "cosine":
            corrected = correct_proximity_bias(vectors, names, self.options.arms)
            for when, one in (("before", vectors), ("after", corrected.vectors)):
                # The correction centres the unexpressed genes themselves, so they do not count.
                expressed = self.options.arms[self.options.arms["expressed"]]
                bias = proximity_bias(one, names, expressed)
                yield self.line(
                    "proximity_bias", f"chromosome arms, {when} correction", bias.probability,
                    chance=0.5, count=bias.num_within, counted="pairs of one arm",
                )  # fmt: skip
            vectors = corrected.vectors
            told = [*told, "corrected for proximity"]
        if self.options.genes is not None:
            vectors, names = restrict(vectors, names, self.options.genes)
            told = [*told, f"{len(names)} genes kept"]
        recalled = recall_by_database(
            vectors, names, databases, tails=self.options.tails, rounds=self.options.rounds,
            seed=self.options.seed, similarity=similarity,
        )  # fmt: skip
        for database, found in recalled.items():
            held = ["null held fixed"] if found.null == "fixed" else []
            for score, interval in found.recall.items():
                yield self.line(
                    score, database, interval, chance=found.chance[score], count=found.num_pairs,
                    counted="known pairs", note=", ".join(told + held),
                )  # fmt: skip

    def retrievals(self, aligned: np.ndarray, table: pd.DataFrame) -> Iterator[Line]:
        """Mean average precision and fraction retrieved, of the tasks that the table has."""
        draws = Draws(rounds=self.options.rounds, seed=self.options.seed)
        tasks: dict[str, Callable[[], Retrieval]] = {
            "phenotypic_activity": lambda: phenotypic_activity(aligned, table, draws=draws),
            "replicate_retrieval": lambda: replicate_retrieval(aligned, table, draws=draws),
        }
        if "guide" in table:
            tasks["sister_guides"] = lambda: sister_guides(
                *aggregate(aligned, table, ["gene", "guide", "negative_control"]), draws=draws
            )
        if "target" in table:
            by = ["perturbation", "target", "negative_control"]
            tasks["shared_target"] = lambda: shared_target(
                *aggregate(aligned, table, by), draws=draws
            )
            if table["gene"].notna().any():
                tasks["gene_compound"] = lambda: gene_compound(
                    *aggregate(aligned, table, [*by, "gene"]), draws=draws
                )
        for task, run in tasks.items():
            try:
                found = run()
            except ValueError as error:
                yield self.line("mean_average_precision", task, None, note=str(error))
                continue
            counted = {"count": found.num_perturbations, "counted": "perturbations"}
            precision = found.mean_average_precision
            yield self.line(
                "mean_average_precision", task, precision, chance=found.chance, **counted
            )
            yield self.line("fraction_retrieved", task, found.fraction_retrieved, **counted)

    def signals(self, aligned: np.ndarray, table: pd.DataFrame) -> Iterator[Line]:
        """Perturbation signal against controls, and replicates against random pairs."""
        control = table["negative_control"].to_numpy(dtype=bool)
        labels = table["perturbation"].to_numpy()
        seed = self.options.seed
        for of, measure in (
            ("signal_consistency", signal_consistency),
            ("signal_magnitude", signal_magnitude),
        ):
            try:
                signal = measure(
                    aligned,
                    labels,
                    null_perturbations=self.options.null_perturbations,
                    controls=control,
                    seed=seed,
                )
                share = significant_share(signal.table["p_value_plus_one"])
            except ValueError as error:
                yield self.line("significant_share", of, None, note=str(error))
                continue
            few = share.num_missing
            yield self.line(
                "significant_share", of, share.share, chance=0.0, count=share.num_tested,
                counted="perturbations", note=f"{few} without enough replicates" if few else "",
            )  # fmt: skip
        for group in ("experimental_batch", "plate"):
            key = table[list(WELL_KEY[: 1 + (group == "plate")])].agg("/".join, axis=1).to_numpy()
            try:
                pairs = replicate_consistency(
                    aligned[~control], labels[~control], key[~control], seed=seed
                )
            except ValueError as error:
                yield self.line("ks_statistic", f"replicates across {group}", None, note=str(error))
                continue
            counted = {"count": pairs.num_same_pairs, "counted": "pairs"}
            of = f"replicates across {group}"
            yield self.line("ks_statistic", of, pairs.ks_statistic, **counted)
            yield self.line("cvm_statistic", of, pairs.cvm_statistic, **counted)

    def nuisances(self, aligned: np.ndarray, table: pd.DataFrame) -> Iterator[Line]:
        """What negative controls give away about plate, experimental batch and position."""
        options = self.options
        try:
            report = predict_nuisance(aligned, table, rounds=options.rounds, seed=options.seed)
            missing = report.missing
            for one in report.predictions:
                yield self.line(
                    "nuisance_accuracy", one.target, one.accuracy, chance=one.chance,
                    count=one.num_wells, counted="control wells",
                )  # fmt: skip
        except ValueError as error:
            missing = dict.fromkeys(TARGETS, str(error))
        for target, reason in missing.items():
            yield self.line("nuisance_accuracy", target, None, note=reason)
        try:
            null = position_null(aligned, table, seed=options.seed)
        except ValueError as error:
            yield self.line("position_share", "same position", None, note=str(error))
            return
        yield self.line(
            "position_share", "same position", null.share, chance=0.05,
            count=len(null.table), counted="positions of controls",
        )  # fmt: skip
