"""Predict raw rows: one text per line, or jsonl objects, in; jsonl on standard output.

An image is given as the path of its file. A jsonl object holds the columns of the config (or `text`
and `text_pair`, `question` and `context`, or `image`). Rows of several columns must be jsonl. The
model is a run directory or an exported SavedModel (which needs no file of the run).

Example:
    tfft predict --workdir=runs/reviews --input=texts.txt > answers.jsonl
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
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_workdir()
common.define_backbone()
flags.DEFINE_string("export", None, "SavedModel, or the folder of its numbered versions")
flags.DEFINE_string("input", "-", "file of rows; -: standard input")
FORMS = ("auto", "text", "jsonl")
flags.DEFINE_enum(
    "input_format",
    "auto",
    FORMS,
    "auto: jsonl if the first line is an object or the name ends in .jsonl",
)
flags.DEFINE_integer("batch_size", 64, "rows per batch", lower_bound=1)


def run() -> None:
    """Read rows, predict in chunks, and print each answer as soon as its chunk is done."""
    flag_values = common.FLAGS
    if (flag_values.workdir is None) == (flag_values.export is None):
        raise UserError("one of --workdir and --export is required, not both")
    path = None if flag_values.input == "-" else Path(flag_values.input)
    if path is not None and not path.is_file():
        raise UserError(f"--input: no such file: {path}")
    load_tensorflow()
    from tfft.export import ExportedModel
    from tfft.run import load_run
    from tfft.tasks import TASKS, answers

    # The two sources of predictions: an export, and a run directory.
    if flag_values.export is not None:
        exported_model = ExportedModel(Path(flag_values.export))
        task, labels = TASKS[exported_model.task], exported_model.labels
        names = columns = tuple(exported_model.columns)

        def predict(rows: list[Any]) -> list[dict[str, Any]]:
            return answers(task, exported_model.outputs(rows, flag_values.batch_size), labels)
    else:
        loaded_run = load_run(flag_values.workdir, flag_values.backbone)
        columns = loaded_run.inputs.columns
        configured = [getattr(loaded_run.config.data, name) for name in columns]
        # Columns of files without names have tfft's.
        names = tuple(
            n if isinstance(n, str) else c for n, c in zip(configured, columns, strict=True)
        )
        predict = loaded_run.predict

    _utf8(sys.stdout)
    rows = rows_of(path, names, columns, flag_values.input_format)
    while chunk := list(islice(rows, 16 * flag_values.batch_size)):
        for row, answer in zip(chunk, predict(chunk), strict=True):
            inputs = dict(zip(columns, row, strict=True))
            print(json.dumps({**inputs, **answer}, ensure_ascii=False))


def rows_of(
    path: Path | None, names: tuple[str, ...], columns: tuple[str, ...], form: str = "auto"
) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a file or of standard input.

    Args:
        path: file, or None for standard input.
        names: the config's names of the columns.
        columns: tfft's names of the columns, accepted as well.
        form: value of `--input_format`.

    Raises:
        UserError: a line is not a valid row; the message holds its number.
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
    """Set a standard stream to UTF-8, whatever the locale, and return it."""
    if isinstance(stream, io.TextIOWrapper):
        reading = {"encoding": "utf-8-sig", "errors": "strict"}
        stream.reconfigure(**(reading if stream.readable() else {"encoding": "utf-8"}))
    return stream


def _rows(
    file: Any, keys: tuple[tuple[str, ...], ...], where: str, form: str
) -> Iterator[tuple[str, ...]]:
    try:
        for line_number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
            place = f"{where}:{line_number}"
            if len(line) == LONGEST_LINE:
                raise UserError(f"{place}: a line of more than {LONGEST_LINE:,} characters")
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            # The first row decides for all.
            if form == "auto":
                form = _form(line, place)
            row = (line,) if form == "text" else _json_row(line, keys, place)
            if len(row) != len(keys[0]):
                names = " and ".join(keys[0])
                raise UserError(f"{place}: rows of several columns must be jsonl with {names}")
            if max(map(len, row)) > LONGEST_TEXT:
                raise UserError(f"{place}: a text of more than {LONGEST_TEXT:,} characters")
            if not all(map(is_unicode, row)):
                raise UserError(f"{place}: holds a lone surrogate")
            yield row
    except UnicodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}") from None


def _form(line: str, place: str) -> str:
    """Return the format of rows whose first is `line`.

    Raises:
        UserError: the line begins like a JSON object and is not valid JSON.
    """
    from tfft.data.text_files import json_object

    try:
        return "jsonl" if isinstance(json_object(line), dict) else "text"
    except ValueError as error:
        if re.match(r'\s*\{\s*"', line):
            raise UserError(
                f"{place}: {error}; --input_format=text reads lines as plain texts"
            ) from None
        return "text"


def _json_row(line: str, keys: tuple[tuple[str, ...], ...], place: str) -> tuple[str, ...]:
    from tfft.data.text_files import json_object

    try:
        value = json_object(line)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    # The config's names first, then tfft's.
    for names in keys:
        if isinstance(value, dict) and all(isinstance(value.get(k), str) for k in names):
            return tuple(value[k] for k in names)
    expected = " and ".join(map(repr, keys[0]))
    raise UserError(
        f"{place}: must be an object with strings at {expected} (--input_format=text reads lines "
        "as plain texts)"
    )


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
