"""The cache of prepared texts, the splits, and the plan of batches."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import write_csv
from tfft import preprocess
from tfft.config import parse
from tfft.data import batches
from tfft.data.dataset_builder import DatasetSettings, build
from tfft.data.splits import stratified
from tfft.utils.errors import UserError


def splits(config, **changes):
    parsed = parse(config, changes={"data": changes})
    inputs = preprocess.load(parsed.model, parsed.data)
    return build(parsed.data, inputs, DatasetSettings(parsed.train.seed)), inputs


def test_prepared_rows_equal_the_source(config):
    data, inputs = splits(config)
    split = data.test
    for position in (0, 7, len(split) - 1):
        texts = split.raw(position)
        ids, segments = split.prepared.tokens(int(split.rows[position]))
        (expected, expected_segments, _), *_ = inputs.encode(list(texts))
        assert ids.tolist() == expected and segments.tolist() == expected_segments
    assert data.labels == tuple(data.train.prepared.names)


def test_second_run_does_not_tokenise(config, monkeypatch):
    first, _ = splits(config)
    calls = []
    monkeypatch.setattr(preprocess.TextInputs, "encode", lambda *a: calls.append(a))
    second, _ = splits(config)
    assert not calls
    assert second.train.prepared.folder == first.train.prepared.folder


def test_changed_content_or_tokenizer_is_prepared_again(config, tmp_path):
    first, _ = splits(config)
    longer, _ = splits(config, max_length=8)
    assert longer.train.prepared.folder != first.train.prepared.folder
    write_csv(tmp_path / "train.csv", 121)
    changed, _ = splits(config)
    assert changed.train.prepared.folder != first.train.prepared.folder


def test_labels_from_names_indices_and_file(config, tmp_path):
    (tmp_path / "n.csv").write_text("text,label\n" + "red,0\nsky,1\ngrass,1\nred,0\n" * 4)
    (tmp_path / "names.txt").write_text("cold\nwarm\n")
    common = {"train": str(tmp_path / "n.csv"), "test": None}
    data, _ = splits(config, labels=str(tmp_path / "names.txt"), **common)
    assert data.labels == ("cold", "warm")
    assert sorted(np.concatenate([data.train.labels, data.validation.labels])) == [0] * 8 + [1] * 8
    data, _ = splits(config, labels=["1", "0"], **common)  # a name takes precedence over an index
    assert data.train.labels[0] == data.labels.index("0")


def test_unknown_label_is_reported_with_its_row(config, tmp_path):
    (tmp_path / "test.csv").write_text("text,label\nsky,red\nsky,gren\n")
    with pytest.raises(UserError, match=r"test.csv:3: label 'gren' is not a class; did you mean"):
        splits(config)


def test_one_class_is_refused(config, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\n" + "sky,red\n" * 9)
    with pytest.raises(UserError, match="at least two classes"):
        splits(config, train=str(tmp_path / "one.csv"), test=None)


def test_bad_row_stops_or_is_skipped_and_listed(config, tmp_path):
    path = write_csv(tmp_path / "b.csv", 60)
    path.write_text(path.read_text() + "broken,row,here\n")
    with pytest.raises(UserError, match=r"b.csv:62: 3 columns .*on_bad_row: skip"):
        splits(config, train=str(path), test=None)
    data, _ = splits(config, train=str(path), test=None, on_bad_row="skip")
    assert data.train.prepared.rows == 60 and data.train.prepared.bad == 1
    assert data.bad_rows[0].startswith(f"{path}:62: ")


def test_failed_preparation_leaves_no_files(config, tmp_path, cache):
    path = write_csv(tmp_path / "b.csv", 60)
    path.write_text(path.read_text() + "broken,row,here\n")
    folders = set((cache / "tokens").iterdir()) if (cache / "tokens").is_dir() else set()
    with pytest.raises(UserError):
        splits(config, train=str(path), test=None)
    assert set((cache / "tokens").iterdir()) == folders


def test_stratified_keeps_proportions_and_is_seeded():
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    train, held_out = stratified(labels, 0.2, seed=3)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [20, 2, 0]
    assert sorted([*train, *held_out]) == list(range(111))
    repeated = stratified(labels, 0.2, seed=3)
    np.testing.assert_array_equal(held_out, repeated[1])
    assert not np.array_equal(held_out, stratified(labels, 0.2, seed=4)[1])


def test_fractional_splits_do_not_overlap(config):
    data, _ = splits(config, test={"fraction": 0.25})
    rows = [set(s.rows.tolist()) for s in (data.train, data.validation, data.test)]
    assert sum(map(len, rows)) == 120 == len(set.union(*rows))


def brute_force(lengths, max_buckets):
    from itertools import combinations

    rounded = -(-lengths // 8) * 8
    values = sorted(set(rounded.tolist()))
    best = None
    for num_edges in range(1, min(max_buckets, len(values)) + 1):
        for inner in combinations(values[:-1], num_edges - 1):
            edges = np.array([*inner, values[-1]])
            cost = edges[np.searchsorted(edges, lengths)].sum()
            best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_widths_are_optimal(count):
    lengths = np.random.default_rng(count).geometric(0.03, 300)
    edges = np.array(batches.widths(lengths, count))
    assert len(edges) <= count and (edges % 8 == 0).all()
    assert edges[np.searchsorted(edges, lengths)].sum() == brute_force(lengths, count)


def test_plan_covers_every_row_once():
    lengths = np.random.default_rng(0).integers(3, 60, 205)
    widths = batches.widths(lengths, 4)
    plan = batches.plan(lengths, 16, widths, seed=1, epoch=2)
    assert len(plan) == 13  # ceil(205 / 16)
    assert sorted(np.concatenate([b.positions for b in plan])) == list(range(205))
    assert sum(len(b.positions) < 16 for b in plan) == 1
    assert all((lengths[b.positions] <= b.width).all() and b.width in widths for b in plan)
    repeated = batches.plan(lengths, 16, widths, seed=1, epoch=2)
    assert all((a.positions == b.positions).all() for a, b in zip(plan, repeated, strict=True))
    next_epoch = batches.plan(lengths, 16, widths, seed=1, epoch=3)
    assert any(
        len(a.positions) != len(b.positions) or (a.positions != b.positions).any()
        for a, b in zip(plan, next_epoch, strict=True)
    )


def test_padding_share():
    lengths = np.array([8, 8, 4])
    plan = batches.in_order(lengths, 3)
    assert batches.padding_share(lengths, plan) == pytest.approx(1 - 20 / 24)


def test_dataset_pads_tokens_and_keeps_weights(config):
    data, inputs = splits(config)
    plan = batches.in_order(data.test.lengths, 8)
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    rows, row_weights = batches.Tokens(data.test, inputs.pad_id), weights[data.test.labels]
    num_rows = 0
    dataset = batches.dataset(rows, data.test.labels, row_weights, plan)
    for arrays, labels, weight in dataset:
        np.testing.assert_array_equal(weight, weights[labels])
        mask = arrays["padding_mask"].numpy()
        assert (arrays["token_ids"].numpy()[mask == 0] == inputs.pad_id).all()
        assert (mask.sum(1) >= 3).all()
        num_rows += len(labels)
    assert num_rows == len(data.test)


MEMORY = """
import re, sys
from tfft.config import Source
from tfft.data.prepared import Request
from tfft.data.texts import prepare
from tfft.preprocess import TextInputs
from pathlib import Path
inputs = TextInputs(Path(sys.argv[1]).read_text(), 16)
request = Request(Source(source="csv", path=sys.argv[2]), ("text", "label"), "data.train", "stop")
prepare(request, inputs, Path(sys.argv[3]))
# Not getrusage: its peak is inherited from the parent process.
print(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tiny, tmp_path):
    """Compare the peak memory of preparing a small and a large file, each in its own process."""
    from tfft.preprocess import tokenizer

    (tmp_path / "t.json").write_text(tokenizer.from_checkpoint(str(tiny)))
    peaks = []
    for rows in (8 * 4096, 64 * 4096):
        path = tmp_path / f"{rows}.csv"
        line = "the sky is blue " * 12 + ",a\n" + "a green apple " * 12 + ",b\n"
        path.write_text("text,label\n" + line * (rows // 2))
        command = [sys.executable, "-c", MEMORY, tmp_path / "t.json", path, tmp_path / "cache"]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(process.stdout.split()[-1]))
    size = (tmp_path / f"{64 * 4096}.csv").stat().st_size / 1024
    assert size > 45_000  # KiB
    assert peaks[1] - peaks[0] < size / 3, (peaks, size)
