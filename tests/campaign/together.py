"""Run real submits beside each other and in odd places, and compare their tables with an undisturbed run's.

    python -m tests.campaign.together [--only WORD ...]   # part of `make campaign`, about ten minutes

Two drivers on one run, eight submits at once, two runs in one store, shared memory of 24 MB, a store
that was moved after a kill, a clock that was set back by a day after a kill, and a damaged file in
an artifact of each kind of a finished store. Exits 1 if something does not hold.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.store.event_types import RunResumed, RunStarted, TrialEnded
from tests.faults import processes
from tests.faults.rig import Rig, differences, done_twice, is_alive, ray_folder

_END_S = 600.0
_SMALL_SHARED_MEMORY = (
    "unshare",
    "-m",
    "sh",
    "-c",
    'mount -t tmpfs -o size=24m tmpfs /dev/shm && exec "$@"',
    "sh",
)


def end_all(submits):
    """Wait for the end of several drivers; return their exit codes and how many processes are left."""
    codes = [submit.end(_END_S) for submit in submits]
    left = [process for submit in submits for process in submit.left_behind() if is_alive(process)]
    for submit in submits:
        submit.kill_all()
    return codes, len({process.pid for process in left})


def drivers_at_once(rig, calm, n):
    """Submit one spec n times at once; return what does not hold."""
    rig.clear()
    codes, n_left = end_all([rig.start() for _ in range(n)])
    wrong = [f"exit codes {codes}"] if set(codes) != {0} else []
    n_started = len(rig.events(RunStarted))
    if n_started != 1:
        wrong.append(f"the run was begun {n_started} times")
    return wrong + compare(rig, calm, n_left)


def two_runs(rig, calm):
    """Run two specs that want the same trainings in one store at once."""
    rig.clear()
    text = rig.spec.read_text()
    first = rig.start()
    rig.spec.write_text(text.replace("name: faults", "name: others"))
    second = rig.start()
    codes, n_left = end_all([first, second])
    rig.spec.write_text(text)
    wrong = [f"exit codes {codes}"] if set(codes) != {0} else []
    trained = [event for event in rig.events(TrialEnded) if not event.cached]
    n_made = len(list(rig.store.glob("trial/*/manifest.json")))
    print(f"  {n_made} trainings in the store, {len(trained)} of them trained for the first run")
    return wrong + compare(rig, calm, n_left)


def small_shared_memory(rig, calm):
    rig.clear()
    rig.before = _SMALL_SHARED_MEMORY
    codes, n_left = end_all([rig.start()])
    rig.before = ()
    return [f"exit codes {codes}"] * (codes != [0]) + compare(rig, calm, n_left)


def killed_in_search(rig):
    """Start a run and kill its driver when a trial has ended."""
    submit = rig.start()
    submit.wait_until(lambda: rig.events(TrialEnded), limit_s=_END_S)
    submit.driver.kill()
    submit.end(30)
    submit.kill_all()


def store_moved(rig, calm):
    rig.clear()
    killed_in_search(rig)
    rig.store.rename(rig.root / "moved")
    rig.store_name = "moved"
    codes, n_left = end_all([rig.start()])
    wrong = [f"exit codes {codes}"] * (codes != [0]) + compare(rig, calm, n_left)
    rig.store.rename(rig.root / "store")
    rig.store_name = "store"
    return wrong


def clock_set_back(rig, calm):
    rig.clear()
    killed_in_search(rig)
    rig.environment = {"FAULTS_CLOCK_S": "-86400"}
    codes, n_left = end_all([rig.start()])
    rig.environment = {}
    times = [event.time for event in rig.events(RunStarted, RunResumed)]
    wrong = [] if times[-1] < times[0] else ["the clock was not set back"]
    return wrong + [f"exit codes {codes}"] * (codes != [0]) + compare(rig, calm, n_left)


DAMAGES = {
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path, other: flip(path),
    "swapped": lambda path, other: shutil.copyfile(other, path),
    "missing": lambda path, other: path.unlink(),
}
_TO_DELETE = re.compile(rb"delete (\S+) and submit again")


def flip(path):
    """Change a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def damaged_artifacts(rig, calm):
    """Damage a file of an artifact of each kind, submit, and do what the message says."""
    rig.clear()
    codes, _ = end_all([rig.start()])
    wrong = [f"exit codes {codes}"] * (codes != [0])
    kinds = sorted({path.parent.parent.name for path in rig.store.glob("*/*/manifest.json")})
    for number, kind in enumerate(kinds):
        # each kind meets two of the four damages, and its manifest the other two
        names = list(DAMAGES)
        for shift in range(4):
            damage = names[(number + shift) % 4]
            wrong += damaged(rig, calm, kind, damage, is_manifest=shift > 1)
    return wrong


def damaged(rig, calm, kind, damage, *, is_manifest):
    """Damage one file; return what does not hold."""
    artifacts = sorted(path.parent for path in rig.store.glob(f"{kind}/*/manifest.json"))
    artifact = artifacts[0]
    files = [
        path for path in artifact.rglob("*") if path.is_file() and path.name != "manifest.json"
    ]
    chosen = artifact / "manifest.json"
    if files and not is_manifest:
        chosen = max(files, key=lambda path: path.stat().st_size)
    others = [path for path in rig.store.glob(f"*/*/{chosen.name}") if path.parent != artifact]
    other = others[-1] if others else rig.spec
    DAMAGES[damage](chosen, other)
    what = f"{kind}/{chosen.name} {damage}"
    shutil.rmtree(rig.store / "runs")  # so that every stage asks the store
    outcomes = []
    for _ in range(3):
        begin = (rig.root / "driver.err").stat().st_size
        codes, n_left = end_all([rig.start()])
        with (rig.root / "driver.err").open("rb") as file:
            file.seek(begin)
            said = file.read()
        if codes == [0]:
            outcomes.append("made again or not read")
            break
        named = _TO_DELETE.search(said.replace(b"\n", b" "))
        if named is None:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            outcomes.append(f"exit code {codes[0]}: {last}")
            continue
        shutil.rmtree(named[1].decode(), ignore_errors=True)
        outcomes.append("refused with the folder to delete")
    print(f"  {what}: {', then '.join(outcomes)}", flush=True)
    differing = compare(rig, calm, n_left) if codes == [0] else [f"exit code {codes[0]}"]
    return [f"{what}: {problem}" for problem in differing if not problem.startswith("twice")]


def compare(rig, calm, n_left):
    """Return what differs from an undisturbed run."""
    wrong = [f"{n_left} processes left"] if n_left else []
    if rig.run is None or not (rig.run / "submission.csv").exists():
        return [*wrong, "no result"]
    wrong += [f"differs: {name}" for name in differences(calm, rig.run)]
    return wrong + [f"twice: {name}" for name in done_twice(rig)]


CASES = {
    "two drivers on one run": lambda rig, calm: drivers_at_once(rig, calm, 2),
    "eight submits at once": lambda rig, calm: drivers_at_once(rig, calm, 8),
    "two runs in one store": two_runs,
    "shared memory of 24 MB": small_shared_memory,
    "store moved": store_moved,
    "clock set back by a day": clock_set_back,
    "damaged artifacts": damaged_artifacts,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names contain a word")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="together-"))
    rig = Rig(place / "rig")
    failures = 0
    try:
        calm = processes.undisturbed(rig)
        for name, case in CASES.items():
            if args.only and not any(word in name for word in args.only):
                continue
            began = time.monotonic()
            wrong = case(rig, calm)
            failures += bool(wrong)
            print(f"{name}: {wrong or 'holds'}, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(ray_folder(rig), ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
