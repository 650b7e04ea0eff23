"""A store on a bucket of a real local S3 server: artifacts, leases, ledgers, faults and refusals."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from filelock import Timeout

from orchestrator.base.errors import SpecError, UserError
from orchestrator.store import looks, store_address
from orchestrator.store.bucket import client
from orchestrator.store.bucket.client import Bucket, BucketError, require_bucket
from orchestrator.store.bucket.lease import Lease
from orchestrator.store.event_types import RunEnded, RunStarted
from orchestrator.store.ledger import Ledger, LedgerLocked, is_live, read
from orchestrator.store.run_dir import all_runs
from tests.s3_server import free_port, refusing_server

ROOT = Path(__file__).resolve().parents[3]
KEY = "k" * 64


@pytest.fixture
def machine(s3_server, tmp_path, monkeypatch):
    """Return what opens a new bucket on machines: each has a cache of its own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3_server.new_bucket()}/team/store"

    def open_on(name):
        monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / name))
        store_address._open_bucket.cache_clear()
        return store_address.open_store(url)

    open_on.url = url
    yield open_on
    store_address._open_bucket.cache_clear()


def make(store, text="x", kind="thing", key=KEY, name="file.txt"):
    with store.draft(kind, key, params={"a": 1}, inputs={}) as draft:
        (draft.path / name).write_text(text)
        (draft.path / "deep").mkdir(exist_ok=True)
        (draft.path / "deep" / "other").write_text("y")
        draft.result["n"] = 3


def names(store):
    return [stored.name for stored in store.bucket.objects("thing")]


def test_what_one_machine_makes_another_one_has(machine):
    here = machine("a")
    assert here.find("thing", KEY) is None
    assert not here.has("thing", KEY)
    make(here)
    there = machine("b")
    assert there.has("thing", KEY)
    found = there.get("thing", KEY)
    assert 3 == found.result["n"]
    assert not list(there.root.glob("thing/*/files-*")), "files come when they are asked for"
    assert "x" == found.file("file.txt").read_text()
    assert "y" == (found.path / "deep/other").read_text()
    assert [KEY] == [artifact.key for artifact in there.all("thing")]
    there.remove("thing", KEY)
    assert not there.has("thing", KEY)
    assert [] == names(there)


def test_a_store_in_a_folder_is_copied_to_a_bucket_and_back(machine, tmp_path):
    folder = store_address.open_store(tmp_path / "folder")
    make(folder)
    on_bucket = machine("a")
    for path in folder.root.rglob("*"):
        if path.is_file():
            on_bucket.bucket.upload(path, path.relative_to(folder.root).as_posix())
    assert "x" == on_bucket.get("thing", KEY).file("file.txt").read_text()
    make(on_bucket, "second", key="s" * 64)
    back = store_address.open_store(tmp_path / "back")
    for stored in on_bucket.bucket.objects("thing"):
        on_bucket.bucket.download(stored.name, back.root / stored.name)
    assert "second" == back.get("thing", "s" * 64).file("file.txt").read_text()


def test_the_loser_of_a_race_drops_its_own(machine):
    early = machine("a")
    late = machine("b")
    with late.draft("thing", KEY, params={}, inputs={}) as draft:
        (draft.path / "file.txt").write_text("late")
        make(early, "early")
    assert "early" == late.get("thing", KEY).file("file.txt").read_text()
    assert 3 == len(names(late)), "a manifest and the two files of the winner"
    assert "early" == machine("c").get("thing", KEY).file("file.txt").read_text()


def test_a_changed_object_is_refused_and_a_changed_file_of_the_cache_comes_again(machine):
    here = machine("a")
    make(here)
    (name,) = [name for name in names(here) if name.endswith("file.txt")]
    here.bucket.write(name, b"z")
    there = machine("b")
    with pytest.raises(UserError, match=r"s3://.*sha256 is .* the manifest says .*submit again"):
        there.get("thing", KEY).file("file.txt")
    here.bucket.write(name, b"x")
    found = machine("a").get("thing", KEY)
    found.folder.joinpath("file.txt").write_text("q")
    assert "x" == found.file("file.txt").read_text()
    here.bucket.delete([name])
    with pytest.raises(UserError, match=r"required by manifest.json, found no such object"):
        there.get("thing", KEY).file("file.txt")


