"""A starter spec for a folder of photos: what it proposes is read back before it is written."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from data_prep.catalog.labelled_photos import (
    Rows,
    group_sizes,
    rare_classes,
    read_rows,
    require_classes,
)
from data_prep.catalog.photo_paths import resolve
from data_prep.errors import DataError
from orchestrator.base.errors import SpecError
from orchestrator.base.wording import counted
from orchestrator.spec import column_meanings, folder_survey
from orchestrator.spec.models import Spec
from orchestrator.spec.yaml_source import lone_value

_MAX_DROPS = 3
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "nan", "inf"})

_TAIL = """\
prep:
  steps:
    - keep_aspect
    - {{name: resize, size: 128}}
train:
  model: {{backbone: tf_efficientnet_lite0, pretrained: true, head: single}}   # on a GPU: efficientnet_b4
  loss: focal
  optimizer: {{name: adam, lr: 1.0e-3}}
  augment: {{policy: basic}}
  duration: 5 epochs
variants:
  single: {{}}
{second}confirm: {{finalists: 2, seeds: [0], folds: {folds}}}
select: {{policy: robust, members: 2}}
"""


@dataclass(frozen=True)
class _Draft:
    """The data section, and what a reader should know of it."""

    source: list[str]
    labels: list[column_meanings.Labels]
    group: str  # as it stands in the spec
    tree: list[str]  # what was read, a line each
    test: str = "{hold_out: 0.15}"
    stem: str = ""  # a label of the file stems, a line of the spec
    leave_out: bool = False
    doubtful: list[column_meanings.Labels] = field(default_factory=list)  # written as comments
    notes: list[str] = field(default_factory=list)


def starter_spec(folder: Path, base: Path) -> str:
    """Return a YAML spec for a folder of photos; its root is written relative to `base`.

    Raises:
        SpecError: the folder has none of the known layouts, or what it has cannot be used.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: a folder of photos was required, found none there")
    root = os.path.relpath(folder.resolve(), base.resolve())
    tables = folder_survey.read_tables(folder)
    train = folder_survey.choose_train(tables)
    draft = (
        _from_table(folder, root, tables, train) if train else _from_folders(folder, root, tables)
    )
    name = _spec_name(folder)
    rows: Rows | None = None
    for _ in range(_MAX_DROPS):
        rows, smaller = _read_back(draft, name, folder, base)
        if smaller is None:
            break
        draft = smaller
    assert rows is not None  # noqa: S101 - the loop runs
    groups = [rows.groups[index] for index in rows.readable]
    sizes = f"{len(groups)} photos in {group_sizes(groups)}"
    n_folds = min(3, max(2, len(set(groups))))
    if n_missing := rows.source.n_missing:
        rows_text = counted(n_missing, "row without its photo", "rows without their photos")
        draft.notes.append(f"Left out: {rows_text}")
    return _head(draft, sizes) + _body(draft, name, n_folds)


def _read_back(draft: _Draft, name: str, folder: Path, base: Path) -> tuple[Rows, _Draft | None]:
    """Read the data as the spec says; return a draft without the classes of one group, if any."""
    try:
        spec = Spec.model_validate_json(json.dumps(lone_value(_body(draft, name, 2))))
        rows = read_rows(spec.data, base)
        rare = rare_classes(spec.data, rows)
        labels = []
        for label in draft.labels:
            gone = {item.name for item in rare if item.label == _identifier(label.column)}
            kept = [text for text in label.classes if text not in gone]
            if label.classes and len(kept) < 2:
                continue
            labels.append(replace(label, classes=kept, left_out=[*label.left_out, *sorted(gone)]))
        columns = {_identifier(label.column) for label in labels}
        if (labels or draft.stem) and not columns.isdisjoint(item.label for item in rare):
            return rows, replace(draft, labels=labels, leave_out=True)
        require_classes(spec.data, rows)
    except DataError as error:
        raise SpecError(f"{folder}: {error.text}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SpecError(
            f"{folder}: names that a spec can hold were required, found at {where}: {first['msg']}; "
            "rename the folder, file or column"
        ) from None
    return rows, None


