"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers import augment, checkpoint
from trainers.config import Duration, Train
from trainers.data import Task, batches, epoch_order, seed_of
from trainers.heads import joint_log_probs
from trainers.losses import Targets, branch_loss, total_loss
from trainers.metrics import accuracy, macro_f1, split_class
from trainers.mixing import MixedBatch, mix
from trainers.model import Classifier, build
from trainers.optim import Plateau, lr_at, make_optimizer

Report = Callable[[int, dict[str, float]], None]
_EVAL_BATCH = 128


class TrainingDiverged(RuntimeError):  # noqa: N818 - says what happened
    """A loss that is not a finite number."""


@dataclass(frozen=True)
class Result:
    """What a training leaves behind, besides its files."""

    epochs: int
    best_epoch: int
    metrics: dict[str, float]  # of the best epoch
    history: list[dict[str, float]]


def train(  # noqa: PLR0915 - one loop, to be read from top to bottom
    config: Train,
    task: Task,
    *,
    seed: int,
    report: Report,
    work_dir: Path,
    device: str = "cpu",
    threads: int | None = None,
) -> Result:
    """Train one classifier and leave the weights of its best epoch in `work_dir`.

    Started again over the same `work_dir` it goes on after the last finished epoch, and ends with the same bits on a
    CPU as if it had not been stopped.

    Args:
        config: the spec's section.
        task: rows, targets, and the train and val parts.
        seed: of the weights, the order and the augmentation.
        report: called after every epoch (from 1) with its metrics, and for epochs done before a restart as well.
        work_dir: gets last.pt, weights.safetensors and model.json.
        device: where torch computes.
        threads: of torch on the CPU.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    if threads:
        torch.set_num_threads(threads)
    # -- model ------------------------------------------------------------------------------------------------------
    torch.manual_seed(seed_of(seed, "init"))
    model = build(config.model, task.label_sizes).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(config.optimizer, model.parameters())
    targets = {name: task.codes_of(labels) for name, labels in model.head.branches.items()}
    losses = {
        name: branch_loss(config.loss, _class_weights(config, codes[task.train], device))
        for name, codes in targets.items()
    }
    precision = _precision(config, model, task, device)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    augmented = augment.build(config.augment.policy)
    # -- length -----------------------------------------------------------------------------------------------------
    steps_per_epoch = sum(1 for _ in batches(task.train, config.batch_size, drop_single=True))
    duration = Duration.parse(config.duration)
    n_steps, n_epochs = duration.steps(steps_per_epoch), duration.epochs(steps_per_epoch)
    # -- resume -----------------------------------------------------------------------------------------------------
    plateau, history, step = Plateau(), list[dict[str, float]](), 0
    if (state := checkpoint.load_state(work_dir)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        plateau.best, plateau.waited, plateau.cuts = state["plateau"]
        history, step = state["history"], state["step"]
        for epoch, metrics in enumerate(history, 1):
            report(epoch, metrics)
    # -- epochs -----------------------------------------------------------------------------------------------------
    for epoch in range(len(history) + 1, n_epochs + 1):
        began, total, seen = time.perf_counter(), 0.0, 0
        model.train()
        # all randomness of an epoch is set here, so that a restart needs no generator's state
        torch.manual_seed(seed_of(seed, "epoch", epoch))
        rng = np.random.default_rng(seed_of(seed, "mix", epoch))
        order = epoch_order(task, seed=seed, epoch=epoch, balance=config.balance)
        lr = 0.0
        for rows in batches(order, config.batch_size, drop_single=True):
            if step >= n_steps:
                break
            x = _to_tensor(_photos(task, rows, augmented, seed, epoch))
            mixed = mix(x, config.augment, rng)
            lr = lr_at(
                config.schedule,
                config.optimizer.lr,
                step=step,
                steps_per_epoch=steps_per_epoch,
                n_steps=n_steps,
                cuts=plateau.cuts,
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            with _autocast(device, precision):
                logits = model(mixed.x.to(device, memory_format=torch.channels_last))
            loss = total_loss(logits, _mixed_targets(targets, rows, mixed, device), losses, config.loss.weights)
            if not torch.isfinite(loss):
                named = ", ".join(task.sample_ids[row] for row in rows[:5])
                raise TrainingDiverged(
                    f"loss is {loss.item()} at step {step}, lr {lr:g}, samples {named}, ...; lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total, seen, step = total + loss.item() * len(rows), seen + len(rows), step + 1
        metrics = {
            "train_loss": total / max(seen, 1),
            "lr": lr,
            **evaluate(model, task, targets, losses, config, device),
        }
        metrics["epoch_s"] = time.perf_counter() - began
        plateau.see(metrics["val_macro_f1"], getattr(config.schedule, "patience", 0))
        history.append(metrics)
        if best_epoch(history) == epoch:
            checkpoint.save_weights(work_dir, model.state_dict(), describe(config, task, model, precision))
        # the state is on the disk before anybody hears of the epoch
        checkpoint.save_state(
            work_dir,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "plateau": [plateau.best, plateau.waited, plateau.cuts],
                "history": history,
                "step": step,
            },
        )
        report(epoch, metrics)
    best = best_epoch(history)
    return Result(len(history), best, history[best - 1], history)


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the epoch (from 1) with the best val macro F1, the first of equals."""
    return max(range(len(history)), key=lambda at: (history[at]["val_macro_f1"], -at)) + 1


