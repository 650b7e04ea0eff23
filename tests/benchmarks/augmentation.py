"""What augmentation on threads costs, and whom: itself by the interpreter's lock, or the loop beside it."""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SIZE = 380
BATCH = 32
PER_STEP = 8
N_PHOTOS = 128
REPEATS = 5
SECONDS = 3.0  # of a loop


def _photos(size=SIZE):
    return np.random.default_rng(0).integers(0, 255, (N_PHOTOS, size, size, 3), dtype=np.uint8)


def _loader(policy, size=SIZE):
    """Return what gathers and augments the photos of some rows, as the trainer's loaders do."""
    from trainers.photos import augmentation

    images = _photos(size)
    augmented = augmentation.build(policy)

    def load(rows):
        return augmented(np.take(images, rows, axis=0), augmentation.sample_seeds(0, 1, rows))

    return load


def _rows(n_batches, size=BATCH):
    return list(np.random.default_rng(0).integers(0, N_PHOTOS, (n_batches, size)))


def _rate(load, n_threads, n_batches):
    from trainers.data import ahead

    began = time.perf_counter()
    for _ in ahead(load, _rows(n_batches), n_threads):
        pass
    return n_batches * BATCH / (time.perf_counter() - began)


def _augment(policy):
    """Time two threads beside twice one thread; photos of 8 px show the time under the lock, which no core divides."""
    import cv2

    cv2.setNumThreads(1)
    load = _loader(policy)
    tiny = _loader(policy, 8)
    load(_rows(1)[0])
    alone, together, locked = [], [], []
    for _ in range(REPEATS):  # interleaved, so that a slow moment hits all
        alone.append(_rate(load, 1, 8))
        together.append(_rate(load, 2, 16))
        locked.append(_rate(tiny, 0, 20))
    per_core, ceiling = statistics.median(alone), statistics.median(locked)
    note = (
        f"{SIZE} px; {per_core:,.0f} photos/s on one thread; of a photo's {1e6 / per_core:.0f} us "
        f"{1e6 / ceiling:.0f} are under the lock, so threads end at {ceiling:,.0f} photos/s"
    )
    return "photos/s", statistics.median(together), 2 * per_core, REPEATS, note


def augment_contest():
    return _augment("contest")


def augment_basic():
    return _augment("basic")


def augment_strong():
    return _augment("strong")


def _torchvision(transform, size):
    """Return what gathers and augments photos with torchvision, one by one as its datasets do."""
    import torch

    images = _photos(size)

    def load(rows):
        photos = np.take(images, rows, axis=0)
        for photo in photos:
            changed = transform(torch.from_numpy(photo).permute(2, 0, 1))
            photo[:] = changed.permute(1, 2, 0).numpy()
        return photos

    return load


