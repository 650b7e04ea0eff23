"""What the audit warns of: few sentences, the gravest first, each with what to put into the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.catalog.labels import Schema, in_digits

_EXAMPLES = 5
_IMBALANCE = 20.0
"""A class this many times rarer than the largest: the contest's 50 to 1 decided its score."""
_TELLS = 0.5
"""Association above which a column or a photo's form nearly stands for a label."""
_DOUBTFUL = 0.05
"""Share of photos within 3 units on either side of a border from which the border decides the score."""
_SHORTCUT = 0.5
"""Share of what the whole photo adds to chance that its rim alone adds."""
_RANK = (
    "train_and_test",
    "test_group",
    "leak",
    "label_conflicts",
    "across_groups",
    "left_out",
    "shortcut",
    "quarantined",
    "rare",
    "missing",
    "border",
    "tells",
    "imbalance",
    "no_groups",
    "within_group",
)

Found = tuple[str, str, int, list[Any], str]  # kind, what, n, examples, do


def ranked(facts: dict[str, Any], schema: Schema) -> list[dict[str, Any]]:
    """Return the warnings that an audit's facts give rise to: {kind, what, n, examples, do}, the worst first."""
    found = [*_copies(facts), *_splits(facts, schema), *_labels(facts), *_models(facts)]
    found = [one for one in found if one[2]]
    found.sort(key=lambda one: _RANK.index(one[0]))
    return [
        {"kind": kind, "what": what, "n": n, "examples": list(shown)[:_EXAMPLES], "do": do}
        for kind, what, n, shown, do in found
    ]


def _copies(facts: dict[str, Any]) -> Iterator[Found]:
    joined = "data.join_duplicates: true, which splits such groups as one; or correct data.group"
    equal = {
        "train_and_test": (
            "stand both in the training and in the test set",
            "remove them from one of the two, or the test score is too good",
        ),
        "label_conflicts": ("carry different labels", "correct the table or the file names"),
        "across_groups": ("stand in different groups, so validation leaks", joined),
    }
    for kind, (what, do) in equal.items():
        for name, word in (
            ("duplicates", "equal photos"),
            ("near_duplicates", "near-duplicates (one picture)"),
        ):
            sets = facts[name][kind]
            yield kind, f"{word} {what}", sets["n"], sets["examples"], do
    yield (
        "left_out",
        "pairs of photos look alike and were not compared, there are too many; more near-duplicates may stand in the data",
        facts["n_near_left_out"],
        [],
        "remove the copies that were found and audit again: the closest pairs are compared first",
    )
    sets = facts["duplicates"]["within_group"]
    yield (
        "within_group",
        "equal photos stand in one group; they count twice",
        sets["n"],
        sets["examples"],
        "remove the copies",
    )
    yield (
        "test_group",
        "groups stand both in the training and in the test set",
        len(facts["test_groups_in_train"]),
        facts["test_groups_in_train"],
        "take them out of one of the two, or the test score is too good",
    )
    lost = [f"{found['sample_id']}: {found['reason']}" for found in facts["quarantined"]]
    yield (
        "quarantined",
        "photos cannot be used and are left out",
        len(lost),
        lost,
        "replace or remove them",
    )


def _splits(facts: dict[str, Any], schema: Schema) -> Iterator[Found]:
    for name, variant in facts["variants"].items():
        n_leaked = round(variant["leak"] * variant["roles"].get("val", 0))
        by_picture = variant["leak_groups"] == 0
        what = (
            f"variant {name}: {variant['leak']:.0%} of the validation photos "
            + (
                "belong to groups that share a picture with"
                if by_picture
                else "belong to groups that are in training too"
            )
            + (" a group in training" if by_picture else "")
            + _gap(facts["leak_gap"].get(name))
        )
        do = "data.join_duplicates: true" if by_picture else "data.split.strategy: balanced_profile"
        yield "leak", what, n_leaked, [], do
        gone = [
            f"fold {fold}: {label}"
            for fold, lacking in variant["folds_without"].items()
            for label in lacking
        ]
        yield (
            "missing",
            f"variant {name}: classes without a training photo when a fold is held out",
            len(gone),
            gone,
            "confirm.folds: fewer, or add groups of that class",
        )
        unseen = _unseen(variant, schema)
        yield (
            "missing",
            f"variant {name}: joint classes that training has and validation lacks",
            len(unseen),
            unseen,
            "data.split.val: more, or read macro F1 with care: it averages the classes that are present",
        )
    rare = [f"stratum {codes}: {n} group" for codes, n in facts["group_strata"].items() if n == 1]
    yield (
        "rare",
        "strata of one group can stand on one side only",
        len(rare),
        rare,
        "add groups, or use wider classes or bins",
    )


