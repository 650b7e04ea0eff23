"""Data roots on a bucket of a real local S3 server: what a folder gives, they give."""

import os
import sys

import pytest

from data_prep.catalog import photo_inspection
from data_prep.catalog.builder import build_catalog, content_hash, photos_hash
from data_prep.catalog.fingerprint import fingerprint
from data_prep.catalog.labels_of_test_photos import labels_of_test_photos
from data_prep.catalog.photo_inspection import inspect_chunk
from data_prep.catalog.photo_listing import require_images
from data_prep.catalog.photo_paths import photo_path
from data_prep.config import Data
from data_prep.errors import DataError, MachineError
from data_prep.prep_config import Prep
from data_prep.preparation.pool import PrepWorker, real_preparation
from data_prep.preparation.shard_builder import Assembly, ShardTask
from data_prep.preparation.shards import shard_name
from data_prep.roots import bucket_objects, places
from data_prep.roots.bucket_client import open_client, refusal_sentence
from data_prep.roots.places import require_root
from tests.data_prep.conftest import AGE, GENDER, MASK, jpeg, write_csv
from tests.s3_server import free_port, refusing_server

STEPS = Prep.model_validate_json('{"steps": [{"name": "resize", "size": 8}]}')
LARGEST = 5000  # bytes of a photo, in these tests


@pytest.fixture
def upload(s3_server, monkeypatch):
    """Return what copies a folder to a new bucket, as a console does, and returns its URL."""
    use(s3_server.environment, monkeypatch)

    def copy(folder):
        import obstore

        bucket = f"s3://{s3_server.new_bucket()}"
        client = open_client(bucket, 5.0)
        s3_server.put(f"{bucket.removeprefix('s3://')}/all my/data/")
        for path in folder.rglob("*"):
            name = f"all my/data/{path.relative_to(folder)}"
            if path.is_file():
                obstore.put(client, name, path)
            else:
                s3_server.put(f"{bucket.removeprefix('s3://')}/{name}/")  # marks the folder
        return f"{bucket}/all my/data"

    yield copy
    bucket_objects.forget_buckets()


