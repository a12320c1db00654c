"""Write a simulated screen to disk: images, manifest, planted relationships and true latents.

    OUT/sites.csv            manifest, one row per site
    OUT/images/...           <experimental_batch>/<plate>/<well>_s<site>.tiff, C x H x W uint8
    OUT/complexes.csv        entity1,entity2: pairs of genes within a complex
    OUT/opposed.csv          pairs between complexes with opposite phenotypes
    OUT/relationships.csv    both
    OUT/latents.parquet      one row per well: guide strength and true latents, the oracle's input
    OUT/screen.json          spec, channels, counts, members of each complex, opposed complexes

`planted.py` decides what is in which well; `cells.py` and `render.py` draw it. The folder appears
whole or not at all, with the same bytes whatever the number of worker processes.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile

from phenoscale.screens.simulated.cells import LATENT_NAMES, rng_for
from phenoscale.screens.simulated.conditions import CONDITIONS
from phenoscale.screens.simulated.planted import Design, ScreenSpec, design_screen, lay_out_wells
from phenoscale.screens.simulated.render import draw_nuisance, render_site

__all__ = ["ScreenSpec", "simulate_screen"]

Progress = Callable[[int, int], None]

_WELLS_PER_TASK = 8
_WELL_KEY = ["experimental_batch", "plate", "well"]


class _Well(NamedTuple):
    """What a worker needs to draw one well."""

    key: tuple[str, str, str]
    """experimental_batch, plate, well."""
    latents: npt.NDArray[np.float64]
    """(L,) in units of the cell population's standard deviation."""


def simulate_screen(
    spec: ScreenSpec, out: Path, workers: int = 1, progress: Progress | None = None
) -> Path:
    """Render a screen into a new folder.

    Args:
        spec: The screen.
        out: Folder to make; it may exist if it is empty.
        workers: Processes that draw. They are spawned, so a script that asks for two or more needs
            the usual guard around its main part.
        progress: Called in this process with (sites written, sites in all) as they are written.

    Returns:
        The manifest, `out / "sites.csv"`.

    Raises:
        ValueError: If `out` holds anything, or `workers` is below 1.
        OSError: If the disk is full or cannot be written; nothing is left of the screen then.
    """
    out = Path(out)
    if workers < 1:
        raise ValueError(f"workers is {workers}; drawing a screen needs at least 1 process.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is not an empty folder; a simulated screen needs a new one. "
            "Give another folder, or remove this one."
        )
    design = design_screen(spec)
    wells = lay_out_wells(spec, design)
    with _whole_or_nothing(out, spec) as partial:
        _draw(spec, wells, partial, workers, progress)
        _site_rows(spec, wells).to_csv(partial / "sites.csv", index=False)
        write_relationships(design, partial)
        wells.to_parquet(partial / "latents.parquet", index=False)
        description = json.dumps(_description(spec, design), indent=2)
        (partial / "screen.json").write_text(description + "\n", encoding="utf-8")
    return out / "sites.csv"


def write_relationships(design: Design, out: Path) -> None:
    """Writes the planted pairs into a screen's folder, a table for each database."""
    for name, pairs in design.relationships().items():
        pairs.to_csv(out / f"{name}.csv", index=False)


@contextmanager
def _whole_or_nothing(out: Path, spec: ScreenSpec) -> Iterator[Path]:
    """Yield a sibling folder that becomes `out` if the block succeeds and else vanishes."""
    target = (
        out.resolve()
    )  # so that "." and a link to an empty folder have a parent to write beside
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        message = (
            f"writing the simulated screen to {out} failed ({error.strerror or error}). Its images "
            f"take {spec.image_bytes / 2**30:.2f} GiB; free that much or give another folder. "
            "Nothing was left behind"
        )
        raise OSError(error.errno, message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _draw(
    spec: ScreenSpec, wells: pd.DataFrame, root: Path, workers: int, progress: Progress | None
) -> None:
    """Draw every site into `root / images`, in this process or in `workers` spawned ones."""
    for batch, plate in wells[["experimental_batch", "plate"]].drop_duplicates().to_numpy():
        (root / "images" / batch / plate).mkdir(parents=True)
    latents = wells[[f"latent_{name}" for name in LATENT_NAMES]].to_numpy()
    keys = [tuple(key) for key in wells[_WELL_KEY].to_numpy()]
    todo = [_Well(key, z) for key, z in zip(keys, latents, strict=True)]
    tasks = [todo[i : i + _WELLS_PER_TASK] for i in range(0, len(todo), _WELLS_PER_TASK)]
    done = 0

    def tell(sites: int) -> None:
        nonlocal done
        done += sites
        if progress is not None:
            progress(done, spec.num_sites)

    if workers == 1:
        for task in tasks:
            tell(_draw_wells(spec, root, task))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        try:
            for future in as_completed(
                [pool.submit(_draw_wells, spec, root, task) for task in tasks]
            ):
                tell(future.result())
        except BaseException:
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # else the rest is drawn before it raises
            raise


def _draw_wells(spec: ScreenSpec, root: Path, wells: list[_Well]) -> int:
    """Draw and write the sites of some wells; returns how many."""
    condition = CONDITIONS[spec.condition]
    for key, latents in wells:
        nuisance = draw_nuisance(spec.seed, spec.nuisance, *key, condition=condition)
        for site in range(1, spec.sites_per_well + 1):
            rng = rng_for(spec.seed, "site", *key, str(site))
            lamp_rng = rng_for(spec.seed, "lamp", *key, str(site))
            # One page with its channels as separate planes: a reader finds all pixels in one piece
            # after one header.
            tifffile.imwrite(
                root / "images" / key[0] / key[1] / f"{key[2]}_s{site}.tiff",
                render_site(latents, nuisance, spec.size_px, rng, condition, lamp_rng),
                photometric="minisblack",
                planarconfig="separate",
                metadata=None,
                software="phenoscale",
            )
    return len(wells) * spec.sites_per_well


def _site_rows(spec: ScreenSpec, wells: pd.DataFrame) -> pd.DataFrame:
    """Build the manifest, one row per site, its columns in the order that the index expects."""
    of_well = wells.loc[wells.index.repeat(spec.sites_per_well)].reset_index(drop=True)
    rows = of_well[_WELL_KEY].copy()
    rows["site"] = np.tile(np.arange(1, spec.sites_per_well + 1), len(wells))
    batch, plate, well, site = (rows[name].astype(str) for name in (*_WELL_KEY, "site"))
    rows.insert(0, "site_id", batch + "_" + plate + "_" + well + "_s" + site)
    control = of_well["negative_control"]
    return rows.assign(
        perturbation=of_well["perturbation"],
        perturbation_type=np.where(control, "none", "crispr"),
        gene=of_well["gene"],
        guide=of_well["guide"],
        compound=None,
        concentration=None,
        negative_control=np.where(control, "true", "false"),
        cell_type="simulated",
        paths="images/" + batch + "/" + plate + "/" + well + "_s" + site + ".tiff",
        channels="|".join(spec.channels),
    )


def _description(spec: ScreenSpec, design: Design) -> dict[str, object]:
    return {
        "spec": dataclasses.asdict(spec),
        "channels": spec.channels,
        "latents": LATENT_NAMES,
        "num_genes": spec.num_genes,
        "num_wells": spec.num_wells,
        "num_sites": spec.num_sites,
        "num_relationships": spec.num_relationships,
        "complexes": design.complexes,
        "opposed": design.opposed,
    }
