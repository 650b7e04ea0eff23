"""What augmentation on threads costs, and whom: itself by the interpreter's lock, or the loop beside it."""

import contextlib
import multiprocessing
import statistics
import sys
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np

SIZE = 380
BATCH = 32
N_PHOTOS = 128
REPEATS = 5
SECONDS = 6.0  # of a loop


def _photos(size=SIZE):
    return np.random.default_rng(0).integers(0, 255, (N_PHOTOS, size, size, 3), dtype=np.uint8)


def _loader(policy, size=SIZE):
    """Return what gathers and augments the photos of some rows, as the trainer's loaders do."""
    from trainers import augmentation

    images = _photos(size)
    augmented = augmentation.build(policy)

    def load(rows):
        return augmented(np.take(images, rows, axis=0), augmentation.sample_seeds(0, 1, rows))

    return load


def _rows(n_batches):
    return list(np.random.default_rng(0).integers(0, N_PHOTOS, (n_batches, BATCH)))


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


def _steps():
    """Return a step that is bound by calls from Python, as a deep network on a card is: efficientnet_b4 on tiny photos."""
    import timm
    import torch

    torch.set_num_threads(1)
    net = timm.create_model("efficientnet_b4", num_classes=18).train()
    adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x, y = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)

    def step():
        adam.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        adam.step()

    return step


def _loop_rate(step, batches):
    """Return steps a second, each with a batch that somebody else makes."""
    for _ in range(2):
        step()
        next(batches)
    began, n_steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        next(batches)
        step()
        n_steps += 1
    return n_steps / (time.perf_counter() - began)


def _from_threads(n_threads):
    from trainers.data import ahead

    return ahead(_loader("basic"), _rows(100_000 // BATCH), n_threads)


def _serve(pipe, memory_name):
    """Be a process that augments into shared memory, slot by slot."""
    memory = SharedMemory(memory_name)
    slots = np.ndarray((2, BATCH, SIZE, SIZE, 3), np.uint8, memory.buf)
    load = _loader("basic")
    with contextlib.suppress(EOFError):
        while True:
            slot, rows = pipe.recv()
            slots[slot] = load(rows)
            pipe.send(slot)


def _from_process():
    memory = SharedMemory(create=True, size=2 * BATCH * SIZE * SIZE * 3)
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(there, memory.name), daemon=True)
    process.start()
    try:
        slots = np.ndarray((2, BATCH, SIZE, SIZE, 3), np.uint8, memory.buf)
        all_rows = _rows(1000)
        here.send((0, all_rows[0]))
        for number, rows in enumerate(all_rows[1:], 1):
            here.send((number % 2, rows))
            yield slots[here.recv()].copy()
    finally:
        process.kill()
        process.join()
        del slots
        memory.close()
        memory.unlink()


def loop_beside_augmentation():
    """Time steps that are bound by Python's calls while photos are augmented beside them, against steps alone.

    One batch of 32 photos at 380 px, policy basic, is made per step. Fair, because two cores are enough: the loop has one
    and what augments has the other. What the loop loses, it loses to the interpreter's lock.
    """
    import itertools

    import cv2

    cv2.setNumThreads(1)
    step = _steps()
    kinds = {"alone": lambda: itertools.repeat(None), "one thread": lambda: _from_threads(1)}
    kinds |= {"15 threads": lambda: _from_threads(15), "a process": _from_process}
    rates = {name: [] for name in [*kinds, "15 threads, switching every 0.5 ms"]}
    for _ in range(3):
        for name, of_kind in rates.items():
            interval = sys.getswitchinterval()
            batches = kinds[name.partition(",")[0]]()
            if "," in name:
                sys.setswitchinterval(5e-4)
            try:
                of_kind.append(_loop_rate(step, batches))
            finally:
                sys.setswitchinterval(interval)
                if hasattr(batches, "close"):
                    batches.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    note = "; ".join(f"{name} {rate / medians['alone']:.2f}" for name, rate in medians.items())
    return "steps/s", medians["15 threads"], medians["alone"], 3, f"beside alone: {note}"
