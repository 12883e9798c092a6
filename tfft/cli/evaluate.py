"""Figures of a trained model on a split of its config, or on another file.

Prints them with intervals and baselines; with --output they are written as JSON too.
"""

import json
from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError, nearest

common.define_workdir()
common.define_backbone()
flags.DEFINE_string("split", "test", "split of the run's config: train, validation or test")
flags.DEFINE_string("data", None, "a file to evaluate on instead: csv, tsv, jsonl or parquet")
flags.DEFINE_string("output", None, "JSON file for the figures")


def verb() -> None:
    """Load the run, evaluate, print."""
    f = common.FLAGS
    if f.workdir is None:
        raise UserError("--workdir: required and not given")
    splits = ("train", "validation", "test")
    if f.split not in splits:
        raise UserError(f"--split: unknown split {f.split!r}{nearest(f.split, splits)}")
    common.load_tensorflow()
    from tfft.config import Source
    from tfft.evaluation import evaluate
    from tfft.run import load_run

    run = load_run(f.workdir, f.backbone)
    if f.data is not None:
        name = Path(f.data).name
        try:
            source = Source.model_validate(f.data)
        except ValueError:
            raise UserError(f"--data: cannot tell the format of {f.data} from its name") from None
        found = run.evaluate_source(source, run.config.evaluate)
    else:
        name, found = f.split, run.evaluate(f.split)
    print(evaluate.text(found, name, run.config.evaluate.confidence))
    if f.output is not None:
        Path(f.output).write_text(json.dumps(found.flat(name), indent=1), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
