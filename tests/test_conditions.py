"""The simulated screen under other conditions: the standard one stays, the other has its cells."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import zlib

import numpy as np
import pytest
import tifffile
from rich.console import Console

from phenoscale.screens.build import build_index
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.cells import CHANNELS, LATENT_NAMES, rng_for
from phenoscale.screens.simulated.conditions import (
    BRIGHTFIELD,
    CONDITIONS,
    LAMP,
    OTHER_LAB,
    STANDARD,
)
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.screens.simulated.prepare import simulated_screen
from phenoscale.screens.simulated.render import draw_nuisance, render_site
from phenoscale.screens.simulated.synthetic import simulate_screen

TINY = ScreenSpec(
    num_complexes=2,
    genes_per_complex=2,
    num_opposed=1,
    experimental_batches=2,
    controls_per_batch=2,
    sites_per_well=1,
    size_px=64,
)
OTHER_TINY = dataclasses.replace(TINY, condition="other_lab")
# A standard site from before there were conditions, every fourth pixel of its rows and columns.
GOLDEN_PIXELS = (
    "eNolVE1vG1UUVed9vzdvxuMZe+IZf2Dnk7gEOyShJQUaWpKSIKoAEqSEFtKiAi1KKyKEKkGRCuoCkNghFrBAQt3AGnXBgg0b"
    "fgOw4hfwA8y5k7E943fvuffdN/ecK4QQiknOWcBEEPzHucBHcsY4J6tgQgqJdSACfoIxJoBgnAHEgwrLZEAPYDmFwCkBoi+j"
    "eIEs5MYKySiuSsllQLnglQQgI6u8UjBJ0BnDWEAOiQq5OXh3Zw4Apo7TrV2/+9kRxVElVOqtjU86VIC48dcVAsjTw6oAcfvv"
    "H/PqQFQkUk22vkxEVR8FB0ZrJRWVwbl9ZJ0rXFprSRXa5uxYSmVoqVCXbXRntdSGa5xQwFI/kykrAVfIgUJC540BQlQGiUtY"
    "afAfa4HE2EUjuyQMUuK9S+ARvr5xfnqlTXUYDfxzt1eHRwczjwO10OilfrB4xJXc/DAS4uLKMMtHKx8jmZ3vSHl2ebyxdvLn"
    "NSl1Y6HQ8uWD6PPhY5u/3P/u8tlxWVcTbe398+/c2X9wb9jf9GpXa/vveL2dbe30To0k9z7UIW4+jnzW7hXW6yh2PnLeuqws"
    "usa7yDvrnHcunuqU9AxdGFqc1TWKIrTaUkAIu4/TRANrnbEGGG9DY3E8rELjdBiakDIpuoex8QhxBhtp1+gU7XbiTOSsNdrm"
    "Zb/f7+a5MzpNa3XXbPUu7HWKbupsltXTRt7tN4uy0y1Dk6WNNBv0i1beKstmovNGPQV8uuwO2nkrUUkjjdNm1itaZTcvairr"
    "d+pZ3qz7LM+yxFCt2hiPXUM7+enhOoqxBnU7K93kt/efVM4oGHAZ+8+vowcAI0ATbVR9svUQfURLraka+cPkTzyVNiCNUQbd"
    "TRixQGkhNVfwaAUK4FNbbkojBOww8EcnXXn4xwRakSGs4XuHHzm1vzsBJ8/tfvH91Zq4ekvbF07/rojE6utXBdt7wxTbVwRf"
    "Agn43UMhtnZ4d2OL+WR+fvbmpZsieOacmPsKmg2YSy7dG3G+NJraDmqxlzxg/om3i9buB8EJYqUgekMbtteEknAerkmZQmbX"
    "GkLRgBCimgth6yVQuFqgViZ04zQ5ccJqAMAY0TQB2bnixxckUDkrf6VAWd0ILEi8tFauf/mVVUfjgWMvOTW+sPvsN2UGvWfb"
    "hdWDnT6GzdKU4mxY9q7PdT5NMKv4yYgHFxezhWtr387QVouzAZtWrNFtrd5YSvxrbxWCR5gCKp19fm70+vKdmAc1vG7Zb6dS"
    "OtdxjOYTZookjcrOU7qm8P5pBkDVorn0YkatIwagh3JoLVp7rHZNKOI1unk8HjAIrFMaRmgVLKl4UOkdP1I5wNR7rQQU4RUR"
    "BvKonu1VsM4ZiEQT39J4qoBawErnB0bH2f542zkbgoML66adDE7t1aAbCnk6djVXr6UWAgyhyTej0hsfk0orctvijAfSxfBF"
    "qMmhChwDGAqI3f+STIM7"
)
GOLDEN_SITES = "281acdc64c708990a01caadcbf1a3e5bd185daa05ea8c1f0d8043dd1b9d05451"


def site_of(condition, nuisance=1.6, number=0):
    """One site as a dictionary of channels, and its well's nuisance."""
    well = draw_nuisance(3, nuisance, "batch1", "plate1", f"B{number:02d}", condition=condition)
    z = rng_for(3, "latents", str(number)).standard_normal(len(LATENT_NAMES))
    rng, lamp_rng = (rng_for(3, name, str(number)) for name in ("site", "lamp"))
    pixels = render_site(z, well, 256, rng, condition, lamp_rng)
    return dict(zip(condition.names, pixels, strict=True)), well


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.fixture(scope="module")
def other_screen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions") / "other_lab"
    manifest = read_manifest(simulate_screen(OTHER_TINY, folder))
    build_index(manifest, folder, folder / "index.parquet")
    return folder


