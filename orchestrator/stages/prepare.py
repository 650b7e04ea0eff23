"""The prepare stage: photos become shards on the pool, and shards become one array."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape

from data_prep.errors import some
from data_prep.files import write_json
from data_prep.preparation.step_identity import steps_identity
from orchestrator.base.errors import UserError
from orchestrator.base.keys import digest, stage_key
from orchestrator.base.stage_versions import VERSIONS
from orchestrator.planning.run_environment import Env, Scope
from orchestrator.planning.stage import CACHED, SUCCEEDED, ArtifactName, Found
from orchestrator.planning.stage_keys import partial_key, prepare_key, prepare_keys, rows_key
from orchestrator.spec.models import Arm
from orchestrator.stages.catalog import Catalog
from orchestrator.store.artifacts import Artifact
from orchestrator.store.event_types import ArtifactDamaged, ShardWritten
from orchestrator.store.run_files.preparation import ClassRate, FailureRate

if TYPE_CHECKING:
    import pyarrow as pa

_SHEET = "sheet.json"
_MIN_PHOTOS = 20  # of a class, before its rate is compared
_MIN_DIFFERENCE = 0.05  # of two rates, before a person should look at it
_MAX_P_VALUE = 0.01
_MAX_DONORS = 2


@dataclass(frozen=True)
class Prepared:
    """The sets of shards of all variants, and the arrays that trials map."""

    outcome: str
    note: str
    shards: Mapping[str, Artifact]  # by variant
    rows: Mapping[str, Artifact]  # by variant

    @property
    def keys(self) -> dict[str, str]:
        """Variant -> key of its set of shards. A set that lacks photos has a key of its own."""
        return {name: artifact.key for name, artifact in self.shards.items()}

    @property
    def quarantined(self) -> set[str]:
        """The samples that some variant lacks."""
        return {s for artifact in self.shards.values() for s in artifact.result["quarantined"]}


class ShardRow(NamedTuple):
    """A photo that goes into a shard."""

    sample_id: str
    path: str
    sha256: str


@dataclass
class _Work:
    """What was done for a set of shards."""

    n_prepared: int = 0
    n_copied: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def is_new(self) -> bool:
        return self.n_prepared > 0 or self.n_copied > 0


class _ShardSet(NamedTuple):
    artifact: Artifact
    work: _Work
    is_cached: bool


def find(scope: Scope, catalog: Catalog) -> Found:
    """Find the sets of shards of all variants."""
    keys = prepare_keys(scope.experiment, catalog.photos)
    partial: dict[str, list[str]] = defaultdict(list)  # whole set -> sets that lack some photos
    for artifact in scope.store.all("prepare"):
        if whole := artifact.manifest["inputs"].get("whole"):
            partial[whole].append(artifact.key)
    artifacts: set[ArtifactName] = set()
    for whole in keys.values():
        for key in (whole, *partial[whole]):
            artifacts |= {("prepare", key), ("rows", rows_key(key))}
    missing = [name for name, key in keys.items() if not scope.store.find("prepare", key)]
    new = {keys[name] for name in missing if not partial[keys[name]]}
    why = "photos and steps are unchanged"
    if new:
        why = f"photos, steps or weights changed for {', '.join(missing)}"
    elif missing:
        why = f"photos lost by a transient failure are tried again for {', '.join(missing)}"
    return Found(
        why,
        is_cached=not missing,
        key=digest(keys),
        artifacts=frozenset(artifacts),
        n_to_prepare=catalog.artifact.result["n_ok"] * len(new),
    )


def run(env: Env, catalog: Catalog) -> Prepared:
    """Turn photos into shards of crops, one set per distinct `prep`, and each set into one array.

    Files of earlier runs are hashed here, once: trials map them as they are.
    """
    sets: dict[str, _ShardSet] = {}  # by key of the whole set
    shards: dict[str, Artifact] = {}
    for name, arm in env.experiment.arms.items():
        key = prepare_key(arm, catalog.photos)
        if key not in sets:
            artifact = intact_artifact(env, "prepare", key)
            if artifact is not None:
                sets[key] = _ShardSet(artifact, _Work(), is_cached=True)
            else:
                sets[key] = _prepare_set(env, catalog, key, arm)
        shards[name] = sets[key].artifact
        _require_enough(catalog, arm, shards[name])
    rows: dict[str, Artifact] = {}
    variants: dict[str, list[str]] = defaultdict(list)
    for name, artifact in shards.items():
        if artifact.key not in variants:
            rows[artifact.key] = _make_rows(env, artifact)
            _check_features(env, artifact)
        variants[artifact.key].append(name)
    reports = []
    for each in sets.values():
        reports.append(_describe(env, catalog, each.artifact, variants[each.artifact.key]))
    write_json(env.paths.prep, {"sets": reports})
    is_cached = all(each.is_cached for each in sets.values())
    output = Prepared(
        CACHED if is_cached else SUCCEEDED,
        "",
        shards,
        {name: rows[artifact.key] for name, artifact in shards.items()},
    )
    n_warnings = sum(len(report["warnings"]) for report in reports)
    note = _note(sets.values(), len(output.quarantined), n_warnings, is_cached=is_cached)
    return replace(output, note=note)


def _note(
    sets: Collection[_ShardSet], n_quarantined: int, n_warnings: int, *, is_cached: bool
) -> str:
    parts = []
    if not is_cached:
        n_prepared = sum(each.work.n_prepared for each in sets)
        n_copied = sum(each.work.n_copied for each in sets)
        parts.append(f"{n_prepared} prepared, {n_copied} copied")
    if n_quarantined:
        parts.append(f"{n_quarantined} quarantined")
    if n_warnings:
        parts.append(f"{n_warnings} warning(s), see the report")
    return ", ".join(parts)


def intact_artifact(env: Env, kind: str, key: str) -> Artifact | None:
    """Return an artifact whose files match its manifest. One with a changed file is removed."""
    artifact = env.store.find(kind, key)
    if artifact is None:
        return None
    try:
        for name in artifact.manifest["files"]:
            artifact.file(name)
    except UserError as error:
        reason = str(error).split(";", maxsplit=1)[0]
        env.console.say(f"  {escape(reason)}; it is made again")
        env.ledger.append(ArtifactDamaged(kind=kind, key=key, reason=str(error)), commit=True)
        env.store.remove(kind, key)
        return None
    return artifact


def _check_features(env: Env, shards: Artifact) -> None:
    """Remove cached features of these photos whose files have changed."""
    for features in env.store.all("features"):
        if features.manifest["inputs"].get("photos") == shards.key:
            intact_artifact(env, "features", features.key)


def _require_enough(catalog: Catalog, arm: Arm, shards: Artifact) -> None:
    """Refuse to go on where so many photos are lost that the rest is another data set.

    Raises:
        UserError: more photos are lost than `prep.max_lost` allows.
    """
    n_photos = catalog.artifact.result["n_photos"]
    lost = catalog.quarantined | shards.result["quarantined"]
    if len(lost) <= arm.prep.max_lost * n_photos:
        return
    causes = [f"{cause} ({n})" for cause, n in Counter(lost.values()).most_common(3)]
    raise UserError(
        f"prep.max_lost: at most {arm.prep.max_lost:.0%} of the photos may be lost, "
        f"{len(lost) / n_photos:.0%} are ({len(lost)} of {n_photos}: {', '.join(causes)}); "
        "repair them, choose another step or policy, or raise prep.max_lost"
    )


def _prepare_set(env: Env, catalog: Catalog, key: str, arm: Arm) -> _ShardSet:
    """Make one set of shards, alone among all runs of this store that prepare by the same steps.

    A set that lacks photos because of a transient failure gets a key of its own.
    """
    steps = steps_identity(arm.prep)
    with (
        env.single_flight("prepare", digest(steps), "prepares by the same steps"),
        _explain_full_disk(env.store.root),
    ):
        artifact = env.store.find("prepare", key)
        if artifact is not None:  # another run made it while this one waited
            return _ShardSet(artifact, _Work(), is_cached=False)
        wanted = _shard_rows(env, catalog)
        keys = {number: _shard_key(steps, rows) for number, rows in wanted.items()}
        work = _make_shards(env, key, arm, wanted, keys)
        lost = []
        for shard_key in keys.values():
            lost += env.store.get("shard", shard_key).result.get("by_chance", [])
        if not lost:
            return _ShardSet(_link_shards(env, key, arm, keys, work), work, is_cached=False)
        lost.sort()
        env.console.say(
            f"  [yellow]{len(lost)} photo(s) took too long, ended their worker or could not be "
            f"read: {escape(some(lost))}; a run that begins later tries them again[/]"
        )
        shutil.rmtree(env.store.work_dir("prepare", key), ignore_errors=True)
        own_key = partial_key(key, lost)
        artifact = intact_artifact(env, "prepare", own_key)
        if artifact is not None:
            return _ShardSet(artifact, work, is_cached=not work.is_new)
        artifact = _link_shards(env, own_key, arm, keys, work, whole=key)
        return _ShardSet(artifact, work, is_cached=False)


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left" into a message that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free_mb = shutil.disk_usage(folder).free / 1e6
        raise UserError(
            f"{folder}: room for another shard was required, the disk is full ({free_mb:.1f} MB "
            "free); free some space and submit again, finished shards are kept"
        ) from None


def _make_shards(
    env: Env,
    key: str,
    arm: Arm,
    wanted: Mapping[int, list[ShardRow]],
    keys: Mapping[int, str],
) -> _Work:
    """Prepare the shards that the store lacks, and put them there."""
    from data_prep.preparation.pool import PrepWorker, prepare_shards  # noqa: PLC0415
    from orchestrator.cluster.preparation_worker import forked_worker  # noqa: PLC0415

    steps = steps_identity(arm.prep)
    share = env.experiment.spec.resources.per_prep_worker
    tasks = _missing_shards(env, steps, wanted, keys)
    n_quarantined = 0
    work = _Work()
    with env.console.task("prepare", sum(len(task.rows) for task in tasks)) as advance:

        def report_progress(done: int) -> None:
            advance(done, f"{n_quarantined} quarantined" if n_quarantined else "")

        for result in prepare_shards(
            tasks,
            arm.prep,
            env.store.work_dir("prepare", key),
            cpus=share.cpu,
            gpus=share.gpu,
            timeout_s=share.timeout_s,
            worker=PrepWorker if env.fork_server is None else forked_worker(env.fork_server),
            progress=report_progress,
            say=lambda text: env.console.say(f"  [yellow]{escape(text)}[/]"),
        ):
            number = result.task.number
            facts = {"n_prepared": result.n_prepared, "n_copied": result.n_copied}
            # a shard whose photos are tried again is replaced
            env.store.remove("shard", keys[number])
            params = {"steps": steps}
            with env.store.draft("shard", keys[number], params=params, inputs={}) as draft:
                shutil.move(result.path, draft.path / "shard.parquet")
                shutil.move(result.sheet, draft.path / _SHEET)
                draft.result |= facts | {
                    "n_rows": len(result.task.rows),
                    "quarantined": dict(result.quarantined),
                    "by_chance": result.by_chance,
                    "timeout_s": share.timeout_s,
                    "seconds": result.seconds,
                }
            event = ShardWritten(number=number, key=keys[number], **facts)
            env.ledger.append(event, commit=True)
            work.n_prepared += result.n_prepared
            work.n_copied += result.n_copied
            n_quarantined += len(result.quarantined)
            for name, value in result.seconds.items():
                work.seconds[name] += value
    return work


def _missing_shards(
    env: Env, steps: Any, wanted: Mapping[int, list[ShardRow]], keys: Mapping[int, str]
) -> list[Any]:
    """Return a task for each shard that must be made, with earlier shards to copy rows from."""
    from data_prep.preparation.pool import ShardTask  # noqa: PLC0415
    from data_prep.preparation.shards import shard_name  # noqa: PLC0415

    donors = _donors(env, steps)
    tasks = []
    for number, rows in wanted.items():
        shard = intact_artifact(env, "shard", keys[number])
        if shard is not None and _is_settled(
            shard,
            photos_since=env.photos_since,
            timeout_s=env.experiment.spec.resources.per_prep_worker.timeout_s,
        ):
            continue
        sources = []
        for donor in donors:
            path = donor.folder / shard_name(number % donor.n_shards)
            if path.is_file():
                sources.append(path)
        if shard is not None:
            sources.append(shard.path / "shard.parquet")
        tasks.append(ShardTask(number, list[tuple[str, str, str]](rows), sources))
    return tasks


def _is_settled(shard: Artifact, *, photos_since: float, timeout_s: float) -> bool:
    """Return True if a shard is taken as it is.

    Later runs try again the photos that were lost by a transient failure. A run that began before
    the shard was made has had its turn, unless it now gives photos more time.
    """
    if not shard.result.get("by_chance"):
        return True
    is_own = bool(shard.manifest["finished"] >= photos_since)
    return is_own and bool(timeout_s <= shard.result["timeout_s"])


def _link_shards(
    env: Env,
    key: str,
    arm: Arm,
    keys: Mapping[int, str],
    work: _Work,
    whole: str | None = None,
) -> Artifact:
    """Make a set of the shards. `whole` is the key of the set that this one lacks photos of."""
    from data_prep.preparation.shard_builder import SHEET_SUFFIX  # noqa: PLC0415
    from data_prep.preparation.shards import n_shards_for, shard_name, write_index  # noqa: PLC0415

    steps = steps_identity(arm.prep)
    inputs = {"whole": whole} if whole else {}
    with env.store.draft("prepare", key, params={"steps": steps}, inputs=inputs) as draft:
        quarantined: dict[str, str] = {}
        n_rows = 0
        for number in sorted(keys):
            shard = env.store.get("shard", keys[number])
            _link(shard.file("shard.parquet"), draft.path / shard_name(number))
            _link(shard.file(_SHEET), draft.path / (shard_name(number) + SHEET_SUFFIX))
            quarantined |= shard.result["quarantined"]
            n_rows += shard.result["n_rows"]
        write_index(draft.path, n_shards=n_shards_for(n_rows), steps=steps, size=arm.prep.size)
        draft.result |= {
            "n_shards": len(keys),
            "quarantined": quarantined,
            "n_prepared": work.n_prepared,
            "n_copied": work.n_copied,
            "seconds": work.seconds,
        }
    return env.store.get("prepare", key)


def _link(source: Path, place: Path) -> None:
    """Link a file of the store to a second place, or copy it where links do not work."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


