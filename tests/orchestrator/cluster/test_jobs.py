"""A job that is followed from another machine: what breaks on the way, and what the user reads then."""

import importlib.metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from orchestrator.base.errors import UserError
from orchestrator.cluster import jobs

PREAMBLE = "2026-11-28 09:00:00,000\tINFO job_manager.py:565 -- Runtime env is setting up.\n"
LOST = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


class Client:
    """A job server whose log is read in parts; an error stands for a connection that breaks."""

    def __init__(self, readings, *, status="SUCCEEDED", code=0, unknown=False):
        self.readings = list(readings)
        self.details = SimpleNamespace(
            submission_id="a-1", status=status, metadata={}, start_time=1, message="", driver_exit_code=code
        )  # fmt: skip
        self.unknown = unknown

    async def tail_job_logs(self, name):
        for part in self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]:
            if isinstance(part, Exception):
                raise part
            yield part

    def get_job_info(self, name):
        if self.unknown:
            raise RuntimeError("Request failed with status code 404: Job a-1 does not exist.")
        return self.details


def follow(client, monkeypatch, away_s=60.0):
    monkeypatch.setattr(jobs, "_RETRY_S", 0.0)
    monkeypatch.setattr(jobs, "_AWAY_S", away_s)
    server = object.__new__(jobs.JobServer)
    server.address = "http://head:8265"
    server._client = client
    written = []
    return server.follow("a-1", written.append), "".join(written)


def test_a_connection_that_breaks_is_made_again_and_nothing_is_written_twice(monkeypatch):
    readings = [
        [PREAMBLE, "catalog\npre", LOST],
        [LOST],
        [PREAMBLE, "catalog\nprepare", "\nend\n"],
    ]
    assert (0, "catalog\nprepare\nend\n") == follow(Client(readings), monkeypatch)


def test_a_log_without_an_end_of_line_is_written_once(monkeypatch):
    assert (0, "catalog") == follow(Client([[PREAMBLE, "cat", "alog"]]), monkeypatch)


def test_a_head_that_stays_away_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="the head at http://head:8265 was required") as caught:
        follow(Client([[LOST]]), monkeypatch, away_s=0.1)
    assert "nothing answers there" in str(caught.value)
    assert "submit again to go on" in str(caught.value)


def test_a_head_that_was_started_anew_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="started anew and does not know it; submit again"):
        follow(Client([[LOST], []], unknown=True), monkeypatch)


@pytest.mark.parametrize(("code", "reason"), [(-9, "signal 9"), (None, "its node was lost")])
def test_a_driver_that_was_killed_is_one_sentence(monkeypatch, code, reason):
    client = Client([["catalog\n"]], status="FAILED", code=code)
    with pytest.raises(UserError, match=rf"was killed \({reason}\); submit again to go on"):
        follow(client, monkeypatch)


def test_a_command_that_fails_by_itself_keeps_its_exit_code(monkeypatch):
    client = Client([["catalog\n"]], status="FAILED", code=2)
    assert (2, "catalog\n") == follow(client, monkeypatch)


class Head(BaseHTTPRequestHandler):
    """Tells its version as a head does, and refuses whatever else it is asked."""

    def do_GET(self):
        ray_version = importlib.metadata.version("ray")  # to import it would settle Ray's settings
        version = {"version": "4", "ray_version": ray_version, "ray_commit": "x"}
        is_version = self.path == "/api/version"
        body = json.dumps(version).encode() if is_version else b"refused"
        self.send_response(200 if is_version else self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "asks for a token, found none"), (403, "does not accept the token")],
)
def test_a_token_that_is_refused_while_a_job_is_followed_ends_it_at_once(
    monkeypatch, status, reason
):
    monkeypatch.setattr(jobs, "_RETRY_S", 60.0)  # a second try would end the test by its time limit
    with HTTPServer(("127.0.0.1", 0), Head) as head:
        head.status = status
        threading.Thread(target=head.serve_forever, daemon=True).start()
        server = jobs.JobServer(f"http://127.0.0.1:{head.server_address[1]}")
        with pytest.raises(UserError, match=reason):
            server.follow("a-1", lambda _: None)
        head.shutdown()
