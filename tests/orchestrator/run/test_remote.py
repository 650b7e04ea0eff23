"""A spec that is sent to a head as a job, and commands that run where the store is."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests

from orchestrator.cluster.jobs import JobFacts
from orchestrator.run import remote

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """Start a head on loopback with a token; yield its address and the environment of a client."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "MODEL_WEIGHTS": str(tmp_path / "no weights"),
    }
    port = free_port()
    ports = [f"--port={free_port()}", f"--dashboard-port={port}"]
    ports += [f"--dashboard-agent-listen-port={free_port()}"]
    size = ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
    command = [BIN / "ray", "start", "--head", *ports, *size]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        yield f"http://127.0.0.1:{port}", {**environment, "PYTHONPATH": str(ROOT)}
    finally:
        ours = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get("RAY_AUTH_TOKEN_PATH") == str(token)
        ]
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, timeout=10)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_sent_to_a_head_left_and_asked_for(head, workplace, tmp_path):
    """Its weights are missing over there, so the run fails at once, and nothing is trained."""
    address, environment = head
    canary = "c4n4ry" * 7
    environment |= {"WANDB_API_KEY": canary, "AWS_SECRET_ACCESS_KEY": canary}

    def run(*words, **changes):
        return subprocess.run(
            workplace.command(*words, "--address", address),
            cwd=workplace.root,
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    wrong = run("runs", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert (1, 1) == (wrong.returncode, len(wrong.stderr.splitlines())), wrong.stderr
    assert f"the Ray cluster at {address} does not accept the token" in wrong.stderr
    refused = run("submit", workplace.spec)
    assert 2 == refused.returncode, refused.stderr
    assert "a store of the cluster was required, found none" in refused.stderr
    model = "train.model={backbone: tf_efficientnet_lite0, pretrained: true, head: single}"
    words = ("submit", workplace.spec, "--set", model, "--store", tmp_path / "there")
    with subprocess.Popen(
        ["env", "--default-signal=INT", *workplace.command(*words, "--address", address)],
        cwd=workplace.root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        sent = next(watcher.stderr)
        watcher.send_signal(signal.SIGINT)
        left = watcher.stderr.read()
    assert 130 == watcher.returncode, left
    run_id = sent.removeprefix("run ").partition(":")[0]
    assert f"{address} sent, store {tmp_path / 'there'}" in sent
    assert f"run {run_id} goes on. To come back: logs {run_id} --follow" in left
    followed = run("logs", run_id, "--follow")
    assert 1 == followed.returncode
    assert "a verified file was required, found none" in followed.stdout
    status = run("status", "latest")
    assert 0 == status.returncode, status.stderr
    assert status.stdout.startswith(f"run {run_id}  FAILED"), status.stdout
    report = run("report", run_id, "--out", tmp_path / "page.html")
    assert 0 == report.returncode, report.stderr
    assert run_id in (tmp_path / "page.html").read_text()
    there = ("--store", tmp_path / "there", "--out", tmp_path / "other.html")
    none = run("report", "other", *there)
    assert 2 == none.returncode, none.stderr
    assert (
        f"on the cluster at {address}: RUN other: one run id or a unique prefix was required"
        in none.stderr
    )
    assert not (tmp_path / "other.html").exists()
    headers = {"Authorization": f"Bearer {Path(environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    jobs = requests.get(f"{address}/api/jobs/", headers=headers, timeout=10)
    (job,) = [job for job in jobs.json() if "run" in (job["metadata"] or {})]
    assert {"run", "spec", "user", "commit", "store"} <= set(job["metadata"])
    assert run_id == job["submission_id"] == job["metadata"]["run"]
    assert canary not in jobs.text


class Jobs:
    """A job server that has these jobs, the latest first."""

    address = "http://head:8265"

    def __init__(self, *jobs):
        self.jobs = [JobFacts(name, status, {"run": "a-1"}, 0.0) for name, status in jobs]

    def jobs_of_runs(self):
        return self.jobs


@pytest.mark.parametrize(
    ("jobs", "name", "is_new"),
    [
        ([], "a-1", True),
        ([("a-1", "RUNNING")], "a-1", False),
        ([("a-1", "PENDING")], "a-1", False),
        ([("a-1", "FAILED")], "a-1-2", True),
        ([("a-1-2", "RUNNING"), ("a-1", "STOPPED")], "a-1-2", False),
        ([("a-1-2", "SUCCEEDED"), ("a-1", "STOPPED")], "a-1-3", True),
    ],
)
def test_a_second_submit_attaches_to_a_live_job_and_follows_an_ended_one(jobs, name, is_new):
    assert (name, is_new) == remote._name_of(Jobs(*jobs), "a-1")


def test_a_ctrl_c_in_answer_to_the_first_sentence_leaves_the_run(monkeypatch):
    written = []

    def write(text):
        written.append(text)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(remote.sys, "stderr", SimpleNamespace(write=write))
    assert remote.INTERRUPTED == remote.follow(Jobs(), "a-1", "a-1", "run a-1: sent\n")
    assert "run a-1 goes on. To come back: logs a-1 --follow" in written[1]


def test_a_report_comes_from_the_cluster_whole(tmp_path, monkeypatch):
    """The command that packs it prints the same line; `make image-check` has both sides."""
    page = "<!doctype html>ä\n".encode() * 1000
    asked = []

    class Server(Jobs):
        def __init__(self, address):
            super().__init__(("a-1", "SUCCEEDED"))

        def call(self, words, folder):
            asked.append(words)
            return remote.Answer(
                f'said before\n{{"run": "a-1", "page": "{remote.packed(page)}"}}\n', 0
            )

    monkeypatch.setattr(remote, "JobServer", Server)
    monkeypatch.chdir(tmp_path)
    assert Path("a-1.html") == remote.report("http://head:8265", "latest", "s3://b/store", None)
    assert page == (tmp_path / "a-1.html").read_bytes()
    assert ["orchestrator.run.remote_report", "latest", "--store", "s3://b/store"] == asked[0]


def test_what_travels_is_code_and_the_spec_alone_and_its_size_is_limited(tmp_path, monkeypatch):
    spec = tmp_path / "mine.yaml"
    spec.write_text("name: mine")
    with remote._parcel(spec) as folder:
        kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert {"orchestrator", "trainers", "data_prep", "spec.yaml"} == {
            path.name for path in folder.iterdir()
        }
    assert kinds.isdisjoint({".pyc", ".jpg", ".parquet", ".safetensors", ".env"})
    monkeypatch.setattr(remote, "_MAX_BYTES", 1000)
    with pytest.raises(remote.UserError, match="MB were required for orchestrator, trainers"):
        remote._parcel(spec).__enter__()


@pytest.mark.parametrize(
    ("source", "test", "expected"),
    [
        ("s3://b/photos", None, False),
        ("/data/photos", "s3://b/test", False),
        ("../data/photos", None, True),
        ("s3://b/photos", "../data/test", True),
    ],
)
def test_the_folder_of_the_spec_is_named_only_where_data_are_relative_to_it(source, test, expected):
    """A cluster does not have the folder of a laptop, and needs none for data on a bucket."""
    sides = SimpleNamespace(
        source=SimpleNamespace(root=source),
        test=SimpleNamespace(root=test) if test else SimpleNamespace(holdout=0.2),
    )
    experiment = SimpleNamespace(spec=SimpleNamespace(data=sides))
    assert expected is remote._has_relative_root(experiment)
