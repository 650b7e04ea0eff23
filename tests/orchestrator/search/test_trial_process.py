"""A worker's child: what a trial may do to itself, and to nobody else."""
# ruff: noqa: NPY002 - a trial may use the global generator

import importlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cluster.fork_server import start_fork_server
from orchestrator.search.process_memory import resident_bytes
from orchestrator.search.trial_process import (
    TRAINING_MODULES,
    Child,
    Failed,
    Reported,
    Watch,
    stop_file,
)

GLOBAL = []


@dataclass(frozen=True)
class Spec:
    what: str = "good"
    n: int = 3
    store: str = "/"
    pause_s: float = 0.0


def report_all(spec, report):
    for epoch in range(1, spec.n + 1):
        report(epoch, {"val_macro_f1": epoch / 10})
        time.sleep(spec.pause_s)


ENDS = {
    "fills": lambda: Path("/dev/full").write_text("weights"),
    "exits": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}


def misbehave(spec, report):
    if spec.what == "raises":
        raise ValueError("no such layer\nsecond line")
    if spec.what == "nan":
        report(1, {"val_macro_f1": float("nan")})
    if spec.what == "forgets":
        report(1, {"val_accuracy": 0.5})
    if spec.what == "text":
        report(1, {"val_macro_f1": "high"})
    if spec.what == "hangs":
        report(1, {"val_macro_f1": 0.5})
        time.sleep(600)
    if spec.what == "eats":
        kept = []
        while True:
            kept.append(b"1" * 60_000_000)
            time.sleep(0.01)
    if spec.what == "prints":
        sys.stdout.write("hello")
    if spec.what in ENDS:
        ENDS[spec.what]()
    report_all(spec, report)


def hear(child):
    """Return all that a trial says until it ends."""
    said = []
    while isinstance(heard := child.next(), Reported):
        said.append((heard.epoch, heard.metrics["val_macro_f1"]))
    return said, heard


@pytest.fixture
def child_of():
    children = []

    def make(body, watch=None, fork_server=None):
        children.append(Child(body, watch or Watch(), fork_server))
        return children[-1]

    yield make
    for child in children:
        child.kill()


@pytest.fixture(scope="module", params=["here", "fork_server"])
def origin(request):
    """Where children are forked from: None for the worker itself, or the address of a fork server."""
    if request.param == "here":
        yield None
        return
    with start_fork_server(["numpy", "orchestrator.search.trial_process"], threads=1) as address:
        yield address


def test_one_process_runs_trial_after_trial(child_of, origin):
    child = child_of(report_all, fork_server=origin)
    for name in ("a", "b", "c"):
        child.start(Spec(), name)
        assert ([(1, 0.1), (2, 0.2), (3, 0.3)], None) == hear(child)
        child.stop()  # as Tune does before it gives the next one, however the last one ended
    assert 1 == child.n_forks


@pytest.mark.parametrize(
    ("what", "cause", "text"),
    [
        ("raises", "raised", "ValueError: no such layer"),
        ("nan", "diverged", "val_macro_f1 is nan in epoch 1"),
        (
            "forgets",
            "metric",
            "val_macro_f1 was required in the report of epoch 1, found val_accuracy",
        ),
        ("text", "metric", "val_macro_f1 was required as a number in epoch 1, found 'high'"),
        ("hangs", "hung", "no report for 0.6 s (resources.per_trial.report_s)"),
        ("eats", "memory", "of memory taken, "),
        ("fills", "disk", "disk full: / has "),
        ("exits", "exited", "its process ended with exit code 3 in the middle of training"),
        ("killed", "killed", "its process was killed by SIGSEGV"),
    ],
)
def test_each_way_to_fail_is_told_apart_and_costs_one_trial(
    child_of, origin, what, cause, text, tmp_path
):
    # the child begins as a copy of this process, whatever that has taken by now
    allowed = resident_bytes(os.getpid()) / 1e9 + 0.3
    watch = Watch(report_s=0.6 if what == "hangs" else 60, memory_gb=allowed, logs=str(tmp_path))
    child = child_of(misbehave, watch, origin)
    child.start(Spec(what), "bad")
    heard = hear(child)[1]
    assert isinstance(heard, Failed)
    assert (cause, True) == (heard.cause, text in heard.text), heard
    if what != "hangs":  # it waits no longer than that for the good one either
        child.start(Spec(), "good")
        assert 3 == len(hear(child)[0])


