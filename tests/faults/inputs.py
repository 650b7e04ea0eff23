"""Fuzzers: what a user or a damaged disk can hand to each reader, and the errors that may come back."""

import contextlib
import json
import random
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_prep.catalog.label_schema import Schema
from data_prep.catalog.user_tables import open_table
from data_prep.config import Label
from data_prep.errors import DataError
from data_prep.files import file_sha256
from data_prep.label_codes import read_codes, unlabelled
from data_prep.preparation.shards import ShardError, Shards, memory_map, write_index, write_shard
from orchestrator.base.errors import SpecError, UserError
from orchestrator.ensemble.bundle import open_bundle
from orchestrator.report.command_text.run_story import story
from orchestrator.report.command_text.state_reasons import why
from orchestrator.spec.load import read as read_spec
from orchestrator.spec.search_space import (
    Search,
    assignments,
    grid,
    grid_size,
    holds_point,
    suggest,
)
from orchestrator.store.event_types import (
    EpochReported,
    RunStarted,
    StageEnded,
    TrialEnded,
    TrialStarted,
)
from orchestrator.store.ledger import Ledger, LedgerDamaged, read, replay
from orchestrator.store.run_dir import RunPaths

HANG_S = 10
MOST_MB = 500
ROOT = Path(__file__).resolve().parents[2]
SMOKE = (ROOT / "experiments/smoke.yaml").read_text()

TEXT = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "~",
        "null",
        "a",
        "a/../b",
        "../x",
        "\x00",
        "\x1b[31m",
        "<b>",
        "1e999",
        "nan",
        "𝔘",
        "\ud800x"[1:],
        "é" * 90,
    ]
)
NUMBERS = (
    st.integers(-(10**20), 10**20)
    | st.integers(-3, 12)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([10**12, 1e-12, 1e300, 2**63, -0.0])
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


@dataclass(frozen=True)
class Reader:
    """A reader of foreign bytes."""

    name: str
    inputs: st.SearchStrategy
    read: Callable[[Any, Path], None]
    errors: tuple[type[Exception], ...]


class Hangs(Exception):
    """A reader takes too long."""


@contextmanager
def at_most(seconds):
    def stop(number, frame):
        raise Hangs(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def paths_of(value, above=()):
    """Yield the path of every value in plain data."""
    children = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield (*above, key)
        yield from paths_of(child, (*above, key))


def replaced(data, path, value):
    """Return a copy of plain data with another value at a path."""
    copy = json.loads(json.dumps(data))
    target = copy
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return copy


def changed(data, n_most=3):
    """Return a strategy: plain data with some values replaced or keys added."""
    paths = list(paths_of(data))

    @st.composite
    def draw_changed(draw):
        result = data
        for _ in range(draw(st.integers(1, n_most))):
            path = draw(st.sampled_from(paths))
            try:
                result = replaced(result, path, draw(VALUES))
            except (KeyError, IndexError, TypeError):  # an earlier change removed it
                continue
        return result

    return draw_changed()


@st.composite
def damaged(draw, content):
    """Bytes with some cut out, flipped, inserted or repeated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "end"]))
        length = draw(st.integers(1, 40))
        if how == "cut":
            del data[at : at + length]
        elif how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif how == "repeat":
            data[at:at] = data[at : at + length] * 3
        elif how == "end":
            del data[at:]
    return bytes(data)


def plain(value):
    """Return JSON text; YAML reads it too."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")


@cache
def smoke_data():
    from orchestrator.spec.yaml_source import load

    return load(ROOT / "experiments/smoke.yaml").data


def spec_files():
    return (
        damaged(SMOKE.encode())
        | changed(smoke_data()).map(plain)
        | st.binary(max_size=200)
        | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
        | VALUES.map(plain)
    )


def read_spec_file(content, folder):
    path = folder / "spec.yaml"
    path.write_bytes(content)
    read_spec(path, check_roots=False)


@st.composite
def overrides(draw):
    known = [".".join(map(str, path)) for path in paths_of(smoke_data())]
    path = draw(st.sampled_from(known) | TEXT)
    path += draw(st.sampled_from(["", ".name", ".0", ".x", ".", ".9" * 3, "." + "9" * 5000]))
    value = draw(st.sampled_from(["1", "{a: 1}", "[", "null", "{name: x, size: 3}", "&a 1"]) | TEXT)
    return f"{path}={value}"


def read_overrides(texts, folder):
    path = folder / "spec.yaml"
    path.write_text(SMOKE)
    read_spec(path, texts, check_roots=False)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "choice": st.lists(VALUES, max_size=4),
        "int": st.lists(NUMBERS, min_size=1, max_size=3),
        "float": st.lists(NUMBERS, min_size=1, max_size=3),
        "log": st.booleans(),
        "step": NUMBERS,
        "when": st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=2),
    },
)
SEARCH = st.fixed_dictionaries(
    {
        "space": st.dictionaries(
            st.sampled_from(["a", "b", "c", "train.lr"]), ENTRY | VALUES, max_size=3
        )
    },
    optional={
        "trials": NUMBERS,
        "sampler": st.sampled_from(["random", "grid", "tpe", "gp", "qmc", "x"]),
        "scheduler": st.sampled_from(["none", "asha", "median"]) | VALUES,
        "start": st.lists(
            st.dictionaries(st.sampled_from(["a", "b"]), SCALARS, max_size=2), max_size=2
        ),
        "limits": VALUES,
    },
)


