"""The report in a real browser: it fits phones, everybody can read it, and it asks nothing of the network."""

import csv
from pathlib import Path

import pytest

from orchestrator.report.load import load
from orchestrator.report.page import SECTIONS, build
from orchestrator.report.summaries.comparison_page import render_together
from tests.orchestrator.report.fake_run import HOSTILE, write_run
from tests.orchestrator.report.full_run import complete
from tests.visitor import Visitor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run that has every section, and one of two runs."""
    root = tmp_path_factory.mktemp("reports")
    full = complete(write_run(root / "masks-1", n_people=12))
    other = write_run(root / "other-2", seed=1, n_people=12)
    together = root / "together.html"
    text = render_together([load(full), load(other)])
    together.write_bytes(text.encode("utf-8", "backslashreplace"))
    return build(full), together


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_their_width_and_have_no_serious_fault_of_access(pages, browser, scheme, width):
    faults = []
    for path in pages:
        address = path.as_uri()
        visitor = Visitor(
            browser, address, viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        visitor.page.goto(address)
        visitor.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        faults += visitor.faults()
        visitor.leave()
    assert [] == faults


def test_every_section_is_drawn_and_names_stay_text(pages, browser):
    address = pages[0].as_uri()
    visitor = Visitor(browser, address)
    visitor.page.goto(address)
    shown = visitor.page.locator("main > section").evaluate_all("all => all.map(one => one.id)")
    assert [anchor for anchor, *_ in SECTIONS if anchor != "board"] == shown
    assert 0 == visitor.page.get_by_text("could not be drawn").count()
    assert 1 == visitor.page.locator("script").count()  # our own
    figure = visitor.page.locator("#gallery figure").first
    assert HOSTILE.split("/")[0] in figure.inner_text()
    assert '<script>alert("x")</script>' in figure.inner_text()
    visitor.leave()


def test_a_table_is_sorted_and_saved_as_csv_in_the_order_that_is_shown(pages, browser):
    address = pages[0].as_uri()
    visitor = Visitor(browser, address)
    page = visitor.page
    page.goto(address)
    page.locator("#trials").get_by_role("button", name="macro F1", exact=True).click()
    with page.expect_download() as download:
        page.locator("#trials .csv").click()
    text = Path(download.value.path()).read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    scores = [float(row["macro F1"]) for row in rows if row["macro F1"]]
    assert len(scores) > 50
    assert sorted(scores, reverse=True) == scores
    visitor.leave()
