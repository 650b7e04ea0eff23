"""One local cluster, as a run starts it: who can reach it, and what it says of itself."""

import hashlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from data_prep.catalog.images import encode
from data_prep.prep_config import Prep
from data_prep.preparation.photo_steps import Prepared
from data_prep.preparation.pool import ShardTask, prepare_shards
from data_prep.preparation.shards import read_shard
from orchestrator.cluster.connection import connect, prepare_environment
from orchestrator.cluster.open_ports import OpenPort, open_ports
from orchestrator.cluster.queue import Place, Turn
from orchestrator.cluster.ray_tasks import ray_map
from orchestrator.run import doctor
from orchestrator.run.prometheus_metrics import METRICS, RunMetrics
from orchestrator.search.card_sharing.shares import FixedShare
from orchestrator.search.controller import TrialController
from orchestrator.store.event_types import (
    EpochReported,
    ShardWritten,
    StageEnded,
    TrialEnded,
    TrialEvent,
    TrialStarted,
)
from orchestrator.store.ledger import Ledger, read
from tests.orchestrator.search import toy

prepare_environment(None, insecure=False)  # Ray reads it when it is imported
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


CALLS = [  # of Ray's servers, agents and workers: reading, writing, and running code
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.InternalKVGcsService/InternalKVGet",
    "ray.rpc.InternalKVGcsService/InternalKVPut",
    "ray.rpc.JobInfoGcsService/AddJob",
    "ray.rpc.ActorInfoGcsService/KillActorViaGcs",
    "ray.rpc.NodeManagerService/RequestWorkerLease",
    "ray.rpc.NodeManagerService/ShutdownRaylet",
    "ray.rpc.ObjectManagerService/Push",
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.CoreWorkerService/Exit",
    "ray.rpc.ReporterService/GetTraceback",
    "ray.rpc.LogService/ListLogs",
]
PATHS = [
    "/api/jobs/",
    "/api/version",
    "/api/v0/actors",
    "/logs/raylet.out",
    "/nodes?view=summary",
    "/worker/traceback?pid=1&ip=127.0.0.1",
    "/get_or_create_runtime_env",
    "/api/job_agent/jobs/",
    "/metrics",
]
OPEN_PAGES = ("# HELP",)  # metrics: counts and names of the machine and of the run, no content


def answered(port):
    """Return what a port answers to calls without a token."""
    import grpc
    import httpx2

    answers = []
    for path in PATHS:
        for method in ("GET", "POST"):
            try:
                answer = httpx2.request(method, f"http://127.0.0.1:{port.port}{path}", timeout=5)
            except httpx2.HTTPError:
                break  # it does not speak HTTP
            if answer.is_success and not answer.text.startswith(OPEN_PAGES):
                answers.append(f"{port.process}: {method} {path}: {answer.text[:60]!r}")
    with grpc.insecure_channel(f"127.0.0.1:{port.port}") as channel:
        for call in CALLS:
            try:
                channel.unary_unary(f"/{call}")(b"", timeout=2)
                answers.append(f"{port.process}: {call}")
            except grpc.RpcError as error:
                if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    break  # it does not speak gRPC
                refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
                if error.code() not in refused:
                    answers.append(f"{port.process}: {call}: {error.code().name}")
    return answers


def test_no_port_of_a_local_run_answers_a_call_without_the_token(cluster):
    import ray

    @ray.remote
    def n_workers():
        return 1

    assert 1 == ray.get(n_workers.remote())
    driver = psutil.Process()
    ports = open_ports([driver, *driver.children(recursive=True)])
    assert 5 < len({port.port for port in ports})
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answered, {port.port: port for port in ports}.values()))
    told = sorted({answer for of_port in answers for answer in of_port})
    assert not told, "\n".join(told)
    assert 1 == ray.get(n_workers.remote()), "the calls have disturbed nothing"


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (None, "asks for a token, found none here; set RAY_AUTH_TOKEN_PATH to a file with"),
        (secrets.token_hex(32), "does not accept the token from RAY_AUTH_TOKEN; set"),
    ],
    ids=["none", "wrong"],
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


