"""Answer raw rows: one text a line, or jsonl objects, in; jsonl out on standard output.

A jsonl object holds the columns of the config (or `text` and `text_pair`). Rows of a pair must be
jsonl. The model is a run directory, or an exported SavedModel (which needs nothing of the run).
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from absl import flags

from tfft.bin import cli
from tfft.errors import UserError

cli.define_workdir()
cli.define_backbone()
flags.DEFINE_string("export", None, "a SavedModel, or the folder of its numbered versions")
flags.DEFINE_string("input", "-", "file of rows; -: standard input")
flags.DEFINE_integer("batch_size", 64, "rows at once", lower_bound=1)


def verb() -> None:
    """Read, answer, write; row by row as batches fill."""
    f = cli.FLAGS
    if (f.workdir is None) == (f.export is None):
        raise UserError("one of --workdir and --export is required, not both")
    path = None if f.input == "-" else Path(f.input)
    if path is not None and not path.is_file():
        raise UserError(f"--input: no such file: {path}")
    cli.load_tensorflow()
    from tfft import run
    from tfft.export import Served

    if f.export is not None:
        served = Served(Path(f.export))
        names, pair, labels = ("text", "text_pair"), served.pair, served.labels

        def predict(rows: list[Any]) -> list[dict[str, Any]]:
            return run.answers(served.probabilities(rows, f.batch_size), labels)
    else:
        loaded = run.load_run(f.workdir, f.backbone)
        data = loaded.config.data
        names, pair = (str(data.text), str(data.text_pair)), loaded.inputs.pair
        predict = loaded.predict

    rows = rows_of(path, names[: 1 + pair])
    while chunk := list(islice(rows, 16 * f.batch_size)):
        for row, answer in zip(chunk, predict(chunk), strict=True):
            given = dict(zip(("text", "text_pair"), row, strict=False))
            print(json.dumps({**given, **answer}, ensure_ascii=False))


def rows_of(path: Path | None, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Rows of a file or of standard input."""
    place = path or "standard input"
    if path is None:
        yield from _rows(sys.stdin, names, place)
        return
    with open(path, encoding="utf-8-sig") as file:
        yield from _rows(file, names, place)


def _rows(file: Any, names: tuple[str, ...], place: Any) -> Iterator[tuple[str, ...]]:
    json_lines = None
    try:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            if json_lines is None:
                json_lines = line.lstrip().startswith("{")
            yield _row(line, names, f"{place}:{number}", json_lines)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: {error.reason}") from None


def _row(line: str, names: tuple[str, ...], place: str, json_lines: bool) -> tuple[str, ...]:
    if not json_lines:
        if len(names) == 2:
            raise UserError(f"{place}: rows of a pair must be jsonl with {' and '.join(names)}")
        return (line,)
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON: {error.msg}") from None
    plain = ("text", "text_pair")[: len(names)]
    for keys in (names, plain):
        if isinstance(value, dict) and all(isinstance(value.get(k), str) for k in keys):
            return tuple(value[k] for k in keys)
    raise UserError(f"{place}: must be an object with text at {' and '.join(map(repr, names))}")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
