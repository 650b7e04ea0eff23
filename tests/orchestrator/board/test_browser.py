"""The board in a real browser: a running search is watched, filtered and stopped; hostile names stay text."""

import re
import subprocess
import sys
import threading
import time

import pytest

from orchestrator.search.trial_process import stop_file
from tests.orchestrator.board.planted import HOSTILE, LONG, LiveDriver, write_store
from tests.orchestrator.report.full_run import complete
from tests.visitor import Visitor

PATHS = ("", "/trials", "/curves", "/results", "/data", "/logs")

pytestmark = pytest.mark.slow


class BoardVisitor(Visitor):
    """A page of the board."""

    def __init__(self, browser, address, **context):
        super().__init__(browser, address.split("/?")[0], **context)
        self.page.goto(address)

    def go(self, path):
        """Open a page and wait until it is followed."""
        self.page.goto(self.place + path)
        self.page.locator("#connection", has_text="live").wait_for()


@pytest.fixture
def board(tmp_path):
    store = write_store(tmp_path / "store")
    complete(store.root / "runs/masks-1")
    driver = LiveDriver(store)
    driver.begin_search()
    command = [sys.executable, "-m", "orchestrator", "board", "--port", "0", "--store"]
    server = subprocess.Popen([*command, str(store.root)], stdout=subprocess.PIPE, text=True)
    yield server.stdout.readline().strip(), driver
    server.terminate()
    server.wait(timeout=30)
    driver.leave()


def drive(driver, ended):
    """Report epochs of two trials until one was asked to stop, as a driver does."""
    for epoch in range(1, 400):
        for name in ("s-deep-0", "s-single-1"):
            if name not in ended:
                driver.report(name, epoch, min(0.9, 0.2 + 0.01 * epoch))
        if "s-deep-0" not in ended and stop_file(driver.root / "control", "s-deep-0").exists():
            driver.end("s-deep-0", "PRUNED", score=0.3, why="stopped by hand")
            ended.add("s-deep-0")
        if "stop" in ended:
            return
        time.sleep(0.1)


def test_a_running_search_is_watched_filtered_and_one_trial_stopped(board, browser):
    from playwright.sync_api import expect

    address, driver = board
    driver.start("s-deep-0", 0, "deep", **{"train.optimizer.lr": 0.01})
    driver.start("s-single-1", 1, "single", **{"train.optimizer.lr": 0.02})
    ended = set()
    search = threading.Thread(target=drive, args=(driver, ended))
    search.start()
    visitor = BoardVisitor(browser, address, viewport={"width": 1280, "height": 800})
    page = visitor.page
    try:
        page.get_by_role("link", name="live-1").click()
        epochs = page.locator("#now tr", has_text="s-deep-0").locator("td").nth(2)
        before = int(epochs.inner_text())
        expect(epochs).not_to_have_text(str(before), timeout=30_000)  # nobody has reloaded the page
        page.get_by_role("link", name="Trials", exact=True).click()
        page.get_by_label("contains").press_sequentially("single")
        expect(page).to_have_url(re.compile("text=single&"), timeout=30_000)
        rows = page.locator("#trials tbody tr")
        expect(rows).to_have_count(1, timeout=30_000)
        assert "s-single-1" in rows.inner_text()
        page.get_by_label("contains").fill("")
        expect(rows).to_have_count(2, timeout=30_000)
        page.get_by_role("link", name="trial", exact=True).click()
        page.wait_for_selector("th[aria-sort=descending] >> text=trial")
        page.get_by_role("button", name="Stop s-deep-0").click()
        page.wait_for_selector("text=The trial was asked to stop")
        page.wait_for_selector("#trial h2 .badge.pruned")  # it stops before the eyes
        assert "stopped by hand" in page.locator("#trial").inner_text()
        assert {"s-deep-0"} == ended
    finally:
        ended.add("stop")
        search.join()
    visitor.leave()


def test_hostile_names_are_shown_as_text(board, browser):
    address, driver = board
    driver.start(HOSTILE, 0, HOSTILE, **{f"train.{HOSTILE}": HOSTILE})
    driver.end(HOSTILE, "FAILED", error=f"{HOSTILE} {LONG}")
    driver.start(LONG, 1)
    visitor = BoardVisitor(browser, address)
    for path in PATHS:
        visitor.go(f"/runs/live-1{path}")
        assert 0 == visitor.page.locator("main img").count()
    visitor.go("/runs/live-1/trials")
    visitor.page.locator("#trials tbody a").first.click()
    assert "<img src=x onerror=alert(1)>\\u202ebad" in visitor.page.locator("h2").first.inner_text()
    visitor.leave()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_its_width_and_has_no_serious_fault_of_access(
    board, browser, scheme, width
):
    address, driver = board
    driver.start("s-deep-0", 0, "deep", **{"train.optimizer.lr": 0.01})
    driver.report("s-deep-0", 1, 0.5)
    visitor = BoardVisitor(
        browser, address, viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    faults = []
    runs = [f"/runs/{run}{path}" for run in ("masks-1", "live-1") for path in PATHS]
    for path in ("/", *runs, "/runs/live-1/trials/s-deep-0"):
        visitor.go(path)
        faults += visitor.faults()
    visitor.page.goto(f"{visitor.place}/submit")
    faults += visitor.faults()
    assert [] == faults
    visitor.leave()


def test_a_spec_is_checked_by_keyboard_alone(board, browser):
    address, _ = board
    visitor = BoardVisitor(browser, address)
    page = visitor.page
    page.goto(f"{visitor.place}/submit")
    page.get_by_label("or its text").focus()
    page.keyboard.type("version: 1\nname: x\n")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=has problems")
    assert re.search(r"spec\.yaml:\d+:\d+", page.get_by_role("alert").inner_text())
    visitor.complaints = [text for text in visitor.complaints if "422" not in text]
    visitor.leave()
