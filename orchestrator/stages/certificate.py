"""The certificate of an ensemble: what it is made of, how good it is, how that is known, and what was looked at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import Prep
from data_prep.files import write_json
from data_prep.section import identity
from orchestrator.cluster.tasks import ray_map
from orchestrator.ensemble import members as ensemble
from orchestrator.ensemble.predict import prepare_photos, probabilities
from orchestrator.evaluation import metrics
from orchestrator.evaluation import vote as voting
from orchestrator.evaluation.intervals import difference_of_scores
from orchestrator.evaluation.predictions import align
from orchestrator.planning.stage import Env
from orchestrator.planning.stage_keys import run_key
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.confirm import Confirmed, predictions_by_setting
from orchestrator.stages.prepare import Prepared
from orchestrator.stages.search import Searched
from orchestrator.stages.split import Split
from orchestrator.stages.test_set import read_test_photos
from orchestrator.store import tables
from orchestrator.store.artifacts import Artifact, git_commit, packages
from orchestrator.store.events import LabelsOpened
from orchestrator.store.ledger import TrialRecord
from orchestrator.store.run_dir import RunPaths

FORMAT_VERSION = 1
N_WORST_CLASSES = 5
N_WORST_GROUPS = 10
OTHER_RUNS = "the same test labels in other runs of this store"
N_CHECKED = 2
"""Photos of each checked checkpoint. The first and the last checkpoint of every member are checked."""
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
"""Largest difference of a probability: sums of another batch size on a CPU, TF32 and other kernels on a GPU."""


def certify(
    env: Env,
    catalog: Catalog,
    split: Split,
    prepare: Prepared,
    search: Searched,
    confirm: Confirmed,
    chosen: dict[str, Any],
) -> dict[str, Any]:
    """Check the members against their stored answers, write certificate.json and return it."""
    paths = env.paths
    spec = env.experiment.spec
    trials = ensemble.member_trials(paths, chosen["members"])
    artifacts = {
        s: [ensemble.checkpoint(env.store, t) for t in found] for s, found in trials.items()
    }
    estimate = chosen["ensemble"].get(confirm.split)
    test = chosen["ensemble"].get("test")
    findings = audit_findings(paths.read_json("audit") if paths.audit.is_file() else {})
    made = {
        "format_version": FORMAT_VERSION,
        "run_id": paths.run_id,
        "run_key": run_key(env),
        "code": {"git_commit": git_commit(), "packages": packages()},
        "data": _data(env, catalog, prepare),
        "splits": {
            name: {"key": found.key, "sha256": found.manifest["files"]["folds.parquet"]["sha256"]}
            for name, found in sorted(split.artifacts.items())
        },
        "members": [
            _member(env, one, votes, trials[one], artifacts[one], chosen)
            for one, votes in zip(chosen["members"], chosen["weights"], strict=True)
        ],
        "vote": chosen["vote"],
        "policy": chosen["policy"],
        "estimate": {
            "on": "out-of-fold predictions" if spec.confirm else "role val",
            "of": whom(
                spec.data.group_text,
                {
                    env.experiment.arms[own[0]["variant"]].data.split.strategy
                    for own in trials.values()
                },
                confirmed=spec.confirm is not None,
                leaking=bool(findings),
            ),
            "people": _people(env),
            **(estimate or {}),
        },
        "corrected": chosen["ensemble"].get("corrected"),
        "checkpoints": chosen["ensemble"].get("checkpoints"),
        "findings": [*findings, *chosen.get("findings", [])],
        "gain": chosen["ensemble"].get("gain"),
        "test": test,
        "public": chosen["ensemble"].get("public"),
        "gap": _gap(estimate, chosen["ensemble"].get("corrected"), test),
        **_worst(env, catalog, confirm, chosen),
        "looked_at": _looked_at(env, catalog, search.trials, confirm.trials, chosen, test),
        "check": check(env, trials, artifacts, confirm.split),
    }
    made["statement"] = statement(made)
    write_json(paths.certificate, made)
    return made


def whom(group: str, strategies: Collection[str], *, confirmed: bool, leaking: bool = False) -> str:
    """Say whose photos an estimate is about: new people's, only where splits and groups keep people apart.

    Args:
        group: the spec's `data.group`.
        strategies: of the members' splits.
        confirmed: whether it rests on out-of-fold predictions.
        leaking: whether the audit found people or pictures on both sides.
    """
    if not confirmed:
        return "the photos that chose it (role val)"
    if group == "sample_id" or "random" in strategies or leaking:
        return "photos it has never seen, of people it may have seen"
    return f"people (group: {group}) it has never seen"


def _people(env: Env) -> str:
    """Say which people had no part in a choice of settings."""
    spec = env.experiment.spec
    if spec.confirm is None:
        return ""
    if spec.search is None:
        return "The members were chosen on the people who were scored, and on no others."
    return (
        "People of role val chose the settings, so they are left out of the score; those scored "
        "chose the members alone."
    )


def _data(env: Env, catalog: Catalog, prepare: Prepared) -> dict[str, Any]:
    facts = catalog.artifact.result
    seen = None
    if env.experiment.spec.data.test:
        seen = read_test_photos(env, catalog, prepare, ())
    return {
        "catalog_sha256": facts["content"],
        "photos_sha256": facts["photos"],
        "n_photos": facts["n_ok"],
        "n_groups": facts["n_groups"],
        "n_test": len(seen.order) if seen else 0,
        "n_public": len(seen.public) if seen else 0,
        "n_quarantined": len(prepare.quarantined.union(catalog.quarantined)),
    }


def _member(
    env: Env,
    setting: str,
    votes: int,
    trials: list[dict[str, Any]],
    artifacts: list[Artifact],
    chosen: Any,
) -> dict[str, Any]:
    """Return a member's lineage: settings, and seed, fold, code and weights of each of its checkpoints."""
    variant = trials[0]["variant"]
    _, arm = env.experiment.setting(variant, json.loads(trials[0]["params"]))
    own: dict[str, Any] = next((c for c in chosen["candidates"] if c["setting"] == setting), {})
    return {
        "setting": setting,
        "variant": variant,
        "votes": votes,
        "settings": identity(arm),
        "prep_steps": ensemble.Member(setting, variant, votes, arm.prep, ()).steps,
        "n_params": own.get("n_params"),
        "oof_macro_f1": own.get("oof_macro_f1"),
        "checkpoints": [
            {
                "trial_id": trial["trial_id"],
                "seed": trial["seed"],
                "fold": trial["fold"],
                "key": artifact.key,
                "weights_sha256": artifact.manifest["files"]["weights.safetensors"]["sha256"],
                "git_commit": artifact.manifest["git_commit"],
                "host": artifact.manifest["host"],
                "best_epoch": artifact.result.get("best_epoch"),
            }
            for trial, artifact in zip(trials, artifacts, strict=True)
        ],
    }


