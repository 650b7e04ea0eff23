"""The vote stage: members vote on the test photos."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from data_prep.config import TestTable
from data_prep.files import write_text
from orchestrator.base.json_types import Json
from orchestrator.evaluation.scores_with_intervals import Scores, score_answers, scorer_of
from orchestrator.evaluation.vote import named_submission, submission, vote_table
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.stages import test_set
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.select import Selected
from orchestrator.store import tables
from orchestrator.store.ledger import TrialRecord
from orchestrator.store.run_files.selection import BoardRow


@dataclass(frozen=True)
class Voted:
    """The answers on the test set, and their scores where labels are known."""

    outcome: str
    note: str
    predictions: pa.Table  # rows of predictions.parquet
    test: Scores | None = None  # on the part that all are scored on; None without labels
    public: Scores | None = None
    board: tuple[BoardRow, ...] = ()  # empty where there is no public half
    labels_key: str | None = None  # of looks at the test labels, public ones included

    def scores_to_json(self) -> Json:
        """Return what selection.json says of the ensemble on the test set."""
        facts: Json = {}
        if self.public is not None:
            facts["public"] = self.public.to_json()
        if self.test is not None:
            facts["test"] = self.test.to_json()
        if self.board:
            facts["board"] = [row.to_json() for row in self.board]
        return facts


def _submission(env: Env, votes: pa.Table) -> str:
    """Return the answer in the form that the test section asks for."""
    test = env.experiment.spec.data.test
    if not isinstance(test, TestTable) or test.answer is None:
        return submission(votes)
    id_column = test.id if test.layout == "table" else "ImageID"
    return named_submission(votes, env.schema, id_column, test.answer)


def run(
    env: Env, catalog: Catalog, prepare: Prepared, confirm: Confirmed, select: Selected
) -> Voted:
    """Let the members vote on the test photos. Only here are the private labels opened."""
    spec = env.experiment.spec
    if spec.data.test is None:
        return Voted(SUCCEEDED, "no test set", tables.PREDICTIONS.empty_table())
    trials: list[TrialRecord] = []
    for setting in select.members:
        trials += confirm.checkpoints[setting]
    photos = test_set.read_test_photos(env, catalog, prepare, [t.variant for t in trials])
    readable = [sample for sample, _ in photos.order if sample not in photos.lost]
    predicted = test_set.predict_trials(env, prepare, trials, readable)
    predicted = test_set.average_groups(env, photos, predicted, readable)
    members = test_set.join_members(predicted, readable, select.adjustments)
    votes = vote_table(
        photos.order,
        members,
        quarantined=photos.lost,
        majority=catalog.majority_class,
        rule=spec.vote.rule,
        weights=select.weights,
    )
    tables.write(votes, env.paths.votes)
    write_text(env.paths.submission, _submission(env, votes))
    predictions = test_set.prediction_table(predicted, readable)
    labels = test_set.open_labels(env, catalog, photos, "whole", by="vote")
    if labels is None:
        return Voted(SUCCEEDED, f"{len(votes)} photos, no test labels", predictions)
    tables.write(test_set.label_table(photos, labels), env.paths.test_labels)
    classes = dict(zip(votes["sample_id"].to_pylist(), votes["pred"].to_pylist(), strict=True))

    scorer = scorer_of(spec.parsed_score, env.schema)

    def score(part: str) -> Scores:
        answers = test_set.score_input(env, photos, part, classes, labels)
        scores = score_answers(answers, env.schema, seed=spec.seed, metric=scorer)
        return replace(scores, part=part)

    # by all labels: a run with a public half has looked at those of one without
    answers = test_set.score_input(env, photos, "whole", classes, labels)
    key = test_set.count_look_at_labels(env, [answers])
    test = score(photos.judged)
    bounds = test.headline
    half = "private half: " if photos.public else ""
    note = (
        f"{len(votes)} photos, {half}test {spec.parsed_score.title} {bounds.estimate:.3f} "
        f"({bounds.low:.3f}-{bounds.high:.3f})"
    )
    if not photos.public:
        return Voted(SUCCEEDED, note, predictions, test, labels_key=key)
    board = test_set.leaderboard(env, catalog, photos, members, votes, labels)
    return Voted(SUCCEEDED, note, predictions, test, score("public"), tuple(board), key)
