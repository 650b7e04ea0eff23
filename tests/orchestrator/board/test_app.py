"""The board: every page, what it refuses, and what it asks a run to do."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.board.app import make_app
from orchestrator.board.run_cache import Hub
from orchestrator.search.trial_process import stop_file
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded, TrialStarted
from tests.orchestrator.board.planted import HOSTILE, LONG, TOKEN, LiveDriver, write_store
from tests.orchestrator.report.test_report import Page

ROOT = Path(__file__).resolve().parents[3]
ORIGIN = {"origin": "http://localhost"}
TABS = ("", "/trials", "/curves", "/results", "/data", "/logs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


def enter(store, base, hosts=("localhost",)):
    app = make_app(Hub(store, base), TOKEN, hosts)
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    assert 200 == client.get("/", params={"token": TOKEN}).status_code
    return client


@pytest.fixture
def client(finished, tmp_path):
    return enter(finished, tmp_path)


@pytest.fixture
def live(tmp_path):
    store = write_store(tmp_path / "store")
    driver = LiveDriver(store)
    driver.begin_search()
    yield enter(store, tmp_path), driver
    driver.leave()


def words(answer):
    assert 200 == answer.status_code, answer.text
    return Page(answer.text).words


def test_the_list_names_every_run_with_state_and_score(live):
    client, _ = live
    text = words(client.get("/"))
    assert "live-1RUNNING" in text
    assert re.search(r"masks-1SUCCEEDED0\.\d{3}.*0\.61050 complete, 5 pruned, 1 failed", text)


@pytest.mark.parametrize("tab", TABS)
def test_every_page_of_a_finished_run_is_drawn_and_asks_for_nothing_elsewhere(client, tab):
    answer = client.get(f"/runs/masks-1{tab}")
    page = Page(answer.text)
    assert "masks SUCCEEDED" in page.words
    assert "could not be drawn" not in page.words
    addresses = [*page.values("src"), *page.values("href"), *page.values("action")]
    assert all(re.match(r"(/(?!/)|#|data:)", address) for address in addresses)
    assert "style" not in {name for _, name, _ in page.attributes}  # the policy forbids it
    assert "<script>" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_pages_show_what_the_report_shows(client):
    assert "expected to reach at least macro F1" in words(client.get("/runs/masks-1"))
    results = words(client.get("/runs/masks-1/results"))
    assert "half-cutmix > single" in results
    assert "Confirmed settings; members are marked" in results
    assert "Class distributions" in words(client.get("/runs/masks-1/data"))
    assert "stage report: SUCCEEDED" in words(client.get("/runs/masks-1/logs"))
    assert "Learning curves" in words(client.get("/runs/masks-1/curves"))
    selection = client.get("/runs/masks-1/files/selection.json")
    assert "a1b2c3d4" in selection.json()["members"]
    assert "attachment" in selection.headers["content-disposition"]


def test_without_the_token_nothing_is_shown(finished, tmp_path):
    app = make_app(Hub(finished, tmp_path), TOKEN)
    client = TestClient(app, base_url="http://localhost")
    for path in ("/", "/runs/masks-1", "/board.js", "/?token=wrong", "/?token="):
        assert 401 == client.get(path).status_code
    client.cookies.set("orchestrator-board-80", "wrong")
    assert 401 == client.get("/").status_code


def test_the_token_moves_from_the_address_into_a_cookie(finished, tmp_path):
    app = make_app(Hub(finished, tmp_path), TOKEN)
    client = TestClient(app, base_url="http://localhost", follow_redirects=False)
    answer = client.get("/runs/masks-1/trials?sort=wall&token=" + TOKEN)
    assert (303, "/runs/masks-1/trials?sort=wall") == (
        answer.status_code,
        answer.headers["location"],
    )
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    outside = client.get("http://localhost//elsewhere.example/?token=" + TOKEN)
    assert outside.headers["location"].startswith("/elsewhere.example")


def test_another_name_of_the_machine_is_refused(finished, tmp_path):
    client = enter(finished, tmp_path)
    answer = client.get("/", headers={"host": "rebound.example"})
    assert 421 == answer.status_code


@pytest.mark.parametrize("origin", [None, "null", "http://elsewhere.example", "https://localhost"])
def test_a_change_from_another_origin_is_refused(live, origin):
    client, driver = live
    driver.start("s-1")
    for path in ("/runs/live-1/cancel", "/runs/live-1/trials/s-1/stop", "/submit"):
        headers = {"origin": origin} if origin else {}
        assert 403 == client.post(path, headers=headers).status_code
    assert not list((driver.root / "control").glob("*"))


def test_reading_changes_nothing(live):
    client, driver = live
    driver.start("s-1")
    for path in ("/runs/live-1/cancel", "/runs/live-1/trials/s-1/stop", "/runs/live-1/resume"):
        assert client.get(path).status_code in {404, 405}
    assert not (driver.root / "control").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/runs/nobody",
        "/runs/%2e%2e",
        "/runs/..%2Fruns%2Fmasks-1",
        "/runs/masks-1/files/driver.lock",
        "/runs/masks-1/files/..%2Fevents.jsonl",
        "/runs/masks-1/trials/nobody",
        "/nothing",
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(client, path):
    answer = client.get(path)
    assert 404 == answer.status_code


def test_a_running_trial_is_stopped_and_an_ended_one_is_not(live):
    client, driver = live
    driver.start("s-1")
    driver.start("s-2")
    driver.end("s-2", score=0.5)
    page = client.get("/runs/live-1")
    assert "/runs/live-1/trials/s-1/stop" in page.text
    assert "/runs/live-1/trials/s-2/stop" not in page.text
    answer = client.post("/runs/live-1/trials/s-1/stop", headers=ORIGIN)
    assert "asked to stop" in words(answer)
    assert stop_file(driver.root / "control", "s-1").exists()
    refused = client.post("/runs/live-1/trials/s-2/stop", headers=ORIGIN)
    assert 409 == refused.status_code
    assert "trial s-2: a running trial was required, it is COMPLETE" in Page(refused.text).words
    assert not stop_file(driver.root / "control", "s-2").exists()


def test_a_live_run_is_cancelled_and_a_finished_one_is_not(live):
    client, driver = live
    assert "asked to end" in words(client.post("/runs/live-1/cancel", headers=ORIGIN))
    assert (driver.root / "control/cancel").exists()
    refused = client.post("/runs/masks-1/cancel", headers=ORIGIN)
    assert "a live run was required, it is SUCCEEDED" in Page(refused.text).words
    refused = client.post("/runs/live-1/resume", headers=ORIGIN)
    assert "a stopped run was required, it is live" in Page(refused.text).words


def test_a_resume_that_fails_says_where_its_output_is(live):
    client, driver = live
    driver.leave()
    answer = client.post("/runs/live-1/resume", headers=ORIGIN)
    assert 409 == answer.status_code
    assert "its driver ended with exit code" in Page(answer.text).words
    log = (driver.root / "driver.log").read_text()
    assert "resolved.yaml was required" in log
    assert "resolved.yaml was required" in words(client.get("/runs/live-1/logs"))


def test_an_uploaded_spec_shows_its_problems_with_their_lines(live):
    client, _ = live
    upload = {"file": ("my spec.yaml", b"version: 1\nname: x\nsteps: 3\n")}
    answer = client.post("/submit", headers=ORIGIN, files=upload)
    assert 422 == answer.status_code
    text = Page(answer.text).words
    assert "my spec.yaml has problems" in text
    assert "my_spec.yaml:3:1" in text
    assert "steps" in text
    refused = client.post("/submit", headers=ORIGIN, data={"text": "a: 1", "base": "nowhere"})
    assert "found none" in Page(refused.text).words
    refused = client.post("/submit/start", headers=ORIGIN, data={"text": "version: 1\n"})
    assert 409 == refused.status_code
    assert "found nothing" in Page(client.post("/submit", headers=ORIGIN).text).words


def test_a_spec_without_problems_shows_its_plan_before_anything_runs(tmp_path, drawn):
    store = Store(tmp_path / "store")
    (tmp_path / "data").mkdir()
    (tmp_path / "experiments").mkdir()
    (tmp_path / "data/sample").symlink_to(drawn)
    client = enter(store, tmp_path)
    text = (ROOT / "experiments/smoke.yaml").read_text()
    answer = client.post("/submit", headers=ORIGIN, data={"text": text, "base": "experiments"})
    plan = words(answer)
    assert "What spec.yaml would run" in plan
    assert "search WOULD_RUN" in plan
    assert not (store.root / "runs").exists()
    assert "Start this run" in plan


def test_a_search_that_trains_folds_shows_its_best_setting(live):
    client, driver = live
    for setting, fold, score in (("aa", 0, 0.25), ("aa", 1, 0.75), ("bb", 0, 0.875)):
        name = f"s-{setting}-s0-f{fold}"
        facts = {"setting": setting, "variant": "base", "phase": "search", "fold": fold}
        driver.append(TrialStarted(trial_id=name, key="k", **facts))
        driver.report(name, 1, 0.9)
        metrics = {"val_macro_f1": 0.9, "fold_score": score}
        driver.append(TrialEnded(trial_id=name, status="COMPLETE", metrics=metrics))
    answer = client.get("/runs/live-1")
    text = words(answer)
    assert "Best setting in search so far: 0.500, its mean over 2 folds, by aa (base)" in text
    assert "/runs/live-1/trials?text=aa" in Page(answer.text).values("href")
    by_fold = client.get("/runs/live-1/trials?sort=fold_score")
    assert "on its fold" in words(by_fold)
    names = re.findall(r"s-[ab]{2}-s0-f\d(?=</code>)", by_fold.text)
    assert ["s-bb-s0-f0", "s-aa-s0-f1", "s-aa-s0-f0"] == names[:3]
    table = list(csv.DictReader(client.get("/runs/live-1/trials.csv").text.splitlines()))
    scores = {row["trial_id"]: row["fold_score"] for row in table}
    assert "0.75" == scores["s-aa-s0-f1"]
    driver.leave()
    best = {"val_macro_f1": 0.9, "fold_score": 0.5, "n_folds": 2}
    summary = {"state": "FAILED", "trials": {"complete": 3}, "best": best, "wall_s": 1.0}
    (driver.root / "summary.json").write_text(json.dumps(summary))
    assert re.search(r"live-1FAILED–.*0\.5003 complete", words(client.get("/")))


def test_hostile_names_are_text(live):
    client, driver = live
    driver.start(HOSTILE, 0, variant=HOSTILE, **{f"train.{HOSTILE}": HOSTILE})
    driver.end(HOSTILE, "FAILED", error=f"{HOSTILE} {LONG}")
    driver.start(LONG, 1)
    for path in ("/runs/live-1", "/runs/live-1/trials", "/runs/live-1/curves", "/runs/live-1/logs"):
        answer = client.get(path)
        assert 200 == answer.status_code
        assert "<img" not in answer.text
        assert "\u202e" not in answer.text
        Page(answer.text)  # elements close in order
    page = Page(client.get("/runs/live-1/trials").text)
    links = [link for link in page.values("href") if "/trials/%3C" in link]
    assert 200 == client.get(links[0]).status_code
    assert "onerror" in words(client.get(links[0]))


def test_the_command_prints_an_address_with_a_token_and_listens_on_loopback(finished):
    command = [sys.executable, "-m", "orchestrator", "board", "--port", "0", "--store"]
    server = subprocess.Popen(
        [*command, str(finished.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = server.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        import httpx2

        with httpx2.Client(follow_redirects=True) as browser:
            assert "masks-1" in browser.get(address).text
            place = address.split("/?")[0]
            events = []
            with browser.stream("GET", f"{place}/runs/masks-1/events", timeout=30) as answer:
                for line in answer.iter_lines():
                    events.append(line)
                    if line.startswith("data:"):
                        break
        assert "event: change" in events
        assert "text/event-stream" in answer.headers["content-type"]
    finally:
        server.terminate()
        assert 0 == server.wait(timeout=30)
