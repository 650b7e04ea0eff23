"""The report stage: certificate and page."""

from __future__ import annotations

from orchestrator.base.errors import UserError
from orchestrator.stages.context import Context, Done


def report(context: Context) -> Done:
    """Predict a few photos again through `predict`, write the certificate and the page.

    Raises:
        UserError: a member's answers through `predict` are not the stored ones. The page is written before.
    """
    from orchestrator.report.page import build  # noqa: PLC0415
    from orchestrator.stages.certificate import certify  # noqa: PLC0415

    made = certify(context)
    page = build(context.paths.root)
    if not made["check"]["equal"]:
        raise UserError(
            f"the answers of `predict` were required to equal the stored ones, found differences: "
            f"{made['check']['why']}; do not use this ensemble, see {page}"
        )
    return Done("SUCCEEDED", str(page))
