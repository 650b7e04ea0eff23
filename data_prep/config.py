"""The `data` section of a spec."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from data_prep.roots.places import require_root
from data_prep.section_base import Fraction, Section, Seed, check_rule, how, since


def _below_the_root(folder: str) -> str:
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts or "\\" in folder:
        raise ValueError(f"a folder below the root was required, such as train, found {folder!r}")
    return folder


DataRoot = Annotated[str, AfterValidator(require_root)]
"""A folder, or the URL of a bucket without keys."""
ImagesFolder = Annotated[str, AfterValidator(_below_the_root)]
"""The folder of the photos below a root; paths are relative to it. "." is the root itself."""


class ProfileFolders(Section):
    """One folder of photos per person below `root/images/`.

    A table has one row per folder (column `path`).
    """

    layout: Literal["profile_folders"] = "profile_folders"
    """One folder of photos per person."""
    root: DataRoot = how()  # the fingerprint of its files identifies it, wherever it lies
    """Folder of the data set, or s3://BUCKET/PREFIX; a relative one counts from the spec's own folder."""
    images: ImagesFolder = how("images")
    """Folder of the photos below `root`."""
    table: str = "train.csv"
    """CSV or Parquet file below `root`, one row per person's folder."""


class ClassFolders(Section):
    """`root/images/<class>/<photo>`, no table. The folder is the column `folder`."""

    layout: Literal["class_folders"] = "class_folders"
    """One folder of photos per class."""
    root: DataRoot = how()  # the fingerprint of its files identifies it, wherever it lies
    """Folder of the data set, or s3://BUCKET/PREFIX; a relative one counts from the spec's own folder."""
    images: ImagesFolder = how("images")
    """Folder of the class folders below `root`; `.` is the root itself."""


class Table(Section):
    """A CSV or Parquet table with one row per photo and a path column, relative to `root/images/`."""

    layout: Literal["table"] = "table"
    """One table with a row per photo."""
    root: DataRoot = how()  # the fingerprint of its files identifies it, wherever it lies
    """Folder of the data set, or s3://BUCKET/PREFIX; a relative one counts from the spec's own folder."""
    images: ImagesFolder = how("images")
    """Folder below `root` that the paths of the table count from."""
    table: str
    """CSV or Parquet file below `root`, one row per photo."""
    path: str = "path"
    """Column with the path of the photo."""


Source = Annotated[ProfileFolders | ClassFolders | Table, Field(discriminator="layout")]


class TestTable(Section):
    """A separate test set: photos named by the column `id` of a table, or all of a folder.

    With layout class_folders the column `folder` has the classes, as in the source.
    """

    __test__ = False  # the name is the field's word, not a test class for pytest

    layout: Literal["table", "class_folders", "folder"] = since("table")
    """How the test photos are named: by a table, by folders of classes, or by nothing."""
    root: DataRoot = how()  # the fingerprint of its files identifies it, wherever it lies
    """Folder of the test set, or s3://BUCKET/PREFIX; a relative one counts from the spec's own folder."""
    images: ImagesFolder = how("images")
    """Folder of the test photos below `root`."""
    table: str = "info.csv"
    """CSV or Parquet file below `root`, one row per test photo, in the order of the answer."""
    id: str = "ImageID"
    """Column with the name of the photo; the first column of `submission.csv`."""
    label: str | list[str] | None = None
    """The column of the classes (names or codes), or a column per label, in the labels' order."""
    group: str | None = None
    """Column with the group, where it is known; intervals then resample groups."""
    answer: str | list[str] | None = since(None)
    """The column of class names in submission.csv, or one per label; without it the codes `ans`."""
    public: Fraction | None = None  # share of the test set that `leaderboard` may use
    """Share of the test set that policy `leaderboard` may look at."""

    @model_validator(mode="after")
    def _folders_have_no_columns(self) -> Self:
        if self.layout == "class_folders" and self.label not in {None, "folder"}:
            raise ValueError(
                "layout class_folders has the column folder alone; write label: folder, "
                f"found {self.label!r}"
            )
        if self.layout == "folder" and self.label is not None:
            raise ValueError(
                "layout folder has no labels; remove label, or use layout class_folders or table"
            )
        if self.layout != "table" and self.group is not None:
            raise ValueError("group names a column of a table; use a rule in data.group")
        return self


