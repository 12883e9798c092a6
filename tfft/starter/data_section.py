"""The section `data` of a first config: its keys with their reasons."""

from collections.abc import Sequence
from typing import Any

from tfft.config import Source
from tfft.config.data import FORMAT_COLUMNS, format_label, look_alike
from tfft.data.records import LABEL_SEPARATOR
from tfft.starter import choices, questions, splits
from tfft.starter.facts import Facts
from tfft.starter.head import Name
from tfft.starter.page import MAX_PATH, Entry, name
from tfft.starter.request import source_of
from tfft.starter.roles import listed
from tfft.utils.errors import UserError

_LISTED_CLASSES = 8


def section(data: Facts) -> list[Entry]:
    """Return the keys of the section `data`.

    Raises:
        UserError: the data of `--test` cannot be the test split.
    """
    head = data.head
    train = _train_comment(data)
    doubt = head.doubt
    if head.total is None:
        doubt = "no row was read: try again when TFDS has prepared the set, for a better config"
    entries = [Entry("train", _shorthand(head.source), train, doubt)]
    found_splits = {role: _split(data, role) for role in ("validation", "test")}
    entries += found_splits.values()
    entries += _column_entries(data)
    if data.is_text:
        entries.append(_max_length(data))
    if (bad := _bad_row_entry(data, found_splits)) is not None:
        entries.append(bad)
    return entries


def _train_comment(data: Facts) -> str:
    head = data.head
    if head.source.source == "conll":
        candidates = data.roles.others["label"]
        other = f"; columns with tags too, from 0: {listed(candidates)}" if candidates else ""
        return f"CoNLL: a token and its tag on a line, a blank line after each sentence{other}"
    if head.source.source == "squad":
        return "SQuAD: questions about contexts with their answers; or a list of paths, or a glob"
    if head.source.source == "images":
        return "a folder for each class"
    if head.source.source == "tfds":
        return "the set, and where TFDS prepared it"
    if head.header is None:
        return "or a list of paths, or a glob"
    names = "with a header" if head.header else "no header: columns by number, from 0"
    return f"{names}; or a list of paths, or a glob"


def _shorthand(source: Source) -> Any:
    """Return a source as a user would write it."""
    prefix = "tfds:" if source.source == "tfds" else ""
    raw = source.model_dump(mode="json", exclude_defaults=True)
    if isinstance(source.path, str):
        text = f"{prefix}{source.path}"
        try:
            if Source.model_validate(text) == source:
                return text
        except ValueError:
            pass
    return raw


def _split(data: Facts, role: str) -> Entry:
    """Return the entry of the validation or test split: data beside the training rows, or none."""
    is_flag = role == "test" and data.request.test is not None
    source, doubt = splits.beside(data.head.source, role), None
    if is_flag:
        source = source_of(str(data.request.test), data.request.encoding, "--test")
    if source is not None:
        key = f"data.{role}"
        reason = splits.mismatch(source, data.roles, data.head, data.counts, key)
        if reason is None:
            use = "selects the best weights" if role == "validation" else "used once, at the end"
            origin = "from --test" if is_flag else "lies beside the training data"
            return Entry(role, _shorthand(source), f"{use}; {origin}")
        if is_flag:
            raise UserError(f"--test: {source.path}: {reason}")
        doubt = f"{name(str(source.path), MAX_PATH)} is not used: {reason}"
    if role == "validation":
        share = choices.validation_fraction(data.head.total)
        comment = f"{share:.0%} of the rows select the best weights; or a source, as `train`"
        return Entry(role, {"fraction": share}, comment, doubt)
    if data.head.total is None or data.head.total < choices.SMALL:
        return Entry(role, None, "none; a source, or {fraction: 0.1}, gives honest metrics", doubt)
    return Entry(
        role, {"fraction": 0.1}, "held out for honest metrics; or a source, or null", doubt
    )


def _column_entries(data: Facts) -> list[Entry]:
    roles = data.roles
    entries = []
    if roles.targets == "answers":
        for key, column in (("question", roles.question), ("context", roles.context)):
            comment = _text_comment(_texts(data, column), f"the column of {key}s")
            entries.append(Entry(key, column, comment, roles.doubts.get(key)))
    elif data.is_text:
        comment = _text_comment(data.texts, "the column of texts")
        entries.append(Entry("text", roles.text, comment, roles.doubts.get("text")))
        if roles.text_pair is not None:
            comment = "the second text of a row, which is a pair; null: texts alone"
            entries.append(Entry("text_pair", roles.text_pair, comment))
    elif data.head.source.source != "images":
        entries.append(Entry("image", roles.image, "pixels, or paths from the table's folder"))
    if data.head.source.source != "images":
        label = Entry("label", roles.label, _label_comment(data), _label_doubt(data))
        entries.append(label)
    if roles.separator not in (None, LABEL_SEPARATOR):
        comment = "separates the labels of a row"
        entries.append(Entry("label_separator", roles.separator, comment))
    if data.head.source.source == "images":
        entries.append(Entry("labels", None, _label_comment(data), _label_doubt(data)))
    if roles.labels:
        comment = "names of the tags, from that of 0 on"
        entries.append(Entry("labels", list(roles.labels), comment, roles.doubts.get("labels")))
    return [entry for entry in entries if not _is_default(data, entry)]


