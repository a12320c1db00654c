"""The verbs `phenoscale map show` and `phenoscale map export`: a perturbation map in hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from phenoscale.terminal import clear_errors

if TYPE_CHECKING:
    import pandas as pd

    from phenoscale.maps.perturbation_map import PerturbationMap

map_app = typer.Typer(help="Look into a perturbation map, or take it elsewhere.")

Readout = Annotated[
    str | None,
    typer.Option(help="Which read-out, where a file has several; a trial's headline by default."),
]
Features = Annotated[
    list[str] | None, typer.Option(help="Prefix of the feature columns of a wide table.")
]


@map_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A gene or another perturbation of the map.")],
    map_path: Annotated[
        Path, typer.Option("--map", help="Map (.parquet, .h5ad, .csv), or a trial's folder.")
    ],
    readout: Readout = None,
    features: Features = None,
    top: Annotated[int, typer.Option(min=1, help="Neighbours of each kind.")] = 10,
    relationships: Annotated[
        list[Path] | None,
        typer.Option(help="CSV entity1,entity2 of known pairs; give it again for each database."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Print what is most alike and most opposed to a perturbation, by cosine similarity."""
    with clear_errors():
        from phenoscale.maps.files.map_files import read_map
        from phenoscale.maps.neighbours import known_to, neighbours
        from phenoscale.maps.relationships import load_relationships

        found = read_map(map_path, readout, features=features)
        table = neighbours(found, name, top)
        databases = {path.stem: load_relationships(path) for path in relationships or []}
        known = known_to(name, databases)
        table["known"] = [known.get(other, []) for other in table["name"]]
        if as_json:
            answer = {
                "name": name,
                "num_names": len(found.names),
                "facts": found.facts,
                "databases": list(databases),
                "num_known_in_map": len(known.keys() & set(found.names)),
                "neighbours": table.to_dict("records"),
            }
            typer.echo(json.dumps(answer, indent=1))
            return
        _print_neighbours(name, found, table, list(databases), known)


def _print_neighbours(
    name: str,
    found: PerturbationMap,
    table: pd.DataFrame,
    databases: list[str],
    known: dict[str, list[str]],
) -> None:
    from rich.console import Console
    from rich.table import Table

    from phenoscale.maps.neighbours import ALL_PAIRS

    shown = Table(title=f"{name} among {len(found.names):,}: nearest, then most opposed")
    for column in ("rank", "name", "cosine", "percentile", "tail"):
        shown.add_column(column, justify="left" if column in ("name", "tail") else "right")
    if databases:
        shown.add_column("known in")
    last = 0
    for row in table.to_dict("records"):
        if row["rank"] != last + 1:
            shown.add_section()
        last = row["rank"]
        numbers = (f"{row['similarity']:+.3f}", f"{row['percentile']:.2%}")
        cells = [f"{last:,}", row["name"], *numbers, row["tail"]]
        shown.add_row(*cells, *([", ".join(row["known"])] if databases else []))
    console = Console()
    console.print(shown)
    pairs = "all pairs of the map" if table["null"].iloc[0] == ALL_PAIRS else f"{name}'s own pairs"
    console.print(
        f"percentile: share of {pairs} with this cosine or a lower one; tail: within the lowest or "
        "highest 5% of them, as relationship recall counts",
        style="dim",
    )
    if databases:
        inside = len(known.keys() & set(found.names))
        console.print(
            f"{', '.join(databases)}: {inside} known partners of {name} in the map, "
            f"{len(known) - inside} outside it",
            style="dim",
        )


@map_app.command()
def export(
    map_path: Annotated[
        Path, typer.Argument(metavar="MAP", help="Map, or the folder of a trial that has one.")
    ],
    out: Annotated[Path, typer.Option(help="FILE.h5ad, FILE.parquet, FILE.csv or FILE.csv.gz.")],
    readout: Readout = None,
    features: Features = None,
    naming: Annotated[
        Literal["phenoscale", "pycytominer"],
        typer.Option(help="pycytominer: Metadata_ columns and a column per feature."),
    ] = "phenoscale",
) -> None:
    """Write a perturbation map as AnnData, Parquet or CSV."""
    with clear_errors():
        from phenoscale.maps.files.map_files import read_map, write_map

        found = read_map(map_path, readout, features=features)
        write_map(found, out, naming=naming)
        rows, width = found.vectors.shape
        typer.echo(f"{out}: {rows:,} perturbations, {width:,} values ({found.readout})")
        if out.suffix == ".h5ad" and found.vectors.dtype != "float32":
            typer.echo(f"values are rounded from {found.vectors.dtype} to float32", err=True)
        if found.facts and out.suffix not in (".h5ad", ".parquet"):
            facts = ", ".join(f"{key} {value}" for key, value in found.facts.items())
            typer.echo(f"a text table holds no facts; left out: {facts}", err=True)
