"""What a simulated screen plants, and where: complexes, genes, guides, plates, wells; no pixels.

Genes belong to complexes. Knocking out a gene moves three latent phenotype parameters along its
complex's direction, plus a smaller direction of its own; some complexes are the opposite of another
one, so that the low tail of similarity means something. Guides differ in strength, some do nothing,
and wells add noise. Each experimental batch holds one well of every guide, laid out at random.

Legend: L latents, in units of the cell population's standard deviation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from phenoscale.screens.simulated.cells import LATENT_NAMES, rng_for
from phenoscale.screens.simulated.conditions import CONDITIONS

CONTROL = "negative_control"
LATENTS_PER_COMPLEX = 3
GENE_SHARE = 0.35
"""Length of a gene's own direction, relative to its complex's."""
GUIDE_STRENGTH = (0.7, 1.1)
"""Range of a working guide's strength."""
WELL_SD = 0.4
"""Standard deviation of a well's latents, in units of the cell population's."""
_ROWS, _COLUMNS = "ABCDEFGHIJKLMNOP", range(1, 25)  # a 384-well plate


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenSpec:
    """What to simulate. The defaults are the screen of the quickstart study."""

    seed: int = 0
    """Seed of the design, the layout, the nuisance and every pixel; not negative."""
    num_complexes: int = 60
    """Planted complexes."""
    genes_per_complex: int = 4
    """Genes in each complex, at least 2: pairs within a complex are the relationships."""
    num_opposed: int = 15
    """Complexes whose phenotype is the opposite of another complex's."""
    guides_per_gene: int = 2
    """Guides that target each gene."""
    null_guide_share: float = 0.1
    """Share of all guides that do nothing, at most one in a gene, [0, 1 / guides_per_gene]."""
    experimental_batches: int = 3
    """Experimental batches; each holds one well of every guide."""
    plates_per_batch: int = 2
    """Plates of 384 wells in each experimental batch."""
    controls_per_batch: int = 64
    """Negative-control wells in each experimental batch, spread over its plates."""
    sites_per_well: int = 2
    """Sites imaged in each well."""
    size_px: int = 256
    """Height and width of a site, 32 to 1024 pixels; cells keep their size."""
    strength: float = 3.0
    """Length of a knockout's shift in units of the cell population's standard deviation."""
    nuisance: float = 1.6
    """Multiplies every nuisance amplitude of `render.py`; 0 for a screen without nuisance."""
    condition: str = "standard"
    """How the screen is stained and imaged, a key of `CONDITIONS`."""

    def __post_init__(self) -> None:
        """Check each field and that the wells fit on the plates."""
        least = {
            "seed": 0,
            "num_complexes": 1,
            "genes_per_complex": 2,
            "num_opposed": 0,
            "guides_per_gene": 1,
            "experimental_batches": 1,
            "plates_per_batch": 1,
            "controls_per_batch": self.plates_per_batch,
            "sites_per_well": 1,
            "size_px": 32,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(
                    f"{name} is {value!r}; a simulated screen needs an integer of at least {low}. "
                    f"Give --{name.replace('_', '-')} {low} or more."
                )
        for name in ("strength", "nuisance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; it must be a finite number, 0 or more.")
        if self.condition not in CONDITIONS:
            raise ValueError(
                f"condition is {self.condition!r}; choose one of {', '.join(CONDITIONS)}."
            )
        if self.size_px > 1024:
            raise ValueError(f"size_px is {self.size_px}; a site is at most 1024 pixels wide.")
        if 2 * self.num_opposed > self.num_complexes:
            raise ValueError(
                f"num_opposed is {self.num_opposed} of {self.num_complexes} complexes; each one "
                "needs a partner of its own. Give at most half the number of complexes."
            )
        if not 0 <= self.null_guide_share * self.guides_per_gene <= 1:
            raise ValueError(
                f"null_guide_share is {self.null_guide_share!r} for {self.guides_per_gene} guides "
                f"a gene; at most one guide of a gene may do nothing. Give a share from 0 to "
                f"{1 / self.guides_per_gene:.3g}."
            )
        capacity = self.plates_per_batch * len(_ROWS) * len(_COLUMNS)
        if self.wells_per_batch > capacity:
            raise ValueError(
                f"One experimental batch has {self.wells_per_batch} wells, and its "
                f"{self.plates_per_batch} plates of 384 wells hold {capacity}. Give more "
                "plates_per_batch or fewer genes."
            )

    @property
    def num_genes(self) -> int:
        """Perturbed genes."""
        return self.num_complexes * self.genes_per_complex

    @property
    def wells_per_batch(self) -> int:
        """Wells of one experimental batch: one per guide, and the controls."""
        return self.num_genes * self.guides_per_gene + self.controls_per_batch

    @property
    def num_wells(self) -> int:
        """Wells of the whole screen."""
        return self.experimental_batches * self.wells_per_batch

    @property
    def num_sites(self) -> int:
        """Images of the whole screen."""
        return self.num_wells * self.sites_per_well

    @property
    def num_relationships(self) -> int:
        """Planted pairs: within each complex, and between each opposed pair of complexes."""
        size = self.genes_per_complex
        return self.num_complexes * math.comb(size, 2) + self.num_opposed * size**2

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the order of the image."""
        return CONDITIONS[self.condition].names

    @property
    def image_bytes(self) -> int:
        """Bytes of pixels that the screen takes on disk."""
        return self.num_sites * len(self.channels) * self.size_px**2


class Design(NamedTuple):
    """What is planted, before any well is laid out."""

    complexes: dict[str, tuple[str, ...]]
    """Complex -> its genes."""
    opposed: tuple[tuple[str, str], ...]
    """Pairs of complexes with opposite phenotypes."""
    guides: pd.DataFrame
    """One row per guide: gene, guide, strength (0 does nothing), latents (L,) at strength 1."""

    def relationships(self) -> dict[str, pd.DataFrame]:
        """Return the planted pairs by database, columns entity1 < entity2, sorted.

        "complexes" has the pairs within a complex, "opposed" those between two opposed ones (none
        where nothing is opposed), "relationships" both.
        """
        within = [p for genes in self.complexes.values() for p in itertools.combinations(genes, 2)]
        between = [
            pair
            for one, other in self.opposed
            for pair in itertools.product(self.complexes[one], self.complexes[other])
        ]
        databases = {"complexes": within, "opposed": between, "relationships": within + between}
        return {
            name: pd.DataFrame(
                sorted(tuple(sorted(p)) for p in pairs), columns=["entity1", "entity2"]
            )
            for name, pairs in databases.items()
        }


def design_screen(spec: ScreenSpec) -> Design:
    """Plant complexes, opposed complexes, genes and guides: a pure function of the spec."""
    rng = rng_for(spec.seed, "design")
    names = [f"C{i + 1:03d}" for i in range(spec.num_complexes)]
    directions = np.zeros((spec.num_complexes, len(LATENT_NAMES)))
    for direction in directions:
        moved = rng.choice(len(LATENT_NAMES), LATENTS_PER_COMPLEX, replace=False)
        direction[moved] = rng.choice([-1, 1], LATENTS_PER_COMPLEX) * rng.uniform(
            0.5, 1, LATENTS_PER_COMPLEX
        )
        direction /= np.linalg.norm(direction)
    order = rng.permutation(spec.num_complexes)[: 2 * spec.num_opposed].reshape(-1, 2)
    for one, other in order:
        directions[other] = -directions[one]

    genes = [f"SYN{i + 1:03d}" for i in range(spec.num_genes)]
    own = rng.standard_normal((spec.num_genes, len(LATENT_NAMES)))
    own *= GENE_SHARE / np.linalg.norm(own, axis=1, keepdims=True)
    shift = spec.strength * (np.repeat(directions, spec.genes_per_complex, axis=0) + own)
    strength = rng.uniform(*GUIDE_STRENGTH, (spec.num_genes, spec.guides_per_gene))
    # At most one dud in a gene: a gene that no guide knocks out has no phenotype, and its planted
    # relationships could not be found by anybody, the oracle included.
    duds = round(spec.null_guide_share * strength.size)
    strength[
        rng.choice(spec.num_genes, duds, replace=False),
        rng.integers(0, spec.guides_per_gene, duds),
    ] = 0.0
    size = spec.genes_per_complex
    return Design(
        complexes={name: tuple(genes[i * size : (i + 1) * size]) for i, name in enumerate(names)},
        opposed=tuple((names[one], names[other]) for one, other in sorted(order.tolist())),
        guides=pd.DataFrame(
            {
                "gene": np.repeat(genes, spec.guides_per_gene),
                "guide": [f"{g}_g{k + 1}" for g in genes for k in range(spec.guides_per_gene)],
                "strength": strength.ravel(),
                "latents": list(np.repeat(shift, spec.guides_per_gene, axis=0)),
            }
        ),
    )


def lay_out_wells(spec: ScreenSpec, design: Design) -> pd.DataFrame:
    """Place every guide and control on a plate, and draw each well's true latents.

    Args:
        spec: The screen.
        design: What `design_screen` planted for it.

    Returns:
        One row per well, sorted by its first three columns: experimental_batch, plate, well,
        perturbation, gene, guide (null for controls), negative_control, guide_strength
        (null for controls) and latent_<name> for each latent, well noise included.
    """
    rows = []
    for b in range(spec.experimental_batches):
        batch = f"batch{b + 1}"
        rng = rng_for(spec.seed, "layout", batch)
        # Dealt in turn, first controls and then guides, so that each plate gets its share of both.
        contents = [None] * spec.controls_per_batch + rng.permutation(len(design.guides)).tolist()
        for p in range(spec.plates_per_batch):
            dealt = contents[p :: spec.plates_per_batch]
            plate = f"plate{p + 1}"
            wells = rng.permutation(_positions(len(dealt)))[: len(dealt)]
            rows += [
                _well(spec, design, batch, plate, str(well), i)
                for well, i in zip(wells, dealt, strict=True)
            ]
    return pd.DataFrame(rows).sort_values(
        ["experimental_batch", "plate", "well"], ignore_index=True
    )


def _positions(count: int) -> list[str]:
    """Name a plate's usable wells: without its outer ring, as screens do, while they suffice."""
    inner = [f"{row}{column:02d}" for row in _ROWS[1:-1] for column in _COLUMNS[1:-1]]
    return inner if count <= len(inner) else [f"{r}{c:02d}" for r in _ROWS for c in _COLUMNS]


def _well(
    spec: ScreenSpec, design: Design, batch: str, plate: str, well: str, guide: int | None
) -> dict[str, Any]:
    latents = WELL_SD * rng_for(spec.seed, "well", batch, plate, well).standard_normal(
        len(LATENT_NAMES)
    )
    row: dict[str, Any] = {"experimental_batch": batch, "plate": plate, "well": well}
    if guide is None:
        row |= {"perturbation": CONTROL, "gene": None, "guide": None, "negative_control": True}
        row["guide_strength"] = None
    else:
        gene, name, strength, shift = design.guides.iloc[guide]
        row |= {"perturbation": gene, "gene": gene, "guide": name, "negative_control": False}
        row["guide_strength"] = strength
        latents = latents + strength * shift
    return row | {f"latent_{name}": z for name, z in zip(LATENT_NAMES, latents, strict=True)}
