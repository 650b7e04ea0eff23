"""What stands beside a run's own page: several runs together, a picture, photos to look at."""

import base64
import io
import json
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from PIL import Image

from orchestrator.cli import main
from orchestrator.report.load import load
from orchestrator.report.page import build, render
from orchestrator.report.summaries.comparison_page import render_together
from orchestrator.report.summaries.picture import picture
from tests.orchestrator.report.fake_run import HOSTILE, SETTINGS, write_run
from tests.orchestrator.report.test_report import Page


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    write_run(root / "runs/masks-1", n_people=12)
    write_run(root / "runs/other-2", seed=1, n_people=12, test_labels=False)
    return root


def test_several_runs_stand_on_one_page_with_what_differs(store):
    resolved = store / "runs/other-2/resolved.yaml"
    resolved.write_text(resolved.read_text().replace("seed: 42", "seed: 43"))
    runs = [load(store / "runs" / name) for name in ("masks-1", "other-2")]
    html = render_together(runs)
    Page(html)  # elements close in order
    for run in runs:
        assert f"{run.selection.ensemble.oof.macro_f1.estimate:.3f}" in html
    assert "<code>seed</code></th><td>42</td><td>43</td>" in html
    assert "<code>select.policy" not in html  # the same in both
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert html.count("half-cutmix &gt; single") >= 2


def test_the_command_writes_one_page_for_several_runs(store, tmp_path):
    runner = CliRunner()
    done = runner.invoke(main, ["report", "masks-1", "other-2", "--store", str(store)])
    assert 0 == done.exit_code, done.output
    assert done.output.strip() == str(store / "runs/masks-1/report/with-other-2.html")
    out = tmp_path / "both.html"
    done = runner.invoke(
        main, ["report", "masks-1", "other-2", "--out", str(out), "--store", str(store)]
    )
    assert out.is_file(), done.output
    done = runner.invoke(main, ["report", "masks-1", "--out", str(out), "--store", str(store)])
    assert 2 == done.exit_code
    assert "several runs were required, found one" in done.output


def test_the_picture_is_a_whole_svg_that_asks_for_nothing(store):
    page = build(store / "runs/masks-1")
    drawing = (page.parent / "result.svg").read_text()
    root = ET.fromstring(drawing)
    assert "{http://www.w3.org/2000/svg}svg" == root.tag
    words = " ".join(root.itertext())
    selection = json.loads((store / "runs/masks-1/selection.json").read_text())
    assert f"{selection['ensemble']['test']['macro_f1']['estimate']:.3f}" in words
    assert SETTINGS[0] in words
    assert "href" not in drawing
    assert "url(" not in drawing


def test_a_run_without_scores_has_a_picture_too(tmp_path):
    (tmp_path / "empty").mkdir()
    ET.fromstring(picture(load(tmp_path / "empty")))


def test_photos_are_shown_by_kind_and_nothing_else_gets_into_an_attribute(store):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    jpeg = base64.b64encode(stream.getvalue()).decode()
    facts = {"given": 0, "answer": 3, "confidence": 0.93, "votes": 2, "n_votes": 3}
    photos = [
        {"kind": "sure_wrong", "sample_id": HOSTILE, "jpeg": jpeg, **facts},
        {"kind": "disputed", "sample_id": "x", "jpeg": '"><script>', **facts},
    ]
    path = store / "runs/masks-1/gallery.json"
    path.write_text(json.dumps({"method": "by eye", "photos": photos}))
    try:
        html = render(load(store / "runs/masks-1"), ("gallery",))
    finally:
        path.unlink()
    Page(html)
    assert "The surest wrong answers (1)" in html
    assert f"data:image/jpeg;base64,{jpeg}" in html
    assert "93 % sure, 2 of 3 votes" in html
    assert "members answer differently" not in html  # its picture is none
    assert '"><script>' not in html
    assert "Photos to look at" not in render(load(store / "runs/masks-1"), ("gallery",))
