"""The token that a Ray cluster asks for: where it comes from, and what a refusal says."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.errors import UserError

TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the same
MODE = "RAY_AUTH_MODE"
_ANSWER_S = 10.0


@dataclass(frozen=True)
class TokenSource:
    """Where a token comes from. The token itself is in no message, and is read by Ray alone."""

    name: str  # of the variable, or the path of Ray's own file
    path: Path | None  # of the file that holds it

    @property
    def problem(self) -> str | None:
        """What is wrong with its file, and what to do; None if nothing is."""
        if self.path is None:
            return None
        if not self.path.is_file():
            return (
                f"{self.path} was required as a file, found none; write the cluster's token to it"
            )
        if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            return f"{self.path} can be read by others; run `chmod 600 {self.path}`"
        return None


def token_file() -> Path:
    """Return the file in which Ray looks for a token if no variable names one."""
    return Path.home() / ".ray" / "auth_token"


def token_source() -> TokenSource | None:
    """Return where Ray takes the token from, in its own order; None if there is no token."""
    if os.environ.get(TOKEN):
        return TokenSource(TOKEN, None)
    if name := os.environ.get(TOKEN_PATH):
        return TokenSource(f"{TOKEN_PATH}={name}", Path(name))
    path = token_file()
    return TokenSource(str(path), path) if path.is_file() else None


def write_token(path: Path) -> None:
    """Write a token that only its owner can read; Ray would let all read it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UserError(
            f"{path.parent}: a folder that can be written was required for Ray's token, "
            f"found: {error.strerror}; set HOME to one, or {TOKEN_PATH} to a file with a token"
        ) from None
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


class TokenError(UserError):
    """A cluster asks for a token, or for another one; to try again does not help."""


def missing_token(address: str) -> TokenError:
    """Return the error of a cluster that asks for a token and got none (HTTP 401)."""
    return TokenError(
        f"the Ray cluster at {address} asks for a token, found none here; "
        f"set {TOKEN_PATH} to a file with the cluster's token"
    )


def wrong_token(address: str) -> TokenError:
    """Return the error of a cluster that does not accept the token it got (HTTP 403)."""
    source = token_source()
    name = source.name if source else "elsewhere"
    return TokenError(
        f"the Ray cluster at {address} does not accept the token from {name}; "
        f"set {TOKEN_PATH} to a file with the cluster's token"
    )


def require_accepted_token(address: str) -> None:
    """Ask the head of a cluster once whether it accepts the token; Ray would try for minutes.

    Args:
        address: HOST:PORT of the head. Whatever else goes wrong is left to Ray.

    Raises:
        TokenError: it asks for a token, or for another one.
    """
    import grpc  # noqa: PLC0415
    from ray._private.authentication import (  # noqa: PLC0415 - there is no public way
        http_token_authentication as ray_token,
    )
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc  # noqa: PLC0415

    headers: dict[str, str] = {}
    if token_source() is not None:
        headers = ray_token.get_auth_headers_if_auth_enabled({})
    metadata = [(name.lower(), value) for name, value in headers.items()]
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId
        try:
            ask(gcs_service_pb2.GetClusterIdRequest(), timeout=_ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                return
            raise (wrong_token if metadata else missing_token)(address) from None
