"""What the user asks for: the data, and flags that override the guesses."""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tfft.config import Source, section
from tfft.config.data import SUFFIXES
from tfft.data.records import source_files
from tfft.starter import tagged
from tfft.utils.errors import UserError
from tfft.utils.reading import expanded, is_unicode, printable, read_json

_INFO = "dataset_info.json"  # TFDS writes it into the folder of each prepared version


@dataclass(frozen=True)
class Request:
    """The arguments of `tfft init`.

    Attributes:
        data: a file, a glob, a folder of images, `tfds:NAME` or the folder of a prepared TFDS set.
        output: the file to write, which the comments name.
        test: data of the test split, None to look for it beside `data`.
        columns: overrides by key of the config: `text`, `text_pair`, `question`, `context`,
            `image`, `label`.
        backbone: overrides `model.backbone`.
        encoding: encoding of csv, tsv, jsonl and CoNLL files.
    """

    data: str
    output: str
    test: str | None
    columns: dict[str, str]
    backbone: str | None = None
    encoding: str = "utf-8"

    @property
    def numbered(self) -> bool:
        """Whether columns are given by number, as for files without a header."""
        return bool(self.columns) and all(column.isdecimal() for column in self.columns.values())


def source_of(data: str, encoding: str = "utf-8", flag: str = "--data") -> Source:
    """Return the source that `data.train` would hold for a path.

    CoNLL files have all kinds of suffixes, and `.txt` or `.tsv` too: their lines tell.

    Args:
        data: see `Request.data`.
        encoding: of csv, tsv, jsonl and CoNLL files.
        flag: names the argument in errors.

    Raises:
        UserError: there are no such data, or their format is not known.
    """
    if not data:
        raise UserError(f"{flag}: must not be empty")
    if not is_unicode(data):
        reason = "holds bytes that are not UTF-8, which a YAML file cannot name; rename it"
        raise UserError(f"{flag}: {printable(data)} {reason}")
    if data.startswith("tfds:"):
        return section(Source, data, flag)
    path = expanded(data)
    if path.is_dir():
        return _folder(data, path, flag)
    source = SUFFIXES.get(PurePath(data).suffix.lower())
    raw = {"source": source or "csv", "path": data, "encoding": encoding}
    files = source_files(section(Source, raw, flag), "data.train")
    if source in ("tsv", None) and tagged.is_conll(files[0], encoding):
        source = "conll"
    if source is None:
        raise UserError(
            f"{flag}: cannot tell the format of {data} from its name; known: {', '.join(SUFFIXES)}"
            f". Its lines are not those of a CoNLL file in {encoding}"
        )
    return section(Source, {**raw, "source": source}, flag)


def _folder(data: str, path: Path, flag: str) -> Source:
    """Return the source of a folder: a prepared TFDS set, or a folder for each class."""
    patterns = (_INFO, f"*/{_INFO}", f"*/*/{_INFO}")  # NAME/VERSION or NAME/CONFIG/VERSION
    versions = [info.parent for pattern in patterns for info in path.glob(pattern)]
    sets = sorted({str(version.parent) for version in versions})
    if len(sets) > 1:
        shown = f"{', '.join(sets[:20])}{' ...' if len(sets) > 20 else ''}"
        raise UserError(f"{flag}: {data} holds {len(sets)} sets of TFDS; give one: {shown!a}")
    if versions:
        return section(Source, _tfds_folder(max(versions, key=_version_numbers)), flag)
    return section(Source, {"source": "images", "path": data.rstrip("/") + "/"}, flag)


def _version_numbers(version: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.name)]


def _tfds_folder(version: Path) -> dict[str, Any]:
    """Return the source of a folder DATA_DIR/NAME/[CONFIG/]VERSION that TFDS prepared."""
    info = read_json(version / _INFO)
    name, config = info.get("name"), info.get("configName")
    parts = [name, config] if config else [name]
    version = version.absolute() if len(version.parents) <= len(parts) else version
    if not all(isinstance(part, str) for part in parts):
        raise UserError(f"{version / _INFO}: `name` must be a text. Received: {json.dumps(name)}")
    path = f"{'/'.join(parts)}:{version.name}"
    return {"source": "tfds", "path": path, "data_dir": str(version.parents[len(parts)])}
