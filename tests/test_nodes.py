"""Two Ray nodes on this machine, a token between them, and the smoke experiment on both."""

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = Path(sys.executable).with_name("ray")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def nodes(tmp_path):
    """Start a head and a worker with one CPU each; yield (address, environment); leave no process behind."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    port = free_port()
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    try:
        for where in (
            [
                "--head",
                f"--port={port}",
                "--node-ip-address=127.0.0.1",
                "--include-dashboard=false",
            ],
            [f"--address=127.0.0.1:{port}"],
        ):
            subprocess.run(
                [RAY, "start", *where, *common],
                env=environment,
                check=True,
                capture_output=True,
                timeout=120,
            )
        yield f"127.0.0.1:{port}", environment
    finally:
        # only these processes were given this token: a cluster of somebody else's goes on
        ours = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get("RAY_AUTH_TOKEN_PATH") == str(token)
        ]
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, timeout=10)


def test_the_smoke_experiment_runs_on_two_nodes_and_a_wrong_token_is_refused(
    nodes, workplace, tmp_path
):
    address, environment = nodes
    wrong = tmp_path / "wrong"
    wrong.write_text(secret := secrets.token_hex(32))
    command = workplace.command("submit", workplace.spec, "--address", address)
    refused = subprocess.run(
        command,
        cwd=workplace.root,
        env={**workplace.environment, **environment, "RAY_AUTH_TOKEN_PATH": str(wrong)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert 1 == refused.returncode
    assert "does not accept the token" in refused.stderr
    assert secret not in refused.stderr
    done = subprocess.run(
        command,
        cwd=workplace.root,
        env={**workplace.environment, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    time.sleep(0.1)
    hosts = nodes_used(address, environment)
    assert 2 == hosts


def nodes_used(address, environment):
    """Count the nodes of the cluster that are alive, asked through the same adapter."""
    code = (
        "import ray; from orchestrator.cluster.connection import connect\n"
        f"with connect({address!r}) as cluster: print(len([n for n in ray.nodes() if n['Alive']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return int(done.stdout.split()[-1])
