"""Export a trained model.

Formats: a verified SavedModel for TF Serving, a Hugging Face checkpoint, LiteRT, ONNX, `.keras`.

Example:
    tfft export --workdir=runs/reviews --format=huggingface
"""

from pathlib import Path
from typing import get_args

from absl import flags

from tfft.cli import common
from tfft.config import ExportConfig
from tfft.utils.errors import UserError
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_workdir()
common.define_backbone()
FORMATS = ("saved_model", "huggingface", "litert", "onnx", "keras")
flags.DEFINE_string("output", None, "folder; default: WORKDIR/export, or WORKDIR and the format")
flags.DEFINE_enum("format", "saved_model", FORMATS, "format of the export")
WEIGHT_DTYPES = get_args(ExportConfig.model_fields["weight_dtype"].annotation)
flags.DEFINE_enum(
    "weight_dtype",
    None,
    WEIGHT_DTYPES,
    "dtype of a SavedModel's stored weights; default: export.weight_dtype",
)


def run() -> None:
    """Load the run and write the export."""
    flag_values = common.FLAGS
    if flag_values.workdir is None:
        raise UserError("--workdir: required and not given")
    if flag_values.weight_dtype is not None and flag_values.format != "saved_model":
        raise UserError(
            f"--weight_dtype: needs --format=saved_model. Received: --format={flag_values.format}"
        )
    load_tensorflow()
    from tfft.run import load_run

    loaded_run = load_run(flag_values.workdir, flag_values.backbone)
    folder = Path(flag_values.output) if flag_values.output is not None else None
    if flag_values.format == "huggingface":
        print(loaded_run.export_huggingface(folder))
    elif flag_values.format == "saved_model":
        print(loaded_run.export(folder, flag_values.weight_dtype))
    else:
        print(loaded_run.export_as(flag_values.format, folder))


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