# -- names ----------------------------------------------------------------------------------------
def note_titles(spec, report):
    """Write the names of this process and of its worker beside the trial's log."""

    def title_of(process):
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()

    titles = [title_of("self"), title_of(os.getppid())]
    deadline = time.monotonic() + 30
    # Ray gives the worker its class's name between two calls
    while spec.trial_id not in titles[1] and time.monotonic() < deadline:
        time.sleep(0.05)
        titles[1] = title_of(os.getppid())
    (Path(spec.store) / f"{spec.trial_id}.json").write_text(json.dumps(titles))
    report(1, {"val_macro_f1": 0.5})


class Stub:
    """Prepares a photo into the name of its process."""

    def __call__(self, data, *, always, watch):
        title = Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()
        return Prepared(data, None, None, None, None, [title])


def test_a_trial_s_worker_and_process_are_named_after_it(cluster, tmp_path):
    from ray.util.state import list_actors

    from orchestrator.search.ray_tune import run

    make = toy.spec_maker(tmp_path)
    wanted = [(make("base-0007", "base", {"x": 1.0}), None)]
    with Ledger(tmp_path) as ledger:
        controller = TrialController(ledger, "search", iter(wanted), shares=FixedShare())
        options = {"cpu": 0.5, "max_concurrent": 1, "modules": (), "body": note_titles}
        run(controller, tmp_path / "tune/search", **options)
    (trial_id,) = controller.records
    titles = json.loads((tmp_path / f"{trial_id}.json").read_text())
    assert [f"ray::trial {trial_id}", f"ray::TrialWorker {trial_id}"] == titles
    assert "TrialWorker" in {actor.class_name for actor in list_actors(cluster.dashboard_url)}


def test_workers_of_the_preparation_and_tasks_are_named(cluster, tmp_path):
    from ray.util.state import list_actors, list_tasks

    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
    content = hashlib.sha256(photo.read_bytes()).hexdigest()
    task = ShardTask(0, [(f"photo {number}", str(photo), content) for number in range(2)])
    prep = Prep.model_validate_json('{"steps": [{"name": "resize", "size": 8}]}')
    made = prepare_shards([task], prep, tmp_path, cpus=1, make=make_stub, n_workers=1)
    titles = {row["steps"][0] for shard in made for row in read_shard(shard.path).to_pylist()}
    assert {"ray::PrepWorker 1"} == titles
    workers = [
        actor
        for actor in list_actors(cluster.dashboard_url, detail=True)
        if actor.class_name == "PrepWorker"
    ]
    assert ["PrepWorker 1"] == [actor.repr_name for actor in workers]
    assert [1, 2, 3] == list(ray_map(abs, [-1, -2, -3], name="catalog"))
    deadline = time.monotonic() + 30  # Ray sends the events of tasks every second
    wanted = {f"catalog {number}/3" for number in (1, 2, 3)}
    while not wanted <= {task.name for task in list_tasks(cluster.dashboard_url, limit=1000)}:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def make_stub(prep, threads):
    return Stub()


def process_of(item):
    return os.getpid()


def test_tasks_that_read_a_bucket_share_no_process_with_others(cluster):
    readers = set(ray_map(process_of, range(6), name="reader", on_bucket=True))
    others = set(ray_map(process_of, range(6), name="other"))
    again = set(ray_map(process_of, range(6), name="reader", on_bucket=True))
    assert not others & (readers | again)


# -- metrics --------------------------------------------------------------------------------------
def test_the_metrics_of_a_run_are_exported_with_its_name_and_its_variants(cluster, tmp_path):
    started = {"phase": "search", "variant": "base", "setting": "s", "key": "k"}
    shard = tmp_path / "shard/k/shard.parquet"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(bytes(70))
    run = tmp_path / "runs/masks-1"
    run.mkdir(parents=True)
    with Ledger(run) as ledger:
        ledger.append(TrialStarted(trial_id="s-0", **started))
        options = {"n_planned": 5, "count_quarantined": lambda: 3, "store": tmp_path}
        metrics = RunMetrics("masks-1", ledger.state, **options)
        ledger.on_append = metrics.take
        ledger.append(TrialStarted(trial_id="s-1", **started))
        for epoch, score in ((1, 0.25), (2, 0.75), (3, 0.5)):
            event = EpochReported(trial_id="s-0", epoch=epoch, metrics={"val_macro_f1": score})
            ledger.append(event)
        ledger.append(TrialEnded(trial_id="s-0", status="COMPLETE"))
        ledger.append(ShardWritten(number=0, key="k", n_prepared=8, n_copied=2))
        ledger.append(StageEnded(stage="prepare", outcome="SUCCEEDED", wall_s=1.0, note=""))
    plant_folds(tmp_path / "runs/folds-1", options)
    expected = {
        ("ray_robust_vote_trials", "COMPLETE"): 1,
        ("ray_robust_vote_trials", "RUNNING"): 1,
        ("ray_robust_vote_best_score", None): 0.75,
        ("ray_robust_vote_epochs_total", None): 3,
        ("ray_robust_vote_photos_total", None): 8,
        ("ray_robust_vote_quarantined", None): 3,
        ("ray_robust_vote_queue", None): 3,
        ("ray_robust_vote_cache_bytes", None): 70,
    }
    assert {metric.exported_name for metric in METRICS} == {name for name, _ in expected}
    deadline = time.monotonic() + 60  # Ray collects them every few seconds
    exported = {}
    while exported != expected:
        assert time.monotonic() < deadline, exported
        time.sleep(0.5)
        exported = exported_metrics("masks-1")
    of_folds = exported_metrics("folds-1")
    assert 0.5 == of_folds["ray_robust_vote_best_score", None], "one fold of a setting is luck"


