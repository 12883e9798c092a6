"""Evaluate a trained model on a split of its config, or on another file.

Prints the metrics with intervals and baselines; with --output they are written as JSON too.

Example:
    tfft evaluate --workdir=runs/reviews --split=test
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError, nearest
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_workdir()
common.define_backbone()
flags.DEFINE_string("split", "test", "split of the run's config: train, validation or test")
flags.DEFINE_string(
    "data", None, "a file to evaluate on instead: csv, tsv, jsonl, parquet or conll"
)
flags.DEFINE_string("output", None, "JSON file for the metrics")


def run() -> None:
    """Load the run, evaluate the split or the file, and print the metrics."""
    flag_values = common.FLAGS
    if flag_values.workdir is None:
        raise UserError("--workdir: required and not given")
    splits = ("train", "validation", "test")
    if flag_values.split not in splits:
        raise UserError(
            f"--split: unknown split {flag_values.split!r}{nearest(flag_values.split, splits)}"
        )
    load_tensorflow()
    from tfft.evaluation import evaluate
    from tfft.run import load_run

    loaded_run = load_run(flag_values.workdir, flag_values.backbone)
    if flag_values.data is not None:
        name = Path(flag_values.data).name
        source = _source(flag_values.data, loaded_run.config.data.train)
        evaluation = loaded_run.evaluate_source(source, loaded_run.config.evaluate)
    else:
        name, evaluation = flag_values.split, loaded_run.evaluate(flag_values.split)
    print(evaluate.table({name: evaluation}, loaded_run.config.evaluate.confidence))
    if flag_values.output is not None:
        Path(flag_values.output).write_text(
            json.dumps(evaluation.flat(name), indent=1), encoding="utf-8"
        )


def _source(path: str, train: Any) -> Any:
    """Return the source of a file, of CoNLL where the training data are and its name is no other's.

    Raises:
        UserError: the name does not tell the format.
    """
    from tfft.config import Source

    # `.txt` is the name of tables and of CoNLL files.
    is_conll = train.source == "conll" and Path(path).suffix not in (".jsonl", ".parquet", ".csv")
    try:
        return Source.model_validate({"source": "conll", "path": path} if is_conll else path)
    except ValueError:
        raise UserError(f"--data: cannot tell the format of {path} from its name") from None


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