@pytest.fixture(scope="module")
def standard_screen(tmp_path_factory):
    return simulate_screen(TINY, tmp_path_factory.mktemp("conditions") / "standard").parent


def test_the_standard_site_is_what_it_was():
    z = np.linspace(-2, 2, len(LATENT_NAMES))
    well = draw_nuisance(1, 1.6, "batch1", "plate1", "B02")
    drawn = render_site(z, well, 64, rng_for(1, "golden"))[:, ::4, ::4]
    golden = np.frombuffer(zlib.decompress(base64.b64decode(GOLDEN_PIXELS)), np.uint8)
    apart = np.abs(drawn.ravel().astype(int) - golden)
    # numpy's `exp` may differ in the last bit between families of CPU.
    assert apart.max() <= 1 and (apart > 0).mean() <= 0.001


def test_the_standard_screen_is_what_it_was(standard_screen):
    sites = (standard_screen / "sites.csv").read_bytes()
    assert hashlib.sha256(sites).hexdigest() == GOLDEN_SITES
    description = json.loads((standard_screen / "screen.json").read_text())
    assert description["spec"]["condition"] == "standard"
    assert description["channels"] == list(CHANNELS) == list(TINY.channels)


def test_a_screen_from_before_there_were_conditions_is_a_standard_one(standard_screen, tmp_path):
    description = json.loads((standard_screen / "screen.json").read_text())
    del description["spec"]["condition"]
    (tmp_path / "screen.json").write_text(json.dumps(description))
    (tmp_path / "index.parquet").touch()
    console = Console(file=io.StringIO())
    assert simulated_screen(TINY, tmp_path, console) == tmp_path
    with pytest.raises(ValueError, match="'condition': 'standard'.*'condition': 'other_lab'"):
        simulated_screen(OTHER_TINY, tmp_path, console)


def test_another_condition_has_the_stains_in_another_order_and_brightfield_among_them():
    names = OTHER_LAB.names
    assert len(names) == 8 and set(names) == {*CHANNELS, *BRIGHTFIELD}
    stains = [name for name in names if name in CHANNELS]
    for order in (stains, names):
        assert all(one != other for one, other in zip(order, CHANNELS, strict=False))
    assert names[0] in BRIGHTFIELD and any(name in BRIGHTFIELD for name in names[3:5])
    assert all(name == condition.name for name, condition in CONDITIONS.items())


def test_a_whole_screen_of_another_condition_is_written_and_indexed(other_screen, standard_screen):
    index = ScreenIndex.open(other_screen / "index.parquet")
    assert index.num_sites == TINY.num_sites and set(index.channels) == set(OTHER_LAB.names)
    description = json.loads((other_screen / "screen.json").read_text())
    assert description["spec"]["condition"] == "other_lab"
    assert description["channels"] == list(OTHER_LAB.names)
    images = sorted(other_screen.rglob("*.tiff"))
    pixels = np.stack([tifffile.imread(path) for path in images])
    assert pixels.shape == (TINY.num_sites, 8, 64, 64)
    assert pixels.size == OTHER_TINY.image_bytes
    assert (pixels == 255).mean() < 0.005
    for name in ("relationships.csv", "latents.parquet"):
        assert (other_screen / name).read_bytes() == (standard_screen / name).read_bytes()


def test_the_same_cells_are_seen_under_both_conditions():
    standard, _ = site_of(STANDARD)
    other, _ = site_of(OTHER_LAB)
    unrelated, _ = site_of(OTHER_LAB, number=1)
    for name in CHANNELS:
        assert 0.5 < correlation(standard[name], other[name]) < 0.995
    assert abs(correlation(standard["DNA"], unrelated["DNA"])) < 0.4


def test_nothing_that_a_stain_draws_depends_on_the_condition():
    one, other = (draw_nuisance(3, 1.6, "b", "p", "w", condition=c) for c in (STANDARD, OTHER_LAB))
    at = [OTHER_LAB.names.index(name) for name in CHANNELS]
    gain = np.array([OTHER_LAB.channels[c].gain for c in at])
    np.testing.assert_allclose(other.gain[at], one.gain * gain, rtol=1e-6)
    np.testing.assert_array_equal(other.slope[at], one.slope)
    assert other.log_density == one.log_density
    assert other.blur_px == pytest.approx(np.hypot(one.blur_px, OTHER_LAB.blur_px))


def test_brightfield_is_grey_with_darker_cells_and_fringes_out_of_focus():
    sites = [site_of(OTHER_LAB, number=number) for number in range(4)]
    for name in BRIGHTFIELD:
        level = np.mean([site[name].mean() for site, _ in sites])
        field = np.mean([well.background[OTHER_LAB.names.index(name)] for _, well in sites])
        assert 0.8 * field < level < field
        assert max((site[name] == 255).mean() for site, _ in sites) < 0.005
    # Without nuisance there is no noise: whatever is not the lamp's level, the cells did.
    clean, _ = site_of(OTHER_LAB, nuisance=0.0)
    for name in BRIGHTFIELD:
        assert np.bincount(clean[name].ravel()).argmax() == LAMP
        assert correlation(clean[name], clean["RNA"]) < -0.5
    focused, defocused = (clean[name].astype(int) - int(LAMP) for name in BRIGHTFIELD)
    assert focused.max() < 5 < 8 < defocused.max()


def test_a_condition_that_there_is_not_names_those_there_are():
    with pytest.raises(ValueError, match="condition is 'dark'; choose one of standard, other_lab"):
        dataclasses.replace(TINY, condition="dark")
