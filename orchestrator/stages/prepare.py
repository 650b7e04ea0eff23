"""The prepare stage: photos become shards on the pool, shards one array, and prep.json says how well it went."""

from __future__ import annotations

import errno
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape

from data_prep.errors import some
from data_prep.files import write_json
from data_prep.preparation.steps import steps_identity
from orchestrator.base.errors import UserError
from orchestrator.base.keys import digest, stage_key
from orchestrator.base.versions import VERSIONS
from orchestrator.spec.models import Arm
from orchestrator.stages.context import Context, Done, link
from orchestrator.store.artifacts import Artifact
from orchestrator.store.events import ArtifactDamaged, ShardWritten

_SHEET = "sheet.json"
_MIN_PHOTOS = 20  # of a class, before its rate is compared
_TELLING = 0.05  # difference of two rates that a person should look at
_CHANCE = 0.01
_MAX_DONORS = 2
_METADATA = ["sample_id", "face_confidence", "n_faces", "mask_area", "outcome"]


def prepare(context: Context) -> Done:
    """Turn photos into shards of crops, one set per distinct `prep`; then into one array that trials map.

    Files that an earlier run made are hashed here, once: trials map them as they are.
    """
    photos = context.require_catalog().result["photos"]
    made: dict[str, Artifact] = {}
    rows: dict[str, Artifact] = {}
    variants: dict[str, list[str]] = defaultdict(list)
    n_prepared = n_copied = 0
    cached = True
    for name, arm in context.experiment.arms.items():
        key = context.keys.prepare(arm, photos)
        if key not in made:
            found = _intact(context, "prepare", key)
            if found is None:
                found, fresh, counts = _prepare_one(context, key, arm)
                cached = cached and not fresh
                n_prepared, n_copied = n_prepared + counts[0], n_copied + counts[1]
                key = found.key
            made[key] = found
        variants[key].append(name)
        context.prepared[name] = made[key]
        _require_enough(context, arm, made[key])
    for name, artifact in context.prepared.items():
        if artifact.key not in rows:
            rows[artifact.key] = _rows(context, artifact)
            for kept in context.store.all("features"):
                if kept.manifest["inputs"].get("photos") == artifact.key:
                    _intact(context, "features", kept.key)
        context.rows[name] = rows[artifact.key]
    sets = [_describe(context, artifact, variants[key]) for key, artifact in made.items()]
    write_json(context.paths.prep, {"sets": sets})
    lost = {sample for artifact in made.values() for sample in artifact.result["quarantined"]}
    note = f"{n_prepared} prepared, {n_copied} copied" if not cached else ""
    if lost:
        note += f", {len(lost)} quarantined"
    n_warnings = sum(len(one["warnings"]) for one in sets)
    if n_warnings:
        note += f", {n_warnings} warning(s), see the report"
    return Done("CACHED" if cached else "SUCCEEDED", note.removeprefix(", "))


def _intact(context: Context, kind: str, key: str) -> Artifact | None:
    """Return an artifact whose files are what its manifest says; one with a changed file is removed and made again."""
    if (artifact := context.store.find(kind, key)) is None:
        return None
    try:
        for name in artifact.manifest["files"]:
            artifact.file(name)
    except UserError as error:
        context.reporter.say(f"  {escape(str(error).split(';', maxsplit=1)[0])}; it is made again")
        context.ledger.append(ArtifactDamaged(kind=kind, key=key, reason=str(error)), commit=True)
        shutil.rmtree(artifact.path)
        return None
    return artifact


def _require_enough(context: Context, arm: Arm, prepared: Artifact) -> None:
    """Stop where so many photos are lost that what is left is another data set."""
    facts = context.require_catalog().result
    lost = facts["quarantined"] | prepared.result["quarantined"]
    if len(lost) > arm.prep.max_lost * facts["n_photos"]:
        causes = Counter(lost.values()).most_common(3)
        raise UserError(
            f"prep.max_lost: at most {arm.prep.max_lost:.0%} of the photos may be lost, "
            f"{len(lost) / facts['n_photos']:.0%} are ({len(lost)} of {facts['n_photos']}: "
            f"{', '.join(f'{cause} ({n})' for cause, n in causes)}); mend them, choose another step or policy, "
            "or raise prep.max_lost"
        )


