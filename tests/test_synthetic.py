"""The simulated screen: what is planted, what is written, and what its pixels show."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import resource

import numpy as np
import pandas as pd
import pytest
import tifffile

from phenoscale.screens.simulated.cells import (
    CHANNELS,
    LATENT_NAMES,
    STAIN_PER_CELL,
    render_cell,
    rng_for,
)
from phenoscale.screens.simulated.planted import design_screen, lay_out_wells
from phenoscale.screens.simulated.render import draw_nuisance, render_site
from phenoscale.screens.simulated.synthetic import ScreenSpec, simulate_screen

TINY = ScreenSpec(
    num_complexes=2,
    genes_per_complex=2,
    num_opposed=1,
    experimental_batches=2,
    controls_per_batch=4,
    sites_per_well=2,
    size_px=64,
)
MANIFEST = (
    "site_id experimental_batch plate well site perturbation perturbation_type gene guide compound "
    "concentration negative_control cell_type paths channels"
).split()
ZERO = np.zeros(len(LATENT_NAMES))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Write the tiny screen once, in this process."""
    out = tmp_path_factory.mktemp("synthetic") / "screen"
    told = []
    manifest = simulate_screen(TINY, out, progress=lambda done, total: told.append((done, total)))
    assert manifest == out / "sites.csv"
    assert told[-1] == (TINY.num_sites, TINY.num_sites)
    return out


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def well_latents(spec):
    """Wells of a spec, their latents (W, L), and each gene's complex."""
    design = design_screen(spec)
    wells = lay_out_wells(spec, design)
    complex_of = {gene: name for name, genes in design.complexes.items() for gene in genes}
    return design, wells, wells[[f"latent_{n}" for n in LATENT_NAMES]].to_numpy(), complex_of


def test_two_workers_write_the_same_bytes_as_one(tiny, tmp_path):
    simulate_screen(TINY, tmp_path / "other", workers=2)
    one, two = digests(tiny), digests(tmp_path / "other")
    assert len(one) == TINY.num_sites + 6
    assert one == two


def test_another_seed_is_another_screen():
    first, second = (design_screen(dataclasses.replace(TINY, seed=s)) for s in (0, 1))
    assert not np.allclose(first.guides["strength"], second.guides["strength"])
    layouts = [
        lay_out_wells(TINY, first).set_index(["plate", "well"]).query("experimental_batch == @b")
        for b in ("batch1", "batch2")
    ]
    assert not layouts[0]["guide"].equals(layouts[1]["guide"])


