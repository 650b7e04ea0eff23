"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers import checkpoint
from trainers.checkpoint import best_epoch, best_epochs
from trainers.compute_settings import (
    autocast,
    choose_precision,
    keep_freed_memory,
    scoring_precision,
    set_up_kernels,
)
from trainers.config import IS_LAST, Train
from trainers.data import Ints, Task, ahead, batches, epoch_order, epoch_size, seed_of
from trainers.feature_cache import PLAIN, FeatureCache, FeatureStore, View
from trainers.finetuning.moving_average import MovingAverage
from trainers.finetuning.optim import Plateau, lr_at, make_optimizer, set_lr, trained_parameters
from trainers.finetuning.soup import greedy_soup
from trainers.finetuning.unfreezing import Unfreezing
from trainers.heads import branch_labels
from trainers.inference import as_tensor, gathered
from trainers.metrics import Objective, accuracy, macro_f1, split_class
from trainers.model import Classifier, build
from trainers.objectives.branches import objective_of, place_cells
from trainers.objectives.losses import BranchLoss, total_loss
from trainers.overlap.checkpoint_writer import CheckpointWriter
from trainers.overlap.clock import Clock
from trainers.overlap.compiled_steps import Compiled, compiled, mode_of, recorded_or_plain
from trainers.overlap.device_copies import Copies
from trainers.overlap.feeder import Batch, feed
from trainers.overlap.loader_processes import LoaderProcesses, Work
from trainers.overlap.loss_watch import LossWatch, TrainingDiverged
from trainers.overlap.overlap_choice import Overlap, overlap_on
from trainers.photos import augmentation
from trainers.photos.augmentation import Augmentation
from trainers.photos.mixing import mix, offline_pairs
from trainers.preflight.step_times import StepTimes
from trainers.settings.augment import NoCutMix, NoMixUp, OfflineMixUp
from trainers.settings.duration import Duration
from trainers.settings.own_parts import OwnPart

__all__ = ["OutOfMemory", "Result", "TrainingDiverged", "best_epoch", "evaluate", "train"]

Report = Callable[[int, dict[str, float]], None]
_EVAL_BATCH = 128
_SMALLEST_MICRO_BATCH = 2  # BatchNorm needs two samples


class OutOfMemory(RuntimeError):  # noqa: N818 - says what happened
    """Even the smallest micro-batch does not fit into the device's memory."""