def _shard_rows(env: Env, catalog: Catalog) -> dict[int, list[ShardRow]]:
    """Deal the usable photos to shards by their ids."""
    import pyarrow.compute as pc  # noqa: PLC0415

    from data_prep.catalog.photo_paths import photo_path  # noqa: PLC0415
    from data_prep.preparation.shards import n_shards_for, shard_of  # noqa: PLC0415

    usable = catalog.table.filter(pc.equal(catalog.table["status"], "ok"))
    n_shards = n_shards_for(len(usable))
    rows: dict[int, list[ShardRow]] = defaultdict(list)
    for sample, sha256 in zip(
        usable["sample_id"].to_pylist(), usable["sha256"].to_pylist(), strict=True
    ):
        path = photo_path(env.experiment.spec.data, env.experiment.base, sample)
        rows[shard_of(sample, n_shards)].append(ShardRow(sample, path, sha256))
    return {number: sorted(rows[number]) for number in sorted(rows)}


def _shard_key(steps: Any, rows: list[ShardRow]) -> str:
    content = digest([[row.sample_id, row.sha256] for row in rows])
    return stage_key("shard", VERSIONS["shard"], steps, {"rows": content})


class _Donor(NamedTuple):
    n_shards: int  # a power of two
    folder: Path


def _donors(env: Env, steps: Any) -> list[_Donor]:
    """Return earlier preparations by the same steps, the newest first."""
    from data_prep.preparation.shards import ShardError, read_index  # noqa: PLC0415

    donors: list[_Donor] = []
    for artifact in env.store.all("prepare"):
        if artifact.manifest["params"]["steps"] == steps and len(donors) < _MAX_DONORS:
            with suppress(ShardError):  # without this donor more photos are prepared
                donors.append(_Donor(read_index(artifact.path).n_shards, artifact.path))
    return donors


