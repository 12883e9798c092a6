"""Splits built from a config: their labels, and bad rows."""

import numpy as np
import pytest

from tests.conftest import write_csv
from tests.data.conftest import build_splits
from tfft.utils.errors import UserError


def test_labels_from_names_indices_and_file(config, tmp_path):
    (tmp_path / "n.csv").write_text("text,label\n" + "red,0\nsky,1\ngrass,1\nred,0\n" * 4)
    (tmp_path / "names.txt").write_text("cold\nwarm\n")
    common = {"train": str(tmp_path / "n.csv"), "test": None}
    data, _ = build_splits(config, labels=str(tmp_path / "names.txt"), **common)
    assert data.labels == ("cold", "warm")
    assert (
        sorted(np.concatenate([data.train.targets, data.validation.targets])) == [0] * 8 + [1] * 8
    )
    data, _ = build_splits(
        config, labels=["1", "0"], **common
    )  # a name takes precedence over an index
    assert data.train.targets[0] == data.labels.index("0")


def test_unknown_label_is_reported_with_its_row(config, tmp_path):
    (tmp_path / "test.csv").write_text("text,label\nsky,red\nsky,gren\n")
    with pytest.raises(UserError, match=r"test.csv:3: label 'gren' is not a class; did you mean"):
        build_splits(config)


def test_one_class_is_refused(config, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\n" + "sky,red\n" * 9)
    with pytest.raises(UserError, match="at least two classes"):
        build_splits(config, train=str(tmp_path / "one.csv"), test=None)


def test_bad_row_stops_or_is_skipped_and_listed(config, tmp_path):
    path = write_csv(tmp_path / "b.csv", 60)
    path.write_text(path.read_text() + "broken,row,here\n")
    with pytest.raises(UserError, match=r"b.csv:62: 3 columns .*on_bad_row: skip"):
        build_splits(config, train=str(path), test=None)
    data, _ = build_splits(config, train=str(path), test=None, on_bad_row="skip")
    assert data.train.prepared.rows == 60 and data.train.prepared.bad == 1
    assert data.bad_rows[0].startswith(f"{path}:62: ")