def test_the_cache_drops_what_was_unused_for_longest_and_fetches_it_again(machine):
    store = machine("a")
    for number, key in enumerate(("o" * 64, "n" * 64)):
        make(store, "x" * 1000, key=key)
        old = time.time() - 10_000 + number
        os.utime(store.root / "thing" / key, (old, old))
    make(store, "x" * 1000)  # used just now
    store.trim(4500)
    assert {"n" * 64, KEY} == {
        path.parent.name for path in store.root.glob("thing/*/manifest.json")
    }
    assert 1000 == len(machine("a").get("thing", "o" * 64).file("file.txt").read_text())


def test_what_came_back_after_it_was_dropped_counts_and_is_dropped_again(machine):
    make(machine("a"))
    store = machine("b")
    found = store.get("thing", KEY)
    home = store.root / "thing" / KEY
    old = time.time() - 10_000
    for _ in range(2):
        assert "x" == found.file("file.txt").read_text()
        os.utime(home, (old, old))
        store.trim(0)
        assert not home.exists()


def test_two_processes_may_drop_from_one_cache_at_the_same_time(machine, monkeypatch):
    store = machine("a")
    for key in ("o" * 64, "n" * 64):
        make(store, key=key)
        old = time.time() - 10_000
        os.utime(store.root / "thing" / key, (old, old))
    glob = Path.glob

    def glob_and_drop(path, pattern):
        for manifest in glob(path, pattern):
            if manifest.parent.name == "o" * 64:  # another process is faster
                shutil.rmtree(manifest.parent)
            yield manifest

    monkeypatch.setattr(Path, "glob", glob_and_drop)
    store.trim(0)
    assert [] == list(store.root.rglob("file.txt"))


def test_what_is_used_while_a_full_cache_is_measured_stays(machine, monkeypatch):
    store = machine("a")
    make(store)
    home = store.root / "thing" / KEY
    old = time.time() - 10_000
    os.utime(home, (old, old))
    glob = Path.glob

    def glob_and_use(path, pattern):
        yield from glob(path, pattern)
        os.utime(home)  # another process opens it

    monkeypatch.setattr(Path, "glob", glob_and_use)
    store.trim(0)
    assert home.is_dir()


def test_a_process_that_looks_while_another_one_publishes_leaves_its_files_alone(
    machine, monkeypatch
):
    store = machine("a")
    sibling = type(store)(store.root, store.url)  # another process with the same cache
    create = Bucket.create

    def create_and_look(bucket, name, data):
        version = create(bucket, name, data)
        if name.startswith("thing/"):
            assert sibling.find("thing", KEY) is not None
        return version

    monkeypatch.setattr(Bucket, "create", create_and_look)
    make(store)
    monkeypatch.setattr(Bucket, "download", lambda *_: pytest.fail("it was here"))
    assert "x" == store.get("thing", KEY).file("file.txt").read_text()


def test_what_was_just_fetched_is_not_dropped_from_a_full_cache(machine, monkeypatch):
    make(machine("a"))
    store = machine("b")
    found = store.get("thing", KEY)
    found.file("deep/other")
    old = time.time() - 10_000
    os.utime(store.root / "thing" / KEY, (old, old))
    monkeypatch.setenv("ORCHESTRATOR_CACHE_GB", "1e-9")
    store._trimmed = -1e9
    assert "x" == found.file("file.txt").read_text()


def test_garbage_of_a_bucket_is_what_no_manifest_names(machine):
    store = machine("a")
    make(store)
    store.bucket.write(f"thing/{KEY}/files-crashed/file.txt", b"12345")
    store.bucket.write("thing/unfinished/files-crashed/file.txt", b"123")
    sizes = store.sizes("thing")
    assert {KEY, f".draft-{KEY}/files-crashed", ".draft-unfinished"} == set(sizes)
    for name in sizes.keys() - {KEY}:
        store.remove("thing", name)
    assert [KEY] == list(store.sizes("thing"))
    assert "x" == store.get("thing", KEY).file("file.txt").read_text()


