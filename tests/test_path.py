"""The whole path on a real local cluster: a spec goes in, an ensemble comes out, and nothing is done twice."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import time
import zlib
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from orchestrator.store import tables
from orchestrator.store.event_types import LabelsOpened, ShardWritten, TrialEnded
from orchestrator.store.ledger import read

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FILES = [
    "spec.yaml",
    "resolved.yaml",
    "plan.json",
    "events.jsonl",
    "audit.json",
    "selection.json",
    "hypotheses.json",
    "submission.csv",
    "summary.json",
    "report/index.html",
    "study.log",
    "test_labels.parquet",
    "tune/search",
    "tune/confirm",
]
COLUMNS = {
    "trials.parquet": [name for name, _ in tables.TRIAL_FIELDS],
    "curves.parquet": ["trial_id", "epoch", "val_macro_f1"],
    "catalog.parquet": [
        "sample_id",
        "path",
        "group",
        "age",
        "label_mask",
        "label",
        "sha256",
        "width",
        "height",
        "status",
    ],
    "folds.parquet": ["variant", "seed", "sample_id", "group", "label", "role", "fold"],
    "predictions.parquet": tables.PREDICTIONS.names,
    "votes.parquet": [name for name, _ in tables.VOTE_FIELDS],
}


def events(run, kind):
    return [event for event in read(run / "events.jsonl") if isinstance(event, kind)]


def n_prepared(run):
    return sum(event.n_prepared for event in events(run, ShardWritten))


def check_answers(workplace, run):
    """The answers of `predict`, and of a bundle away from the store, are the stored ones."""
    bundle = workplace.root / "elsewhere/ensemble.zip"
    done = workplace.run("bundle", "latest", "--out", bundle)
    assert done.returncode == 0, done.stderr
    for source in ("latest", bundle):
        done = workplace.run(
            "predict",
            source,
            workplace.root / "data/sample/eval/images",
            "--out",
            workplace.root / "out.csv",
        )
        assert done.returncode == 0, done.stderr
        assert "ans: 0 wear/male/" in done.stderr
        assert sorted((run / "submission.csv").read_text().split()) == sorted(
            (workplace.root / "out.csv").read_text().split()
        )


def check_certificate(workplace, run):
    """It knows where every member comes from, and has looked at the test labels once."""
    made = json.loads((run / "certificate.json").read_text())
    assert (made["check"]["equal"], made["check"]["n_photos"], made["check"]["why"]) == (
        True,
        8,
        "",
    )
    for member in made["members"]:
        assert [(one["seed"], one["fold"]) for one in member["checkpoints"]] == [(0, 0), (0, 1)]
        for one in member["checkpoints"]:
            weights = workplace.root / "store/trial" / one["key"] / "weights.safetensors"
            assert hashlib.sha256(weights.read_bytes()).hexdigest() == one["weights_sha256"]
    assert [row["times"] for row in made["looked_at"] if row["what"] == "test labels"] == [1]
    assert made["statement"].startswith(
        "On groups (group: id) it has never seen, the vote of 2 members is expected"
    )


def check_leaderboard(workplace, run):
    """It sees the public half alone, and trains nothing again."""
    code, outcomes, said = workplace.submit(
        "--set", "select.policy=leaderboard", "--set", "data.test.public=0.5"
    )
    assert (code, outcomes["search"], outcomes["confirm"]) == (0, "CACHED", "CACHED"), said
    board = next(one for one in workplace.runs() if one != run)
    selection, made = (
        json.loads((board / name).read_text()) for name in ("selection.json", "certificate.json")
    )
    labels = tables.read(board / "test_labels.parquet").to_pylist()
    halves = Counter(row["part"] for row in labels)
    assert selection["peeks"]["n_photos"] == halves["public"]
    assert [(event.part, event.by) for event in events(board, LabelsOpened)] == [
        ("public", "select"),
        ("whole", "vote"),
    ]
    assert selection["ensemble"]["test"]["macro_f1"]["n_samples"] == halves["private"]
    assert [row["who"] for row in selection["ensemble"]["board"]] == [
        "ensemble",
        *selection["members"],
    ]
    ranked = [one["board_score"] for one in selection["candidates"]]
    assert sorted(ranked, reverse=True) == ranked
    assert "A leaderboard chose the members by its public half." in made["statement"]
    assert [row["times"] for row in made["looked_at"] if "other runs" in row["what"]] == [1]


def test_a_spec_goes_in_and_every_file_of_the_contract_comes_out_and_nothing_is_done_twice(
    workplace,
):
    code, outcomes, said = workplace.submit()
    assert code == 0, said
    assert {"SUCCEEDED"} == set(outcomes.values())
    (run,) = workplace.runs()
    assert [name for name in FILES if not (run / name).exists()] == []
    for name, columns in COLUMNS.items():
        assert set(columns) <= set(pq.read_schema(run / name).names), name
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["trials"], summary["quarantined"]) == (
        {"complete": 8, "pruned": 0, "failed": 0},
        0,
    )
    test_rows = [
        row
        for row in tables.read(run / "predictions.parquet").to_pylist()
        if row["split"] == "test"
    ]
    assert {None} == {row["target"] for row in test_rows}
    assert tables.read(run / "votes.parquet")["ImageID"].to_pylist() == [
        line.split(",")[0] for line in (run / "submission.csv").read_text().split()[1:]
    ]
    # again: all cached, without a cluster
    code, outcomes, said = workplace.submit()
    assert (0, {"CACHED"}, False) == (code, set(outcomes.values()), "dashboard" in said)
    # how to run and where to track are no part of a run
    workplace.change(
        (
            "tensorboard: true}",
            "tensorboard: false}\nresources: {per_trial: {cpu: 2}, max_concurrent: 1}",
        )
    )
    assert (0, {"CACHED"}) == (lambda done: (done[0], set(done[1].values())))(workplace.submit())
    check_answers(workplace, run)
    check_certificate(workplace, run)
    check_leaderboard(workplace, run)
    for command in (
        ("status", "latest"),
        ("results", "latest", "--format", "json"),
        ("report", run.name[:8]),
        ("runs",),
    ):
        shown = workplace.run(*command)
        assert (shown.returncode, bool(shown.stdout)) == (0, True), shown.stderr
    # another split: neither catalog nor prepare
    workplace.change(("val: 0.25, seed: 0", "val: 0.25, seed: 1"))
    code, outcomes, said = workplace.submit()
    assert (
        code,
        outcomes["catalog"],
        outcomes["prepare"],
        outcomes["split"],
    ) == (0, "CACHED", "CACHED", "SUCCEEDED"), said
    # a new photo: one preparation
    person = sorted((workplace.root / "data/sample/train/images").iterdir())[0]
    (person / "mask6.jpg").write_bytes((person / "mask1.jpg").read_bytes() + b"\0")
    code, outcomes, said = workplace.submit()
    assert (code, n_prepared(workplace.runs()[-1])) == (0, 1), said
    # other steps: all of them
    workplace.change(("size: 32", "size: 40"))
    code, outcomes, said = workplace.submit()
    assert (
        code,
        outcomes["catalog"],
        outcomes["prepare"],
        n_prepared(workplace.runs()[-1]),
    ) == (0, "CACHED", "SUCCEEDED", 253), said


def kill_when(workplace, ready, how=signal.SIGKILL):
    """Start a submit and send its driver a signal when its run folder is as wanted; return its exit code."""
    heard = [
        "env",
        "--default-signal=INT",
    ]  # a background job of a shell hands on that it does not hear SIGINT
    driver = subprocess.Popen(
        [*heard, *workplace.command("submit", workplace.spec)],
        cwd=workplace.root,
        env=workplace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 200
    while time.monotonic() < until and driver.poll() is None:
        if (
            (workplace.root / "store/runs").is_dir()
            and workplace.runs()
            and ready(workplace.runs()[0])
        ):
            break
        time.sleep(0.05)
    assert driver.poll() is None, "the driver ended before it could be killed"
    os.kill(driver.pid, how)
    return driver.wait(60)


def test_killed_in_search_it_goes_on_and_no_finished_trial_is_trained_again(workplace):
    workplace.change(("search: {trials: 2", "search: {trials: 4"))
    kill_when(
        workplace,
        lambda run: (run / "events.jsonl").exists() and len(events(run, TrialEnded)) >= 2,
    )
    (run,) = workplace.runs()
    before = {event.trial_id: event for event in events(run, TrialEnded)}
    code, _, said = workplace.submit()
    assert code == 0, said
    ended = events(run, TrialEnded)
    assert {1} == set(Counter(event.trial_id for event in ended).values())
    assert all(before[event.trial_id] == event for event in ended if event.trial_id in before)
    assert len(ended) == 8 + 4
    from ray.tune import ExperimentAnalysis

    for phase, n in (("search", 8), ("confirm", 4)):
        assert len(ExperimentAnalysis(str(run / "tune" / phase)).dataframe()) == n


def test_killed_in_prepare_it_goes_on_and_no_shard_is_made_twice(workplace, monkeypatch):
    workplace.change(("- center_crop", "- {name: crop_face, detector: fastmtcnn}"))
    kill_when(
        workplace,
        lambda run: (run / "events.jsonl").exists() and len(events(run, ShardWritten)) >= 1,
    )
    (run,) = workplace.runs()
    code, _, said = workplace.submit()
    assert code == 0, said
    made = [event.number for event in events(run, ShardWritten)]
    assert sorted(set(made)) == sorted(made)


def test_corrupt_photos_are_counted_and_the_run_finishes(workplace):
    people = sorted((workplace.root / "data/sample/train/images").iterdir())
    (people[0] / "mask1.jpg").write_bytes((people[0] / "mask1.jpg").read_bytes()[:900])
    (people[1] / "mask1.jpg").write_text("not a photo")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", len(header))
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    (people[2] / "mask1.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    test_photo = sorted((workplace.root / "data/sample/eval/images").iterdir())[0]
    test_photo.write_bytes(b"")
    code, _, said = workplace.submit()
    assert code == 0, said
    (run,) = workplace.runs()
    audit, summary = (
        json.loads((run / name).read_text()) for name in ("audit.json", "summary.json")
    )
    assert (audit["n_quarantined"], summary["quarantined"]) == (
        4,
        4,
    )  # three for training, one to be answered
    row = next(
        row
        for row in tables.read(run / "votes.parquet").to_pylist()
        if row["ImageID"] == test_photo.name
    )
    assert (row["votes"], row["outcome"]) == (0, "quarantined: empty file")


def test_poisoned_test_labels_change_nothing_before_the_vote(workplace):
    assert workplace.submit()[0] == 0
    table = workplace.root / "data/sample/eval/info.csv"
    lines = table.read_text().split()
    table.write_text(
        "\n".join(
            [
                lines[0],
                *(
                    f"{line.split(',')[0]},{(int(line.split(',')[1]) + 7) % 18}"
                    for line in lines[1:]
                ),
            ]
        )
        + "\n"
    )
    assert workplace.submit()[0] == 0
    first, second = workplace.runs()
    chosen = [json.loads((run / "selection.json").read_text()) for run in (first, second)]
    assert chosen[0]["ensemble"]["test"] != chosen[1]["ensemble"]["test"]
    for one in chosen:
        one["ensemble"].pop("test")
    assert chosen[0] == chosen[1]
    assert tables.read(first / "predictions.parquet").equals(
        tables.read(second / "predictions.parquet")
    )


def test_interrupted_in_confirm_it_says_so_and_resume_goes_on(workplace):
    code = kill_when(
        workplace,
        lambda run: (run / "events.jsonl").exists() and len(events(run, TrialEnded)) >= 5,
        signal.SIGINT,
    )
    (run,) = workplace.runs()
    assert (130, "INTERRUPTED") == (code, json.loads((run / "summary.json").read_text())["state"])
    done = workplace.run("resume", "latest")
    assert 0 == done.returncode, done.stderr
    assert {1} == set(Counter(event.trial_id for event in events(run, TrialEnded)).values())
    from ray import tune

    for phase in ("search", "confirm"):
        results = tune.Tuner.restore(str(run / "tune" / phase), trainable="Trial").get_results()
        assert 4 == len(results)
        for result in results:
            assert {"variant", "setting", "seed", "fold"} <= result.config.keys()
            assert (Path(result.checkpoint.path) / "weights.safetensors").exists()
    again = workplace.run("resume", "latest")
    assert 0 == again.returncode, again.stderr


def all_processes():
    return psutil.process_iter(["cmdline"])


def ray_logs(run):
    """Return the logs of the Ray session that began last with or after a run."""
    began = (run / "spec.yaml").stat().st_mtime - 1
    sessions = [path for path in Path("/tmp/ray").glob("session_2*") if path.is_dir()]
    recent = [path for path in sessions if path.stat().st_mtime > began]
    assert recent, "Ray keeps its logs elsewhere"
    return [path for session in recent for path in (session / "logs").rglob("*")]


def test_a_second_submit_follows_the_first_and_no_key_is_written_anywhere(workplace):
    """The canary stands in the environment as keys of W&B and of buckets, and as Ray's token.

    W&B is offline, so nothing is sent.
    """
    workplace.change(("wandb: null", "wandb: {project: masks, mode: offline}"))
    canary = "c4n4ry" * 7
    keys = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "RAY_AUTH_TOKEN")
    environment = {**workplace.environment, **dict.fromkeys(keys, canary)}
    command = workplace.command("submit", workplace.spec)
    settings = {"cwd": workplace.root, "env": environment, "capture_output": True, "text": True}
    first = subprocess.run([*command, "--detach"], check=False, timeout=60, **settings)
    assert 0 == first.returncode, first.stderr
    assert 0 == workplace.run("status", first.stdout.strip()).returncode, (
        "it can be asked for at once"
    )
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        cwd=workplace.root,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert "following it" in next(watcher.stderr)
        commands = [" ".join(process.info["cmdline"] or ()) for process in all_processes()]
        assert any(str(workplace.spec) in command for command in commands)
        assert not any(canary in command for command in commands)
        watcher.send_signal(signal.SIGINT)
        assert "no longer following; run" in watcher.stderr.read()
    assert 130 == watcher.returncode
    second = subprocess.run(command, check=False, timeout=300, **settings)
    assert 0 == second.returncode, second.stderr
    assert "is being driven by another process; following it" in second.stderr
    (run,) = workplace.runs()
    assert 8 + 1 == len(list((run / "wandb").glob("offline-run-*")))  # one is the ensemble's
    files = [*workplace.root.rglob("*"), *ray_logs(run)]
    found = [path for path in files if path.is_file() and canary.encode() in path.read_bytes()]
    assert [] == found


def test_missing_weights_end_a_run_as_failed_before_any_work(workplace, monkeypatch):
    monkeypatch.setenv("MODEL_WEIGHTS", str(workplace.root / "empty"))
    code, _, said = workplace.submit(
        "--set", "train.model={backbone: tf_efficientnet_lite0, pretrained: true, head: single}"
    )
    assert (code, "a verified file was required, found none" in said, "dashboard" in said) == (
        1,
        True,
        False,
    ), said
    (run,) = workplace.runs()
    assert "FAILED" == json.loads((run / "summary.json").read_text())["state"]
    assert "FAILED" in workplace.run("runs").stdout
