"""Ask a cluster of containers for what it has to refuse, and write down what the client is told.

    python -m tests.images.refusals [--folder build/images] [--only WORD ...]

For each case: the exit code of `submit` on the client, and all that it prints. A refusal has to be one
line; what a bucket refuses is said of `data.source.root`, with the line of the spec. A client whose clock is 10 minutes off is refused by nobody; its run has to go on. Exits 1 if
something does not hold.
"""

import argparse
import contextlib
import json
import secrets
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.images.check import PHOTOS, SPEC, STORE, make_photos, on_bucket
from tests.images.cluster import S3_PORT, TOKEN, Cluster, servers
from tests.images.containers import HOST, Network
from tests.images.image import PROGRAMS, ROOT, Storage, require_programs
from tests.s3_server import refusing_server

_FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
_VERSION = "/opt/venv/lib/python3.11/site-packages/ray/_version.py"
_END_S = 900.0


@dataclass(frozen=True)
class Case:
    """What is wrong, and what the client is told."""

    name: str
    words: str  # that its sentence has
    exit_code: int = 1
    address: str = ""  # another one than the cluster's
    files: dict = field(default_factory=dict)
    variables: dict = field(default_factory=dict)
    refusal: tuple = ()  # status and code with which the S3 server answers everything


def cases(image):
    # with FAKETIME_DONT_FAKE_MONOTONIC every sleep of Python fails
    clock = {"LD_PRELOAD": "/opt/faketime.so"}
    library = {"/opt/faketime.so": Path(_FAKETIME).read_bytes()}
    version = (image.files / _VERSION.lstrip("/")).read_text()
    older = version.replace('version = "2.', 'version = "1.')
    return [
        Case("wrong token", "does not accept the token", files={TOKEN: secrets.token_hex(32)}),
        Case("no token", "a token is required", 2, variables={"RAY_AUTH_TOKEN_PATH": ""}),
        Case("nothing at the address", "nothing answers there", address=f"http://{HOST}:8265"),
        Case("another server there", "another server answers", address=f"http://{HOST}:{S3_PORT}"),
        Case("other Ray version", "install one of them on both sides", files={_VERSION: older}),
        Case("bucket denies", "the bucket denies it", exit_code=2, refusal=(403, "AccessDenied")),
        Case("bucket is full", "the bucket is full", exit_code=2, refusal=(403, "QuotaExceeded")),
        Case(
            "no such bucket",
            "there is none of this name",
            exit_code=2,
            refusal=(404, "NoSuchBucket"),
        ),
        Case("clock of the cluster", "set it", exit_code=2, refusal=(403, "RequestTimeTooSkewed")),
        Case("clock ahead", "", 0, files=library, variables={**clock, "FAKETIME": "+10m"}),
        Case("clock behind", "", 0, files=library, variables={**clock, "FAKETIME": "-10m"}),
    ]


@contextlib.contextmanager
def answering(s3, refusal):
    """Let the S3 server refuse everything for the block."""
    if not refusal:
        yield
        return
    s3.stop_front()
    try:
        with refusing_server(*refusal, (HOST, S3_PORT)):
            yield
    finally:
        s3.start_front()


def ask(cluster, case):
    """Submit as the case says and return its row."""
    spec = {SPEC: (ROOT / "experiments/smoke.yaml").read_text()}
    words = ["submit", SPEC, "--address", case.address or cluster.url, "--store", STORE]
    with answering(cluster.s3, case.refusal):
        client = cluster.client(
            *words, *on_bucket(), files={**spec, **case.files}, variables=case.variables
        )
        code = client.wait(_END_S)
        text = client.printed().strip()
        client.kill()
    lines = text.splitlines()
    is_short = len(lines) == 1 or ("data.source.root: " in lines[0] and bool(case.refusal))
    is_clear = case.exit_code == 0 or (is_short and case.words in text)
    return {
        "case": case.name,
        "exit_code": code,
        "said": lines[0 if case.refusal else -1] if lines else "",
        "lines": len(lines),
        "held": code == case.exit_code and is_clear,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/images"))
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names contain a word")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its blocks end, and what they started
    require_programs({**PROGRAMS, "ip": "iproute2", "faketime": "faketime"})
    folder = args.folder.resolve()
    image = Storage(folder).lay_out("cpu")
    photos = make_photos(folder)
    rows = []
    network = Network()
    try:
        with servers(folder / "servers", needs_redis=False) as (s3, _):
            s3.upload(photos, PHOTOS)
            cluster = Cluster(image, network, folder / "nodes", s3)
            try:
                cluster.start()
                for case in cases(image):
                    if not args.only or any(word in case.name for word in args.only):
                        rows.append(ask(cluster, case))
                        print(json.dumps(rows[-1]), flush=True)
            finally:
                cluster.close()
    finally:
        network.close()
    sys.exit(0 if all(row["held"] for row in rows) else 1)


if __name__ == "__main__":
    main()
