"""The pool beside the plain loop and beside the bare networks, on drawn 384x512 photos, per core.

One pool of one worker, one plain loop and one bare loop are timed after each other in every repetition, each with one
thread per library; the models are warm and their loading is not counted. `python -m tests.benchmarks.preparation`
is how the extra processes of `prepare_two_workers` are started.
"""

import functools
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

REPEATS = 5
N_PHOTOS = 12  # a repetition
N_WARM = 3
N_READS = 4000  # out of what is only measured beside
STEPS = '{"steps": ["remove_background", "crop_face", {"name": "resize", "size": 128}]}'
ROOT = Path(__file__).resolve().parents[2]


def drawn():
    """Return the paths of drawn photos, 384x512, kept between runs."""
    from data_prep.sample import portrait_data_set

    root = Path(tempfile.gettempdir()) / f"bench-photos-{os.getuid()}"
    if not root.exists():
        beside = Path(tempfile.mkdtemp(dir=root.parent))
        portrait_data_set.build(beside / "drawn", 36, size=(384, 512), jobs=2)
        (beside / "drawn").rename(root)
    paths = sorted(root.glob("train/images/*/*.jpg"))
    return [
        paths[at] for at in np.random.default_rng(0).permutation(len(paths))[: N_WARM + N_PHOTOS]
    ]


def one_thread():
    import cv2
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@functools.cache
def plain_loop():
    """The loop a user would write: rembg.remove with a session, DeepFace.extract_faces, both with their defaults."""
    from data_prep.weights import cache as weights

    one_thread()
    os.environ |= {
        "U2NET_HOME": str(weights.cache_dir()),
        "DEEPFACE_HOME": str(weights.deepface_home()),
    }
    import rembg
    from deepface import DeepFace
    from PIL import Image

    session, out = rembg.new_session("u2netp"), Path(tempfile.mkdtemp())

    def run(path):
        cut = rembg.remove(Image.open(path), session=session)
        photo = np.asarray(cut.convert("RGB"))
        faces = DeepFace.extract_faces(
            photo[..., ::-1], detector_backend="fastmtcnn", enforce_detection=False
        )
        crop = Image.fromarray((faces[0]["face"] * 255).astype(np.uint8)).resize((128, 128))
        crop.save(out / f"{path.parent.name}-{path.name}", quality=95)

    return run


@functools.cache
def bare_loop():
    """Return a function of a path that runs nothing but the two networks, as we run them, on inputs made ready before."""
    import cv2
    from PIL import Image

    from data_prep.catalog import images
    from data_prep.preparation import background_removal, faces

    one_thread()
    session = background_removal.open_session("u2netp", 1)
    faces.open_detector("fastmtcnn")
    from deepface.modules import modeling

    detector = modeling.build_model("face_detector", "fastmtcnn")
    ready = {}
    for path in drawn():
        photo = images.decode(path.read_bytes())
        feed = session.normalize(
            Image.fromarray(photo), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (320, 320)
        )
        mask = background_removal.person_mask(session, photo)
        cut = background_removal.lay_over(photo, mask, [0, 0, 0]) if mask is not None else photo
        ready[path] = (
            feed,
            cv2.resize(cut, (192, 256), interpolation=cv2.INTER_AREA)[..., ::-1].copy(),
        )

    def run(path):
        feed, small = ready[path]
        session.inner_session.run(None, feed)
        detector.detect_faces(small)

    return run


def per_second(run, paths):
    """Return photos per second, and per second of processor time, of a loop."""
    for path in paths[:N_WARM]:
        run(path)
    began, cpu = time.perf_counter(), time.process_time()
    for path in paths[N_WARM:]:
        run(path)
    n = len(paths[N_WARM:])
    return n / (time.perf_counter() - began), n / (time.process_time() - cpu)


