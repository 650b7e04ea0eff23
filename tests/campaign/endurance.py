"""Run a study of thousands of short trials for hours, and show what grows: memory, descriptors, disk, logs.

    python -m tests.campaign.endurance --minutes 120 --out FOLDER      # as long as it is told to

The real trial controller, ledger, Ray Tune, workers, a process per trial, and the mirror of the run (Optuna
journal and TensorBoard); only the trainings are toys that sleep and report twice. Every 30 s a sample is
appended to FOLDER/samples.jsonl. At the end FOLDER/endurance.svg shows the curves, and growth per 1,000
trials of the last half is printed beside that of the first half.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil

EVERY_S = 30.0
_WIDTH, _HEIGHT, _MARGIN = 420, 150, 46
CURVES = {
    "driver_mb": "memory of the driver, MB",
    "ray_mb": "memory of Ray's servers, MB",
    "workers_mb": "memory of the workers and the fork server, MB",
    "mirror_mb": "memory of the mirror, MB",
    "descriptors": "open descriptors, all processes",
    "processes": "processes",
    "ledger_mb": "the ledger, MB",
    "run_mb": "the run's folder, MB",
    "log_mb": "Ray's session folder, MB",
    "shared_mb": "shared memory in use, MB",
}


# -- the study ----------------------------------------------------------------------------------------
def sleep_and_report(spec, report, *, seconds):
    """Sleep, report, sleep, report: a training without work."""
    for epoch in (1, 2):
        time.sleep(seconds / 2)
        report(epoch, {"val_macro_f1": 0.5, "val_loss": 1.0})


def drive(folder, n_trials, trial_s, at_once):
    """Run the study in a local cluster of its own, with a mirror."""
    from orchestrator.cluster.connection import connect, prepare_environment

    prepare_environment(None, insecure=False)  # Ray reads it when it is imported
    from orchestrator.cluster.fork_server import start_fork_server
    from orchestrator.run import tracking
    from orchestrator.search.ray_tune import run
    from orchestrator.search.study import Studies, search_controller
    from orchestrator.spec.search_space import Search
    from orchestrator.store.event_types import RunEnded, RunStarted
    from orchestrator.store.ledger import Ledger
    from tests.campaign import endurance  # a worker finds the body there, not in __main__
    from tests.orchestrator.search import toy

    wanted = {"trials": n_trials, "sampler": "random", "space": {"train.x": {"float": [0.0, 1.0]}}}
    (folder / "resolved.yaml").write_text(
        json.dumps({"search": wanted, "track": {"tensorboard": True}})
    )
    search = Search.model_validate(wanted)
    with (
        connect(None, num_cpus=at_once, dashboard=False),
        start_fork_server(["numpy"], threads=1) as fork_server,
        Ledger(folder) as ledger,
    ):
        ledger.append(RunStarted(run_id="endurance"), commit=True)
        mirror = tracking.start(folder)
        studies = Studies("endurance", search, ["a"], 0, toy.spec_maker(folder))
        controller = search_controller(studies, ledger, {"a": "2 epochs"})
        run(
            controller,
            folder / "tune/search",
            cpu=1,
            max_concurrent=at_once,
            body=partial(endurance.sleep_and_report, seconds=trial_s),
            modules=(),
            fork_server=fork_server,
        )
        ledger.append(RunEnded(state="SUCCEEDED"), commit=True)
        print(mirror.finish(60) or "mirrored")


# -- samples ------------------------------------------------------------------------------------------
def size_of(folder):
    """Return the megabytes of a folder's files."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118 - many
            except OSError:
                continue
    return total / 1e6


def kind_of(command):
    text = " ".join(command)
    if "run.tracking" in text:
        return "mirror"
    if "gcs_server" in text or "raylet/raylet" in text or "ray/_private" in text or "Agent" in text:
        return "ray"
    return "workers"


def look(driver, folder, ray_folder, began):
    """Return a sample of a driver and all that belongs to it."""
    memory = {"driver": 0.0, "ray": 0.0, "mirror": 0.0, "workers": 0.0}
    n_descriptors = 0
    n_processes = 0
    try:
        tree = [driver, *driver.children(recursive=True)]
    except psutil.Error:
        tree = []
    for process in tree:
        try:
            kind = "driver" if process == driver else kind_of(process.cmdline())
            # pages that are shared count once, divided among those that share them
            memory[kind] += process.memory_full_info().pss / 1e6
            n_descriptors += process.num_fds()
            n_processes += 1
        except psutil.Error:
            continue
    ledger = folder / "events.jsonl"
    n_ended = 0
    if ledger.exists():
        with ledger.open("rb") as file:
            n_ended = sum(b'"trial_ended"' in line for line in file)
    return {
        "s": round(time.monotonic() - began, 1),
        "trials": n_ended,
        **{f"{kind}_mb": round(value, 2) for kind, value in memory.items()},
        "descriptors": n_descriptors,
        "processes": n_processes,
        "ledger_mb": round(ledger.stat().st_size / 1e6, 3) if ledger.exists() else 0.0,
        "run_mb": round(size_of(folder), 2),
        "log_mb": round(size_of(ray_folder), 2),
        "shared_mb": round(size_of("/dev/shm"), 2),
        "load": os.getloadavg()[0],
    }


