"""A run, finished or live, as frames and objects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import pyarrow as pa
from markupsafe import Markup

from data_prep.catalog.label_schema import Schema
from orchestrator.api.html import View
from orchestrator.api.report_pictures import Plots, draw_section
from orchestrator.base.console import Reporter
from orchestrator.base.errors import UserError
from orchestrator.report.command_text.plans_and_runs import status_lines
from orchestrator.report.command_text.result_tables import ensemble_lines
from orchestrator.report.command_text.run_status import status_view
from orchestrator.report.load import Run, load
from orchestrator.search.trial_tables import curves_table, trials_table
from orchestrator.store import tables
from orchestrator.store.ledger import read, replay
from orchestrator.store.run_dir import RunPaths, find_run, state_of
from orchestrator.store.run_files.certificate import Certificate
from orchestrator.store.run_files.hypotheses import Hypothesis
from orchestrator.store.run_files.selection import Selection
from orchestrator.store.store_address import default_place, open_store, open_to_read

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image

    Photo = str | Path | Image.Image | np.ndarray[Any, Any]


T = TypeVar("T")


def open_run(name: str | Path = "latest", *, store: str | Path | None = None) -> OpenRun:
    """Open a run of a store.

    Args:
        name: an id, a unique prefix of one, `latest`, or the path of a run's folder.
        store: the folder of the store or the URL of a bucket; $ORCHESTRATOR_STORE or ./runs-store by default.

    Raises:
        UserError: there is no such run.
    """
    folder = Path(name)
    if (folder / "events.jsonl").is_file() or (folder / "selection.json").is_file():
        return OpenRun(RunPaths(folder.resolve()))
    opened = open_to_read(default_place() if store is None else store)
    return OpenRun(find_run(opened.root.resolve(), str(name)))


class OpenRun:
    """A run. Every attribute reads the run's files when it is asked for, so a live run is current.

    Tables are pandas frames with the columns of the run's files.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.plot = Plots(self._load)

    @property
    def run_id(self) -> str:
        """Return the id."""
        return self.paths.run_id

    @property
    def state(self) -> str:
        """Return RUNNING, SUCCEEDED, FAILED, CANCELLED or INTERRUPTED."""
        return str(state_of(self.paths)["state"])

    @property
    def trials(self) -> pd.DataFrame:
        """Return a row per trial that has ended, as in trials.parquet; from the ledger while it grows."""
        if self.paths.trials.is_file() and self.state != "RUNNING":
            return _frame(tables.read(self.paths.trials))
        schema = self._load().schema
        labels = schema.names if schema else ()
        return _frame(trials_table(replay(read(self.paths.events)), labels))

    @property
    def curves(self) -> pd.DataFrame:
        """Return a row per trial and epoch, as in curves.parquet; from the ledger while it grows."""
        if self.paths.curves.is_file() and self.state != "RUNNING":
            return _frame(tables.read(self.paths.curves))
        return _frame(curves_table(replay(read(self.paths.events))))

    @property
    def predictions(self) -> pd.DataFrame:
        """Return the predictions of every training, as in predictions.parquet."""
        return self._table("predictions")

    @property
    def catalog(self) -> pd.DataFrame:
        """Return a row per photo, as in catalog.parquet."""
        return self._table("catalog")

    @property
    def folds(self) -> pd.DataFrame:
        """Return role and folds of every photo, as in folds.parquet."""
        return self._table("folds")

    @property
    def votes(self) -> pd.DataFrame:
        """Return the vote on every test photo, as in votes.parquet."""
        return self._table("votes")

    def _table(self, name: str) -> pd.DataFrame:
        path: Path = getattr(self.paths, name)
        if not path.is_file():
            raise UserError(
                f"run {self.run_id}: {path.name} was required, found none; the run is {self.state}"
            )
        return _frame(tables.read(path))

    @property
    def selection(self) -> Drawn[Selection]:
        """Return the members, the candidates and their scores."""
        run = self._load()
        lines = ensemble_lines(self.paths.root) if run.has_selection else ["no selection yet"]
        return Drawn(run.selection, draw_section(run, "selection", "\n".join(lines)))

    @property
    def certificate(self) -> Drawn[Certificate]:
        """Return what the run promises of its ensemble.

        Raises:
            UserError: the run has none yet.
        """
        run = self._load()
        if run.certificate is None:
            raise UserError(
                f"run {self.run_id}: certificate.json was required, found none; "
                f"the run is {self.state}"
            )
        return Drawn(run.certificate, draw_section(run, "certificate", run.certificate.statement))

    @property
    def hypotheses(self) -> Drawn[tuple[Hypothesis, ...]]:
        """Return the verdicts on the claims of the spec."""
        run = self._load()
        verdicts = run.hypotheses or ()
        text = "\n".join(f"{row.claim}: {row.verdict}" for row in verdicts)
        view = draw_section(run, "hypotheses", text or "no verdicts")
        return Drawn(verdicts, view)

    def predict(
        self,
        images: Photo | Iterable[Photo],
        *,
        groups: Sequence[str] | None = None,
        allow_code: bool = False,
    ) -> pd.DataFrame:
        """Classify photos with the run's ensemble, prepared as for training.

        Args:
            images: one or several photos; each a path, a Pillow image, or an array (H, W, 3) uint8.
                A path may also name a folder.
            groups: of the photos, one each, over which `vote.group_mean` of the spec averages; None:
                each photo is answered alone.
            allow_code: let the code run that the models need.

        Returns:
            The columns of `predict --probabilities`; ImageID is the path, or the place from 0.

        Raises:
            UserError: the run has no ensemble, no photo can be read, or groups do not fit.
        """
        from orchestrator.ensemble import predict as answering  # noqa: PLC0415
        from orchestrator.ensemble.members import of_run  # noqa: PLC0415

        ensemble = of_run(self.paths, open_store(self.paths.store))
        ensemble.allow_code(allowed=allow_code)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predict-")))
            photos = _named(images, folder)
            if groups is not None and not ensemble.group_mean:
                raise UserError(
                    "groups: an ensemble of a spec with vote.group_mean was required, this one "
                    "answers each photo alone; leave them out"
                )
            if groups is not None and len(groups) != len(photos):
                raise UserError(
                    f"groups: one of each of the {len(photos)} photos was required, found "
                    f"{len(groups)}"
                )
            answers = answering.answer_fully(ensemble, photos, Reporter(quiet=True), groups)
        return _frame(answering.answer_table(answers, Schema(dict(ensemble.classes))))

    def compare(self, other: OpenRun | str | Path) -> Comparison:
        """Compare this run's ensemble with another one's on the test photos that both answered.

        It is a look at the test labels, and is counted as one.

        Args:
            other: an opened run, or a name of a run in the same store.
        """
        from orchestrator.ensemble.run_comparison import compare_lines, compare_runs  # noqa: PLC0415

        second = other if isinstance(other, OpenRun) else open_run(other, store=self.paths.store)
        facts = compare_runs(self.paths, second.paths)
        return Comparison(facts, compare_lines(facts))

    def _load(self) -> Run:
        return load(self.paths.root)

    def __repr__(self) -> str:
        return "\n".join(status_lines(status_view(self.paths.root)))

    def _repr_html_(self) -> str:
        run = self._load()
        title = Markup("<h3>{} <span class='badge {}'>{}</span></h3>").format(
            self.run_id, self.state.lower(), self.state
        )
        if not run.has_selection:
            return View(
                self.run_id, title + Markup("<pre>{}</pre>").format(repr(self))
            )._repr_html_()
        body = title + draw_section(run, "result").body
        return View(self.run_id, body)._repr_html_()


