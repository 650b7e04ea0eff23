"""The report stage: the files that join several stages, the certificate and the page."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from data_prep.files import write_json, write_text
from orchestrator.base.errors import UserError
from orchestrator.planning.stage import SUCCEEDED, Env
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.certificate import certify
from orchestrator.stages.confirm import Confirmed
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.select import Selected
from orchestrator.stages.split import Split
from orchestrator.stages.vote import Voted
from orchestrator.store import tables
from orchestrator.store.run_dir import RunPaths


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
