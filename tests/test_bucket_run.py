"""A real run whose store is a bucket: its keys and tables are those of a run in a folder."""

import subprocess

import pyarrow.parquet as pq
import pytest

from orchestrator.planning.garbage import KINDS
from orchestrator.store import store_address
from tests.s3_server import KEYS

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = ["search.trials=1", "confirm.finalists=1", "confirm.folds=2", "confirm.seeds=[0]"]
TABLES = ["catalog.parquet", "folds.parquet", "predictions.parquet", "votes.parquet"]


def test_a_run_on_a_bucket_has_the_keys_and_tables_of_one_in_a_folder(
    workplace, s3_server, monkeypatch
):
    url = f"s3://{s3_server.new_bucket()}/store"

    def run(*words, machine):
        cache = workplace.root / "caches" / machine
        return subprocess.run(
            workplace.command(*words, "--store", url),
            cwd=workplace.root,
            env={
                **workplace.environment,
                **s3_server.environment,
                "ORCHESTRATOR_CACHE": str(cache),
            },
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    changes = [word for change in SMALL for word in ("--set", change)]
    done = run("submit", workplace.spec, *changes, machine="a")
    assert 0 == done.returncode, done.stderr
    for words in (("results", "latest"), ("runs",), ("gc", "--dry-run")):
        shown = run(*words, machine="b")
        assert 0 == shown.returncode, shown.stderr
        assert "SUCCEEDED" in shown.stdout or words[0] != "runs"
    (there,) = (workplace.root / "caches/b").glob("buckets/*/runs/*")
    kept = b"".join(
        path.read_bytes() for path in (workplace.root / "caches").rglob("*") if path.is_file()
    )
    for secret in KEYS.values():
        assert secret.encode() not in kept
        assert secret not in done.stderr + done.stdout
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(workplace.root / "caches/copy"))
    bucket = store_address.open_store(url).bucket
    for kind in KINDS:
        for stored in bucket.objects(kind):  # as any tool for buckets does
            bucket.download(stored.name, workplace.root / "store" / stored.name)
    code, outcomes, said = workplace.submit(*changes, "--set", "name=again")
    assert 0 == code, said
    for stage in ("catalog", "prepare", "search", "confirm"):
        assert "CACHED" == outcomes[stage], said
    (in_folder,) = workplace.runs()
    for table in TABLES:
        assert pq.read_table(in_folder / table).equals(pq.read_table(there / table)), table
    store_address._open_bucket.cache_clear()
