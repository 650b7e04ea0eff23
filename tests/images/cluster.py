"""A Ray cluster of containers, with a token, beside an S3 server and Redis."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.images.containers import HOST, Container
from tests.s3_server import KEYS, free_port

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "robust-vote"
TOKEN = "/run/ray/token"  # inside a container
N_WORKERS = 2
S3_PORT = 9000
_REDIS_PORT = 6380
_START_S = 180.0


def _wait_for(address, port, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{address}:{port} does not answer") from None
            time.sleep(0.1)
        else:
            return


class S3:
    """moto's server, and the front that clients see; the front may die, the objects stay."""

    def __init__(self, folder):
        self.orders = Path(folder) / "s3.orders"
        self.orders.unlink(missing_ok=True)
        self._port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        self._server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_for("127.0.0.1", self._port)
        self._front = None
        self.start_front()
        self.put(BUCKET)

    @property
    def variables(self):
        return {
            **KEYS,
            "AWS_ENDPOINT_URL": f"http://{HOST}:{S3_PORT}",
            "AWS_REGION": "us-east-1",
        }

    @property
    def is_up(self):
        return self._front.poll() is None

    def start_front(self):
        """Start what clients speak to; it listens on the bridge."""
        words = [HOST, str(S3_PORT), str(self._port), str(self.orders)]
        self._front = subprocess.Popen(
            [sys.executable, "-m", "tests.images.s3_front", *words], cwd=ROOT
        )
        _wait_for(HOST, S3_PORT)

    def stop_front(self, number=signal.SIGKILL):
        self._front.send_signal(number)
        if number == signal.SIGKILL:
            self._front.wait()

    def continue_front(self):
        self._front.send_signal(signal.SIGCONT)

    def _url(self, name):
        return f"http://127.0.0.1:{self._port}/{urllib.parse.quote(name)}"

    def put(self, name, data=b""):
        # the default says that the data are a form, and moto reads them as one
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self._url(name), data, headers, method="PUT")
        urllib.request.urlopen(request).close()

    def get(self, name):
        # moto looks whether there are keys, not which
        headers = {"Authorization": "AWS anybody:unsigned"}
        request = urllib.request.Request(self._url(f"{BUCKET}/{name}"), headers=headers)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def names(self, prefix):
        """Return the names of all objects below a prefix."""
        space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
        names = []
        more = ""
        while True:
            query = urllib.parse.urlencode({"list-type": 2, "prefix": prefix})
            url = f"{self._url(BUCKET)}?{query}{more}"
            with urllib.request.urlopen(url) as answer:
                tree = ET.fromstring(answer.read())
            names += [key.text for key in tree.iter(f"{space}Key")]
            token = tree.findtext(f"{space}NextContinuationToken")
            if token is None:
                return names
            more = f"&{urllib.parse.urlencode({'continuation-token': token})}"

    def upload(self, folder, prefix):
        """Put a folder's files below a prefix."""
        files = [path for path in Path(folder).rglob("*") if path.is_file()]

        def send(path):
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            self.put(f"{BUCKET}/{name}", path.read_bytes())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, files))
        return len(files)

    def download(self, prefix, folder):
        """Bring all objects below a prefix into a folder."""
        for name in self.names(prefix):
            place = Path(folder) / name.removeprefix(prefix).lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.get(name))

    def close(self):
        for process in (self._front, self._server):
            process.kill()
            process.wait()


class Redis:
    """Where a head keeps what it must know again after its death."""

    def __init__(self):
        self.password = secrets.token_hex(16)
        words = ["--bind", HOST, "--port", str(_REDIS_PORT), "--save", "", "--requirepass"]
        self._process = subprocess.Popen(
            ["redis-server", *words, self.password], stdout=subprocess.DEVNULL
        )
        _wait_for(HOST, _REDIS_PORT)

    @property
    def variables(self):
        return {"RAY_REDIS_ADDRESS": f"{HOST}:{_REDIS_PORT}", "REDIS_PASSWORD": self.password}

    def close(self):
        self._process.kill()
        self._process.wait()


class Cluster:
    """A head and two workers; a node that has ended is started again when it is looked after."""

    def __init__(self, image, network, folder, s3, *, redis=None):
        self.image, self.network, self.folder = image, network, Path(folder)
        self.s3, self.redis = s3, redis
        self.token = secrets.token_hex(32)
        self.space = secrets.token_hex(4)  # of this cluster in Redis
        self.nodes = {}
        self._clients = []
        self.head_address = network.add("head")
        for number in range(N_WORKERS):
            network.add(f"worker-{number}")
        network.add("client")

    @property
    def url(self):
        return f"http://{self.head_address}:8265"

    def start(self):
        """Start all nodes and wait until the head knows them."""
        self.look_after()
        self.wait_for_nodes()

    def look_after(self):
        """Start what is missing or has ended, as an operator of clusters does; return the names."""
        started = []
        for name in ("head", *(f"worker-{number}" for number in range(N_WORKERS))):
            node = self.nodes.get(name)
            if node is None or node.has_ended:
                if node is not None:
                    node.kill()
                self.nodes[name] = self._start_node(name)
                started.append(name)
        return started

    def _start_node(self, name):
        common = ["--object-store-memory=200000000", "--disable-usage-stats", "--block"]
        variables = {"RAY_AUTH_TOKEN_PATH": TOKEN, **self.s3.variables}
        if name == "head":
            words = ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0"]
            if self.redis is not None:
                variables |= self.redis.variables
                variables["RAY_external_storage_namespace"] = self.space
                words.append(f"--redis-password={self.redis.password}")
        else:
            _wait_for(self.head_address, 6379, _START_S)
            words = [f"--address={self.head_address}:6379", "--num-cpus=1"]
        address = self.network.hosts[name]
        return self._container(
            name, ["ray", "start", *words, f"--node-ip-address={address}", *common], variables
        )

    def _container(self, name, command, variables, files=(), folder=None):
        return Container(
            self.image,
            self.network,
            self.folder / (folder or name),
            name,
            command,
            variables=variables,
            files={TOKEN: self.token, **dict(files)},
            log=self.folder / f"{name}.log",
        )

    def wait_for_nodes(self, limit_s=_START_S):
        """Wait until the head's pages list all nodes as alive."""
        deadline = time.monotonic() + limit_s
        while self.n_alive() <= N_WORKERS:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.n_alive()} nodes are alive after {limit_s:.0f} s")
            self.look_after()
            time.sleep(1)

    def n_alive(self):
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.url}/nodes?view=summary"
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode().count('"ALIVE"')
        except OSError:
            return 0

    def client(self, *words, files=(), variables=()):
        """Start a command of this package on a machine that has neither data nor store."""
        client = self._container(
            "client",
            [*self.image.entrypoint, *words],
            {"RAY_AUTH_TOKEN_PATH": TOKEN, **dict(variables)},
            files=files,
            folder=f"client-{len(self._clients)}",
        )
        self._clients.append(client)
        return client

    def find(self, *words):
        """Return (node, process) for each process of the cluster with one of these words."""
        found = []
        for node in self.nodes.values():
            found += [(node, process) for process in node.processes(*words)]
        return found

    def close(self):
        for node in (*self._clients, *self.nodes.values()):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                node.kill()
        self.nodes.clear()


@contextlib.contextmanager
def servers(folder, *, needs_redis):
    """Yield the S3 server and Redis, or None for it; they end with the block."""
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    with contextlib.ExitStack() as stack:
        s3 = S3(folder)
        stack.callback(s3.close)
        redis = None
        if needs_redis:
            redis = Redis()
            stack.callback(redis.close)
        yield s3, redis