class Drawn(Generic[T]):
    """A record of a run that a notebook draws as the report does; its attributes are the record's."""

    def __init__(self, record: T, view: View) -> None:
        self.record = record
        self.view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self.record, name)

    def __iter__(self) -> Any:
        return iter(cast("Iterable[Any]", self.record))

    def __len__(self) -> int:
        return len(cast("tuple[Any, ...]", self.record))

    def __getitem__(self, place: int) -> Any:
        return cast("tuple[Any, ...]", self.record)[place]

    def _repr_html_(self) -> str:
        return self.view._repr_html_()

    def __repr__(self) -> str:
        return repr(self.view)


class Comparison:
    """Two ensembles beside each other."""

    def __init__(self, facts: dict[str, Any], lines: list[str]) -> None:
        self.facts = facts
        self.lines = lines

    def _repr_html_(self) -> str:
        body = Markup("<pre>{}</pre>").format("\n".join(self.lines))
        return View("Comparison", body)._repr_html_()

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as a frame; whole numbers that may be missing stay whole."""
    import pandas as pd  # noqa: PLC0415 - half a second

    def whole(kind: pa.DataType) -> Any:
        return pd.Int64Dtype() if pa.types.is_int64(kind) else None

    return table.to_pandas(types_mapper=whole)


def _named(images: Any, folder: Path) -> list[tuple[str, Path]]:
    """Return id and path of every photo; those that are no files are written into a folder."""
    from orchestrator.ensemble.predict import find_photos  # noqa: PLC0415

    if isinstance(images, str | Path):
        return find_photos(Path(images))
    is_single = hasattr(images, "save") or getattr(images, "ndim", 0) == 3
    photos: list[tuple[str, Path]] = []
    for place, image in enumerate([images] if is_single else images):
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                raise UserError(f"photo {place}: a file was required, found none at {image}")
            photos.append((str(image), Path(image)))
        else:
            photos.append((str(place), _written(image, folder / f"{place}.png")))
    if not photos:
        raise UserError("photos were required, found none")
    return photos


def _written(image: Any, path: Path) -> Path:
    """Write a picture without loss and return its path."""
    from PIL import Image  # noqa: PLC0415

    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.convert("RGB").save(path)
    return path
