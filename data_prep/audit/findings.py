"""What the audit finds wrong: few sentences, the worst first, each with a change to the spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, get_args

from data_prep.audit.fact_types import AuditFacts, Finding, Histogram, Kind, Tell, VariantFacts
from data_prep.catalog.label_schema import Schema, in_digits
from data_prep.catalog.photo_listing import MISSING_FILE
from data_prep.errors import LEFT_OUT

_EXAMPLES = 5
_IMBALANCE = 20.0
"""A class this many times rarer than the largest: the contest's 50 to 1 decided its score."""
_TELLS = 0.5
"""Association above which a column or a photo's form nearly replaces a label."""
_DOUBTFUL = 0.05
"""Share of photos within 3 units on either side of a border; the border decides the score then."""
_SHORTCUT = 0.5
"""Share of the gain over chance that the rim of the photos alone reaches."""
_REACH = 3
_RANK: tuple[Kind, ...] = get_args(Kind)


def ranked(facts: AuditFacts, schema: Schema) -> list[Finding]:
    """Return the findings that an audit's facts give rise to, the worst first."""
    findings = []
    for source in (_copies(facts), _splits(facts, schema), _labels(facts), _shortcuts(facts)):
        for finding in source:
            if finding.n:
                findings.append(replace(finding, examples=finding.examples[:_EXAMPLES]))
    return sorted(findings, key=lambda finding: _RANK.index(finding.kind))


def _copies(facts: AuditFacts) -> Iterator[Finding]:
    join = "data.join_duplicates: true, which splits such groups as one; or correct data.group"
    texts: dict[Kind, tuple[str, str]] = {
        "train_and_test": (
            "are in both the training and the test set",
            "remove them from one of the two, or the test score is too good",
        ),
        "label_conflicts": ("have different labels", "correct the table or the file names"),
        "across_groups": ("are in different groups, so validation leaks", join),
    }
    for kind, (what, do) in texts.items():
        equal = getattr(facts.duplicates, kind)
        yield Finding(kind, f"equal photos {what}", equal.n, equal.examples, do)
        near = getattr(facts.near_duplicates, kind)
        yield Finding(
            kind,
            f"near-duplicates (one picture) {what}",
            near.n,
            near.examples,
            f"{do}; name those that only look alike in data.not_copies",
        )
    yield Finding(
        "left_out",
        "pairs of photos look alike and were not compared, because there are too many; "
        "the data may have more near-duplicates",
        facts.n_near_left_out,
        [],
        "remove the copies that were found and audit again: the closest pairs are compared first",
    )
    within = facts.duplicates.within_group
    yield Finding(
        "within_group",
        "equal photos are in one group; they count twice",
        within.n,
        within.examples,
        "remove the copies",
    )
    yield Finding(
        "test_group",
        "groups are in both the training and the test set",
        len(facts.test_groups_in_train),
        facts.test_groups_in_train,
        "take them out of one of the two, or the test score is too good",
    )
    lost: list[str] = []
    unlabelled: list[str] = []
    for photo in facts.quarantined:
        names = unlabelled if photo.reason.startswith(LEFT_OUT) else lost
        names.append(f"{photo.sample_id}: {photo.reason.removeprefix(LEFT_OUT)}")
    do = "replace or remove them"
    if any(photo.reason.startswith("too large") for photo in facts.quarantined):
        do += "; MAX_MEGAPIXELS=100 in the environment allows larger ones"
    if any(photo.reason == MISSING_FILE for photo in facts.quarantined):
        do += "; restore a missing file, or take its row out of the table"
    yield Finding(
        "quarantined",
        "photos cannot be used and are left out",
        len(lost),
        lost,
        do,
    )
    yield Finding(
        "quarantined",
        "photos lack a label and are left out",
        len(unlabelled),
        unlabelled,
        "add the label, or nothing",
    )


def _splits(facts: AuditFacts, schema: Schema) -> Iterator[Finding]:
    for names, variant, gap in _distinct_splits(facts):
        whose = f"variant {names[0]}" if len(names) == 1 else f"variants {', '.join(names)}"
        yield _leak(whose, variant, gap, facts.score.title)
        gone = []
        for fold, missing in variant.folds_without.items():
            gone += [f"fold {fold}: {label}" for label in missing]
        yield Finding(
            "missing",
            f"{whose}: classes without a training photo when a fold is held out",
            len(gone),
            gone,
            "confirm.folds: fewer, or add groups of that class",
        )
        unseen = _unseen(variant, schema)
        yield Finding(
            "missing",
            f"{whose}: joint classes that training has and validation lacks",
            len(unseen),
            unseen,
            "data.split.val: more, or read macro F1 with care: it averages the classes that occur",
        )
    rare = [f"stratum {codes}: {n} group" for codes, n in facts.group_strata.items() if n == 1]
    yield Finding(
        "rare",
        "strata of one group can be on one side only",
        len(rare),
        rare,
        "add groups, or use wider classes or bins",
    )


class _SplitFacts(NamedTuple):
    """A split and the variants that share it."""

    names: list[str]
    variant: VariantFacts
    gap: Mapping[str, Any] | None


