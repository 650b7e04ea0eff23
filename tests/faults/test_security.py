"""What a stranger's files could do: run code, leave their folder, or give orders to a terminal.

`docs/faults.md` has the table of all that is tried, and where.
"""

import hashlib
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.catalog.user_tables import open_table
from data_prep.errors import DataError
from data_prep.preparation.shards import ShardError, open_rows, read_shard
from orchestrator.base.console import Reporter
from orchestrator.base.errors import SpecError, UserError
from orchestrator.base.wording import printable
from orchestrator.cli import main
from orchestrator.ensemble.bundle import open_bundle, write_bundle
from orchestrator.ensemble.predict import find_photos
from orchestrator.spec.load import read as read_spec
from orchestrator.store.event_types import RunStarted, TrialEnded, TrialStarted
from orchestrator.store.ledger import Ledger
from tests.faults import inputs
from tests.orchestrator.ensemble.fake_ensemble import write_ensemble_run


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A folder that must not come into being."""
    mark = tmp_path / "executed"
    yield mark
    assert not mark.exists(), "the payload ran"


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "run")))
    assert (tmp_path / "run").is_dir()


def zipped(payload):
    """A checkpoint as torch writes it, with a payload for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("archive/data.pkl", payload)
        made.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [lambda payload: payload, zipped], ids=["pickle", "zip"])
def test_a_payload_in_a_checkpoint_does_not_run(tmp_path, mark, pack):
    import torch

    from trainers.checkpoint import STATE, load_state, load_weights
    from trainers.model import _load_by_order

    content = pack(pickle.dumps(Payload(mark)))
    for name in ("weights.safetensors", "weights.pth"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / STATE).write_bytes(content + hashlib.sha256(content).digest())
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(Exception):  # noqa: B017 - whatever the library raises
        load_weights(tmp_path)
    with pytest.raises(Exception):  # noqa: B017
        _load_by_order(torch.nn.Linear(1, 1), tmp_path / "weights.pth")
    with pytest.raises(Exception):  # noqa: B017
        load_state(tmp_path)


def test_a_payload_in_the_store_does_not_run(tmp_path, mark):
    np.save(tmp_path / "rows.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match="object"):
        open_rows(tmp_path)
    shard = tmp_path / "shard-00000.parquet"
    shard.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ShardError, match="a Parquet shard was required"):
        read_shard(shard)


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "ray.data.arrow_tensor_v2", "x"])
def test_a_payload_in_a_parquet_type_does_not_run(tmp_path, mark, name):
    metadata = {
        "ARROW:extension:name": name,
        "ARROW:extension:metadata": pickle.dumps(Payload(mark)),
    }
    field = pa.field("id", pa.string(), metadata=metadata)
    pq.write_table(pa.table([["1", "2"]], schema=pa.schema([field])), tmp_path / "t.parquet")
    try:
        columns = open_table(tmp_path / "t.parquet", "data.source.table").columns
    except DataError:
        return
    assert {"id": ["1", "2"]} == columns


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [MARK]",
        "!!python/name:os.system",
        "!x {a: 1}",
        "!!binary aGk=",
    ],
)
@pytest.mark.parametrize("place", ["spec", "set"])
def test_a_payload_in_a_spec_does_not_run(tmp_path, mark, value, place):
    value = value.replace("MARK", str(mark))
    spec = tmp_path / "spec.yaml"
    spec.write_text(inputs.SMOKE + (f"note: {value}\n" if place == "spec" else ""))
    with pytest.raises(SpecError, match="tags are not part of a spec"):
        read_spec(spec, [f"seed={value}"] if place == "set" else [], check_roots=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_ensemble_run(tmp_path_factory.mktemp("hostile"))


def test_a_payload_in_a_bundle_with_fitting_hashes_does_not_run(run, tmp_path, mark):
    from data_prep.files import file_sha256
    from orchestrator.ensemble.predict import predict_photos

    paths, store, photos = run
    place = tmp_path / "bundle"
    write_bundle(paths, store, place)
    weights = sorted(place.glob("members/*/*/weights.safetensors"))[0]
    weights.write_bytes(pickle.dumps(Payload(mark)))
    manifest = json.loads((place / "manifest.json").read_text())
    name = weights.relative_to(place).as_posix()
    manifest["files"][name] = {"size_bytes": weights.stat().st_size, "sha256": file_sha256(weights)}
    (place / "manifest.json").write_text(json.dumps(manifest))
    with open_bundle(place) as ensemble, pytest.raises(Exception):  # noqa: B017
        predict_photos(ensemble, photos, tmp_path / "out.csv")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", ""])
def test_a_bundle_names_nothing_outside_of_itself(tmp_path, name):
    inputs._bundle(tmp_path / "bundle", inputs.bundle_files()["ensemble.json"])
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    manifest["files"][name] = {"size_bytes": 1, "sha256": "0" * 64}
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(UserError, match="names below the bundle were required"),
        open_bundle(tmp_path / "bundle"),
    ):
        pass


def test_links_that_lead_out_of_the_photos_are_not_answered(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert "a.jpg" in dict(find_photos(tmp_path / "photos"))
    assert len(find_photos(tmp_path / "photos")) < 5, "a loop of links ends"


@pytest.mark.parametrize("name", ["../x", "..", "/etc", "x/../../y", "runs/../.."])
@pytest.mark.parametrize("command", ["status", "rm", "why", "report", "logs"])
def test_the_name_of_a_run_leads_nowhere_else(tmp_path, name, command):
    (tmp_path / "store/runs").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    words = [command, name, "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(main, [*words, *(["--yes"] if command == "rm" else [])])
    assert result.exit_code != 0
    assert (tmp_path / "x").is_dir()


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\r"


def test_a_terminal_obeys_no_name(tmp_path, capsys):
    shown = printable(HOSTILE)
    assert r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\x0d" == shown
    assert "photo 한국.jpg\n\té" == printable("photo 한국.jpg\n\té")
    Reporter().say(f"photos: {HOSTILE}")
    Reporter().outcome("catalog", "FAILED", HOSTILE)
    run = tmp_path / "store/runs/r-00000000"
    run.mkdir(parents=True)
    with Ledger(run) as ledger:
        ledger.append(RunStarted(run_id=run.name))
        started = {"setting": "s", "variant": "a", "phase": "search", "key": "k"}
        ledger.append(TrialStarted(trial_id="t", **started))
        ended = {"status": "FAILED", "error": HOSTILE, "cause": "raised"}
        ledger.append(TrialEnded(trial_id="t", **ended))
    told = capsys.readouterr().err
    for words in (["why", run.name, "t"], ["logs", run.name], ["why", HOSTILE]):
        told += CliRunner().invoke(main, [*words, "--store", str(tmp_path / "store")]).output
    assert "owned" in told
    assert set() == {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(told)
