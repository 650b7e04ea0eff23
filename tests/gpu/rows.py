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
from tests.gpu.check import ROOT, BusyShare, Measured, Row, card_memory_mb


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


def ours(shape, precision, policy):
    def measure(setting):
        settings = {"precision": precision, "augment": {"policy": policy}}
        trained = loops.our_training(setting, *shape(setting), **settings)
        beside = loops.bare_rate(setting, *shape(setting), precision)
        share = trained.history[-1]["data_s"] / trained.history[-1]["epoch_s"]
        note = f"{setting.shape(*shape(setting))}; waits for data {share:.0%} of an epoch"
        return Measured(trained.rate, "samples/s", note, beside)

    return measure


def busy(setting):
    with BusyShare() as share:
        loops.our_training(setting, *large(setting), precision="bf16", augment={"policy": "basic"})
    return Measured(share.percent, "%", "of the card, the training's start included")


def checkpoint_share(setting):
    trained = loops.our_training(setting, *large(setting), precision=setting.bf16)
    shares = [100 * epoch["checkpoint_s"] / epoch["epoch_s"] for epoch in trained.history]
    return Measured(float(np.median(shares)), "% of an epoch", "what the loop waits for it")


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


@functools.cache
def _step_times(setting):
    from trainers.preflight.step_times import measure_step_times

    backbone, size = large(setting)
    settings = loops.config(backbone, precision=setting.bf16)
    return measure_step_times(settings, loops.LABELS, size=size, device=setting.device)


def compiled(mode):
    """Time compiled steps on one batch that lies on the device, beside the eager bare loop."""

    def measure(setting):
        times = _step_times(setting)
        if mode not in times.modes:
            raise ValueError(times.refused[mode])
        of_mode = times.modes[mode]
        beside = loops.bare_rate(setting, *large(setting), setting.bf16)
        note = f"compiled in {of_mode.compile_s:.0f} s; eager {loops.BATCH / times.eager_s:.0f}"
        return Measured(loops.BATCH / of_mode.step_s, "samples/s", note, beside)

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

    loops.our_training(setting, *small(setting), n_epochs=1, report=first)


def _first_report(child, setting, what):
    from orchestrator.search.trial_process import Reported

    began = time.perf_counter()
    child.start((setting, what), what, device=setting.device)
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
        raise RuntimeError(
            "onnxruntime with CUDA was required, found the CPU's; install onnxruntime-gpu"
        )
    return Measured(1.0, "", "onnxruntime has CUDA")


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
        environment = {
            **os.environ,
            "ORCHESTRATOR_STORE": str(root / "store"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        share = BusyShare() if setting.is_cuda else contextlib.nullcontext()
        with share:
            done = subprocess.run(
                command, cwd=root, env=environment, capture_output=True, text=True, check=False
            )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stderr[-300:])
    note = "from photos to a report"
    if isinstance(share, BusyShare):
        note += f"; the card is busy {share.percent:.0f} % of it"
    return Measured(seconds, "s", note)


ROWS = [
    Row("bare_fp32", bare(large, "fp32")),
    Row("bare_bf16", bare(large, "bf16")),
    Row("dataloader_bf16", loader(large, "bf16")),
    Row("ours_fp32", ours(large, "fp32", "none"), 0.97, wanted=".97 of bare"),
    Row("ours_bf16", ours(large, "bf16", "none"), 0.97, wanted=".97 of bare"),
    Row("ours_bf16_basic", ours(large, "bf16", "basic"), 0.97, wanted=".97 of bare"),
    Row("busy_bf16_basic", busy, 90, cuda=True, wanted="90 %"),
    Row("checkpoint", checkpoint_share, at_most=2, wanted="under 2 %"),
    Row("small_bare_bf16", bare(small, "bf16")),
    Row("small_dataloader_bf16", loader(small, "bf16")),
    Row("small_ours_bf16_basic", ours(small, "bf16", "basic"), 0.97, wanted=".97 of bare"),
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
    Row("compiled_bf16", compiled("default"), 1.5, cuda=True, wanted="1.5 of eager bare"),
    Row("graphs_bf16", compiled("reduce-overhead"), 1.5, cuda=True, wanted="1.5 of eager bare"),
    Row("submit", submit, ray=True, short=False),
]