def _make_rows(env: Env, shards: Artifact) -> Artifact:
    """Decode the shards once into a memory-mapped array that all trials share."""
    from data_prep.preparation.shards import memory_map  # noqa: PLC0415

    key = rows_key(shards.key)
    artifact = intact_artifact(env, "rows", key)
    if artifact is not None:
        return artifact
    with (
        _explain_full_disk(env.store.root),
        env.store.draft("rows", key, params={}, inputs={"prepare": shards.key}) as draft,
    ):
        memory_map(shards.path, draft.path)
    return env.store.get("rows", key)


class _Crop(NamedTuple):
    """What a shard says of how a photo was prepared; None where the step was not asked for."""

    sample_id: str
    face_confidence: float | None
    n_faces: int | None
    mask_area: float | None


_FAILURES: dict[str, Callable[[_Crop], bool]] = {
    "no face": lambda crop: crop.face_confidence is not None and crop.face_confidence <= 0,
    "empty mask": lambda crop: crop.mask_area is not None and crop.mask_area <= 0,
    "several faces": lambda crop: (crop.n_faces or 0) > 1,
}


def _describe(
    env: Env, catalog: Catalog, shards: Artifact, variants: list[str]
) -> Mapping[str, Any]:
    """Return what prep.json says of one set: counts, rates per class, warnings, contact sheet."""
    from data_prep.preparation import step_films as sheet  # noqa: PLC0415
    from data_prep.preparation.shard_builder import SHEET_SUFFIX, read_sheet  # noqa: PLC0415
    from data_prep.preparation.shards import read_shard  # noqa: PLC0415

    crops: list[_Crop] = []
    films = []
    for path in sorted(shards.path.glob("shard-*.parquet")):
        crops += [_Crop(**row) for row in read_shard(path, list(_Crop._fields)).to_pylist()]
        films += read_sheet(path.with_name(path.name + SHEET_SUFFIX))
    counts = {"photos": len(crops), "quarantined": len(shards.result["quarantined"])}
    for failure, is_failed in _FAILURES.items():
        counts[failure] = sum(is_failed(crop) for crop in crops)
    n_prepared = shards.result["n_prepared"]
    seconds = {}
    for name, value in shards.result["seconds"].items():
        if n_prepared:
            seconds[name] = round(value / n_prepared, 4)
    rates = _rates(catalog.table, env.schema.classes, crops)
    return {
        "variants": variants,
        "steps": shards.manifest["params"]["steps"],
        "counts": counts,
        "seconds": seconds,
        "rates": [rate.model_dump(by_alias=True) for rate in rates],
        "warnings": _warnings(rates),
        "sheet": sheet.to_json(sheet.keep(films, sheet.PER_REPORT)),
    }


