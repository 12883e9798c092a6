"""Files that are torn, replaced, endless or hostile: each gives a one-line error."""

import io
import json
import os
import re
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from tests.data.conftest import build_splits
from tfft.config import Source
from tfft.data import images, sources
from tfft.data.records import BadRow, Row
from tfft.preprocess import image
from tfft.utils.errors import UserError
from tfft.utils.files import HOST
from tfft.utils.reading import library_errors, read_bytes


def read(path, kind="csv", columns=("text", "label"), **options):
    source = Source(source=kind, path=str(path), **options)
    return list(sources.read(source, columns, "data.train"))


def table(path, rows=("sky,red", "grass,green")):
    path.write_text("text,label\n" + "".join(f"{row}\n" for row in list(rows) * 9))
    return path


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    return tmp_path / "fifo.png"


# --- paths that are not regular files ---


def test_fifos_and_devices_are_refused_without_waiting(tmp_path, fifo):
    with pytest.raises(UserError, match=r"fifo\.png: is a FIFO or a device"):
        image.read(str(fifo))
    with pytest.raises(UserError, match="zero: is a FIFO or a device"):
        image.read("/dev/zero")
    with pytest.raises(UserError, match=r"is a FIFO or a device"):
        read(fifo)
    with pytest.raises(UserError, match=r"is a folder, not a regular file"):
        image.read(str(tmp_path))
    (tmp_path / "large.png").open("wb").truncate(1 << 40)
    with pytest.raises(UserError, match=r"large\.png: has 1,099,511,627,776 bytes; at most"):
        image.read(str(tmp_path / "large.png"))
    with pytest.raises(
        UserError, match="status: has more than 5 bytes"
    ):  # files in /proc have no size
        read_bytes("/proc/self/status", 5)


@pytest.mark.parametrize("kind", ["MemoryError", "ResourceExhaustedError", "ArrowMemoryError"])
def test_out_of_memory_is_not_blamed_on_the_file(kind):
    error = type(kind, (Exception,), {})
    expected = UserError if kind == "ArrowMemoryError" else error
    with pytest.raises(expected), library_errors("t.npz: not an npz file"):
        raise error("no more")


def test_cache_dir_of_an_unknown_user_is_refused(config):
    with pytest.raises(UserError, match=r"data\.cache_dir: no such user: ~nobody_of_"):
        build_splits(config, cache_dir="~nobody_of_this_name/x")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "~nobody_of_this_name/x.png"])
def test_invalid_path_is_refused(name):
    with pytest.raises(UserError, match="cannot be read"):
        image.read(name)
    rows = iter([Row("t.csv:2", (name, "a"))])
    assert next(sources.with_image_paths(rows)).values[1] == "a"


def test_fifo_among_images_is_a_bad_row(fifo):
    row = Row(str(fifo), (str(fifo), "a"))
    (((_, result),),) = images._inspect_rows([row], None)
    assert result == "is a FIFO or a device, not a regular file"


# --- the cache ---


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_file_replaced_while_it_is_read_is_not_cached(config, tmp_path, monkeypatch, kind):
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        table(path)
        content = path.read_bytes()
        other = content.replace(b"red", b"tan")
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        versions = []
        for labels in (["red", "green"], ["tan", "green"]):
            pq.write_table(pa.table({"text": ["sky", "grass"] * 9, "label": labels * 9}), path)
            versions.append(path.read_bytes())
        content, other = versions
        path.write_bytes(content)
    readers = {**sources.SOURCES}

    def replacing(*arguments):
        path.write_bytes(other)
        yield from readers[kind](*arguments)

    monkeypatch.setattr(sources, "SOURCES", {**readers, kind: replacing})
    with pytest.raises(UserError, match=rf"t\.{kind} was changed while it was read; start again"):
        build_splits(config, train=str(path), test=None)
    monkeypatch.setattr(sources, "SOURCES", readers)
    path.write_bytes(content)
    assert build_splits(config, train=str(path), test=None)[0].labels == ("red", "green")


