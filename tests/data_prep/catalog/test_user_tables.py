"""Tables as people save them: other separators, encodings, index columns, dates, gaps."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.catalog.user_tables import open_table
from data_prep.errors import DataError

HEADER = ["photo", "plant", "state"]
ROWS = [["a,1.png", "7", "dry"], ["b.png", "007", "wet"]]


def table(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_text(text, encoding=encoding, newline="")
    return open_table(path, "data.source.table")


@pytest.mark.parametrize(
    ("mark", "name", "note"),
    [
        (",", "t.csv", None),
        (";", "t.csv", "semicolons"),
        ("\t", "t.csv", "tabs"),
        ("\t", "t.TSV", "tabs"),
        ("|", "t.txt", "bars"),
    ],
)
def test_separators_are_seen_in_the_header(tmp_path, mark, name, note):
    lines = [mark.join(f'"{cell}"' for cell in row) for row in [HEADER, *ROWS]]
    read = table(tmp_path, "\r\n".join(lines), name)
    assert read.columns == {
        "photo": ["a,1.png", "b.png"],
        "plant": ["7", "007"],
        "state": ["dry", "wet"],
    }
    assert [note in text for text in read.notes] == ([True] if note else [])


def test_a_separator_inside_names_does_not_decide(tmp_path):
    read = table(tmp_path, "photo;weight, kg;plant\na.png;1,5;p1\nb.png;2;p2\n")
    assert list(read.columns) == ["photo", "weight, kg", "plant"]
    read = table(tmp_path, "photo,a;b,plant\nx.png,1;2,p1\n")
    assert list(read.columns) == ["photo", "a;b", "plant"]


def test_a_column_without_a_name_is_passed_over_if_it_is_an_index_or_empty(tmp_path):
    read = table(tmp_path, ",photo,plant,\n0,a.png,p1,\n1,b.png,p2,\n")
    assert read.columns == {"photo": ["a.png", "b.png"], "plant": ["p1", "p2"]}
    assert ["t.csv: column 1, 4 has no name and is passed over"] == read.notes
    with pytest.raises(DataError, match="distinct column names was required, found"):
        table(tmp_path, "photo,,plant\na.png,data,p1\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    read = table(tmp_path, "photo,종\na.png,장미\n", encoding=encoding)
    assert {"photo": ["a.png"], "종": ["장미"]} == read.columns


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp949", "photo,종\na.png,장미\n"), ("cp1252", "photo,État\na.png,sèche\n")],
)
def test_another_encoding_is_named_with_the_command_that_changes_it(tmp_path, encoding, text):
    with pytest.raises(DataError, match=rf"UTF-8 was required.*{encoding}.*iconv -f ") as raised:
        table(tmp_path, text, encoding=encoding)
    assert "\n" not in str(raised.value)


def test_a_row_that_is_too_long_names_its_line(tmp_path):
    with pytest.raises(
        DataError, match=r"t\.csv:3: 2 cells were required \(photo, plant\), found 3"
    ):
        table(tmp_path, "photo,plant\na.png,p1\nb.png,p2,x\n")


def test_a_name_twice_is_named(tmp_path):
    with pytest.raises(DataError, match="'plant' twice"):
        table(tmp_path, "plant,photo,plant\n1,a.png,2\n")


def test_dates_and_gaps_of_parquet_are_text_and_empty(tmp_path):
    days = [dt.date(2025, 3, 1), None]
    noon = [dt.datetime(2025, 3, 1, 12), dt.datetime(2025, 3, 2)]
    columns = {
        "day": pa.array(days),
        "midnight": pa.array(
            [dt.datetime(2025, 3, 1), dt.datetime(2025, 3, 2)], pa.timestamp("ns")
        ),
        "noon": pa.array(noon, pa.timestamp("us")),
        "plant": pa.array([1.0, float("nan")]),
        "parts": pa.array([[1], [2]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    read = open_table(tmp_path / "t.parquet", "data.source.table")
    assert read.columns == {
        "day": ["2025-03-01", None],
        "midnight": ["2025-03-01", "2025-03-02"],
        "noon": ["2025-03-01T12:00:00", "2025-03-02T00:00:00"],
        "plant": [1.0, None],
    }
    assert ["parts" in note for note in read.notes] == [True]
