"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers import augmentation, checkpoint
from trainers.allocator import keep_freed_memory
from trainers.feature_cache import PLAIN, Bank, Keep, View
from trainers.config import Duration, NoCutMix, NoMixUp, OfflineMixUp, Train
from trainers.data import Ints, Task, ahead, batches, epoch_order, seed_of
from trainers.losses import Targets, alpha_of, branch_loss, total_loss
from trainers.metrics import accuracy, macro_f1, split_class
from trainers.mixing import mix, offline_pairs
from trainers.model import Classifier, build
from trainers.optim import Plateau, lr_at, make_optimizer
from trainers.precision import autocast, probe
from trainers.inference import as_tensor

Report = Callable[[int, dict[str, float]], None]
_EVAL_BATCH = 128
_SMALLEST_MICRO_BATCH = 2  # BatchNorm needs two samples


class TrainingDiverged(RuntimeError):  # noqa: N818 - says what happened
    """A loss or a metric that is not a finite number."""


class OutOfMemory(RuntimeError):  # noqa: N818 - says what happened
    """Even the smallest micro-batch does not fit into the device's memory."""


@dataclass(frozen=True)
class Result:
    """What a training leaves behind, besides its files."""

    epochs: int
    best_epoch: int
    metrics: dict[str, float]  # of the best epoch
    history: list[dict[str, float]]
    pairs: Ints  # (M, 2) rows of the parents of offline MixUp's extra samples
    micro_batch: int  # smaller than the batch where it was asked for, or where memory ran out