def _gap(estimate: Any, corrected: Any, test: Any) -> dict[str, Any] | None:
    """Return how far the estimate lies above the test score, with the interval of the difference.

    `test_is_inside_the_interval`: the interval of the difference of both scores holds 0.
    """
    if not estimate or not test:
        return None
    told = estimate["macro_f1"]
    found = test["macro_f1"]["estimate"]
    honest = (corrected or {}).get("estimate")
    gap = difference_of_scores(told, test["macro_f1"])
    return {
        "estimate_minus_test": told["estimate"] - found,
        "corrected_minus_test": None if honest is None else honest - found,
        "low": gap.low,
        "high": gap.high,
        "test_is_inside_the_interval": gap.low <= 0 <= gap.high,
    }


def _worst(env: Env, catalog: Catalog, confirm: Confirmed, chosen: Any) -> dict[str, Any]:
    """Return the classes and the people that the vote reads worst, out of fold."""
    predictions = predictions_by_setting(env, catalog, confirm)
    members = align({setting: predictions[setting] for setting in chosen["members"]})
    arms = list(members.values())
    preds = voting.cast(
        [one.votes for one in arms],
        [one.mean_probs for one in arms],
        chosen["vote"]["rule"],
        chosen["weights"],
    ).pred
    targets = arms[0].targets
    classes = metrics.class_metrics(targets, preds, env.schema.n_classes)
    for row in classes:
        row["name"] = env.schema.class_name(row["class"])
    owners = arms[0].groups or arms[0].sample_ids
    n = Counter(owners)
    right = Counter(
        owner for owner, ok in zip(owners, (preds == targets).tolist(), strict=True) if ok
    )
    people = sorted(n, key=lambda group: (right[group] / n[group], -n[group], group))
    return {
        "classes": classes,
        "worst_classes": sorted(classes, key=lambda row: (row["f1"], row["class"]))[
            :N_WORST_CLASSES
        ],
        "worst_groups": [
            {"group": group, "n": n[group], "accuracy": right[group] / n[group]}
            for group in people[:N_WORST_GROUPS]
        ],
    }


