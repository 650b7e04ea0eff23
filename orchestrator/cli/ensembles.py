"""Commands that use the ensemble of a run."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.command_group import echo, main
from orchestrator.cli.options import ALLOW_CODE, RUN, STORE, find_run, open_store


@main.command()
@click.argument("run", metavar="RUN|BUNDLE")
@click.argument("photos", type=click.Path(path_type=Path, exists=True, allow_dash=True))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="CSV to write: ImageID, ans."
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="Also write names, confidence, votes, and the probability of every class.",
)
@click.option(
    "--fill",
    type=click.Choice(["empty", "majority"]),
    default="empty",
    show_default=True,
    help="The answer of photos that cannot be read.",
)
@click.option(
    "--folders-are-groups",
    "by_folder",
    is_flag=True,
    help="The photos of a folder are one group, over which vote.group_mean averages.",
)
@ALLOW_CODE
@STORE
def predict(
    run: str,
    photos: Path,
    out: Path,
    store: str | Path | None,
    *,
    probabilities: bool,
    fill: str,
    by_folder: bool,
    allow_code: bool,
) -> None:
    """Classify PHOTOS with the ensemble of a run or of a bundle.

    PHOTOS is a folder, one photo, a text file with a path per line, or - for such lines from
    standard input.

    A bundle is the folder or zip that `bundle` writes; it needs no store, and each of its files is
    checked before use. The photos get the preparation that the members were trained with.
    """
    from data_prep.catalog.label_schema import Schema  # noqa: PLC0415
    from orchestrator.ensemble import bundle  # noqa: PLC0415
    from orchestrator.ensemble import members as ensemble  # noqa: PLC0415
    from orchestrator.ensemble.predict import predict_photos  # noqa: PLC0415

    how = {
        "with_probabilities": probabilities,
        "fill": fill == "majority",
        "by_folder": by_folder,
    }
    if bundle.is_bundle(Path(run)):
        with bundle.open_bundle(Path(run)) as members:
            members.allow_code(allowed=allow_code)
            counts = predict_photos(members, photos, out, **how)
    else:
        members = ensemble.of_run(find_run(store, run, has="selection"), open_store(store))
        members.allow_code(allowed=allow_code)
        counts = predict_photos(members, photos, out, **how)
    schema = Schema(dict(members.classes))
    names = [f"{code} {schema.class_name(code)}" for code in range(schema.n_classes)]
    echo(f"ans: {', '.join(names)}", err=True)
    filled = ""
    if counts["quarantined"]:
        filled = ", without an answer (--fill majority gives them one)"
        if fill == "majority":
            filled = ", answered with the majority class"
    echo(
        f"wrote {out}: {counts['answered']} photos answered, {counts['quarantined']} quarantined"
        f"{filled}",
        err=True,
    )


@main.command()
@RUN
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="New folder, or new file ending in .zip.",
)
@click.option(
    "--onnx",
    "with_onnx",
    is_flag=True,
    help="Add the members as ONNX, and a script that answers with onnxruntime alone.",
)
@ALLOW_CODE
@STORE
def bundle(
    run: str, out: Path, store: str | Path | None, *, with_onnx: bool, allow_code: bool
) -> None:
    """Write a run's ensemble as one folder or zip, for `predict` on any machine."""
    from orchestrator.ensemble.bundle import write_bundle  # noqa: PLC0415

    paths = find_run(store, run, has="selection")
    facts = write_bundle(paths, open_store(store), out, with_onnx=with_onnx, allow_code=allow_code)
    echo(
        f"wrote {out}: {facts['n_members']} members, {facts['n_checkpoints']} checkpoints, "
        f"{facts['size_bytes'] / 1e6:.1f} MB; sha256 of its manifest {facts['manifest_sha256']}",
        err=True,
    )