def train(  # noqa: C901, PLR0912, PLR0915 - one loop, to be read from top to bottom
    config: Train,
    task: Task,
    *,
    seed: int,
    report: Report,
    work_dir: Path,
    device: str = "cpu",
    threads: int | None = None,
    source: Mapping[str, Tensor] | None = None,
    keep: Keep | None = None,
    micro_batch: int | None = None,
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
        threads: of torch on the CPU; beside a GPU, threads that load photos.
        source: weights of the model whose feature map head frozen_deep stands on.
        keep: where features of a frozen backbone are kept between trainings.
        micro_batch: at most so many photos at once, for a machine with less memory than the spec thought.

    Raises:
        TrainingDiverged: a loss or metric is not finite.
        OutOfMemory: the device's memory does not hold a micro-batch of two.
        ValueError: the settings do not fit this task or device.
    """
    if threads:
        torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    # -- data -------------------------------------------------------------------------------------------------------
    mixup, mixable = config.augment.mixup, task.mixable
    if isinstance(mixup, OfflineMixUp):
        if mixable is None:
            raise ValueError(
                "offline mixup: which rows may be mixed was required, found nothing in the task"
            )
        task = task.with_pairs(offline_pairs(mixup, task.train, mixable, seed=seed))
    augmented = augmentation.build(config.augment.policy)
    # -- model ------------------------------------------------------------------------------------------------------
    torch.manual_seed(seed_of(seed, "init"))
    model = build(
        config.model,
        task.label_sizes,
        size=task.images.shape[1],
        pretrained=False if source is not None else None,
    )
    if config.model.head.name == "frozen_deep":
        _load_backbone(model, source)
    if model.head.exists is not None:
        model.head.exists[:] = torch.from_numpy(_existing(task))
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(config.optimizer, [p for p in model.parameters() if p.requires_grad])
    codes = {name: task.codes_of(labels) for name, labels in model.head.branches.items()}
    losses = {
        name: branch_loss(config.loss, _class_weights(config, task, labels, device))
        for name, labels in model.head.branches.items()
    }
    precision = _precision(config, task, device, threads or torch.get_num_threads())
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    micro = min(
        config.micro_batch or config.batch_size, micro_batch or config.batch_size, config.batch_size
    )
    if micro < config.batch_size and not config.can_split_batches:
        raise _f1_does_not_fit(config)
    # -- a frozen backbone is asked once per photo and view, unless photos are mixed in the batch ---------------------
    freeze = config.model.freeze
    looked_up = (
        freeze is not None
        and isinstance(config.augment.cutmix, NoCutMix)
        and isinstance(mixup, NoMixUp)
    )
    bank = Bank(model, task, augmented, keep) if looked_up else None
    net: nn.Module = model.head if bank else model
    moves: nn.Module = model.head if freeze else model  # what a checkpoint has to hold
    n_loaders = max(1, (threads or 2) - 1) if device != "cpu" and bank is None else 0
    backward = _Backward(net, losses, config.loss.weights, device, precision, scaler)

    def inputs(rows: Ints, epoch: int | None = None) -> Tensor:
        """Photos (B, 3, H, W) uint8, or their features (B, F); augmented where an epoch is given."""
        if bank is not None and freeze is not None:
            view = (
                View((epoch - 1) % freeze.views, seed, config.augment.policy)
                if epoch and augmented
                else PLAIN
            )
            return bank(rows, view)
        photos = task.photos(rows)
        if epoch and augmented:
            photos = augmented(photos, augmentation.sample_seeds(seed, epoch, rows))
        return as_tensor(photos)

    # -- length -----------------------------------------------------------------------------------------------------
    steps_per_epoch = sum(1 for _ in batches(task.train, config.batch_size, drop_single=True))
    duration = Duration.parse(config.duration)
    n_steps, n_epochs = duration.steps(steps_per_epoch), duration.epochs(steps_per_epoch)
    # -- resume -----------------------------------------------------------------------------------------------------
    plateau, history, step = Plateau(), list[dict[str, float]](), 0
    if (state := checkpoint.load_state(work_dir)) is not None:
        moves.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        plateau.best, plateau.waited, plateau.cuts = state["plateau"]
        history, step = state["history"], state["step"]
        micro = min(micro, state["micro_batch"])
        for epoch, metrics in enumerate(history, 1):
            report(epoch, metrics)
    # -- epochs -----------------------------------------------------------------------------------------------------
    for epoch in range(len(history) + 1, n_epochs + 1):
        if (
            config.early_stop
            and history
            and len(history) - best_epoch(history) >= config.early_stop
        ):
            break
        began, total, seen, lr = time.perf_counter(), 0.0, 0, 0.0
        model.train()
        # all randomness of an epoch is set here, so that a restart needs no generator's state
        torch.manual_seed(seed_of(seed, "epoch", epoch))
        rng = np.random.default_rng(seed_of(seed, "mix", epoch))
        order = epoch_order(task, seed=seed, epoch=epoch, balance=config.balance)
        parts = list(batches(order, config.batch_size, drop_single=True))[: n_steps - step]
        for rows, x in zip(
            parts, ahead(partial(inputs, epoch=epoch), parts, n_loaders), strict=True
        ):
            photos, targets = x, {name: task.targets_of(own, rows) for name, own in codes.items()}
            if (mixed := mix(x, config.augment, rng, _fits(task, rows))) is not None:
                photos = mixed.x
                targets = {
                    name: own.mixed(mixed.partner, mixed.weight) for name, own in targets.items()
                }
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
            loss = None
            while loss is None:
                optimizer.zero_grad(set_to_none=True)
                try:
                    loss = backward(photos, targets, micro)
                except torch.OutOfMemoryError:
                    micro = _halved(min(micro, len(rows)), config)
            if not np.isfinite(loss):
                raise _diverged("loss", loss, task, rows, step, lr)
            if config.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            total, seen, step = total + loss * len(rows), seen + len(rows), step + 1
        metrics = {"train_loss": total / max(seen, 1), "lr": lr}
        if micro < config.batch_size:
            metrics["train_micro_batch"] = micro
        for rows, loss, scores in evaluate(model, net, inputs, task, codes, losses, config):
            if not np.isfinite(loss):
                raise _diverged("val loss", loss, task, rows, step, lr)
            metrics |= scores
        metrics["epoch_s"] = time.perf_counter() - began
        plateau.see(metrics["val_macro_f1"], getattr(config.schedule, "patience", 0))
        history.append(metrics)
        if best_epoch(history) == epoch:
            checkpoint.save_weights(
                work_dir, model.state_dict(), describe(config, task, model, precision)
            )
        # the state is on the disk before anybody hears of the epoch
        checkpoint.save_state(
            work_dir,
            {
                "model": moves.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "plateau": [plateau.best, plateau.waited, plateau.cuts],
                "history": history,
                "step": step,
                "micro_batch": micro,
            },
        )
        report(epoch, metrics)
    best = best_epoch(history)
    return Result(len(history), best, history[best - 1], history, task.pairs, micro)


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the epoch (from 1) with the best val macro F1, the first of equals."""
    return max(range(len(history)), key=lambda at: (history[at]["val_macro_f1"], -at)) + 1


@torch.no_grad()
def evaluate(
    model: Classifier,
    net: nn.Module,
    inputs: Callable[[Ints], Tensor],
    task: Task,
    codes: Mapping[str, Ints],
    losses: Mapping[str, Any],
    config: Train,
) -> Iterator[tuple[Ints, float, dict[str, float]]]:
    """Score the val part: never augmented, no batch dropped, the loss averaged over samples.

    Args:
        model: is put into eval mode.
        net: the model, or its head where `inputs` gives features.
        inputs: rows -> what `net` eats.
        task: with a val part.
        codes: branch -> (N,) its joint class for every row.
        losses: branch -> loss.
        config: of the training.

    Yields:
        Per batch its rows and mean loss; with the last one the scores of the whole part.
    """
    model.eval()
    device = str(next(model.parameters()).device)
    total, preds, scores = 0.0, [], dict[str, float]()
    answered = tuple(label for labels in model.head.branches.values() for label in labels)
    for rows in batches(task.val, _EVAL_BATCH):
        logits = net(inputs(rows).to(device))
        targets = {name: task.targets_of(own, rows).to(device) for name, own in codes.items()}
        loss = total_loss(logits, targets, losses, config.loss.weights).item()
        total += loss * len(rows)
        preds.append(model.head.log_probs(logits).argmax(1).cpu().numpy())
        if rows[-1] == task.val[-1]:
            scores = {
                "val_loss": total / len(task.val),
                **_scores(task, answered, np.concatenate(preds)),
            }
        yield rows, loss, scores


def _scores(task: Task, answered: tuple[str, ...], pred: Ints) -> dict[str, float]:
    target, sizes = (
        task.codes_of(answered)[task.val],
        tuple(task.label_sizes[name] for name in answered),
    )
    scores = {"val_accuracy": accuracy(target, pred), "val_macro_f1": macro_f1(target, pred)}
    for at, name in enumerate(answered):
        scores[f"val_macro_f1_{name}"] = macro_f1(
            split_class(target, sizes)[:, at], split_class(pred, sizes)[:, at]
        )
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


@dataclass(frozen=True)
class _Backward:
    """Adds the gradients of a batch up, micro-batch by micro-batch, and returns its mean loss."""

    net: nn.Module
    losses: Mapping[str, Any]
    weights: Mapping[str, float]
    device: str
    precision: str
    scaler: torch.amp.GradScaler

    def __call__(self, x: Tensor, targets: Mapping[str, Targets], micro: int) -> float:
        total = 0.0
        for part in _micro_batches(len(x), micro):
            own = x[part].to(self.device)
            with autocast(self.device, self.precision):
                logits = self.net(own)
            here = {name: branch.part(part).to(self.device) for name, branch in targets.items()}
            share = total_loss(logits, here, self.losses, self.weights) * (len(own) / len(x))
            self.scaler.scale(share).backward()
            total += share.item()
        return total


def _micro_batches(n: int, size: int) -> Iterator[slice]:
    """Cut a batch into slices of at most `size`, one more where a lone last sample would be left for BatchNorm."""
    for part in batches(np.arange(n), size, drop_single=True):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _halved(micro: int, config: Train) -> int:
    """Return the next smaller micro-batch after one that did not fit.

    Raises:
        OutOfMemory: there is none.
    """
    if not config.can_split_batches:
        raise _f1_does_not_fit(config)
    if micro // 2 < _SMALLEST_MICRO_BATCH:
        raise OutOfMemory(
            f"a micro-batch of {micro} photos was tried, the device's memory does not hold it; "
            "use a smaller backbone or photo size, or precision bf16"
        )
    torch.cuda.empty_cache()
    return micro // 2


def _f1_does_not_fit(config: Train) -> OutOfMemory:
    return OutOfMemory(
        f"loss 'f1' needs the whole batch of {config.batch_size} photos at once, the memory does not "
        "hold it; lower train.batch_size, or use another loss, whose batches can be split"
    )


def _diverged(
    what: str, value: float, task: Task, rows: Ints, step: int, lr: float
) -> TrainingDiverged:
    named = ", ".join(task.name(row) for row in rows.tolist())
    return TrainingDiverged(
        f"{what} is {value} at step {step}, lr {lr:g}, samples {named}; lower the learning rate"
    )


def _fits(task: Task, rows: Ints) -> NDArray[np.bool_] | None:
    """Return which samples of a batch online MixUp may mix, None for all."""
    return None if task.mixable is None else task.mixable.fits[task.parents(rows)[0]]


def _load_backbone(model: Classifier, source: Mapping[str, Tensor] | None) -> None:
    """Take over the feature map of a trained model.

    Raises:
        ValueError: there is none, or it is another backbone's.
    """
    if source is None:
        raise ValueError("head frozen_deep: the weights of its source were required, found none")
    prefix = "backbone."
    own = {
        name.removeprefix(prefix): value
        for name, value in source.items()
        if name.startswith(prefix)
    }
    try:
        model.backbone.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"head frozen_deep: the source's backbone must be the same: {error}"
        ) from None