def plant_folds(run, options):
    """Write a ledger of two settings with two folds and one fold, and follow it by metrics."""
    run.mkdir()
    with Ledger(run) as ledger:
        metrics = RunMetrics("folds-1", ledger.state, **options, n_folds=2)
        ledger.on_append = metrics.take
        for setting, fold, score in (("a", 0, 0.25), ("a", 1, 0.75), ("b", 0, 0.875)):
            name = f"s-{setting}-s0-f{fold}"
            place = {"setting": setting, "seed": 0, "fold": fold}
            ledger.append(
                TrialStarted(trial_id=name, phase="search", variant="base", key="k", **place)
            )
            reported = {"val_macro_f1": 1.0}
            ledger.append(EpochReported(trial_id=name, epoch=1, metrics=reported))
            reported = {**reported, "fold_score": score}
            ledger.append(TrialEnded(trial_id=name, status="COMPLETE", metrics=reported))


def exported_metrics(run_id):
    """Return (name, state of trials) -> value, of a run."""
    import ray
    import requests

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    exported = {}
    for family in text_string_to_metric_families(requests.get(address, timeout=10).text):
        for sample in family.samples:
            if "robust_vote" in sample.name and sample.labels["run"] == run_id:
                assert "base" == sample.labels.get("variant", "base")
                exported[sample.name, sample.labels.get("state")] = sample.value
    return exported


# -- sharing --------------------------------------------------------------------------------------
def test_a_lower_priority_yields_between_trials_and_goes_on_from_its_ledger(cluster, tmp_path):
    """A real study of four trials of a second; a run of a higher priority comes during the first one."""
    folder = tmp_path / "low"
    events = folder / "events.jsonl"
    low = Turn(Place("low", "ann", 0, 0.0, max_runs=1), lambda _: None)
    high = Turn(Place("high", "bob", 5, 1.0, max_runs=1), lambda _: None)
    times = []

    def work_on_top():
        while not events.is_file() or b'"report"' not in events.read_bytes():
            time.sleep(0.02)
        with high:
            times.append(time.time())
            time.sleep(0.5)
            times.append(time.time())

    urgent = threading.Thread(target=work_on_top, daemon=True)
    urgent.start()
    options = {"max_concurrent": 1, "epoch_s": 0.1, "must_yield": low.must_yield}
    n_yields = 0
    with low:
        while toy.drive(folder, {"trials": 4, "sampler": "random"}, **options).has_yielded:
            n_yields += 1
            low.wait_again()
    urgent.join(10)
    assert 1 == n_yields
    begin, end = times
    of_trials = [event for event in read(events) if isinstance(event, TrialEvent)]
    during = [event for event in of_trials if begin < event.time < end]
    assert [] == during, "no trial starts, reports or ends while the other run works"
    assert isinstance([event for event in of_trials if event.time < begin][-1], TrialEnded)
    n_before = len({event.trial_id for event in of_trials if event.time < begin})
    assert 1 <= n_before < 4
    assert 4 == len([event for event in of_trials if isinstance(event, TrialEnded)])
    trained = (folder / "trained.log").read_text().splitlines()
    assert len(trained) == len(set(trained)), "no epoch is trained twice"
