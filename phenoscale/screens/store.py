"""A folder at a URL that whole files are copied to and from, with bounded retries.

`storage.Root` reads the images of a screen; this is for whoever writes, and lists what is there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs
import tenacity

from phenoscale.screens import storage
from phenoscale.screens.errors import RootVanishedError
from phenoscale.screens.storage import filesystem_of

_AT_ONCE = 16  # files on their way; each waits for the network, not for this machine
_CHUNK_BYTES = 2**20
_OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "az")  # an object appears whole or not at all

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """A folder at a URL."""

    system: pafs.FileSystem
    """The file system of the URL."""
    base: str
    """Path of the folder in it."""
    name: str
    """The URL for messages, without options."""
    is_whole: bool
    """Whether no file shows before all of it is there."""

    @classmethod
    def of(cls, url: str) -> Store:
        """Opens the folder, which need not exist.

        Raises:
            ValueError: if the URL holds credentials, or no file system knows it.
        """
        system, base = filesystem_of(url)
        scheme = urlsplit(url).scheme
        return cls(
            system=system,
            base=base,
            name=url.partition("?")[0].rstrip("/"),
            is_whole=scheme in _OBJECT_STORES,
        )

    def files(self, under: str = "", *, recursive: bool = False) -> dict[str, pafs.FileInfo]:
        """The files in a folder, by their path relative to `base`; none if there is no folder.

        Raises:
            RootVanishedError: if the store does not answer, after bounded retries.
        """
        base = f"{self.base}/{under}".rstrip("/")
        selector = pafs.FileSelector(base, recursive=recursive, allow_not_found=True)
        found = self._patiently(f"Listing {under}", lambda: self.system.get_file_info(selector))
        prefix = f"{self.base}/".lstrip("/")
        return {
            info.path.lstrip("/").removeprefix(prefix): info
            for info in found
            if info.type == pafs.FileType.File
        }

    def read(self, name: str) -> bytes | None:
        """Reads a small file; None if there is none; errors as `files`."""

        def action() -> bytes | None:
            try:
                with self.system.open_input_stream(f"{self.base}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._patiently(f"Reading {name}", action)

    def get(self, name: str, path: Path, info: pafs.FileInfo) -> None:
        """Copies a file here, whole or not at all, with the store's time; errors as `files`."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._patiently(f"Reading {name}", lambda: self._get(part, info))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def put(self, path: Path, name: str) -> None:
        """Copies a file there, whole or not at all; it takes the store's time; errors as `files`.

        So a file and its copy have one time, and `is_same` knows them again.
        """
        self._patiently(f"Writing {name}", lambda: self._put(path, f"{self.base}/{name}"))

    def _get(self, part: Path, info: pafs.FileInfo) -> None:
        with self.system.open_input_stream(info.path) as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if (size := part.stat().st_size) != info.size:
            raise OSError(f"{size} bytes came of {info.size}")
        if info.mtime is not None:
            os.utime(part, (info.mtime.timestamp(),) * 2)

    def _put(self, path: Path, target: str) -> None:
        parent, _, name = target.rpartition("/")
        place = target if self.is_whole else f"{parent}/.{name}.{os.getpid()}.part"
        if not self.is_whole:
            self.system.create_dir(parent, recursive=True)
        with path.open("rb") as file:
            with self.system.open_output_stream(place) as sink:
                shutil.copyfileobj(file, sink, _CHUNK_BYTES)
            there = self._arrived(place, file.tell())
            if not self.is_whole:
                self.system.move(place, target)
                there = self._arrived(target, file.tell())
            if there.mtime is not None:  # of the open file: another may have its name by now
                os.utime(file.fileno(), (there.mtime.timestamp(),) * 2)

    def _arrived(self, path: str, size: int) -> pafs.FileInfo:
        """A stream that broke off is closed all the same, and leaves a part of the file."""
        info = self.system.get_file_info(path)
        if info.size != size:
            raise OSError(f"{info.size or 0} bytes came of {size}")
        return info

    def _patiently(self, what: str, action: Callable[[], T]) -> T:
        """Waits a passing disturbance out."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(storage.ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=storage.FIRST_WAIT_S),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return retrying(action)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RootVanishedError(
                f"{what} at {self.name} failed ({error}). Check the network, and the credentials "
                "in the environment; then start the same command again."
            ) from error


def is_same(path: Path, info: pafs.FileInfo) -> bool:
    """Whether a file here is that of the store, by size and by time in seconds.

    Stores disagree with themselves below a second. Where they tell no time, none is the same.
    """
    if info.mtime is None or not path.is_file():
        return False
    here = path.stat()
    return here.st_size == info.size and int(here.st_mtime) == int(info.mtime.timestamp())


def copy_all(one: Callable[[str], None], names: Iterable[str]) -> None:
    """Calls `one` with each name, many at once, and raises what went wrong."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(one, names):
            pass


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