def _existing(task: Task) -> NDArray[np.bool_]:
    """Say which joint classes the training part has, (n_classes,)."""
    found = task.codes_of(tuple(task.label_sizes))[task.parents(task.train)[0]]
    return np.bincount(found, minlength=task.n_classes) > 0


def _class_weights(
    config: Train, task: Task, labels: tuple[str, ...], device: str
) -> Tensor | None:
    """Return what a sample counts by its class in one branch, (k,): the balance times the loss's alpha."""
    weights = alpha_of(config.loss, labels, task.label_sizes)
    if config.balance == "class_weights":
        codes = task.codes_of(labels)[task.parents(task.train)[0]]
        counts = np.bincount(
            codes, minlength=int(np.prod([task.label_sizes[name] for name in labels]))
        ).astype(float)
        balance = np.where(
            counts > 0, len(codes) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0
        )
        own = torch.tensor(balance, dtype=torch.float32)
        weights = own if weights is None else weights * own
    return None if weights is None else weights.to(device)


def _precision(config: Train, task: Task, device: str, threads: int) -> str:
    """Resolve `auto`, where nobody has done so once for the whole run, and refuse what the device does not do."""
    if config.precision == "fp16" and device == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU; use fp32, bf16 or auto")
    if config.precision != "auto":
        return config.precision
    size = int(task.images.shape[1])
    state = torch.get_rng_state()  # the probe draws a model of its own
    took = probe(
        config.model,
        task.label_sizes,
        size=size,
        batch_size=config.batch_size,
        device=device,
        threads=threads,
    )
    torch.set_rng_state(state)
    return min(took, key=lambda name: took[name])