def watch(command, folder, ray_folder, out, minutes):
    """Run the driver, sample it, and end it by SIGTERM when the time is over."""
    samples = []
    began = time.monotonic()
    with (out / "driver.log").open("ab") as log, (out / "samples.jsonl").open("a") as file:
        driver = psutil.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "RAY_TMPDIR": str(ray_folder)},
            start_new_session=True,
        )
        try:
            while driver.poll() is None:
                samples.append(look(driver, folder, ray_folder, began))
                file.write(json.dumps(samples[-1]) + "\n")
                file.flush()
                if time.monotonic() - began > 60 * minutes:
                    driver.terminate()
                    driver.wait(60)
                    break
                try:
                    driver.wait(EVERY_S)
                except psutil.TimeoutExpired:
                    continue
        finally:
            if driver.poll() is None:
                driver.kill()
    return samples


# -- what is shown ------------------------------------------------------------------------------------
def growth(samples, name):
    """Return by how much a value grows per 1,000 trials in the first half and in the second half.

    The first fifth, in which workers start and caches fill, is left out.
    """
    kept = samples[len(samples) // 5 :]
    middle = len(kept) // 2
    return slope(kept[:middle], name), slope(kept[middle:], name)


def slope(samples, name):
    """Return the least-squares slope of a value over thousands of trials."""
    if len(samples) < 2:
        return 0.0
    x = [sample["trials"] / 1e3 for sample in samples]
    y = [sample[name] for sample in samples]
    mean_x = sum(x) / len(x)
    mean_y = sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    if spread == 0:
        return 0.0
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def draw(samples):
    """Return all curves over trials as one SVG."""
    n_rows = -(-len(CURVES) // 2)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11"',
        f' width="{2 * _WIDTH}" height="{n_rows * _HEIGHT}">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    last = max(sample["trials"] for sample in samples) or 1
    for index, (name, title) in enumerate(CURVES.items()):
        left = _WIDTH * (index % 2) + _MARGIN
        top = _HEIGHT * (index // 2) + 24
        width = _WIDTH - _MARGIN - 16
        height = _HEIGHT - 48
        highest = max(sample[name] for sample in samples) or 1
        points = " ".join(
            f"{left + width * sample['trials'] / last:.1f},{top + height * (1 - sample[name] / highest):.1f}"
            for sample in samples
        )
        parts.append(
            f'<text x="{left}" y="{top - 8}">{title}</text>'
            f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#999"/>'
            f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{highest:g}</text>'
            f'<text x="{left - 4}" y="{top + height}" text-anchor="end">0</text>'
            f'<text x="{left + width}" y="{top + height + 14}" text-anchor="end">{last} trials</text>'
            f'<polyline points="{points}" fill="none" stroke="#1f6fb2" stroke-width="1.5"/>'
        )
    return "\n".join([*parts, "</svg>\n"])


def show(out):
    """Draw and print what the samples of a folder say."""
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    (out / "endurance.svg").write_text(draw(samples))
    final = samples[-1]
    print(f"{final['trials']} trials in {final['s'] / 60:.0f} minutes, {len(samples)} samples")
    print("| value | first fifth ends | last | per 1,000 trials, first half | second half |")
    print("|---|---|---|---|---|")
    for name, title in CURVES.items():
        early, late = growth(samples, name)
        begin = samples[len(samples) // 5][name]
        print(f"| {title} | {begin:g} | {final[name]:g} | {early:+.2f} | {late:+.2f} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--trials", type=int, default=100_000, help="at most")
    parser.add_argument("--trial-s", type=float, default=2.0)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/endurance"))
    parser.add_argument("--show", action="store_true", help="draw what FOLDER has, run nothing")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(args.drive, args.trials, args.trial_s, args.at_once)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.show:
        with (
            tempfile.TemporaryDirectory() as place,
            tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as ray_folder,
        ):
            folder = Path(place)
            command = [sys.executable, "-m", "tests.campaign.endurance", "--drive", str(folder)]
            command += ["--trials", str(args.trials), "--trial-s", str(args.trial_s)]
            command += ["--at-once", str(args.at_once)]
            watch(command, folder, Path(ray_folder), args.out, args.minutes)
    show(args.out)


if __name__ == "__main__":
    main()