def plant(spec, report):
    """Leave behind what a trial can leave behind, and report what it finds of the last one."""
    import builtins
    import random
    import sys

    import numpy as np

    found = float(
        len(GLOBAL)
        + hasattr(builtins, "planted")
        + ("PLANTED" in os.environ)
        + (sys.excepthook.__name__ == "planted")
        + (Path.cwd() == Path("/"))
    )
    report(1, {"val_macro_f1": found, "draw": random.random(), "other_draw": np.random.rand()})
    if spec.what == "global":
        GLOBAL.append(1)
    elif spec.what == "builtin":
        builtins.planted = 1
    elif spec.what == "environment":
        os.environ["PLANTED"] = "1"
    elif spec.what == "hook":

        def planted(*args):
            pass

        sys.excepthook = planted
    elif spec.what == "folder":
        os.chdir("/")
    elif spec.what == "memory":
        plant.kept = os.urandom(600 * 2**20)
    elif spec.what == "seed":
        random.seed(1)
        np.random.seed(1)


@pytest.mark.parametrize(
    "what", ["global", "builtin", "environment", "hook", "folder", "memory", "seed"]
)
def test_nothing_reaches_the_next_trial(child_of, origin, what, tmp_path):
    child = child_of(plant, Watch(logs=str(tmp_path)), origin)
    child.start(Spec(), "first", seed=5)
    expected = child.next()
    assert child.next() is None
    child.start(Spec(what), "planter", seed=6)
    hear(child)
    child.start(Spec(), "next", seed=5)
    assert (expected, None) == (child.next(), child.next())
    assert (1 if what == "seed" else 2) == child.n_forks
    assert (tmp_path / "planter.log").exists() == (what != "seed")


def test_hooks_and_switches_of_torch_do_not_reach_the_next_trial(child_of):
    torch = pytest.importorskip("torch")

    def switch(spec, report):
        hooks = len(torch.nn.modules.module._global_forward_hooks)
        report(
            1,
            {
                "val_macro_f1": float(
                    hooks + (torch.get_default_dtype() == torch.float64) + torch.get_num_threads()
                )
            },
        )
        if spec.what == "hook":
            torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
        elif spec.what == "type":
            torch.set_default_dtype(torch.float64)
        elif spec.what == "threads":
            torch.set_num_threads(2)

    child = child_of(switch)
    for forks, what in enumerate(("hook", "type", "threads", "good", "good"), 1):
        child.start(Spec(what), what)
        assert ([(1, 1.0)], None) == hear(child)
        assert min(forks, 4) == child.n_forks


def test_a_real_training_leaves_nothing_behind(child_of, tmp_path):
    for name in TRAINING_MODULES:
        importlib.import_module(name)

    def train_one(spec, report):
        from tests.benchmarks.training import _config, _task
        from trainers.training_loop import train

        config = _config(head="shallow", duration="1 epochs", augment={"policy": "basic"})
        train(
            config,
            _task(24, 32, 16),
            seed=0,
            report=report,
            work_dir=tmp_path / spec.what,
            threads=1,
        )

    child = child_of(train_one, Watch(logs=str(tmp_path / "logs")))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        child.start(Spec(name), name)
        said, end = hear(child)
        assert (1, None) == (len(said), end)
    printed = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert (1, []) == (child.n_forks, [text for text in printed if "left behind" in text])


def test_a_stopped_trial_goes_no_further_and_its_process_takes_the_next(child_of, tmp_path):
    def mark(spec, report):
        report_all(spec, report)
        (tmp_path / "reached the end").touch()

    child = child_of(mark)
    child.start(Spec(n=2), "stopped")
    assert Reported(1, {"val_macro_f1": 0.1}) == child.next()
    child.stop()
    child.start(Spec(), "next")
    child.next()
    assert not (tmp_path / "reached the end").exists()
    assert 1 == child.n_forks