def test_manifest_has_the_columns_and_names_every_image_once(tiny):
    with (tiny / "sites.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == MANIFEST
    assert len(rows) == TINY.num_sites == len({row["site_id"] for row in rows})
    on_disk = {str(path.relative_to(tiny)) for path in (tiny / "images").rglob("*.tiff")}
    assert {row["paths"] for row in rows} == on_disk
    for row in rows:
        control = row["negative_control"] == "true"
        assert control == (row["perturbation"] == "negative_control") == (row["gene"] == "")
        assert row["perturbation_type"] == ("none" if control else "crispr")
        assert control or row["guide"].startswith(row["gene"] + "_g")
        assert row["paths"].endswith(f"{row['plate']}/{row['well']}_s{row['site']}.tiff")
        assert row["channels"] == "|".join(CHANNELS)


def test_images_are_plain_planar_uint8_that_use_their_range(tiny):
    stack = []
    for path in (tiny / "images").rglob("*.tiff"):
        with tifffile.TiffFile(path) as tiff:
            assert len(tiff.pages) == 1
            page = tiff.pages[0]
            assert page.compression == 1
            assert page.is_contiguous
            stack.append(page.asarray())
    pixels = np.stack(stack)
    assert pixels.shape == (TINY.num_sites, len(CHANNELS), 64, 64)
    assert pixels.dtype == np.uint8
    assert (pixels == 255).mean() < 0.02
    assert (pixels.reshape(-1, 64 * 64).std(1) > 1).all()
    assert len(np.unique(pixels[:, :, ::8, ::8].reshape(len(stack), -1), axis=0)) == len(stack)


def test_latents_describe_every_well_in_the_layout(tiny):
    latents = pd.read_parquet(tiny / "latents.parquet")
    pd.testing.assert_frame_equal(latents, lay_out_wells(TINY, design_screen(TINY)))
    assert len(latents) == TINY.num_wells
    assert not latents.duplicated(["experimental_batch", "plate", "well"]).any()
    screen = json.loads((tiny / "screen.json").read_text())
    assert screen["spec"] == dataclasses.asdict(TINY)
    assert screen["channels"] == list(CHANNELS)
    assert screen["num_sites"] == TINY.num_sites


def test_relationships_are_the_pairs_within_and_between_opposed_complexes(tiny):
    pairs = pd.read_csv(tiny / "relationships.csv")
    assert list(pairs.columns) == ["entity1", "entity2"]
    # Two complexes of two genes, opposed to each other: every pair of the four genes is planted.
    genes = ["SYN001", "SYN002", "SYN003", "SYN004"]
    expected = {(a, b) for i, a in enumerate(genes) for b in genes[i + 1 :]}
    assert set(pairs.itertuples(index=False, name=None)) == expected
    assert len(pairs) == TINY.num_relationships == 6


def test_default_screen_has_the_bill_it_says():
    spec = ScreenSpec()
    assert (spec.num_genes, spec.num_wells, spec.num_sites) == (240, 1632, 3264)
    assert spec.num_relationships == 60 * 6 + 15 * 16
    design, wells, _, _ = well_latents(spec)
    assert len(design.relationships()["relationships"].drop_duplicates()) == spec.num_relationships
    per_plate = wells.groupby(["experimental_batch", "plate"])
    assert per_plate.size().tolist() == [272] * 6
    assert per_plate["negative_control"].sum().tolist() == [32] * 6
    assert wells.groupby(["experimental_batch", "guide"]).size().eq(1).all()
    assert not wells["well"].str.match(r"A|P|.01|.24").any()


def test_complexes_agree_opposed_ones_disagree_and_the_rest_does_neither():
    design, wells, z, complex_of = well_latents(ScreenSpec())
    mean = pd.DataFrame(z).groupby(wells["gene"]).mean()
    cosine = np.corrcoef(mean.to_numpy())
    names = np.array([complex_of[gene] for gene in mean.index])
    same = (names[:, None] == names) & ~np.eye(len(names), dtype=bool)
    opposed = np.zeros_like(same)
    for one, other in design.opposed:
        opposed |= (names == one)[:, None] & (names == other)
    assert same.sum() == 60 * 4 * 3
    assert opposed.sum() == 15 * 16
    assert cosine[same].mean() > 0.75
    assert cosine[opposed].mean() < -0.75
    other = ~same & ~opposed & ~opposed.T & ~np.eye(len(names), dtype=bool)
    assert abs(cosine[other].mean()) < 0.05
    moved = np.abs(mean.to_numpy()).max(1)
    assert moved.min() > 0.5  # no gene lost its phenotype: at most one dud guide each


def test_one_guide_in_ten_does_nothing_and_the_others_work():
    spec = ScreenSpec()
    design, wells, z, _ = well_latents(spec)
    by_guide = pd.DataFrame(z).groupby(wells["guide"]).mean()
    strength = design.guides.set_index("guide")["strength"].loc[by_guide.index].to_numpy()
    duds = strength == 0
    assert duds.sum() == 48
    assert design.guides[design.guides["strength"] == 0]["gene"].is_unique
    assert strength[~duds].min() >= 0.7
    assert strength[~duds].max() <= 1.1
    length = np.linalg.norm(by_guide.to_numpy(), axis=1)
    # Three wells of sd 0.4 in 16 latents leave about 0.92 by chance; a working guide moves over 2.
    assert length[duds].max() < 1.7 < length[~duds].min()
    controls = z[wells["negative_control"]]
    assert np.abs(controls.mean(0)).max() < 0.15
    assert controls.std() == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("name", LATENT_NAMES)
def test_stain_per_cell_is_conserved_whatever_the_phenotype(name):
    z = ZERO.copy()
    for value in (-3.0, 3.0):
        z[LATENT_NAMES.index(name)] = value
        cell = render_cell(z, rng_for(0, "cell"))
        assert (cell >= 0).all()
        np.testing.assert_allclose(cell.sum((1, 2)), STAIN_PER_CELL, rtol=1e-4)


def _spread(image):
    """Root mean square distance of the stain from its centre, px."""
    y, x = np.indices(image.shape)
    weight = image / image.sum()
    cy, cx = (weight * y).sum(), (weight * x).sum()
    return np.sqrt((weight * ((y - cy) ** 2 + (x - cx) ** 2)).sum())


def _roughness(image):
    """Mean step between neighbouring pixels over the mean, which finer texture raises."""
    return np.abs(np.diff(image, axis=1)).sum() / image.sum()


def _aspect(image):
    """Long over short axis of the stain's second moments."""
    y, x = np.indices(image.shape)
    low, high = np.linalg.eigvalsh(np.cov(y.ravel(), x.ravel(), aweights=image.ravel()))
    return np.sqrt(high / low)


@pytest.mark.parametrize(
    ("name", "channel", "statistic", "sign"),
    [
        ("nucleus_size", "DNA", _spread, 1),
        ("nucleus_aspect", "DNA", _aspect, 1),
        ("nucleus_texture_scale", "DNA", _roughness, -1),
        ("nucleoli_size", "RNA", _spread, -1),
        ("cell_size", "AGP", _spread, 1),
        ("cell_elongation", "AGP", _aspect, 1),
        ("er_extent", "ER", _spread, 1),
        ("er_texture_scale", "ER", _roughness, -1),
        ("mito_position", "Mito", _spread, 1),
        ("mito_texture_scale", "Mito", _roughness, -1),
        ("mito_amplitude", "Mito", _roughness, 1),
        ("actin_rim", "AGP", _spread, 1),
        ("actin_fibre_scale", "AGP", _roughness, -1),
        ("golgi_spread", "Golgi", _spread, 1),
    ],
)
def test_each_latent_moves_the_pixels_it_names(name, channel, statistic, sign):
    means = []
    for value in (-2.5, 2.5):
        z = ZERO.copy()
        z[LATENT_NAMES.index(name)] = value
        cells = [render_cell(z, rng_for(1, str(i)))[CHANNELS.index(channel)] for i in range(24)]
        means.append(np.mean([statistic(cell.astype(float)) for cell in cells]))
    assert sign * (means[1] - means[0]) > 0.04 * means[0]


def test_golgi_moves_away_from_the_nucleus_and_density_adds_cells():
    offset, density = (LATENT_NAMES.index(name) for name in ("golgi_offset", "density"))
    distances, brightness = [], []
    for value in (-2.5, 2.5):
        z = ZERO.copy()
        z[offset] = value
        apart = []
        for i in range(24):
            cell = render_cell(z, rng_for(2, str(i)))
            y, x = np.indices(cell.shape[1:])
            centre = [
                np.array([(image * y).sum(), (image * x).sum()]) / image.sum()
                for image in (cell[CHANNELS.index("DNA")], cell[CHANNELS.index("Golgi")])
            ]
            apart.append(np.linalg.norm(centre[0] - centre[1]))
        distances.append(np.mean(apart))
        z = ZERO.copy()
        z[density] = value
        plain = draw_nuisance(0, 0.0, "batch1", "plate1", "B02")
        sites = [render_site(z, plain, 256, rng_for(3, str(i))) for i in range(6)]
        brightness.append(np.mean([site[0] for site in sites]))
    assert distances[1] > 1.4 * distances[0]
    assert brightness[1] > 1.2 * brightness[0]


def test_mean_intensity_is_nearly_blind_to_shape_and_not_to_nuisance():
    shape = ZERO.copy()
    shape[[LATENT_NAMES.index(n) for n in ("nucleus_size", "cell_size", "mito_position")]] = 2.5
    plain = draw_nuisance(0, 0.0, "batch1", "plate1", "B02")

    def brightness(z, nuisance):
        sites = [render_site(z, nuisance, 256, rng_for(4, str(i))) for i in range(8)]
        return np.mean(sites, axis=(0, 2, 3)) - nuisance.background

    base = brightness(ZERO, plain)
    # Only what the frame's edge cuts off and the clip at 255 remain.
    np.testing.assert_allclose(brightness(shape, plain), base, rtol=0.08)
    gains = np.stack([draw_nuisance(0, 1.6, "batch1", "plate1", str(w)).gain for w in range(40)])
    others = np.stack([draw_nuisance(0, 1.6, f"batch{b}", "plate1", "B02").gain for b in range(40)])
    assert 0.1 < np.log(gains).std(0).mean() < 0.23  # wells of one plate: 1.6 x 0.10
    assert 0.4 < np.log(others).std(0).mean() < 0.7  # across batches: 1.6 x 0.35


def test_screen_without_nuisance_is_flat_sharp_and_clean():
    plain = draw_nuisance(5, 0.0, "batch1", "plate1", "B02")
    assert (plain.gain == 1).all()
    assert (plain.slope == 0).all()
    assert (plain.blur_px, plain.noise, plain.log_density) == (0, 0, 0)
    site = render_site(ZERO, plain, 128, rng_for(5, "site"))
    assert site.min() == 6  # the background, and nothing below it
    assert site.max() > 60


def test_steep_illumination_is_clipped_above_zero():
    plain = draw_nuisance(0, 0.0, "batch1", "plate1", "B02")
    steep = dataclasses.replace(plain, slope=np.full_like(plain.slope, 3.0), noise=1.0)
    with np.errstate(invalid="raise"):
        site = render_site(ZERO, steep, 128, rng_for(6, "site"))
    assert (site[:, :32, :32].mean((1, 2)) < 40).all()  # dark, not wrapped around to white


def test_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        simulate_screen(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
    with pytest.raises(ValueError, match="at least 1 process"):
        simulate_screen(TINY, tmp_path / "new", workers=0)


def test_fills_an_existing_empty_folder(tmp_path):
    out = tmp_path / "empty"
    out.mkdir()
    assert simulate_screen(TINY, out).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_write_that_fails_names_the_folder_and_leaves_nothing(workers, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (8192, hard)
    )  # an image of the tiny screen has 24 KiB
    try:
        with pytest.raises(OSError, match=r"writing the simulated screen to .*screen failed"):
            simulate_screen(TINY, tmp_path / "screen", workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_screen(TINY, tmp_path / "screen", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_complexes": 0}, "num_complexes is 0; .*at least 1"),
        ({"genes_per_complex": 1}, "genes_per_complex is 1; .*at least 2"),
        ({"seed": -1}, "seed is -1"),
        ({"sites_per_well": 1.5}, "sites_per_well is 1.5; .*integer"),
        ({"num_opposed": 2}, "num_opposed is 2 of 2"),
        ({"null_guide_share": 0.6}, "null_guide_share is 0.6 for 2 guides"),
        ({"controls_per_batch": 1}, "controls_per_batch is 1; .*at least 2"),
        ({"size_px": 16}, "size_px is 16"),
        ({"size_px": 4096}, "size_px is 4096"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"nuisance": -1.0}, "nuisance is -1.0"),
        ({"num_complexes": 100, "genes_per_complex": 4}, "804 wells, and its 2 plates .* 768"),
    ],
)
def test_a_spec_that_cannot_be_simulated_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