def _distinct_splits(facts: AuditFacts) -> list[_SplitFacts]:
    """Return every split once: what is wrong with it is one warning, not one per variant."""
    splits: list[_SplitFacts] = []
    for name, variant in facts.variants.items():
        gap = facts.leak_gap.get(name)
        for split in splits:
            if split.variant == variant and split.gap == gap:
                split.names.append(name)
                break
        else:
            splits.append(_SplitFacts([name], variant, gap))
    return splits


def _leak(whose: str, variant: VariantFacts, gap: Mapping[str, Any] | None, score: str) -> Finding:
    if variant.leak_groups == 0:
        where = "belong to groups that share a picture with a group in training"
        do = "data.join_duplicates: true"
    else:
        where = "belong to groups that are in training too"
        do = "data.split.strategy: balanced_profile"
    what = f"{whose}: {variant.leak:.0%} of the validation photos {where}"
    if gap:
        what += (
            f"; a quick model scores {gap['difference']:+z.3f} {score} too well by it "
            f"({gap['level']:.0%} interval {gap['low']:+z.3f} to {gap['high']:+z.3f})"
        )
    return Finding("leak", what, round(variant.leak * variant.roles.get("val", 0)), [], do)


def _labels(facts: AuditFacts) -> Iterator[Finding]:
    for label, histogram in facts.histograms.items():
        yield from _borders(label, histogram)
    for tell in facts.tells:
        if tell.association >= _TELLS:
            yield _telling_column(tell)
    if facts.imbalance and facts.imbalance >= _IMBALANCE:
        smallest_first = sorted(facts.classes.items(), key=lambda item: (item[1], item[0]))
        yield Finding(
            "imbalance",
            f"the largest class has {facts.imbalance:.0f} times the photos of the smallest",
            smallest_first[0][1],
            [f"{name}: {n}" for name, n in smallest_first],
            "train.balance: weighted_sampler, or train.loss: focal",
        )
    if facts.n_groups == sum(facts.classes.values()):
        yield Finding(
            "no_groups",
            "every photo is its own group: photos of one subject may be on two sides",
            facts.n_groups,
            [],
            "name the column of the subject in data.group, if there is one",
        )


def _borders(label: str, histogram: Histogram) -> Iterator[Finding]:
    if histogram.train_borders:
        return
    enough = _DOUBTFUL * sum(histogram.counts)
    for index, (border, sides) in enumerate(histogram.doubtful.items()):
        if min(sides.below, sides.above) < enough:
            continue
        low = float(border) - _REACH
        before = histogram.borders[index - 1] if index else None
        if before is not None and before >= low:
            do = (
                f"data.labels.{label}.bins: leave out {in_digits(before)} or {border}, "
                f"they are within {_REACH} of each other"
            )
        else:
            moved = [*histogram.borders[:index], low, *histogram.borders[index + 1 :]]
            rule = (
                f"{histogram.column or label}: [{in_digits(low)}, {in_digits(float(border) - 1)}]"
            )
            do = (
                f"compare as variants data.exclude: [{{{rule}}}] with "
                f"data.labels.{label}.train_bins: [{', '.join(map(in_digits, moved))}]"
            )
        what = (
            f"photos are within {_REACH} of the border {border} of {label} ({sides.below} below, "
            f"{sides.above} from it on), where one cannot see the class"
        )
        yield Finding("border", what, sides.below + sides.above, [], do)


def _telling_column(tell: Tell) -> Finding:
    is_of_photos = tell.column.startswith("(")  # a fact of the files: no rule can name it
    if is_of_photos:
        do = "prep.steps: a crop (center_crop, or crop_face of people) before resize"
    else:
        do = f"hold one value of it out and compare, data.exclude: [{{{tell.column}: <value>}}]"
    what = (
        f"{tell.column} goes with {tell.label} (Cramer's V {tell.association:.2f} over groups): "
        "a model can learn the one for the other"
    )
    return Finding("tells", what, tell.n_values, [], do)


def _shortcuts(facts: AuditFacts) -> Iterator[Finding]:
    if not facts.probe:
        return
    for label, scores in (facts.probe.get("labels") or {}).items():
        whole = scores.get("score", scores["macro_f1"])["estimate"]
        rim = scores["rim"]["estimate"]
        chance = scores["chance"]["estimate"]
        is_clear = scores["rim"]["low"] > scores["chance"]["high"]
        if is_clear and rim - chance >= _SHORTCUT * max(whole - chance, 0):
            yield Finding(
                "shortcut",
                f"the rim of the photos alone, without the subject, tells {label}: "
                f"{facts.score.of_label} {rim:.3f}, the whole photo {whole:.3f}, chance {chance:.3f}",
                facts.probe["n_photos"],
                [],
                "prep.steps: remove_background or a crop (crop_face of people), and compare; "
                "hold a source of photos out before a claim",
            )


def _unseen(variant: VariantFacts, schema: Schema) -> list[str]:
    if schema.n_classes == 1:
        return []
    val = variant.classes.get("val", {})
    return [name for name in variant.classes.get("train", {}) if name not in val]
