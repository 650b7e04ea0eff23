"""The rows of the GPU check."""

import contextlib
import functools
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.gpu import loops
from tests.gpu.check import ROOT, BusyShare, Lacks, Measured, Row, card_memory_mb


# -- the loop beside bare ones ---------------------------------------------------------------------
def large(setting):
    return setting.backbone, setting.size


def small(setting):
    return setting.small_backbone, setting.small_size


def bare(shape, precision):
    def measure(setting):
        rate = loops.bare_rate(setting, *shape(setting), precision)
        return Measured(rate, "samples/s", setting.shape(*shape(setting)))

    return measure


def loader(shape, precision):
    def measure(setting):
        rate = loops.loader_rate(setting, *shape(setting), precision)
        return Measured(rate, "samples/s", setting.shape(*shape(setting)))

    return measure


def ours(shape, precision, policy, mode=None):
    """Time our loop beside the bare one, whose batch lies on the device and whose steps are plain."""

    def measure(setting):
        trained, busy = loops.watched_training(setting, *shape(setting), precision, policy, mode)
        beside = loops.bare_rate(setting, *shape(setting), precision)
        note = f"{setting.shape(*shape(setting))}; of an epoch: {trained.note}"
        if setting.is_cuda:
            note += f"; the card works {busy:.0f} %"
        if mode is not None:
            first, later = (trained.history[place]["epoch_s"] for place in (0, -1))
            start_s = trained.history[0]["start_s"]
            note += f"; start {start_s:.1f} s, first epoch {first - later:+.1f} s"
        return Measured(trained.rate, "samples/s", note, beside)

    return measure


def _losses_off(a, b):
    pairs = zip(a.history, b.history, strict=True)
    return max(abs(x["train_loss"] - y["train_loss"]) for x, y in pairs)


def busy(setting):
    """Return how busy the card is, steps recorded as they are by default."""
    _, percent = loops.watched_training(setting, *large(setting), setting.bf16, "basic", "recorded")
    return Measured(percent, "%", "all but the first epoch")


def losses_of_recorded(setting):
    """Return how far the losses of recorded steps are from those of plain ones."""
    kind = (*large(setting), setting.bf16, "basic")
    plain, _ = loops.watched_training(setting, *kind)
    recorded, _ = loops.watched_training(setting, *kind, "recorded")
    epochs = zip(plain.history, recorded.history, strict=True)
    off = max(abs(a["train_loss"] - b["train_loss"]) for a, b in epochs)
    return Measured(off, "of the loss", "largest difference from plain steps")


def losses_of_recorded_finetuning(setting):
    """Return how far losses are from those of plain steps where layers rest and weights are averaged."""
    settings = {
        "precision": setting.bf16,
        "unfreeze": "head_first",
        "ema": {"decay": 0.9},
        "soup": {"epochs": 2},
        "optimizer": {"name": "adamw", "layer_decay": 0.8, "decay_norms": False},
    }
    plain = loops.our_training(setting, *small(setting), **settings)
    recorded = loops.our_training(setting, *small(setting), mode="recorded", **settings)
    return Measured(_losses_off(plain, recorded), "of the loss", "recorded again when layers join")


def checkpoint_share(setting):
    """Return what a checkpoint after every epoch keeps the loop from."""
    from trainers.overlap import overlap_choice as options

    every_s, options._WRITE_EVERY_S = options._WRITE_EVERY_S, 0.0
    try:
        trained = loops.our_training(setting, *large(setting), precision=setting.bf16)
    finally:
        options._WRITE_EVERY_S = every_s
    shares = [100 * epoch["checkpoint_s"] / epoch["epoch_s"] for epoch in trained.history]
    note = f"written after every epoch of {trained.history[-1]['epoch_s']:.1f} s"
    return Measured(float(np.median(shares)), "% of an epoch", note)


def augment(policy):
    """Augment on as many threads as a training has, beside that many times one thread."""

    def measure(setting):
        n_threads = 15 if setting.is_cuda else 2
        alone = loops.augment_rate(setting, large(setting)[1], policy, 1)
        together = loops.augment_rate(setting, large(setting)[1], policy, n_threads)
        note = (
            f"{n_threads} threads; what is missing to 1 is the interpreter's lock, or a free core"
        )
        return Measured(together, "photos/s", note, n_threads * alone)

    return measure


def card_use(setting):
    """Train while a worker's meter looks at the card, as the first trial of `gpu: auto` does."""
    from orchestrator.search.card_sharing.meter import CardWatch, NvmlMeter
    from orchestrator.search.trial_process import Child

    watch = CardWatch(NvmlMeter())
    child = Child(_body)
    child.on_check = watch.sample
    try:
        _first_report(child, setting, "ends")
    finally:
        child.kill()
    use = watch.use()
    if use is None:
        raise ValueError("NVML's figures of this card were required, found none")
    note = (
        f"{use.peak_bytes / 1e9:.1f} of {use.total_bytes / 1e9:.0f} GB, busy {use.busy_share:.0%}"
    )
    return Measured(use.trials_per_card, "trials", f"share the card: {note}")