def _looked_at(
    env: Env,
    catalog: Catalog,
    searched: Sequence[TrialRecord],
    confirmed: Sequence[TrialRecord],
    chosen: Any,
    test: Any,
) -> list[dict[str, Any]]:
    """Say which data were looked at how often, and what for."""
    opened = Counter(
        (event.part, event.by) for event in env.ledger.events if isinstance(event, LabelsOpened)
    )
    rows = [
        {
            "what": "role val",
            "times": sum(len(trial.reports) for trial in searched),
            "why": f"scored after every epoch of {len(searched)} search trials; chose epochs and finalists",
        }
    ]
    if confirmed:
        rows += [
            {
                "what": "inner parts of the training folds",
                "times": sum(len(trial.reports) for trial in confirmed),
                "why": f"scored after every epoch of {len(confirmed)} confirm trials; chose epochs",
            },
            {
                "what": "held-out folds",
                "times": len(confirmed),
                "why": "predicted once by every confirm trial at its end; their labels never reached a training",
            },
        ]
    judged = "out-of-fold labels" if confirmed else "labels of role val"
    rows.append(
        {
            "what": judged,
            "times": len(chosen["candidates"]),
            "why": f"scored {len(chosen['candidates'])} candidates (policy {chosen['policy']}) and "
            f"{len(env.experiment.spec.hypotheses)} hypotheses",
        }
    )
    if (peeks := chosen.get("peeks")) is not None:
        rows.append(
            {"what": "public half of the test set", "times": peeks["n_candidates"],
             "why": f"PEEK: candidates were ranked by {peeks['by']}"}
        )  # fmt: skip
    if test:
        rows.append(
            {
                "what": f"{test['part']} test labels" if test["part"] != "whole" else "test labels",
                "times": sum(n for (_, by), n in opened.items() if by == "vote"),
                "why": "scored the vote; nothing was chosen by them in this run",
            }
        )
        rows.append(
            {
                "what": OTHER_RUNS,
                "times": _other_runs(env.paths, catalog.content),
                "why": "each look at a test score makes the next choice a little less honest",
            }
        )
    return rows