def compile_space(value, folder):
    import optuna

    search = Search.model_validate(value)
    size = grid_size(search.space)
    for point in assignments(search.space, limit=64, rng=random.Random(0)):
        holds_point(search.space, point)
    if size <= 1000:
        grid(search.space)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        point = suggest(study.ask(), search.space)
    assert holds_point(search.space, point), point


STARTED = {"phase": "search", "variant": "a", "setting": "s", "key": "k", "seed": 0, "number": 0}


@cache
def ledger_lines():
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        ledger.append(RunStarted(run_id="r", labels={"mask": ["wear", "not"]}))
        for name in ("t0", "t1"):
            ledger.append(TrialStarted(trial_id=name, **STARTED))
            ledger.append(EpochReported(trial_id=name, epoch=1, metrics={"val_macro_f1": 0.5}))
        ledger.append(TrialEnded(trial_id="t0", status="COMPLETE", metrics={"val_macro_f1": 0.5}))
        ledger.append(StageEnded(stage="search", outcome="FAILED", wall_s=1.0, note="x"))
        return [event.to_json() for event in ledger.events]


def ledgers():
    whole = b"".join(plain(line) + b"\n" for line in ledger_lines())
    lines = changed(ledger_lines()).map(lambda rows: b"".join(plain(row) + b"\n" for row in rows))
    return damaged(whole) | lines


def read_ledger(content, folder):
    run = folder / "store/runs/r"
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_bytes(content)
    state = replay(read(run / "events.jsonl"))
    paths = RunPaths(run)
    why(paths, None)
    list(story(paths, follow=False))
    for trial in state.trials:
        why(paths, trial)


@cache
def shard_files():
    """The files of a folder with one shard of two samples."""
    import numpy as np

    from data_prep.catalog.images import encode

    photo = encode(np.zeros((8, 8, 3), np.uint8))
    rows = []
    for name in ("a", "b"):
        rows.append({"sample_id": name, "sha256": "0" * 64, "image": photo, "face_box": None, "face_confidence": None,
                     "n_faces": None, "mask_area": None, "outcome": "ok", "steps": ["ok"]})  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder / "shard-00000.parquet", rows)
        write_index(folder, n_shards=1, size=8, steps=[])
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard_indexes():
    index = shard_files()["index.json"]
    return damaged(index) | changed(json.loads(index)).map(plain)


def read_shards(content, folder):
    for name, whole in shard_files().items():
        (folder / name).write_bytes(whole)
    (folder / "index.json").write_bytes(content)
    list(Shards(folder))
    memory_map(folder, folder / "rows")


LABEL = st.fixed_dictionaries(
    {"from": st.sampled_from(["column", "stem", "folder", "x"])},
    optional={
        "column": TEXT,
        "classes": st.lists(SCALARS, max_size=4) | st.dictionaries(TEXT, VALUES, max_size=3),
        "bins": st.lists(NUMBERS, max_size=4),
        "train_bins": st.lists(NUMBERS, max_size=4),
        "part": NUMBERS,
        "separator": TEXT,
    },
)
LABELS = st.tuples(
    LABEL, st.lists(SCALARS, min_size=1, max_size=4), st.lists(TEXT, min_size=1, max_size=4)
)


def read_labels(value, folder):
    rule, cells, names = value
    label = TypeAdapter(Label).validate_python(rule)
    labels = {"x": label}
    Schema.of(labels)
    n = min(len(cells), len(names))
    column = getattr(label, "column", "c")
    columns = {column: cells[:n], "folder": names[:n]}
    unlabelled(labels, names[:n], columns)
    read_codes(labels, names[:n], columns, may_lack=True)
    read_codes(labels, names[:n], columns)


