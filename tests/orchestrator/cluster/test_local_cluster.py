"""One local cluster, as a run starts it: who can reach it, and what it says of itself."""

import os
import secrets
import subprocess
import sys

import psutil
import pytest

from orchestrator.cluster.connection import _prepare_environment, connect
from orchestrator.cluster.open_ports import OpenPort, open_ports
from orchestrator.run import doctor

_prepare_environment(None, insecure=False)  # Ray reads it when it is imported
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    """A cluster with a dashboard; yield what `connect` does."""
    with connect(None, num_cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def gcs_address(cluster):
    import ray

    return ray.get_runtime_context().gcs_address


def test_nothing_of_a_local_run_listens_on_another_interface_than_loopback(cluster):
    import ray

    @ray.remote
    def n_workers():
        return 1

    assert 1 == ray.get(n_workers.remote())
    driver = psutil.Process()
    ports = open_ports([driver, *driver.children(recursive=True)])
    listening = {port.process for port in ports}
    assert {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= listening
    assert [] == [port for port in ports if not port.is_local]
    told = [check.text for check in doctor._ports()]
    assert any("gcs_server" in text and "for this machine alone" in text for text in told)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (None, "asks for a token, found none here; set RAY_AUTH_TOKEN_PATH to a file with"),
        (secrets.token_hex(32), "does not accept the token from RAY_AUTH_TOKEN; set"),
    ],
)
def test_a_missing_and_a_wrong_token_are_one_sentence_each_at_once(
    gcs_address, tmp_path, token, text
):
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["HOME"] = str(tmp_path)
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    code = (
        "from orchestrator.base.errors import UserError\n"
        "from orchestrator.cluster.connection import connect\n"
        "try:\n"
        f"    connect({gcs_address!r}).__enter__()\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert f"the Ray cluster at {gcs_address} {text}" in done.stdout
    assert 1 == len(done.stdout.splitlines())
    assert token is None or token not in done.stdout


@pytest.mark.parametrize(
    ("ip", "is_local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::", False),
        ("0.0.0.0", False),
        ("192.0.2.2", False),
    ],
)
def test_an_address_is_local_if_only_this_machine_reaches_it(ip, is_local):
    assert is_local is OpenPort(ip, 1, "raylet", 1).is_local
