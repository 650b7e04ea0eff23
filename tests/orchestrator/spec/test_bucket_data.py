"""A spec whose data are on a bucket: what `check` says when it refuses, and what `resume` reads."""

import pytest
from click.testing import CliRunner

from data_prep.catalog.fingerprint import fingerprint
from data_prep.roots import bucket_objects
from orchestrator.cli import main
from orchestrator.spec.load import read
from orchestrator.spec.yaml_source import DocumentError
from tests.s3_server import refusing_server

SPEC = """\
name: leaves
data:
  source: {layout: class_folders, root: ROOT}
  labels:
    state: {from: column, column: folder, classes: [dry, wet]}
  group: sample_id
"""


@pytest.fixture
def spec(tmp_path):
    place = tmp_path / "s.yaml"

    def write(root="s3://bucket/leaves/"):
        place.write_text(SPEC.replace("ROOT", root))
        return place

    return write


def test_a_bucket_that_denies_ends_check_with_the_line_and_one_sentence(spec, monkeypatch):
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    with refusing_server(403, "AccessDenied") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        checked = CliRunner().invoke(main, ["check", str(spec())])
    bucket_objects.forget_buckets()
    assert 2 == checked.exit_code, checked.output
    assert "s.yaml:3" in checked.output
    assert "data.source.root: s3://bucket/leaves/images: the right to list and read" in (
        checked.output
    )
    assert "canary" not in checked.output


def test_keys_that_were_set_and_photos_that_were_added_since_count_in_the_next_read_of_a_process(
    spec, s3_server, monkeypatch
):
    bucket = s3_server.new_bucket()
    s3_server.put(f"{bucket}/images/dry/1.jpg", b"x")
    with refusing_server(403, "AccessDenied") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DocumentError, match="the bucket denies it"):
            read(spec(f"s3://{bucket}"))
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    identities = []
    for number in range(2):
        experiment = read(spec(f"s3://{bucket}"))
        identities.append(fingerprint(experiment.spec.data, experiment.base))
        s3_server.put(f"{bucket}/images/wet/{number}.jpg", b"x")
    assert identities[0] != identities[1]
    bucket_objects.forget_buckets()


def test_a_url_stays_in_what_resume_reads_and_is_no_part_of_a_key(spec):
    on_bucket = read(spec(), check_roots=False)
    assert "s3://bucket/leaves" == on_bucket.resolved()["data"]["source"]["root"]
    assert read(spec("leaves"), check_roots=False).identity() == on_bucket.identity()


@pytest.mark.parametrize("root", ["s3://key:canary@bucket/p", "https://host/p"])
def test_a_root_with_keys_or_of_another_kind_is_refused_with_its_line(spec, root):
    checked = CliRunner().invoke(main, ["check", str(spec(root))])
    assert 2 == checked.exit_code
    assert "s.yaml:3" in checked.output
    assert "was required" in checked.output