# ------------------------------------------------------------------------------------ the text


def _head(draft: _Draft, sizes: str) -> str:
    lines = ["Question: what can be read from these photos?", *_COMMAND, "Read:"]
    lines += [f"  {line}" for line in draft.tree]
    if draft.group == "sample_id":
        lines.append(
            f"Groups: {sizes}; every photo is its own. If photos share a subject, name its"
        )
        lines.append("  column in data.group, or a part of the file names with a rule:")
        lines.append('  {from: name, pattern: "plant-(?P<group>[0-9]+)"}')
    else:
        lines.append(f"Groups: {sizes}, by {draft.group}.")
    lines += draft.notes
    for label in draft.labels:
        if label.left_out:
            lines.append(
                f"Left out of {label.column}: {', '.join(label.left_out)} (one group each)"
            )
        if label.n_missing:
            lines.append(f"Left out: {label.n_missing} rows without {label.column}")
    return "".join(f"# {line}\n" for line in lines)


_COMMAND = ("Command:  python -m orchestrator submit THIS_FILE",)


def _body(draft: _Draft, name: str, n_folds: int) -> str:
    labels = [draft.stem] if draft.stem else []
    labels += [f"    {_label_line(label)}" for label in draft.labels]
    second = "  cutmix: {train.augment.cutmix: half}\n"
    if len(labels) > 1:
        second = "  shallow: {train.model.head: shallow}\n"
    comment = "   # photos of one group are never in both train and test"
    lines = [
        f"name: {name}",
        "seed: 42",
        "data:",
        f"  source: {{{', '.join(draft.source)}}}",
        f"  test: {draft.test}",
        "  labels:",
        *labels,
        *(
            f"    #{_label_line(label)}   # remove the # to classify it too"
            for label in draft.doubtful
        ),
        f"  group: {draft.group}{comment}",
    ]
    if draft.leave_out or any(label.n_missing for label in draft.labels):
        lines.append(f"  unlabelled: leave_out   # photos that have no class{_keep_comment(draft)}")
    lines.append("  split: {strategy: balanced_profile, val: 0.2, seed: 0}")
    return "\n".join(lines) + "\n" + _TAIL.format(second=second, folds=n_folds)


def _keep_comment(draft: _Draft) -> str:
    """Return what the other choice does, where a photo that lacks a label can train another."""
    lacking = [label for label in draft.labels if label.n_missing or label.left_out]
    others = [_identifier(label.column) for label in draft.labels if label not in lacking[:1]]
    others += ["photo"] if draft.stem else []
    if not lacking or not others:
        return ""
    name = _identifier(lacking[0].column)
    return f"; or `keep`: a photo without {name} still trains {others[0]}"


def _label_line(label: column_meanings.Labels) -> str:
    rule = f"classes: [{', '.join(map(_class_text, label.classes))}]"
    if label.bins:
        rule = f"bins: [{', '.join(f'{cut:g}' for cut in label.bins)}]"
    name = _identifier(label.column)
    return f"{name}: {{from: column, column: {_quote(label.column)}, {rule}}}"


def _class_text(name: str) -> str:
    """Write a class; a plain number needs no quotes."""
    return name if re.fullmatch(r"0|-?[1-9][0-9]{0,8}", name) else _quote(name)


def _spec_name(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
    return name[:60] or "experiment"


def _identifier(text: str) -> str:
    if text == "folder":
        return "class"
    plain = re.sub(r"\W", "_", text)
    return plain if plain.isidentifier() else f"c_{plain}"


def _quote(text: str) -> str:
    """Quote a text that YAML would read as something else."""
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII) and text.lower() not in _YAML_WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


# ------------------------------------------------------------------------------------ the data


