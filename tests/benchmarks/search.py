"""Search beside plain Ray Tune and Optuna: cost per trial, wall time, growth, and the quality of what is found."""

import json
import math
import os
import resource
import statistics
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np

N_TRIALS, N_STOCK = 60, 12
N_SEEDS, BUDGET = 60, 40
HERE = Path(__file__).parent


# -- cost per trial -------------------------------------------------------------------------------------------------
def nothing(spec, report):
    """Import what a training needs, report three times, do nothing."""
    import timm  # noqa: F401
    import torch  # noqa: F401

    for epoch in (1, 2, 3):
        report(epoch, {"val_macro_f1": 0.5})


def nothing_in_tune(config):
    """The same for plain Tune."""
    import timm  # noqa: F401
    import torch  # noqa: F401
    from ray import tune

    for epoch in (1, 2, 3):
        tune.report({"epoch": epoch, "val_macro_f1": 0.5})


def ours(folder, body, n, *, modules, n_epochs=3, search=None, at_once=2):
    """Run n trials through controller and Tune; return (controller, seconds)."""
    from orchestrator.search.ray_tune import run
    from orchestrator.search.study import Studies, search_controller
    from orchestrator.spec.search_space import Search
    from orchestrator.store.ledger import Ledger
    from tests.orchestrator.search import toy

    wanted = Search.model_validate(
        {
            "trials": n,
            "sampler": "random",
            "space": {"train.x": {"float": [0.0, 1.0]}},
            **(search or {}),
        }
    )
    folder.mkdir(parents=True)
    with Ledger(folder) as ledger:
        studies = Studies("bench", wanted, ["a"], 0, toy.spec_maker(folder))
        controller = search_controller(studies, ledger, {"a": f"{n_epochs} epochs"})
        began = time.perf_counter()
        run(
            controller,
            folder / "tune/search",
            cpu=1,
            max_concurrent=at_once,
            body=body,
            modules=modules,
        )
        return controller, time.perf_counter() - began


