"""Bare loops of torch, what a user would write, and ours, over the same photos, model and batch."""

import functools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.gpu.check import BusyShare

BATCH = 32
LABELS = {"mask": 3, "gender": 2, "age": 3}


def photos(n, size):
    return np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()


@functools.cache
def stored_photos(n, size):
    """Return photos in a file, as a run has them: only these are augmented in processes."""
    path = Path(_folder().name) / f"{n}-{size}.npy"
    np.save(path, photos(n, size))
    return np.load(path, mmap_mode="r")


def task(n, size):
    from trainers.data import Task

    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, k, n) for k in LABELS.values()], 1)
    rows = np.arange(n)
    return Task(
        stored_photos(n, size), codes, [str(r) for r in rows], LABELS, rows[: n - 2], rows[n - 2 :]
    )


def config(backbone, **settings):
    from trainers.config import Train

    model = {"backbone": backbone, "pretrained": False, **settings.pop("model", {})}
    base = {
        "model": model,
        "loss": "cross_entropy",
        "schedule": "none",
        "augment": {"policy": "none"},
        "batch_size": BATCH,
    }
    return Train.model_validate({**base, **settings})


def synchronize(device):
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _net(backbone, size, device):
    from trainers.model import build

    model = build(config(backbone).model, LABELS, size=size)
    return model.to(device).train()


def _step(net, adam, x, y, device, precision):
    import torch

    from trainers.compute_settings import autocast

    with autocast(device, precision):
        logits = net(x)["joint"]
    loss = torch.nn.functional.cross_entropy(logits.float(), y)
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()


def _rate(step, batches, device, window_s):
    """Return samples a second over a window, after three steps that do not count."""
    for _ in range(3):
        step(next(batches))
    synchronize(device)
    began = time.perf_counter()
    n_steps = 0
    while time.perf_counter() - began < window_s or n_steps < 3:
        step(next(batches))
        n_steps += 1
    synchronize(device)
    return n_steps * BATCH / (time.perf_counter() - began)


@functools.cache
def bare_rate(setting, backbone, size, precision):
    """Train on one batch that lies on the device: no loader, no copy, no score."""
    import torch

    device = setting.device
    net = _net(backbone, size, device).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x = torch.from_numpy(photos(BATCH, size)).permute(0, 3, 1, 2).to(device)
    y = torch.zeros(BATCH, dtype=torch.int64, device=device)

    def endless():
        while True:
            yield x

    def step(batch):
        _step(net, adam, batch, y, device, precision)

    return _rate(step, endless(), device, setting.window_s)