def _rates(
    catalog: pa.Table, labels: Mapping[str, list[str]], crops: Collection[_Crop]
) -> list[FailureRate]:
    """Return how often each failure occurred, by class of each label."""
    samples = catalog["sample_id"].to_pylist()
    rates = []
    for failure, is_failed in _FAILURES.items():
        failed = [crop for crop in crops if is_failed(crop)]
        if not failed:
            continue
        for label, names in labels.items():
            codes = dict(zip(samples, catalog[f"label_{label}"].to_pylist(), strict=True))
            n_all = Counter(codes[crop.sample_id] for crop in crops)
            n_failed = Counter(codes[crop.sample_id] for crop in failed)
            classes = []
            for code, name in enumerate(names):
                facts = {"class": name, "n": n_all[code], "failed": n_failed[code]}
                classes.append(ClassRate.model_validate(facts))
            rates.append(FailureRate(failure=failure, label=label, classes=tuple(classes)))
    return rates


def _share(entry: ClassRate) -> float:
    return entry.failed / entry.n


def _warnings(rates: list[FailureRate]) -> list[str]:
    """Return a sentence for every failure that is more frequent in some classes of a label.

    A network can learn from such a difference.
    """
    warnings = []
    for rate in rates:
        classes = [entry for entry in rate.classes if entry.n >= _MIN_PHOTOS]
        if len(classes) < 2 or not any(entry.failed for entry in classes):
            continue
        worst = max(classes, key=_share)
        best = min(classes, key=_share)
        is_large = _share(worst) - _share(best) >= _MIN_DIFFERENCE
        if not is_large or _p_value(classes) >= _MAX_P_VALUE:
            continue
        warnings.append(
            f"{rate.failure}: {_share(worst):.0%} of {rate.label} {worst.class_} "
            f"({worst.failed} of {worst.n}), {_share(best):.0%} of {best.class_} "
            f"({best.failed} of {best.n}). This preparation is biased: a network can tell "
            f"{rate.label} by how the crop failed, and worse crops lower the score of "
            f"{worst.class_}; look at the contact sheet, try another detector, model or on_missing"
        )
    return warnings


def _p_value(classes: list[ClassRate]) -> float:
    """Return the p value of equal failure rates in all classes."""
    from scipy.stats import chi2_contingency  # noqa: PLC0415

    counts = [[entry.failed, entry.n - entry.failed] for entry in classes]
    return float(chi2_contingency(counts)[1])
