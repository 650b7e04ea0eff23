"""A run's ensemble as one folder or zip that answers photos without the store."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal

from pydantic import Field, ValidationError

from data_prep.files import file_sha256, write_json
from data_prep.prep_config import Prep
from data_prep.section_base import Positive, Section
from orchestrator.base.errors import UserError
from orchestrator.ensemble import onnx_export
from orchestrator.ensemble.members import Ensemble, Member, needs_code, of_run
from orchestrator.evaluation.probabilities.adjustment import AdjustedLabel
from orchestrator.store.artifacts import MANIFEST, Store, git_commit, packages
from orchestrator.store.run_dir import RunPaths
from trainers.settings.own_parts import CODE_FOLDER

FORMAT_VERSION = 1
ENSEMBLE = "ensemble.json"
CERTIFICATE = "certificate.json"
README = "README.txt"
_MANIFEST_BYTES = 2**24
_BLOCK_BYTES = 2**20
_WEIGHTS = ("weights.safetensors", "model.json")
_TEXT = """An ensemble of {n} image classifiers out of the run {run}.

    python -m orchestrator predict THIS_FOLDER PHOTOS --out answers.csv

answers every photo below PHOTOS: ImageID is its path, ans the class from 0 to {last}. Every file
is checked against manifest.json before it is used. ensemble.json has the members, their
preparation, the vote rule and the class names; certificate.json says how good the answers are and
how that is known.
"""


def write_bundle(
    paths: RunPaths,
    store: Store,
    out: Path,
    *,
    with_onnx: bool = False,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Write a run's ensemble to a new folder, or to a zip where `out` ends in .zip.

    Args:
        paths: of the run.
        store: with its checkpoints.
        out: the folder or zip.
        with_onnx: add the members as ONNX, and a script that answers with them.
        allow_code: whether code that the models need may run; ONNX needs to.

    Returns:
        n_members, n_checkpoints, size_bytes, and manifest_sha256, which identifies the bundle.

    Raises:
        UserError: `out` exists, the run has no ensemble, a checkpoint is not what it should be, or
            a member cannot be written as ONNX.
    """
    if out.exists():
        raise UserError(f"{out}: a new folder or zip was required, it exists; choose another name")
    ensemble = of_run(paths, store)
    if with_onnx:
        ensemble.allow_code(allowed=allow_code)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    beside.chmod(0o755)
    packed = beside.with_name(f"{beside.name}.zip")
    try:
        if with_onnx:
            onnx_export.write_onnx(ensemble, beside)
        _fill(ensemble, paths, beside)
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        facts = {
            "n_members": len(ensemble.members),
            "n_checkpoints": sum(len(member.checkpoints) for member in ensemble.members),
            "size_bytes": sum(path.stat().st_size for path in files),
            "manifest_sha256": file_sha256(beside / MANIFEST),
        }
        if out.suffix == ".zip":
            # weights do not shrink
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for path in files:
                    archive.write(path, path.relative_to(beside).as_posix())
            packed.replace(out)
        else:
            beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        packed.unlink(missing_ok=True)
    return facts


def _copy_member(member: Member, folder: Path) -> dict[str, Any]:
    """Copy the checkpoints of a member, and return what ensemble.json says of it."""
    names = []
    for number, checkpoint in enumerate(member.checkpoints):
        name = f"members/{member.setting}/{number:03}"
        names.append(name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in _WEIGHTS:
            shutil.copyfile(checkpoint / file, folder / name / file)
    facts: dict[str, Any] = {
        "setting": member.setting,
        "variant": member.variant,
        "votes": member.votes,
    }
    if member.adjustment:
        facts["adjustment"] = [label.to_json() for label in member.adjustment]
    prep = member.prep.model_dump(mode="json", by_alias=True)
    return {**facts, "prep": prep, "steps": member.steps, "checkpoints": names}


def _fill(ensemble: Ensemble, paths: RunPaths, folder: Path) -> None:
    members = [_copy_member(member, folder) for member in ensemble.members]
    described = {
        "format_version": FORMAT_VERSION,
        "name": ensemble.name,
        "rule": ensemble.rule,
        "majority_class": ensemble.majority,
        "classes": dict(ensemble.classes),
        "members": members,
    }
    if ensemble.temperatures:
        described["temperatures"] = dict(ensemble.temperatures)
    if ensemble.group_mean:
        described["group_mean"] = list(ensemble.group_mean)
    if ensemble.code is not None:
        shutil.copytree(ensemble.code, folder / CODE_FOLDER)
    write_json(folder / ENSEMBLE, described)
    n_classes = 1
    for names in ensemble.classes.values():
        n_classes *= len(names)
    text = _TEXT.format(n=len(members), run=ensemble.name, last=n_classes - 1)
    if (folder / onnx_export.FACTS).is_file():
        text += onnx_export.TEXT
    (folder / README).write_text(text, encoding="utf-8")
    if paths.certificate.is_file():
        shutil.copyfile(paths.certificate, folder / CERTIFICATE)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "bundle",
        "run_id": paths.run_id,
        "git_commit": git_commit(),
        "packages": packages(),
        "files": {
            path.relative_to(folder).as_posix(): {
                "size_bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in files
        },
    }
    write_json(folder / MANIFEST, manifest)


def is_bundle(place: Path) -> bool:
    """Return True if a path names a bundle rather than a run."""
    return place.suffix == ".zip" or (place / MANIFEST).is_file()


@contextmanager
def open_bundle(place: Path) -> Iterator[Ensemble]:
    """Check every file of a bundle against its manifest and yield its ensemble.

    Raises:
        UserError: a file is missing or differs, the format is another one, or this installation
            would prepare photos in another way than the bundle was trained with.
    """
    if place.is_dir():
        yield _read(place)
        return
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        _unpack(place, Path(folder))
        yield _read(Path(folder))


def _unpack(place: Path, folder: Path) -> None:
    """Unpack what the manifest names and nothing else.

    No file gets longer than the manifest says. Files must lie in the zip uncompressed and fit into
    its size, so that no small zip fills a large disk.
    """
    try:
        with zipfile.ZipFile(place) as archive:
            with _stored(place, archive, MANIFEST) as source:
                files = json.loads(source.read(_MANIFEST_BYTES))["files"]
            sizes = {
                _inside(place, name): int(facts["size_bytes"]) for name, facts in files.items()
            }
            if min(sizes.values(), default=0) < 0 or sum(sizes.values()) > place.stat().st_size:
                raise ValueError(f"{MANIFEST} names more bytes than the zip has")
            for name, size in {MANIFEST: _MANIFEST_BYTES, **sizes}.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with _stored(place, archive, name) as source, target.open("wb") as sink:
                    left = size + 1  # a longer one fails by its hash
                    while block := source.read(min(left, _BLOCK_BYTES)):
                        sink.write(block)
                        left -= len(block)
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"{place}: a bundle was required, found: {error}; make it again with `bundle`"
        ) from None


