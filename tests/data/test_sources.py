"""Readers: all formats give the same rows; malformed rows are reported with their place."""

import json

import pytest

from tfft.config import Source
from tfft.data import SOURCES, sources
from tfft.data.sources import BadRow, Row
from tfft.utils.errors import UserError

ROWS = [("a plane, taking off", "x"), ('she said "no"', "y"), ("naïve 好", "x")]


def read(source, columns=("text", "label")):
    return list(sources.read(source, columns, "data.train"))


def write(path, kind, encoding="utf-8"):
    if kind == "csv":
        text = 'id,text,label\n1,"a plane, taking off",x\n2,"she said ""no""",y\n3,naïve 好,x\n'
    elif kind == "tsv":
        text = "id\ttext\tlabel\n" + "".join(f"{i}\t{t}\t{y}\n" for i, (t, y) in enumerate(ROWS))
    else:
        text = "".join(json.dumps({"id": 1, "text": t, "label": y}) + "\n" for t, y in ROWS)
    path.write_text(text, encoding=encoding)
    return Source(source=kind, path=str(path), encoding=encoding)


def test_sources_table_matches_the_config():
    kinds = Source.model_fields["source"].annotation.__args__
    assert set(kinds) == set(SOURCES)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_formats_give_the_same_rows(tmp_path, kind, encoding):
    rows = read(write(tmp_path / f"t.{kind}", kind, encoding))
    assert [row.values for row in rows] == ROWS
    assert rows[0].place.endswith(f"t.{kind}:{1 if kind == 'jsonl' else 2}")


def test_undeclared_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftext,label\na,b\n")
    assert read(Source(source="csv", path=str(tmp_path / "t.csv"))) == [
        Row(f"{tmp_path}/t.csv:2", ("a", "b"))
    ]