CELLS = TEXT | st.sampled_from(["a,b", 'a"b', "a\nb", "1;2", "\t", "NA", "0" * 200_000])
TABLES = st.one_of(
    damaged(b"id,age,gender\n1,30,male\n2,41,female\n"),
    damaged("id;age\n1;30\n2;41\n".encode("utf-16")),
    st.binary(max_size=300),
    st.lists(st.lists(CELLS, max_size=4), max_size=6).map(
        lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "replace")
    ),
)


@cache
def parquet_table():
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["1", "2"], "age": [30.0, None]}), sink)
    return sink.getvalue().to_pybytes()


def read_table_file(content, folder):
    is_parquet = content.startswith(b"PAR1")
    path = folder / ("table.parquet" if is_parquet else "table.csv")
    path.write_bytes(content)
    table = open_table(path, "data.source.table")
    n_rows = {len(cells) for cells in table.columns.values()}
    assert len(n_rows) == 1, "columns of several lengths"


@cache
def bundle_files():
    """The files of a small bundle whose weights are none."""
    from data_prep.prep_config import Prep
    from orchestrator.ensemble.members import Member

    prep = Prep.model_validate({"steps": ["center_crop", {"name": "resize", "size": 32}]})
    name = "members/s/000"
    member = Member("s", "v", 1, prep, (Path(name),))
    described = {
        "format_version": 1, "name": "r", "rule": "hard", "majority_class": 0, "classes": {"mask": ["a", "b"]},
        "members": [{"setting": "s", "variant": "v", "votes": 1, "prep": prep.model_dump(mode="json", by_alias=True),
                     "steps": json.loads(json.dumps(member.steps)), "checkpoints": [name]}],
    }  # fmt: skip
    return {
        "ensemble.json": described,
        f"{name}/weights.safetensors": b"none",
        f"{name}/model.json": b"{}",
    }


def _bundle(folder, described, manifest=None):
    for name, content in {**bundle_files(), "ensemble.json": described}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else plain(content))
    if manifest is None:
        manifest = bundle_manifest(folder)
    (folder / "manifest.json").write_bytes(
        manifest if isinstance(manifest, bytes) else plain(manifest)
    )


def bundle_manifest(folder):
    files = {}
    for name in bundle_files():
        path = folder / name
        files[name] = {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return {"format_version": 1, "kind": "bundle", "run_id": "r", "files": files}


@cache
def whole_manifest():
    with tempfile.TemporaryDirectory() as name:
        _bundle(Path(name), bundle_files()["ensemble.json"])
        return json.loads((Path(name) / "manifest.json").read_bytes())


def bundles():
    described = changed(bundle_files()["ensemble.json"])
    manifest = changed(whole_manifest()) | damaged(plain(whole_manifest()))
    return st.tuples(st.just("described"), described) | st.tuples(st.just("manifest"), manifest)


def read_bundle(value, folder):
    what, content = value
    if what == "described":
        _bundle(folder, content)
    else:
        _bundle(folder, bundle_files()["ensemble.json"], content)
    with open_bundle(folder) as ensemble:
        assert ensemble.members


def readers():
    return [
        Reader("spec loader", spec_files(), read_spec_file, (SpecError,)),
        Reader(
            "--set", st.lists(overrides(), min_size=1, max_size=3), read_overrides, (SpecError,)
        ),
        Reader("space compiler", SEARCH, compile_space, (ValidationError,)),
        Reader("ledger replay", ledgers(), read_ledger, (LedgerDamaged, UserError)),
        Reader("shard index", shard_indexes(), read_shards, (ShardError,)),
        Reader("label schema", LABELS, read_labels, (ValidationError, DataError)),
        Reader("table readers", TABLES | damaged(parquet_table()), read_table_file, (DataError,)),
        Reader("bundle manifest", bundles(), read_bundle, (UserError,)),
    ]


def fuzz(reader, n, *, seed=0):
    """Give a reader n inputs; raise what it should not raise. Returns its growth in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @with_seed(seed)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.inputs)
    def check(value):
        with (
            tempfile.TemporaryDirectory() as folder,
            at_most(HANG_S),
            contextlib.suppress(*reader.errors),
        ):
            reader.read(value, Path(folder))

    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MOST_MB, f"{grown:.0f} MB"
    return grown