def _from_folders(folder: Path, root: str, tables: list[folder_survey.FoundTable]) -> _Draft:
    tree = folder_survey.read_classes(folder)
    if tree is None:
        raise SpecError(_nothing(folder, tables))
    paths = []
    labels = []
    for name, photos in tree.photos.items():
        paths += [f"{name}/{photo}" for photo in photos]
        labels += [name] * len(photos)
    proposal = column_meanings.propose_group_of_names(paths, labels)
    test = "{hold_out: 0.15}"
    where = f"root: {_quote(root)}"
    lines = [f"{folder.name}/"]
    below = "" if tree.images == "." else f"{tree.images}/"
    for name, photos in tree.photos.items():
        lines.append(f"  {below}{name}/   {len(photos)} photos")
    if tree.test is not None:
        test = f"{{layout: folder, {where}, images: {_quote(tree.test)}}}"
        if tree.test_has_classes:
            test = f"{{layout: class_folders, {where}, images: {_quote(tree.test)}, label: folder}}"
        n_photos = folder_survey.count_photos(folder / tree.test)
        lines.append(f"  {tree.test}/   {n_photos} photos for the test")
    source = ["layout: class_folders", where]
    if tree.images != "images":
        source.append(f"images: {_quote(tree.images)}")
    return _Draft(
        source,
        [column_meanings.Labels("folder", classes=list(tree.photos))],
        proposal.spec if proposal else "sample_id",
        lines,
        test=test,
        leave_out=tree.has_others,
    )


def _nothing(folder: Path, tables: list[folder_survey.FoundTable]) -> str:
    """Say what is missing in a folder of no known layout."""
    n_photos = folder_survey.count_photos(folder)
    if tables and n_photos:
        table = tables[0]
        return (
            f"{table.path}: a column with the names of the photos was required beside columns of "
            f"labels, found {', '.join(table.columns)}; none of them names the {n_photos} photos "
            f"below {folder}"
        )
    if not n_photos:
        return f"{folder}: photos below it were required, found none; move them there"
    return (
        f"{folder}: one folder of photos per class was required (or a table of labels), found "
        f"{n_photos} photos in fewer than two folders; sort them into folders or add a table"
    )


def _from_table(
    folder: Path, root: str, tables: list[folder_survey.FoundTable], train: folder_survey.FoundTable
) -> _Draft:
    group = column_meanings.propose_group_column(train)
    labels = column_meanings.propose_labels(train, group)
    contest = folder_survey.choose_submission(tables, train)
    answers: list[str] = []
    if contest is not None:
        answers = [name for name in contest.columns if name != contest.photo_column]
        wanted = [label for label in labels if label.column in answers]
        labels = wanted or labels
    stem = ""
    layout = "profile_folders" if train.are_folders else "table"
    if train.are_folders:
        images = folder / train.images
        names = train.columns[train.photo_column].values[:5]
        stem = _stem_label([images / name for name in names])
    if not labels and not stem:
        raise SpecError(
            f"{train.path}: a column of labels was required (2 to {column_meanings.MAX_CLASSES} values that "
            f"repeat, or numbers), found {', '.join(train.columns)}"
        )
    groups = _groups_of_rows(folder, train, labels, group)
    doubtful = []
    for label in labels:
        is_asked = label.column in answers
        if not is_asked and column_meanings.is_doubtful(label, labels, train, groups.groups):
            doubtful.append(label)
    labels = [label for label in labels if label not in doubtful]
    source = [f"layout: {layout}", f"root: {_quote(root)}"]
    if train.images != "images":
        source.append(f"images: {_quote(train.images)}")
    source.append(f"table: {_quote(train.path.name)}")
    if layout == "table":
        source.append(f"path: {_quote(train.photo_column)}")
    tree = _tree(folder, tables, train)
    draft = _Draft(source, labels, groups.spec, tree, stem=stem, doubtful=doubtful)
    unused = [
        name
        for name in train.columns
        if name
        not in {train.photo_column, group, *(label.column for label in [*labels, *doubtful])}
    ]
    if unused:
        draft.notes.append(f"Columns that are not used: {', '.join(unused)}")
    if contest is None:
        return draft
    return replace(draft, test=_contest_test(root, contest, answers, labels))