def _is_default(data: Facts, entry: Entry) -> bool:
    """Return whether an entry is a column that the format fixes and need not be written."""
    fixed = FORMAT_COLUMNS.get(data.head.source.source, {})
    return entry.key in fixed and fixed[entry.key] == entry.value and entry.doubt is None


def _texts(data: Facts, column: Name | None) -> list[str]:
    """Return the texts of a column; none without the column."""
    cells = data.head.column(column) if column is not None else None
    return [] if cells is None else cells.texts


def _text_comment(texts: Sequence[str], unread: str) -> str:
    """Return the average length of texts; `unread` if there are none yet."""
    if not texts:
        return unread
    words = sum(len(text.split()) for text in texts) / len(texts)
    characters = sum(map(len, texts)) / len(texts)
    count = f"{words:.0f} words or " if words >= 2 else ""
    return f"{count}{characters:.0f} characters a row on average"


def _label_comment(data: Facts) -> str:
    """Return what the label is: the most frequent classes with their rows, or a range."""
    if data.roles.targets == "numbers":
        return _number_comment(data)
    alternatives = data.roles.others["label"]
    other = f"; other candidates: {listed(alternatives)}" if alternatives else ""
    if data.roles.targets == "answers":
        return f"passages of the context, each with its start{other}"
    if data.roles.targets == "tags":
        text = data.head.column(data.roles.text) if data.roles.text is not None else None
        has_tokens = text is not None and bool(text.lists)
        return f"{'a tag for each token' if has_tokens else 'entities: start, end, label'}{other}"
    folders = "; null: the folders" if data.head.source.source == "images" else ""
    return f"{counted(data, 'classes')}{other}{folders}"


def counted(data: Facts, noun: str) -> str:
    """Return the number of classes or of types of entities, and the most frequent with counts.

    Args:
        data: the facts.
        noun: what is counted, in the plural.
    """
    counts, common = data.counts, data.counts.most_common(_LISTED_CLASSES)
    first = ", ".join(f"{name(label)} {rows:,}" if rows else name(label) for label, rows in common)
    more = f" and {len(counts) - len(common):,} others" if len(counts) > len(common) else ""
    column = data.head.column(data.roles.label)
    is_declared = column is not None and bool(column.classes)
    extent = "" if data.head.complete or is_declared else " among these rows"
    return " ".join(f"{len(counts):,} {noun}{extent}: {first}{more}".split())


def _number_comment(data: Facts) -> str:
    """Return the range and the mean of the numbers, and other candidates."""
    column = data.head.column(data.roles.label)
    values = [float(text) for text in column.texts] if column is not None else []
    alternatives = data.roles.others["label"]
    other = f"; other candidates: {listed(alternatives)}" if alternatives else ""
    mean = sum(values) / max(1, len(values))
    return f"numbers from {min(values):g} to {max(values):g}, {mean:.4g} on average{other}"


def _label_doubt(data: Facts) -> str | None:
    pair = look_alike(data.counts)
    if pair is not None:
        first, second = map(format_label, pair)
        return f"{first} and {second} differ in spaces or normalization alone: write both the same"
    if data.roles.targets == "tags" and not data.counts:
        return f"the first {data.head.rows:,} rows hold no entity"
    if data.roles.targets == "answers" and data.head.rows and not data.counts[questions.ANSWER]:
        return f"the first {data.head.rows:,} rows hold no answer"
    return data.roles.doubts.get("label")


def _max_length(data: Facts) -> Entry:
    texts = data.texts
    if data.roles.targets == "answers":
        length = choices.window_length(_texts(data, data.roles.context), texts)
        comment = "tokens of a window, with the question; longer contexts are divided into windows"
        return Entry("max_length", length, comment)
    if not texts:
        return Entry("max_length", 128, "tokens; tfft profile shows how many rows are cut")
    comment = (
        f"tokens, estimated to hold {choices.PERCENTILE} % of the rows; time grows with it; "
        "tfft profile counts what is cut"
    )
    return Entry("max_length", choices.max_length(texts), comment)


def _bad_row_entry(data: Facts, found_splits: dict[str, Entry]) -> Entry | None:
    """Return `on_bad_row: skip` if rows of any split cannot be used, else None."""
    bad = splits.bad_rows(data.head.source, data.roles, "data.train")
    for role, entry in found_splits.items():
        if isinstance(entry.value, str) or "path" in (entry.value or {}):
            source = Source.model_validate(entry.value)
            bad += splits.bad_rows(source, data.roles, f"data.{role}")
    if not bad:
        return None
    count = sum(row.count for row in bad)
    example = name(bad[0].place, MAX_PATH) + f": {' '.join(bad[0].reason.split())[:150]}"
    doubt = f"{count:,} of the first rows cannot be used and are left out, the first: {example}"
    return Entry("on_bad_row", "skip", "or stop, which names the first one", doubt)