def test_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    table = pa.table({"text": [t for t, _ in ROWS], "label": [y for _, y in ROWS]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = Source(source="parquet", path=str(tmp_path / "t.parquet"))
    assert [row.values for row in read(source)] == ROWS
    assert [row.values for row in read(source, (0, 1))] == ROWS
    with pytest.raises(UserError, match="no column 'txt' in the header; did you mean 'text'"):
        read(source, ("txt", "label"))
    (tmp_path / "bad.parquet").write_text("text,label\n")
    with pytest.raises(UserError, match="not a parquet file"):
        read(Source(source="parquet", path=str(tmp_path / "bad.parquet")))


def test_numbered_columns_mean_no_header(tmp_path):
    (tmp_path / "t.tsv").write_text("x\tfirst\ny\tsecond\n")
    rows = read(Source(source="tsv", path=str(tmp_path / "t.tsv")), (1, 0))
    assert [row.values for row in rows] == [("first", "x"), ("second", "y")]
    with pytest.raises(UserError, match=r"no column 2: the row has 2 \(0 to 1\)"):
        read(Source(source="tsv", path=str(tmp_path / "t.tsv")), (2, 0))


def test_globs_are_sorted_and_lists_keep_their_order(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},1\n")
    by_glob = read(Source(source="csv", path=str(tmp_path / "*.csv")))
    assert [row.values[0] for row in by_glob] == ["a", "b"]
    path_list = [str(tmp_path / "b.csv"), str(tmp_path / "a.csv")]
    assert [row.values[0] for row in read(Source(source="csv", path=path_list))] == ["b", "a"]


@pytest.mark.parametrize(
    ("kind", "content", "place", "reason"),
    [
        ("csv", "text,label\na,b,c\n", ":2", "3 columns where 2 are expected"),
        ("csv", 'text,label\n"open,b\nc,d\n', ":2", "unexpected end of data; fix the quotes"),
        ("csv", "text,label\n ,b\n", ":2", "column 'text' is empty"),
        ("csv", "text,label\na,\n", ":2", "column 'label' is empty"),
        ("tsv", "text\tlabel\na\n", ":2", "1 columns where 2 are expected"),
        ("jsonl", "{\n", ":1", "not valid JSON"),
        ("jsonl", "[1]\n", ":1", "holds list, not an object"),
        ("jsonl", '{"text": "a", "lable": 1}\n', ":1", "no key 'label'; did you mean 'lable'?"),
        ("jsonl", '{"text": null, "label": 1}\n', ":1", "'text' is null"),
    ],
)
def test_malformed_row_is_reported_with_its_place(tmp_path, kind, content, place, reason):
    path = tmp_path / f"t.{kind}"
    path.write_text(content)
    bad = [row for row in read(Source(source=kind, path=str(path))) if isinstance(row, BadRow)]
    assert bad[0].place == f"{path}{place}"
    assert reason in bad[0].reason


def test_wrong_encoding_reports_line_and_fix(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,label\n" + b"a,b\n" * 5000 + b"caf\xe9,b\n")
    with pytest.raises(UserError, match=r"t.csv:5002: byte 0xe9 is not utf-8; declare") as error:
        read(Source(source="csv", path=str(path)))
    assert "encoding: latin-1" in str(error.value)
    rows = read(Source(source="csv", path=str(path), encoding="latin-1"))
    assert rows[-1].values[0] == "café"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian.csv", "no such file: .*trian.csv; did you mean 'train.csv'"),
        ("*.tsv", "matches no file"),
        (".", "is a folder"),
    ],
)
def test_missing_file_is_refused_with_a_hint(tmp_path, path, message):
    (tmp_path / "train.csv").touch()
    with pytest.raises(UserError, match=message):
        read(Source(source="csv", path=f"{tmp_path}/{path}"))


def test_a_header_with_a_line_break_is_shown_in_one_line(tmp_path):
    (tmp_path / "t.csv").write_text('"first\nline",label\na,b\n')
    with pytest.raises(UserError) as error:
        read(Source(source="csv", path=str(tmp_path / "t.csv")))
    assert "valid: 'first\\nline', label" in str(error.value) and "\n" not in str(error.value)


def test_wrong_or_missing_header_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sentence,label\na,b\n")
    with pytest.raises(UserError, match="no column 'sentense' in the header; did you mean"):
        read(Source(source="csv", path=str(path)), ("sentense", "label"))
    path.write_text("")
    with pytest.raises(UserError, match="empty; needs a header line with text, label"):
        read(Source(source="csv", path=str(path)))


def test_unknown_encoding_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,b\n")
    with pytest.raises(UserError, match="unknown encoding 'utf-9'"):
        read(Source(source="csv", path=str(path), encoding="utf-9"))


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """Return the folder of a dataset that TFDS itself prepared, offline."""
    import tensorflow_datasets as tfds

    class Colours(tfds.core.GeneratorBasedBuilder):
        """A dataset of seven rows."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["no", "yes"])
            text, tag = tfds.features.Text(), tfds.features.ClassLabel(names=["O", "B-A"])
            features = tfds.features.FeaturesDict(
                {
                    "text": text,
                    "label": label,
                    "tokens": tfds.features.Sequence(text),
                    "tags": tfds.features.Sequence(tag),
                }
            )
            return self.dataset_info_from_configs(features=features, disable_shuffling=True)

        def _split_generators(self, _):
            return {"train": self._generate_examples(6), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            for i in range(count):
                tags = {"tokens": ["é"] * i, "tags": ["O", "B-A"] * (i // 2) + ["O"] * (i % 2)}
                yield i, {"text": f"row {i} é", "label": i % 2, **tags}

    folder = tmp_path_factory.mktemp("tfds")
    Colours(data_dir=folder).download_and_prepare()
    return folder


def test_tfds(tfds_folder):
    source = Source(source="tfds", path="colours", data_dir=str(tfds_folder))
    rows = read(source)
    assert [row.values for row in rows][:2] == [("row 0 é", "no"), ("row 1 é", "yes")]
    lists = list(sources.SOURCES["tfds"](source, ("tokens", "tags"), "data.train"))
    assert lists[3].values == (["é"] * 3, ["O", "B-A", "O"]) and lists[0].values == ([], [])
    part = source.model_copy(update={"split": "train[:50%]"})
    assert len(read(part)) == 3
    with pytest.raises(UserError, match="no column 'txt' in the header; did you mean 'text'"):
        read(source, ("txt", "label"))
    with pytest.raises(UserError, match=r"data\.train"):
        read(Source(source="tfds", path="no_such_set_at_all", data_dir=str(tfds_folder)))
    with pytest.raises(UserError, match="TFDS cannot give"):
        read(source.model_copy(update={"split": "nosplit"}))