def predict(precision):
    def measure(setting):
        rate = loops.predict_rate(setting, *large(setting), precision)
        beside = loops.forward_rate(setting, *large(setting), precision)
        return Measured(rate, "photos/s", "beside a bare forward pass", beside)

    return measure


def frozen_features(setting):
    from trainers.feature_cache import PLAIN, FeatureCache
    from trainers.model import build

    backbone, size = large(setting)
    settings = loops.config(backbone, model={"frozen": {"views": 1}})
    problem = loops.task(setting.n_photos, size)
    model = build(settings.model, loops.LABELS, size=size).to(setting.device)
    cache = FeatureCache(model, problem, precision=setting.bf16)
    began = time.perf_counter()
    cache(problem.train, PLAIN)
    return Measured(len(problem.train) / (time.perf_counter() - began), "photos/s")


def frozen_epochs(setting):
    trained = loops.our_training(
        setting, *large(setting), n_epochs=4, model={"frozen": {"views": 1}}
    )
    return Measured(trained.rate, "samples/s", "a head over kept features")


# -- what must go right ----------------------------------------------------------------------------
def fp16(setting):
    trained = loops.our_training(setting, *small(setting), precision="fp16")
    losses = [epoch["train_loss"] for epoch in trained.history]
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"finite losses were required, found {losses}")
    return Measured(trained.rate, "samples/s", "with the scaler, all losses finite")


def out_of_memory(setting):
    import torch

    backbone, size = large(setting)
    trained = loops.our_training(
        setting, backbone, size, n_epochs=1, batch_size=65536, precision="fp32"
    )
    after = loops.our_training(setting, backbone, size, n_epochs=1)
    left_mb = torch.cuda.memory_allocated() / 1e6
    if not trained.micro_batch < setting.n_photos:
        raise ValueError("a batch that does not fit was required")
    note = f"photos at once of {setting.n_photos}; the next training: {after.rate:.0f} samples/s"
    return Measured(trained.micro_batch, "photos", f"{note}, {left_mb:.0f} MB left")


class _Cut(Exception):
    pass


def resume(setting):
    def losses(trained):
        return [epoch["train_loss"] for epoch in trained.history]

    def cut(epoch, metrics):
        if epoch == 1:
            raise _Cut

    shape = small(setting)
    settings = {"n_epochs": 3, "augment": {"policy": "basic"}}
    whole = losses(loops.our_training(setting, *shape, **settings))
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(_Cut):
            loops.our_training(setting, *shape, folder, report=cut, **settings)
        again = losses(loops.our_training(setting, *shape, folder, **settings))
    off = max(abs(a - b) for a, b in zip(whole, again, strict=True))
    return Measured(off, "of the loss", "largest difference after a cut")


def at_once(n):
    def measure(setting):
        alone = _alone_rate(setting)
        return Measured(_total_rate(setting, n), "samples/s", f"{n} trainings at once", alone)

    return measure


@functools.cache
def _alone_rate(setting):
    return _total_rate(setting, 1)


