"""Serve an export for development, with TF Serving's REST and gRPC interfaces.

In production, TF Serving serves the same folder.

Example:
    tfft serve --workdir=runs/reviews --rest_api_port=8501
"""

from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError, require
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_workdir("run directory; its export/ is served")
flags.DEFINE_string("model_base_path", None, "folder of numbered versions, or one version")
flags.DEFINE_string(
    "model_name", None, "name of the model in requests; default: that of models.config, or model"
)
flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
flags.DEFINE_integer("rest_api_port", 8501, "port of REST; 0: any free port", 0, 65535)
flags.DEFINE_integer("port", 8500, "port of gRPC; 0: any free port", 0, 65535)
flags.DEFINE_integer("max_batch_size", 32, "rows per batch at most", 1)
flags.DEFINE_integer("num_batch_threads", 1, "batches in parallel", 1)
flags.DEFINE_integer("max_body_mib", 64, "largest request in MiB", 1)
flags.DEFINE_float("timeout", 60.0, "seconds that a request may take", 0.1)


def run() -> None:
    """Load the newest version and serve it until a signal."""
    flag_values = common.FLAGS
    if (flag_values.workdir is None) == (flag_values.model_base_path is None):
        raise UserError("one of --workdir and --model_base_path is required, not both")
    base = (
        Path(flag_values.model_base_path)
        if flag_values.workdir is None
        else Path(flag_values.workdir) / "export"
    )
    for package in ("aiohttp", "tensorflow_serving"):
        require(package, "serve")
    load_tensorflow()
    from tfft.serve import Options, default_name, serve

    serve(
        Options(
            flag_values.model_name or default_name(base),
            base,
            flag_values.host,
            flag_values.rest_api_port,
            flag_values.port,
            flag_values.max_batch_size,
            flag_values.num_batch_threads,
            max_body_bytes=flag_values.max_body_mib << 20,
            timeout=flag_values.timeout,
        )
    )


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