def loader_rate(setting, backbone, size, precision):
    """Train as a user would: a DataLoader over the array, eight workers, page-locked memory."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    device = setting.device
    net = _net(backbone, size, device).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x = torch.from_numpy(photos(256, size)).permute(0, 3, 1, 2)
    dataset = TensorDataset(x, torch.zeros(len(x), dtype=torch.int64))
    n_workers = 8 if setting.is_cuda else 0
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        num_workers=n_workers,
        pin_memory=setting.is_cuda,
        persistent_workers=n_workers > 0,
    )

    def endless():
        while True:
            yield from loader

    def step(batch):
        moved = [tensor.to(device, non_blocking=True) for tensor in batch]
        _step(net, adam, *moved, device, precision)

    return _rate(step, endless(), device, setting.window_s)


@dataclass(frozen=True)
class Trained:
    """What a training of ours gave."""

    rate: float  # samples a second of an epoch without its evaluation, median after the first
    history: list
    micro_batch: int
    window: tuple  # when its first and its last epoch ended, in seconds since 1970

    @property
    def note(self):
        """Where the time of the last epoch went."""
        epoch = self.history[-1]
        shares = []
        for part in ("data", "evaluation", "checkpoint"):
            shares.append(f"{part} {epoch.get(f'{part}_s', 0.0) / epoch['epoch_s']:.1%}")
        return ", ".join(shares)


def only_mode(mode):
    """Return times by which `compile: auto` takes a mode; None: plain steps."""
    from trainers.preflight.step_times import ModeTimes, StepTimes

    return StepTimes(1.0, {} if mode is None else {mode: ModeTimes(0.0, 0.0)})


def threads_of(setting):
    return 15 if setting.is_cuda else 1


def photos_of(setting, size):
    """Return the photos of a training: small ones are trained fast, so there are more of them."""
    return setting.n_photos * (4 if size == setting.small_size and setting.is_cuda else 1)


def our_training(
    setting, backbone, size, folder=None, *, n_epochs=None, report=None, mode=None, **settings
):
    """Train by our loop, with all it does: copies, checks, evaluation, checkpoints."""
    from trainers.training_loop import train

    n_epochs = n_epochs or setting.n_epochs
    n_photos = photos_of(setting, size)
    wanted = config(backbone, duration=f"{n_epochs} epochs", compile="auto", **settings)
    moments = []

    def on_epoch(epoch, metrics):
        moments.append(time.time())
        if report is not None:
            report(epoch, metrics)

    with tempfile.TemporaryDirectory() as own:
        result = train(
            wanted,
            task(n_photos, size),
            seed=0,
            report=on_epoch,
            work_dir=Path(folder or own),
            device=setting.device,
            threads=threads_of(setting),
            step_times=only_mode(mode),
        )
    rates = []
    for epoch in result.history[1:] or result.history:
        rates.append((n_photos - 2) / (epoch["data_s"] + epoch["steps_s"]))
    return Trained(
        statistics.median(rates), result.history, result.micro_batch, (moments[0], moments[-1])
    )


@functools.cache
def watched_training(setting, backbone, size, precision, policy, mode=None):
    """Train once per kind; return (Trained, percent of its later epochs in which the card works)."""
    augment = {"policy": policy}
    if not setting.is_cuda:
        return our_training(setting, backbone, size, precision=precision, augment=augment), 0.0
    with BusyShare() as share:
        trained = our_training(
            setting, backbone, size, precision=precision, augment=augment, mode=mode
        )
    return trained, share.percent(*trained.window)


def augment_rate(setting, size, policy, n_threads):
    """Gather and augment batches on threads, as the loop's loaders do."""
    from trainers.data import ahead
    from trainers.photos import augmentation

    images = photos(256, size)
    augmented = augmentation.build(policy)

    def load(rows):
        return augmented(images[rows], augmentation.sample_seeds(0, 1, rows))

    n_batches = 30 * n_threads if setting.is_cuda else 4
    batches = np.random.default_rng(0).integers(0, len(images), (n_batches, BATCH))
    load(batches[0])
    began = time.perf_counter()
    for _ in ahead(load, list(batches), n_threads):
        pass
    return n_batches * BATCH / (time.perf_counter() - began)


@functools.cache
def forward_rate(setting, backbone, size, precision):
    """Predict bare: one batch of 128 that lies on the device."""
    import torch

    from trainers.compute_settings import autocast

    device = setting.device
    net = _net(backbone, size, device).to(memory_format=torch.channels_last).eval()
    n = 128 if setting.is_cuda else 32
    x = torch.from_numpy(photos(n, size)).permute(0, 3, 1, 2).to(device)
    with torch.no_grad(), autocast(device, precision):
        for _ in range(2):
            net(x)
        synchronize(device)
        began = time.perf_counter()
        n_passes = 0
        while time.perf_counter() - began < setting.window_s or n_passes < 2:
            net(x)
            n_passes += 1
        synchronize(device)
    return n_passes * n / (time.perf_counter() - began)


def predict_rate(setting, backbone, size, precision):
    """Predict by ours, from an array on the host."""
    from trainers.inference import predict

    model = _net(backbone, size, "cpu")
    model.precision = precision
    images = photos(setting.n_photos, size)
    n_rounds = 3 if setting.is_cuda else 1
    rows = np.tile(np.arange(len(images)), n_rounds)
    predict(model, images, rows[:128], device=setting.device)
    began = time.perf_counter()
    predict(model, images, rows, device=setting.device)
    return len(rows) / (time.perf_counter() - began)
