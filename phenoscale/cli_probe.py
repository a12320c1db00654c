"""The verb `phenoscale probe`: what labels and features can be read off embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phenoscale.terminal import clear_errors, table_console

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def probe(
    embeddings: Annotated[
        Path, typer.Argument(help="What phenoscale embed writes, or a table of profiles.")
    ],
    label: Annotated[str, typer.Option(help="Column of the classes, such as perturbation.")],
    held_out: Annotated[
        list[str],
        typer.Option(
            help="Experimental batch, or experimental_batch/plate, that nothing is fitted on; give "
            "it again for each."
        ),
    ],
    group: Annotated[
        str, typer.Option(help="What shares nuisance: plate or experimental_batch.")
    ] = "plate",
    readout: Annotated[
        list[str] | None, typer.Option(help="Those to compare; all that the table has.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Profiles of the same wells: ridge regression onto their features."),
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Rows that vote.")] = 5,
    rounds: Annotated[int, typer.Option(help="Bootstrap samples of each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Probe every read-out; the best is chosen on training groups and tested on held-out ones."""
    with clear_errors():
        from phenoscale.maps.files.tables import read_embeddings
        from phenoscale.maps.probe_card import Question, features_of, probe_card
        from phenoscale.results import write_json

        readouts, metadata = _readouts(embeddings, readout)
        profiles = None
        if features is not None:
            table = read_embeddings(features, drop_unusable=True)
            numbers = dict(zip(table.features, table.vectors.T, strict=True))
            joined = table.metadata.join(_frame(numbers))
            profiles = features_of(joined, metadata, table.features)
        question = Question(
            label=label,
            held_out=tuple(held_out),
            group=group,
            neighbours=neighbours,
            rounds=rounds,
            seed=seed,
        )
        found = probe_card(readouts, metadata, question, profiles)
        if out is not None:
            write_json(out, found)
        _print(found)


def _readouts(path: Path, wanted: list[str] | None) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Every read-out of a table that is asked for, and the rows' metadata."""
    from phenoscale.maps.files.tables import read_embeddings, readout_names

    names: list[str | None] = list(wanted or readout_names(path)) or [None]
    tables = [read_embeddings(path, name) for name in names]
    return {table.readout: table.vectors for table in tables}, tables[0].metadata


def _frame(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    console = table_console()
    table = Table(
        title=f"{found['label']}: {found['num_classes']} classes, {found['num_train']:,} rows to "
        f"fit on, {found['num_test']:,} to test; balanced accuracy, chance {found['chance']:.3g}",
        title_justify="left",
    )
    for name in ("read-out", "chosen", "cross-validated", "linear, held out", "nearest, held out"):
        table.add_column(name)
    for name, one in found["readouts"].items():
        table.add_row(
            name,
            "yes" if name == found["chosen"] else "",
            f"{one['cross_validated']:.3f}",
            *(
                f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"
                for x in (one["linear"], one["nearest"])
            ),
        )
    console.print(table)
    for reason, count in found["left_out"].items():
        console.print(f"left out: {count:,} rows {reason}", style="dim")
    if "feature_groups" in found:
        table = Table(title=f"ridge regression from {found['chosen']}", title_justify="left")
        for name in ("features", "number", "mean R2", "below 0"):
            table.add_column(name)
        for one in found["feature_groups"]:
            table.add_row(
                one["feature_group"],
                str(one["num_features"]),
                f"{one['r2']:.3f} [{one['r2_low']:.3f}, {one['r2_high']:.3f}]",
                str(one["num_below_zero"]),
            )
        console.print(table)
        if found["constant_features"]:
            console.print(f"constant: {', '.join(found['constant_features'])}", style="dim")