def use(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket_objects.forget_buckets()


def plant(contest):
    """Add what goes wrong with photos, and names that need care on the way."""
    person = contest.images / contest.people[0]["path"]
    (person / "mask cut.jpg").write_bytes(jpeg(3)[:-40])
    (person / "mask empty.jpg").write_bytes(b"")
    (person / "mask large.jpg").write_bytes(bytes(LARGEST + 7))
    (person / "note.txt").write_text("no photo")
    (person / "deep").mkdir()
    (person / "deep/mask9.jpg").write_bytes(jpeg(77))
    (person / "mask 100%+#&é잎.jpg").write_bytes(jpeg(78))
    (contest.images / "gone").mkdir()


def profile_folders(contest, root, test_root):
    return Data.model_validate(
        {
            "source": {"layout": "profile_folders", "root": root},
            "test": {"root": test_root, "label": "ans"},
            "labels": {"mask": MASK, "gender": GENDER, "age": AGE},
            "group": "id",
        }
    )


def class_folders(contest, root, test_root):
    classes = sorted(person["path"] for person in contest.people)
    return Data.model_validate(
        {
            "source": {"layout": "class_folders", "root": root},
            "test": {"layout": "folder", "root": test_root},
            "labels": {"person": {"from": "column", "column": "folder", "classes": classes}},
            "group": "sample_id",
        }
    )


def table(contest, root, test_root):
    rows = []
    for path in sorted(contest.images.rglob("*.*")):
        if path.suffix != ".txt":
            relative = path.relative_to(contest.images).as_posix()
            rows.append({"file": relative.upper(), "kind": len(rows) % 2})
    rows.append({"file": "nowhere.jpg", "kind": 0})
    write_csv(contest.base / "train/rows.csv", rows)
    return Data.model_validate(
        {
            "source": {"layout": "table", "root": root, "table": "rows.csv", "path": "file"},
            "test": {"hold_out": 0.2},
            "labels": {"kind": {"from": "column", "column": "kind", "classes": [0, 1]}},
            "group": "sample_id",
        }
    )


@pytest.mark.parametrize("layout", [profile_folders, class_folders, table])
def test_the_catalog_and_the_shards_of_a_bucket_are_those_of_a_folder(
    contest, upload, tmp_path, monkeypatch, layout
):
    monkeypatch.setattr(photo_inspection, "MAX_BYTES", LARGEST)
    plant(contest)
    here = layout(contest, "train", "eval")
    url = upload(contest.base)
    there = layout(contest, f"{url}/train", f"{url}/eval")
    listed = []
    monkeypatch.setattr(
        bucket_objects,
        "_list",
        lambda place, make=bucket_objects._list: (listed.append(place), make(place))[1],
    )
    before = fingerprint(there, contest.base)
    catalogs = [build_catalog(data, contest.base) for data in (here, there)]
    folders = {f"{url}/train/images", f"{url}/eval/images"}
    assert sorted(listed) == sorted(folders)[layout is table :], "each folder is listed once"
    assert before == fingerprint(there, tmp_path / "another base")
    in_folder, on_bucket = catalogs
    columns = [name for name in in_folder.column_names if name != "path"]
    for column in columns:
        assert in_folder[column].to_pylist() == on_bucket[column].to_pylist(), column
    assert content_hash(in_folder) == content_hash(on_bucket)
    assert photos_hash(in_folder) == photos_hash(on_bucket)
    statuses = set(in_folder["status"].to_pylist())
    assert {"ok", "truncated", "empty file", f"too large: {LARGEST + 7} bytes"} <= statuses
    assert all(path.startswith(f"{url}/") for path in on_bucket["path"].to_pylist())
    if layout is profile_folders:
        answers = [labels_of_test_photos(data, contest.base, in_folder) for data in (here, there)]
        assert answers[0].equals(answers[1])
    shards = []
    for data, name in ((here, "here"), (there, "there")):
        shards.append(shard(data, contest.base, in_folder, tmp_path / name).read_bytes())
    assert shards[0] == shards[1]


def shard(data, base, catalog, folder):
    """Prepare the usable photos, as a worker of the pool does, and write them as a shard."""
    rows = []
    for row in catalog.to_pylist():
        if row["status"] == "ok":
            rows.append((row["sample_id"], photo_path(data, base, row["sample_id"]), row["sha256"]))
    assembly = Assembly(ShardTask(0, rows))
    worker = PrepWorker()
    worker.load(STEPS, real_preparation, 1)
    for outcome in worker.prepare(assembly.left, set()).outcomes:
        assembly.add(outcome)
    folder.mkdir()
    result = assembly.write(folder)
    assert [] == result.quarantined
    return folder / shard_name(0)


def test_an_object_that_has_gone_or_changed_since_is_quarantined_and_the_rest_is_read(
    contest, upload
):
    import obstore

    url = upload(contest.base)
    folder = contest.people[0]["path"]
    images = f"{url}/train/images"
    names = sorted(path.name for path in (contest.images / folder).iterdir())
    client = open_client(url.partition("/all my")[0], 5.0)
    obstore.delete(client, f"all my/data/train/images/{folder}/{names[0]}")
    facts = inspect_chunk([(images, f"{folder}/{name}") for name in names])
    assert ["unreadable: No such file or directory", *["ok"] * 3] == [f.status for f in facts]
    worker = PrepWorker()
    worker.load(STEPS, real_preparation, 1)
    rows = [(f"train/{folder}/{name}", f"{images}/{folder}/{name}", "0" * 64) for name in names]
    outcomes = worker.prepare(rows, set()).outcomes
    assert "unreadable: No such file or directory" == outcomes[0].reason
    assert {"changed since the catalog was made"} == {each.reason for each in outcomes[1:]}
    assert all(each.is_transient for each in outcomes)


def source(root, **changes):
    return Data.model_validate(
        {
            "source": {"layout": "class_folders", "root": root, **changes},
            "labels": {"kind": {"from": "column", "column": "folder", "classes": ["a", "b"]}},
            "group": "sample_id",
        }
    ).source


def test_a_prefix_without_photos_is_told_with_the_folders_that_are_there(contest, upload):
    url = upload(contest.base)
    with pytest.raises(DataError, match=f"photos below {url}/images were required.*: eval, train"):
        require_images(source(url), contest.base, "source")
    require_images(source(url, images="train/images"), contest.base, "source")


def test_an_old_listing_is_made_anew_whole(contest, upload, monkeypatch):
    images = f"{upload(contest.base)}/train/images"
    people = places.folders_at(images)
    listing, _ = bucket_objects.listing_of(images)
    listing.made -= bucket_objects._LISTED_S
    listed = []
    make = bucket_objects._list
    monkeypatch.setattr(bucket_objects, "_list", lambda url: listed.append(url) or make(url))
    for person in people:
        photos = places.scan(f"{images}/{person}")
        assert photos == places.scan(f"{images}/{person}")
        assert photos
    assert [images] == listed


def test_an_object_with_an_empty_part_in_its_name_is_named(s3_server, monkeypatch, tmp_path):
    use(s3_server.environment, monkeypatch)
    bucket = s3_server.new_bucket()
    for name in ("images/a/1.jpg", "images//2.jpg"):
        s3_server.put(f"{bucket}/{name}", b"x")
    with pytest.raises(DataError, match=r"names of objects without empty parts.*images//2.jpg"):
        require_images(source(f"s3://{bucket}"), tmp_path, "source")
    with pytest.raises(MachineError, match=r"names of objects without empty parts.*\.\./rows.csv"):
        places.open_binary(places.join(tmp_path, f"s3://{bucket}/data", "../rows.csv"))
    bucket_objects.forget_buckets()


NO_CLIENT = {
    "az://box/p": "Account must be specified",
    "gs://box/p": "Unable to open service account file",
    "s3://a bucket/p": "invalid domain character",
}


@pytest.mark.parametrize("url", NO_CLIENT)
def test_a_url_or_an_account_that_makes_no_client_is_one_sentence(url, monkeypatch, tmp_path):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    use({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "nothing.json")}, monkeypatch)
    sentence = f"the name of a bucket and an account were required, found: .*{NO_CLIENT[url]}"
    with pytest.raises(DataError, match=sentence) as caught:
        require_images(source(url), tmp_path, "source")
    assert 1 == len(str(caught.value).splitlines())


