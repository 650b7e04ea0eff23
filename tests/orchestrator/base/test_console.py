"""What a person sees of running trials: a line each on a terminal, one plain line elsewhere."""

import io

from rich.console import Console

from orchestrator.base.console import PhaseSnapshot, Reporter, duration
from orchestrator.run.closing import follow
from orchestrator.store.event_types import StageEnded
from orchestrator.store.ledger import Ledger
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.search import toy


def test_a_snapshot_is_one_line():
    snapshot = PhaseSnapshot(
        7, {"PRUNED": 2, "COMPLETE": 5}, 0.91234, 600.0, ("s-a-0007  no report yet, 1 s",)
    )
    expected = "search: 7/40 · 5 complete, 2 pruned · 1 running · best 0.9123 · about 10 min left"
    assert expected == snapshot.line("search", 40)
    assert "search: 0/40 · 0 running" == PhaseSnapshot(0, {}, None, None, ()).line("search", 40)
    assert ["30 s", "10 min", "2.0 h"] == [duration(seconds) for seconds in (30, 600, 7200)]


def test_the_trial_controller_shows_its_running_trials(tmp_path):
    with Ledger(tmp_path) as ledger:
        controller = toy.make_controller(
            ledger, toy.make_studies(tmp_path, {"trials": 3}), tmp_path
        )
        for _ in range(2):
            controller.next()
        controller.on_report("s-a-0000", 1, {"val_macro_f1": 0.25})
        assert (None, 2) == (controller.snapshot(3).left_s, len(controller.snapshot(3).running))
        controller.on_end("s-a-0001", "FAILED", "no such layer")
        snapshot = controller.snapshot(3)
    assert (1, {"FAILED": 1}, 0.25) == (snapshot.n_ended, snapshot.counts, snapshot.best)
    assert snapshot.left_s is not None
    assert snapshot.running[0].startswith("s-a-0000  epoch 1, best 0.2500")


def test_a_terminal_shows_a_line_per_trial_and_a_pipe_keeps_quiet_between():
    running = ("s-a-0001  epoch 1, best 0.5000, 3 s",)

    def look():
        return PhaseSnapshot(1, {"COMPLETE": 1}, 0.5, None, running)

    reporter, shown = Reporter(), {}
    for terminal in (True, False):
        out = io.StringIO()
        reporter.console = Console(
            file=out, force_terminal=terminal, width=120, highlight=False, no_color=True
        )
        with reporter.trials("search", 4, look) as tick:
            tick()
        shown[terminal] = out.getvalue()
    assert "s-a-0001  epoch 1, best 0.5000, 3 s" in shown[True], shown[True]
    assert "search: 1/4" in shown[True]
    assert not shown[False]


def test_a_stage_s_note_is_shown_as_it_is_also_to_who_follows(tmp_path):
    """Names of files may look like rich's markup; a closing tag of nothing would be an error."""
    notes = ["photo '[/x] a.jpg' is missing", r"photo '\[red]b.jpg' is missing"]
    paths, reporter = RunPaths(tmp_path), Reporter()
    with Ledger(tmp_path) as ledger:
        for note in notes:
            ledger.append(StageEnded(stage="catalog", outcome="FAILED", note=note, wall_s=1.0))
    reporter.console = Console(file=(out := io.StringIO()), width=120, highlight=False)
    assert follow(paths, reporter) == 130
    assert all(note in out.getvalue() for note in notes)
