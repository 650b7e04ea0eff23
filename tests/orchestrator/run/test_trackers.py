"""W&B, MLflow and the webhook get what the ledger and the files of a run say, once."""

import hashlib
import hmac
import importlib.util
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ruamel.yaml import YAML

from orchestrator.base.errors import UserError
from orchestrator.run import tracking
from orchestrator.run.trackers import webhook
from orchestrator.run.trackers.mlflow_runs import MlflowRuns
from orchestrator.run.trackers.wandb_runs import WandbRuns
from orchestrator.spec.tracking import Track
from orchestrator.store.event_types import (
    RunEnded,
    StageEnded,
    TrialEnded,
    TrialEvent,
)
from orchestrator.store.ledger import read, replay
from tests.orchestrator.report.fake_run import write_run

SECRET = "between us"
BLOCK = 2**15  # of W&B's log, whose form is LevelDB's


def append(run, *events, late_s=60.0):
    """Write events as a driver does that ends after the mirror has begun."""
    with (run / "events.jsonl").open("a") as ledger:
        for number, event in enumerate(events, 10_000):
            ledger.write(json.dumps(event.stamped(number, time.time() + late_s).to_json()) + "\n")


@pytest.fixture
def run(tmp_path):
    """A finished run with an ensemble and two trials, whose ledger ends again in the next minute."""
    root = write_run(tmp_path / "masks-1", n_people=6)
    events = read(root / "events.jsonl")
    ends = [event for event in events if isinstance(event, TrialEnded)]
    complete = [event.trial_id for event in ends if event.status == "COMPLETE"]
    others = [event.trial_id for event in ends if event.status != "COMPLETE"]
    kept = {*complete[:1], *others[:1]}
    (root / "events.jsonl").unlink()
    shown = [e for e in events if not isinstance(e, TrialEvent) or e.trial_id in kept]
    append(root, *shown, late_s=-60.0)
    append(root, RunEnded(state="SUCCEEDED"))
    return root


def mirror(run, **track):
    """Mirror a run with a section `track`; return its trials."""
    yaml = YAML()
    resolved = yaml.load(run / "resolved.yaml")
    resolved["track"] = track
    resolved["search"] = None
    yaml.dump(resolved, run / "resolved.yaml")
    missing = tracking.start(run).finish(60)
    assert missing is None, (run / "track.log").read_text()
    return replay(read(run / "events.jsonl")).trials


def mirrored(sink, state):
    """Hand everything to a tracker, as the mirror does."""
    for trial in state.trials.values():
        sink.take(trial)
    sink.end(state)


# -- W&B -------------------------------------------------------------------------------------------
def wandb_records(folder):
    """Return the records of one offline folder."""
    from wandb.proto import wandb_internal_pb2

    (log,) = folder.glob("*.wandb")
    raw = log.read_bytes()
    place, parts, records = 7, b"", []
    while place + 7 <= len(raw):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length = int.from_bytes(raw[place + 4 : place + 6], "little")
        kind = raw[place + 6]
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def wandb_run(folder):
    """Return (facts, config, summary) of one offline folder."""
    config, summary = {}, {}
    for record in wandb_records(folder):
        if record.HasField("run"):
            facts = record.run
            for item in record.run.config.update:
                config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return facts, config, summary


def test_wandb_has_a_run_per_trial_and_one_of_the_ensemble_and_none_twice(run):
    import wandb

    track = {"wandb": {"project": "masks", "mode": "offline"}}
    settings = Track.model_validate(track).wandb
    state = replay(read(run / "events.jsonl"))
    trials = state.trials
    name = next(name for name, trial in trials.items() if trial.status == "COMPLETE")
    sink = WandbRuns(run, settings)
    sink.take(trials[name])  # then the mirror was killed before it noted that
    mirrored(sink, state)
    wandb.teardown()  # its service may still write, until the end of the process that mirrors
    folders = list((run / "wandb").glob("offline-run-*"))
    assert len(trials) + 1 == len(folders)
    named = {
        facts.display_name: (facts, config, summary)
        for facts, config, summary in map(wandb_run, folders)
    }
    assert {*trials, "ensemble"} == named.keys()
    facts, config, summary = named[name]
    trial = trials[name]
    assert ("masks-1", trial.phase, "masks") == (facts.run_group, facts.job_type, facts.project)
    assert (trial.params, trial.variant) == (config["params"], config["variant"])
    assert trial.metrics["val_macro_f1"] == pytest.approx(summary["best_val_macro_f1"])
    assert "COMPLETE" == summary["status"]
    _, config, summary = named["ensemble"]
    selection = json.loads((run / "selection.json").read_text())
    assert selection["members"] == config["members"]
    assert selection["ensemble"]["oof"]["macro_f1"]["estimate"] == summary["oof_macro_f1"]
    assert "out_of_fold_confusion_table" in str(named["ensemble"])
    (line,) = tracking.next_steps(run, Track.model_validate(track))
    assert f"W&B: wandb sync {run}/wandb/offline-run-*" == line


