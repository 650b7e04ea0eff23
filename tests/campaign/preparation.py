"""The long forms of what tests/data_prep shows briefly. One line of JSON per study on stdout.

    python -m tests.campaign.preparation parts|kills|light_kills|drivers|memory|accuracy|encoding [--n N] [--seed S]

`make campaign` runs them all. Photos are drawn, the models are real.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
STEPS = '{"steps": ["remove_background", "crop_face", {"name": "resize", "size": 128}]}'


def drawn(folder, n_people, size=(192, 256)):
    from data_prep.sample import portrait_data_set

    portrait_data_set.build(folder, n_people, size=size, jobs=2)
    return sorted(folder.glob("train/images/*/*.jpg"))


def tasks_of(paths):
    """Return the photos as shards of 64, so that several are open and several are whole."""
    from data_prep.preparation.pool import ShardTask

    rows = [
        (f"train/{at:04}", str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        for at, path in enumerate(paths)
    ]
    return [
        ShardTask(number, rows[start : start + 64])
        for number, start in enumerate(range(0, len(rows), 64))
    ]


class Sleepy:
    """The real steps that need no network, and the time that the networks would take."""

    def __init__(self, prep, threads):
        from data_prep.preparation.photo_steps import Preparation

        self.preparation = Preparation(prep, threads=threads)

    def __call__(self, photo, **settings):
        time.sleep(0.2)
        return self.preparation(photo, **settings)


def light_kills(folder, n, seed):
    """Kill workers as `kills` does, with Sleepy workers: for machines that have better things to do."""
    return kills(
        folder,
        n,
        seed,
        steps='{"steps": ["keep_aspect", {"name": "resize", "size": 64}]}',
        make=Sleepy,
    )


def kills(folder, n, seed, steps=STEPS, make=None):
    """Kill a worker n times at random while 400 photos are prepared; compare every byte with an undisturbed run."""
    import psutil
    import ray

    from data_prep.prep_config import Prep
    from data_prep.preparation.pool import prepare_shards
    from data_prep.preparation.shards import read_shard

    paths = drawn(folder / "photos", 60)
    paths = (paths + paths)[:400]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    stop, killed, rng, done = threading.Event(), [], random.Random(seed), [0]

    def is_busy(process):
        try:
            return "ray::PrepWorker " in " ".join(process.cmdline())
        except psutil.Error:  # it ended while we looked
            return False

    def killer():
        while not stop.wait(rng.uniform(0.5, 4.0)) and len(killed) < n:
            busy = [one.pid for one in psutil.Process().children(recursive=True) if is_busy(one)]
            if busy and done[0] < 400:
                os.kill(victim := rng.choice(busy), signal.SIGKILL)
                killed.append(victim)

    def run(name, disturbed):
        (folder / name).mkdir()
        thread = threading.Thread(target=killer)
        if disturbed:
            thread.start()
        try:
            return list(
                prepare_shards(
                    tasks_of(paths),
                    Prep.model_validate_json(steps),
                    folder / name,
                    cpus=1,
                    make=make,
                    progress=lambda count: done.__setitem__(0, count),
                )
            )
        finally:
            stop.set()
            if disturbed:
                thread.join()

    try:
        wild = run("wild", disturbed=True)
        calm = run("calm", disturbed=False)
    finally:
        ray.shutdown()
    names = [name for one in wild for name in read_shard(one.path)["sample_id"].to_pylist()]
    return {
        "photos": len(paths),
        "kills": len(killed),
        "in exactly one shard": sum(names.count(name) == 1 for name in set(names)),
        "quarantined": [one for result in wild for one in result.quarantined],
        "shards": len(calm),
        "identical shards": sum(
            (folder / "wild" / one.path.name).read_bytes() == one.path.read_bytes() for one in calm
        ),
    }


def drivers(folder, n, seed):
    """Kill a submit n times while it prepares, let the last one end the stage, compare with an undisturbed store."""
    drawn(folder / "data/sample", 60)
    (folder / "experiments").mkdir()
    text = (ROOT / "experiments/smoke.yaml").read_text()
    rng, stores = random.Random(seed), {}
    spec = folder / "experiments/smoke.yaml"
    spec.write_text(text)
    steps = "prep.steps=[{name: crop_face, on_missing: center}, {name: resize, size: 64}]"
    for name, n_kills in (("calm", 0), ("killed", n)):
        store = folder / name
        command = [
            sys.executable,
            "-m",
            "orchestrator",
            "submit",
            str(spec),
            "--store",
            str(store),
            "--set",
            steps,
        ]
        for _ in range(n_kills):
            one = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wait_for(one, store, "prepare/.work-*")
            time.sleep(rng.uniform(0.0, 6.0))
            one.kill()
            one.wait()
        one = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(one, store, "prepare/[0-9a-f]*/manifest.json")
        one.send_signal(signal.SIGINT)
        one.wait()
        (made,) = store.glob("prepare/[0-9a-f]*")
        stores[name] = {path.name: path.read_bytes() for path in made.glob("shard-*.parquet")}
    events = [
        json.loads(line)
        for path in (folder / "killed").glob("runs/*/events.jsonl")
        for line in path.open()
    ]
    numbers = [event["number"] for event in events if event["event"] == "shard"]
    return {
        "kills": n,
        "shards": len(stores["calm"]),
        "identical": stores["calm"] == stores["killed"],
        "a shard was made twice": len(numbers) != len(set(numbers)),
    }


def wait_for(process, store, pattern, limit_s=300):
    until = time.monotonic() + limit_s
    while process.poll() is None and not list(store.glob(pattern)):
        assert time.monotonic() < until, f"waited for {pattern}"
        time.sleep(0.05)


def memory(folder, n, seed):
    """Prepare n photos in one worker and read its peak memory after every tenth of them."""
    from data_prep.prep_config import Prep
    from data_prep.preparation.photo_steps import Preparation, prepare_row

    paths, preparation = drawn(folder / "photos", 36), Preparation(Prep.model_validate_json(STEPS))
    order, peaks = np.random.default_rng(seed).integers(0, len(paths), n), {}
    for done, at in enumerate(order, 1):
        assert prepare_row((f"train/{done}", str(paths[at]), ""), preparation).row
        if done % (n // 10) == 0:
            peaks[done] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
            print(f"{done} photos, peak {peaks[done]} MiB", file=sys.stderr)
    return {"photos": n, "peak MiB": peaks, "growth": round(peaks[n] / peaks[n // 10] - 1, 4)}


def accuracy(folder, n, seed):
    """Compare masks and face boxes with the known truth: ours, and those of the plain loop with its defaults."""
    drawn(folder / "photos", 60, size=(384, 512))
    return compare_with_loop(folder / "photos", n, seed)


def compare_with_loop(root, n, seed):
    """Return mean IoU of masks and boxes, and the share of faces found, for us and for the plain loop."""
    import rembg
    from deepface import DeepFace
    from PIL import Image

    from data_prep.catalog.images import decode
    from data_prep.prep_config import CropFace
    from data_prep.preparation import background_removal, faces
    from data_prep.sample import portrait_data_set

    truths = [
        truth for truth in portrait_data_set.read_truth(root) if truth.path.startswith("train/")
    ]
    session, detector = (
        background_removal.open_session("u2netp", 1),
        faces.open_detector("fastmtcnn"),
    )
    their_session = rembg.new_session("u2netp")
    found = {name: [] for name in ("mask", "mask loop", "face", "face loop", "found", "found loop")}
    for at in np.random.default_rng(seed).permutation(len(truths))[:n]:
        truth = truths[at]
        photo = decode((root / truth.path).read_bytes())
        mask = background_removal.person_mask(session, photo)
        cut = background_removal.lay_over(photo, mask, [0, 0, 0])
        ours = faces.main_face(detector, "fastmtcnn", cut, CropFace().search_size)
        cut = np.asarray(rembg.remove(Image.open(root / truth.path), session=their_session))
        black = np.asarray(Image.fromarray(cut).convert("RGB"))
        theirs = DeepFace.extract_faces(
            black[..., ::-1], detector_backend="fastmtcnn", enforce_detection=False
        )
        best = max(theirs, key=lambda one: one["confidence"])
        area = best["facial_area"]
        box = (
            (area["x"], area["y"], area["x"] + area["w"], area["y"] + area["h"])
            if best["confidence"] > 0
            else None
        )
        found["mask"].append(overlap(mask > 127, truth.silhouette))
        found["mask loop"].append(overlap(cut[..., 3] > 127, truth.silhouette))
        found["found"].append(ours is not None)
        found["found loop"].append(box is not None)
        if ours is not None and box is not None:
            found["face"].append(box_overlap(ours.box, truth.face_box))
            found["face loop"].append(box_overlap(box, truth.face_box))
    return {"photos": n, "faces found by both": len(found["face"])} | {
        name: round(float(np.mean(values)), 4) for name, values in found.items()
    }


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def box_overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0, width) * max(0, height)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def encoding(folder, n, seed):
    """Compare ways to encode crops of 128 px: bytes, decoding speed, and the distance to the pixels they came from."""
    import io

    from PIL import Image

    from data_prep.catalog.images import decode
    from data_prep.preparation.photo_steps import around

    paths, crops = drawn(folder / "photos", 36, size=(384, 512)), []
    for at in np.random.default_rng(seed).permutation(len(paths))[:n]:
        photo = decode(paths[at].read_bytes())
        height, width = photo.shape[:2]
        box = (width // 4, height // 6, 3 * width // 4, 4 * height // 6)
        crops.append(
            Image.fromarray(np.ascontiguousarray(around(photo, box, 0.1))).resize((128, 128))
        )
    rows = {}
    ways = {
        f"jpeg {quality}": {"format": "JPEG", "quality": quality, "subsampling": 0}
        for quality in (85, 90, 95, 98)
    }
    for name, settings in (ways | {"png": {"format": "PNG", "compress_level": 4}}).items():
        encoded = []
        for crop in crops:
            crop.save(buffer := io.BytesIO(), **settings)
            encoded.append(buffer.getvalue())
        began = time.perf_counter()
        back = [decode(one) for one in encoded]
        speed = len(back) / (time.perf_counter() - began)
        errors = [
            np.mean((np.asarray(crop, float) - one) ** 2)
            for crop, one in zip(crops, back, strict=True)
        ]
        psnr = 10 * np.log10(255**2 / max(np.mean(errors), 1e-9))
        rows[name] = {
            "bytes": round(np.mean([len(one) for one in encoded])),
            "decoded/s": round(speed),
            "psnr dB": round(psnr, 1),
        }
    return rows


def parts(folder, n, seed):
    """Say where the processor time of a 384x512 photo goes on one core, in ms, medians."""
    import statistics

    import torch
    from PIL import Image

    from data_prep.catalog.images import decode, encode
    from data_prep.preparation import background_removal, faces

    torch.set_num_threads(1)
    paths = drawn(folder / "photos", 36, size=(384, 512))
    photos = [
        paths[at].read_bytes() for at in np.random.default_rng(seed).permutation(len(paths))[:n]
    ]
    session, detector = (
        background_removal.open_session("u2netp", 1),
        faces.open_detector("fastmtcnn"),
    )
    pixels = [decode(photo) for photo in photos]
    feeds = [
        session.normalize(Image.fromarray(one), (0.5,) * 3, (0.2,) * 3, (320, 320))
        for one in pixels
    ]
    masks = [background_removal.person_mask(session, one) for one in pixels]
    cuts = [
        background_removal.lay_over(one, mask, [0, 0, 0])
        for one, mask in zip(pixels, masks, strict=True)
    ]
    ways = {
        "decode": (decode, photos),
        "u2netp alone": (lambda feed: session.inner_session.run(None, feed), feeds),
        "mask, u2netp included": (lambda one: background_removal.person_mask(session, one), pixels),
        "lay over": (
            lambda pair: background_removal.lay_over(*pair, [0, 0, 0]),
            list(zip(pixels, masks, strict=True)),
        ),
        "face at 512 px": (lambda one: faces.main_face(detector, "fastmtcnn", one), cuts),
        "face at 256 px": (lambda one: faces.main_face(detector, "fastmtcnn", one, 256), cuts),
        "encode 128 px": (lambda one: encode(np.ascontiguousarray(one[:128, :128])), pixels),
    }
    found = {}
    for name, (way, inputs) in ways.items():
        way(inputs[0])
        spent = []
        for one in inputs:
            began = time.process_time()
            way(one)
            spent.append(1000 * (time.process_time() - began))
        found[name] = round(statistics.median(spent), 2)
    return found


STUDIES = {
    "parts": (parts, 24),
    "kills": (kills, 20),
    "light_kills": (light_kills, 20),
    "drivers": (drivers, 5),
    "memory": (memory, 2000),
    "accuracy": (accuracy, 200),
    "encoding": (encoding, 150),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "studies", nargs="*", choices=[*STUDIES, []], help="all of them where none is named"
    )
    parser.add_argument("--n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.studies or STUDIES:
        study, n = STUDIES[name]
        folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        try:
            began = time.perf_counter()
            facts = study(folder, args.n or n, args.seed)
            print(
                json.dumps(
                    {"study": name, **facts, "wall_s": round(time.perf_counter() - began, 1)}
                ),
                flush=True,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
