"""The report stage: the files that join several stages, the certificate and the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_prep.files import write_json, write_text
from data_prep.preparation.shards import Rows, open_rows
from data_prep.preparation.step_films import small_jpeg
from orchestrator.base.errors import UserError
from orchestrator.ensemble.diagnosis import METHOD
from orchestrator.ensemble.gallery import pick_photos
from orchestrator.evaluation.predictions import align
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.certificate import certify
from orchestrator.stages.confirm import Confirmed, held_out_predictions
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.select import Selected, adjusted_arms
from orchestrator.stages.split import Split
from orchestrator.stages.vote import Voted
from orchestrator.store import tables
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.audit import AuditFacts
from orchestrator.store.run_files.duplicate_photos import CopySet, CopySets, Pictured
from orchestrator.store.run_files.records import as_record

_WHERE_COPIES_MATTER = ("train_and_test", "across_groups", "label_conflicts")
_MAX_SETS = 6  # that are shown of a kind
_MAX_PICTURES = 3  # of a set


@dataclass(frozen=True)
class Reported:
    """The report of a run."""

    outcome: str
    note: str


def run(
    env: Env,
    catalog: Catalog,
    split: Split,
    prepare: Prepared,
    search: Searched,
    confirm: Confirmed,
    select: Selected,
    vote: Voted,
) -> Reported:
    """Predict a few photos again through `predict`, write the certificate and the page.

    Raises:
        UserError: a member's answers through `predict` are not the stored ones. The page is
            written before.
    """
    from orchestrator.report.page import build  # noqa: PLC0415

    write_joined(env.paths, confirm, select, vote)
    if env.experiment.spec.report.photos:
        write_copies(env.paths, [artifact.path for artifact in prepare.rows.values()])
    _write_gallery(env, catalog, split, prepare, confirm, select)
    certificate = certify(env, catalog, split, prepare, search, confirm, select, vote)
    page = build(env.paths.root)
    check = certificate.check
    if check is None or not check.equal:
        raise UserError(
            "the answers of `predict` were required to equal the stored ones, found differences: "
            f"{check.why if check else 'no check'}; do not use this ensemble, see {page}"
        )
    return Reported(SUCCEEDED, str(page))


def write_joined(
    paths: RunPaths,
    confirm: Confirmed | None,
    select: Selected | None,
    vote: Voted | None,
) -> None:
    """Write predictions.parquet, selection.json and suspects.csv, from parts of several stages.

    A run that ended before its report has the parts of the stages that succeeded.
    """
    if confirm is not None:
        parts = [confirm.predictions]
        if vote is not None:
            parts.append(vote.predictions)
        tables.write(pa.concat_tables(parts), paths.predictions)
    if select is not None:
        selection = select.to_json()
        if vote is not None:
            selection["ensemble"] |= vote.scores_to_json()
        write_json(paths.selection, selection)
        if diagnosis := select.ensemble.diagnosis:
            write_text(paths.suspects, diagnosis.label_noise.to_csv())


def write_copies(paths: RunPaths, rows: Iterable[Path]) -> None:
    """Write copies.json: the prepared photos of sets that the audit takes for one picture.

    A reader sees at once whether they are copies. There is no file where no set matters.

    Args:
        paths: of the run, with its audit.json.
        rows: folders with prepared photos; a photo is taken from the first that has it.
    """
    facts = as_record(AuditFacts, paths.read_json("audit"))
    sets = []
    for copies, is_near in ((facts.near_duplicates, True), (facts.duplicates, False)):
        for where in _WHERE_COPIES_MATTER:
            examples = copies[where].examples if where in copies else ()
            for names in examples[:_MAX_SETS]:
                sets.append((where, is_near, names[:_MAX_PICTURES]))
    if not sets:
        return
    opened = [open_rows(folder) for folder in dict.fromkeys(rows)]
    written = []
    for where, is_near, names in sets:
        photos = [Pictured(sample_id=name, jpeg=_picture(name, opened)) for name in names]
        written.append(CopySet(where=where, is_near=is_near, photos=tuple(photos)))
    write_json(paths.copies, CopySets(sets=tuple(written)).model_dump())


def _picture(name: str, opened: Sequence[Rows]) -> str:
    """Return a prepared photo as base64 of a JPEG; "" where no preparation has it."""
    for rows in opened:
        place = rows.index.get(name)
        if place is not None:
            return small_jpeg(rows.images[place])
    return ""


def _write_gallery(
    env: Env,
    catalog: Catalog,
    split: Split,
    prepare: Prepared,
    confirm: Confirmed,
    select: Selected,
) -> None:
    """Write gallery.json: prepared photos that are worth a look; none where the spec shows none."""
    env.paths.gallery.unlink(missing_ok=True)
    if not env.experiment.spec.report.photos or not select.members:
        return
    arms = held_out_predictions(env, catalog, split, confirm)
    together = align({setting: arms[setting] for setting in select.members})
    members = adjusted_arms(env, together)
    diagnosis = select.ensemble.diagnosis
    suspects = diagnosis.label_noise.suspects if diagnosis else []
    picked = pick_photos(members, select.weights, select.rule, suspects)
    opened = [open_rows(artifact.path) for artifact in prepare.rows.values()]
    photos = [{**vars(photo), "jpeg": _picture(photo.sample_id, opened)} for photo in picked]
    write_json(env.paths.gallery, {"method": METHOD, "photos": photos})
