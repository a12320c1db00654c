"""The verb `phenoscale score`: what embeddings, or a perturbation map, are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from phenoscale.terminal import clear_errors, table_console

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pandas as pd

ANNOTATED = "annotated"


def score(
    embeddings: Annotated[
        Path,
        typer.Argument(
            help="Embeddings or profiles of sites or wells (what phenoscale embed writes, Parquet, "
            "CSV, .h5ad), or a perturbation map."
        ),
    ],
    relationships: Annotated[
        list[str] | None,
        typer.Option(
            help="A database: CSV entity1,entity2; CORUM, HuMAP, Reactome, SIGNOR, StringDB; or "
            "public for these five. Give it again for each."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    protocol: Annotated[
        Literal["scorecard", "rxrx3-core", "cpjump1"],
        typer.Option(help="Every score there is, or exactly those of a public benchmark."),
    ] = "scorecard",
    readout: Annotated[str | None, typer.Option(help="Which, where the table has several.")] = None,
    align: Annotated[
        list[str] | None,
        typer.Option(help="pca_cs, tvn, center_scale, none; pca_cs and tvn if not given."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="OURS=THEIRS: gene=target_gene says which column holds the genes."),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="COLUMN=VALUE of the negative controls, if there is no negative_control."
        ),
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option(help="Prefix of the feature columns of a wide table.")
    ] = None,
    drop_unusable: Annotated[
        bool, typer.Option(help="Leave out features that are constant or not finite.")
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of embeddings to score beside: untrained, intensity, ...."),
    ] = None,
    nuisance: Annotated[
        list[str] | None,
        typer.Option(help="A column of numbers to score alone, such as cell_count."),
    ] = None,
    genes: Annotated[
        str | None,
        typer.Option(help="File of the genes to keep, one a line (expressed ones); or annotated."),
    ] = None,
    null_perturbations: Annotated[
        Path | None,
        typer.Option(
            help="File of perturbations without effect, one a line (of unexpressed genes), that "
            "signal is held against; draws of control wells if not given."
        ),
    ] = None,
    arms: Annotated[
        Path | None,
        typer.Option(help="CSV gene,arm,expressed: correct for proximity of CRISPR targets."),
    ] = None,
    tails: Annotated[
        list[str] | None, typer.Option(help="LOWER,UPPER share of the null; 0.05,0.95.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Bootstrap samples of each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    metadata: Annotated[
        Path | None, typer.Option(help="rxrx3-core: metadata_rxrx3_core.csv.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="rxrx3-core: CSV treatment, gene_symbol, nM_value.")
    ] = None,
) -> None:
    """Score embeddings under several alignments, beside chance and nuisance; or score a map."""
    with clear_errors():
        from phenoscale.maps.relationships import load_databases
        from phenoscale.results import write_json

        databases = load_databases(relationships or [])
        if protocol == "rxrx3-core":
            found = _rxrx3_core(embeddings, metadata, truth, databases)
        elif protocol == "cpjump1":
            wells = _read(embeddings, None, readout, column, control, features, drop_unusable)
            found = _cpjump1(*wells, rounds, seed)
        else:
            from phenoscale.maps.proximity import load_arms
            from phenoscale.maps.score_lines import Options

            options = Options(
                alignments=tuple(align or Options.alignments),
                tails=tuple(map(_tails, tails)) if tails else Options.tails,
                genes=_genes(genes, databases),
                arms=None if arms is None else load_arms(arms),
                null_perturbations=None
                if null_perturbations is None
                else tuple(sorted(_names(null_perturbations))),
                nuisance_columns=tuple(nuisance or ()),
                rounds=rounds,
                seed=seed,
            )
            paths = {"itself": embeddings} | dict(_named_path(item) for item in beside or [])
            found = _scorecard(
                paths,
                databases,
                options,
                features,
                lambda path: _read(
                    path, embeddings, readout, column, control, features, drop_unusable
                ),
            )
        if out is not None:
            write_json(out, found)
        _print(found)


def _scorecard(
    paths: dict[str, Path],
    databases: dict[str, pd.DataFrame],
    options: Any,
    features: list[str] | None,
    read: Callable[[Path], tuple[np.ndarray, pd.DataFrame]],
) -> dict[str, Any]:
    from rich.console import Console

    from phenoscale.maps.files.map_files import read_map
    from phenoscale.maps.scorecard import map_scorecard, scorecard

    if all(_is_map(path) for path in paths.values()):
        maps = {name: read_map(path, features=features) for name, path in paths.items()}
        return map_scorecard(maps, databases, options)
    with Console(stderr=True).status("reading") as status:
        tables = {name: read(path) for name, path in paths.items()}
        return scorecard(tables, databases, options, tell=status.update)


def _is_map(path: Path) -> bool:
    """Whether a path holds vectors of genes already: it names perturbations and no wells."""
    from phenoscale.maps.files.tables import column_names

    if path.is_dir() and not list(path.glob("part-*.parquet")):
        return True
    return "well" not in column_names(path)


def _read(
    path: Path,
    first: Path | None,
    readout: str | None,
    column: list[str] | None,
    control: str | None,
    features: list[str] | None,
    drop_unusable: bool,
) -> tuple[np.ndarray, pd.DataFrame]:
    """A table of sites or wells with our names; `readout` is that of the first."""
    from phenoscale.maps.files.tables import read_embeddings

    found = read_embeddings(
        path,
        readout if first in (None, path) else None,
        features=features,
        drop_unusable=drop_unusable,
    )
    for line in found.lines():
        typer.echo(f"{path.name}: {line}", err=True)
    table = found.metadata
    for item in column or []:
        ours, theirs = _pair(item, "OURS=THEIRS")
        if theirs not in table:
            raise ValueError(f"{path} has no column {theirs}; it has {', '.join(table.columns)}.")
        table[ours] = table[theirs]
    if control is not None:
        name, value = _pair(control, "COLUMN=VALUE")
        if name not in table or not (chosen := table[name].astype(str) == value).any():
            raise ValueError(f"No row of {path} has {name}={value}; which are the controls?")
        table["negative_control"] = chosen
    return found.vectors, table


def _rxrx3_core(
    embeddings: Path,
    metadata: Path | None,
    truth: Path | None,
    databases: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    from phenoscale.maps.protocols.rxrx3_core import score_rxrx3_core

    if metadata is None or truth is None or not databases:
        raise ValueError(
            "The protocol rxrx3-core needs --metadata, --truth and --relationships (public); all "
            "are published with RxRx3-core and EFAAR_benchmarking."
        )
    return score_rxrx3_core(embeddings, metadata, truth, databases)


def _cpjump1(vectors: np.ndarray, wells: pd.DataFrame, rounds: int, seed: int) -> dict[str, Any]:
    from phenoscale.maps.protocols.cpjump1 import score_cpjump1, standardised_per_plate
    from phenoscale.maps.ranking import Draws

    scaled = standardised_per_plate(vectors, wells["plate"])
    found = score_cpjump1(scaled, wells, draws=Draws(rounds=rounds, seed=seed))
    lines = found.pop("table").astype(object)
    return found | {"tasks": lines.where(lines.notna(), None).to_dict("records")}


def _genes(given: str | None, databases: dict[str, pd.DataFrame]) -> set[str] | None:
    """Genes to keep: those of a file, or those that a database knows."""
    if given is None:
        return None
    if given != ANNOTATED:
        return _names(Path(given))
    return {gene for pairs in databases.values() for side in pairs for gene in pairs[side]}


def _names(path: Path) -> set[str]:
    """Names in a file, one a line."""
    return {line.strip() for line in path.read_text().splitlines() if line.strip()}


def _named_path(item: str) -> tuple[str, Path]:
    name, path = _pair(item, "NAME=PATH")
    return name, Path(path)


def _pair(item: str, form: str) -> tuple[str, str]:
    left, sign, right = item.partition("=")
    if not (left and sign and right):
        raise ValueError(f"{item!r} is not of the form {form}.")
    return left, right


def _tails(item: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in item.split(","))
    except ValueError as error:
        raise ValueError(f"--tails is {item!r}; LOWER,UPPER is required, as 0.05,0.95.") from error
    return low, high


def _print(found: dict[str, Any]) -> None:
    """The figures as tables; whatever has none says why below."""
    from rich.table import Table

    from phenoscale.score_tables import tables_of

    console = table_console()
    for title, columns, rows, notes in tables_of(found):
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(columns):
            table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for note in notes:
            console.print(note, style="dim", highlight=False)