def test_a_hand_stops_a_trial_in_the_middle(child_of, tmp_path):
    child = child_of(misbehave, Watch(control=str(tmp_path)))
    child.start(Spec("hangs"), "t")
    child.next()
    stop_file(tmp_path, "t").touch()
    assert Failed("stopped", "stopped by hand") == child.next()


@pytest.mark.parametrize(
    ("watch", "cause"), [({"wall_s": 0.4}, "hung"), ({"memory_gb": 0.001}, "memory")]
)
def test_a_trial_that_reports_all_the_time_is_looked_at_too(child_of, watch, cause):
    child = child_of(report_all, Watch(**watch))
    child.start(Spec(n=1000, pause_s=0.01), "t")
    said, heard = hear(child)
    assert (cause, True) == (heard.cause, len(said) < 500)


@pytest.mark.parametrize("limited", [True, False])
def test_what_a_trial_freed_counts_against_no_later_one_that_has_a_limit(child_of, limited):
    from trainers.compute_settings import keep_freed_memory

    def free(spec, report):
        keep_freed_memory()
        blocks = [b"1" * 4_000_000 for _ in range(spec.n)]
        report(1, {"val_macro_f1": 0.5})
        del blocks

    child, taken = child_of(free, Watch(memory_gb=64) if limited else None), []
    for n_blocks in (0, 75):
        child.start(Spec(n=n_blocks), "t")
        assert hear(child)[1] is None
        taken.append(resident_bytes(child.pid))
    assert (1, limited) == (child.n_forks, taken[1] - taken[0] < 150_000_000)


def wait_first(spec, report):
    until = time.monotonic() + spec.pause_s
    while time.monotonic() < until:
        report.wait()
        time.sleep(0.05)
    report_all(Spec(), report)


def test_waiting_for_another_runs_training_is_no_silence_and_stays_within_wall_s(child_of):
    child = child_of(wait_first, Watch(report_s=2.0))
    child.start(Spec(pause_s=3.0), "t")
    assert ([(1, 0.1), (2, 0.2), (3, 0.3)], None) == hear(child)
    child = child_of(wait_first, Watch(report_s=2.0, wall_s=3.0))
    child.start(Spec(pause_s=60), "t")
    said, failure = hear(child)
    assert ([], "hung") == (said, failure.cause)
    assert "not done after 3 s (resources.per_trial.wall_s)" in failure.text


def test_a_trial_is_not_hung_because_its_parent_was_busy(child_of):
    child = child_of(report_all, Watch(report_s=2.0))
    child.start(Spec(), "t")
    time.sleep(2.5)  # the first report lies in the pipe
    assert Reported(1, {"val_macro_f1": 0.1}) == child.next()
    time.sleep(2.5)  # the second waits until it may come
    assert ([(2, 0.2), (3, 0.3)], None) == hear(child)


@pytest.mark.parametrize(
    ("log", "cause", "text"),
    [("file/logs/t.log", "raised", "Not a directory"), ("t.log", "disk", "No space left")],
)
def test_a_log_that_cannot_be_written_is_named(child_of, tmp_path, log, cause, text):
    (tmp_path / "file").touch()
    (tmp_path / "t.log").symlink_to("/dev/full")
    child = child_of(misbehave, Watch(logs=str((tmp_path / log).parent)))
    child.start(Spec("prints"), "t")
    heard = hear(child)[1]
    assert (cause, True) == (heard.cause, heard.text.startswith("its log cannot be written: ")), (
        heard
    )
    assert text in heard.text


def test_a_child_goes_with_its_parent(child_of, tmp_path):
    def note(spec, report):
        (tmp_path / "pid").write_text(str(os.getpid()))
        report(1, {"val_macro_f1": 0.0})
        time.sleep(600)

    parent = os.fork()
    if parent == 0:
        child = Child(note)
        child.start(Spec(), "t")
        child.next()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or " Z " in stat.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")