def _stored(place: Path, archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a file of a zip that does not compress it."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"{place}: uncompressed files were required, {name!r} is compressed; take the zip "
            "that `bundle` wrote, or unpack it and name the folder"
        )
    return archive.open(name)


def _inside(place: Path, name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise UserError(
            f"{place}: names below the bundle were required, found {name!r}; do not use it"
        )
    return name


class _Label(Section):
    """How the probabilities of one label are adjusted."""

    label: str
    temperature: Positive
    shift: Annotated[list[float], Field(min_length=2)]


class _Voter(Section):
    """A member, as ensemble.json describes it."""

    setting: str
    variant: str
    votes: Annotated[int, Field(ge=1)]
    prep: Prep
    steps: list[Any]
    checkpoints: Annotated[list[str], Field(min_length=1)]
    adjustment: list[_Label] = []


class _Described(Section):
    """What ensemble.json holds."""

    format_version: int
    name: str
    rule: Literal["hard", "soft"]
    majority_class: Annotated[int, Field(ge=0)]
    classes: dict[str, list[str]]
    members: Annotated[list[_Voter], Field(min_length=1)]
    temperatures: dict[str, Positive] = {}
    group_mean: list[str] = []


def _read(folder: Path) -> Ensemble:
    files = _verified(folder)
    if ENSEMBLE not in files:
        raise UserError(f"{folder / ENSEMBLE}: required by a bundle, {MANIFEST} does not name it")
    try:
        described = _Described.model_validate_json((folder / ENSEMBLE).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{folder / ENSEMBLE}: an ensemble was required, found in {place}: {first['msg']}; "
            "take the bundle from its source again, or use the release that wrote it"
        ) from None
    members = tuple(_member(folder, voter, files) for voter in described.members)
    has_code = any(name.startswith(f"{CODE_FOLDER}/") for name in files)
    return Ensemble(
        described.name,
        members,
        described.rule,
        described.majority_class,
        described.classes,
        described.temperatures,
        tuple(described.group_mean),
        folder / CODE_FOLDER if has_code or any(map(needs_code, members)) else None,
    )


def _verified(folder: Path) -> set[str]:
    """Check every file against the manifest and return the names that the manifest lists."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format_version"]
        files = manifest["files"]
        hashes = {_inside(folder, name): str(facts["sha256"]) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST}: a bundle's manifest was required, found: {error}"
        ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / MANIFEST}: format version {FORMAT_VERSION} was required, "
            f"found {version!r}; use the release that wrote it"
        )
    for name, sha256 in hashes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{path}: required by {MANIFEST}, found no such file; "
                "take the bundle from its source again"
            )
        if (actual := file_sha256(path)) != sha256:
            raise UserError(
                f"{path}: sha256 {sha256[:12]}.. was required by {MANIFEST}, found "
                f"{actual[:12]}..; the file was changed or damaged, take the bundle from its "
                "source again"
            )
    return set(files)


def _member(folder: Path, voter: _Voter, files: set[str]) -> Member:
    for name in voter.checkpoints:
        if any(f"{name}/{file}" not in files for file in _WEIGHTS):
            raise UserError(
                f"{folder / name}: weights named by {MANIFEST} were required, found none"
            )
    member = Member(
        voter.setting,
        voter.variant,
        voter.votes,
        voter.prep,
        tuple(folder / name for name in voter.checkpoints),
        tuple(
            AdjustedLabel(row.label, row.temperature, tuple(row.shift)) for row in voter.adjustment
        ),
    )
    if member.steps != voter.steps:
        raise UserError(
            f"{folder}: the preparation {json.dumps(voter.steps)} was required, this installation "
            f"has {json.dumps(member.steps)}; use the release that wrote the bundle"
        )
    return member
