"""Publish a trained model: a verified SavedModel for TF Serving, a Hugging Face checkpoint, LiteRT,
ONNX or `.keras`.
"""

from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError

common.define_workdir()
common.define_backbone()
FORMATS = ("saved_model", "huggingface", "litert", "onnx", "keras")
flags.DEFINE_string("output", None, "folder; default: WORKDIR/export, or WORKDIR and the format")
flags.DEFINE_enum("format", "saved_model", FORMATS, "what is written")
WEIGHT_DTYPES = ("float32", "float16", "bfloat16", "int8")
flags.DEFINE_enum(
    "weight_dtype",
    None,
    WEIGHT_DTYPES,
    "of a SavedModel's stored weights; default: export.weight_dtype",
)


def verb() -> None:
    """Load the run, write."""
    f = common.FLAGS
    if f.workdir is None:
        raise UserError("--workdir: required and not given")
    if f.weight_dtype is not None and f.format != "saved_model":
        raise UserError(f"--weight_dtype: of a SavedModel; received it with --format={f.format}")
    common.load_tensorflow()
    from tfft.run import load_run

    run = load_run(f.workdir, f.backbone)
    folder = Path(f.output) if f.output is not None else None
    if f.format == "huggingface":
        print(run.export_huggingface(folder))
    elif f.format == "saved_model":
        print(run.export(folder, f.weight_dtype))
    else:
        print(run.export_as(f.format, folder))


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
