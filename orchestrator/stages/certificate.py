"""The certificate of an ensemble: what it is made of, how good it is, and how that is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from data_prep.catalog.photo_groups import GROUP, GroupWords, group_words
from data_prep.files import write_json
from data_prep.prep_config import Prep
from data_prep.preparation.step_identity import steps_identity
from data_prep.section_base import identity
from orchestrator.base.json_types import Json
from orchestrator.base.wording import counted
from orchestrator.cluster.ray_tasks import ray_map
from orchestrator.ensemble.certificate_text import OTHER_RUNS, statement
from orchestrator.ensemble.members import checkpoint
from orchestrator.ensemble.predict import PreparedPhotos, prepare_photos, probabilities
from orchestrator.evaluation import metrics
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.intervals import Estimate, difference_of_scores
from orchestrator.evaluation.predictions import align
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage_keys import run_key
from orchestrator.spec.models import TrialShare
from orchestrator.spec.score import DEFAULT
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed, predictions_by_setting
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.select import CHOSEN_BY, Selected, adjusted_arms
from orchestrator.stages.split import Split
from orchestrator.stages.test_set import read_test_photos
from orchestrator.stages.vote import Voted
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact, git_commit, packages
from orchestrator.store.event_types import LabelsOpened
from orchestrator.store.ledger import TrialRecord
from orchestrator.store.looks import read_looks
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.audit import AuditFacts
from orchestrator.store.run_files.certificate import (
    Certificate,
    CertifiedMember,
    Check,
    Checkpoint,
    DataHashes,
    DataUse,
    Gap,
    GroupScore,
)
from orchestrator.store.run_files.diagnosis import Diagnosed
from orchestrator.store.run_files.records import as_record
from orchestrator.store.store_address import open_store

FORMAT_VERSION = 1
N_WORST_CLASSES = 5
N_WORST_GROUPS = 10
N_CHECKED = 2
"""Photos of each checked checkpoint. The first and the last one of every member are checked."""
N_TASKS = 2
"""Tasks that check one preparation, as many as a laptop runs at once."""
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
"""Largest difference of a probability.