def _prepare_one(context: Context, key: str, arm: Arm) -> tuple[Artifact, bool, tuple[int, int]]:
    """Make one set of shards, alone among all runs of this store that prepare by the same steps.

    Returns:
        The set, whether it is new, and how many photos were prepared and copied. A set that lacks photos by chance has
        a key of its own, which `context.keys` gives from now on.
    """
    steps = steps_identity(arm.prep)
    with (
        context.turn("prepare", digest(steps), "prepares by the same steps"),
        _enough_room(context.store.root),
    ):
        if (found := context.store.find("prepare", key)) is not None:
            return found, True, (0, 0)  # another run made it while this one waited
        wanted = _shard_rows(context)
        keys = {number: _shard_key(steps, rows) for number, rows in wanted.items()}
        counts, seconds = _make_shards(context, key, arm, wanted, keys)
        lost = sorted(
            sample
            for one in keys.values()
            for sample in context.store.get("shard", one).result.get("by_chance", [])
        )
        if lost:
            context.reporter.say(
                f"  [yellow]{len(lost)} photo(s) took too long, ended their worker or could not be read: "
                f"{escape(some(lost))}; a run that begins later tries them again[/]"
            )
            own = context.keys.without(key, lost)
            shutil.rmtree(context.store.work_dir("prepare", key), ignore_errors=True)
            if (found := _intact(context, "prepare", own)) is not None:
                return found, any(counts), counts
        _link_shards(context, own if lost else key, arm, wanted, keys, counts, seconds, key)
    return context.store.get("prepare", own if lost else key), True, counts