def stock(folder, n, *, reuse, body=nothing_in_tune, at_once=2):
    """Run n trials of plain Tune, as its documentation does; return seconds."""
    from ray import tune

    began = time.perf_counter()
    tune.Tuner(
        tune.with_resources(body, {"cpu": 1}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            num_samples=n, max_concurrent_trials=at_once, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(name="stock", storage_path=str(folder), verbose=0),
    ).fit()
    return time.perf_counter() - began


def trial_fixed_cost():
    """Time 60 trials that import torch and timm, report three times and do nothing, 2 at a time; per trial, start-up in.

    The baseline is plain `tune.Tuner` by default with the same function, 12 trials of it: each costs the same there,
    because each gets a new process. `reuse_actors=True` is in the note.
    """
    from orchestrator.cluster.connection import connect

    with tempfile.TemporaryDirectory() as place, connect(None, num_cpus=2, dashboard=False):
        folder, took, reused, plain = Path(place), [], [], []
        stock(folder / "first", 2, reuse=True)  # the first to load torch from the disk pays for all
        for turn in range(3):
            took.append(
                ours(folder / f"ours{turn}", nothing, N_TRIALS, modules=("torch", "timm"))[1]
                / N_TRIALS
            )
            reused.append(stock(folder / f"reused{turn}", N_TRIALS, reuse=True) / N_TRIALS)
            plain.append(stock(folder / f"plain{turn}", N_STOCK, reuse=False) / N_STOCK)
    note = f"{N_TRIALS} trials ours, {N_STOCK} by default; plain Tune with reuse_actors {statistics.median(reused):.3f} s"
    return "s", statistics.median(took), statistics.median(plain), 3, note


N_SECONDS_LONG, N_SLOTS = 2000, 16
N_PLAIN = 160  # of plain Tune by default: each trial costs the same there, it gets a new process


def one_second(spec, report):
    time.sleep(1)
    report(1, {"val_macro_f1": 0.5})


def one_second_in_tune(config):
    from ray import tune

    time.sleep(1)
    tune.report({"val_macro_f1": 0.5})


def tune_1s(n=N_SECONDS_LONG, n_slots=N_SLOTS):
    """Time 2,000 trials of one second on 16 declared CPUs, as Ray's own benchmark does, with the ledger on.

    The baseline is plain Tune with reuse_actors. The note has each over the ideal, and plain Tune by default, with fewer
    trials. `TUNE_1S_TRIALS` in the environment changes the number; with fewer, start-up is more of it.
    """
    from orchestrator.cluster.connection import connect

    n = int(os.environ.get("TUNE_1S_TRIALS", n))
    n_plain = min(n, N_PLAIN)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place, connect(None, num_cpus=n_slots, dashboard=False):
        folder = Path(place)
        options = {"modules": (), "n_epochs": 1, "at_once": n_slots}
        took = ours(folder / "ours", one_second, n, **options)[1]
        stock_options = {"body": one_second_in_tune, "at_once": n_slots}
        reused = stock(folder / "reused", n, reuse=True, **stock_options)
        plain = stock(folder / "plain", n_plain, reuse=False, **stock_options)
    ideal = n / n_slots
    plain_ratio = plain / (n_plain / n_slots)
    note = (
        f"ideal {ideal:.0f} s: ours {took / ideal:.3f}, plain Tune with reuse_actors "
        f"{reused / ideal:.3f}, by default {plain_ratio:.3f} ({n_plain} trials); load before {load:.1f}"
    )
    return "s", took, reused, n, note


# -- real trainings -------------------------------------------------------------------------------------------------
N_PHOTOS = 340


def training(seed, report, work_dir):
    """Train three short epochs on one thread: about two seconds."""
    from tests.benchmarks.training import _config, _task
    from trainers.training_loop import train

    config = _config(head="single", duration="3 epochs", batch_size=32)
    return train(
        config,
        _task(N_PHOTOS, 32, N_PHOTOS * 3 // 4),
        seed=seed,
        report=report,
        work_dir=work_dir,
        threads=1,
    )


def timed(spec, report):
    """Train and note when it began and ended, and how many pages the kernel had to give it."""
    began, faults = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with tempfile.TemporaryDirectory() as folder:
        training(spec.seed, report, Path(folder))
    with (Path(spec.store) / "times.log").open("a") as log:
        log.write(
            f"{began} {time.time()} {resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults}\n"
        )


def _bare_worker(inbox, outbox):
    import importlib

    from orchestrator.search.trial_process import TRAINING_MODULES

    for name in TRAINING_MODULES:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        training(0, lambda epoch, metrics: None, Path(folder))  # warm is warm
    outbox.put("ready")
    while (seed := inbox.get()) is not None:
        began = time.time()
        with tempfile.TemporaryDirectory() as folder:
            training(seed, lambda epoch, metrics: None, Path(folder))
        outbox.put((began, time.time()))


def _bare(n):
    context = get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    workers = [context.Process(target=_bare_worker, args=(inbox, outbox)) for _ in range(2)]
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # as Ray sets it for a worker of one CPU
        for worker in workers:
            worker.start()
    for _ in workers:
        outbox.get()
    for seed in [*range(n), None, None]:
        inbox.put(seed)
    times = [outbox.get() for _ in range(n)]
    for worker in workers:
        worker.join()
    return max(end for _, end in times) - min(begin for begin, _ in times)


def trial_wall_vs_bare(n=N_TRIALS):
    """Time 60 trainings of about two seconds, two at a time, from the first one's start to the last one's end.

    The baseline runs the same trainings from a queue in two processes that are as warm, without scheduler, ledger or
    files of Tune; half of them before ours and half after. Start-up is left out on both sides, but not what the first
    training of a worker costs more than its later ones: that is ours to pay.
    """
    from orchestrator.cluster.connection import connect
    from orchestrator.search.trial_process import TRAINING_MODULES

    bare = _bare(n // 2)
    with tempfile.TemporaryDirectory() as place, connect(None, num_cpus=2, dashboard=False):
        folder, began = Path(place) / "ours", time.time()
        ours(folder, timed, n, modules=(*TRAINING_MODULES, "tests.benchmarks.training"))
        times = [
            tuple(map(float, line.split()))
            for line in (folder / "times.log").read_text().splitlines()
        ]
    bare += _bare(n // 2)
    first = min(begin for begin, *_ in times)
    took = max(end for _, end, _ in times) - first
    each = statistics.median(end - begin for begin, end, _ in times)
    faults = statistics.median(n_faults for *_, n_faults in times)
    note = f"a training takes {each:.2f} s, {faults:.0f} page faults; start-up, left out: {first - began:.1f} s"
    return "s", took, bare, n, note


# -- growth ---------------------------------------------------------------------------------------------------------
def once(spec, report):
    report(1, {"val_macro_f1": 0.5})


def driver_10k(n=10_000):
    """Run 10,000 no-op trials in one study with the random sampler; the driver's processor time per trial at both ends.

    The baseline is the first thousand, ours the last one: a driver that looks at all earlier trials for each new one
    would grow. Also in the note: the driver's memory, and the time of suggestions of tpe and gp.
    """
    import psutil

    from orchestrator.cluster.connection import connect
    from tests.orchestrator.search import toy

    marks = []
    with tempfile.TemporaryDirectory() as place, connect(None, num_cpus=2, dashboard=False):
        from orchestrator.search.controller import TrialController

        finish = TrialController._finish

        def marked(self, *args, **kwargs):
            marks.append(time.process_time())
            return finish(self, *args, **kwargs)

        TrialController._finish = marked
        try:
            ours(Path(place) / "ours", once, n, modules=(), n_epochs=1)
        finally:
            TrialController._finish = finish
        grown = psutil.Process().memory_info().rss
        told = []
        for sampler, n_asked in (("tpe", 1000), ("gp", 150)):
            study = toy.make_studies(Path(place), {"sampler": sampler, "trials": n_asked}).studies[
                "a"
            ]
            for _ in range(n_asked):
                began = time.perf_counter()
                asked, point = study.ask()
                asked_s = time.perf_counter() - began
                study.tell(asked, "COMPLETE", {1: {"val_macro_f1": toy.score(point, 9)}})
            told.append(f"{sampler} {asked_s * 1e3:.0f} ms at trial {n_asked}")
    tenth = n // 10
    first, last = (
        (marks[tenth - 1] - marks[0]) / (tenth - 1),
        (marks[-1] - marks[-tenth]) / (tenth - 1),
    )
    return "s", last, first, n, f"driver {grown / 1e6:.0f} MB; a suggestion: {', '.join(told)}"


# -- quality --------------------------------------------------------------------------------------------------------
N_EPOCHS = 9


def _heads(point):
    """A conditional space where the deep head is best, but only when its own two settings fit."""
    top = 0.75 - 0.06 * abs(math.log10(point["train.lr"]) + 2.5)
    if point["train.head"] == "deep":
        top += (
            0.15
            - 0.05 * abs(math.log2(point["train.hidden"]) - 7)
            - 0.4 * abs(point["train.drop"] - 0.5)
        )
    elif point["train.head"] == "shallow":
        top += 0.03
    return top


HEADS = {
    "train.lr": {"float": [1e-5, 1e-1], "log": True},
    "train.head": {"choice": ["single", "shallow", "deep"]},
    "train.hidden": {"int": [16, 1024], "log": True, "when": {"train.head": "deep"}},
    "train.drop": {"float": [0.0, 0.9], "when": {"train.head": "deep"}},
}


def _optimizers(point):
    """Two optimizers that want other rates and each a setting of its own."""
    rate = math.log10(point["train.lr"])
    if point["train.optimizer"] == "adam":
        return 0.88 - 0.05 * abs(rate + 3.5) - 0.05 * abs(math.log10(point["train.decay"]) + 4)
    return 0.9 - 0.06 * abs(rate + 1) - 0.5 * abs(point["train.momentum"] - 0.9)


OPTIMIZERS = {
    "train.lr": {"float": [1e-5, 1.0], "log": True},
    "train.optimizer": {"choice": ["adam", "sgd"]},
    "train.decay": {"float": [1e-6, 1e-2], "log": True, "when": {"train.optimizer": "adam"}},
    "train.momentum": {"float": [0.0, 0.99], "when": {"train.optimizer": "sgd"}},
}


def _grows(top_of, speed):
    """Make a curve out of a final score: fast learners with high rates are ahead early."""

    def curve(point, epoch):
        pace = speed * (1 + 0.15 * (math.log10(point["train.lr"]) + 3))
        return top_of(point) * (1 - math.exp(-max(pace, 0.1) * epoch))

    return curve


def tasks():
    """Return name -> (space, curve): recorded full curves of real trainings, and conditional toy spaces."""
    from tests.benchmarks.record_curves import PLACE, SPACES

    found = {
        "toy heads": (HEADS, _grows(_heads, 0.5)),
        "toy optimizers": (OPTIMIZERS, _grows(_optimizers, 0.4)),
    }
    for name, curves in (json.loads(PLACE.read_text()) if PLACE.exists() else {}).items():

        def curve(point, epoch, curves=curves):
            return curves[json.dumps(point, sort_keys=True)][epoch - 1]

        found[name] = (SPACES[name], curve)
    return found


def _budget_spent(scores, target):
    """Return how many epochs were trained until a score reached the target; all of the budget if none did."""
    reached = next((at for at, score in enumerate(scores, 1) if score >= target), None)
    return reached or BUDGET * N_EPOCHS


def play_ours(space, curve, seed, *, target, folder, group=True):
    """Return the scores of all epochs up to the target, in the order they were trained, two trials at a time."""
    from orchestrator.search.study import Studies, search_controller
    from orchestrator.spec.search_space import Search
    from orchestrator.store.ledger import Ledger
    from tests.orchestrator.search import toy

    search = Search.model_validate(
        {
            "trials": BUDGET * N_EPOCHS,
            "space": space,
            "scheduler": {"name": "asha", "grace": "1 epochs", "reduction": 3},
        }
    )
    studies = Studies("bench", search, ["a"], seed, toy.spec_maker(folder, seed))
    if not group:
        studies._sampler = lambda variant, seed, *, at_random: _default_tpe(seed, at_random)
    scores, store = [], {}

    with Ledger(folder) as ledger:
        controller = search_controller(
            studies, ledger, {"a": f"{N_EPOCHS} epochs"}, finished=lambda spec: store.get(spec.key)
        )
        on_report = controller.on_report

        def count(trial_id, epoch, metrics):
            if controller.handed_out[trial_id].stored is None and controller.budget.reached is None:
                scores.append(metrics["val_macro_f1"])
                if scores[-1] >= target or len(scores) == BUDGET * N_EPOCHS:
                    controller.budget.reached = "this is enough"
            return on_report(trial_id, epoch, metrics)

        controller.on_report = count
        toy.simulate(
            controller,
            max_concurrent=2,
            curve=curve,
            finish=lambda spec, history: store.setdefault(spec.key, history),
        )
    return scores


def _default_tpe(seed, at_random):
    import optuna

    return (
        optuna.samplers.RandomSampler(seed=seed)
        if at_random
        else optuna.samplers.TPESampler(seed=seed)
    )


def play_stock(space, curve, seed, *, target):
    """The same with Tune's own OptunaSearch and ASHA, driven as its controller does, without a cluster."""
    from ray.tune.schedulers.async_hyperband import _Bracket
    from ray.tune.search.optuna import OptunaSearch

    from orchestrator.spec.search_space import Search, suggest

    entries = Search.model_validate({"space": space}).space
    search = OptunaSearch(
        lambda trial: suggest(trial, entries) and None, metric="val_macro_f1", mode="max", seed=seed
    )
    bracket = _Bracket(min_t=1, max_t=N_EPOCHS, reduction_factor=3, s=0)
    scores, running, n, now = [], [], 0, 0.0
    while len(scores) < BUDGET * N_EPOCHS and (not scores or scores[-1] < target):
        while len(running) < 2:
            name = str(n)
            point = search.suggest(name)
            running.append((now + 1.0, n, name, point, 1))
            n += 1
        running.sort(key=lambda one: one[:2])
        now, order, name, point, epoch = running.pop(0)
        value = curve(point, epoch)
        scores.append(value)
        result = {"val_macro_f1": value, "training_iteration": epoch}

        class Trial:
            trial_id = name

        action = bracket.on_result(Trial, epoch, value) if epoch < N_EPOCHS else "STOP"
        if action == "STOP":
            search.on_trial_complete(name, result)
        else:
            search.on_trial_result(name, result)
            running.append((now + 1.0, order, name, point, epoch + 1))
    return scores


def random_best(space, curve, seed):
    """Return the best score of random search that trains every one of its trials to the end."""
    import optuna

    from orchestrator.spec.search_space import Search, suggest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    entries = Search.model_validate({"space": space}).space
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=seed), direction="maximize"
    )
    points = [suggest(study.ask(), entries) for _ in range(BUDGET)]
    return max(curve(point, epoch) for point in points for epoch in range(1, N_EPOCHS + 1))


def interval(ours_, theirs, *, seed=0, n=2000):
    """Return the 90 % bootstrap interval of the ratio of means, seeds resampled in pairs."""
    rng, ours_, theirs = np.random.default_rng(seed), np.array(ours_), np.array(theirs)
    picks = rng.integers(0, len(ours_), (n, len(ours_)))
    low, high = np.quantile(ours_[picks].mean(1) / theirs[picks].mean(1), [0.05, 0.95])
    return float(low), float(high)


def search_vs_stock():
    """Count the epochs that are trained until the best of random search at full budget is reached.

    The budget is 40 trainings to the end. The baseline is OptunaSearch with ASHA, Tune's own classes with their
    defaults and the same rungs, driven in the order Tune drives them; both in simulated time, two trials at a time, all
    epochs equally long, so that no machine decides. Never reached counts as the whole budget. The target is the median
    over seeds of what random search finds. On conditional spaces the note has grouped beside default TPE in ours.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ours_all, stock_all, notes = [], [], []
    for name, (space, curve) in tasks().items():
        target = statistics.median(random_best(space, curve, seed) for seed in range(N_SEEDS))
        rows = {"ours": [], "stock": [], "not grouped": []}
        for seed in range(N_SEEDS):
            for kind, spent in rows.items():
                with tempfile.TemporaryDirectory() as place:
                    if kind == "stock":
                        scores = play_stock(space, curve, seed, target=target)
                    else:
                        group = kind == "ours"
                        scores = play_ours(
                            space, curve, seed, target=target, folder=Path(place), group=group
                        )
                spent.append(_budget_spent(scores, target))
        low, high = interval(rows["ours"], rows["stock"])
        means = {kind: statistics.fmean(found) for kind, found in rows.items()}
        never = {kind: Counter(found)[BUDGET * N_EPOCHS] for kind, found in rows.items()}
        notes.append(
            f"{name}: {means['ours']:.0f} against {means['stock']:.0f} epochs, ratio {means['ours'] / means['stock']:.2f} "
            f"({low:.2f} to {high:.2f}), not grouped {means['not grouped']:.0f}, never {never['ours']}/{never['stock']}"
        )
        print(f"  {notes[-1]}", flush=True)
        ours_all.append([found / means["stock"] for found in rows["ours"]])
        stock_all.append([found / means["stock"] for found in rows["stock"]])
    ours_mean, stock_mean = np.mean(ours_all, 0), np.mean(stock_all, 0)
    low, high = interval(ours_mean, stock_mean)
    note = f"90 % interval of the ratio {low:.2f} to {high:.2f}, {N_SEEDS} seeds; " + "; ".join(
        notes
    )
    return "of stock", float(ours_mean.mean()), float(stock_mean.mean()), N_SEEDS, note
