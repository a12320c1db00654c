"""Where a screen lies: a local folder, or a folder of an object store.

Everything is read through a `Root`, so that one rule holds for all of it: a path is relative to the
root and never leaves it, a passing disturbance is waited out, and a share that was unmounted is not
mistaken for a damaged file.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import tenacity
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from phenoscale.screens.errors import ImageError, MissingImageError, RootVanishedError

ATTEMPTS = 5
"""How often a read is tried before the root counts as vanished."""
FIRST_WAIT_S = 0.5
"""Seconds before the second attempt; doubled before each further one."""

_OPTIONS = ("anonymous", "endpoint_override", "region", "scheme")
# The errors of a disk or network that may pass; all others tell of this one file.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENODEV,
    errno.ENXIO, errno.EREMOTEIO, errno.EAGAIN, None,
}  # fmt: skip

T = TypeVar("T")


class _DisturbedError(Exception):
    """An attempt failed for a reason that may pass."""


@dataclasses.dataclass(frozen=True)
class Root:
    """The folder that the paths of a screen are relative to; small, hashable, picklable."""

    url: str
    """Absolute path of a local folder, or a URL without credentials."""

    @classmethod
    def of(cls, location: str | os.PathLike[str]) -> Root:
        """Makes a root of a folder or URL that exists.

        Args:
            location: local folder, or URL such as `s3://bucket/folder?region=eu-west-1`.

        Raises:
            ValueError: if there is no such folder, or the URL holds credentials.
        """
        text = os.fspath(location)
        parts = urlsplit(text)
        if "://" not in text:
            root = cls(os.path.abspath(os.path.expanduser(text)))
        elif parts.scheme == "file":
            root = cls(os.path.abspath(unquote(parts.path)))
        else:
            _refuse_credentials(text)
            root = cls(text)
        try:
            found = root.exists()
        except OSError as error:
            raise ValueError(
                f"The root {root.url} cannot be reached ({error}). Check the address, the network "
                "and the credentials in the environment."
            ) from error
        if not found:
            raise ValueError(
                f"The root {root.url} does not exist, or is no folder. Give the folder that holds "
                "the images, and mount it first if it is a share."
            )
        return root

    @property
    def folder(self) -> str | None:
        """The local folder; None for a URL."""
        return None if "://" in self.url else self.url

    def exists(self) -> bool:
        """Says whether the folder is there; OSError if its store does not answer."""
        if self.folder is not None:
            return os.path.isdir(self.folder)
        system, base = _filesystem(self.url)
        try:
            return system.get_file_info(base).type != pafs.FileType.NotFound
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def files(self, under: str = "") -> Iterator[tuple[str, int]]:
        """Yields path and size in bytes of every file, sorted by path.

        One folder at a time is listed, so memory does not grow with the screen. Links to folders
        are followed.

        Args:
            under: folder to begin at, relative to the root; "" for all.

        Raises:
            ImageError: for a folder that does not exist, cannot be listed or links to itself.
            RootVanishedError: if the root no longer answers.
        """
        if under:
            self.check(under)
        prefix = f"{under.rstrip('/')}/" if under else ""
        entries = self.patiently(under, lambda: self._list(under))
        # With its "/" a folder's name sorts as the paths within it do.
        for name, size in sorted(entries):
            if name.endswith("/"):
                yield from self.files(f"{prefix}{name[:-1]}")
            else:
                yield f"{prefix}{name}", size

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Reads a file, or a range of its bytes; fewer come back if the file ends before.

        Args:
            path: relative to the root, parts separated by "/".
            offset: first byte.
            length: number of bytes; None for all up to the end.

        Raises:
            MissingImageError: if there is no such file.
            ImageError: if it lies outside the root or cannot be read.
            RootVanishedError: if the root no longer answers, after bounded retries.
        """
        self.check(path)
        return self.patiently(path, lambda: self._read(path, offset, length))

    def size(self, path: str) -> int:
        """Size of a file in bytes; errors as `read`."""
        self.check(path)
        return self.patiently(path, lambda: self._size(path))

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Opens a file for random access, as Parquet readers want it; errors as `read`."""
        self.check(path)
        if self.folder is not None:
            return self.patiently(path, lambda: pa.OSFile(self.local_path(path)))
        system, base = _filesystem(self.url)
        return self.patiently(path, lambda: system.open_input_file(_join(base, path)))

    def named(self, path: str) -> str:
        """The whole name of a file, for messages."""
        if self.folder is not None:
            return f"{self.url}/{path}" if path else self.url
        address = self.url.partition("?")[0].rstrip("/")
        return f"{address}/{path}" if path else address

    def check(self, path: str) -> None:
        """Refuses a path that leads out of the root, judging by its text alone."""
        if not path or path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ImageError(
                f"{path!r} is refused: a path must be relative to the root {self.url} and stay "
                "within it, without '..'. Move the file below the root, or index with another root."
            )

    def local_path(self, path: str) -> str:
        """The name of a regular file of a local root, whose links do not lead out of it.

        Raises:
            OSError: as the system says.
            ImageError: if it leads out of the root, or is no regular file.
        """
        self.check(path)
        name = self.url
        linked = False
        mode = 0
        try:
            for part in path.split("/"):
                name = f"{name}/{part}"
                mode = os.lstat(name).st_mode
                linked = linked or stat.S_ISLNK(mode)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self.named(path)) from None
        # Only a link below the root can lead out of it, so the slow resolution is kept for links.
        if linked:
            mode = os.stat(name).st_mode
            home = os.path.realpath(self.url)
            if os.path.commonpath([home, os.path.realpath(name)]) != home:
                raise ImageError(
                    f"{name} is refused: a link leads out of the root {self.url}. Copy the file "
                    "below the root, or index with a root that holds both."
                )
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name} is not a regular file; give the path of an image file.")
        return name

    def open_remote(self, path: str) -> pa.NativeFile:
        """Opens a file of a URL for reads at any position; errors as `read`."""
        self.check(path)
        return self.patiently(path, lambda: self._opened(path))

    def patiently(self, path: str, action: Callable[[], T]) -> T:
        """Does what may meet a disturbance, with bounded retries; `path` is for the message.

        Raises:
            MissingImageError: if the file is missing though the root is there.
            ImageError: if the action fails though the root is there.
            RootVanishedError: if the root is gone, or does not answer.
        """
        try:
            return self._attempt(path, action)
        except _DisturbedError:
            time.sleep(FIRST_WAIT_S)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS - 1),
            wait=tenacity.wait_exponential(multiplier=2 * FIRST_WAIT_S),
            retry=tenacity.retry_if_exception_type(_DisturbedError),
            reraise=True,
        )
        try:
            return retrying(self._attempt, path, action)
        except _DisturbedError as error:
            if self._answers():
                raise ImageError(f"{self.named(path)} cannot be read: {error}.") from error
            raise RootVanishedError(
                f"The root {self.url} vanished while {path or 'it'} was read: {error}. Mount the "
                "share again, or check network and credentials; then start the same command again."
            ) from error

    def _attempt(self, path: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._answers():
                raise _DisturbedError("it is no longer there") from error
            name = error.filename or self.named(path)
            raise MissingImageError(
                f"{name} does not exist; check the path and the root {self.url}."
            ) from None
        except ImageError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _PASSING:
                raise _DisturbedError(reason) from error
            raise ImageError(f"{self.named(path)} cannot be opened: {reason}.") from error

    def _answers(self) -> bool:
        """Says whether the root is there. An unmounted share leaves an empty folder behind."""
        try:
            if self.folder is None:
                return self.exists()
            with os.scandir(self.folder) as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def _list(self, under: str) -> list[tuple[str, int]]:
        """Name and size of what lies in one folder; the name of a folder ends with "/"."""
        if self.folder is None:
            system, base = _filesystem(self.url)
            selector = pafs.FileSelector(_join(base, under))
            return [
                (f"{i.base_name}/", 0)
                if i.type == pafs.FileType.Directory
                else (i.base_name, i.size)
                for i in system.get_file_info(selector)
            ]
        found = []
        with os.scandir(os.path.join(self.folder, under)) as entries:
            for entry in entries:
                if entry.is_dir():
                    if entry.is_symlink() and _holds(entry.path, os.path.dirname(entry.path)):
                        raise ImageError(
                            f"{entry.path} links to a folder that it lies in; remove it."
                        )
                    found.append((f"{entry.name}/", 0))
                else:
                    found.append((entry.name, entry.stat(follow_symlinks=entry.is_file()).st_size))
        return found

    def _read(self, path: str, offset: int, length: int | None) -> bytes:
        if self.folder is not None:
            with open(self.local_path(path), "rb", buffering=0) as handle:
                rest = max(0, os.fstat(handle.fileno()).st_size - offset)
                return os.pread(
                    handle.fileno(), rest if length is None else min(rest, length), offset
                )
        with self._opened(path) as file:
            rest = max(0, file.size() - offset)
            wanted = rest if length is None else min(rest, length)
            return bytes(file.read_at(wanted, offset)) if wanted else b""

    def _opened(self, path: str) -> pa.NativeFile:
        system, base = _filesystem(self.url)
        return system.open_input_file(_join(base, path))

    def _size(self, path: str) -> int:
        if self.folder is not None:
            return os.stat(self.local_path(path)).st_size
        system, base = _filesystem(self.url)
        info = system.get_file_info(_join(base, path))
        if info.type != pafs.FileType.File:
            raise _missing(self.named(path))
        return int(info.size)


def _refuse_credentials(url: str) -> None:
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    unknown = [name for name, _ in parse_qsl(parts.query) if name not in _OPTIONS]
    given = "credentials" if "@" in parts.netloc else f"the options {unknown}"
    if "@" in parts.netloc or unknown:
        raise ValueError(
            f"The root {address} is given with {given}; "
            f"only the options {list(_OPTIONS)} may be part of it, because it is written to the "
            "index and to logs. Give credentials through the environment."
        )


@functools.lru_cache(maxsize=16)
def _filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    protocol = urlsplit(url).scheme
    if protocol == "s3":
        return _s3(url)
    if protocol in ("gs", "gcs"):
        system, base = pafs.FileSystem.from_uri(url)
        return system, base.rstrip("/")
    try:
        system, base = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"The root {url} cannot be opened: {error}.") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), base.rstrip("/")


def _s3(url: str, attempts: int = 1) -> tuple[pafs.FileSystem, str]:
    parts = urlsplit(url)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if "anonymous" in options:
        options["anonymous"] = options["anonymous"] == "true"
    # Retries are ours alone: those of the client would multiply with them.
    system = pafs.S3FileSystem(
        **options, connect_timeout=10, request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )  # fmt: skip
    return system, f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


def filesystem_of(url: str, *, patient: bool = False) -> tuple[pafs.FileSystem, str]:
    """The file system of a URL, and the path in it, which need not exist.

    Args:
        url: of a folder, without credentials.
        patient: whether it tries again by itself, for users that do not.

    Raises:
        ValueError: if the URL holds credentials, or no file system knows it.
    """
    _refuse_credentials(url)
    s3 = patient and urlsplit(url).scheme == "s3"
    return _s3(url, ATTEMPTS) if s3 else _filesystem(url)


def writable_folder(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store of a local folder or URL, and the path in it; the folder need not exist.

    Raises:
        ValueError: as `filesystem_of`.
    """
    if "://" not in location:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(location))
    system, base = filesystem_of(location, patient=True)
    return ArrowFSWrapper(system), base


def open_file(location: str | os.PathLike[str]) -> pa.NativeFile:
    """Opens one file, at a path or a URL, for random access.

    Raises:
        FileNotFoundError: if there is no such file.
        RootVanishedError: if the store of a URL does not answer, after bounded retries.
        ValueError: if the URL holds credentials.
    """
    text = os.fspath(location)
    if "://" not in text:
        return pa.OSFile(text)
    _refuse_credentials(text)
    address, mark, options = text.partition("?")
    folder, _, name = address.rpartition("/")
    try:
        return Root(folder + mark + options).open_input_file(name)
    except MissingImageError as error:
        raise _missing(address) from error


def _missing(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _join(base: str, path: str) -> str:
    return f"{base}/{path}" if path else base


def _holds(folder: str, inner: str) -> bool:
    outer = os.path.realpath(folder)
    return os.path.commonpath([outer, os.path.realpath(inner)]) == outer