@dataclass(frozen=True)
class Result:
    """What a training leaves behind, besides its files."""

    epochs: int
    best_epoch: int
    metrics: dict[str, float]  # of the best epoch, or of the soup
    history: list[dict[str, float]]
    pairs: Ints  # (M, 2) rows of the parents of offline MixUp's extra samples
    micro_batch: int  # smaller than the batch if the spec says so, or if memory ran out
    soup: tuple[int, ...] = ()  # epochs whose weights were averaged, the best first


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
    feature_store: FeatureStore | None = None,
    micro_batch: int | None = None,
    overlap: Overlap | None = None,
    began: float | None = None,
    objective: Objective | None = None,
    step_times: StepTimes | None = None,
) -> Result:
    """Train one classifier and leave the weights of its best epoch, or its soup, in `work_dir`.

    Started again over the same `work_dir` it goes on after the last finished epoch. On a CPU it
    then ends with the same bits as a training that was not stopped. On a GPU a checkpoint is
    written beside the training, so the last finished epoch may be some seconds back.

    Args:
        config: the spec's section.
        task: rows, targets, and the train and val parts.
        seed: of the weights, the order and the augmentation.
        report: called after every epoch (from 1) with its metrics; after a restart first for the
            epochs that are done.
        work_dir: gets last.pt, weights.safetensors and model.json.
        device: where torch computes.
        threads: of torch on the CPU; beside a GPU, threads that load photos.
        source: weights of the model whose feature map head frozen_deep takes.
        feature_store: where features of a frozen backbone are kept between trainings.
        micro_batch: at most so many photos at once, for a machine with little memory.
        overlap: what runs beside the steps; None: what pays on the device.
        began: when the start of this training began (`time.perf_counter`); None: now.
        objective: chooses the best epoch, and is reported as `val_score`; None: macro F1.
        step_times: of such steps on such a device, for `compile: auto`; None: they are not known.

    Raises:
        TrainingDiverged: a loss or metric is not finite. On a GPU it is noticed two steps later.
        OutOfMemory: the device's memory does not hold a micro-batch of two, or a whole batch where
            the loss needs it.
        ValueError: the settings do not fit this task or device.
    """
    clock = Clock()
    began = time.perf_counter() if began is None else began
    overlap = overlap_on(device) if overlap is None else overlap
    if threads:
        # beside a GPU torch has nothing to share out, and its waiting threads would take the cores
        torch.set_num_threads(threads if device == "cpu" else 1)
    set_up_kernels(device)
    if device == "cpu":
        keep_freed_memory()
    # -- data -------------------------------------------------------------------------------------
    task = _learnable(config, task)
    mixup = config.augment.mixup
    if isinstance(mixup, OfflineMixUp):
        if task.mixable is None:
            raise ValueError("offline mixup: task.mixable was required, found none")
        task = task.with_pairs(offline_pairs(mixup, task.train, task.mixable, seed=seed))
    augment = augmentation.build(config.augment.policy, config.augment.erasing)
    # -- model ------------------------------------------------------------------------------------
    torch.manual_seed(seed_of(seed, "init"))
    model = _model(config, task, source).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(config.optimizer, trained_parameters(config.optimizer, model))
    unfreezing = Unfreezing(config.unfreeze, model)
    codes = {}  # branch -> (N,) its joint class for every row
    losses = {}
    for name, labels in model.head.branches.items():
        branch = objective_of(config, task, model.head, labels, device)
        codes[name] = branch.codes
        losses[name] = branch.loss
    precision = _precision(config, model, device)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    micro = min(n for n in (config.batch_size, config.micro_batch, micro_batch) if n)
    if micro < config.batch_size and not config.can_split_batches:
        raise _f1_does_not_fit(config)
    # -- a frozen backbone sees each photo once per view, unless photos are mixed in the batch ----
    freeze = config.model.freeze
    is_unmixed = isinstance(config.augment.cutmix, NoCutMix) and isinstance(mixup, NoMixUp)
    features = None
    if freeze is not None and is_unmixed:
        features = FeatureCache(
            model, task, augment, feature_store, precision=precision, overlap=overlap
        )
    inputs = _Inputs(config, task, seed, augment, features, overlap.copies)
    net: nn.Module = model.head if features else model
    changing: nn.Module = model.head if freeze else model  # what a checkpoint holds
    average = MovingAverage(config.ema, changing)
    n_loaders = 0
    if device != "cpu" and features is None:
        n_loaders = max(1, (threads or 2) - 1)
    # -- length -----------------------------------------------------------------------------------
    in_epoch = np.arange(epoch_size(task, config.group_photos))
    steps_per_epoch = len(list(batches(in_epoch, config.batch_size, drop_single=True)))
    duration = Duration.parse(config.duration)
    n_steps = duration.steps(steps_per_epoch)
    is_split = micro < config.batch_size
    mode = mode_of(config.compile, device, n_steps, step_times, is_split=is_split)
    # -- resume -----------------------------------------------------------------------------------
    plateau = Plateau()
    history: list[dict[str, float]] = []
    step = 0
    n_best = config.soup.epochs if config.soup else 1  # epochs whose weights are kept
    writer = CheckpointWriter(work_dir, overlap, n_best)
    state = writer.load()
    n_epochs = duration.epochs(steps_per_epoch)
    if state is not None:
        changing.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        average.load(state.get("average", {}))
        plateau.best, plateau.waited, plateau.cuts = state["plateau"]
        history = state["history"]
        step = state["step"]
        micro = min(micro, state["micro_batch"])
        for epoch, metrics in enumerate(history, 1):
            is_last = epoch == n_epochs or _stops_early(config, history[:epoch])
            report(epoch, {**metrics, IS_LAST: 1.0} if is_last else metrics)

    def validate(scored: nn.Module, *, step: int, lr: float) -> dict[str, float]:
        """Score the val part through a network that has the model's weights."""
        watch = LossWatch("val loss", task.name, overlap.copies, overlap.loss_lag)
        with autocast(device, scoring_precision(device, precision)):
            return evaluate(
                model,
                scored,
                inputs,
                codes,
                losses,
                watch,
                overlap,
                step=step,
                lr=lr,
                objective=objective,
            )

    # -- steps, recorded or compiled for the layers that train ------------------------------------
    unfreezing.enter(len(history) + 1)
    passes = _passes(model, net, inputs, device, precision, mode, n_photos=micro)
    backward = _Backward(
        net, losses, config.loss.weights, device, precision, scaler, passes.compiled
    )
    clock.add("start", time.perf_counter() - began)
    # -- epochs -----------------------------------------------------------------------------------
    with writer, _processes(config, task, n_loaders) or nullcontext() as processes:
        for epoch in range(len(history) + 1, n_epochs + 1):
            if _stops_early(config, history):
                break
            began = time.perf_counter()
            lr = 0.0
            if unfreezing.enter(epoch):
                passes = _Passes(None, net)  # frees the recording of fewer layers before the next
                backward = replace(backward, compiled=None)
                passes = _passes(model, net, inputs, device, precision, mode, n_photos=micro)
                backward = replace(backward, compiled=passes.compiled)
            model.train()
            # all randomness of an epoch is set here, so that a restart needs no generator's state
            torch.manual_seed(seed_of(seed, "epoch", epoch))
            order = epoch_order(
                task,
                seed=seed,
                epoch=epoch,
                balance=config.balance,
                group_photos=config.group_photos,
            )
            all_rows = list(batches(order, config.batch_size, drop_single=True))[: n_steps - step]
            photos = _loaded(inputs, all_rows, epoch, n_loaders, processes)
            on_host = _training_batches(inputs, codes, all_rows, epoch, photos)
            watch = LossWatch("loss", task.name, overlap.copies, overlap.loss_lag)
            for batch in clock.waiting(feed(on_host, overlap.copies), "data"):
                lr = lr_at(
                    config.schedule,
                    config.optimizer.lr,
                    step=step,
                    steps_per_epoch=steps_per_epoch,
                    n_steps=n_steps,
                    cuts=plateau.cuts,
                )
                set_lr(optimizer, lr)
                loss = None
                while loss is None:
                    optimizer.zero_grad(set_to_none=True)
                    try:
                        loss = backward(batch, micro)
                    except torch.OutOfMemoryError:
                        micro = _halved(min(micro, len(batch.rows)), config)
                watch.add(loss, batch.rows, step=step, lr=lr)
                if config.clip_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                step += 1
                average.update(step)
            metrics = {"train_loss": watch.mean(), "lr": lr}
            clock.add("steps", time.perf_counter() - began - clock.seconds("data"))
            if micro < config.batch_size:
                metrics["train_micro_batch"] = micro
            with clock.timing("evaluation"), average.in_place():
                metrics |= validate(passes.scored, step=step, lr=lr)
            metrics["epoch_s"] = time.perf_counter() - began
            metrics |= clock.take()
            plateau.update(checkpoint.score_of(metrics), getattr(config.schedule, "patience", 0))
            history.append(metrics)
            with clock.timing("checkpoint"):
                if epoch in best_epochs(history, n_best):
                    description = describe(config, task, model, precision)
                    writer.keep_best(epoch, average.weights(model), description)
                # where nothing runs beside, the state is on the disk before the epoch is reported
                state = checkpoint.State(
                    model=changing.state_dict(),
                    optimizer=optimizer.state_dict(),
                    scaler=scaler.state_dict(),
                    plateau=[plateau.best, plateau.waited, plateau.cuts],
                    history=history,
                    step=step,
                    micro_batch=micro,
                )
                if config.ema:
                    state["average"] = average.state()
                is_last = epoch == n_epochs or _stops_early(config, history)
                writer.save(state, is_last=is_last)
            metrics |= clock.take()
            report(epoch, {**metrics, IS_LAST: 1.0} if is_last else metrics)
        best = best_epoch(history)
        result = Result(len(history), best, history[best - 1], history, task.pairs, micro)
        if config.soup is None:
            writer.finish(best)
            return result
        # -- the mean of good epochs, none of which is removed: a restart stirs the same again ----

        def score(weights: dict[str, Tensor]) -> dict[str, float]:
            model.load_state_dict(weights)
            return validate(passes.scored, step=step, lr=0.0)

        soup = greedy_soup(best_epochs(history, n_best), writer.epoch_weights, score)
        checkpoint.save_weights(work_dir, soup.weights, describe(config, task, model, precision))
        sys.stderr.write(soup.sentence(history) + "\n")
        return replace(result, metrics=soup.metrics, soup=soup.epochs)