def _contest_test(
    root: str,
    contest: folder_survey.FoundTable,
    answers: list[str],
    labels: list[column_meanings.Labels],
) -> str:
    """Return a test section whose submission has the form of the sample."""
    parts = [f"root: {_quote(root)}"]
    if contest.images != "images":
        parts.append(f"images: {_quote(contest.images)}")
    parts += [f"table: {_quote(contest.path.name)}", f"id: {_quote(contest.photo_column)}"]
    if len(answers) == 1:
        parts.append(f"answer: {_quote(answers[0])}")
    elif len(answers) == len(labels):
        parts.append(f"answer: [{', '.join(map(_quote, answers))}]")
    return f"{{{', '.join(parts)}}}"


def _groups_of_rows(
    folder: Path,
    train: folder_survey.FoundTable,
    labels: list[column_meanings.Labels],
    column: str | None,
) -> column_meanings.GroupProposal:
    """Return the groups of a column, else of the names; none where every photo is its own."""
    own = column_meanings.GroupProposal("sample_id", [])
    if column is not None:
        return column_meanings.GroupProposal(_quote(column), train.columns[column].cells)
    if train.are_folders:
        return own
    names = train.columns[train.photo_column].cells
    paths = resolve(str(folder / train.images), names).paths
    shown = [train.columns[label.column].cells for label in labels if label.classes]
    texts = [""] * len(paths)
    if shown:
        texts = list(map("/".join, zip(*shown, strict=True)))
    return column_meanings.propose_group_of_names(paths, texts) or own


def _tree(
    folder: Path, tables: list[folder_survey.FoundTable], train: folder_survey.FoundTable
) -> list[str]:
    lines = [f"{folder.name}/"]
    for name in folder_survey.photo_folders(folder):
        n_photos = folder_survey.count_photos(folder / name) if name != "." else 0
        if n_photos:
            lines.append(f"  {name}/   {n_photos} photos")
    for table in tables:
        use = "" if table is train else "   (not used)"
        if folder_survey.choose_submission(tables, train) is table:
            use = "   (the form of the submission)"
        columns = ", ".join(table.columns)
        lines.append(f"  {table.path.name}   {table.n_rows} rows: {columns}{use}")
    return lines


def _stem_label(profiles: list[Path]) -> str:
    """Return a label of the file stems in some folders, if they differ in more than numbers."""
    stems: set[str] = set()
    for folder in profiles:
        if folder.is_dir():
            stems |= {
                photo.stem for photo in folder.iterdir() if folder_survey.is_photo(photo.name)
            }
    stems_by_class: dict[str, list[str]] = {}
    for stem in sorted(stems):
        stems_by_class.setdefault(stem.rstrip("0123456789") or stem, []).append(stem)
    if len(stems_by_class) < 2:
        return ""
    patterns = []
    for name, members in stems_by_class.items():
        pattern = members[0] if len(members) == 1 else f"{name}*"
        patterns.append(f"{_identifier(name)}: {_quote(pattern)}")
    comment = "# check which stems mean the same"
    return f"    photo: {{from: stem, classes: {{{', '.join(patterns)}}}}}   {comment}"


def write_examples(folder: Path) -> list[Path]:
    """Write the specs for the drawn sample data into a folder; return their paths, quickstart first.

    Raises:
        SpecError: one of them exists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in ("quickstart.yaml", "smoke.yaml"):
        path = folder / name
        if path.exists():
            raise SpecError(f"{path}: a new file was required, it exists; choose another folder")
        text = resources.files("orchestrator.spec").joinpath("examples", name).read_text("utf-8")
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