class WarmPool:
    """A pool that prepares one shard a repetition and rests in between: nobody feeds it while nobody asks for a shard."""

    def __init__(self, paths, n_workers):
        from data_prep.prep_config import Prep
        from data_prep.preparation.pool import ShardTask, prepare_shards

        photos = [
            (str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
        ] * n_workers
        tasks = [
            ShardTask(
                number, [(f"train/{number}-{at:03}", *photo) for at, photo in enumerate(photos)]
            )
            for number in range(REPEATS + 1)
        ]
        self.folder, self.done, self.start, self.began = tempfile.TemporaryDirectory(), 0, 0, None
        self.n_warm = N_WARM * n_workers
        self.shards = prepare_shards(
            tasks,
            Prep.model_validate_json(STEPS),
            Path(self.folder.name),
            cpus=1,
            n_workers=n_workers,
            progress=self.progress,
        )

    def progress(self, done):
        self.done = done
        if self.began is None and done >= self.start:
            self.start, self.began = done, (time.perf_counter(), processor_s())

    def per_second(self):
        """Return photos per second, and per second of processor time of workers and driver, of the next shard.

        The clock runs from the moment the workers are warm until the shard is written.
        """
        self.start, self.began = self.done + self.n_warm, None
        next(self.shards)
        n, wall_s, cpu_s = (
            self.done - self.start,
            time.perf_counter() - self.began[0],
            processor_s() - self.began[1],
        )
        time.sleep(1.0)  # the calls that workers still hold end now, not in somebody else's time
        return n / wall_s, n / cpu_s

    def close(self):
        self.shards.close()
        self.folder.cleanup()


def processor_s():
    import psutil

    own = psutil.Process()
    workers = [
        one for one in own.children(recursive=True) if "ray::PrepWorker" in " ".join(one.cmdline())
    ]
    return sum(sum(one.cpu_times()[:2]) for one in [own, *workers])


class BareProcesses:
    """Bare loops in processes of their own that stay loaded and begin together when they are told to."""

    def __init__(self, n):
        command = [sys.executable, "-m", "tests.benchmarks.preparation"]
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
            "stderr": subprocess.DEVNULL,
        }
        self.processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(n)]
        for one in self.processes:
            one.stdout.readline()

    def per_second(self, n):
        for one in self.processes[:n]:
            one.stdin.write("go\n")
            one.stdin.flush()
        both = [tuple(map(float, one.stdout.readline().split())) for one in self.processes[:n]]
        return sum(one[0] for one in both), statistics.mean(one[1] for one in both)

    def close(self):
        for one in self.processes:
            one.communicate()


def medians(ways):
    """Run every way in turn, REPEATS times.

    Returns name -> medians of photos per second and of photos per second of processor time. The second is what a busy
    machine can be asked for too.
    """
    found = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            found[name].append(way())
            print(name, *(f"{one:.2f}" for one in found[name][-1]), file=sys.stderr)
    return {
        name: tuple(map(statistics.median, zip(*values, strict=True)))
        for name, values in found.items()
    }


@contextmanager
def pools(*sizes):
    """Start a local cluster and a pool of each size on it."""
    import ray

    ray.init(address="local", num_cpus=sum(sizes), include_dashboard=False, log_to_driver=False)
    found = [WarmPool(drawn(), n) for n in sizes]
    try:
        yield found
    finally:
        for pool in found:
            pool.close()
        ray.shutdown()


@functools.cache
def measured():
    """Return the medians of one worker, the plain loop and the bare loop, timed once for two benchmarks."""
    paths = drawn()
    with pools(1) as (pool,):
        ways = {"pool": pool.per_second}
        ways |= {
            name: functools.partial(per_second, run, paths)
            for name, run in (("loop", plain_loop()), ("bare", bare_loop()))
        }
        return medians(ways)


def beside(name):
    found = measured()
    ours, other = found["pool"], found[name]
    note = f"one core, {N_PHOTOS} photos of 384x512 a repetition; by processor time the ratio is {ours[1] / other[1]:.3f}"
    return "photos/s", ours[0], other[0], REPEATS, note


def prepare_vs_loop():
    """Photos per second of one worker beside the loop a user would write, same networks, same thread count.

    Fair: both are warm, read the same files, and write 128 px crops; the loop uses the libraries' defaults.
    """
    return beside("loop")


def prepare_vs_bare():
    """Photos per second of one worker beside its two networks alone, fed with arrays made before.

    Fair: the bare loop decodes, resizes, blends, encodes and writes nothing; nobody can be faster with these networks.
    """
    return beside("bare")


def prepare_two_workers():
    """What a second worker gains, beside what a second bare process gains.

    Fair: memory and caches are shared by two of either, so the bare processes show what the machine has to give.
    """
    bare = BareProcesses(2)
    try:
        with pools(1, 2) as (one, two):
            ways = {
                "bare": functools.partial(bare.per_second, 1),
                "bare two": functools.partial(bare.per_second, 2),
            }
            found = medians(ways | {"pool": one.per_second, "pool two": two.per_second})
    finally:
        bare.close()
    ours, baseline = (
        found["pool two"][0] / found["pool"][0],
        found["bare two"][0] / found["bare"][0],
    )
    by_cpu = (found["pool two"][1] / found["pool"][1]) / (found["bare two"][1] / found["bare"][1])
    return (
        "x",
        ours,
        baseline,
        REPEATS,
        f"gain of two over one; by processor time the ratio is {by_cpu:.3f}",
    )