def _stops_early(config: Train, history: list[dict[str, float]]) -> bool:
    if not config.early_stop or not history:
        return False
    return len(history) - best_epoch(history) >= config.early_stop


def _learnable(config: Train, task: Task) -> Task:
    """Leave out training photos that lack a label of every branch, and say how many."""
    branches = branch_labels(config.model.head, task.label_sizes)
    learnable = task.learnable(branches.values())
    n_lost = len(task.train) - len(learnable.train)
    if n_lost:
        sys.stderr.write(
            f"{n_lost} of {len(task.train)} training photos lack a label that head "
            f"{config.model.head.name} answers together with others; it trains without them\n"
        )
    return learnable


def _model(config: Train, task: Task, source: Mapping[str, Tensor] | None) -> Classifier:
    """Build the model for a task; head frozen_deep takes its backbone from `source`."""
    size = task.images.shape[1]
    pretrained = None if source is None else False
    model = build(config.model, task.label_sizes, size=size, pretrained=pretrained)
    if config.model.head.name == "frozen_deep":
        _load_backbone(model, source)
    if model.head.exists is not None:
        classes = task.train_codes(tuple(task.label_sizes))
        counts = np.bincount(classes[classes >= 0], minlength=task.n_classes)
        model.head.exists[:] = torch.from_numpy(counts > 0)
    place_cells(model.head, task)
    return model


