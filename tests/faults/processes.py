"""Faults of processes: what is signalled in a real run, and what is expected then."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice

from orchestrator.store.event_types import StageEnded, TrialEnded, TrialStarted, WorkerDied
from tests.faults.rig import (
    END_S,
    Rig,
    Submit,
    differences,
    done_twice,
    interrupt,
    is_alive,
    send,
    tables,
)

_QUIT_S = 60.0  # until the driver has ended after a fault that ends it
_CHILD_S = 5.0  # until a child has gone with its worker
_NOTED_S = 15.0  # until the driver has noted a death
_MAX_DEATHS = 2  # of one trial; a third would be its own fault
_MAX_STARTS = 4  # of a driver that nobody disturbs
_MAX_IDLE = 4  # submits in a row without an injection


class Outlived(Exception):
    """Something lives on that should not."""


@dataclass(frozen=True)
class Fault:
    """A kind of injection."""

    name: str
    expected: str
    inject: Callable[[Submit, random.Random], bool]  # False if there was nothing to inject into
    ends_driver: bool = True
    codes: tuple[int, ...] = ()  # of the driver; empty: any but 0
    over_after: str | None = None  # the stage after which there is nothing to inject into
    order: float = 0.0  # among the faults of a run: -1 for the beginning, 1 for the end
    of_ray: bool = False  # a server of Ray dies; a driver that is starting them starts them again


@dataclass
class Row:
    """A line of the table."""

    fault: str
    expected: str
    injected: int = 0
    held: int = 0
    lost: int = 0  # finished trainings and artifacts that were done again
    notes: list[str] = field(default_factory=list)


# -- injections ---------------------------------------------------------------------------------------


def _at_a_random_moment(submit, rng):
    """Wait for a random time, or for some records of the ledger; return False if the driver has ended."""
    n_before = len(submit.rig.events())
    n_more = rng.choice([0, 0, 0, 1, 1, 2, 3])
    if n_more:
        submit.wait_until(lambda: len(submit.rig.events()) >= n_before + n_more)
    until = time.monotonic() + rng.uniform(0.0, 1.0 if n_more else 12.0)
    while time.monotonic() < until and not submit.has_ended:
        submit.look()
        time.sleep(0.05)
    return not submit.has_ended


def _signal_driver(number, *, times=1, group=False):
    def inject(submit, rng):
        if not _at_a_random_moment(submit, rng):
            return False
        submit.look()
        for _ in range(times):
            if submit.has_ended:
                break
            if group:
                interrupt(submit)
            else:
                send(submit.driver, number)
            time.sleep(0.15 if times > 1 else 0)
        return True

    return inject


def _signal_process(kind, number, longest_s, over_after=None):
    def inject(submit, rng):
        if submit.wait_for(kind, lambda: has_ended(submit.rig, over_after)) is None:
            return False
        time.sleep(rng.uniform(0.0, longest_s))
        victims = submit.look().get(kind, [])
        return bool(victims) and send(rng.choice(victims), number)

    return inject


def _signal_training(kind, number):
    """Signal a process of a running trial, unless a trial has died twice already."""

    def may_die(submit):
        running = running_trials(submit.rig)
        return bool(running) and all(n < _MAX_DEATHS for n in running.values())

    def inject(submit, rng):
        def is_over():
            return has_ended(submit.rig, "confirm")

        while submit.wait_for(kind, is_over) is not None and not is_over():
            time.sleep(rng.uniform(0.0, 0.5))
            kinds = submit.look()
            victims = kinds.get(kind, [])
            if not victims or not may_die(submit):
                time.sleep(0.1)
                continue
            n_before = len(submit.rig.events(WorkerDied))
            if not send(rng.choice(victims), number):
                continue
            if kind == "trial worker" and len(victims) == 1:
                _require_end(kinds.get("child", []))
            _wait_for_death(submit, n_before)
            return True
        return False

    return inject


def _wait_for_death(submit, n_before):
    """Wait until the driver has noted another death of a worker."""
    submit.wait_until(lambda: len(submit.rig.events(WorkerDied)) > n_before, limit_s=_NOTED_S)


def _require_end(children):
    until = time.monotonic() + _CHILD_S
    while any(map(is_alive, children)):
        if time.monotonic() > until:
            raise Outlived("a child outlives its worker")
        time.sleep(0.05)


def _pause(kind, pause_s, over_after):
    def inject(submit, rng):
        process = submit.wait_for(kind, lambda: has_ended(submit.rig, over_after))
        if process is None or not send(process, signal.SIGSTOP):
            return False
        time.sleep(pause_s)
        return send(process, signal.SIGCONT)

    return inject


def has_ended(rig, stage):
    return any(
        event.stage == stage and event.outcome in {"SUCCEEDED", "CACHED"}
        for event in rig.events(StageEnded)
    )


def running_trials(rig):
    """Return running trial -> how often it has died."""
    deaths = {}
    for event in rig.events(TrialStarted, TrialEnded, WorkerDied):
        if isinstance(event, TrialStarted):
            deaths[event.trial_id] = 0
        elif isinstance(event, TrialEnded):
            deaths.pop(event.trial_id, None)
        else:
            deaths[event.trial_id] = deaths.get(event.trial_id, 0) + event.counts
    return deaths


def faults(pause_s=5.0):
    kill, goes_on, again = signal.SIGKILL, "the next submit goes on", "the trial is tried again"

    def inside(name, expected, inject, over_after=None, order=0.0):
        return Fault(name, expected, inject, False, (), over_after, order)

    return [
        Fault("driver, kill -9", goes_on, _signal_driver(kill), codes=(-9,)),
        Fault("driver, SIGTERM", f"exit 130, {goes_on}", _signal_driver(signal.SIGTERM), codes=(130,)),
        Fault("driver, Ctrl-C", f"exit 130, {goes_on}", _signal_driver(0, group=True), codes=(130,)),
        Fault("driver, Ctrl-C twice", f"it ends, {goes_on}", _signal_driver(0, times=2, group=True)),
        Fault("raylet, kill -9", f"it ends, {goes_on}", _signal_process("raylet", kill, 6), of_ray=True),
        Fault("GCS, kill -9", f"it ends, {goes_on}", _signal_process("GCS", kill, 6), of_ray=True),
        inside("preparation worker, kill -9", "its photos go to another one",
               _signal_process("preparation worker", kill, 2, "prepare"), "prepare", -1),
        inside("trial worker, kill -9", f"{again}, its child goes too",
               _signal_training("trial worker", kill), "confirm"),
        inside("child of a trial worker, kill -9", again, _signal_training("child", kill), "confirm"),
        inside("segmentation fault in a trial", again,
               _signal_training("child", signal.SIGSEGV), "confirm"),
        inside("os._exit in a trial", again, _signal_training("child", signal.SIGUSR1), "confirm"),
        inside("a trial dies and leaves a process", f"{again}, the process ends with the run",
               _signal_training("child", signal.SIGUSR2), "confirm"),
        inside("trial worker, SIGSTOP, then SIGCONT", "the run goes on",
               _pause("trial worker", pause_s, "confirm"), "confirm"),
        inside("vote task, kill -9", "Ray tries it again",
               _signal_process("vote task", kill, 0.3), order=1),
        inside("dashboard, kill -9", "the run goes on", _signal_process("dashboard", kill, 5)),
        inside("tracking process, kill -9", "the run goes on",
               _signal_process("tracking process", kill, 5)),
        inside("fork server, kill -9", "workers load torch themselves",
               _signal_process("fork server", kill, 8)),
    ]  # fmt: skip


# -- chains -------------------------------------------------------------------------------------------


def undisturbed(rig: Rig):
    """Run once in peace; return its tables."""
    code = end_in_peace(rig)
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}; see {rig.root}/driver.err")
    return tables(rig.run)


def end_in_peace(rig, check=lambda submit, code: None):
    """Submit until a driver ends with 0; return the last one's exit code.

    Where the machine is too busy for Ray to start, a run ends with 1, and wants to be submitted again.
    """
    code = None
    for _ in range(_MAX_STARTS):
        submit = rig.start()
        try:
            code = submit.end()
            check(submit, code)
        finally:
            submit.kill_all()
        if code != 1:
            break
    return code


def schedule(wanted, rng):
    """Mix faults so that each is injected as often as wanted, and those of a phase come in its order."""
    drawn = []
    for fault, n in wanted:
        for _ in range(n):
            drawn.append((fault.order + rng.random(), fault))
    return [fault for _, fault in sorted(drawn, key=lambda entry: entry[0])]


class Chain:
    """One run that is disturbed again and again, started anew where its driver ends, and let end."""

    def __init__(self, rig, calm, rows, rng, say=print):
        self.rig, self.calm, self.rows, self.rng, self.say = rig, calm, rows, rng, say
        self.finished = {}
        self.injected = []  # names, with repetition
        self.wrong = []  # (name, what)

    def run(self, wanted, until):
        """Inject a list of faults; return those that found nothing to be injected into."""
        self.rig.clear(keep=())
        left = list(wanted)
        n_idle = 0
        while left and n_idle < _MAX_IDLE and time.monotonic() < until:
            n_before = len(self.injected)
            code = self._submit(left, until)
            n_idle = 0 if len(self.injected) > n_before else n_idle + 1
            if code == 0:
                break
        self._let_it_end()
        for name in self.injected:
            self.rows[name].injected += 1
            self.rows[name].held += 1
        for name, what in self.wrong:
            for row in self.rows.values() if name is None else [self.rows[name]]:
                if row.fault in self.injected:
                    row.held = max(0, row.held - (1 if name else self.injected.count(row.fault)))
                    row.notes.append(what)
        self.say(f"{len(self.injected)} injections in one run: {self.wrong or 'hold'}")
        return left

    def _submit(self, left, until):
        """Start a driver and inject what can be; return its exit code."""
        n_before = len(self.rig.events(StageEnded))
        submit = self.rig.start()
        ending = None
        starts_anew = False
        try:
            skipped = []
            while left and not submit.has_ended and time.monotonic() < until:
                fault = left.pop(0)
                if fault.over_after and has_ended(self.rig, fault.over_after):
                    skipped.append(fault)
                    continue
                try:
                    is_hit = fault.inject(submit, self.rng)
                except Outlived as error:
                    is_hit = True
                    self.wrong.append((fault.name, str(error)))
                if not is_hit:
                    skipped.append(fault)
                    continue
                self.injected.append(fault.name)
                self.say(f"{time.monotonic() - submit.began:5.1f} s: {fault.name}, "
                         f"{len(self.rig.events())} records")  # fmt: skip
                if fault.ends_driver:
                    ending = fault
                    # no stage has ended since: Ray was starting, and a driver starts it again
                    is_starting = len(self.rig.events(StageEnded)) == n_before
                    starts_anew = fault.of_ray and is_starting
                    break
            left.extend(skipped)
            limit_s = _QUIT_S if ending and not starts_anew else END_S
            code = submit.end(limit_s)
            self._check_end(submit, ending, code, limit_s)
        finally:
            submit.kill_all()
        self._compare_finished(ending)
        return code

    def _check_end(self, submit, ending, code, limit_s):
        name = ending.name if ending else None
        if code is None:
            self.wrong.append((name, f"the driver goes on for more than {limit_s:g} s"))
            return
        # Ray's C++ part aborts while it is made, and says so (docs/faults.md)
        is_abort = code == -signal.SIGABRT and b"*** SIGTERM received at" in submit.told()
        is_expected = ending and code in (*ending.codes, 0)  # 0: it was at its end
        if ending and ending.codes and not is_expected and not is_abort:
            self.wrong.append((name, f"exit code {code}"))
        if not ending and code not in (0, 1):
            self.wrong.append((name, f"exit code {code} without a signal"))
        if left := submit.left_behind():
            kinds = sorted({" ".join(each.cmdline())[:80] for each in left if is_alive(each)})
            if kinds:
                self.wrong.append((name, f"left behind: {kinds}"))

    def _compare_finished(self, ending):
        """Note what had been finished before and was done again."""
        now = self.rig.finished()
        for name, identity in self.finished.items():
            if name in now and now[name] != identity:
                self.wrong.append((ending.name if ending else None, f"made again: {name}"))
                for row in [self.rows[ending.name]] if ending else []:
                    row.lost += 1
        self.finished = now

    def _let_it_end(self):
        """Submit in peace, and compare with the undisturbed run."""
        code = end_in_peace(
            self.rig, lambda submit, code: self._check_end(submit, None, code, END_S)
        )
        self._compare_finished(None)
        if code != 0:
            self.wrong.append((None, f"the last submit ended with {code}"))
            return
        # a training that had too little memory goes on with fewer photos at once: BatchNorm sees that
        were_split = any(event.micro_batch for event in self.rig.events(WorkerDied))
        for what in differences(self.calm, self.rig.run, numbers=not were_split):
            self.wrong.append((None, f"differs: {what}"))
        for what in done_twice(self.rig):
            self.wrong.append((None, f"twice: {what}"))


def inject_all(rig, calm, wanted, rng, *, per_run=20, until=float("inf"), say=print, save=None):
    """Inject faults as often as wanted, about `per_run` in one run; return a row per fault.

    Args:
        rig: where to run.
        calm: tables of the undisturbed run.
        wanted: pairs of a fault and how often.
        rng: chooses order, moments and victims.
        per_run: injections of one run.
        until: of `time.monotonic`; no injection later.
        say: gets progress.
        save: gets the rows of each run when it has ended.
    """
    total = new_rows(fault for fault, _ in wanted)
    left = schedule(wanted, rng)
    n_without = 0
    while left and n_without < _MAX_IDLE and time.monotonic() < until:
        n_chains = -(-len(left) // per_run)
        chosen = list(islice(cycle(left), 0, len(left), n_chains))
        rest = list(left)
        for fault in chosen:
            rest.remove(fault)
        rows = new_rows(fault for fault, _ in wanted)
        chain = Chain(rig, calm, rows, rng, say)
        left = schedule_again(chain.run(chosen, until) + rest, rng)
        n_without = 0 if chain.injected else n_without + 1
        add(total, rows.values())
        if save:
            save(list(rows.values()))
    return list(total.values())


def new_rows(chosen):
    """Return name -> empty row, for some faults."""
    return {fault.name: Row(fault.name, fault.expected) for fault in chosen}


def add(total, rows):
    """Add rows to those of a table, which has all of their faults."""
    for row in rows:
        into = total[row.fault]
        into.injected += row.injected
        into.held += row.held
        into.lost += row.lost
        into.notes += row.notes


def schedule_again(left, rng):
    """Order faults that are left as `schedule` does."""
    counts = {}
    for fault in left:
        counts[fault.name] = (fault, counts.get(fault.name, (fault, 0))[1] + 1)
    return schedule(list(counts.values()), rng)


def to_json(rows):
    return [asdict(row) for row in rows]