def named_policies():
    """Time each policy of a paper on one thread at 160 px, beside `basic` and torchvision's on tensors.

    Photos per second of processor time. Fair, because both sides gather the same photos, have one thread and begin with a
    flip. The ratio is RandAugment's.
    """
    import cv2
    import torch
    from torchvision.transforms import v2

    from trainers.photos import augmentation
    from trainers.settings.policies import AugMix, Erasing, RandAugment, TrivialAugment

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    size = 160
    images = _photos(size)

    def ours(policy, erasing=None):
        augmented = augmentation.build(policy, erasing)

        def load(rows):
            return augmented(np.take(images, rows, axis=0), augmentation.sample_seeds(0, 1, rows))

        return load

    def theirs(transform):
        return _torchvision(v2.Compose([v2.RandomHorizontalFlip(), transform]), size)

    bilinear = v2.InterpolationMode.BILINEAR
    loads = {
        "basic": ours("basic"),
        "rand_augment": ours(RandAugment()),
        "trivial_augment": ours(TrivialAugment()),
        "aug_mix": ours(AugMix()),
        "erasing": ours("none", Erasing()),
        "torchvision's rand_augment": theirs(v2.RandAugment(interpolation=bilinear)),
        "torchvision's trivial_augment": theirs(v2.TrivialAugmentWide(interpolation=bilinear)),
        "torchvision's aug_mix": theirs(v2.AugMix(all_ops=False, interpolation=bilinear)),
        "torchvision's erasing": theirs(v2.RandomErasing(value="random")),
    }
    rates = {name: [] for name in loads}
    for load in loads.values():
        load(_rows(1)[0])
    for _ in range(REPEATS):  # interleaved, so that a slow moment hits all
        for name, load in loads.items():
            began = time.process_time()  # of one thread: neighbours on the machine count less
            for rows in _rows(6):
                load(rows)
            rates[name].append(6 * BATCH / (time.process_time() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    note = f"{size} px; " + "; ".join(f"{name} {rate:,.0f}" for name, rate in medians.items())
    return (
        "photos/s",
        medians["rand_augment"],
        medians["torchvision's rand_augment"],
        REPEATS,
        note,
    )


def _steps():
    """Return a step that is bound by calls from Python, as a deep network on a card is: 450 operations that cost nothing."""
    import torch

    torch.set_num_threads(1)
    layers = []
    for _ in range(150):
        layers += [torch.nn.Conv2d(8, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.SiLU()]
    net = torch.nn.Sequential(*layers).train()
    adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x = torch.rand(2, 8, 4, 4)

    def step():
        adam.zero_grad(set_to_none=True)
        net(x).mean().backward()
        adam.step()

    return step


def _waited_for_a_core():
    """Return the seconds that this thread was ready to run while other work had its core (proc(5), schedstat)."""
    return (
        int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])
        / 1e9
    )


def _step_seconds(step, batches):
    """Return the time of each step without waits for its batch, which somebody else makes, and for a core."""
    for _ in range(2):
        step()
        next(batches)
    seconds, until = [], time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        next(batches)
        began = time.perf_counter() - _waited_for_a_core()
        step()
        seconds.append(time.perf_counter() - _waited_for_a_core() - began)
    return seconds


def _from_threads(n_threads):
    from trainers.data import ahead

    return ahead(_loader("basic"), _rows(20_000, PER_STEP), n_threads)


def _from_processes(folder):
    """Make the same in a process, as trainings on a card do."""
    from trainers.overlap.loader_processes import LoaderProcesses, Work
    from trainers.photos.augmentation import sample_seeds

    path = Path(folder) / "rows.npy"
    np.save(path, _photos())
    images = np.load(path, mmap_mode="r")
    works = [Work(rows, sample_seeds(0, 1, rows)) for rows in _rows(20_000, PER_STEP)]
    with LoaderProcesses(images, "basic", n_processes=1, batch_size=PER_STEP) as processes:
        yield from processes.batches(works)


def loop_beside_augmentation():
    """Time steps that are bound by Python's calls while photos are augmented beside them, against steps alone.

    Eight photos at 380 px, policy basic, are made per step, which is about what an H200 asks for. Fair, because two cores are
    enough: the loop has one and what augments has the other. What the loop loses, it loses to the interpreter's lock. The
    wait for a core is taken off, and the median step counts: neighbours on the machine make some steps long.
    """
    import itertools

    import cv2

    cv2.setNumThreads(1)
    step = _steps()
    kinds = {"alone": lambda: itertools.repeat(None), "one thread": lambda: _from_threads(1)}
    folder = tempfile.TemporaryDirectory()
    kinds |= {
        "15 threads": lambda: _from_threads(15),
        "a process": lambda: _from_processes(folder.name),
    }
    seconds = {name: [] for name in [*kinds, "15 threads, switching every 0.5 ms"]}
    for _ in range(3):
        for name, of_kind in seconds.items():
            interval = sys.getswitchinterval()
            batches = kinds[name.partition(",")[0]]()
            if "," in name:
                sys.setswitchinterval(5e-4)
            try:
                of_kind.extend(_step_seconds(step, batches))
            finally:
                sys.setswitchinterval(interval)
                if hasattr(batches, "close"):
                    batches.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    note = "; ".join(f"{name} {1000 * value:.1f} ms" for name, value in medians.items())
    n = min(map(len, seconds.values()))
    folder.cleanup()
    return "steps/s", 1 / medians["a process"], 1 / medians["alone"], n, note