def test_a_server_that_is_killed_in_the_middle_of_an_upload_and_for_a_while_loses_nothing(
    machine, s3_server
):
    store = machine("a")
    text = "0123456789" * 1_200_000  # two parts
    store.find("thing", KEY)
    s3_server.line.cut_after = 3_000_000
    mended = threading.Timer(2.0, s3_server.line.mend)
    mended.start()
    make(store, text)
    mended.join()
    assert text == machine("b").get("thing", KEY).file("file.txt").read_text()


def test_a_large_object_comes_in_parts_of_one_version(machine, monkeypatch, tmp_path):
    bucket = machine("a").bucket
    monkeypatch.setattr(client, "_PART_BYTES", 4)
    for text in (b"", b"0123", b"0123456789"):
        bucket.write("thing/large", text)
        bucket.download("thing/large", tmp_path / "large", modified=1e9)
        assert (text, 1e9) == (tmp_path.joinpath("large").read_bytes(), (tmp_path / "large").stat().st_mtime)  # fmt: skip
    write_parts = Bucket._write_parts
    texts = [b"another one"]

    def write_meanwhile(self, file, facts):
        if texts:
            bucket.write("thing/large", texts.pop())
        write_parts(self, file, facts)

    monkeypatch.setattr(Bucket, "_write_parts", write_meanwhile)
    bucket.download("thing/large", tmp_path / "large")
    assert b"another one" == (tmp_path / "large").read_bytes()
    texts += [b"version 1 of it", b"version 2 of it", b"version 3 of it"]
    with pytest.raises(BucketError, match="thing/large: one version was required"):
        bucket.download("thing/large", tmp_path / "large")
    assert b"another one" == (tmp_path / "large").read_bytes()


def test_an_object_that_is_gone_already_keeps_no_other_one_from_being_deleted(machine, tmp_path):
    from obstore.store import LocalStore

    bucket = machine("a").bucket
    bucket._client = LocalStore(tmp_path)  # as Google's, it stops at what is gone
    names = [f"thing/{number:02d}" for number in range(40)]
    for name in names:
        bucket.write(name, b"x")
    bucket.delete(["thing/gone", *names])
    assert [] == bucket.objects("thing")


def test_a_lease_is_held_by_one_renewed_and_free_again(machine):
    bucket = machine("a").bucket
    first = Lease(bucket, "locks/a", time_s=0.8)
    second = Lease(bucket, "locks/a", time_s=0.8)
    first.acquire()
    time.sleep(1.5)  # two renewals
    with pytest.raises(Timeout):
        second.acquire(timeout=0)
    first.release()
    second.acquire(timeout=0)
    second.release()
    assert [] == bucket.objects("locks")


def test_a_lease_whose_answer_was_lost_is_held_by_who_wrote_it(machine, monkeypatch):
    bucket = machine("a").bucket
    create = Bucket.create
    monkeypatch.setattr(Bucket, "create", lambda *job: create(*job) and None)
    lease = Lease(bucket, "locks/a", time_s=0.8)
    lease.acquire(timeout=0)
    time.sleep(1.2)  # a renewal
    with pytest.raises(Timeout):
        Lease(bucket, "locks/a", time_s=0.8).acquire(timeout=0)
    lease.release()
    assert [] == bucket.objects("locks")


def test_a_lock_of_the_store_waits_for_a_server_that_is_gone_for_a_while(machine, s3_server):
    store = machine("a")
    store.find("thing", KEY)
    s3_server.line.cut()
    mended = threading.Timer(2.0, s3_server.line.mend)
    mended.start()
    lock = store.lock("thing", "a")
    try:
        lock.acquire(timeout=0)
    finally:
        mended.join()
    lock.release()