def _load_backbone(model: Classifier, source: Mapping[str, Tensor] | None) -> None:
    """Take over the feature map of a trained model.

    Raises:
        ValueError: there is none, or it is another backbone's.
    """
    if source is None:
        raise ValueError("head frozen_deep: the weights of its source were required, found none")
    weights = {}
    for name, value in source.items():
        if name.startswith("backbone."):
            weights[name.removeprefix("backbone.")] = value
    try:
        model.backbone.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"head frozen_deep: the source's backbone must be the same: {error}"
        ) from None


def _precision(config: Train, model: Classifier, device: str) -> str:
    """Resolve `auto`, and refuse what the device cannot do."""
    if config.precision == "fp16" and device == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU; use fp32, bf16 or auto")
    if config.precision == "auto":
        return choose_precision(model, device)
    return config.precision


@dataclass(frozen=True)
class _Inputs:
    """What the network gets for rows: photos, or features of a frozen backbone."""

    config: Train
    task: Task
    seed: int
    augment: Augmentation | None
    features: FeatureCache | None
    copies: Copies | None

    def __call__(self, rows: Ints, epoch: int | None = None) -> Tensor:
        """Return (B, 3, H, W) uint8, or features (B, F); augmented where an epoch is given."""
        augment = self.augment if epoch else None
        if self.features is not None and self.config.model.freeze is not None:
            view = PLAIN
            if augment is not None and epoch:
                number = (epoch - 1) % self.config.model.freeze.views
                view = View(number, self.seed, self.config.augment.of_one_photo)
            return self.features(rows, view)
        if not epoch:
            return gathered(self.task.photos, rows, self.task.images.shape[1:], self.copies)
        photos = self.task.photos(rows)
        if augment is not None:
            photos = augment(photos, augmentation.sample_seeds(self.seed, epoch, rows))
        return as_tensor(photos)


@dataclass(frozen=True)
class _Passes:
    """What goes through the network faster than by launching its kernels one by one."""

    compiled: Compiled | None  # whole batches of training
    scored: nn.Module  # the val part


