"""The test photos: their labels, and the order of their table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.catalog.answers_table import read_answers
from data_prep.catalog.label_schema import Schema
from data_prep.catalog.photo_listing import Listing, list_source, list_test
from data_prep.catalog.photo_paths import sample_id_of
from data_prep.config import Data, TestHoldOut, TestTable
from data_prep.label_codes import read_codes


def labels_of_test_photos(data: Data, base: Path, catalog: pa.Table) -> pa.Table | None:
    """Read the test set's labels, from its table or the source. None where the spec names none.

    Returns:
        sample_id, label (single code) for every test photo, quarantined ones too, in the catalog's
        order.

    Raises:
        DataError: a label is missing or no class.
    """
    schema = Schema.of(data.labels)
    ids = _test_samples(catalog)
    if isinstance(data.test, TestHoldOut):
        answers = _held_out_answers(data, base, schema, set(ids))
    elif isinstance(data.test, TestTable) and data.test.label:
        answers = {
            sample_id_of("test", name): label for name, label in read_answers(data, base).items()
        }
    else:
        return None
    labels = [answers[sample] for sample in ids]
    return pa.table(
        {"sample_id": pa.array(ids, pa.string()), "label": pa.array(labels, pa.int64())}
    )


def order_of_test_photos(data: Data, base: Path, catalog: pa.Table) -> list[tuple[str, str]]:
    """Return (sample_id, ImageID) of the test photos in their table's order.

    Without a table, the order is that of the catalog.
    """
    if isinstance(data.test, TestTable):
        listing = list_test(data.test, base)
        return list(zip(_test_ids(listing), map(str, listing.columns["ImageID"]), strict=True))
    return [(sample, sample.partition("/")[2]) for sample in _test_samples(catalog)]


def _test_samples(catalog: pa.Table) -> list[str]:
    return [sample for sample in catalog["sample_id"].to_pylist() if sample.startswith("test/")]


def _held_out_answers(data: Data, base: Path, schema: Schema, wanted: set[str]) -> dict[str, int]:
    source = list_source(data.source, base)
    ids = _test_ids(source)
    held_out = source.where(lambda index: ids[index] in wanted)
    codes = np.array(read_codes(data.labels, held_out.relatives, held_out.columns), dtype=np.int64)
    return dict(zip(_test_ids(held_out), schema.encode(codes.T).tolist(), strict=True))


def _test_ids(listing: Listing) -> list[str]:
    return [sample_id_of("test", relative) for relative in listing.relatives]