class TestHoldOut(Section):
    """A test set taken out of the source by group."""

    __test__ = False

    hold_out: Fraction
    """Share of the groups that become the test set."""
    public: Fraction | None = None  # as above
    """Share of the test set that policy `leaderboard` may look at."""


Patterns = dict[str, str | list[str]]


class StemLabel(Section):
    """A label read from the file's stem: class name -> shell pattern(s)."""

    source: Literal["stem"] = Field("stem", alias="from")
    """The label is read from the file's name without its extension."""
    classes: Annotated[Patterns, Field(min_length=2)]
    """Class name -> shell pattern or patterns; the first class that fits is taken."""


def _class_name(value: Any) -> Any:
    """Let a number or a truth value stand for its text: 0 for "0", true for "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


ClassName = Annotated[
    str,
    BeforeValidator(_class_name),
    WithJsonSchema({"type": ["string", "number", "boolean"]}, mode="validation"),
]


class _ValueLabel(Section):
    classes: Annotated[list[ClassName], Field(min_length=2)] | None = None
    """The values that are classes, in the order of their codes."""
    bins: Annotated[list[float], Field(min_length=1)] | None = None
    """Borders that cut a number into classes; a border belongs to the class above it."""
    train_bins: Annotated[list[float], Field(min_length=1)] | None = None
    """Borders for training samples alone; what is scored keeps `bins`."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.classes is None) == (self.bins is None):
            raise ValueError(
                "needs either classes (a list of values) or bins (a list of borders), not both"
            )
        if self.train_bins is not None and len(self.train_bins) != len(self.bins or []):
            raise ValueError(
                "train_bins moves the borders of bins in training: as many were required, "
                f"found {self.train_bins} for bins {self.bins}"
            )
        return self

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str] | None) -> list[str] | None:
        if classes and len(set(classes)) < len(classes):
            raise ValueError(f"classes must differ, found {classes}")
        return classes

    @field_validator("bins", "train_bins")
    @classmethod
    def _ascending(cls, bins: list[float] | None) -> list[float] | None:
        if bins and any(a >= b for a, b in pairwise(bins)):
            raise ValueError(f"bins must ascend, found {bins}")
        return bins


class ColumnLabel(_ValueLabel):
    """A label read from a column of the table: listed values, or bins of a number (left-closed)."""

    source: Literal["column"] = Field("column", alias="from")
    """The label is read from a column of the table."""
    column: str
    """Name of the column."""


class FolderLabel(_ValueLabel):
    """A label read from a part of the folder's name, cut at `separator` (parts count from 0)."""

    source: Literal["folder"] = Field("folder", alias="from")
    """The label is read from the name of the photo's folder."""
    part: Annotated[int, Field(ge=0)] = 0
    """Which part of the name, counted from 0."""
    separator: str = "_"
    """What the name is cut at."""


