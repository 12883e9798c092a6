"""Serve an export for trying it out, with TF Serving's REST and gRPC interfaces. For development:
in production TF Serving serves the same folder.
"""

from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError, require

common.define_workdir("run directory, whose export/ is served")
flags.DEFINE_string("model_base_path", None, "folder of the versions, or one version")
flags.DEFINE_string(
    "model_name", None, "name in the requests; default: that of models.config, or model"
)
flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
flags.DEFINE_integer("rest_api_port", 8501, "0: any that is free", 0, 65535)
flags.DEFINE_integer("port", 8500, "of gRPC; 0: any that is free", 0, 65535)
flags.DEFINE_integer("max_batch_size", 32, "rows that are answered together", 1)
flags.DEFINE_integer("num_batch_threads", 1, "batches at once", 1)
flags.DEFINE_integer("max_body_mib", 64, "size of a request at most", 1)
flags.DEFINE_float("timeout", 60.0, "seconds for a request", 0.1)


def verb() -> None:
    """Load the newest version, listen until a signal."""
    f = common.FLAGS
    if (f.workdir is None) == (f.model_base_path is None):
        raise UserError("--workdir or --model_base_path: one of them says what is served")
    base = Path(f.model_base_path) if f.workdir is None else Path(f.workdir) / "export"
    for package in ("aiohttp", "tensorflow_serving"):
        require(package, "serve")
    common.load_tensorflow()
    from tfft.serve import Options, default_name, serve

    serve(
        Options(
            f.model_name or default_name(base),
            base,
            f.host,
            f.rest_api_port,
            f.port,
            f.max_batch_size,
            f.num_batch_threads,
            body=f.max_body_mib << 20,
            seconds=f.timeout,
        )
    )


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
