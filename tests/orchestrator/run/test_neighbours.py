"""What a run leaves is opened by the tools that people know, each with its own reader."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.run import tracking as track
from orchestrator.store.event_types import EpochReported, RunEnded, TrialEnded, TrialStarted
from tests.orchestrator.report.fake_run import SETTINGS, write_run

N_TRIALS = 6
N_EPOCHS = 3


@pytest.fixture
def mirrored(tmp_path):
    """A finished search of six trials, the last one stopped early, and its mirrors."""
    (tmp_path / "resolved.yaml").write_text(
        "search: {trials: 6, space: {train.lr: {float: [0.1, 1]}}}\ntrack: {tensorboard: true}\n"
    )
    events = []
    for number in range(N_TRIALS):
        name = f"s-a-{number}"
        params = {"train.lr": 0.1 + number / 10}
        facts = {"variant": "a", "setting": f"{number:08x}", "phase": "search", "key": "k"}
        events.append(TrialStarted(trial_id=name, params=params, number=number, **facts))
        for epoch in range(1, N_EPOCHS + 1):
            metrics = {"val_macro_f1": number / 10 + epoch / 100}
            events.append(EpochReported(trial_id=name, epoch=epoch, metrics=metrics))
        status = "PRUNED" if number == N_TRIALS - 1 else "COMPLETE"
        end = {"epochs": N_EPOCHS, "metrics": {"val_macro_f1": number / 10 + 0.03}}
        events.append(TrialEnded(trial_id=name, status=status, **end))
    events.append(RunEnded(state="SUCCEEDED"))
    now = time.time() + 60
    lines = [json.dumps(event.stamped(n, now).to_json()) + "\n" for n, event in enumerate(events)]
    (tmp_path / "events.jsonl").write_text("".join(lines))
    assert track.start(tmp_path).finish(60) is None
    return tmp_path


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ask(server, place):
    """Return what an address answers, as soon as the server listens."""
    import httpx2

    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended"
        try:
            answer = httpx2.get(place, timeout=30)
            answer.raise_for_status()
            return answer.json()
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"no answer from {place}")


def test_optuna_dashboard_shows_the_study(mirrored, free_port):
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [program, mirrored / "study.log", "--port", str(free_port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place = f"http://127.0.0.1:{free_port}/api/studies"
        (study,) = ask(server, place)["study_summaries"]
        detail = ask(server, f"{place}/{study['study_id']}?after=0")
    finally:
        server.terminate()
        server.wait()
    assert f"{mirrored.name}/a" == study["study_name"]
    assert "maximize" == study["directions"][0]
    states = [trial["state"] for trial in detail["trials"]]
    assert ["Complete"] * (N_TRIALS - 1) + ["Pruned"] == states
    best = detail["best_trials"][0]
    assert pytest.approx(0.43) == best["values"][0]
    assert "lr" in best["params"][0]["name"]
    assert N_EPOCHS == len(best["intermediate_values"])


def test_tensorboard_reads_every_epoch_of_a_trial(mirrored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted((mirrored / "tensorboard").iterdir())
    assert [f"s-a-{number}" for number in range(N_TRIALS)] == [path.name for path in folders]
    reader = EventAccumulator(str(folders[2]))
    reader.Reload()
    points = reader.Scalars("val_macro_f1")
    assert [(1, 0.21), (2, 0.22), (3, 0.23)] == [
        (point.step, pytest.approx(point.value)) for point in points
    ]


def test_duckdb_and_pandas_read_the_tables_of_a_run(tmp_path):
    import duckdb
    import pandas as pd

    root = write_run(tmp_path / "masks-1", n_people=6)
    trials = root / "trials.parquet"
    predictions = root / "predictions.parquet"
    query = f"""
        SELECT t.variant, avg((p.pred = p.target)::INT) AS accuracy, any_value(len(p.probs)) AS n
        FROM '{predictions}' p JOIN '{trials}' t USING (trial_id)
        WHERE p.split = 'oof' AND p.setting = '{SETTINGS[0]}' GROUP BY t.variant
    """
    ((variant, accuracy, n_classes),) = duckdb.sql(query).fetchall()
    frame = pd.read_parquet(predictions).query(f"split == 'oof' and setting == '{SETTINGS[0]}'")
    assert ("single", 18) == (variant, n_classes)
    assert pytest.approx((frame["pred"] == frame["target"]).mean()) == accuracy
    best = f"SELECT params->>'$.\"train.optimizer.lr\"' FROM '{trials}' WHERE phase = 'search'"
    assert all(0 < float(rate) < 1 for (rate,) in duckdb.sql(best).fetchall())