def _total_rate(setting, n):
    """Train in n processes that begin together; return their samples a second, summed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.gpu", "--train", setting.device, folder]
        processes = [
            subprocess.Popen([*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for number in range(n)
        ]
        while len(list(Path(folder).glob("ready-*"))) < n:
            time.sleep(0.05)
            if any(process.poll() for process in processes):
                break
        (Path(folder) / "go").touch()
        rates = [float(process.communicate()[0].split()[-1]) for process in processes]
    return sum(rates)


def train_when_told(setting, folder, number):
    """Be one of several trainings: come up, wait for the others, train, print the rate."""
    loops.bare_rate(setting, *small(setting), "fp32")
    (Path(folder) / f"ready-{number}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)
    print(loops.our_training(setting, *small(setting), precision=setting.bf16).rate)


# -- workers ---------------------------------------------------------------------------------------
def _body(spec, report):
    """Train one small epoch; then do what the trial is for."""
    setting, what = spec

    def first(epoch, metrics):
        report(1, metrics)
        if what == "fails":
            raise ValueError("a trial that fails")
        if what == "hangs":
            time.sleep(600)

    mode = "recorded" if setting.is_cuda else None
    loops.our_training(setting, *small(setting), n_epochs=1, report=first, mode=mode)


def _first_report(child, setting, what):
    from orchestrator.search.trial_process import Reported

    began = time.perf_counter()
    threads = loops.threads_of(setting)
    child.start((setting, what), what, threads=threads, device=setting.device)
    message = child.next()
    if not isinstance(message, Reported):
        raise TypeError(f"a report was required, found {message}")
    return message.metrics, time.perf_counter() - began


def second_trial(setting):
    import importlib

    from orchestrator.search.trial_process import TRAINING_MODULES, Child

    for name in TRAINING_MODULES:
        importlib.import_module(name)
    child = Child(_body)
    try:
        times = []
        for what in ("first", "second"):
            metrics, took = _first_report(child, setting, what)
            times.append(took - metrics["data_s"] - metrics["steps_s"] - metrics["evaluation_s"])
            child.next()
    finally:
        child.kill()
    note = f"until its first step; the first trial {times[0]:.1f} s; {child.n_forks} process(es)"
    return Measured(times[1], "s", note)


def memory_after(what):
    def measure(setting):
        from orchestrator.search.trial_process import Child

        floor = card_memory_mb()
        child = Child(_body)
        try:
            _first_report(child, setting, what)
            if what != "hangs":
                child.next()
        finally:
            child.kill()
        for _ in range(20):
            if card_memory_mb() - floor < 50:
                break
            time.sleep(0.1)
        return Measured(card_memory_mb() - floor, "MB", f"above the floor of {floor:.0f} MB")

    return measure


# -- the rest of the way ---------------------------------------------------------------------------
def vote(setting):
    """Predict by a stored model on the device and on the CPU: the same classes."""
    from trainers.inference import load
    from trainers.inference import predict as answer

    with tempfile.TemporaryDirectory() as folder:
        loops.our_training(setting, *small(setting), folder, n_epochs=1)
        images = loops.photos(64, small(setting)[1])
        here = answer(load(Path(folder)), images, device="cpu")
        there = answer(load(Path(folder)), images, device=setting.device)
    return Measured(float(np.abs(here - there).max()), "of a probability", "device against CPU")


def rembg(setting):
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        raise Lacks("onnxruntime-gpu")
    return Measured(1.0, "", "onnxruntime has CUDA")


def _environment(root):
    return {
        **os.environ,
        "ORCHESTRATOR_STORE": str(root / "store"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def _require_success(done):
    if done.returncode:
        sys.stderr.write(done.stderr[-5000:])
        raise RuntimeError(done.stderr[-300:])


def submit(setting):
    """Run a small experiment from photos to a report, as a user would."""
    from data_prep.sample.portrait_data_set import build

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        build(root / "data/sample", 36, size=(96, 128), jobs=2)
        (root / "experiments").mkdir()
        spec = root / "experiments/smoke.yaml"
        spec.write_text((ROOT / "experiments/smoke.yaml").read_text())
        command = [sys.executable, "-m", "orchestrator", "submit", str(spec)]
        settings = {"track": "{tensorboard: false}"}
        if setting.is_cuda:
            settings["resources.per_trial.gpu"] = "0.33"
            settings["train.duration"] = "8 epochs"
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        began = time.perf_counter()
        environment = _environment(root)
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        _require_success(done)
    return Measured(seconds, "s", "from photos to a report")


THIRDS = """
name: thirds
data:
  source: {layout: profile_folders, root: ../data/sample/train, table: train.csv}
  labels:
    mask: {from: stem, classes: {wear: "mask*", incorrect: "incorrect_mask", not_wear: "normal"}}
    gender: {from: column, column: gender, classes: [male, female]}
    age: {from: column, column: age, bins: [30, 60]}
  group: id
  split: {strategy: balanced_profile, val: 0.2, seed: 0}
prep:
  steps:
    - center_crop
    - {name: resize, size: %(size)d}
train:
  model: {backbone: %(backbone)s, pretrained: false, head: single}
  optimizer: {name: adam, lr: 1.0e-3}
  augment: {policy: basic}
  duration: %(epochs)d epochs
  batch_size: 32
