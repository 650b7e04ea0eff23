"""The board over 100 runs and one of 50,000 trials, beside optuna-dashboard on the same study."""

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

N_RUNS = 100
N_TRIALS = 50_000
N_EPOCHS = 10
REPEATS = 5
CHROMIUM = Path("/usr/bin/chromium")
_SPEC = {"backbone": "tf_efficientnet_lite0", "padding": "x" * 800}
"""As long as the settings that a real trial carries."""
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1"


def board_50k():
    """Time the first paint of a run of 50,000 trials; the baseline is optuna-dashboard's page of the same study.

    Fair, because both show the best trials of one study from a file; the dashboard reads it with
    its own journal storage. The note has the list of 100 runs, sorting, the time until the whole
    ledger is read, and the memory of both servers.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        points = plant(store)
        ours = _measure_board(store)
        theirs = _measure_dashboard(store, points)
    note = (
        f"list of {N_RUNS} runs {ours['list_s']:.2f} s; whole ledger after {ours['whole_s']:.1f} s; "
        f"sorting {ours['sort_s']:.2f} s, while it is read {ours['early_sort_s']:.2f} s; "
        f"filtering {ours['filter_s']:.2f} s; memory {ours['mb']:.0f} MB; optuna-dashboard: "
        f"trials after {theirs['page_s']:.1f} s, {theirs['mb']:.0f} MB"
    )
    return "s", ours["page_s"], theirs["page_s"], REPEATS, note


def plant(store):
    """Write the runs, and return (number, params, score) of every trial of the large one."""
    from orchestrator.store.event_types import (
        EpochReported,
        RunEnded,
        RunStarted,
        TrialEnded,
        TrialStarted,
    )

    draw = random.Random(0)
    points = []
    events = [RunStarted(labels={"mask": ["on", "off"]})]
    for number in range(N_TRIALS):
        name = f"s-base-{number:05}"
        head = draw.choice(["single", "deep"])
        params = {"train.optimizer.lr": 10 ** draw.uniform(-5, -2), "train.model.head.name": head}
        n_epochs = N_EPOCHS if number % 3 else 3
        top = draw.random() / 2
        events.append(
            TrialStarted(
                trial_id=name,
                setting=f"{number:08x}",
                variant="base",
                phase="search",
                params=params,
                train=_SPEC,
                key="k" * 64,
                number=number,
            )
        )
        for epoch in range(1, n_epochs + 1):
            metrics = {"val_macro_f1": top + 0.03 * epoch, "val_loss": 1 / epoch, "lr": 1e-3}
            events.append(EpochReported(trial_id=name, epoch=epoch, metrics=metrics))
        score = top + 0.03 * n_epochs
        status = "COMPLETE" if number % 3 else "PRUNED"
        end = {"epochs": n_epochs, "wall_s": 12.0, "metrics": {"val_macro_f1": score}}
        events.append(TrialEnded(trial_id=name, status=status, **end))
        points.append((params, score))
    _write_run(store, "large-00000001", [*events, RunEnded(state="SUCCEEDED")])
    for number in range(N_RUNS - 1):  # later ones: the board reads the latest run ahead
        _write_run(store, f"small-{number:08x}", [RunStarted(), RunEnded(state="SUCCEEDED")])
    return points


def _write_run(store, run_id, events):
    root = store / "runs" / run_id
    root.mkdir(parents=True)
    with (root / "events.jsonl").open("w", encoding="utf-8") as ledger:
        for number, event in enumerate(events):
            ledger.write(json.dumps(event.stamped(number, 1.79e9 + number).to_json()) + "\n")
    (root / "resolved.yaml").write_text(f"name: {run_id}\n")
    facts = {"run_id": run_id, "state": "SUCCEEDED", "wall_s": 60.0, "trials": {"complete": 1}}
    (root / "summary.json").write_text(json.dumps(facts))


def _measure_board(store):
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "orchestrator", "board", "--port", "0", "--store", str(store)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        place = address.split("/?")[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=str(CHROMIUM), args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(address)
            lists = [_paint(page, place) for _ in range(REPEATS)]
            began = time.perf_counter()
            first = _paint(page, f"{place}/runs/large-00000001/trials")  # nothing of it was read
            early = [_sort(page, name) for name in ("trial", "time", "epochs")]
            page.get_by_text(f"{N_TRIALS:,}".replace(",", "\u202f") + " trials").wait_for()
            page.get_by_text("The ledger is still being read").wait_for(state="detached")
            whole_s = time.perf_counter() - began
            sorts = [_sort(page, name) for name in ("trial", "time", "last epoch", "epochs", "no.")]
            filter_s = _filter(page, "deep")
            page.goto(f"{place}/runs/large-00000001/curves")
            browser.close()
        mb = psutil.Process(server.pid).memory_info().rss / 1e6
    finally:
        server.terminate()
        server.wait()
    return {
        "list_s": statistics.median(lists),
        "page_s": first,
        "whole_s": whole_s,
        "early_sort_s": statistics.median(early),
        "sort_s": statistics.median(sorts),
        "filter_s": filter_s,
        "mb": mb,
    }


def _paint(page, address):
    page.goto(address, wait_until="commit")
    page.wait_for_selector("main h1")
    while (paint_ms := page.evaluate(_PAINT)) < 0:
        page.wait_for_timeout(5)
    return paint_ms / 1000


def _sort(page, heading):
    """Click a heading and wait until the table is in its order."""
    began = time.perf_counter()
    page.get_by_role("link", name=heading, exact=True).click()
    page.locator("th[aria-sort]").get_by_role("link", name=heading, exact=True).wait_for()
    return time.perf_counter() - began


def _filter(page, word):
    """Type a word and wait until the table has the trials with it alone."""
    began = time.perf_counter()
    page.get_by_label("contains").fill(word)
    page.get_by_text(re.compile(r"[\d\s]+ of [\d\s]+ trials")).wait_for()
    return time.perf_counter() - began


def _measure_dashboard(store, points):
    """Write the same trials as an Optuna journal and time the dashboard's answer with its trials."""
    import httpx2
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = store / "study.log"
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))), study_name="base"
    )
    kinds = {
        "train.optimizer.lr": FloatDistribution(1e-5, 1e-2, log=True),
        "train.model.head.name": CategoricalDistribution(["single", "deep"]),
    }
    study.add_trials(
        [
            optuna.trial.create_trial(params=params, distributions=kinds, value=score)
            for params, score in points
        ]
    )
    command = [Path(sys.executable).with_name("optuna-dashboard"), str(journal), "--port", "8267"]
    began = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        n_trials = 0
        while n_trials < len(points):
            try:
                place = "http://127.0.0.1:8267/api/studies/0?after=0"
                answer = httpx2.get(place, timeout=600).json()
                n_trials = len(answer.get("trials", ()))
            except httpx2.TransportError:
                time.sleep(0.05)
        page_s = time.perf_counter() - began
        mb = psutil.Process(server.pid).memory_info().rss / 1e6
    finally:
        server.terminate()
        server.wait()
    return {"page_s": page_s, "mb": mb}
