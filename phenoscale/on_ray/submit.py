"""A study as a job of a cluster: submitted, followed to its end, found again.

What `ray job submit` does, with refusals before anything is sent and with the driver's exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
import tenacity
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from phenoscale.code_version import code_version
from phenoscale.mirror_store import without_password
from phenoscale.on_ray.job import check_options, command_of, module_of
from phenoscale.on_ray.start import HEAD_RESOURCE
from phenoscale.on_ray.token import use_token
from phenoscale.on_ray.working_dir import check_packed

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

Got = TypeVar("Got")

PATIENCE_S = 120.0
"""Seconds without an answer of the job server after which following ends; the job goes on."""
STOPPED, NOT_STARTED = 143, 125
"""Exit codes of a job that was stopped, and of one that never ran: those of shells and containers
for the same."""
_SHARE_OF_HEAD = 0.001  # of HEAD_RESOURCE: a thousand drivers fit
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray would prefer them to the argument
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended."""

    code: int
    """The driver's exit code, else `STOPPED` or `NOT_STARTED`."""
    text: str
    """The same in a sentence."""


class Cluster:
    """The job server of a cluster, with errors that say what to do."""

    def __init__(self, address: str) -> None:
        """Connects.

        Args:
            address: of the job server, which is the dashboard's: http://HOST:8265.

        Raises:
            ValueError: if the address is of another kind, or there is no token.
            OSError: if nobody answers there, or the token is refused.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"--address is {without_password(address)}, and a job server is http://HOST:8265, "
                "the address of the cluster's dashboard."
            )
        use_token()
        self._address = address
        self.shown = without_password(address)
        with self._errors():
            self._client = JobSubmissionClient(address)

    def submit(
        self, experiment: str, options: Sequence[str], working_dir: Path, name: str | None = None
    ) -> str:
        """Submits an experiment; returns the job's id, its name with a counter if it ran before.

        Args:
            experiment: a module, or a file below `working_dir`.
            options: of the experiment.
            working_dir: folder with the code, which goes to the cluster.
            name: of the job; by default the experiment's.

        Raises:
            ValueError: if it could not run there, or a job of this name still runs.
            OSError: if the cluster does not answer or take it.
        """
        working_dir = working_dir.resolve()
        module = module_of(experiment, working_dir)
        source = working_dir / Path(*module.split(".")).with_suffix(".py")
        check_options(source.read_text(), options)
        check_packed(working_dir, source)
        name = name or module.rpartition(".")[2]
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"--name is {name!r}, and a job's name has letters, digits, and ., _, - after the "
                "first. Give another."
            )
        self._check_head()
        with self._errors():
            return self._client.submit_job(
                entrypoint=command_of(module, options),
                submission_id=self._free_id(name),
                runtime_env={"working_dir": str(working_dir)},
                entrypoint_resources={HEAD_RESOURCE: _SHARE_OF_HEAD},
                metadata={"study": name, "experiment": module, "code_version": code_version()},
            )

    def follow(self, job: str, write: Callable[[str], object]) -> Ended:
        """Writes a job's log as it grows, from its beginning, until the job has ended.

        A broken stream is taken up where it broke.

        Raises:
            ValueError: if there is no such job.
            OSError: if the server has not answered for `PATIENCE_S`.
        """
        shown = 0
        while True:
            info = self._info(job)
            if info.status.is_terminal():
                write(self._patiently(lambda: self._client.get_job_logs(job))[shown:])
                return _ended(job, info)
            with self._errors():
                shown = asyncio.run(self._stream(job, shown, write))
            time.sleep(0.5)

    async def _stream(self, job: str, shown: int, write: Callable[[str], object]) -> int:
        """Writes what comes after the first `shown` characters; returns how many there are then."""
        seen = 0
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):  # asked again
            async for text in self._client.tail_job_logs(job):
                write(text[max(0, shown - seen) :])
                seen += len(text)
                shown = max(shown, seen)
        return shown

    def _info(self, job: str) -> JobDetails:
        return self._patiently(lambda: self._client.get_job_info(job))

    def _patiently(self, ask: Callable[[], Got]) -> Got:
        """Asks again while nobody answers."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_fixed(2),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            reraise=True,
        )
        with self._errors():
            return retrying(ask)

    def _free_id(self, name: str) -> str:
        """The name, or the next with a counter: Ray takes every id once."""
        taken = {
            job.submission_id: job.status
            for job in self._client.list_jobs()
            if job.submission_id and re.fullmatch(rf"{re.escape(name)}(-\d+)?", job.submission_id)
        }
        for job, status in taken.items():
            if not status.is_terminal():
                raise ValueError(
                    f"a job {job} is {status.lower()} on this cluster. Follow it with: phenoscale "
                    f"submit --attach {job}; or give another --name, and another --storage, for "
                    "one beside it."
                )
        counter = 1 + max((int(job[len(name) + 1 :] or 1) for job in taken), default=0)
        return name if counter == 1 else f"{name}-{counter}"

    def _check_head(self) -> None:
        with self._errors():
            nodes = list_nodes(self._address, filters=[("state", "=", "ALIVE")], limit=10_000)
        if not any(HEAD_RESOURCE in (node.resources_total or {}) for node in nodes):
            raise ValueError(
                f"no node of the cluster at {self.shown} offers {HEAD_RESOURCE}, where the "
                "drivers of studies run. Start its head with: ray start --head --resources "
                f"'{{\"{HEAD_RESOURCE}\": 1}}'"
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Sentences for what Ray raises, and its client addressed by our argument alone."""
        kept = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
        logging.disable(logging.WARNING)  # each upload is told in many lines
        try:
            yield
        except AuthenticationError as error:
            raise PermissionError(
                f"the cluster at {self.shown} refuses this token. Its own is what its head was "
                "started with: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or "
                "~/.ray/auth_token."
            ) from error
        except RayStateApiException as error:
            raise OSError(
                f"the cluster at {self.shown} does not tell its nodes: {error}"
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise ConnectionError(
                f"no job server answers at {self.shown}. Start a head (ray start --head), reach a "
                "remote one (ssh -L 8265:127.0.0.1:8265 HEAD), or give --address."
            ) from error
        except RuntimeError as error:  # an HTTP status, with the server's traceback
            if "does not exist" in str(error):
                raise ValueError(
                    f"the cluster at {self.shown} has no such job; see them with: ray job list "
                    f"--address {self.shown}"
                ) from error
            last = str(error).strip().splitlines()[-1]
            raise OSError(f"the job server at {self.shown} refuses: {last}") from error
        finally:
            os.environ.update(kept)
            logging.disable(logging.NOTSET)


def _passes(error: BaseException) -> bool:
    """Whether asking again may help: nobody answered, or the server itself failed."""
    return isinstance(error, OSError) or "status code 5" in str(error)


def _ended(job: str, info: JobDetails) -> Ended:
    code: int | None = info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        return Ended(code=0, text=f"job {job} succeeded")
    if info.status == JobStatus.STOPPED:
        return Ended(code=STOPPED, text=f"job {job} was stopped")
    if code is None:
        reason = " ".join((info.message or "no reason is known").split())
        return Ended(
            code=NOT_STARTED, text=f"job {job} has no exit code, {info.error_type}: {reason}"
        )
    code = 128 - code if code < 0 else code or 1  # a signal, as shells tell it
    return Ended(code=code, text=f"job {job} failed with exit code {code}")