@torch.no_grad()
def evaluate(
    model: Classifier,
    task: Task,
    targets: dict[str, NDArray[np.int64]],
    losses: dict[str, Any],
    config: Train,
    device: str,
) -> dict[str, float]:
    """Score the val part: never augmented, no batch dropped, the loss averaged over samples."""
    model.eval()
    total, preds = 0.0, []
    for rows in batches(task.val, _EVAL_BATCH):
        x = _to_tensor(np.asarray(task.images[rows])).to(device, memory_format=torch.channels_last)
        logits = model(x)
        plain = MixedBatch(x, torch.arange(len(rows)), torch.ones(len(rows)))
        loss = total_loss(logits, _mixed_targets(targets, rows, plain, device), losses, config.loss.weights)
        total += loss.item() * len(rows)
        preds.append(joint_log_probs(logits, model.head.branches).argmax(1).cpu().numpy())
    answered = tuple(label for labels in model.head.branches.values() for label in labels)
    target, pred = task.codes_of(answered)[task.val], np.concatenate(preds)
    sizes = tuple(task.label_sizes[name] for name in answered)
    scores = {
        "val_loss": total / len(task.val),
        "val_accuracy": accuracy(target, pred),
        "val_macro_f1": macro_f1(target, pred),
    }
    for at, name in enumerate(answered):
        scores[f"val_macro_f1_{name}"] = macro_f1(split_class(target, sizes)[:, at], split_class(pred, sizes)[:, at])
    return scores


def describe(config: Train, task: Task, model: Classifier, precision: str) -> dict[str, Any]:
    """Return what rebuilds a model from its weights alone."""
    return {
        "format_version": 1,
        "model": config.model.model_dump(mode="json", by_alias=True),
        "label_sizes": dict(task.label_sizes),
        "branches": {name: list(labels) for name, labels in model.head.branches.items()},
        "size": int(task.images.shape[1]),
        "precision": precision,
        "n_params": sum(parameter.numel() for parameter in model.parameters()),
    }


def _photos(task: Task, rows: NDArray[np.int64], augmented: Any, seed: int, epoch: int) -> NDArray[np.uint8]:
    photos = np.asarray(task.images[rows])
    if augmented is None:
        return photos
    return np.stack(
        [augmented(photo, augment.sample_seed(seed, epoch, int(row))) for photo, row in zip(photos, rows, strict=True)]
    )


def _to_tensor(photos: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float, 0 to 255, channels last in memory without a copy of the layout."""
    return torch.from_numpy(np.array(photos, copy=True)).permute(0, 3, 1, 2).float()


def _mixed_targets(
    targets: dict[str, NDArray[np.int64]], rows: NDArray[np.int64], mixed: MixedBatch, device: str
) -> dict[str, Targets]:
    weight = mixed.weight.to(device)
    found = {}
    for name, codes in targets.items():
        first = torch.from_numpy(codes[rows])
        found[name] = Targets(first.to(device), first[mixed.partner].to(device), weight)
    return found


def _class_weights(config: Train, codes: NDArray[np.int64], device: str) -> Tensor | None:
    if config.balance != "class_weights":
        return None
    counts = np.bincount(codes).astype(np.float64)
    weights = np.where(counts > 0, len(codes) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _autocast(device: str, precision: str) -> Any:
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device_type=device.split(":", maxsplit=1)[0], dtype=dtype, enabled=precision != "fp32")


def _precision(config: Train, model: Classifier, task: Task, device: str) -> str:
    """Resolve `auto` by timing two passes; bf16 is three times faster for some models on a CPU and slower for others."""
    if config.precision == "fp16" and device == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU; use fp32, bf16 or auto")
    if config.precision != "auto":
        return config.precision
    x = _to_tensor(np.asarray(task.images[task.train[:16]])).to(device, memory_format=torch.channels_last)
    took = {}
    model.eval()
    with torch.no_grad():
        for precision in ("fp32", "bf16"):
            with _autocast(device, precision):
                model(x)
                began = time.perf_counter()
                model(x)
                took[precision] = time.perf_counter() - began
    return min(took, key=lambda name: took[name])