def test_folders_of_killed_processes_are_removed_and_live_ones_kept(tmp_path):
    from tfft.data.prepared import write_once

    old = time.time() - 3600
    (tmp_path / f".preparing-{HOST}-01234567").mkdir()
    os.utime(tmp_path / f".preparing-{HOST}-01234567", (old, old))
    folder_names = []

    def write(folder):
        os.utime(folder, (old, old))
        write_once(tmp_path / "inner", lambda _: {})  # a second folder, while the first is written
        folder_names.extend(p.name for p in tmp_path.glob(".preparing-*"))
        assert folder.name in folder_names
        return {}

    write_once(tmp_path / "outer", write)
    assert len(folder_names) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inner", "outer"]
    assert (tmp_path / "outer").stat().st_mode & 0o777 == 0o777 & ~_umask()
    (tmp_path / "outer" / "meta.json").unlink()  # incomplete now
    write_once(tmp_path / "outer", lambda _: {"rewritten": True})
    assert json.loads((tmp_path / "outer" / "meta.json").read_text()) == {"rewritten": True}


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- rows ---


def test_unclosed_quote_reports_the_lines_it_spans(config, tmp_path):
    good = [f"sky {i},{'red' if i % 2 else 'green'}" for i in range(20)]
    lines = ["text,label", *good[:10], '"sky,red', *good[10:], ""]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data, _ = build_splits(
        config, train=str(tmp_path / "t.csv"), test=None, validation=None, on_bad_row="skip"
    )
    assert data.train.prepared.rows == 10
    assert data.train.prepared.bad == 11
    assert "t.csv:12: unexpected end of data" in data.bad_rows[0]
    assert "Their quotes make one row of the 11 lines 12 to 22" in data.bad_rows[0]


def test_quote_closed_lines_later_reports_the_lines_it_spans(tmp_path, capfd):
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"sky,red\n' + "sky,red\n" * 150 + 'sky",red,x\nsky,red\n')
    bad, good = read(path)
    assert bad.count == 152 and "one row of the 152 lines 2 to 153" in bad.reason
    assert good.values == ("sky", "red")
    path.write_text('text,label\n"sky' + "\nsky" * 150 + '",red\ngrass,green\n')
    assert len(read(path)) == 2
    assert f"{path}: lines 2 to 152 are read as one row" in capfd.readouterr().err


def test_unclosed_quote_needs_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tfft.data.text_files.LONGEST_LINE", 1000)
    lines = ["text,label", '"open', *["word " * 9] * 100, "sky,red", ""]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    first, *rest = read(tmp_path / "t.csv")
    assert "field larger than field limit" in first.reason and 20 < first.count < 30
    assert rest[-1].values == ("sky", "red")
    (tmp_path / "t.csv").write_text("text,label\n" + "x" * 5000)
    with pytest.raises(UserError, match=r"t\.csv:2: a line of more than 1,000 characters"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("first", "second"),
    [("pos", " pos"), ("caf\u00e9", "cafe\u0301"), ("New York", "New  York")],
)
def test_labels_that_differ_only_in_spaces_or_normalization_are_refused(
    config, tmp_path, first, second
):
    path = table(tmp_path / "t.csv", [f"sky,{first}", "x,neg", f"grass,{second}"])
    with pytest.raises(UserError) as error:
        build_splits(config, train=str(path), test=None)
    text = str(error.value)
    assert text.startswith(f"{path}:4: label ") and f"({path}:2)" in text and "\n" not in text
    assert ascii(second)[1:-1] in text and ascii(first)[1:-1] in text
    names = [first, "neg", second.strip()]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    for labels in (str(tmp_path / "names.txt"), [first, "neg", second]):
        with pytest.raises(UserError, match="`labels` must differ") as error:
            build_splits(config, train=str(path), test=None, labels=labels)
        text = str(error.value)
        assert ascii(second.strip())[1:-1] in text and ascii(first)[1:-1] in text


