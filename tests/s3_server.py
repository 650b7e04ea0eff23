"""A local S3 server with a line to it that a test can cut."""

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler

KEYS = {"AWS_ACCESS_KEY_ID": "canary-id-4711", "AWS_SECRET_ACCESS_KEY": "canary-secret-4711"}


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class Line:
    """Passes bytes on to the server, until it is cut; what a client sees then is a dead server."""

    def __init__(self, target):
        self.target = target
        self.port = free_port()
        self.cut_after = None  # bytes of a request
        self._sockets = []
        self._listener = None
        self.mend()

    def mend(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self):
        self.cut_after = None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets.clear()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self._sockets += [client, server]
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source, sink, is_request):
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                if is_request and self.cut_after is not None and passed > self.cut_after:
                    self.cut()
                    return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class S3Server:
    """moto's server in a process of its own."""

    def __init__(self):
        port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.direct = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "moto's server did not start"
                time.sleep(0.05)
        self.line = Line(port)
        self._n_buckets = 0

    @property
    def environment(self):
        """What names this server and its keys to a process."""
        return {
            **KEYS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.line.port}",
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self):
        self._n_buckets += 1
        name = f"bucket-{self._n_buckets}"
        self.put(name)
        return name

    def put(self, name, data=b""):
        """Write an object as another program does: a name may end with a slash, or have two."""
        url = f"{self.direct}/{urllib.parse.quote(name)}"
        urllib.request.urlopen(urllib.request.Request(url, data=data, method="PUT")).close()

    def close(self):
        self.line.cut()
        self.process.kill()
        self.process.wait()


class Refusing(BaseHTTPRequestHandler):
    """Answers every request as S3 refuses it."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, code = self.server.refusal
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = answer  # noqa: N815 - the library's names
    do_PUT = answer  # noqa: N815

    def log_message(self, *_):
        pass


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # a port that another server has just left


@contextlib.contextmanager
def refusing_server(status, code, place=("127.0.0.1", 0)):
    """Yield the environment that names a server which refuses every request."""
    with _Server(place, Refusing) as server:
        server.daemon_threads = True
        server.refusal = (status, code)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, port = server.server_address
        yield {**KEYS, "AWS_ENDPOINT_URL": f"http://{address}:{port}"}
        server.shutdown()
