"""The job server of a Ray cluster: sends jobs, follows them, and calls commands where the store is."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.base.errors import UserError
from orchestrator.cluster.authentication import (
    TokenError,
    missing_token,
    token_source,
    wrong_token,
)
from orchestrator.cluster.connection import prepare_environment

USER_VARIABLE = "ORCHESTRATOR_USER"
"""Who has sent a job; all jobs run as the head's user."""
_POLL_S = 0.3
_RETRY_S = 1.0
_REFUSED = {401: missing_token, 403: wrong_token}  # HTTP status -> its error
_AWAY_S = 120.0  # for which a head that is followed may be away
_GO_ON = "submit again to go on: what is finished is in the store"
_PREAMBLE = re.compile(r"(Running entrypoint for job |\d{4}-\d\d-\d\d .*\bjob_manager)")
_ENDS = {"SUCCEEDED", "FAILED", "STOPPED"}
_TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Answer:
    """What a command on the cluster has printed, and its exit code."""

    text: str
    exit_code: int


@dataclass(frozen=True)
class JobFacts:
    """A job of a run."""

    submission_id: str
    status: str
    metadata: Mapping[str, str]
    started: float  # its number is larger for a later job
    message: str = ""  # what Ray says of its state

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDS


class JobServer:
    """The job server at an address."""

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        """Connect to it.

        Raises:
            UserError: nothing answers there, the token is refused, or its Ray is another version.
        """
        prepare_environment(address, insecure=insecure)
        import ray  # noqa: PLC0415 - a second, and the environment must stand before
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        # Ray prefers the variables to the argument
        hidden = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
        try:
            self._client = self._ask(lambda: JobSubmissionClient(address))
        except RuntimeError:  # it answers 404
            raise self._another_server() from None
        finally:
            os.environ.update(hidden)
        version = self._client._server_ray_version  # noqa: SLF001 - it was asked for already
        if version != ray.__version__:
            raise UserError(
                f"Ray {ray.__version__} was required at {address}, as it is here, found {version}; "
                "install one of them on both sides"
            )

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Make a request; turn what may go wrong on the way into one sentence."""
        from ray.exceptions import AuthenticationError  # noqa: PLC0415

        try:
            return request()
        except AuthenticationError as error:
            # with RAY_AUTH_MODE=token Ray asks for one before it asks the cluster
            asked = error.message.startswith("Authentication required") or token_source() is None
            raise (missing_token if asked else wrong_token)(self.address) from None
        except OSError as error:  # the errors of requests are such
            if getattr(error, "response", None) is not None or isinstance(error, ValueError):
                raise self._another_server() from None
            raise UserError(
                f"a Ray job server was required at {self.address}, nothing answers there: "
                f"{type(error).__name__}; start the cluster, or correct --address"
            ) from None

    def _another_server(self) -> UserError:
        return UserError(
            f"a Ray job server was required at {self.address}, another server answers there; "
            "correct --address"
        )

    def submit(
        self, words: Sequence[str], folder: Path, name: str, metadata: Mapping[str, str]
    ) -> bool:
        """Send a job that runs a command of this package.

        Args:
            words: of a command line after `python -m`; $RAY_ADDRESS is filled in over there.
            folder: what travels with it; the command runs in a copy of it.
            name: submission id.
            metadata: shown on the dashboard.

        Returns:
            False if there is a job of this name already.
        """
        quoted = [word if word == "$RAY_ADDRESS" else shlex.quote(word) for word in words]
        variables = {USER_VARIABLE: metadata["user"]} if "user" in metadata else {}
        command = f"exec python -m {' '.join(quoted)}"
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=command,
                    submission_id=name,
                    runtime_env={"working_dir": str(folder), "env_vars": variables},
                    metadata=dict(metadata),
                )
            )
        except RuntimeError as error:
            if "already" in str(error):
                return False
            raise UserError(f"the job {name} was not accepted: {str(error)[:300]}") from None
        return True

    def call(self, words: Sequence[str], folder: Path) -> Answer:
        """Run a short command on the cluster and wait for its answer; nothing is left of the job."""
        name = f"call-{secrets.token_hex(6)}"
        self.submit(words, folder, name, {"call": words[1] if len(words) > 1 else words[0]})
        try:
            while not (facts := self.job(name)).has_ended:
                time.sleep(_POLL_S)
            text = self._ask(lambda: self._client.get_job_logs(name))
            if facts.status == "FAILED" and _PREAMBLE.match(text) is None:
                text += f"\nthe job failed before its command began: {facts.message}\n"
            return Answer(_without_preamble(text), self.exit_code(name))
        finally:
            with suppress(UserError, RuntimeError):
                self._client.stop_job(name)
                self._client.delete_job(name)

    def job(self, name: str) -> JobFacts:
        """Return the state of a job."""
        return _facts(self._ask(lambda: self._client.get_job_info(name)))

    def jobs_of_runs(self) -> list[JobFacts]:
        """Return the jobs that drive runs, the latest first."""
        details = self._ask(self._client.list_jobs)
        facts = [_facts(each) for each in details if "run" in (each.metadata or {})]
        return sorted(facts, key=lambda each: each.started, reverse=True)

    def exit_code(self, name: str) -> int:
        """Return the exit code of a job that has ended."""
        details = self._ask(lambda: self._client.get_job_info(name))
        code = details.driver_exit_code
        if code is not None:
            return int(code)
        return 0 if _facts(details).status == "SUCCEEDED" else 1

    def follow(self, name: str, write: Callable[[str], object]) -> int:
        """Write what a job prints until it ends; return its exit code.

        Where the connection breaks, it is tried again for some minutes: the head may come back with
        its jobs. What was written is not repeated.

        Raises:
            TokenError: the head does not accept the token any more.
            UserError: the head stays away or has forgotten the job, or the command was killed.
        """
        log = _Log(write)
        broken_since: float | None = None
        while True:
            try:
                asyncio.run(self._tail(name, log))
                has_ended = self.job(name).has_ended
            except TokenError:
                raise
            except (RuntimeError, OSError, UserError) as error:
                if "status code 404" in str(error):
                    raise UserError(
                        f"the job {name} was required at {self.address}, the head there was started "
                        f"anew and does not know it; {_GO_ON}"
                    ) from None
                now = time.monotonic()
                broken_since = now if broken_since is None else broken_since
                if now - broken_since > _AWAY_S:
                    raise UserError(
                        f"the head at {self.address} was required while its job {name} is followed, "
                        f"nothing answers there for {_AWAY_S:.0f} s; start it; {_GO_ON}"
                    ) from None
                time.sleep(_RETRY_S)
                continue
            broken_since = None
            if has_ended:
                return self._exit_code_of_command(name)
            time.sleep(_POLL_S)

    async def _tail(self, name: str, log: _Log) -> None:
        """Read the log of a job from its begin until the connection ends.

        Raises:
            TokenError: the head does not accept the token.
            RuntimeError: the connection broke.
        """
        from aiohttp import ClientError, WSServerHandshakeError  # noqa: PLC0415

        log.begin()
        try:
            async for chunk in self._client.tail_job_logs(name):
                log.add(chunk)
        except WSServerHandshakeError as error:
            if error.status in _REFUSED:
                raise _REFUSED[error.status](self.address) from None
            raise RuntimeError(str(error)) from None
        except ClientError as error:
            raise RuntimeError(str(error)) from None
        log.end()

    def _exit_code_of_command(self, name: str) -> int:
        """Return the exit code of a job's command.

        Raises:
            UserError: it has none, because it was killed, or its machine was lost.
        """
        details = self._ask(lambda: self._client.get_job_info(name))
        code = details.driver_exit_code
        status = _facts(details).status
        if status != "FAILED" or (code is not None and code >= 0):
            return self.exit_code(name)
        reason = f"signal {-code}" if code is not None else "its node was lost"
        raise UserError(f"the driver, job {name}, was killed ({reason}); {_GO_ON}")


class _Log:
    """A job's log as it is written here; when it is read again, it is not written again."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._n_written = 0  # characters, after the preamble
        self.begin()

    def begin(self) -> None:
        """Begin a reading of the log."""
        self._first = ""  # what was read while it may still be Ray's own
        self._has_begun = False
        self._n_read = 0  # characters, after the preamble

    def add(self, chunk: str) -> None:
        """Take in what was read."""
        if self._has_begun:
            self._take(chunk)
            return
        self._first += chunk
        text = _without_preamble(self._first)
        if "\n" in text:
            self._has_begun = True
            self._take(text)

    def end(self) -> None:
        """End a reading."""
        if not self._has_begun:
            self._take(_without_preamble(self._first))

    def _take(self, text: str) -> None:
        new = text[max(0, self._n_written - self._n_read) :]
        self._n_read += len(text)
        if new:
            self._write(new)
            self._n_written += len(new)


def _facts(details: Any) -> JobFacts:
    status = getattr(details.status, "value", details.status)
    return JobFacts(
        details.submission_id or "",
        str(status),
        details.metadata or {},
        float(details.start_time or 0),
        details.message or "",
    )


def _without_preamble(log: str) -> str:
    """Return a job's log without the first lines, which Ray has written."""
    lines = log.splitlines(keepends=True)
    while lines and _PREAMBLE.match(lines[0]):
        del lines[0]
    return "".join(lines)
