"""Build the image and run it as a cluster: head, two workers and a client in four network namespaces.

    python -m tests.images.check [--folder build/images] [--no-build]      # `make image-check`

A token is on. Photos and store are on an S3 server of this machine, and the client has neither them nor
the bucket's keys. It sends `experiments/smoke.yaml`, kept in its own home, and fetches the run's results
and report.
A second submit of the same spec trains nothing. Exits 1 if something does not hold.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.images.cluster import BUCKET, Cluster, servers
from tests.images.containers import Network
from tests.images.image import PROGRAMS, ROOT, Storage, build, require_programs

SPEC = "/home/runner/mine/smoke.yaml"
PAGE = "/home/runner/report.html"
STORE = f"s3://{BUCKET}/store"
PHOTOS = "photos"
_END_S = 1800.0


def make_photos(folder, people=40):
    """Draw the sample data once and return its folder."""
    place = Path(folder) / "sample"
    stamp = place.with_suffix(".complete")
    if not stamp.exists():
        words = ["--out", str(place), "--people", str(people), "--seed", "0"]
        subprocess.run([sys.executable, "-m", "data_prep.sample", *words], cwd=ROOT, check=True)
        stamp.touch()
    return place


def on_bucket():
    """Return the words of a command line that put the photos of a spec on the bucket."""
    words = []
    for side, folder in (("source", "train"), ("test", "eval")):
        words += ["--set", f"data.{side}.root=s3://{BUCKET}/{PHOTOS}/{folder}"]
    return words


class Checks:
    """What was looked at, and what held."""

    def __init__(self):
        self.failed = []

    def that(self, holds, text, shown=""):
        print(f"{'ok' if holds else 'NOT'}  {text}", flush=True)
        if not holds:
            self.failed.append(text)
            print(shown, flush=True)


def run_client(cluster, *words, files=(), limit_s=_END_S):
    """Run a command on the client; return its exit code and what it printed."""
    code, text, _ = fetch_by_client(cluster, *words, files=files, limit_s=limit_s)
    return code, text


def fetch_by_client(cluster, *words, place=None, files=(), limit_s=_END_S):
    """Run a command on the client; return its exit code, what it printed and a file that it has then."""
    client = cluster.client(*words, files=files)
    code = client.wait(limit_s)
    text = client.printed()
    file = client.folder / "upper" / str(place).lstrip("/") if place else None
    content = file.read_bytes() if file is not None and file.exists() else b""
    client.kill()
    return code, text, content


def check(cluster, checks):
    spec = {SPEC: (ROOT / "experiments/smoke.yaml").read_text()}
    submit = ["submit", SPEC, "--address", cluster.url, "--store", STORE, *on_bucket()]
    began = time.monotonic()
    code, text = run_client(cluster, *submit, files=spec)
    checks.that(code == 0, f"the run ends with 0, after {time.monotonic() - began:.0f} s", text)
    code, text = run_client(cluster, "results", "latest", "--address", cluster.url)
    checks.that(code == 0 and "macro_f1" in text, "its results come to the client", text)
    words = ("report", "latest", "--address", cluster.url, "--out", PAGE)
    code, text, page = fetch_by_client(cluster, *words, place=PAGE)
    is_whole = page.startswith(b"<!") and page.rstrip().endswith(b"</html>")
    checks.that(code == 0 and is_whole, f"its report comes to the client, {len(page)} bytes", text)
    names = cluster.s3.names("store/runs/")
    pages = [name for name in names if name.endswith("/report/index.html")]
    checks.that(len(pages) == 1, f"its report is on the bucket, {len(names)} files", str(names))
    code, text = run_client(cluster, "status", "latest", "--address", cluster.url)
    checks.that(code == 0 and "SUCCEEDED" in text, "its status comes to the client", text)
    n_trained = len(trainings(cluster.s3))
    code, text = run_client(cluster, *submit, files=spec)
    checks.that(code == 0, "a second submit ends with 0", text)
    n_now = len(trainings(cluster.s3))
    checks.that(n_now == n_trained, f"it trains nothing: {n_trained} trainings", str(n_now))
    left = cluster.find("ray::TrialWorker", "ray::PrepWorker", "ray::_QueueActor")
    checks.that(not left, "no worker and no queue is left", str(left))


def trainings(s3, store="store"):
    """Return the names of the finished trainings of a store."""
    return [name for name in s3.names(f"{store}/trial/") if name.endswith("/manifest.json")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/images"))
    parser.add_argument("--no-build", action="store_true", help="take the image that is there")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its blocks end, and what they started
    require_programs({**PROGRAMS, "ip": "iproute2"})
    folder = args.folder.resolve()
    image = Storage(folder).lay_out("cpu") if args.no_build else build(folder)
    photos = make_photos(folder)
    checks = Checks()
    network = Network()
    try:
        with servers(folder / "servers", needs_redis=False) as (s3, _):
            n_files = s3.upload(photos, PHOTOS)
            print(f"{n_files} files of photos on the bucket", flush=True)
            cluster = Cluster(image, network, folder / "nodes", s3)
            try:
                began = time.monotonic()
                cluster.start()
                print(f"three nodes: {time.monotonic() - began:.0f} s", flush=True)
                check(cluster, checks)
            finally:
                cluster.close()
    finally:
        network.close()
    print(json.dumps({"failed": checks.failed}))
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
