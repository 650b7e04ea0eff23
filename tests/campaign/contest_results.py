"""RESULTS.md of the contest's tables, out of the files of their runs."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from orchestrator.ensemble.run_comparison import compare_runs
from orchestrator.evaluation.hypotheses import needs_text
from orchestrator.evaluation.metrics import macro_f1
from orchestrator.planning.cost import gpu_hours
from orchestrator.planning.plan import n_trials
from orchestrator.spec.load import read as read_spec
from orchestrator.store import tables
from orchestrator.store.event_types import StageEnded, TrialEnded, TrialStarted
from orchestrator.store.ledger import read
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.certificate import Certificate
from orchestrator.store.run_files.hypotheses import Hypothesis
from orchestrator.store.run_files.selection import Selection
from tests.campaign import contest

_LEVEL = 0.90
_HEAD = """# The contest's tables, run again

Written by `make contest` from the runs that it made. `make contest ONLY=losses` runs the spec
`experiments/contest/losses.yaml` alone, with its profile small, and writes this file anew: a table that did
not run in this store says so, and comes back when it has run. The data are built first, by the
lines at the top of `experiments/contest/small.toml`; weights are fetched.

Profile small: real portraits with drawn masks (555 people, 3,885 photos to train on; 97 people, 679
photos for the test), photos of 96 px, tf_efficientnet_lite0, most heads on frozen features. What it
changes in the team's settings stands in `small.toml`, what the team published in
`published.toml`, both in `experiments/contest`. Published differences are of the team's validation, ours
of people that no training of the answer saw. `preparation` has 203 of these people, because rembg
is slow; in `search` 55 of the 555 choose the settings, and 500 judge them.

