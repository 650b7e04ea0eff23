"""The trainer beside what a user would write instead. One thread each, repetitions interleaved, medians."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPEATS = 7
SIZE = 128
_LABELS = {"mask": 3, "gender": 2, "age": 3}


def _median(values):
    return statistics.median(values)


def _task(n_photos, size, n_train=None):
    from trainers.data import Task

    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, k, n_photos) for k in _LABELS.values()], 1)
    images = rng.integers(0, 255, (n_photos, size, size, 3), dtype=np.uint8)
    rows, n_train = np.arange(n_photos), n_train or n_photos - 2
    return Task(images, codes, [str(row) for row in rows], _LABELS, rows[:n_train], rows[n_train:])


def _config(**settings):
    from trainers.config import Train

    model = {
        "backbone": "tf_efficientnet_lite0",
        "pretrained": False,
        "head": settings.pop("head", "single"),
    }
    base = {
        "model": model,
        "loss": "cross_entropy",
        "schedule": "none",
        "augment": {"policy": "none"},
    }
    return Train.model_validate({**base, **settings})


def loop_vs_bare():
    """Time epochs of the loop, val and all, beside a bare PyTorch loop on the same photos, model and batch.

    Fair to the bare loop: its photos are normalized floats in memory already, it gathers them by index, it has the
    same fast settings (channels last, Adam), and it neither checks a loss nor scores anything. Ours gathers uint8 from
    the array, normalizes, checks, and evaluates two photos an epoch.
    """
    import torch

    from trainers.model import build
    from trainers.training_loop import train

    torch.set_num_threads(1)
    task, config = _task(162, 96), _config(duration=f"{REPEATS + 1} epochs", batch_size=32)
    model = build(config.model, _LABELS)
    x = model._normalized(torch.from_numpy(task.images[task.train]).permute(0, 3, 1, 2)).clone(
        memory_format=torch.channels_last
    )
    y = torch.from_numpy(task.codes_of(tuple(_LABELS))[task.train])
    net = (
        torch.nn.Sequential(model.backbone, model.head.layers["joint"])
        .to(memory_format=torch.channels_last)
        .train()
    )
    adam, lossy = (
        torch.optim.Adam(net.parameters(), lr=1e-4, weight_decay=5e-4),
        torch.nn.CrossEntropyLoss(),
    )
    ours, bare = [], []

    def bare_epoch(_, metrics):
        ours.append(len(x) / metrics["epoch_s"])
        began = time.perf_counter()
        for rows in torch.randperm(len(x)).split(32):
            loss = lossy(net(x[rows]), y[rows])
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
        bare.append(len(x) / (time.perf_counter() - began))

    with tempfile.TemporaryDirectory() as folder:
        train(config, task, seed=0, report=bare_epoch, work_dir=Path(folder), threads=1)
    note = "tf_efficientnet_lite0, 96 px, batch 32, 160 photos an epoch, one thread; the first epoch is left out"
    return "img/s", _median(ours[1:]), _median(bare[1:]), REPEATS, note


def loop_vs_timm():
    """Time epochs of the loop beside those of timm's own parts, put together as its train.py does, on one folder.

    The baseline reads the prepared 96 px JPEGs with timm's dataset and loader (no augmentation but the flip), and
    steps timm's model with its cross entropy and Adam, channels last. Both train 160 photos an epoch, one thread.
    """
    import torch
    from PIL import Image
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.models import create_model
    from timm.optim import create_optimizer_v2

    from trainers.training_loop import train

    torch.set_num_threads(1)
    task = _task(162, 96)
    flip = {"policy": [{"name": "HorizontalFlip", "p": 0.5}]}
    config = _config(duration=f"{REPEATS + 1} epochs", batch_size=32, augment=flip)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for at in task.train:
            place = Path(folder) / f"photos/{at % 18:02}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(task.images[at]).save(place / f"{at}.jpg", quality=95)
        loader = create_loader(
            create_dataset("", root=f"{folder}/photos", class_map=""),
            (3, 96, 96),
            batch_size=32,
            is_training=True,
            no_aug=True,
            hflip=0.5,
            num_workers=0,
            use_prefetcher=False,
            device=torch.device("cpu"),
        )
        net = (
            create_model("tf_efficientnet_lite0", num_classes=18)
            .to(memory_format=torch.channels_last)
            .train()
        )
        adam, lossy = create_optimizer_v2(net, opt="adam", lr=1e-4), LabelSmoothingCrossEntropy(0.1)

        def their_epoch(_, metrics):
            ours.append(160 / metrics["epoch_s"])
            began, n = time.perf_counter(), 0
            for x, y in loader:
                loss = lossy(net(x.contiguous(memory_format=torch.channels_last)), y)
                adam.zero_grad()
                loss.backward()
                adam.step()
                n += len(x)
            theirs.append(n / (time.perf_counter() - began))

        work = Path(folder) / "work"
        work.mkdir()
        train(config, task, seed=0, report=their_epoch, work_dir=work, threads=1)
    note = "tf_efficientnet_lite0, 96 px, batch 32, 160 photos an epoch, one thread, JPEGs of noise for timm"
    return "img/s", _median(ours[1:]), _median(theirs[1:]), REPEATS, note


def _photo_folder(root, size):
    """Draw 42 photos of six people and give them classes as ImageFolder wants them."""
    from PIL import Image

    from data_prep.sample.portrait import draw
    from data_prep.sample.portrait_data_set import PHOTOS, people_of

    photos = [(person, photo) for person in people_of(36, 0)[0][::4] for photo in PHOTOS]
    for at, (person, photo) in enumerate(photos):
        place = root / f"folder/{at % 2}/{at}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(person, photo, 0, size)[0]).save(place, quality=92)
    return root / "folder"


def _map(images, folder):
    np.save(folder / "rows.npy", images)
    return np.load(folder / "rows.npy", mmap_mode="r")


def _reader_vs_imagefolder(size_of_photos, note):
    """Count ready batches per CPU second: gather, flip and normalize 128 px rows, beside ImageFolder."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    from trainers.data import Task
    from trainers.inference import as_tensor
    from trainers.model import build
    from trainers.photos import augmentation
    from trainers.settings.model import Model

    torch.set_num_threads(1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    resize = [v2.Resize((SIZE, SIZE), antialias=True)] if size_of_photos != (SIZE, SIZE) else []
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        photos = _photo_folder(Path(folder), size_of_photos)
        dataset = datasets.ImageFolder(
            photos, v2.Compose([*resize, v2.RandomHorizontalFlip(), *to_float])
        )
        small = np.stack(
            [np.asarray(image.resize((SIZE, SIZE))) for image, _ in datasets.ImageFolder(photos)]
        )
        n = 4096  # many more rows than caches hold, drawn from few photos
        images = _map(np.tile(small, (n // len(small) + 1, 1, 1, 1))[:n], Path(folder))
        task = Task(
            images, np.zeros((n, 1), np.int64), [""] * n, {"one": 2}, np.arange(n), np.arange(0)
        )
        flip = augmentation.build([{"name": "HorizontalFlip", "p": 0.5}])
        model = build(Model(backbone="tf_efficientnet_lite0", pretrained=False), _LABELS)
        for repeat in range(REPEATS + 1):
            began = time.process_time()
            for rows in np.random.default_rng(repeat).permutation(n).reshape(-1, 32):
                model._normalized(
                    as_tensor(flip(task.photos(rows), augmentation.sample_seeds(0, repeat, rows)))
                )
            ours.append(n / (time.process_time() - began))
            began = time.process_time()
            for _ in DataLoader(dataset, batch_size=32, shuffle=True):
                pass
            theirs.append(len(dataset) / (time.process_time() - began))
    return "img/cpu-s", _median(ours[1:]), _median(theirs[1:]), REPEATS, note


def reader_vs_imagefolder_original():
    """Read 128 px rows beside torchvision's ImageFolder over the original 384 x 512 JPEGs, equal transforms."""
    return _reader_vs_imagefolder(
        (384, 512), "128 px float batches, flip and normalize; ImageFolder resizes 384 x 512"
    )


def reader_vs_imagefolder_prepared():
    """Read 128 px rows beside torchvision's ImageFolder over prepared 128 px JPEGs, equal transforms."""
    return _reader_vs_imagefolder(
        (SIZE, SIZE), "128 px float batches, flip and normalize; ImageFolder decodes 128 px"
    )


def reader_vs_albumentations():
    """Gather and augment by the policy `basic`, seeded per sample, beside albumentations on ready arrays, unseeded."""
    import albumentations

    from trainers.photos import augmentation

    n, ours, theirs = 1024, [], []
    settings = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in op.items()}
        for op in augmentation.POLICIES["basic"]
    ]
    compose = albumentations.Compose(
        [getattr(albumentations, op.pop("name"))(**op) for op in settings]
    )
    policy = augmentation.build("basic")
    with tempfile.TemporaryDirectory() as folder:
        ready = np.random.default_rng(0).integers(0, 255, (n, SIZE, SIZE, 3), dtype=np.uint8)
        task = _task(n, SIZE)
        object.__setattr__(task, "images", _map(ready, Path(folder)))
        for repeat in range(REPEATS + 1):
            began = time.process_time()
            for rows in np.random.default_rng(repeat).permutation(n).reshape(-1, 32):
                policy(task.photos(rows), augmentation.sample_seeds(0, repeat, rows))
            ours.append(n / (time.process_time() - began))
            began = time.process_time()
            for photo in ready:
                compose(image=photo)
            theirs.append(n / (time.process_time() - began))
    return (
        "img/cpu-s",
        _median(ours[1:]),
        _median(theirs[1:]),
        REPEATS,
        "policy basic, 128 px uint8",
    )


def rows_vs_copy():
    """Gather random rows of the mapped array beside copying as many bytes that lie side by side, the memory's limit."""
    n, batch, ours, copies = 4096, 32, [], []
    with tempfile.TemporaryDirectory() as folder:
        task = _task(n, SIZE)
        object.__setattr__(task, "images", _map(task.images, Path(folder)))
        block = np.array(task.images)
        for repeat in range(REPEATS + 1):
            order = np.random.default_rng(repeat).permutation(n).reshape(-1, batch)
            began = time.process_time()
            for rows in order:
                task.photos(rows)
            ours.append(block.nbytes / 1e6 / (time.process_time() - began))
            began = time.process_time()
            for start in range(0, n, batch):
                block[start : start + batch].copy()
            copies.append(block.nbytes / 1e6 / (time.process_time() - began))
    return (
        "MB/s",
        _median(ours[1:]),
        _median(copies[1:]),
        REPEATS,
        "batches of 32 rows of 128 px, 201 MB in all",
    )


def bank_vs_backbone():
    """Train 40 heads for 10 epochs over 2,000 photos on kept features, beside through the frozen backbone.

    Ours is the whole of it: building the bank, training and scoring, 40 times `train`. The baseline is the same `train`
    with the photos going through the frozen backbone each epoch, as it does where photos are mixed; one epoch of one
    trial is timed REPEATS times on a tenth of the photos, and multiplied: the whole would take hours.
    """
    import torch

    from trainers import training_loop
    from trainers.settings.augment import NoMixUp

    torch.set_num_threads(1)
    size, n = 160, 2000
    task, small = _task(n + 200, size, n), _task(n // 10 + 2, size)
    bank, began = {}, time.perf_counter()

    def keep(identity, compute, *, wait=True):
        name = json.dumps(identity, sort_keys=True)
        if name not in bank:
            bank[name] = compute()
        return bank[name]

    def settings(lr, epochs):
        config = _config(
            head="shallow",
            duration=f"{epochs} epochs",
            batch_size=32,
            optimizer={"name": "adam", "lr": lr},
        )
        model = config.model.model_dump(by_alias=True) | {"frozen": {"views": 1}}
        return type(config).model_validate(config.model_dump(by_alias=True) | {"model": model})

    def quiet(epoch, metrics):
        pass

    for trial in range(40):
        with tempfile.TemporaryDirectory() as folder:
            training_loop.train(
                settings(1e-4 * (trial + 1), 10),
                task,
                seed=0,
                report=quiet,
                work_dir=Path(folder),
                threads=1,
                feature_store=keep,
            )
    ours = time.perf_counter() - began
    epochs = []
    try:
        training_loop.NoMixUp = type("Nothing", (), {})  # the way of a batch whose photos are mixed
        with tempfile.TemporaryDirectory() as folder:
            training_loop.train(
                settings(1e-3, REPEATS),
                small,
                seed=0,
                report=lambda _, metrics: epochs.append(metrics["epoch_s"]),
                work_dir=Path(folder),
                threads=1,
            )
    finally:
        training_loop.NoMixUp = NoMixUp
    through = _median(epochs) * 10 * 400
    note = f"head shallow, lite0 {size} px; bank and 40 trials {ours:.0f} s; through the backbone {through:.0f} s, reckoned"
    return "trials/h", 40 / ours * 3600, 40 / through * 3600, REPEATS, note


_STEPS = """
import resource, sys, timm, torch
from trainers.compute_settings import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
net = timm.create_model("tf_efficientnet_lite0", num_classes=18).to(memory_format=torch.channels_last).train()
adam = torch.optim.Adam(net.parameters())
x = torch.randn(32, 3, 160, 160).contiguous(memory_format=torch.channels_last)
def steps(n):
    for _ in range(n):
        net(x).square().mean().backward()
        adam.step()
        adam.zero_grad()
steps(2)
before = resource.getrusage(resource.RUSAGE_SELF)
steps(4)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""


def kept_memory():
    """Train some steps while glibc keeps freed memory, beside the same steps as Python starts: photos per CPU second."""
    rates = {"kept": [], "default": []}
    for _ in range(5):
        for how, found in rates.items():
            done = subprocess.run(
                [sys.executable, "-c", _STEPS, how], capture_output=True, text=True, check=True
            )
            found.append(128 / float(done.stdout))
    note = "tf_efficientnet_lite0, 160 px, batch 32, a fresh process each"
    return "img/cpu-s", _median(rates["kept"]), _median(rates["default"]), 5, note


_READ = """
import sys, numpy as np
images = np.load(sys.argv[1], mmap_mode="r")
total = sum(int(images[at : at + 64].sum()) for at in range(0, len(images), 64))
print("read", flush=True)
sys.stdin.readline()
"""


def rows_memory():
    """Add up the memory (PSS) that four processes use for one mapped array, beside that of one alone."""

    def pss(pids):
        total = 0
        for pid in pids:
            mine = False
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                if "-" in line.split(" ")[0]:
                    mine = line.endswith("rows.npy")
                elif mine and line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def reading(path, n):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", _READ, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(n)
        ]
        for one in running:
            one.stdout.readline()
        found = pss([one.pid for one in running])
        for one in running:
            one.communicate(b"\n")
        return found

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.npy")
        np.save(path, np.zeros((2048, SIZE, SIZE, 3), np.uint8))
        four, one = reading(path, 4), reading(path, 1)
    return (
        "MB",
        four,
        one,
        1,
        "PSS of the mapping of a 101 MB array, all of it read; at most 1.2 times is wanted",
    )