def forget_process(lease):
    """Let a lease be of another machine's process that is heard of no more."""
    lease._released.set()
    lease._thread.join()
    lease._thread = None
    content = lease.bucket.read(lease.name)
    facts = json.loads(content.data) | {"space": "another machine"}
    lease._version = lease.bucket.replace(lease.name, json.dumps(facts).encode(), content.version)


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_old_holder_learns_it(machine):
    bucket = machine("a").bucket
    lost = threading.Event()
    first = Lease(bucket, "locks/a", time_s=2.0, on_lost=lost.set)
    first.acquire()
    forget_process(first)
    second = Lease(bucket, "locks/a", time_s=2.0)
    with pytest.raises(Timeout):
        second.acquire(timeout=0)
    second.acquire(timeout=10)
    first._released.clear()
    first._thread = threading.Thread(target=first._renew)
    first._thread.start()
    assert lost.wait(5)
    first.release()
    assert bucket.exists("locks/a"), "the old holder must not free the new one's lease"
    second.release()


def test_a_clock_that_is_ahead_takes_no_live_lease(machine, monkeypatch):
    bucket = machine("a").bucket
    first = Lease(bucket, "locks/a", time_s=1.0)
    first.acquire()
    content = bucket.read("locks/a")
    facts = json.loads(content.data) | {"space": "another machine"}
    first._text = lambda: json.dumps(facts | {"renewed": time.time_ns()}).encode()
    first._version = bucket.replace("locks/a", first._text(), content.version)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 600)
    with pytest.raises(Timeout):
        Lease(bucket, "locks/a", time_s=1.0).acquire(timeout=0)
    first.release()


def test_a_lease_of_another_users_process_that_the_system_hides_is_not_taken(machine, monkeypatch):
    bucket = machine("a").bucket
    first = Lease(bucket, "locks/a", time_s=30.0)
    first.acquire()

    def hide(pid=None):
        if pid is None:
            return process()
        raise psutil.NoSuchProcess(pid)  # as where /proc is mounted with hidepid=2

    def forbid(*_):
        raise PermissionError

    process = psutil.Process
    monkeypatch.setattr(psutil, "Process", hide)
    with monkeypatch.context() as others:
        others.setattr(os, "kill", forbid)
        with pytest.raises(Timeout):
            Lease(bucket, "locks/a", time_s=30.0).acquire(timeout=0)
    first.release()


def start(store, run_id="smoke-12345678"):
    run = store.root / "runs" / run_id
    run.mkdir(parents=True, exist_ok=True)
    (run / "resolved.yaml").write_text("name: smoke\n")
    return run