def _passes(
    model: Classifier,
    net: nn.Module,
    inputs: _Inputs,
    device: str,
    precision: str,
    mode: str | None,
    *,
    n_photos: int,
) -> _Passes:
    """Record or compile the passes of a training; neither moves its weights or statistics.

    Args:
        model: on the device.
        net: it, or its head where `inputs` gives features.
        inputs: of the training.
        device: where torch computes.
        precision: of the training.
        mode: of its steps.
        n_photos: at once in a step.
    """

    def sample(rows: Ints) -> Tensor:
        return inputs(rows).to(device)

    task = inputs.task
    if mode is None or n_photos > len(task.train):  # no batch is whole
        return _Passes(None, net)
    model.train()
    by_step = compiled(net, mode, partial(sample, task.train[:n_photos]), device, precision)
    if device == "cpu" or not len(task.val):
        return _Passes(by_step, net)
    model.eval()
    scored_in = scoring_precision(device, precision)
    val_rows = task.val[:_EVAL_BATCH]
    return _Passes(by_step, recorded_or_plain(net, partial(sample, val_rows), device, scored_in))


def _processes(config: Train, task: Task, n_loaders: int) -> LoaderProcesses | None:
    """Return processes that augment, where threads would take the interpreter from the loop."""
    policy = config.augment.policy
    erasing = config.augment.erasing
    images = task.images
    is_composed = augmentation.is_composed(policy, erasing)
    is_wanted = n_loaders > 0 and is_composed and not len(task.pairs)
    is_own = isinstance(policy, OwnPart)  # its file may import torch, which those processes lack
    if is_own or not is_wanted or not isinstance(images, np.memmap):
        return None
    return LoaderProcesses(
        images, policy, erasing, n_processes=n_loaders, batch_size=config.batch_size
    )


def _loaded(
    inputs: _Inputs,
    all_rows: list[Ints],
    epoch: int,
    n_loaders: int,
    processes: LoaderProcesses | None,
) -> Iterator[Tensor]:
    """Yield what the network gets for rows, in order, made ahead: in processes, on threads, or here."""
    if processes is None:
        return ahead(partial(inputs, epoch=epoch), all_rows, n_loaders)
    works = [Work(rows, augmentation.sample_seeds(inputs.seed, epoch, rows)) for rows in all_rows]
    return map(as_tensor, processes.batches(works))


def _training_batches(
    inputs: _Inputs,
    codes: Mapping[str, Ints],
    all_rows: list[Ints],
    epoch: int,
    loaded: Iterator[Tensor],
) -> Generator[Batch]:
    """Yield the batches of an epoch on the host, in order, mixed here."""
    task = inputs.task
    lacking = [name for name in codes if (codes[name] < 0).any()]
    rng = np.random.default_rng(seed_of(inputs.seed, "mix", epoch))
    for rows, photos in zip(all_rows, loaded, strict=True):
        x = photos
        targets = {name: task.targets_of(codes[name], rows) for name in codes}
        mixed = mix(photos, inputs.config.augment, rng, _mixable(task, rows))
        if mixed is not None:
            x = mixed.x
            for name, target in targets.items():
                targets[name] = target.mixed(mixed.partner, mixed.weight)
        for name in lacking:
            targets[name] = targets[name].over_labelled()
        yield Batch(rows, x, targets)


def _val_batches(inputs: _Inputs, codes: Mapping[str, Ints]) -> Generator[Batch]:
    """Yield the val part on the host: never augmented or mixed, no sample dropped."""
    task = inputs.task
    for rows in batches(task.val, _EVAL_BATCH):
        targets = {name: task.targets_of(codes[name], rows) for name in codes}
        yield Batch(rows, inputs(rows), targets)


def _mixable(task: Task, rows: Ints) -> NDArray[np.bool_] | None:
    """Return which samples of a batch online MixUp may mix, None for all."""
    if task.mixable is None:
        return None
    first, _ = task.parents(rows)
    return task.mixable.fits[first]