def shards_read():
    """Random reads of decoded photos out of shards, beside a folder with the same JPEGs as files.

    Fair: the same bytes, the same order, the same decoder, and both are in the page cache. Verification (sha256 of
    every shard, once) is counted for ours; files in a folder are not verified.
    """
    from PIL import Image

    from data_prep.catalog.images import decode, encode
    from data_prep.preparation import shards

    n, rng = 20_000, np.random.default_rng(0)
    sources = [np.asarray(Image.open(path)) for path in drawn()]
    photos = []
    for at in range(n):
        source = sources[at % len(sources)]
        top, left = rng.integers(0, source.shape[0] - 128), rng.integers(0, source.shape[1] - 128)
        photos.append(encode(np.ascontiguousarray(source[top : top + 128, left : left + 128])))
    rows = [
        dict.fromkeys(shards.SCHEMA.names)
        | {"sample_id": f"train/{at:05}", "sha256": str(at), "image": photo}
        for at, photo in enumerate(photos)
    ]
    names = [f"{row['sample_id'].replace('/', '-')}.jpg" for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        ours, files = Path(folder) / "ours", Path(folder) / "files"
        ours.mkdir()
        files.mkdir()
        n_shards = shards.n_shards_for(n)
        began = time.perf_counter()
        dealt = [[] for _ in range(n_shards)]
        for row in rows:
            dealt[shards.shard_of(row["sample_id"], n_shards)].append(row)
        for number, part in enumerate(dealt):
            shards.write_shard(ours / shards.shard_name(number), part)
        shards.write_index(ours, n_shards=n_shards, size=128, steps=[])
        write_s = time.perf_counter() - began
        began = time.perf_counter()
        for name, photo in zip(names, photos, strict=True):
            (files / name).write_bytes(photo)
        files_s = time.perf_counter() - began
        order, found = rng.permutation(n), {"ours": [], "files": []}
        others = {
            name: make(Path(folder), names, photos)
            for name, make in OTHERS.items()
            if find_spec(name)
        }
        found |= {name: [] for name in others}
        for _ in range(REPEATS):
            reader = shards.Shards(ours)
            began = time.perf_counter()
            for at in order:
                decode(reader[int(at)])
            found["ours"].append(len(order) / (time.perf_counter() - began))
            began = time.perf_counter()
            for at in order:
                decode((files / names[at]).read_bytes())
            found["files"].append(len(order) / (time.perf_counter() - began))
            for name, read in others.items():
                began = time.perf_counter()
                read(order[:N_READS])
                found[name].append(N_READS / (time.perf_counter() - began))
        size = sum(path.stat().st_size for path in ours.iterdir()) / n
        note = (
            f"20,000 crops of 128 px, each read once in random order; {size:.0f} bytes a photo beside "
            f"{sum(map(len, photos)) / n:.0f} of JPEG; written at {n / write_s:.0f}/s beside {n / files_s:.0f}/s"
            + "".join(f"; {name} {statistics.median(found[name]):.0f}/s" for name in others)
        )
        return (
            "photos/s",
            statistics.median(found["ours"]),
            statistics.median(found["files"]),
            REPEATS,
            note,
        )


def mosaic(folder, names, photos):
    """MosaicML Streaming, random reads; not among our dependencies, measured where it is installed."""
    from streaming import LocalDataset, MDSWriter

    from data_prep.catalog.images import decode

    with MDSWriter(out=str(folder / "mds"), columns={"image": "bytes"}, size_limit=2**21) as writer:
        for photo in photos:
            writer.write({"image": photo})
    dataset = LocalDataset(str(folder / "mds"))
    return lambda order: [decode(dataset[int(at)]["image"]).shape for at in order]


def tar(folder, names, photos):
    """WebDataset, which reads in order only."""
    import webdataset

    from data_prep.catalog.images import decode

    with webdataset.TarWriter(str(folder / "all.tar")) as writer:
        for name, photo in zip(names, photos, strict=True):
            writer.write({"__key__": name.removesuffix(".jpg"), "jpg": photo})

    def read(order):
        source = webdataset.WebDataset(str(folder / "all.tar"), shardshuffle=False)
        for _, sample in zip(order, source, strict=False):
            decode(sample["jpg"])

    return read


OTHERS = {"streaming": mosaic, "webdataset": tar}


def main():
    run, paths = bare_loop(), drawn()
    for path in paths[:N_WARM]:
        run(path)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(*per_second(run, paths), flush=True)


if __name__ == "__main__":
    main()
