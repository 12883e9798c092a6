"""Answer raw rows: one text a line, or jsonl objects, in; jsonl out on standard output.

A picture is the path of its file. A jsonl object holds the columns of the config (or `text` and
`text_pair`, or `image`). Rows of a pair must be jsonl. The model is a run directory, or an exported
SavedModel (which needs nothing of the run).
"""

import io
import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError
from tfft.utils.reading import LONGEST_LINE, LONGEST_TEXT, is_unicode, open_regular

common.define_workdir()
common.define_backbone()
flags.DEFINE_string("export", None, "a SavedModel, or the folder of its numbered versions")
flags.DEFINE_string("input", "-", "file of rows; -: standard input")
FORMS = ("auto", "text", "jsonl")
flags.DEFINE_enum(
    "input_format", "auto", FORMS, "auto: jsonl where the first line holds an object, or by suffix"
)
flags.DEFINE_integer("batch_size", 64, "rows at once", lower_bound=1)


def verb() -> None:
    """Read, answer, write; row by row as batches fill."""
    f = common.FLAGS
    if (f.workdir is None) == (f.export is None):
        raise UserError("one of --workdir and --export is required, not both")
    path = None if f.input == "-" else Path(f.input)
    if path is not None and not path.is_file():
        raise UserError(f"--input: no such file: {path}")
    common.load_tensorflow()
    from tfft import run
    from tfft.export import ExportedModel

    if f.export is not None:
        served = ExportedModel(Path(f.export))
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

    _utf8(sys.stdout)
    rows = rows_of(path, names, columns, f.input_format)
    while chunk := list(islice(rows, 16 * f.batch_size)):
        for row, answer in zip(chunk, predict(chunk), strict=True):
            given = dict(zip(columns, row, strict=True))
            print(json.dumps({**given, **answer}, ensure_ascii=False))


def rows_of(
    path: Path | None, names: tuple[str, ...], columns: tuple[str, ...], form: str = "auto"
) -> Iterator[tuple[str, ...]]:
    """Rows of a file or of standard input, by the config's names of the columns or tfft's.

    `form` is that of `--input_format`.
    """
    keys = (names, columns)
    if path is None:
        yield from _rows(_utf8(sys.stdin), keys, "standard input", form)
        return
    if form == "auto" and path.suffix.lower() == ".jsonl":
        form = "jsonl"
    with open_regular(path) as file:
        yield from _rows(io.TextIOWrapper(file, "utf-8-sig"), keys, str(path), form)


def _utf8(stream: Any) -> Any:
    """A standard stream in UTF-8, whatever the locale says."""
    if isinstance(stream, io.TextIOWrapper):
        reading = {"encoding": "utf-8-sig", "errors": "strict"}
        stream.reconfigure(**(reading if stream.readable() else {"encoding": "utf-8"}))
    return stream


def _rows(
    file: Any, keys: tuple[tuple[str, ...], ...], where: str, form: str
) -> Iterator[tuple[str, ...]]:
    try:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
            place = f"{where}:{number}"
            if len(line) == LONGEST_LINE:
                raise UserError(f"{place}: a line of more than {LONGEST_LINE:,} characters")
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            if form == "auto":
                form = _form(line, place)
            row = (line,) if form == "text" else _json_row(line, keys, place)
            if len(row) != len(keys[0]):
                pair = " and ".join(keys[0])
                raise UserError(f"{place}: rows of a pair must be jsonl with {pair}")
            if max(map(len, row)) > LONGEST_TEXT:
                raise UserError(f"{place}: a text of more than {LONGEST_TEXT:,} characters")
            if not all(map(is_unicode, row)):
                raise UserError(f"{place}: holds a lone surrogate")
            yield row
    except UnicodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}") from None


def _form(line: str, place: str) -> str:
    """Return the form of rows whose first is `line`.

    Raises:
        UserError: it begins as an object does, and is not one.
    """
    from tfft.data.text_files import json_object

    try:
        return "jsonl" if isinstance(json_object(line), dict) else "text"
    except ValueError as error:
        if re.match(r'\s*\{\s*"', line):
            raise UserError(
                f"{place}: {error}; --input_format=text takes lines as they are"
            ) from None
        return "text"


def _json_row(line: str, keys: tuple[tuple[str, ...], ...], place: str) -> tuple[str, ...]:
    from tfft.data.text_files import json_object

    try:
        value = json_object(line)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    for own in keys:
        if isinstance(value, dict) and all(isinstance(value.get(k), str) for k in own):
            return tuple(value[k] for k in own)
    wanted = " and ".join(map(repr, keys[0]))
    raise UserError(
        f"{place}: must be an object with text at {wanted} (--input_format=text takes lines as "
        "they are)"
    )


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
