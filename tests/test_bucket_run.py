"""A real run whose store is a bucket: its keys and tables are those of a run in a folder."""

import re
import subprocess

import pyarrow.parquet as pq
import pytest

from orchestrator.store import places
from orchestrator.store.event_types import TrialEnded
from orchestrator.store.ledger import read
from tests.s3_server import KEYS, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = ["search.trials=1", "confirm.finalists=1", "confirm.folds=2", "confirm.seeds=[0]"]
TABLES = ["catalog.parquet", "folds.parquet", "predictions.parquet", "votes.parquet"]


@pytest.fixture
def server():
    pytest.importorskip("moto", reason="no moto: pip install 'moto[s3]' flask flask-cors")
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    server = S3Server()
    yield server
    server.close()


def test_on_a_bucket_a_run_has_the_keys_and_tables_that_it_has_in_a_folder(
    workplace, server, monkeypatch
):
    url = f"s3://{server.new_bucket()}/store"

    def run(*words, machine="a"):
        cache = workplace.root / "caches" / machine
        return subprocess.run(
            workplace.command(*words, "--store", url),
            cwd=workplace.root,
            env={**workplace.environment, **server.environment, "ORCHESTRATOR_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    changes = [word for change in SMALL for word in ("--set", change)]
    code, _, said = workplace.submit(*changes)
    assert 0 == code, said
    (in_folder,) = workplace.runs()
    done = run("submit", workplace.spec, *changes)
    assert 0 == done.returncode, done.stderr
    assert f"in {url}/runs/{in_folder.name}" in done.stderr.replace("\n", "")
    for words in (("status", "latest"), ("why", "latest"), ("logs", "latest"), ("runs",)):
        shown = run(*words, machine="b")
        assert 0 == shown.returncode, shown.stderr
        assert "SUCCEEDED" in shown.stdout
    assert 0 == run("results", "latest", machine="b").returncode
    (there,) = (workplace.root / "caches/b").glob("buckets/*/runs/*")
    assert in_folder.name == there.name
    for table in TABLES:
        assert pq.read_table(in_folder / table).equals(pq.read_table(there / table)), table
    keys = [
        {event.checkpoint for event in read(run / "events.jsonl") if isinstance(event, TrialEnded)}
        for run in (in_folder, there)
    ]
    assert keys[0] == keys[1]
    kept = b"".join(
        path.read_bytes() for path in (workplace.root / "caches").rglob("*") if path.is_file()
    )
    for secret in KEYS.values():
        assert secret.encode() not in kept
        assert secret not in done.stderr + done.stdout
    copied = f"s3://{server.new_bucket()}"
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(workplace.root / "caches/copy"))
    target = places.open_store(copied).bucket
    for path in (workplace.root / "store").rglob("*"):
        if path.is_file() and path.name != "driver.lock":
            target.upload(path, path.relative_to(workplace.root / "store").as_posix())
    url = copied
    again = run("submit", workplace.spec, *changes, "--set", "name=again", machine="c")
    assert 0 == again.returncode, again.stderr
    outcomes = dict(re.findall(r"(\w+) +(SUCCEEDED|CACHED|FAILED|BLOCKED)\b", again.stderr))
    for stage in ("catalog", "prepare", "search", "confirm"):
        assert "CACHED" == outcomes[stage], again.stderr
    assert 0 == run("gc", "--dry-run", machine="c").returncode
    places._open_bucket.cache_clear()