# -- MLflow ----------------------------------------------------------------------------------------
def test_mlflow_has_a_parent_with_nested_trials_and_none_twice(run):
    mlflow = pytest.importorskip("mlflow")
    track = {"mlflow": {"experiment": "masks"}}
    settings = Track.model_validate(track).mlflow
    state = replay(read(run / "events.jsonl"))
    trials = state.trials
    name = next(name for name, trial in trials.items() if trial.status == "COMPLETE")
    mirrored(MlflowRuns(run, settings), state)
    resumed = MlflowRuns(run, settings)
    resumed.take(trials[name])  # it was tried again
    resumed.end(state)
    uri = tracking.next_steps(run, Track.model_validate(track))[0].split()[-1]
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("masks")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    children = {found.info.run_name: found for found in runs if found is not parent}
    assert trials.keys() == children.keys()
    assert len(trials) + 1 == len(runs)
    assert {parent.info.run_id} == {
        child.data.tags["mlflow.parentRunId"] for child in children.values()
    }
    assert ("masks-1", "FINISHED") == (parent.info.run_name, parent.info.status)
    selection = json.loads((run / "selection.json").read_text())
    assert (
        selection["ensemble"]["oof"]["macro_f1"]["estimate"] == parent.data.metrics["oof_macro_f1"]
    )
    trial = trials[name]
    assert {path: str(value) for path, value in trial.params.items()} == children[name].data.params
    points = client.get_metric_history(children[name].info.run_id, "val_macro_f1")
    scores = {epoch: metrics["val_macro_f1"] for epoch, metrics in trial.reports.items()}
    assert scores == {point.step: point.value for point in points}


def test_a_missing_mlflow_is_told_before_anything_runs(monkeypatch):
    track = Track.model_validate({"mlflow": {"experiment": "masks"}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlflow-skinny was required, found none; pip install"):
        tracking.require(track)


# -- the webhook -----------------------------------------------------------------------------------
class Listener(ThreadingHTTPServer):
    """Takes messages on loopback; fails the first ones."""

    def __init__(self, n_failing=0):
        self.heard = []
        self.n_failing = n_failing
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"

    def wait_for(self, n):
        until = time.monotonic() + 30
        while len(self.heard) < n and time.monotonic() < until:
            time.sleep(0.05)
        return self.heard


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((body, dict(self.headers)))
        is_failing = len(self.server.heard) <= self.server.n_failing
        self.send_response(503 if is_failing else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def listener():
    with Listener() as server:
        yield server
        server.shutdown()


def test_the_end_of_a_run_is_told_signed(run, listener, monkeypatch):
    monkeypatch.setenv(webhook.SECRET, SECRET)
    mirror(run, notify=listener.url)
    ((body, headers),) = listener.wait_for(1)
    told = json.loads(body)
    assert ("run_ended", "masks-1", "SUCCEEDED") == (told["event"], told["run_id"], told["state"])
    selection = json.loads((run / "selection.json").read_text())
    assert selection["members"] == told["members"]
    assert selection["ensemble"]["oof"]["macro_f1"]["low"] == told["macro_f1"]["low"]
    assert {"name": "macro_f1", **told["macro_f1"]} == told["score"]
    expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert f"sha256={expected}" == headers[webhook.SIGNATURE]


def test_a_failure_is_told_with_its_stage_and_reason(run):
    append(run, StageEnded(stage="confirm", outcome="FAILED", note="no space"))
    told = webhook.message(run, "FAILED")
    assert ("FAILED", "confirm", "no space") == (
        told["state"],
        told["failed_stage"],
        told["reason"],
    )


def test_the_score_of_the_spec_is_told_by_its_name(run):
    selection = json.loads((run / "selection.json").read_text())
    selection["score"] = "accuracy of mask"
    selection["ensemble"]["oof"]["score"] = {"estimate": 0.8, "low": 0.7, "high": 0.9}
    (run / "selection.json").write_text(json.dumps(selection))
    told = webhook.message(run, "SUCCEEDED")["score"]
    assert {"name": "accuracy of mask", "estimate": 0.8, "low": 0.7, "high": 0.9} == told


def test_an_address_that_does_not_answer_costs_the_run_nothing(run, monkeypatch):
    with Listener() as server:
        url = server.url
        server.shutdown()
    mirror(run, notify=url)  # nobody listens there any more, and the mirror has nothing to say
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.0, 0.0))
    with pytest.raises(OSError, match="refused"):
        webhook.send(url, b"{}", None)


def test_a_message_is_sent_again_if_it_was_not_taken(monkeypatch):
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.0, 0.0))
    with Listener(n_failing=1) as server:
        webhook.send(server.url, b"{}", None)
        server.shutdown()
    assert [b"{}", b"{}"] == [body for body, _ in server.heard]
    assert webhook.SIGNATURE not in server.heard[0][1]
