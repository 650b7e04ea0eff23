"""`doctor` lists what is there and what is missing, and its exit code says which."""

from importlib import metadata

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.cluster.authentication import write_token
from orchestrator.run import doctor


@pytest.fixture
def versions(monkeypatch):
    """Installed versions, to be changed by a test; None for a package that is missing."""
    changed = {}
    installed = metadata.version

    def version(name):
        if name not in changed:
            return installed(name)
        if changed[name] is None:
            raise metadata.PackageNotFoundError(name)
        return changed[name]

    monkeypatch.setattr(metadata, "version", version)
    return changed


def test_this_machine_has_every_package(tmp_path):
    lines, _ = doctor.examine(tmp_path)
    for name in ("torch", "ray", "pillow"):
        version = metadata.version(name)
        assert f"ok   {name} {version}" in lines


@pytest.mark.parametrize(
    ("name", "version", "line"),
    [
        ("timm", None, "LACK timm: not installed; run `make setup`"),
        ("torch", "2.5.1", "LACK torch 2.5.1; required 2.6 or newer"),
        ("rembg", "2.0.74", "LACK rembg 2.0.74; required 2.0.75 or newer"),
        ("torch", "2.6.0+cpu", "ok   torch 2.6.0+cpu"),
    ],
)
def test_a_missing_or_old_package_is_named_with_the_remedy(versions, name, version, line):
    versions[name] = version
    lines, healthy = doctor.examine()
    assert any(each.startswith(line) for each in lines)
    assert healthy <= line.startswith("ok")


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_MIN_FREE_GIB", 1e9)
    lines, healthy = doctor.examine(tmp_path)
    assert not healthy
    assert any(line.startswith("LACK") and f"free at {tmp_path}" in line for line in lines)


@pytest.mark.parametrize("healthy", [True, False])
def test_the_exit_code_says_whether_something_is_missing(monkeypatch, healthy):
    monkeypatch.setattr(doctor, "examine", lambda: (["a line"], healthy))
    done = CliRunner().invoke(main, ["doctor"])
    assert (0 if healthy else 1, "a line\n") == (done.exit_code, done.output)


def test_the_source_of_the_token_is_named_and_the_token_is_not(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / ".ray/auth_token"
    assert doctor._token().text == f"Ray token: none yet; the first local run writes {own}"
    write_token(own)
    assert doctor._token() == (True, f"Ray token: asked for, from {own}")
    own.chmod(0o644)
    told = f"Ray token: {own} can be read by others; run `chmod 600 {own}`"
    assert doctor._token() == (False, told)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert f"{tmp_path}/none was required as a file" in doctor._token().text
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c4n4ry" * 7)
    assert doctor._token() == (True, "Ray token: asked for, from RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor._token().line().startswith("LACK RAY_AUTH_MODE=disabled: whoever reaches a port")
