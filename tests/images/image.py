"""Build the image of docker/Dockerfile without a container engine, and lay out its files.

    python -m tests.images.image [--target cpu] [--folder build/images]

Needs Debian, root, and `apt-get install mmdebstrap buildah`. Two variables fit it to a machine:
TORCH_INDEX is the build argument of this name, and IMAGE_BUILD_OPTIONS holds more words for
`buildah build`, for instance `--volume` of a pip configuration. The machine's certificates are lent to
the build, because a proxy of a company may have one of its own.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/python:3.11-slim-bookworm"
NAME = "localhost/robust-vote"
PROGRAMS = {"mmdebstrap": "mmdebstrap", "buildah": "buildah"}  # program -> Debian package
_CERTIFICATES = ("/etc/ssl/certs", "/usr/local/share/ca-certificates")


class Missing(SystemExit):
    """The machine lacks something; the text says what to do."""


@dataclass(frozen=True)
class Image:
    """A built image: its files, and what it says of how to start it."""

    files: Path  # read only
    variables: dict[str, str]
    entrypoint: list[str]
    user: str


def require_programs(programs):
    """End with one sentence if a program or the right to use it is missing."""
    missing = sorted({package for name, package in programs.items() if shutil.which(name) is None})
    if missing:
        raise Missing(
            f"{', '.join(programs)} were required; install them: apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise Missing("root was required, to make network namespaces and mounts; run it as root")


class Storage:
    """Images and containers in a folder of their own, so that those of the machine stay as they are."""

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        driver = "overlay" if can_overlay(self.folder) else "vfs"
        self._options = ["--storage-driver", driver]
        self._options += ["--root", str(self.folder / "storage")]
        self._options += ["--runroot", str(self.folder / "run")]

    def buildah(self, *words, shows=False):
        """Run buildah and return what it prints."""
        command, *rest = words
        done = subprocess.run(
            ["buildah", *self._options, command, *map(str, rest)],
            cwd=ROOT,
            stdout=None if shows else subprocess.PIPE,
            text=True,
            check=True,
        )
        return (done.stdout or "").strip()

    def has(self, name):
        listed = json.loads(self.buildah("images", "--json") or "[]") or []
        return any(name in (image.get("names") or []) for image in listed)

    def make_base(self):
        """Make a Debian with Python 3.11, and name it as the Dockerfile names its base."""
        if self.has(BASE):
            return
        tar = self.folder / "base.tar"
        if not tar.exists():
            beside = tar.with_name("base.partial.tar")
            packages = "python3.11,python3-venv,ca-certificates"
            words = ["--variant=minbase", f"--include={packages}", "bookworm", str(beside)]
            subprocess.run(["mmdebstrap", *words], check=True)
            beside.rename(tar)
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, tar, "/")
        self.buildah("commit", "--quiet", "--rm", container, BASE)

    def build(self, target):
        """Build a target of the Dockerfile; unchanged layers are found and not made again."""
        words = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--layers"]
        words += ["--build-arg", f"BASE={BASE}"]
        if "TORCH_INDEX" in os.environ:
            words += ["--build-arg", f"TORCH_INDEX={os.environ['TORCH_INDEX']}"]
        for folder in _CERTIFICATES:
            if Path(folder).is_dir():
                words += ["--volume", f"{folder}:{folder}:ro"]
        words += shlex.split(os.environ.get("IMAGE_BUILD_OPTIONS", ""))
        words += ["--target", target, "--tag", f"{NAME}:{target}", "--file", "docker/Dockerfile"]
        self.buildah("build", *words, ".", shows=True)

    def lay_out(self, target):
        """Return the image, with its files in a folder."""
        container = f"files-of-{target}"
        name = f"{NAME}:{target}"
        facts = json.loads(self.buildah("inspect", "--type", "image", name))
        image = facts["FromImageID"]
        listed = json.loads(self.buildah("containers", "--json") or "[]") or []
        there = {each["containername"]: each["imageid"] for each in listed}
        if there.get(container) not in {None, image}:
            self.buildah("rm", container)
            del there[container]
        if container not in there:
            self.buildah("from", "--name", container, "--pull-never", name)
        config = facts["OCIv1"]["config"]
        return Image(
            Path(self.buildah("mount", container)),
            dict(line.split("=", 1) for line in config["Env"]),
            config["Entrypoint"],
            config["User"],
        )

    def size_bytes(self, target):
        """Return the size of an image."""
        return int(self.buildah("inspect", "--format", "{{.Docker.Size}}", f"{NAME}:{target}") or 0)


def can_overlay(folder):
    """Return True if the kernel mounts an overlay there; else each layer is a copy of all files."""
    places = [folder / "try" / name for name in ("lower", "upper", "work", "all")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    lower, upper, work, together = map(str, places)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, together],
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        subprocess.run(["umount", together], check=True)
    shutil.rmtree(folder / "try", ignore_errors=True)
    return done.returncode == 0


def build(folder, target="cpu"):
    """Build a target and return it, laid out."""
    require_programs(PROGRAMS)
    storage = Storage(folder)
    began = time.monotonic()
    storage.make_base()
    print(f"base: {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    storage.build(target)
    print(f"{target}: {time.monotonic() - began:.0f} s", flush=True)
    return storage.lay_out(target)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--folder", type=Path, default=Path("build/images"))
    args = parser.parse_args()
    image = build(args.folder, args.target)
    used = subprocess.run(
        ["du", "-sx", "--block-size=1M", image.files], capture_output=True, text=True, check=True
    )
    print(f"{image.files}: {used.stdout.split()[0]} MB")
    sys.exit(0)


if __name__ == "__main__":
    main()