def _other_runs(paths: RunPaths, content: str) -> int:
    """Count the other runs of the store that scored this very data set's test labels."""
    found = 0
    for path in paths.root.parent.glob("*/certificate.json"):
        if path.parent == paths.root:
            continue
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
            found += bool(other["test"]) and other["data"]["catalog_sha256"] == content
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def check(
    env: Env,
    trials: Mapping[str, list[dict[str, Any]]],
    artifacts: Mapping[str, list[Artifact]],
    split: str,
) -> dict[str, Any]:
    """Predict a few held-out photos of every member again, from the file on, by the code of `predict` and of bundles.

    Returns:
        equal, n_checkpoints, n_photos, max_difference (of a probability), tolerance, why (empty where equal).
    """
    from data_prep.catalog.builder import photo_path  # noqa: PLC0415

    spec = env.experiment.spec
    base = env.experiment.base
    jobs = []
    share = spec.resources.per_trial
    for setting, own in trials.items():
        prep = env.experiment.arms[own[0]["variant"]].prep
        for at in sorted({0, len(own) - 1}):
            stored = tables.read(
                artifacts[setting][at].file("predictions.parquet"), ["sample_id", "split", "probs"]
            )
            rows = [row for row in stored.to_pylist() if row["split"] == split]
            picked = [rows[len(rows) * i // N_CHECKED] for i in range(min(N_CHECKED, len(rows)))]
            photos = [
                (row["sample_id"], str(photo_path(spec.data, base, row["sample_id"])))
                for row in picked
            ]
            if photos:
                told = [row["probs"] for row in picked]
                jobs.append(
                    (
                        own[at]["trial_id"],
                        str(artifacts[setting][at].path),
                        prep.model_dump_json(by_alias=True),
                        photos,
                        told,
                        share.device,
                    )
                )
    with env.console.task("check", len(jobs)) as advance:
        found = []
        for one in ray_map(_difference, jobs, cpu=share.cpu, gpu=share.gpu):
            found.append(one)
            advance(len(found), "checkpoints")
    tolerance = TOLERANCE[share.device]
    wrong = [
        f"{trial_id}: {why or f'a probability differs by {off:.2g}'}"
        for trial_id, off, why in found
        if why or off > tolerance
    ]
    return {
        "equal": not wrong,
        "n_checkpoints": len(jobs),
        "n_photos": sum(len(job[3]) for job in jobs),
        "max_difference": max((off for _, off, _ in found), default=0.0),
        "tolerance": tolerance,
        "why": "; ".join(wrong),
    }


def _difference(
    job: tuple[str, str, str, Sequence[tuple[str, str]], list[list[float]], str],
) -> tuple[str, float, str]:
    """Return how far a checkpoint's answers lie from the stored ones; runs as a Ray task."""
    trial_id, folder, prep, photos, told, device = job
    try:
        ids, images, lost = prepare_photos(
            Prep.model_validate_json(prep), [(name, Path(path)) for name, path in photos]
        )
        if lost:
            return trial_id, 1.0, f"photos cannot be read any more: {lost}"
        probs = probabilities(Path(folder), images, device)
    except Exception as error:  # noqa: BLE001 - whatever fails here fails for a user of `predict` too
        return trial_id, 1.0, f"{type(error).__name__}: {error}"
    del ids
    if probs.shape != np.shape(told):
        return trial_id, 1.0, f"{np.shape(told)} probabilities were stored, found {probs.shape}"
    return trial_id, float(np.abs(probs - np.array(told)).max()), ""


def statement(made: Mapping[str, Any]) -> str:
    """Return the certificate in one paragraph, the corrected number first."""
    sentences = [*_expected(made), *_tested(made), *_covered(made)]
    equal = "equal the stored ones" if made["check"]["equal"] else "DIFFER from the stored ones"
    n_photos = made["check"]["n_photos"]
    sentences.append(f"The members' answers through `predict` {equal} on {n_photos} photos.")
    return " ".join(sentences)


def _expected(made: Mapping[str, Any]) -> list[str]:
    """Say what the vote is expected to reach, and by how many checkpoints."""
    estimate = made["estimate"]
    corrected = made["corrected"] or {}
    scores = estimate.get("macro_f1")
    if not scores:
        return []
    vote = f"On {estimate['of']} the vote of {len(made['members'])} members"
    n_groups = scores["n_groups"]
    if estimate["on"] == "role val":
        return [
            (
                f"{vote} reached macro F1 {_span(scores)}, {n_groups} groups. These photos chose "
                "epochs and settings. Expect less of new photos."
            )
        ]
    first = corrected if corrected.get("estimate") is not None else scores
    sentences = [
        f"{vote} is expected to reach at least macro F1 {_span(first)}, {n_groups} groups."
    ]
    if first is corrected:
        sentences.append(
            f"This is corrected for having chosen among {corrected['n_candidates']} candidates on "
            f"these photos; uncorrected it is {_span(scores)}."
        )
    curve = made.get("checkpoints") or {}
    if curve.get("scores"):
        n_seeds = len(curve["scores"])
        n_deployed = curve["n_deployed"]
        reason = (
            f"At least, because a photo was judged by {n_seeds} of each member's checkpoints and a "
            f"new photo is judged by {n_deployed}"
        )
        if curve["estimate"] is None:
            sentences.append(f"{reason}; {curve['advice']}.")
        else:
            sentences.append(f"{reason}, which lead to about {_span(curve)}.")
    return sentences


def _tested(made: Mapping[str, Any]) -> list[str]:
    """Say what the test set shows, and what the vote adds."""
    sentences = ["There is no test score: no test labels are known."]
    if made["test"]:
        scores = made["test"]["macro_f1"]
        private = made["test"]["part"] == "private"
        part = "the private half of the test set" if private else "the test set"
        narrow = "; too narrow: no groups are known" if scores["too_narrow"] else ""
        sentences = [f"On {part} it reached {_span(scores)}{narrow}."]
    if gain := made["gain"]:
        start = "corrected_" if "corrected_difference" in gain else ""
        values = [gain[f"{start}{name}"] for name in ("difference", "low", "high")]
        if None not in values:
            sentences.append(
                f"Over its best member alone the vote gains {values[0]:+.3f} "
                f"({values[1]:+.3f} to {values[2]:+.3f})."
            )
    return sentences


def _covered(made: Mapping[str, Any]) -> list[str]:
    """Say what the numbers cover and what they do not."""
    sentences = [
        (
            "The interval of a score covers which people were photographed, with these trained "
            "models. The interval of a difference also covers the luck of training, where there are "
            "two seeds. The correction covers the choice of members. Nothing here covers other "
            "data: other cameras, places or people of another kind."
        )
    ]
    if people := made["estimate"].get("people"):
        sentences.append(people)
    for row in made["looked_at"]:
        if row["what"] == OTHER_RUNS and row["times"]:
            sentences.append(f"Other runs looked at these test labels {row['times']} times.")
    if made["policy"] == "leaderboard":
        sentences.append(
            "A leaderboard chose the members: it looked at the public half of the test set."
        )
    return sentences + list(made.get("findings") or [])


def _span(scores: Mapping[str, Any]) -> str:
    return f"{scores['estimate']:.3f} (90 % interval {scores['low']:.3f} to {scores['high']:.3f})"


def audit_findings(facts: Mapping[str, Any]) -> list[str]:
    """Return what the audit found that weakens a promise about new people."""
    findings = []
    leaking = [
        name for name, row in (facts.get("variants") or {}).items() if row and row.get("leak")
    ]
    if leaking:
        findings.append(
            f"The split of {', '.join(sorted(leaking))} leaks: some people stand in training and "
            "in judged photos, so the score is too high for new people."
        )
    n_sets = 0
    for kind in ("duplicates", "near_duplicates"):
        across = (facts.get(kind) or {}).get("across_groups") or {}
        n_sets += int(across.get("n") or 0)
    if n_sets:
        findings.append(
            f"{n_sets} pictures stand in more than one group, so some judged photos may have been "
            "seen in training; see the audit."
        )
    return findings