@dataclass(frozen=True)
class _Backward:
    """Adds up the gradients of a batch, micro-batch by micro-batch; returns its mean loss.

    The loss is a float64 scalar on the device: nobody waits for it here.
    """

    net: nn.Module
    losses: Mapping[str, BranchLoss]
    weights: Mapping[str, float]
    device: str
    precision: str
    scaler: torch.amp.GradScaler
    compiled: Compiled | None = None

    def __call__(self, batch: Batch, micro: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in _micro_batches(len(batch.x), micro):
            photos = batch.x[part]
            net = self.net
            if self.compiled and self.compiled.takes(
                len(photos), micro=micro, n_batch=len(batch.x)
            ):
                net = self.compiled.net
            with autocast(self.device, self.precision):
                logits = net(photos)
            targets = {name: target.part(part) for name, target in batch.targets.items()}
            share = len(photos) / len(batch.x)
            loss = total_loss(logits, targets, self.losses, self.weights) * share
            self.scaler.scale(loss).backward()
            total = total + loss.detach().double()
        return total


def _micro_batches(n: int, size: int) -> Iterator[slice]:
    """Cut a batch into slices of `size`; a lone last sample joins the slice before it."""
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
        f"loss 'f1' needs the whole batch of {config.batch_size} photos at once, the memory does "
        "not hold it; lower train.batch_size, or use another loss, whose batches can be split"
    )


@torch.no_grad()
def evaluate(
    model: Classifier,
    net: nn.Module,
    inputs: _Inputs,
    codes: Mapping[str, Ints],
    losses: Mapping[str, BranchLoss],
    watch: LossWatch,
    overlap: Overlap,
    *,
    step: int,
    lr: float,
    objective: Objective | None = None,
) -> dict[str, float]:
    """Score the val part: never augmented, no batch dropped, the loss averaged over samples.

    Args:
        model: is put into eval mode.
        net: the model, or its head where `inputs` gives features.
        inputs: of a task with a val part.
        codes: branch -> (N,) its joint class for every row.
        losses: branch -> loss.
        watch: takes the loss of each batch.
        overlap: how batches come to the device.
        step: named with a loss that is not finite.
        lr: likewise.
        objective: adds `val_score`.
    """
    model.eval()
    weights = inputs.config.loss.weights
    predicted = []
    for batch in feed(_val_batches(inputs, codes), overlap.copies):
        logits = net(batch.x)
        watch.add(total_loss(logits, batch.targets, losses, weights), batch.rows, step=step, lr=lr)
        predicted.append(model.head.log_probs(logits).argmax(1))
    val_loss = watch.mean()
    return {
        "val_loss": val_loss,
        **_scores(model, inputs.task, torch.cat(predicted).cpu().numpy(), objective),
    }


def _scores(
    model: Classifier, task: Task, predicted: Ints, objective: Objective | None
) -> dict[str, float]:
    labels = tuple(label for branch in model.head.branches.values() for label in branch)
    sizes = tuple(task.label_sizes[name] for name in labels)
    target = task.codes_of(labels)[task.val]
    scores = {
        "val_accuracy": accuracy(target, predicted),
        "val_macro_f1": macro_f1(target, predicted),
    }
    target_codes = split_class(target, sizes)
    predicted_codes = split_class(predicted, sizes)
    codes = {}
    for column, name in enumerate(labels):
        codes[name] = (target_codes[:, column], predicted_codes[:, column])
        scores[f"val_macro_f1_{name}"] = macro_f1(*codes[name])
    if objective is not None:
        scores["val_score"] = objective.score(codes, (target, predicted))
    return scores


def describe(
    config: Train, task: Task, model: Classifier, precision: str
) -> checkpoint.Description:
    """Return what rebuilds a model from its weights alone."""
    return {
        "format_version": 1,
        "model": config.model.model_dump(mode="json", by_alias=True, exclude={"weights"}),
        "label_sizes": dict(task.label_sizes),
        "branches": {name: list(labels) for name, labels in model.head.branches.items()},
        "size": int(task.images.shape[1]),
        "precision": precision,
        "n_params": sum(parameter.numel() for parameter in model.parameters()),
    }
