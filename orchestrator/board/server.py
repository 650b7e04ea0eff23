"""Serve the board until it is interrupted."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import threading
from pathlib import Path

import click
import uvicorn

from orchestrator.base.errors import UserError
from orchestrator.board.app import make_app
from orchestrator.board.run_cache import Hub
from orchestrator.store.artifacts import Store

PORT = 8266
LOOPBACK = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost", "::1")


def serve(store: Store, *, host: str = LOOPBACK, port: int = PORT) -> None:
    """Print the address of the board and answer requests until an interrupt.

    Args:
        store: whose runs are shown; uploaded specs start from the current folder.
        host: address to listen on; others than a loopback address are reached from outside.
        port: 0 takes a free one.

    Raises:
        UserError: the port cannot be had.
    """
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    is_local = host == "localhost" or _is_loopback(host)
    hub = Hub(store, Path.cwd())
    app = make_app(hub, token, _NAMES if is_local else ())
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"http://{shown}:{port}/?token={token}")
    text = f"the board of {store.root}; Ctrl-C ends it, runs go on"
    if not is_local:
        text += ". It is open to the network, without encryption: who has the token can start runs"
    click.echo(text, err=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # its lines would show the token
        server_header=False,
        timeout_graceful_shutdown=5,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    hub.is_closing = lambda: server.should_exit
    threading.Thread(target=hub.read_ahead, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is printed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"--port {port}: a free port of {host} was required, found: {error.strerror}; "
            "choose another one, or --port 0"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