search: {trials: 3, sampler: random, scheduler: none, space: {train.optimizer.lr: {float: [1.0e-4, 1.0e-2], log: true}}}
confirm: null
select: {policy: validation, members: 1}
track: {tensorboard: false}
resources: {per_trial: {cpu: %(cpu)d, gpu: %(gpu)s}}
"""


def thirds(setting):
    """Let three trials share a card: how busy it is from the first step to the last trial's end."""
    from data_prep.sample.portrait_data_set import build
    from orchestrator.store.event_types import EpochReported, TrialEnded, TrialStarted
    from orchestrator.store.ledger import read

    settings = {
        "size": setting.small_size,
        "backbone": setting.small_backbone,
        "epochs": 16 if setting.is_cuda else 2,
        "cpu": 5 if setting.is_cuda else 1,
        "gpu": 0.33 if setting.is_cuda else 0,
    }
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        n_people = 255 if setting.is_cuda else 36
        build(root / "data/sample", n_people, jobs=os.cpu_count() or 1)
        (root / "experiments").mkdir()
        spec = root / "experiments/thirds.yaml"
        spec.write_text(THIRDS % settings)
        command = [sys.executable, "-m", "orchestrator", "submit", str(spec)]
        with BusyShare() if setting.is_cuda else contextlib.nullcontext() as share:
            done = subprocess.run(
                command,
                cwd=root,
                env=_environment(root),
                capture_output=True,
                text=True,
                check=False,
            )
        _require_success(done)
        (ledger,) = (root / "store/runs").glob("*/events.jsonl")
        events = read(ledger)
    started = {event.trial_id: event.time for event in events if isinstance(event, TrialStarted)}
    first_steps = []
    for event in events:
        if isinstance(event, EpochReported) and event.epoch == 1:
            parts = ("data_s", "steps_s", "evaluation_s", "checkpoint_s")
            first_steps.append(event.time - sum(event.metrics.get(part, 0.0) for part in parts))
    ends = [event for event in events if isinstance(event, TrialEnded)]
    start_s = min(first_steps) - min(started.values())
    seconds = max(event.time for event in ends) - min(first_steps)
    parts = "; ".join(", ".join(f"{k} {v:.1f}" for k, v in (e.parts or {}).items()) for e in ends)
    note = f"of {seconds:.0f} s; {start_s:.1f} s from the first order to the first step ({parts})"
    percent = share.percent(min(first_steps), max(event.time for event in ends)) if share else 0.0
    return Measured(percent, "%", note)


ROWS = [
    Row("bare_fp32", bare(large, "fp32")),
    Row("bare_bf16", bare(large, "bf16")),
    Row("dataloader_bf16", loader(large, "bf16")),
    Row("ours_fp32", ours(large, "fp32", "none"), 0.97, wanted=".97 of bare"),
    Row("ours_bf16", ours(large, "bf16", "none"), 0.97, wanted=".97 of bare"),
    Row("ours_bf16_basic", ours(large, "bf16", "basic"), 0.97, wanted=".97 of bare"),
    Row("recorded_bf16_basic", ours(large, "bf16", "basic", "recorded"), cuda=True),
    Row("recorded_losses", losses_of_recorded, at_most=0, cuda=True, wanted="the same losses"),
    Row(
        "recorded_finetuned_losses",
        losses_of_recorded_finetuning,
        at_most=0,
        cuda=True,
        wanted="the same losses",
    ),
    Row("busy_recorded_bf16_basic", busy, 90, cuda=True, wanted="90 %"),
    Row("checkpoint", checkpoint_share, at_most=2, wanted="under 2 %"),
    Row("small_bare_bf16", bare(small, "bf16")),
    Row("small_dataloader_bf16", loader(small, "bf16")),
    Row("small_ours_bf16_basic", ours(small, "bf16", "basic"), 0.97, wanted=".97 of bare"),
    Row("small_recorded_bf16_basic", ours(small, "bf16", "basic", "recorded"), cuda=True),
    Row("augment_basic", augment("basic")),
    Row("augment_strong", augment("strong")),
    Row("predict_fp32", predict("fp32"), 0.9, wanted=".9 of bare"),
    Row("predict_bf16", predict("bf16"), 0.9, wanted=".9 of bare"),
    Row("frozen_features", frozen_features),
    Row("frozen_epochs", frozen_epochs),
    Row("fp16_with_scaler", fp16, cuda=True),
    Row("out_of_memory", out_of_memory, cuda=True),
    Row("resume", resume, at_most=1e-6, wanted="the same losses"),
    Row("two_trainings", at_once(2), 1.3, short=False, wanted="1.3 of one"),
    Row("three_trainings", at_once(3), 1.3, short=False, wanted="1.3 of one"),
    Row("second_trial", second_trial, at_most=2, apart=True, wanted="under 2 s"),
    Row(
        "memory_after_a_trial",
        memory_after("ends"),
        at_most=50,
        cuda=True,
        apart=True,
        wanted="the floor",
    ),
    Row(
        "memory_after_a_failure",
        memory_after("fails"),
        at_most=50,
        cuda=True,
        apart=True,
        wanted="the floor",
    ),
    Row(
        "memory_after_a_kill",
        memory_after("hangs"),
        at_most=50,
        cuda=True,
        apart=True,
        wanted="the floor",
    ),
    Row("card_use", card_use, cuda=True, apart=True),
    Row("vote", vote, at_most=2e-2, wanted="the same probabilities"),
    Row("rembg_on_cuda", rembg, cuda=True),
    Row(
        "compiled_graphs_bf16_basic",
        ours(large, "bf16", "basic", "reduce-overhead"),
        1.5,
        cuda=True,
        wanted="1.5 of bare",
    ),
    Row("three_trials_of_a_run", thirds, 85, ray=True, short=False, wanted="85 % busy"),
    Row("submit", submit, ray=True, short=False),
]