A, B and C are the team's heads: one layer of 18 classes, a layer for each of mask, gender and
age, and a deep head for each; A+C is both in one network. Differences are of macro F1 over 18
classes, out of fold, with 90 % intervals that hold the luck of training and of people, who are the
groups. `undecided` is no answer: below the table stands what would decide, and which difference a
test with as many seeds sees in 80 % of cases. `sign` compares with the published difference
of macro F1, with the claim where only a choice was published, and for `within` says whether our
difference is that small. A claim stands as it was asked, also where what was published speaks against it.
"""


_GAP = """\
Table `splits`: single checkpoints of model A. `validation` is the score of the best epoch on the part that chose
it, as the team reported it; `held out` is on a fold that the training never saw. Gaps are means
over seeds with 90 % intervals by Student's t, so they hold the luck of training and of the folds;
the test people are the same for all.
"""
_ENSEMBLES = """\
Table `ensembles`. Each policy chooses of the same six models, for {n_draws} sets of seeds (2 seeds x 3 folds a set).
Half of the test people are public: `leaderboard` chooses by them. Scores are of the vote on the other, private half, macro F1 where nothing else is
said. Intervals by Student's t over the sets of seeds; the test people are the same for all sets,
so their luck is not in them.
"""
_COST = """\
Cached is what an earlier table had left in the store: with an empty store a table alone takes longer.
Wall times of two cores; those of the headline are beside other work, and without its 50 trainings
that a study had left.
"""
_PUBLISHED_ENSEMBLES = """\
Published (test, accuracy / macro F1): leaderboard .8126/.7596, robust .8261/.7868: robust ahead by
+.014 / +.027.
"""


@dataclass(frozen=True)
class Counts:
    """How much of a run was there already."""

    trials: int
    cached_trials: int
    stages: int
    cached_stages: int


@dataclass(frozen=True)
class Mean:
    """A mean over independent repetitions with its interval by Student's t."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def head_of(names: str) -> list[str]:
    """Return the head of a table; in a name ';' stands for a comma."""
    columns = [name.replace(";", ",") for name in names.split(", ")]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of at least two values with its 90 % interval."""
    center = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return Mean(center, center - half, center + half, len(values))


def write_results(store: Path, path: Path) -> str:
    """Write RESULTS.md from the runs of a store; return a line about it."""
    records = contest.read_records(store)
    runs: dict[str, dict[str, RunPaths]] = defaultdict(dict)
    for record in records:
        runs[record.table][record.label] = RunPaths(store / "runs" / record.run_id)
    parts = [
        _HEAD,
        headline_section(runs),
        claims_section(runs),
        gap_section(runs.get("splits", {}).get("")),
        ensembles_section(runs.get("ensembles", {})),
        folds_section(runs.get("folds", {}).get("")),
        cost_section(store),
        full_section(),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")
    n_tables = len(contest.TABLES) + 1  # and the headline
    return f"{path}: {len(runs)} of {n_tables} tables"


# -- the headline -------------------------------------------------------------------------------


def headline_section(runs: Mapping[str, Mapping[str, RunPaths]]) -> str:
    """Return the test score of the robust ensemble beside its members' and model A's."""
    large = headline_table(runs.get(contest.HEADLINE, {}))
    small = headline_table(runs.get("heads", {}))
    lines = [
        "## The headline\n",
        "Settings of experiments/recipes, all weights trained, photos of 160 px, the ensemble's with a wide",
        "face crop; 8 epochs of model A, 8 and 12 of the others:\n",
        *(large or [f"Not run: `make contest ONLY={contest.HEADLINE}` (hours).\n"]),
        "The contest's heads (table `heads`), 4 epochs at 96 px, centre crop:\n",
        *(small or ["Not run: `make contest ONLY=heads`.\n"]),
    ]
    return "\n".join(lines)


def headline_table(runs: Mapping[str, RunPaths]) -> list[str]:
    """Return one table of the headline, no line where a run is missing."""
    if "" not in runs or "A" not in runs:
        return []
    comparison = compare_runs(runs[""], runs["A"])
    vote, plain = (row["macro_f1"] for row in comparison["runs"])
    tested = comparison["differences"]["macro_f1"]
    members = member_scores(runs[""])
    best = max(members, key=lambda name: members[name])
    difference = f"{tested['difference']:+.3f} ({tested['low']:+.3f} to {tested['high']:+.3f})"
    return [
        *head_of("on the test people, macro F1 (90 % interval)"),
        f"| robust ensemble of {len(members)} settings | {_bounds(vote)} |",
        *mean_row(runs),
        f"| its best member, {best} | {members[best]:.3f} |",
        f"| model A alone, plain, centre crop | {_bounds(plain)} |",
        f"| ensemble - model A | {difference} |",
        f"\n{vote['n_samples']} photos of {vote['n_groups']} people, who are resampled. The ensemble is of {_seeds_and_folds(runs[''])},",
        f"model A of {_seeds_and_folds(runs['A'])}; with fewer folds a training sees fewer people. The test score lies {_inside(runs[''])} the interval of what was",
        f"expected of it{_inside_of_mean(runs)}.\n",
    ]


def _seeds_and_folds(run: RunPaths) -> str:
    trials = _confirm_trials(run)
    n_seeds = len({trial.seed for trial in trials})
    return f"{n_seeds} seeds x {len({trial.fold for trial in trials})} folds"


def _inside(run: RunPaths) -> str:
    gap = Certificate.model_validate(run.read_json("certificate")).gap
    return "inside" if gap is not None and gap.test_is_inside_the_interval else "outside"


def _inside_of_mean(runs: Mapping[str, RunPaths]) -> str:
    return f", that with the mean {_inside(runs['mean'])}" if "mean" in runs else ""


def mean_row(runs: Mapping[str, RunPaths]) -> list[str]:
    """Return the score of the ensemble that may know which photos are of one person."""
    if "mean" not in runs:
        return []
    score = compare_runs(runs["mean"], runs[""])["runs"][0]["macro_f1"]
    what = "the same, gender and age by the mean over a person's photos, which the contest did not name"
    return [f"| {what} | {_bounds(score)} |"]


def _bounds(score: Mapping[str, float]) -> str:
    return f"{score['estimate']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def member_scores(run: RunPaths) -> dict[str, float]:
    """Return the macro F1 of each member on the test photos, by its variant."""
    votes = tables.read(run.votes)
    labels = tables.read(run.test_labels)
    truth = dict(zip(labels["sample_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    targets = np.array([truth[sample] for sample in votes["sample_id"].to_pylist()], np.int64)
    selection = Selection.model_validate(run.read_json("selection"))
    variants = {candidate.setting: candidate.variant for candidate in selection.candidates}
    scores = {}
    for setting in selection.members:
        answers = votes[f"pred_{setting}"].to_numpy()
        n_classes = int(max(targets.max(), answers.max())) + 1
        scores[variants[setting]] = macro_f1(targets, answers, n_classes)
    return scores


# -- claims -------------------------------------------------------------------------------------


def claims_section(runs: dict[str, dict[str, RunPaths]]) -> str:
    """Return the table of all claims: published beside ours."""
    lines = [
        "## Claims\n",
        *head_of(
            "table, claim, published (accuracy / macro F1), ours, people; seeds x folds, verdict, sign"
        ),
    ]
    notes = []
    for published in contest.published_claims():
        run = runs.get(published.table, {}).get("")
        row = _judged(run, published.claim)
        cells = [published.table, f"`{published.claim}`", published_text(published)]
        if run is None or row is None:
            cells += ["not run", "", f"`make contest ONLY={published.table}`", ""]
            lines.append(f"| {' | '.join(cells)} |")
            continue
        folds = len({trial.fold for trial in _confirm_trials(run)})
        cells += [
            difference_text(row),
            f"{row.n_groups}, {row.n_seeds} x {folds}",
            row.verdict,
            sign_text(published, row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        note = note_of(published, row)
        if note:
            notes.append(f"- {published.table}, `{published.claim}`: {note}")
    return "\n".join([*lines, "", *notes, ""])


def _judged(run: RunPaths | None, claim: str) -> Hypothesis | None:
    if run is None:
        return None
    for row in run.read_json("hypotheses") or []:
        if row["claim"] == claim:
            return Hypothesis.model_validate(row)
    return None


def published_text(published: contest.Published) -> str:
    """Return what was published, as differences or in words."""
    if published.macro_f1 is None or published.accuracy is None:
        return published.published or "no figures"
    return f"{published.accuracy:+.3f} / {published.macro_f1:+.3f}"


def difference_text(row: Hypothesis) -> str:
    """Return the difference of a claim with its interval."""
    if row.difference is None:
        return "not tested"
    if row.low is None or row.high is None:
        return f"{row.difference:+.3f}"
    return f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


def agrees(published: contest.Published, row: Hypothesis) -> bool | None:
    """Return True if the difference points where the published one does, None where none is."""
    if row.difference is None:
        return None
    if row.margin is not None:
        return abs(row.difference) < row.margin
    return row.difference * published.sign > 0


def sign_text(published: contest.Published, row: Hypothesis) -> str:
    """Return agreement in one word."""
    return {True: "agrees", False: "differs", None: ""}[agrees(published, row)]


def note_of(published: contest.Published, row: Hypothesis) -> str:
    """Return what would decide an undecided claim, and what may explain another sign."""
    texts = []
    if row.verdict == "undecided":
        texts.append(needs_text(row.facts))
        error = row.facts.get("standard_error")
        if error and row.margin is None:
            seen = stats.norm.ppf(0.95) + stats.norm.ppf(0.80)
            texts.append(f"with these seeds a difference of {seen * error:.3f} is seen in 80 %")
    if agrees(published, row) is False and published.why:
        decided = "" if row.verdict != "undecided" else " (undecided as well)"
        texts.append(f"other sign than published{decided}: {published.why}")
    return "; ".join(text for text in texts if text)


# -- the validation gap -------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointScores:
    """Macro F1 of one checkpoint on three sets of photos."""

    variant: str
    seed: int
    validation: float  # of its best epoch, which was chosen by it
    held_out: float  # on the fold that it never saw
    test: float


def gap_section(run: RunPaths | None) -> str:
    """Return how optimistic each rule of splitting is, on people of the test set."""
    lines = ["## The validation gap\n"]
    if run is None:
        return "\n".join([*lines, "Not run: `make contest ONLY=splits`.\n"])
    scores = checkpoint_scores(run)
    lines += [
        _GAP,
        *head_of(
            "rule, validation, held out, test, validation - test, held out - test, seeds x folds"
        ),
    ]
    for variant in dict.fromkeys(row.variant for row in scores):
        rows = [row for row in scores if row.variant == variant]
        seeds = sorted({row.seed for row in rows})
        by_seed = [[row for row in rows if row.seed == seed] for seed in seeds]
        reported = mean_of([_mean(row.validation - row.test for row in few) for few in by_seed])
        held_out = mean_of([_mean(row.held_out - row.test for row in few) for few in by_seed])
        cells = [
            variant,
            f"{_mean(row.validation for row in rows):.3f}",
            f"{_mean(row.held_out for row in rows):.3f}",
            f"{_mean(row.test for row in rows):.3f}",
            str(reported),
            str(held_out),
            f"{len(seeds)} x {len(rows) // len(seeds)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "The team's gap was .10 to .15.\n"])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def checkpoint_scores(run: RunPaths) -> list[CheckpointScores]:
    """Return the scores of every checkpoint of confirm that answered the test photos."""
    predictions = tables.read(run.predictions)
    labels = tables.read(run.test_labels)
    truth = dict(zip(labels["sample_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    best = {}
    for event in read(run.events):
        if isinstance(event, TrialEnded) and event.metrics:
            best[event.trial_id] = event.metrics["val_macro_f1"]
    scores = []
    for trial in _confirm_trials(run):
        rows = predictions.filter(pc.equal(predictions["trial_id"], trial.trial_id))
        values = {}
        for split in ("oof", "test"):
            part = rows.filter(pc.equal(rows["split"], split))
            targets = part["target"].to_pylist()
            if split == "test":
                targets = [truth[sample] for sample in part["sample_id"].to_pylist()]
            answers = part["pred"].to_numpy()
            n_classes = len(part["probs"][0])
            values[split] = macro_f1(np.array(targets, np.int64), answers, n_classes)
        scores.append(
            CheckpointScores(
                trial.variant, trial.seed, best[trial.trial_id], values["oof"], values["test"]
            )
        )
    return scores


def _confirm_trials(run: RunPaths) -> list[TrialStarted]:
    trials = {}
    for event in read(run.events):
        if isinstance(event, TrialStarted) and event.phase == "confirm":
            trials[event.trial_id] = event
    return list(trials.values())


# -- ensembles ----------------------------------------------------------------------------------


def ensembles_section(runs: dict[str, RunPaths]) -> str:
    """Return what each policy's ensemble scores on the private half, and the differences."""
    lines = ["## Ensemble 1 against ensemble 2\n"]
    draws = [k for k in range(contest.N_DRAWS) if all(f"{p}-{k}" in runs for p in contest.POLICIES)]
    if len(draws) < 2:
        return "\n".join([*lines, "Not run: `make contest ONLY=ensembles`.\n"])
    boards = {}
    for draw in draws:
        for policy in contest.POLICIES:
            selection = runs[f"{policy}-{draw}"].read_json("selection")
            boards[policy, draw] = Selection.model_validate(selection).ensemble.board
    lines += [
        _ENSEMBLES.format(n_draws=len(draws)),
        *head_of("policy, public, private, private accuracy, robust - policy; private, accuracy"),
    ]
    for policy in contest.POLICIES:
        votes = [boards[policy, draw][0] for draw in draws]
        robust = [boards["robust", draw][0] for draw in draws]
        f1 = [
            (a.private_macro_f1 or 0) - (b.private_macro_f1 or 0)
            for a, b in zip(robust, votes, strict=True)
        ]
        accuracy = [
            (a.private_accuracy or 0) - (b.private_accuracy or 0)
            for a, b in zip(robust, votes, strict=True)
        ]
        cells = [
            policy,
            f"{_mean(vote.public_macro_f1 or 0 for vote in votes):.3f}",
            f"{_mean(vote.private_macro_f1 or 0 for vote in votes):.3f}",
            f"{_mean(vote.private_accuracy or 0 for vote in votes):.3f}",
            "" if policy == "robust" else str(mean_of(f1)),
            "" if policy == "robust" else str(mean_of(accuracy)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    best = [_best_member(boards["robust", draw]) for draw in draws]
    votes = [boards["robust", draw][0].private_macro_f1 or 0 for draw in draws]
    gain = mean_of([vote - member for vote, member in zip(votes, best, strict=True)])
    lines += [
        "",
        f"The robust vote minus the mean of its members, private macro F1: {gain}.",
        _PUBLISHED_ENSEMBLES,
    ]
    return "\n".join(lines)


def _best_member(board: Sequence[object]) -> float:
    members = [getattr(row, "private_macro_f1", 0.0) or 0.0 for row in board[1:]]
    return float(np.mean(members))


# -- folds, costs -------------------------------------------------------------------------------


def folds_section(run: RunPaths | None) -> str:
    """Return the score out of fold with its interval."""
    lines = ["## k folds\n"]
    if run is None:
        return "\n".join([*lines, "Not run: `make contest ONLY=folds`.\n"])
    certificate = Certificate.model_validate(run.read_json("certificate"))
    score = certificate.estimate.macro_f1
    trials = _confirm_trials(run)
    n_folds = len({trial.fold for trial in trials})
    n_seeds = len({trial.seed for trial in trials})
    interval = f"{score.low or 0:.3f} to {score.high or 0:.3f}"
    lines += [
        f"Table `folds`: model A, {n_folds} folds x {n_seeds} seeds: macro F1 {score.estimate or 0:.3f} ({interval})",
        f"over {score.n_groups} people, each answered by trainings that did not see them. A single",
        "split of 80:20 has a fifth of the people, so an interval about 2.2 times as wide.\n",
    ]
    return "\n".join(lines)


def cost_section(store: Path) -> str:
    """Return what every table took, and its command; a submit with older settings counts too."""
    records = contest.read_all_records(store)
    lines = [
        "## Cost\n",
        _COST,
        *head_of(
            "command, runs, wall s, CPU s, peak MiB of all processes, trainings; cached, stages; cached"
        ),
    ]
    total_s = 0.0
    for table in (*contest.TABLES, contest.HEADLINE):
        few = [record for record in records if record.table == table]
        if not few:
            lines.append(f"| `make contest ONLY={table}` | not run | | | | | |")
            continue
        counts = [cache_counts(RunPaths(store / "runs" / record.run_id)) for record in few]
        wall_s = sum(record.wall_s for record in few)
        total_s += wall_s if table != contest.HEADLINE else 0.0
        cells = [
            f"`make contest ONLY={table}`",
            str(len(few)),
            f"{wall_s:.0f}",
            f"{sum(record.cpu_s for record in few):.0f}",
            f"{max(record.peak_bytes for record in few) / 2**20:.0f}",
            f"{sum(c.trials for c in counts)}, {sum(c.cached_trials for c in counts)}",
            f"{sum(c.stages for c in counts)}, {sum(c.cached_stages for c in counts)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"All together {total_s / 60:.0f} minutes without the headline.\n"]
    return "\n".join(lines)


def full_section() -> str:
    """Return what profile full would cost on a card, as `plan` reckons it."""
    lines = [
        "## Profile full\n",
        "The team's settings on 18,900 photos of 380 px, efficientnet_b4: what `plan` says, from what was",
        "measured on an NVIDIA H200 (`python -m orchestrator plan experiments/contest/TABLE.yaml` with the photos",
        "in place). Frozen backbones take less.\n",
        *head_of("table, trainings, epochs of one, GPU hours at most"),
    ]
    for table in contest.TABLES:
        full = read_spec(contest.FOLDER / f"{table}.yaml", check_roots=False)
        n_trainings = sum(n_trials(full).values())
        sentence = gpu_hours(full, n_trainings, 18_900) or ""
        told = re.search(r"[0-9.]+( to [0-9.]+)?(?= GPU hours)", sentence)
        hours = told.group() if told else "not known"
        if "guessed" in sentence:
            hours += ", guessed from multiply-adds: not all of its backbones were measured"
        epochs = full.spec.train.duration.removesuffix(" epochs")
        lines.append(f"| {table} | {n_trainings} | {epochs} | {hours} |")
    return "\n".join([*lines, ""])


def cache_counts(run: RunPaths) -> Counts:
    """Count the trainings and stages of a run, and those that the store had."""
    trials = {}
    stages = {}
    for event in read(run.events):
        if isinstance(event, TrialEnded):
            trials[event.trial_id] = event.cached
        elif isinstance(event, StageEnded):
            stages[event.stage] = event.outcome == "CACHED"
    for name, was_cached in trials.items():
        phase = "search" if name.startswith("s-") else "confirm"
        trials[name] = was_cached or stages.get(phase, False)
    return Counts(len(trials), sum(trials.values()), len(stages), sum(stages.values()))
