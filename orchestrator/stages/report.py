"""The report stage: the files that join several stages, the certificate and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.files import write_json
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

    selection = join_selection(select, vote)
    write_json(env.paths.selection, selection)
    tables.write(pa.concat_tables([confirm.predictions, vote.predictions]), env.paths.predictions)
    certificate = certify(env, catalog, split, prepare, search, confirm, selection)
    page = build(env.paths.root)
    if not certificate["check"]["equal"]:
        raise UserError(
            "the answers of `predict` were required to equal the stored ones, found differences: "
            f"{certificate['check']['why']}; do not use this ensemble, see {page}"
        )
    return Reported(SUCCEEDED, str(page))


def join_selection(select: Selected, vote: Voted) -> dict[str, Any]:
    """Return selection.json: the selection with the scores of its vote on the test set."""
    selection = dict(select.selection)
    selection["ensemble"] = dict(selection["ensemble"]) | dict(vote.scores)
    return selection