def _is_pattern(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(
            f"a regular expression was required, {pattern!r} is none: {error}"
        ) from None
    if "group" not in groups:
        raise ValueError(
            "a part named group was required, such as 'plant-(?P<group>[0-9]+)', "
            f"found none in {pattern!r}"
        )
    return pattern


class NameGroup(Section):
    """A group read from the file's name: the part of it that `pattern` calls `group`.

    The pattern is searched in the name without its extension; one with a slash is searched in the
    path below the photos' folder.
    """

    source: Literal["name"] = Field("name", alias="from")
    """The group is read from the file's name."""
    pattern: Annotated[str, AfterValidator(_is_pattern)]
    """Regular expression with a part named `group`, such as `plant-(?P<group>[0-9]+)`."""


class FolderGroup(Section):
    """A group read from the photo's folder: its name, or a part of it cut at `separator`."""

    source: Literal["folder"] = Field("folder", alias="from")
    """The group is read from the name of the photo's folder."""
    part: Annotated[int, Field(ge=0)] | None = None
    """Which part of the name, counted from 0; null takes the whole name."""
    separator: Annotated[str, Field(min_length=1)] = "_"
    """What the name is cut at."""


GroupRule = Annotated[NameGroup | FolderGroup, Field(discriminator="source")]
_GROUP_RULE: TypeAdapter[NameGroup | FolderGroup] = TypeAdapter(GroupRule)


def _group(value: Any) -> Any:
    """Choose by the form, so that a message is about one form and not about all."""
    return _GROUP_RULE.validate_python(value) if isinstance(value, dict) else value


Group = Annotated[str | NameGroup | FolderGroup, BeforeValidator(_group)]


Label = Annotated[StemLabel | ColumnLabel | FolderLabel, Field(discriminator="source")]


class Split(Section):
    """How labelled samples become train and val, and how folds are dealt."""

    strategy: Literal["random", "profile", "balanced_profile"] = "balanced_profile"
    """`random` deals single photos, so that a person may be on both sides; `profile` deals whole
    groups by chance; `balanced_profile` deals whole groups and keeps the shares of those labels
    that are constant in most groups.
    """
    val: Fraction = 0.2
    """Share of the groups that search validates on."""
    seed: Seed = 0
    """Seed of the split; the same seed gives the same groups."""


class Data(Section):
    """Where the photos are, what their labels mean, and who must never be on both sides."""

    source: Source
    """Where the photos and their table are; `layout` chooses the form."""
    test: TestTable | TestHoldOut | None = None
    """A separate test set, or `hold_out` to take one from the source; null for none."""
    labels: Annotated[dict[str, Label], Field(min_length=1)]
    """Label name -> where it is read; all labels together give the joint class."""
    group: Group
    """A column, sample_id (every photo is its own group), or a rule about names or folders."""
    join_duplicates: bool = False
    """Let groups that share a photo, or a near-duplicate of one, be one group."""
    not_copies: Literal["all"] | list[Annotated[list[str], Field(min_length=2)]] = since([])
    """Photos that were looked at and only look alike: lists of sample ids, or `all`. They count as no
    near-duplicates of each other, and join no groups. Equal files stay copies.
    """
    unlabelled: Literal["refuse", "leave_out", "keep"] = since("refuse")
    """What happens to photos that have no class of some label: the run stops, they are left out, or
    they train the labels that they have. Scores count photos with all labels alone.
    """
    exclude: list[dict[str, Any]] = []
    """Rules about columns; a photo that fits one is never trained on, but is still scored."""
    split: Split = Split()
    """How groups become train and val."""

    @field_validator("labels")
    @classmethod
    def _plain_names(cls, labels: dict[str, Any]) -> dict[str, Any]:
        for name in labels:
            if not name.isidentifier():
                raise ValueError(
                    f"a label's name must be letters, digits and underscores, found {name!r}"
                )
        return labels

    @property
    def group_text(self) -> str:
        """The group as a reader calls it: a column, or where in the names it is read."""
        if isinstance(self.group, NameGroup):
            before = re.search(r"([A-Za-z]{3,})[-_ ]*\(\?P<group>", self.group.pattern)
            word = before[1].lower() if before else "part"
            return f"{word} in the name of the photo"
        if isinstance(self.group, FolderGroup):
            part = self.group.part
            return "folder of the photo" if part is None else f"part {part} of the folder"
        return self.group

    @field_validator("exclude")
    @classmethod
    def _rules(cls, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for rule in rules:
            for column, wanted in rule.items():
                check_rule(f"exclude.{column}", wanted)
        return rules