def _gap(gap: dict[str, Any] | None) -> str:
    if not gap:
        return ""
    return (
        f"; a quick model scores {gap['difference']:+.3f} macro F1 too well by it "
        f"({gap['level']:.0%} interval {gap['low']:+.3f} to {gap['high']:+.3f})"
    )


def _labels(facts: dict[str, Any]) -> Iterator[Found]:
    for label, histogram in facts["histograms"].items():
        n_all = sum(histogram["counts"])
        for at, (border, sides) in enumerate(histogram["doubtful"].items()):
            if min(sides.values()) < _DOUBTFUL * n_all or histogram["train_borders"]:
                continue
            low = float(border) - 3
            borders = histogram["borders"]
            moved = [in_digits(value) for value in [*borders[:at], low, *borders[at + 1 :]]]
            first, last, near = (
                in_digits(low),
                in_digits(float(border) - 1),
                at > 0 and borders[at - 1] >= low,
            )
            yield (
                "border",
                (
                    f"photos lie within 3 of the border {border} of {label} ({sides['below']} below, {sides['above']} from "
                    "it on), where one cannot see the class"
                ),
                sum(sides.values()),
                [],
                f"data.labels.{label}.bins: leave out {in_digits(borders[at - 1])} or {border}, they lie within 3 of each other"
                if near
                else f"compare as variants data.exclude: [{{{histogram['column'] or label}: [{first}, {last}]}}] with "
                f"data.labels.{label}.train_bins: [{', '.join(moved)}]",
            )
    for one in facts["tells"]:
        if one["association"] >= _TELLS:
            of_photos = one["column"].startswith(
                "("
            )  # a fact of the files, not a column that a rule could name
            yield (
                "tells",
                (
                    f"{one['column']} goes with {one['label']} (Cramer's V {one['association']:.2f} over groups): a model "
                    "can learn the one for the other"
                ),
                one["n_values"],
                [],
                "prep.steps: crop_face or center_crop before resize, so that photos are alike"
                if of_photos
                else f"hold one value of it out and compare, data.exclude: [{{{one['column']}: <value>}}]",
            )
    if facts["imbalance"] and facts["imbalance"] >= _IMBALANCE:
        least = sorted(facts["classes"].items(), key=lambda item: (item[1], item[0]))
        yield (
            "imbalance",
            f"the largest class has {facts['imbalance']:.0f} times the photos of the smallest",
            least[0][1],
            [f"{name}: {n}" for name, n in least],
            "train.balance: weighted_sampler, or train.loss: focal",
        )
    if facts["n_groups"] == sum(facts["classes"].values()):
        yield (
            "no_groups",
            "every photo is its own group: nothing keeps photos of one subject on one side",
            facts["n_groups"],
            [],
            "name the column of the subject in data.group, if there is one",
        )


def _models(facts: dict[str, Any]) -> Iterator[Found]:
    for label, found in ((facts.get("probe") or {}).get("labels") or {}).items():
        whole, rim, chance = (found[name]["estimate"] for name in ("macro_f1", "rim", "chance"))
        if found["rim"]["low"] > found["chance"]["high"] and rim - chance >= _SHORTCUT * max(
            whole - chance, 0
        ):
            yield (
                "shortcut",
                (
                    f"the rim of the photos alone, without the subject, tells {label}: macro F1 {rim:.3f}, the whole photo "
                    f"{whole:.3f}, chance {chance:.3f}"
                ),
                facts["probe"]["n_photos"],
                [],
                "prep.steps: remove_background and crop_face, and compare; hold a source of photos out before a claim",
            )


def _unseen(variant: dict[str, Any], schema: Schema) -> list[str]:
    train, val = variant["classes"].get("train", {}), variant["classes"].get("val", {})
    return [name for name in train if name not in val] if schema.n_classes > 1 else []
