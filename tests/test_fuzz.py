"""Almost valid files are read or refused with a UserError; never a traceback."""

import io
import json

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import ROOT
from tests.fuzzing import EXAMPLES, fuzz, mutated, replaced
from tfft import config
from tfft.config import Source
from tfft.data import sources
from tfft.data.sources import BadRow, Row
from tfft.preprocess.image import ImageInputs
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError

RECIPES = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("configs/*/*.yaml"))]


def check_config(path):
    """Check that a config is refused with a UserError, or equal after a dump and a load."""
    try:
        parsed = config.load(path)
    except UserError as error:
        assert str(error).strip()
        return
    text = config.dump(parsed)
    path.write_text(text, encoding="utf-8")
    assert config.dump(config.load(path)) == text


@pytest.mark.parametrize("examples", EXAMPLES)
def test_configs_with_an_invalid_value(tmp_path, examples):
    recipes = [yaml.safe_load(text) for text in RECIPES]

    @st.composite
    def configs(draw):
        return replaced(draw, draw(st.sampled_from(recipes)))

    def check(raw):
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML, with numbers of any size
        check_config(path)

    fuzz(configs(), check, 2 * examples)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_configs_with_mutated_bytes(tmp_path, examples):
    def check(data):
        path = tmp_path / "config.yaml"
        path.write_bytes(data)
        check_config(path)

    edge_cases = [
        b"a: &a [*a]",
        b"!!python/object:x {}",
        b"a: !!int 'x'",
        b"{a: 2020-99-99}",
        b"- &x {y: *x}",
    ]
    fuzz(mutated([*(text.encode() for text in RECIPES), *edge_cases]), check, examples)


def tables():
    """Return small valid files of each format."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [('a "red", sky', "pos"), ("naïve 好\nline", "neg")] * 3
    texts, labels = map(list, zip(*rows, strict=True))
    csv = "text,label\n" + "".join(f'"{t.replace(chr(34), chr(34) * 2)}",{y}\n' for t, y in rows)
    tsv = "text\tlabel\n" + "".join(f"{' '.join(t.split())}\t{y}\n" for t, y in rows)
    jsonl = "".join(json.dumps({"text": t, "label": y, "n": 1e9}) + "\n" for t, y in rows)
    parquet, npz = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"text": texts, "label": labels}), parquet)
    np.savez(npz, image=np.arange(96, dtype=np.uint8).reshape(6, 4, 4), label=np.array(labels))
    return {
        "csv": [csv.encode(), csv.encode("utf-8-sig"), b"text,label\n"],
        "tsv": [tsv.encode()],
        "jsonl": [jsonl.encode(), b'{"text": ' + b"9" * 5000 + b', "label": {"a": [1]}}\n'],
        "parquet": [parquet.getvalue()],
        "npz": [npz.getvalue()],
    }


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "npz"])
@pytest.mark.parametrize("examples", EXAMPLES)
def test_mutated_tables(tmp_path, kind, examples):
    path = tmp_path / f"table.{kind}"
    source = Source(source=kind, path=str(path))
    columns = ("image" if kind == "npz" else "text", "label")
    valid = tables()[kind]
    path.write_bytes(valid[0])
    assert [type(row) for row in sources.read(source, columns, "data.train")] == [Row] * 6

    def check(data):
        path.write_bytes(data)
        try:
            for row in sources.read(source, columns, "data.train"):
                assert isinstance(row, Row | BadRow)
                assert row.place.startswith(str(path))
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith((str(path), "data.train"))

    fuzz(mutated(valid), check, examples)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("examples", EXAMPLES)
def test_mutated_images(kind, examples):
    generator = np.random.default_rng(0)
    files = []
    for mode in ("RGB", "L"):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).convert(mode).save(
            buffer, kind
        )
        files.append(buffer.getvalue())
    inputs = ImageInputs(ImageSpec(size=(8, 8)))

    def check(data):
        result = inputs.inspect(data)
        if isinstance(result, str):  # the reason why the image is refused
            assert result and "\n" not in result and len(result) < 200
        else:
            assert result.pixels.shape == (8, 8, 3)

    fuzz(mutated(files), check, examples)
