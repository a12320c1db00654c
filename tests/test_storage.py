from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.fs as pafs
import pytest
import tifffile
from moto.server import ThreadedMotoServer

from phenoscale.screens import storage
from phenoscale.screens.errors import ImageError, MissingImageError, RootVanishedError
from phenoscale.screens.images.readers import read_header, read_site, read_windows
from phenoscale.screens.storage import Root
from tests.screen_on_disk import pixels

KEY, SECRET = "AKIAEXAMPLEKEY", "a-secret-that-nobody-may-see"
TREE = {"a.txt": b"12", "a/b.txt": b"123456", "a/c/d": b"", "a-b": b"x", "z": b"zz"}


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


def bucket(server: ThreadedMotoServer, files: dict[str, bytes]) -> str:
    """Writes files below s3://screen/plates and returns its URL."""
    host, port = server.get_host_and_port()
    system = pafs.S3FileSystem(
        endpoint_override=f"http://{host}:{port}", region="us-east-1", allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )  # fmt: skip
    try:
        system.delete_dir("screen")
    except OSError:
        pass  # the first bucket of this server
    system.create_dir("screen", recursive=False)
    for name, data in files.items():
        with system.open_output_stream(f"screen/plates/{name}") as file:
            file.write(data)
    return f"s3://screen/plates?endpoint_override=http://{host}:{port}&region=us-east-1"


def written(place: str, tmp_path: Path, request: pytest.FixtureRequest, tree: dict) -> Root:
    if place == "s3":
        return Root.of(bucket(request.getfixturevalue("server"), tree))
    if place == "memory":
        fsspec.filesystem("memory").pipe({f"/{tmp_path.name}/{n}": b for n, b in tree.items()})
        return Root.of(f"memory://{tmp_path.name}")
    for name, data in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return Root.of(tmp_path)


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
def test_files_and_ranges_are_the_same_in_every_place(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, quick_retries: None
) -> None:
    root = written(place, tmp_path, request, TREE)
    assert list(root.files()) == sorted((name, len(data)) for name, data in TREE.items())
    assert list(root.files("a")) == [("a/b.txt", 6), ("a/c/d", 0)]
    assert root.read("a/b.txt") == b"123456" and root.read("a/b.txt", 2, 3) == b"345"
    assert root.read("a/b.txt", 4, 10) == b"56" and root.read("a/b.txt", 9) == b""
    assert root.read("a/c/d") == b"" and root.size("a.txt") == 2
    for missing in (root.read, root.size):
        with pytest.raises(MissingImageError, match="a/none does not exist; check the path and"):
            missing("a/none")
    for outside in ("../z", "a/../../z", "/etc/passwd", "", "a\0b"):
        for use in (root.read, root.size):
            with pytest.raises(ImageError, match="is refused: a path must be relative"):
                use(outside)
    assert pickle.loads(pickle.dumps(root)) == root and hash(root) == hash(Root(root.url))
    assert root.folder == (str(tmp_path) if place == "local" else None)


def test_relative_and_file_locations_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my screen").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "my screen")
    for location in ("my screen", Path("my screen"), f"file://{tmp_path}/my%20screen"):
        assert Root.of(location).url == expected
    (tmp_path / "file").write_bytes(b"")
    for location in ("none", "file"):
        with pytest.raises(ValueError, match=f"root .*{location} does not exist, or is no folder"):
            Root.of(location)


def test_links_are_followed_within_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a/b").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "within").symlink_to("a")
    (root / "out").symlink_to("../secret")
    (root / "up").symlink_to("..")
    assert Root.of(root).read("within/b") == b"inside"
    for path in ("out", "up/secret"):
        with pytest.raises(ImageError, match="a link leads out of the root"):
            Root.of(root).read(path)
    with pytest.raises(ImageError, match="up links to a folder that it lies in"):
        list(Root.of(root).files())


def test_urls_with_credentials_are_refused_and_not_repeated() -> None:
    for url in (f"s3://{KEY}:{SECRET}@bucket/a", f"s3://bucket/a?secret_key={SECRET}"):
        with pytest.raises(ValueError, match="root s3://bucket/a is given with") as error:
            Root.of(url)
        assert SECRET not in str(error.value) and KEY not in str(error.value)
    with pytest.raises(ValueError, match="cannot be opened: Protocol not known: nonsense"):
        Root.of("nonsense://a/b")


def test_a_stopped_server_is_a_vanished_root_and_keeps_its_secrets(
    server: ThreadedMotoServer, quick_retries: None
) -> None:
    root = Root.of(bucket(server, {"a": b"1"}))
    server.stop()
    for use in (lambda: root.read("a"), lambda: root.size("a"), lambda: list(root.files())):
        with pytest.raises(RootVanishedError, match="vanished while .* Mount the share again") as e:
            use()
        text = "".join(traceback.format_exception(e.value))
        assert SECRET not in text and KEY not in text
    with pytest.raises(ValueError, match="cannot be reached") as refused:
        Root.of(root.url)
    assert SECRET not in str(refused.value) and KEY not in str(refused.value)


@pytest.mark.parametrize("leaves", ["nothing", "an empty folder"])
def test_an_unmounted_share_is_a_vanished_root(
    leaves: str, tmp_path: Path, quick_retries: None
) -> None:
    (tmp_path / "share").mkdir()
    tifffile.imwrite(tmp_path / "share/a.tif", pixels(0, 1)[0])
    root = Root.of(tmp_path / "share")
    assert read_site(root, ["a.tif"], ["dna"], ["dna"]).shape == (1, 12, 10)
    os.rename(tmp_path / "share", tmp_path / "elsewhere")
    if leaves == "an empty folder":
        (tmp_path / "share").mkdir()
    for use in (
        lambda: read_header(root, ["a.tif"], ["dna"]),
        lambda: read_site(root, ["a.tif"], ["dna"], ["dna"]),
        lambda: root.read("a.tif"),
    ):
        with pytest.raises(RootVanishedError, match="share vanished while a.tif was read: it is"):
            use()


def test_a_share_that_comes_back_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, away = tmp_path / "share", tmp_path / "away"
    away.mkdir()
    (away / "a").write_bytes(b"back")
    waited: list[float] = []

    def remount(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            away.rename(share)

    monkeypatch.setattr("time.sleep", remount)
    assert Root(str(share)).read("a") == b"back"
    assert waited == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_sites_of_a_store_equal_local_ones(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image = pixels(1, 3, 40, 50)
    tifffile.imwrite(tmp_path / "raw.tif", image, photometric="minisblack", metadata=None)
    tifffile.imwrite(
        tmp_path / "lzw.tif", image, photometric="minisblack", compression="lzw", metadata=None
    )
    # Large enough for ranges, and incompressible.
    large = pixels(2, 3, 2048, 2048)
    tifffile.imwrite(tmp_path / "large.tif", large, photometric="minisblack", metadata=None)
    tree = {name: (tmp_path / name).read_bytes() for name in ("raw.tif", "lzw.tif", "large.tif")}
    root = written(place, tmp_path, request, tree)
    names = ["dna", "er", "actin"]
    for name, oracle in (("raw.tif", image), ("lzw.tif", image), ("large.tif", large)):
        np.testing.assert_array_equal(read_site(root, [name], names, names), oracle)
        found = read_windows(root, [name], names, ["er"], [(3, 4), (20, 30)], 16)
        np.testing.assert_array_equal(found[1, 0], oracle[1, 20:36, 30:46])
    with pytest.raises(MissingImageError, match="none.tif does not exist"):
        read_header(root, ["none.tif"], names)