def test_label_that_looks_like_a_missing_value_is_logged(config, tmp_path, capfd):
    path = table(tmp_path / "t.csv", ["sky,a", "grass,NaN"])
    build_splits(config, train=str(path), test=None)
    assert f"{path}:3: label 'NaN' is a class; is it a missing value?" in capfd.readouterr().err


def test_nan_label_is_a_bad_row(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": NaN}\n{"text": "a", "label": 1}\n')
    first, second = read(tmp_path / "t.jsonl", "jsonl")
    assert "'label' is nan, as a missing value may be written" in first.reason
    assert second.values == ("a", "1")
    np.savez(tmp_path / "t.npz", image=np.zeros((2, 4, 4), np.uint8), label=np.array([1.0, np.nan]))
    assert [type(r) for r in read(tmp_path / "t.npz", "npz", ("image", "label"))] == [Row, BadRow]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(
        pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), tmp_path / "t.parquet"
    )
    assert "'label' is nan" in read(tmp_path / "t.parquet", "parquet")[1].reason


def test_duplicate_columns_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,text\na,b,c\n")
    with pytest.raises(UserError, match=r"t\.csv:1: column 'text' appears 2 times, as columns 0"):
        read(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1, "text": "b"}\n')
    assert "an object has a key twice" in read(tmp_path / "t.jsonl", "jsonl")[0].reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "\\ud800", "label": 1}', "column 'text' holds a lone surrogate"),
        ('{"text": "a", "label": "\\udfff"}', "column 'label' holds a lone surrogate"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "not valid JSON (Exceeds the limit"),
        ('{"text": ' + "[" * 100_000, "not valid JSON (nested too deep"),
        ('{"text": [true], "label": 1}', "'text' is list"),
    ],
)
def test_hostile_json_is_a_bad_row(tmp_path, line, reason):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    (row,) = read(tmp_path / "t.jsonl", "jsonl")
    assert reason in row.reason and len(row.reason) < 200


def test_overlong_text_is_a_bad_row(tmp_path):
    lines = [json.dumps({"text": "a " * n, "label": 1}) for n in (1 << 18, (1 << 18) + 1)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    good, bad = read(tmp_path / "t.jsonl", "jsonl")
    assert isinstance(good, Row)
    assert bad.reason == "column 'text' has 524,290 characters; at most 524,288 are read"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "undefined", "punycode", "a\0b", "hex"])
def test_wrong_or_unknown_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("text,label\na,b\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"encoding|is not utf-32"):
        read(tmp_path / "t.csv", encoding=encoding)


# --- arrays ---


def npz(folder, **arrays):
    np.savez_compressed(folder / "t.npz", **arrays)
    return (folder / "t.npz").read_bytes()


def test_torn_npz_gives_a_one_line_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (8, 9, 9), np.uint8)
    content = npz(tmp_path, image=noise, label=np.arange(8))
    generator = np.random.default_rng(1)
    refused = 0
    for trial in range(60):
        torn = bytearray(content[: generator.integers(1, len(content))] if trial % 2 else content)
        for position in generator.integers(0, len(torn), 3):
            torn[position] = generator.integers(0, 256)
        (tmp_path / "t.npz").write_bytes(torn)
        try:
            read(tmp_path / "t.npz", "npz", ("image", "label"))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 40


