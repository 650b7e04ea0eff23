"""What the GPU check is made of: a setting, rows, and how a row is judged."""

import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import util
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
OK = "ok"
SHORT = "falls short"
FAILED = "failed"
RAN = "ran"  # nothing is wanted of it here
NEEDS_CUDA = "needs CUDA"
NEEDS_RAY = "needs Ray"
NO_TIME = "no time left"


@dataclass(frozen=True)
class Setting:
    """Where and how large. On a CPU the rows are as small as they can be and say nothing of speed."""

    device: str
    backbone: str
    size: int  # of a photo, in pixels
    small_backbone: str
    small_size: int
    n_photos: int  # of a training
    n_epochs: int
    window_s: float  # of a bare loop
    bf16: str  # the second precision

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def shape(self, backbone: str, size: int) -> str:
        return f"{backbone}, {size} px"


CARD = Setting("cuda", "efficientnet_b4", 380, "tf_efficientnet_lite0", 224, 1024, 4, 3.0, "bf16")
CPU = Setting("cpu", "test_efficientnet", 48, "test_efficientnet", 32, 66, 2, 0.3, "bf16")


class Lacks(Exception):
    """What a row needs is not on this machine; the message names it."""


@dataclass(frozen=True)
class Measured:
    """What a row found."""

    figure: float
    unit: str
    note: str = ""
    beside: float | None = None  # what it is compared with, in the same unit


@dataclass(frozen=True)
class Row:
    """One row of the table; it is judged by its own figure alone."""

    name: str
    measure: Callable[[Setting], Measured]
    at_least: float | None = None  # of figure / beside where there is a beside, of figure else
    at_most: float | None = None
    cuda: bool = False  # it says nothing without
    ray: bool = False
    short: bool = True  # it is part of the short form
    apart: bool = False  # in a process that never opened CUDA itself, because it forks
    wanted: str = ""  # in words, for the table


@dataclass(frozen=True)
class Result:
    """A judged row, as it stands in gpu.json."""

    name: str
    verdict: str
    figure: float | None
    beside: float | None
    ratio: float | None
    unit: str
    wanted: str
    seconds: float
    note: str


def judge(row: Row, setting: Setting, *, time_left_s: float) -> Result:
    """Run a row; an error is its verdict and ends nothing."""
    verdict = None
    if row.cuda and not setting.is_cuda:
        verdict = NEEDS_CUDA
    elif row.ray and util.find_spec("ray") is None:
        verdict = NEEDS_RAY
    elif time_left_s <= 0:
        verdict = NO_TIME
    if verdict is not None:
        return Result(row.name, verdict, None, None, None, "", row.wanted, 0.0, "")
    began = time.perf_counter()
    try:
        measured = measure_apart(row, setting) if row.apart else row.measure(setting)
    except Lacks as lacks:
        verdict = f"needs {lacks}"
        return Result(row.name, verdict, None, None, None, "", row.wanted, 0.0, "")
    except Exception as error:  # noqa: BLE001 - whatever is missing is this row's matter
        seconds = round(time.perf_counter() - began, 2)
        lines = str(error).strip().splitlines() or [""]
        note = f"{type(error).__name__}: {lines[-1]}"
        return Result(row.name, FAILED, None, None, None, "", row.wanted, seconds, note[:300])
    seconds = round(time.perf_counter() - began, 2)
    ratio = None if measured.beside is None else measured.figure / measured.beside
    value = measured.figure if ratio is None else ratio
    verdict = RAN
    if setting.is_cuda and (row.at_least is not None or row.at_most is not None):
        too_low = row.at_least is not None and value < row.at_least
        too_high = row.at_most is not None and value > row.at_most
        verdict = SHORT if too_low or too_high else OK
    return Result(
        row.name,
        verdict,
        measured.figure,
        measured.beside,
        ratio,
        measured.unit,
        row.wanted,
        seconds,
        measured.note,
    )


def measure_apart(row: Row, setting: Setting) -> Measured:
    """Measure a row in a process of its own."""
    command = [sys.executable, "-m", "tests.gpu", "--measure", row.name, setting.device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def line(result: Result) -> str:
    """Return a result as a line of the table."""
    figure = "" if result.figure is None else f"{result.figure:,.4g} {result.unit}"
    ratio = "" if result.ratio is None else f"{result.ratio:.2f} of {result.beside:,.4g}"
    wanted = f"wanted: {result.wanted}" if result.wanted else ""
    parts = [part for part in (wanted, result.note) if part]
    return (
        f"{result.name:<34} {result.verdict:<12} {figure:<22} {ratio:<18} "
        f"{result.seconds:6.1f} s  {'; '.join(parts)}"
    )


def facts(setting: Setting) -> dict[str, str]:
    """Return what the figures belong to."""
    import torch

    known = {
        "device": setting.device,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if setting.is_cuda:
        known["card"] = torch.cuda.get_device_name()
        known["cuda"] = str(torch.version.cuda)
        known["cudnn"] = str(torch.backends.cudnn.version())
    for name in ("timm", "ray"):
        if util.find_spec(name) is not None:
            known[name] = _version(name)
    return known


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "without a version"


def to_json(known: dict[str, str], results: list[Result]) -> str:
    return json.dumps({**known, "rows": [asdict(result) for result in results]}, indent=1) + "\n"


def card_memory_mb() -> float:
    """Return the memory in use on the first card, as nvidia-smi sees it: no context is opened here."""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[0])


class BusyShare:
    """How busy the first card is while a block runs, sampled ten times a second."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                "nvidia-smi",
                "--query-gpu=timestamp,utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "100",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        text, _ = self._process.communicate()
        self._samples = busy_samples(text)

    def percent(self, begin: float = 0.0, end: float = math.inf) -> float:
        """Return the mean over a window in seconds since 1970, NaN where no sample is in it."""
        values = [busy for moment, busy in self._samples if begin <= moment <= end]
        return sum(values) / len(values) if values else math.nan


def busy_samples(text: str) -> list[tuple[float, float]]:
    """Return (seconds since 1970, percent) of the lines of nvidia-smi; its clock is the local one."""
    samples = []
    for each in text.splitlines():
        moment, comma, percent = each.partition(",")
        if not comma or not percent.strip().isdigit():
            continue  # the last line may be cut
        began = datetime.strptime(moment.strip(), "%Y/%m/%d %H:%M:%S.%f").astimezone()
        samples.append((began.timestamp(), float(percent)))
    return samples
