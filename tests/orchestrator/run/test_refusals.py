"""What a command says, and its exit code, when a cluster or a bucket refuses: the table of docs/cluster.md."""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.base.errors import UserError
from orchestrator.store import store_address
from tests.s3_server import free_port, refusing_server

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/cluster.md"
STORE = "s3://bucket/store"


def rows():
    """Return what is wrong -> (sentence, exit code)."""
    section = PAGE.read_text().partition("## When a cluster or a bucket refuses")[2]
    cells = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([0-9]) \|$", section, re.MULTILINE)
    return {name: (sentence, int(code)) for name, sentence, code in cells}


class Head(BaseHTTPRequestHandler):
    """Answers as a head does before a job is sent."""

    def do_GET(self):
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def head(status, body):
    with HTTPServer(("127.0.0.1", 0), Head) as server:
        server.answer = (status, body.encode())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ["--address", f"http://127.0.0.1:{server.server_address[1]}"]
        server.shutdown()


@contextlib.contextmanager
def bucket(status, code):
    with refusing_server(status, code) as environment:
        os.environ.update(environment)
        yield ["--store", STORE]


VERSION = json.dumps({"version": "4", "ray_version": "2.9.0", "ray_commit": "x"})
CASES = {
    "no token": lambda: head(401, "Unauthorized"),
    "no token, and RAY_AUTH_MODE=token": lambda: here(
        "--address", f"http://127.0.0.1:{free_port()}", RAY_AUTH_MODE="token"
    ),
    "wrong token": lambda: head(403, "Forbidden"),
    "another machine, no token here": lambda: here("--address", "http://192.0.2.1:8265"),
    "wrong address": lambda: here("--address", f"http://127.0.0.1:{free_port()}"),
    "another server there": lambda: head(404, "no such page"),
    "other Ray version": lambda: head(200, VERSION),
    "bucket denies": lambda: bucket(403, "AccessDenied"),
    "bucket is full": lambda: bucket(403, "QuotaExceeded"),
    "no such bucket": lambda: bucket(404, "NoSuchBucket"),
    "clock 10 minutes off": lambda: bucket(403, "RequestTimeTooSkewed"),
    "bucket does not answer": lambda: here(
        "--store", STORE, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}"
    ),
}


@contextlib.contextmanager
def here(*words, **environment):
    os.environ.update(environment)
    yield list(words)


@pytest.fixture
def nobody(tmp_path):
    """An environment without a token and without a store; what a test adds goes with it."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("RAY_", "AWS_", "ORCHESTRATOR_")):
            del os.environ[name]
    os.environ |= {"HOME": str(tmp_path), "ORCHESTRATOR_CACHE": str(tmp_path / "cache")}
    os.environ |= {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
    yield
    os.environ.clear()
    os.environ.update(before)
    store_address._open_bucket.cache_clear()


def write():
    """Put something into the store, as a run does; a full bucket still lists."""
    store_address.open_store(STORE).bucket.write("a", b"x")


def test_the_table_names_every_refusal_that_is_made_here():
    assert list(CASES) == list(rows())


@pytest.mark.parametrize("name", CASES)
def test_each_refusal_is_the_sentence_and_the_exit_code_of_the_table(name, nobody):
    if "bucket" in name or "clock" in name:
        pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    if name == "wrong token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with CASES[name]() as words:
        if name == "bucket is full":
            with pytest.raises(UserError) as caught:
                write()
            exit_code = caught.value.exit_code
            said = f"{caught.value}\n"
        else:
            # a process of its own: Ray keeps the first mode and token that a process has used
            command = [sys.executable, "-m", "orchestrator", "runs", *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            exit_code = done.returncode
            said = done.stderr
    sentence, expected_code = rows()[name]
    place = 0
    for part in sentence.split("..."):
        assert part in said[place:], f"{part!r} was required, found {said!r}"
        place = said.index(part, place) + len(part)
    assert expected_code == exit_code
    assert 1 == len(said.splitlines())
    assert "canary" not in said
    assert os.environ.get("RAY_AUTH_TOKEN", "no token") not in said