def test_npz_header_that_declares_too_much_is_refused(tmp_path):
    """Check headers of 2^40 rows, of a row of 2^40 bytes, and of an array stored by columns."""
    for shape, order, message in [
        ((1 << 40, 8, 8), False, "it is cut off"),
        ((1, 1 << 20, 1 << 20), False, "image has the shape"),
        ((-1, 8, 8), False, "image has the shape"),
        ((2, 8, 8), True, "stored column by column"),
    ]:
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
            for name, declared_shape, kind in [
                ("image", shape, "|u1"),
                ("label", shape[:1], "|u1"),
            ]:
                header = io.BytesIO()
                fields = {"descr": kind, "fortran_order": order, "shape": declared_shape}
                np.lib.format.write_array_header_1_0(header, fields)
                archive.writestr(f"{name}.npy", header.getvalue() + bytes(99))
        with pytest.raises(UserError, match=message):
            read(tmp_path / "t.npz", "npz", ("image", "label"))


def test_torn_parquet_gives_a_one_line_error(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"text {i} {'x' * (i % 9)}" for i in range(2000)]
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"] * 1000}), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        torn = bytearray(content)
        for position in generator.integers(0, len(torn), 6):
            torn[position] ^= 1 << generator.integers(0, 8)
        (tmp_path / "t.parquet").write_bytes(torn)
        try:
            read(tmp_path / "t.parquet", "parquet")
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path}/t.parquet: ") and "\n" not in str(error)
    assert refused > 5


# --- TFDS ---


def test_tfds_dataset_files_import_no_module(tmp_path, monkeypatch):
    library = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / "colours" / "1.0.0"
    folder.mkdir(parents=True)
    (tmp_path / "imported_by_a_set.py").write_text("import os; os.environ['RAN'] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("RAN", raising=False)
    info = {"name": "colours", "version": "1.0.0", "fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    source = Source(source="tfds", path="colours", data_dir=str(tmp_path))
    harmful = "imported_by_a_set.Feature"
    for features in (
        {"pythonClassName": harmful, "featuresDict": {"features": {}}},
        {"python_class_name": harmful},
        {"type": harmful, "content": "{}"},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": {"text": {"pythonClassName": harmful}}},
        },
    ):
        (folder / "features.json").write_text(json.dumps(features))
        with pytest.raises(UserError, match=r"name 'imported_by_a_set\.Feature'"):
            list(sources.content(source, "data.train"))
        with pytest.raises(UserError, match=r"name 'imported_by_a_set\.Feature'"):
            list(sources.read(source, ("text", "label"), "data.train"))
    missing_feature = "tensorflow_datasets.none.Feature"  # any module within TFDS may be imported
    (folder / "features.json").write_text(
        json.dumps({**features, "pythonClassName": missing_feature})
    )
    with pytest.raises(UserError, match=r"TFDS cannot give colours: .*Could not import"):
        list(sources.read(source, ("text", "label"), "data.train"))
    assert "RAN" not in os.environ and "imported_by_a_set" not in sys.modules
    assert "cls_from_name" in vars(library.features.FeatureConnector)


@pytest.mark.parametrize(
    "name", ["huggingface:glue/sst2", "kaggle:some/set", "ns:x", "a b/c", "//"]
)
def test_tfds_names_that_would_run_downloaded_code_are_refused(name):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match=r"^data\.train") as error:
        list(sources.read(Source(source="tfds", path=name), ("text", "label"), "data.train"))
    assert "\n" not in str(error.value)


# --- splits ---


def test_classes_of_one_row_each_leave_no_validation_split(config, tmp_path, capfd):
    words = [f"w{chr(97 + i)}" for i in range(24)]
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"sky,{w}\n" for w in words))
    data, _ = build_splits(config, train=str(tmp_path / "t.csv"), test=None)
    assert data.validation is None and len(data.train) == 24
    logged = capfd.readouterr().err
    assert "data.validation: no class has two rows, so none can be held out" in logged
    assert "hardly more training rows than labels; is data.label right?" in logged


def test_two_threads_prepare_the_same_set(config, tmp_path):
    path = table(tmp_path / "t.csv")
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(build_splits(config, train=str(path), test=None)[0])
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(data.train.prepared.labels) for data in results] == [18, 18]
    assert not re.findall("preparing", str(list(results[0].train.prepared.folder.parent.iterdir())))
