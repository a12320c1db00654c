"""An object store on the loopback, spoken to over HTTP as any other."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


class LocalS3:
    """A running store; `put` copies a folder into it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._system = pafs.S3FileSystem(
            endpoint_override=self.endpoint, region=REGION, allow_bucket_creation=True
        )
        self._system.create_dir("screens")
        self._names = itertools.count()

    def put(self, folder: Path) -> str:
        """Copies a folder and returns its URL, as `Root.of` takes it."""
        url = self.url(folder.name)
        pafs.copy_files(
            str(folder),
            _path(url),
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=self._system,
        )
        return url

    def url(self, name: str) -> str:
        """The URL of a folder that is not there yet."""
        target = f"screens/{next(self._names)}-{name}"
        return f"s3://{target}?endpoint_override={self.endpoint}&region={REGION}"

    def write(self, url: str, path: str, data: bytes) -> None:
        """Puts one file into a folder that `put` returned."""
        with self._system.open_output_stream(f"{_path(url)}/{path}") as stream:
            stream.write(data)

    def remove(self, url: str, path: str) -> None:
        """Removes one file of a folder."""
        self._system.delete_file(f"{_path(url)}/{path}")

    def files(self, url: str) -> dict[str, tuple[int, int]]:
        """Size and time, in ns, of all files of a folder, by their path in it."""
        found = self._system.get_file_info(
            pafs.FileSelector(_path(url), recursive=True, allow_not_found=True)
        )
        return {
            info.path.removeprefix(f"{_path(url)}/"): (info.size, info.mtime_ns)
            for info in found
            if info.type == pafs.FileType.File
        }


def _path(url: str) -> str:
    return url.removeprefix("s3://").partition("?")[0]


@contextmanager
def running_s3() -> Iterator[LocalS3]:
    """Runs the store for a block, with credentials in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server.start()
        try:
            yield LocalS3(server.get_host_and_port()[1])
        finally:
            server.stop()