def test_a_ledger_goes_up_at_commits_and_a_second_driver_is_refused(machine):
    here = machine("a")
    run = start(here)
    with here.driving(run) as on_commit, Ledger(run) as ledger:
        ledger.on_commit = on_commit
        ledger.append(RunStarted(run_id=run.name), commit=True)
        deadline = time.monotonic() + 20
        while not here.bucket.objects("runs/smoke-12345678/events"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        there = machine("b")
        there.runs.pull_all()
        (seen,) = all_runs(there.root)
        assert ["run_started"] == [event.record_kind for event in read(seen.events)]
        assert is_live(seen.root)
        with pytest.raises(LedgerLocked, match="driven by another process"):
            there.driving(seen.root).__enter__()
        machine("a")
        ledger.append(RunEnded(state="SUCCEEDED"), commit=True)
        (run / "summary.json").write_text('{"state": "SUCCEEDED"}')
    stored = {
        each.name.removeprefix("runs/smoke-12345678/") for each in here.bucket.objects("runs")
    }
    assert {"events.jsonl", "resolved.yaml", "summary.json"} == stored
    there = machine("b")
    there.runs.pull(seen.root)
    assert 2 == len(read(seen.events))
    assert {"state": "SUCCEEDED"} == seen.read_json("summary")
    assert not is_live(seen.root)


def test_what_consoles_write_for_a_folder_is_no_file_of_a_run_and_no_artifact(machine, s3_server):
    store = machine("a")
    make(store)
    run = start(store)
    store.bucket.write(f"runs/{run.name}/logs/t.log", b"x")
    store.runs.request(run, "cancel")
    for folder in ("runs", f"runs/{run.name}", f"runs/{run.name}/logs", "thing", f"thing/{KEY}"):
        s3_server.put(f"{machine.url.removeprefix('s3://')}/{folder}/")
    there = machine("b")
    there.runs.pull_all()
    there.runs.pull(there.root / "runs" / run.name)
    assert b"x" == (there.root / "runs" / run.name / "logs/t.log").read_bytes()
    assert [KEY] == list(there.sizes("thing"))
    control = there.bucket.objects(f"runs/{run.name}/control")
    assert [f"runs/{run.name}/control/cancel"] == [each.name for each in control]


def test_a_run_that_is_deleted_after_it_was_listed_keeps_no_other_one_from_coming(
    machine, monkeypatch
):
    store = machine("a")
    for run in ("deleted", "kept"):
        store.bucket.write(f"runs/{run}/events.jsonl", b"{}\n")
    objects = Bucket.objects

    def list_and_delete(bucket, folder):
        listed = objects(bucket, folder)
        store.bucket.delete(["runs/deleted/events.jsonl"])
        return listed

    monkeypatch.setattr(Bucket, "objects", list_and_delete)
    store.runs.pull_all()
    assert (store.root / "runs/kept/events.jsonl").read_bytes() == b"{}\n"


def test_a_folder_that_vanishes_while_it_is_listed_does_not_end_the_mirror(machine, monkeypatch):
    from orchestrator.store.bucket import runs

    store = machine("a")
    run = start(store)
    send = runs.RunMirror._send_files
    tried = []

    def vanish_once(mirror):
        tried.append(mirror)
        if len(tried) == 1:
            raise FileNotFoundError(2, "No such file or directory", str(run / "tune/x"))
        send(mirror)

    monkeypatch.setattr(runs.RunMirror, "_send_files", vanish_once)
    with store.driving(run) as on_commit:
        on_commit()
        deadline = time.monotonic() + 20
        while not store.bucket.exists("runs/smoke-12345678/resolved.yaml"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_run_that_waits_for_its_turn_is_shown_as_pending_elsewhere_until_its_turn_comes(
    machine, monkeypatch
):
    monkeypatch.setattr("orchestrator.store.bucket.runs._FILES_EVERY_S", 0.1)
    store = machine("a")
    run = start(store)
    pending = run / "control/pending"
    name = f"runs/{run.name}/control/pending"

    def wait_until(is_there):
        deadline = time.monotonic() + 20
        while store.bucket.exists(name) != is_there:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with store.driving(run) as on_commit:
        on_commit()
        time.sleep(1.5)  # what that commit calls for is sent
        pending.parent.mkdir()
        pending.write_text("2 ahead")
        wait_until(True)
        there = machine("b")
        there.runs.pull_all()
        assert (there.root / "runs" / run.name / "control/pending").is_file()
        pending.unlink()
        wait_until(False)
        there.runs.pull_all()
        assert not (there.root / "runs" / run.name / "control/pending").exists()


def test_a_request_that_could_not_be_left_at_once_reaches_the_driver_later(machine, monkeypatch):
    monkeypatch.setattr("orchestrator.store.bucket.runs._LOOK_EVERY_S", 0.1)
    store = machine("a")
    run = start(store)
    (run / "control").mkdir()
    touch = Path.touch
    tried = []

    def fail_once(path, *how):
        tried.append(path)
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        touch(path, *how)

    monkeypatch.setattr(Path, "touch", fail_once)
    with store.driving(run):
        store.runs.request(run, "cancel")
        deadline = time.monotonic() + 10
        while not (run / "control/cancel").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_driver_that_was_taken_over_cannot_write_and_its_successor_goes_on(machine, monkeypatch):
    monkeypatch.setattr("orchestrator.store.bucket.runs.os.kill", lambda *_: None)
    here = machine("a")
    run = start(here)
    first = here.driving(run)
    on_commit = first.__enter__()
    ledger = Ledger(run).__enter__()
    ledger.append(RunStarted(run_id=run.name), commit=True)
    on_commit()
    deadline = time.monotonic() + 20
    while not here.bucket.objects("runs/smoke-12345678/events"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    forget_process(first.lease)
    first._closed.set()  # it hangs
    ledger.append(RunEnded(state="FAILED"), commit=True)  # that nobody will see
    here.bucket.delete([first.lease.name])  # as if its time had passed
    there = machine("b")
    run_there = start(there)
    with there.driving(run_there), Ledger(run_there) as successor:
        assert ["run_started"] == [event.record_kind for event in successor.events]
        successor.append(RunEnded(state="CANCELLED"), commit=True)
    ledger.__exit__()
    with pytest.raises(UserError, match="another driver has taken it over"):
        first.__exit__()
    machine("a").runs.pull(run)
    assert "CANCELLED" == read(run / "events.jsonl")[-1].state
    assert not (run / "summary.json").exists()


def test_a_driver_taken_over_while_the_bucket_was_out_of_reach_leaves_all_to_its_successor(
    machine, monkeypatch
):
    monkeypatch.setattr("orchestrator.store.bucket.runs.os.kill", lambda *_: None)
    here = machine("a")
    run = start(here)
    first = here.driving(run)
    first.__enter__()
    with Ledger(run) as ledger:
        ledger.append(RunStarted(run_id=run.name), commit=True)
        first._send_events()
        forget_process(first.lease)
        first._closed.set()  # it hangs
        first._wake.set()
        for thread in first._threads:
            thread.join()
        here.bucket.delete([first.lease.name])  # as if its time had passed
        there = machine("b")
        run_there = start(there)
        with there.driving(run_there), Ledger(run_there) as successor:
            successor.append(RunEnded(state="CANCELLED"), commit=True)
            (run_there / "summary.json").write_text('{"state": "CANCELLED"}')
        ledger.append(RunEnded(state="FAILED"), commit=True)
        (run / "summary.json").write_text('{"state": "FAILED"}')

    def refuse(_):
        raise BucketError("nothing answers there")

    # a hurried request fails yet; one with patience gets its answer
    monkeypatch.setattr(first.lease.bucket, "read", refuse)
    with pytest.raises(UserError, match="another driver has taken it over"):
        first.__exit__()
    there.runs.pull(run_there)
    assert "CANCELLED" == read(run_there / "events.jsonl")[-1].state
    assert "CANCELLED" in (run_there / "summary.json").read_text()


def test_a_driver_that_was_taken_over_sends_no_files_any_more(machine, monkeypatch):
    monkeypatch.setattr("orchestrator.store.bucket.runs.os.kill", lambda *_: None)
    store = machine("a")
    run = start(store)
    mirror = store.driving(run)
    on_commit = mirror.__enter__()
    mirror.lease.on_lost()
    (run / "summary.json").write_text('{"state": "INTERRUPTED"}')  # as a driver that is ended
    on_commit()
    while mirror._wake.is_set():
        time.sleep(0.05)
    with pytest.raises(UserError, match="another driver has taken it over"):
        mirror.__exit__()
    assert [] == store.bucket.objects("runs")


DRIVER = """
    import sys, time
    from pathlib import Path
    from orchestrator.store.store_address import open_store
    from orchestrator.store.event_types import RunStarted
    from orchestrator.store.ledger import Ledger
    store = open_store(sys.argv[1])
    run = store.root / "runs/smoke-12345678"
    run.mkdir(parents=True, exist_ok=True)
    with store.driving(run) as on_commit, Ledger(run) as ledger:
        ledger.on_commit = on_commit
        ledger.append(RunStarted(run_id=run.name), commit=True)
        while not store.bucket.objects("runs/smoke-12345678/events"):
            time.sleep(0.05)
        print("drives", flush=True)
        time.sleep(60)
"""


def test_a_killed_driver_of_this_machine_is_taken_over_at_once(machine):
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), machine.url]
    there = machine("a")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert "drives\n" == driver.stdout.readline()
        listed = Path(f"/proc/{driver.pid}/cmdline").read_bytes()
        assert b"canary" not in listed
        driver.kill()
    there = machine("b")
    run = there.root / "runs/smoke-12345678"
    began = time.monotonic()
    with there.driving(run), Ledger(run) as ledger:
        assert time.monotonic() - began < 15  # the time of a lease is 60 s
        assert ["run_started"] == [event.record_kind for event in ledger.events]
    kept = b"".join(path.read_bytes() for path in there.root.rglob("*") if path.is_file())
    assert b"canary" not in kept


def test_looks_of_two_machines_are_counted_one_after_the_other(machine):
    first = looks.count_look(machine("a").root, "claim", "one", {"run": "r"})
    again = looks.count_look(machine("b").root, "claim", "one", {"run": "r"})
    second = looks.count_look(machine("b").root, "claim", "two", {"run": "s"})
    assert [1, 1, 2] == [first.number, again.number, second.number]
    assert ["r", "s"] == [
        look.facts["run"] for look in looks.read_looks(machine("a").root, "claim")
    ]


def test_a_path_of_another_machine_is_found_here(machine):
    here = machine("a")
    make(here)
    parts = start(here) / "parts" / "a.parquet"
    parts.parent.mkdir()
    parts.write_text("rows")
    here.share(parts)
    folder = here.get("thing", KEY).path
    there = machine("b")
    assert "rows" == there.here(str(parts)).read_text()
    assert there.root in there.here(str(parts)).parents
    assert "x" == (there.here(str(folder)) / "file.txt").read_text()


# ------------------------------------------------------------------------------------------- refusals
ANSWERS = {
    "denies": (403, "AccessDenied", "the bucket denies it"),
    "clock": (403, "RequestTimeTooSkewed", "this machine's is many minutes off"),
    "full": (403, "QuotaExceeded", r"the bucket is full \(its quota\)"),
    "no bucket": (404, "NoSuchBucket", "there is none of this name"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_refusal_is_one_sentence(name, monkeypatch):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    status, code, sentence = ANSWERS[name]
    with refusing_server(status, code) as environment:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        ask = require_bucket
        if name == "full":  # a full bucket still lists

            def ask(url):
                Bucket(url).write("a", b"x")

        with pytest.raises(BucketError, match=sentence) as caught:
            ask("s3://bucket/store")
    assert 1 == len(str(caught.value).splitlines())
    assert "canary" not in str(caught.value)


def test_a_wrong_address_is_one_sentence(monkeypatch):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(BucketError, match="nothing answers there"):
        require_bucket("s3://bucket/store")


def test_a_store_without_an_account_is_one_sentence(monkeypatch):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        UserError, match=r"--store az://box/p: .* an account were required"
    ) as caught:
        require_bucket("az://box/p")
    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://key:canary@bucket/p", "a URL without keys was required"),
        ("ftp://host/p", r"a folder or s3://BUCKET/PREFIX.* was required"),
        ("s3://", "a folder or s3://"),
        ("s3://bucket/team#1", r"found '#' in it, and what follows would be left out"),
        ("s3://bucket/a/../b", r"names without `\.` and `\.\.` were required"),
    ],
)
def test_another_url_is_refused_and_its_keys_are_not_repeated(url, sentence):
    with pytest.raises(SpecError, match=sentence) as caught:
        store_address.open_store(url)
    assert "canary" not in str(caught.value)


def test_no_bucket_named_no_library_imported(tmp_path):
    code = (
        "import sys; from orchestrator.store.store_address import open_to_read\n"
        "from orchestrator.store.ledger import is_live\n"
        f"from pathlib import Path; open_to_read(Path({str(tmp_path)!r}))\n"
        f"is_live(Path({str(tmp_path)!r}) / 'runs/a')\n"
        "print([name for name in sys.modules if 'obstore' in name or 'store.bucket' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "[]" == done.stdout.strip()