@contextmanager
def _enough_room(folder: Path) -> Iterator[None]:
    """Turn "no space left" into a sentence that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free_mb = shutil.disk_usage(folder).free / 1e6
        raise UserError(
            f"{folder}: room for another shard was required, the disk is full ({free_mb:.1f} MB free); "
            "free some space and submit again, finished shards are kept"
        ) from None


def _make_shards(
    context: Context,
    key: str,
    arm: Arm,
    wanted: dict[int, list[tuple[str, str, str]]],
    keys: dict[int, str],
) -> tuple[tuple[int, int], dict[str, float]]:
    from data_prep.preparation.pool import ShardTask, prepare_shards  # noqa: PLC0415
    from data_prep.preparation.shards import shard_name  # noqa: PLC0415

    steps, share = steps_identity(arm.prep), context.experiment.spec.resources.per_prep_worker
    donors, tasks = _donors(context, steps), []
    for number, rows in wanted.items():
        found = _intact(context, "shard", keys[number])
        if found is not None and _settled(context, found):
            continue
        given = [
            path for n, folder in donors if (path := folder / shard_name(number % n)).is_file()
        ]
        tasks.append(
            ShardTask(number, rows, [*given, *([found.path / "shard.parquet"] if found else [])])
        )
    n_prepared = n_copied = 0
    lost: list[str] = []
    seconds: dict[str, float] = defaultdict(float)
    with context.reporter.task("prepare", sum(len(task.rows) for task in tasks)) as advance:

        def tell(done: int) -> None:
            advance(done, f"{len(lost)} quarantined" if lost else "")

        for result in prepare_shards(
            tasks,
            arm.prep,
            context.store.work_dir("prepare", key),
            cpus=share.cpu,
            gpus=share.gpu,
            timeout_s=share.timeout_s,
            progress=tell,
            say=lambda text: context.reporter.say(f"  [yellow]{escape(text)}[/]"),
        ):
            number = result.task.number
            facts = {"n_prepared": result.n_prepared, "n_copied": result.n_copied}
            shutil.rmtree(
                context.store.root / "shard" / keys[number], ignore_errors=True
            )  # one that is tried again
            with context.store.draft(
                "shard", keys[number], params={"steps": steps}, inputs={}
            ) as draft:
                shutil.move(result.path, draft.path / "shard.parquet")
                shutil.move(result.sheet, draft.path / _SHEET)
                draft.result |= facts | {
                    "n_rows": len(result.task.rows),
                    "quarantined": dict(result.quarantined),
                    "by_chance": result.by_chance,
                    "timeout_s": share.timeout_s,
                    "seconds": result.seconds,
                }
            context.ledger.append(
                ShardWritten(number=number, key=keys[number], **facts), commit=True
            )
            n_prepared, n_copied = n_prepared + result.n_prepared, n_copied + result.n_copied
            lost += [sample for sample, _ in result.quarantined]
            for name, value in result.seconds.items():
                seconds[name] += value
    return (n_prepared, n_copied), seconds


def _settled(context: Context, shard: Artifact) -> bool:
    """Return whether a shard is taken as it is: photos that were lost by chance are tried again by later runs.

    A run that was begun before the shard was made has had its turn, unless it now gives photos more time.
    """
    if not shard.result.get("by_chance"):
        return True
    share = context.experiment.spec.resources.per_prep_worker
    return bool(
        shard.manifest["finished"] >= context.began and share.timeout_s <= shard.result["timeout_s"]
    )


def _link_shards(
    context: Context,
    key: str,
    arm: Arm,
    wanted: dict[int, list[tuple[str, str, str]]],
    keys: dict[int, str],
    counts: tuple[int, int],
    seconds: dict[str, float],
    whole: str,
) -> None:
    from data_prep.preparation.assembly import SHEET_SUFFIX  # noqa: PLC0415
    from data_prep.preparation.shards import n_shards_for, shard_name, write_index  # noqa: PLC0415

    steps = steps_identity(arm.prep)
    inputs = (
        {} if key == whole else {"whole": whole}
    )  # the set that this one is without photos lost by chance
    with context.store.draft("prepare", key, params={"steps": steps}, inputs=inputs) as draft:
        quarantined: dict[str, str] = {}
        for number in sorted(wanted):
            shard = context.store.get("shard", keys[number])
            link(shard.file("shard.parquet"), draft.path / shard_name(number))
            link(shard.file(_SHEET), draft.path / (shard_name(number) + SHEET_SUFFIX))
            quarantined |= shard.result["quarantined"]
        write_index(
            draft.path,
            n_shards=n_shards_for(sum(map(len, wanted.values()))),
            steps=steps,
            size=arm.prep.size,
        )
        draft.result |= {
            "n_shards": len(wanted),
            "quarantined": quarantined,
            "n_prepared": counts[0],
            "n_copied": counts[1],
            "seconds": seconds,
        }


def _shard_rows(context: Context) -> dict[int, list[tuple[str, str, str]]]:
    """Deal the usable photos (sample_id, path, sha256) to shards by their ids."""
    from data_prep.catalog.builder import photo_path  # noqa: PLC0415
    from data_prep.preparation.shards import n_shards_for, shard_of  # noqa: PLC0415

    data, base = context.experiment.spec.data, context.experiment.base
    table = context.catalog_table()
    table = table.filter(pc.equal(table["status"], "ok"))
    n_shards = n_shards_for(len(table))
    rows: dict[int, list[tuple[str, str, str]]] = {number: [] for number in range(n_shards)}
    for sample, sha256 in zip(
        table["sample_id"].to_pylist(), table["sha256"].to_pylist(), strict=True
    ):
        rows[shard_of(sample, n_shards)].append(
            (sample, str(photo_path(data, base, sample)), sha256)
        )
    return {number: sorted(found) for number, found in rows.items() if found}


def _shard_key(steps: Any, rows: list[tuple[str, str, str]]) -> str:
    return stage_key(
        "shard",
        VERSIONS["shard"],
        steps,
        {"rows": digest([[sample, sha] for sample, _, sha in rows])},
    )


def _donors(context: Context, steps: Any) -> list[tuple[int, Path]]:
    """Return earlier preparations by the same steps, newest first: their numbers of shards are powers of two."""
    from data_prep.preparation.shards import ShardError, read_index  # noqa: PLC0415

    found: list[tuple[int, Path]] = []
    for artifact in context.store.all("prepare"):
        if artifact.manifest["params"]["steps"] == steps and len(found) < _MAX_DONORS:
            with suppress(ShardError):  # a broken donor is only a lost shortcut
                found.append((read_index(artifact.path).n_shards, artifact.path))
    return found


def _rows(context: Context, prepared: Artifact) -> Artifact:
    """Decode the shards once into a memory-mapped array that all trials share."""
    from data_prep.preparation.shards import memory_map  # noqa: PLC0415

    key = context.keys.rows(prepared.key)
    if (found := _intact(context, "rows", key)) is not None:
        return found
    with (
        _enough_room(context.store.root),
        context.store.draft("rows", key, params={}, inputs={"prepare": prepared.key}) as draft,
    ):
        memory_map(prepared.path, draft.path)
    return context.store.get("rows", key)


def _describe(context: Context, artifact: Artifact, variants: list[str]) -> dict[str, Any]:
    """Return what prep.json says of one set of shards: counts, rates per class, warnings, the contact sheet."""
    from data_prep.preparation import contact_sheet as sheet  # noqa: PLC0415
    from data_prep.preparation.assembly import SHEET_SUFFIX, read_sheet  # noqa: PLC0415
    from data_prep.preparation.shards import read_shard  # noqa: PLC0415

    files = sorted(artifact.path.glob("shard-*.parquet"))
    table = pa.concat_tables([read_shard(path, _METADATA) for path in files]) if files else None
    seen = table.to_pylist() if table is not None else []
    rates = _rates(context, seen)
    films = [
        film for path in files for film in read_sheet(path.with_name(path.name + SHEET_SUFFIX))
    ]
    n_prepared = artifact.result["n_prepared"]
    return {
        "variants": variants,
        "steps": artifact.manifest["params"]["steps"],
        "counts": {
            "photos": len(seen),
            "quarantined": len(artifact.result["quarantined"]),
            **{name: sum(fails(row) for row in seen) for name, fails in _FAILURES.items()},
        },
        "seconds": {
            name: round(value / n_prepared, 4)
            for name, value in artifact.result["seconds"].items()
            if n_prepared
        },
        "rates": rates,
        "warnings": _warnings(rates),
        "sheet": sheet.to_json(sheet.keep(films, sheet.PER_REPORT)),
    }


def _no_face(row: dict[str, Any]) -> bool:
    return row["face_confidence"] is not None and row["face_confidence"] <= 0


def _no_person(row: dict[str, Any]) -> bool:
    return row["mask_area"] is not None and row["mask_area"] <= 0


def _several_faces(row: dict[str, Any]) -> bool:
    return (row["n_faces"] or 0) > 1


_FAILURES = {"no face": _no_face, "empty mask": _no_person, "several faces": _several_faces}


def _rates(context: Context, seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how often each thing went wrong in each class of each label, where it did at all."""
    catalog = context.catalog_table().select(
        ["sample_id", *(f"label_{name}" for name in context.schema.classes)]
    )
    labels = {row["sample_id"]: row for row in catalog.to_pylist()}
    found = []
    for failure, fails in _FAILURES.items():
        failed = {row["sample_id"] for row in seen if fails(row)}
        if not failed:
            continue
        for label, names in context.schema.classes.items():
            classes = []
            for code, name in enumerate(names):
                own = [
                    row["sample_id"]
                    for row in seen
                    if labels[row["sample_id"]][f"label_{label}"] == code
                ]
                classes.append(
                    {"class": name, "n": len(own), "failed": len(failed.intersection(own))}
                )
            found.append({"failure": failure, "label": label, "classes": classes})
    return found


def _warnings(rates: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for every failure that hits the classes of a label unequally: a network can learn from it."""
    from scipy.stats import chi2_contingency  # noqa: PLC0415

    found = []
    for rate in rates:
        classes = [one for one in rate["classes"] if one["n"] >= _MIN_PHOTOS]
        if len(classes) < 2 or not any(one["failed"] for one in classes):
            continue
        worst = max(classes, key=lambda one: one["failed"] / one["n"])
        best = min(classes, key=lambda one: one["failed"] / one["n"])
        high, low = worst["failed"] / worst["n"], best["failed"] / best["n"]
        chance = (
            chi2_contingency([[one["failed"], one["n"] - one["failed"]] for one in classes])[1]
            if high < 1 or low < 1
            else 1.0
        )
        if high - low >= _TELLING and chance < _CHANCE:
            found.append(
                f"{rate['failure']}: {high:.0%} of {rate['label']} {worst['class']} ({worst['failed']} of {worst['n']}), "
                f"{low:.0%} of {best['class']} ({best['failed']} of {best['n']}). This preparation is biased: a network "
                f"can tell {rate['label']} by how the crop failed, and worse crops lower the score of "
                f"{worst['class']}; look at the contact sheet, try another detector, model or on_missing"
            )
    return found