def test_without_the_library_every_look_at_a_bucket_says_what_to_install(monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "obstore":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    bucket_objects.forget_buckets()
    for look in (places.is_folder, places.is_file, places.folders_at, places.open_binary):
        with pytest.raises(MachineError, match="pip install 'robust-vote"):
            look("s3://bucket/data")
    bucket_objects.forget_buckets()


REFUSALS = {
    "denies": (403, "AccessDenied", "the right to list and read was required, the bucket denies"),
    "clock": (403, "RequestTimeTooSkewed", "this machine's is many minutes off"),
    "no bucket": (404, "NoSuchBucket", "there is none of this name; .* correct the data root"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bucket_that_refuses_is_one_sentence_before_anything_is_read(name, monkeypatch, tmp_path):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    status, code, sentence = REFUSALS[name]
    with refusing_server(status, code) as environment:
        use(environment, monkeypatch)
        with pytest.raises(DataError, match=sentence) as caught:
            require_images(source("s3://bucket/data"), tmp_path, "source")
        with pytest.raises(MachineError, match=sentence):
            inspect_chunk([("s3://bucket/data/images", "a/1.jpg")] * 2)
    assert str(caught.value).startswith("data.source.root: s3://bucket/data")
    assert 1 == len(str(caught.value).splitlines())
    assert "canary" not in str(caught.value)
    bucket_objects.forget_buckets()


def test_a_wrong_address_is_one_sentence(monkeypatch, tmp_path):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    address = f"http://127.0.0.1:{free_port()}"
    use({"AWS_ENDPOINT_URL": address, **dict.fromkeys(KEY_NAMES, "a")}, monkeypatch)
    with pytest.raises(DataError, match=f"at {address}, nothing answers there"):
        require_images(source("s3://bucket/data"), tmp_path, "source")
    bucket_objects.forget_buckets()


def test_the_address_of_one_provider_is_not_told_for_another(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.delenv("AZURE_STORAGE_ENDPOINT", raising=False)
    expected = {
        "s3": "http://minio:9000, nothing answers there; check the network and AWS_ENDPOINT_URL",
        "gs": "the provider's address, nothing answers there; check the network",
        "az": "the provider's address, nothing answers there; check the network and AZURE_STORAGE_ENDPOINT",
    }
    for scheme, sentence in expected.items():
        url = f"{scheme}://bucket/p"
        said = refusal_sentence(url, "error sending request", entry="the data root", rights="read")
        assert f"{url}: a bucket was required at {sentence}" == said


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_the_variable_to_check_is_the_one_that_named_the_address(name, monkeypatch):
    for each in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "http://minio:9000")
    said = refusal_sentence("s3://b/p", "timed out", entry="the data root", rights="read")
    assert said.endswith(
        f"at http://minio:9000, nothing answers there; check the network and {name}"
    )


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [
        ("s3", "AWS_ACCESS_KEY_ID"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT"),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
@pytest.mark.parametrize("answer", ["403 Forbidden", "no credential"])
def test_the_keys_that_are_told_are_those_of_the_provider(scheme, variable, answer):
    said = refusal_sentence(f"{scheme}://bucket/p", answer, entry="the data root", rights="read")
    assert variable in said
    assert ("AWS" in said) == (scheme == "s3")


KEY_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(
    ("root", "sentence"),
    [
        ("s3://key:canary@bucket/p", "a URL without keys was required"),
        ("az://box/p?sig=canary", "a URL without keys was required"),
        ("https://host/p", r"a folder or s3://BUCKET/PREFIX, gs://.* was required"),
        ("s3://", "a folder or s3://BUCKET"),
        ("s3:///data", "a folder or s3://BUCKET"),
        ("s3://bucket/a//b", "a folder or s3://BUCKET"),
        ("s3://bucket/../b", "a folder or s3://BUCKET"),
    ],
)
def test_another_url_is_refused_and_its_keys_are_not_repeated(root, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        require_root(root)
    assert "canary" not in str(caught.value)
    assert "s3://bucket/p" == require_root("s3://bucket/p/")
    assert os.sep == require_root(os.sep)
