"""The bytes of one image: in a local file, in an object store, or already in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Protocol

from phenoscale.screens.errors import ImageError
from phenoscale.screens.storage import Root

# A request to an object store takes about as long as this many bytes (25 ms at 80 MB/s).
_REQUEST_BYTES = 1 << 21
_BLOCK_BYTES = 1 << 16
# Holds the header of most files, which is read in small pieces.
_HEAD_BYTES = 1024


class ImageFile(Protocol):
    """What decoders read from."""

    name: str
    """For messages."""
    size: int
    """Bytes."""

    def at(self, offset: int, length: int) -> bytes:
        """Reads a few bytes; fewer where the file ends."""

    def fill(self, target: memoryview, offset: int) -> None:
        """Reads straight into contiguous memory; ImageError if the file ends before."""

    def whole(self) -> bytes:
        """Reads everything."""

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Says which (offset, length) will be read, so that requests can be saved."""


class LocalFile:
    """An open file of the local machine."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name
        self.size = os.fstat(descriptor).st_size
        self._head = os.pread(descriptor, _HEAD_BYTES, 0)

    def at(self, offset: int, length: int) -> bytes:
        """Reads a few bytes; fewer where the file ends."""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        return os.pread(self.descriptor, length, offset)

    def fill(self, target: memoryview, offset: int) -> None:
        """Reads straight into contiguous memory; ImageError if the file ends before."""
        if os.preadv(self.descriptor, [target], offset) != target.nbytes:
            raise _shorter(self.name)

    def whole(self) -> bytes:
        """Reads everything."""
        return os.pread(self.descriptor, self.size, 0)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing can be saved on a local disk."""


class MemoryFile:
    """Bytes at hand, such as a cell of a table."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.size = len(data)

    def at(self, offset: int, length: int) -> bytes:
        """Reads a few bytes; fewer where the file ends."""
        return self.data[offset : offset + length]

    def fill(self, target: memoryview, offset: int) -> None:
        """Reads straight into contiguous memory; ImageError if the file ends before."""
        _fill(target, self.at(offset, target.nbytes), self.name)

    def whole(self) -> bytes:
        """Reads everything."""
        return self.data

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Everything is at hand."""


class RemoteFile:
    """An object of a store, read whole unless ranges save much."""

    def __init__(self, root: Root, path: str) -> None:
        self.name = root.named(path)
        self._root = root
        self._path = path
        self._handle = root.open_remote(path)
        self.size = self._handle.size()
        self._data: bytes | None = None
        self._blocks: dict[int, bytes] = {}

    def at(self, offset: int, length: int) -> bytes:
        """Reads a few bytes; fewer where the file ends."""
        if self._data is None and self.size <= _REQUEST_BYTES:
            self.whole()
        if self._data is not None:
            return self._data[offset : offset + length]
        block, begin = divmod(offset, _BLOCK_BYTES)
        if begin + length > _BLOCK_BYTES:
            return self._range(offset, length)
        if block not in self._blocks:
            self._blocks[block] = self._range(block * _BLOCK_BYTES, _BLOCK_BYTES)
        return self._blocks[block][begin : begin + length]

    def fill(self, target: memoryview, offset: int) -> None:
        """Reads straight into contiguous memory; ImageError if the file ends before."""
        _fill(target, self.at(offset, target.nbytes), self.name)

    def whole(self) -> bytes:
        """Reads everything."""
        if self._data is None:
            self._data = self._range(0, self.size)
        return self._data

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Reads everything at once where that is no slower than the ranges one by one."""
        cost = sum(length + _REQUEST_BYTES for _, length in ranges)
        if cost >= self.size + _REQUEST_BYTES:
            self.whole()

    def _range(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        if length == 0:
            return b""
        return self._root.patiently(self._path, lambda: bytes(self._handle.read_at(length, offset)))

    def close(self) -> None:
        """Lets the store go."""
        self._handle.close()


def open_file(root: Root, path: str, stack: contextlib.ExitStack) -> ImageFile:
    """Opens a file below the root; `stack` closes it.

    Raises:
        OSError: as the system says, for a local file.
        ImageError: if it lies outside the root or is no regular file.
        RootVanishedError: if an object store does not answer.
    """
    if root.folder is None:
        return stack.enter_context(contextlib.closing(RemoteFile(root, path)))
    name = root.local_path(path)
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return LocalFile(descriptor, name)


def _fill(target: memoryview, data: bytes, name: str) -> None:
    if len(data) != target.nbytes:
        raise _shorter(name)
    target.cast("B")[:] = data


def _shorter(name: str) -> ImageError:
    return ImageError(f"{name} became shorter while it was read. Write it again.")
