"""The cache of prepared texts: what is prepared again, and what a failure leaves."""

import subprocess
import sys

import pytest

from tests.conftest import write_csv
from tests.data.conftest import build_splits
from tfft import preprocess
from tfft.utils.errors import UserError


def test_prepared_rows_equal_the_source(config):
    data, inputs = build_splits(config)
    split = data.test
    for position in (0, 7, len(split) - 1):
        texts = split.raw_row(position)
        ids, segments = split.prepared.tokens(int(split.rows[position]))
        (expected, expected_segments, _), *_ = inputs.encode(list(texts))
        assert ids.tolist() == expected and segments.tolist() == expected_segments
    assert data.labels == tuple(data.train.prepared.names)


def test_second_run_does_not_tokenise(config, monkeypatch):
    first, _ = build_splits(config)
    calls = []
    monkeypatch.setattr(preprocess.TextInputs, "encode", lambda *a: calls.append(a))
    second, _ = build_splits(config)
    assert not calls
    assert second.train.prepared.folder == first.train.prepared.folder


def test_changed_content_or_tokenizer_is_prepared_again(config, tmp_path):
    first, _ = build_splits(config)
    longer, _ = build_splits(config, max_length=8)
    assert longer.train.prepared.folder != first.train.prepared.folder
    write_csv(tmp_path / "train.csv", 121)
    changed, _ = build_splits(config)
    assert changed.train.prepared.folder != first.train.prepared.folder


def test_failed_preparation_leaves_no_files(config, tmp_path, cache):
    path = write_csv(tmp_path / "b.csv", 60)
    path.write_text(path.read_text() + "broken,row,here\n")
    folders = set((cache / "tokens").iterdir()) if (cache / "tokens").is_dir() else set()
    with pytest.raises(UserError):
        build_splits(config, train=str(path), test=None)
    assert set((cache / "tokens").iterdir()) == folders


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
