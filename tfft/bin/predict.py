"""Answer raw rows: one text a line, or jsonl objects, in; jsonl out on standard output.

A picture is the path of its file. A jsonl object holds the columns of the config (or `text` and
`text_pair`, or `image`). Rows of a pair must be jsonl. The model is a run directory, or an exported
SavedModel (which needs nothing of the run).
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
        columns, labels = tuple(served.columns), served.labels
        names = columns

        def predict(rows: list[Any]) -> list[dict[str, Any]]:
            found = served.probabilities(rows, f.batch_size)
            return run.answers(found, labels, served.thresholds)
    else:
        loaded = run.load_run(f.workdir, f.backbone)
        columns = loaded.inputs.columns
        names = tuple(str(getattr(loaded.config.data, name)) for name in columns)
        predict = loaded.predict

    rows = rows_of(path, names, columns)
    while chunk := list(islice(rows, 16 * f.batch_size)):
        for row, answer in zip(chunk, predict(chunk), strict=True):
            given = dict(zip(columns, row, strict=True))
            print(json.dumps({**given, **answer}, ensure_ascii=False))


def rows_of(
    path: Path | None, names: tuple[str, ...], columns: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Rows of a file or of standard input, by the config's names of the columns or tfft's."""
    place = path or "standard input"
    if path is None:
        yield from _rows(sys.stdin, names, columns, place)
        return
    with open(path, encoding="utf-8-sig") as file:
        yield from _rows(file, names, columns, place)


def _rows(
    file: Any, names: tuple[str, ...], columns: tuple[str, ...], place: Any
) -> Iterator[tuple[str, ...]]:
    json_lines = None
    try:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            if json_lines is None:
                json_lines = line.lstrip().startswith("{")
            yield _row(line, (names, columns), f"{place}:{number}", json_lines)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: {error.reason}") from None


def _row(
    line: str, keys: tuple[tuple[str, ...], ...], place: str, json_lines: bool
) -> tuple[str, ...]:
    names = keys[0]
    if not json_lines:
        if len(names) == 2:
            raise UserError(f"{place}: rows of a pair must be jsonl with {' and '.join(names)}")
        return (line,)
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON: {error.msg}") from None
    for own in keys:
        if isinstance(value, dict) and all(isinstance(value.get(k), str) for k in own):
            return tuple(value[k] for k in own)
    raise UserError(f"{place}: must be an object with text at {' and '.join(map(repr, names))}")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    cli.main(verb, argv)


if __name__ == "__main__":
    main()
