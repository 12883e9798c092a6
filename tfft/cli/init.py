"""Write a first config for data at hand, with a comment for each choice. Trains nothing.

Looks at the first 2,000 rows, or at the names of all images. They may be texts or images with
classes, several labels or numbers, or words with tags: CoNLL files, lists of tokens and of tags, or
texts with spans. Or they are questions about contexts: SQuAD files, or rows with answers that have
a text and an answer_start. Flags override what cannot be decided.

Example:
    tfft init --data=reviews.csv --output=reviews.yaml
"""

import re
import shlex
from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.config.sections import ModelConfig
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.reading import expanded, printable
from tfft.utils.tensorflow_setup import load_tensorflow

flags.DEFINE_string("data", None, "a file, a glob, a folder of images, tfds:NAME or its folder")
flags.DEFINE_string("test", None, "the same for the test split; default: looked for beside --data")
flags.DEFINE_string("output", None, "file to write; default: the name of the data and .yaml")
flags.DEFINE_string("backbone", None, "model.backbone, instead of one that fits the data")
flags.DEFINE_string("text", None, "column of the texts, a name or a number")
flags.DEFINE_string("text_pair", None, "column of the second text of a pair")
flags.DEFINE_string("question", None, "column of the questions about contexts")
flags.DEFINE_string("context", None, "column of the contexts that hold the answers")
flags.DEFINE_string("image", None, "column of the images or of their paths")
flags.DEFINE_string(
    "label", None, "column of the labels, of the tags of words, of spans, or of answers"
)
flags.DEFINE_string("encoding", "utf-8", "encoding of csv, tsv, jsonl and CoNLL files")


def run() -> None:
    """Look at the data, write the config and print the next commands."""
    values = common.FLAGS
    if values.data is None:
        raise UserError("--data: required and not given")
    output = Path(values.output or _default_output(values.data))
    if output.exists() or output.is_symlink():
        raise UserError(f"--output: {printable(str(output))} exists and is not overwritten")
    if values.backbone is not None:
        from tfft.config import section

        section(ModelConfig, {"backbone": values.backbone}, "--backbone")
    text, doubts, summary = _draft(values, str(output))
    _write(output, text)
    for doubt in doubts:
        console.log(f"check {doubt}")
    path = printable(shlex.quote(str(output)))
    print(f"{printable(str(output))}: {summary}\nnext:")
    print(f"  tfft profile --config={path}   # targets, lengths, duplicates, leaks, bad rows")
    print(f"  tfft show --config={path}      # every value, the mask and the memory")
    print(f"  tfft train --config={path}")


def _draft(values: flags.FlagValues, output: str) -> tuple[str, tuple[str, ...], str]:
    from tfft import starter

    keys = ("text", "text_pair", "question", "context", "image", "label")
    columns = {key: values[key].value for key in keys if values[key].value is not None}
    request = starter.Request(
        values.data, output, values.test, columns, values.backbone, values.encoding
    )
    paths = [(values.data, "--data"), (values.test, "--test")]
    sources = [starter.source_of(v, values.encoding, flag) for v, flag in paths if v is not None]
    if any(source.source == "tfds" for source in sources):
        load_tensorflow()
    draft = starter.draft(request)
    return draft.text, draft.doubts, draft.summary


def _default_output(data: str) -> str:
    """Return the last name in a path without its suffix, and `.yaml`."""
    path = expanded(data.removeprefix("tfds:").rstrip("/"))
    name = path.stem or path.absolute().name
    without_glob = re.sub(r"[*?:]+|\[.*?\]", "", name).strip("-_.")
    return f"{without_glob or 'config'}.yaml"


def _write(output: Path, text: str) -> None:
    """Write a new file; "x" refuses one that another process wrote in the meantime."""
    try:
        with open(output, "x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except BaseException:  # such as a full disk
                output.unlink()
                raise
    except FileExistsError:
        shown = printable(str(output))
        raise UserError(f"--output: {shown} exists and is not overwritten") from None


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