Batches of another size are summed in another order; a GPU also has TF32 and other kernels.
"""

Lineage = dict[str, list[tuple[TrialRecord, Artifact]]]
"""Setting of each member -> its trials and their artifacts."""


def certify(
    env: Env,
    catalog: Catalog,
    split: Split,
    prepare: Prepared,
    search: Searched,
    confirm: Confirmed,
    select: Selected,
    vote: Voted,
) -> Certificate:
    """Check the members against their stored answers, write certificate.json and return it."""
    lineage: Lineage = {}
    for setting in select.members:
        trials = confirm.checkpoints[setting]
        lineage[setting] = [(trial, checkpoint(env.store, trial.key)) for trial in trials]
    of_set = select.to_json()["ensemble"]
    gap = _gap(select, vote)
    words = group_words(env.experiment.spec.data.group_text)
    findings = audit_findings(as_record(AuditFacts, env.paths.read_json("audit")), words)
    facts: Json = {
        "format_version": FORMAT_VERSION,
        "run_id": env.paths.run_id,
        "run_key": run_key(env),
        "code": {"git_commit": git_commit(), "packages": packages()},
        "data": _data(env, catalog, prepare, confirm, select).model_dump(),
        "splits": _splits(split),
        "members": [member.model_dump() for member in _members(env, select, lineage)],
        "vote": _vote_rule(select),
        "policy": select.selection.policy,
        "estimate": {
            "on": "out-of-fold predictions" if env.experiment.spec.confirm else "role val",
            "of": _whom(env, select, confirm, leaking=bool(findings)),
            "people": _people(env),
            **select.ensemble.scores.to_json(),
        },
        "corrected": of_set["corrected"],
        "checkpoints": of_set["checkpoints"],
        "findings": [*findings, *select.findings],
        "gain": of_set["gain"],
        "test": vote.test and vote.test.to_json(),
        "public": vote.public and vote.public.to_json(),
        "gap": gap and gap.model_dump(),
        "race": confirm.race and confirm.race.to_json(),
        **{name: of_set.get(name) for name in Diagnosed.model_fields},
        **_worst(env, catalog, confirm, select),
        "looked_at": [use.model_dump() for use in _data_uses(env, search, confirm, select, vote)],
        "check": check(env, lineage, confirm.split).model_dump(),
    }
    if env.experiment.spec.score != DEFAULT:
        facts["score"] = env.experiment.spec.score
    facts["statement"] = statement(as_record(Certificate, facts), words)
    write_json(env.paths.certificate, facts)
    return as_record(Certificate, facts)


def _vote_rule(select: Selected) -> Json:
    rule: Json = {"rule": select.rule, "tie": voting.TIE_RULE}
    if select.adjusted:
        rule["adjusted"] = select.adjusted.to_json(select.members)
    return rule


def _whom(env: Env, select: Selected, confirm: Confirmed, *, leaking: bool) -> str:
    variants = _member_variants(select, confirm)
    strategies = {env.experiment.arms[variant].data.split.strategy for variant in variants}
    spec = env.experiment.spec
    return whom(
        spec.data.group_text, strategies, confirmed=spec.confirm is not None, leaking=leaking
    )


def _member_variants(select: Selected, confirm: Confirmed) -> set[str]:
    return {confirm.complete_settings[setting] for setting in select.members}


def whom(group: str, strategies: Collection[str], *, confirmed: bool, leaking: bool = False) -> str:
    """Say whose photos an estimate is about.

    It is about new groups only where the split keeps groups apart.

    Args:
        group: the spec's `data.group`.
        strategies: of the members' splits.
        confirmed: whether it rests on out-of-fold predictions.
        leaking: whether the audit found groups or pictures on both sides.
    """
    if not confirmed:
        return "the photos that chose it (role val)"
    many = "subjects" if group == "sample_id" else group_words(group).many
    if group == "sample_id" or "random" in strategies or leaking:
        return f"photos it has never seen, of {many} it may have seen"
    return f"{many} (group: {group}) it has never seen"


def _people(env: Env) -> str:
    """Say which groups had a part in a choice, and which are scored."""
    spec = env.experiment.spec
    words = group_words(spec.data.group_text)
    if spec.confirm is None:
        return ""
    if spec.search is not None:
        strategies = {arm.data.split.strategy for arm in env.experiment.arms.values()}
        left_out = "Photos" if "random" in strategies else words.Many
        return f"{left_out} of role val chose the settings and are not scored."
    if str(spec.select.policy) in CHOSEN_BY:
        return f"The {words.many} that are scored chose the members and nothing else."
    return f"The {words.many} that are scored chose nothing."


def _data(
    env: Env, catalog: Catalog, prepare: Prepared, confirm: Confirmed, select: Selected
) -> DataHashes:
    facts = catalog.artifact.result
    n_test = 0
    n_public = 0
    n_test_lost = 0
    if env.experiment.spec.data.test:
        variants = _member_variants(select, confirm)
        photos = read_test_photos(env, catalog, prepare, variants)
        n_test = len(photos.order)
        n_public = len(photos.public)
        n_test_lost = sum(sample in photos.lost for sample, _ in photos.part(photos.judged))
    return DataHashes(
        catalog_sha256=catalog.content,
        photos_sha256=catalog.photos,
        n_photos=facts["n_ok"],
        n_groups=facts["n_groups"],
        n_test=n_test,
        n_public=n_public,
        n_test_lost=n_test_lost,
        n_quarantined=len(prepare.quarantined.union(catalog.quarantined)),
    )


def _splits(split: Split) -> dict[str, dict[str, str]]:
    splits = {}
    for variant, artifact in sorted(split.artifacts.items()):
        splits[variant] = {"key": artifact.key, "sha256": _sha256(artifact, "folds.parquet")}
    return splits


def _sha256(artifact: Artifact, name: str) -> str:
    return str(artifact.manifest["files"][name]["sha256"])


def _members(env: Env, select: Selected, lineage: Lineage) -> list[CertifiedMember]:
    """Return the members with their settings, and with the origin of each checkpoint."""
    candidates = {candidate.setting: candidate for candidate in select.selection.candidates}
    members = []
    for setting, votes in zip(select.members, select.weights, strict=True):
        first = lineage[setting][0][0]
        _, arm = env.experiment.setting(first.variant, first.params)
        member = CertifiedMember(
            setting=setting,
            variant=first.variant,
            votes=votes,
            settings=identity(arm),
            prep_steps=tuple(steps_identity(arm.prep)),
            n_params=candidates[setting].n_params,
            oof_macro_f1=candidates[setting].oof_macro_f1,
            oof_score=candidates[setting].oof_score,
            checkpoints=tuple(_checkpoint(trial, artifact) for trial, artifact in lineage[setting]),
        )
        members.append(member)
    return members


def _checkpoint(trial: TrialRecord, artifact: Artifact) -> Checkpoint:
    return Checkpoint(
        trial_id=trial.trial_id,
        seed=trial.started.seed,
        fold=trial.started.fold,
        key=artifact.key,
        weights_sha256=_sha256(artifact, "weights.safetensors"),
        git_commit=artifact.manifest["git_commit"],
        host=artifact.manifest["host"],
        best_epoch=artifact.result.get("best_epoch"),
    )


def _gap(select: Selected, vote: Voted) -> Gap | None:
    """Return how far the estimate lies above the test score.

    The interval is that of the difference between what a test set should show and what it showed.
    `test_is_inside_the_interval`: it holds 0, so chance explains the difference.
    """
    if vote.test is None:
        return None
    estimate = select.ensemble.scores.headline
    test = vote.test.headline
    corrected = select.ensemble.corrected
    corrected_minus_test = None
    if corrected is not None and corrected.estimate is not None:
        corrected_minus_test = corrected.estimate - test.estimate
    expected = _expected(select)
    bounds = difference_of_scores(expected, test)
    return Gap(
        estimate_minus_test=estimate.estimate - test.estimate,
        corrected_minus_test=corrected_minus_test,
        expected_minus_test=expected.estimate - test.estimate,
        low=bounds.low,
        high=bounds.high,
        test_is_inside_the_interval=bounds.low <= 0 <= bounds.high,
    )


def _expected(select: Selected) -> Estimate:
    """Return what a test set should show, corrected and with all checkpoints where that is known."""
    ensemble = select.ensemble
    for result in (ensemble.checkpoints, ensemble.corrected):
        if result is None or result.estimate is None:
            continue
        if result.low is not None and result.high is not None:
            return Estimate(result.estimate, result.low, result.high)
    score = ensemble.scores.headline
    return Estimate(score.estimate, score.low, score.high)


def _worst(env: Env, catalog: Catalog, confirm: Confirmed, select: Selected) -> Json:
    """Return the classes and the groups that the vote reads worst, out of fold."""
    predictions = predictions_by_setting(env, catalog, confirm)
    members = align({setting: predictions[setting] for setting in select.members})
    arms = list(adjusted_arms(env, members).values())
    preds = voting.cast(
        [arm.votes for arm in arms],
        [arm.mean_probs for arm in arms],
        select.rule,
        select.weights,
    ).pred
    targets = arms[0].targets
    classes = metrics.class_metrics(targets, preds, env.schema.n_classes)
    worst_classes = sorted(classes, key=lambda row: (row.f1, row.code))
    owners = arms[0].groups or arms[0].sample_ids
    n_photos = Counter(owners)
    n_right: Counter[str] = Counter()
    for owner, is_right in zip(owners, (preds == targets).tolist(), strict=True):
        n_right[owner] += is_right
    groups = []
    for group, n in n_photos.items():
        groups.append(GroupScore(group=group, accuracy=n_right[group] / n, n=n))
    groups.sort(key=lambda row: (row.accuracy, -(row.n or 0), row.group))
    return {
        "classes": [_class_row(env, row) for row in classes],
        "worst_classes": [_class_row(env, row) for row in worst_classes[:N_WORST_CLASSES]],
        "worst_groups": [score.model_dump() for score in groups[:N_WORST_GROUPS]],
    }


def _class_row(env: Env, row: metrics.ClassMetrics) -> dict[str, object]:
    facts = asdict(row)
    return {"class": facts.pop("code"), **facts, "name": env.schema.class_name(row.code)}


def _data_uses(
    env: Env, search: Searched, confirm: Confirmed, select: Selected, vote: Voted
) -> list[DataUse]:
    """Return which data were looked at how often, and what for."""
    uses: list[DataUse] = []

    def add(what: str, times: int, why: str) -> None:
        uses.append(DataUse(what=what, times=times, why=why))

    trials = counted(len(search.trials), "search trial")
    add(
        "role val",
        _n_epochs(search.trials),
        f"scored after every epoch of {trials}; chose epochs and finalists",
    )
    if confirm.trials:
        trials = counted(len(confirm.trials), "confirm trial")
        add(
            "inner parts of the training folds",
            _n_epochs(confirm.trials),
            f"scored after every epoch of {trials}; chose epochs",
        )
        add(
            "held-out folds",
            len(confirm.trials),
            "predicted once by every confirm trial at its end; their labels never reached a "
            "training",
        )
    n_candidates = len(select.selection.candidates)
    candidates = counted(n_candidates, "candidate")
    claims = counted(len(env.experiment.spec.hypotheses), "hypothesis", "hypotheses")
    policy = select.selection.policy
    add(
        "out-of-fold labels" if confirm.trials else "labels of role val",
        n_candidates,
        f"scored {candidates} (policy {policy}) and {claims}",
    )
    if select.adjusted:
        reason = "fitted temperatures and shifts of classes; each photo's by other people's labels"
        add("out-of-fold labels, to adjust answers", n_candidates, reason)
    if race := confirm.race:
        reason = f"raced {counted(race.n_finalists, 'finalist')}; stopped {len(race.stopped)}"
        add("out-of-fold labels, in the race", race.n_looks_taken, reason)
    if peeks := select.peeks:
        reason = f"PEEK: candidates were ranked by {peeks.by}"
        add("public half of the test set", peeks.n_candidates, reason)
    if vote.test:
        part = "" if vote.test.part == "whole" else f"{vote.test.part} "
        n_openings = sum(
            isinstance(event, LabelsOpened) and event.by == "vote" for event in env.ledger.events
        )
        reason = "scored the vote; nothing was chosen by them in this run"
        add(f"{part}test labels", n_openings, reason)
        reason = "each look at a test score makes the next choice a little less honest"
        add(OTHER_RUNS, _n_other_looks(env.paths, vote.labels_key), reason)
    return uses


def _n_epochs(trials: Sequence[TrialRecord]) -> int:
    return sum(len(trial.reports) for trial in trials)


def _n_other_looks(paths: RunPaths, key: str | None) -> int:
    """Count the looks of other runs, and of comparisons, at these test labels."""
    looks = read_looks(paths.store, key) if key else []
    return sum(look.facts.get("run") != paths.run_id for look in looks)


class _Job(NamedTuple):
    """A checkpoint, photos that it held out, and its stored answers on them."""

    trial_id: str
    store: str
    folder: str  # of the checkpoint
    prep: str  # as JSON
    photos: list[tuple[str, str]]  # sample id and path
    probs: list[list[float]]
    share: TrialShare
    code: Sequence[str] = ()  # files of the user's own parts


class _Difference(NamedTuple):
    """The largest difference of a probability; `why` says what else went wrong."""

    trial_id: str
    largest: float
    why: str = ""


def check(env: Env, lineage: Lineage, split: str) -> Check:
    """Predict a few held-out photos of every member again, by the code of `predict` and bundles."""
    share = env.trial_share
    jobs = []
    for members_trials in lineage.values():
        for place in sorted({0, len(members_trials) - 1}):
            job = _job(env, *members_trials[place], split)
            if job.photos:
                jobs.append(job)
    differences: list[_Difference] = []
    with env.console.task("check", len(jobs)) as advance:
        answers = ray_map(
            compare_answers,
            _dealt(jobs),
            name="check",
            cpu=share.cpu,
            gpu=share.least_gpu,
            fork_server=env.fork_server,
        )
        for some in answers:
            differences += some
            advance(len(differences), "checkpoints")
    order = [job.trial_id for job in jobs]
    differences.sort(key=lambda difference: order.index(difference.trial_id))
    tolerance = TOLERANCE[share.device]
    problems = []
    for trial_id, largest, why in differences:
        if why or largest > tolerance:
            problems.append(f"{trial_id}: {why or f'a probability differs by {largest:.2g}'}")
    return Check(
        equal=not problems,
        n_checkpoints=len(jobs),
        n_photos=sum(len(job.photos) for job in jobs),
        max_difference=max((difference.largest for difference in differences), default=0.0),
        tolerance=tolerance,
        why="; ".join(problems),
    )


def _job(env: Env, trial: TrialRecord, artifact: Artifact, split: str) -> _Job:
    """Pick some of the photos that a trial held out, spread over its stored answers."""
    from data_prep.catalog.photo_paths import photo_path  # noqa: PLC0415

    spec = env.experiment.spec
    columns = ["sample_id", "split", "probs"]
    stored = tables.read(artifact.file("predictions.parquet"), columns).to_pylist()
    rows = [row for row in stored if row["split"] == split]
    picked = [rows[len(rows) * i // N_CHECKED] for i in range(min(N_CHECKED, len(rows)))]
    photos = []
    for row in picked:
        sample = row["sample_id"]
        photos.append((sample, photo_path(spec.data, env.experiment.base, sample)))
    return _Job(
        trial.trial_id,
        env.store.name,
        str(artifact.path),
        env.experiment.arms[trial.variant].prep.model_dump_json(by_alias=True),
        photos,
        [row["probs"] for row in picked],
        env.trial_share,
        env.code,
    )


def _dealt(jobs: list[_Job]) -> list[list[_Job]]:
    """Deal jobs to tasks. Each task loads the networks of one preparation, once."""
    by_prep: dict[str, list[_Job]] = {}
    for job in jobs:
        by_prep.setdefault(job.prep, []).append(job)
    dealt = []
    for some in by_prep.values():
        n_tasks = min(len(some), N_TASKS)
        dealt += [some[first::n_tasks] for first in range(n_tasks)]
    return dealt


def compare_answers(jobs: list[_Job]) -> list[_Difference]:
    """Return how far checkpoints' answers lie from the stored ones; runs as a Ray task.

    Args:
        jobs: of one preparation.
    """
    photos = {sample: path for job in jobs for sample, path in job.photos}
    try:
        prep = Prep.model_validate_json(jobs[0].prep)
        threads = max(1, int(jobs[0].share.cpu))  # of two such tasks at once
        prepared = prepare_photos(prep, list(photos.items()), threads=threads)
    except Exception as error:  # noqa: BLE001 - what fails here fails for a user of `predict` too
        return [_Difference(job.trial_id, 1.0, f"{type(error).__name__}: {error}") for job in jobs]
    return [_compare(job, prepared) for job in jobs]


def _compare(job: _Job, prepared: PreparedPhotos) -> _Difference:
    """Return how far a checkpoint's answers on prepared photos lie from the stored ones."""
    from trainers.own_parts import allow  # noqa: PLC0415

    samples = [sample for sample, _ in job.photos]
    lost = {sample: prepared.lost[sample] for sample in samples if sample in prepared.lost}
    if lost:
        return _Difference(job.trial_id, 1.0, f"photos cannot be read any more: {lost}")
    images = prepared.images[[prepared.ids.index(sample) for sample in samples]]
    try:
        store = open_store(job.store)
        allow(*[store.here(file) for file in job.code])
        probs = probabilities(store.here(job.folder), images, job.share.device)
    except Exception as error:  # noqa: BLE001 - as above
        return _Difference(job.trial_id, 1.0, f"{type(error).__name__}: {error}")
    stored = np.array(job.probs)
    if probs.shape != stored.shape:
        why = f"{stored.shape} probabilities were stored, found {probs.shape}"
        return _Difference(job.trial_id, 1.0, why)
    return _Difference(job.trial_id, float(np.abs(probs - stored).max()))


def audit_findings(facts: AuditFacts, words: GroupWords = GROUP) -> list[str]:
    """Return what the audit found that weakens a promise about new groups."""
    findings = []
    leaking = [name for name, split in facts.variants.items() if split.leak]
    if leaking:
        names = ", ".join(sorted(leaking))
        findings.append(f"The split of {names} leaks: the score is too high for new {words.many}.")
    n_sets = 0
    for copies in (facts.duplicates, facts.near_duplicates):
        if across_groups := copies.get("across_groups"):
            n_sets += across_groups.n or 0
    if n_sets:
        findings.append(
            f"{counted(n_sets, 'picture stands', 'pictures stand')} in more than one group: "
            "training may have seen some judged photos."
        )
    return findings
