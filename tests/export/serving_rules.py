"""A simulation of TF Serving: which configs, versions and requests it accepts.

It follows TF Serving's sources (server_core.cc, bundle_factory_util.cc, batching_session.cc,
shared_batch_scheduler.h, saved_model_warmup_util.cc) and computes nothing.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

MAX_RECORDS = 1000


class RequestRejected(Exception):
    """An error that TF Serving returns or logs."""


@dataclass(frozen=True)
class Batching:
    """BatchingParameters with the defaults of SharedBatchScheduler."""

    max_batch_size: int = 1000
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0
    max_enqueued_batches: int = 10
    batch_timeout_micros: int = 0
    num_batch_threads: int = 1
    pad_variable_length_inputs: bool = False
    allowed_batch_sizes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text):
        """Parse the text form, in which wrapped numbers are messages with a `value`."""
        values, sizes = {}, []
        for line in filter(None, (re.sub("#.*", "", line).strip() for line in text.splitlines())):
            wrapper = re.fullmatch(r"(\w+) { value: (\w+) }", line)
            repeated = re.fullmatch(
                r"(allowed_batch_sizes|pad_variable_length_inputs): (\w+)", line
            )
            if not (wrapper or repeated):
                raise RequestRejected(f"INVALID_ARGUMENT: no BatchingParameters: {line}")
            name, value = (wrapper or repeated).groups()
            value = {"true": True, "false": False}.get(value) if value.isalpha() else int(value)
            if name == "allowed_batch_sizes":
                sizes.append(value)
            elif name in values or name not in cls.__dataclass_fields__:
                raise RequestRejected(f"INVALID_ARGUMENT: no BatchingParameters: {line}")
            else:
                values[name] = value
        params = cls(**values, allowed_batch_sizes=tuple(sizes))
        if sizes and (sizes != sorted(set(sizes)) or sizes[-1] != params.max_batch_size):
            raise RequestRejected(
                "INVALID_ARGUMENT: last entry of allowed_batch_sizes != max_batch_size"
            )
        if params.execution > params.max_batch_size or params.max_enqueued_batches < 1:
            raise RequestRejected("INVALID_ARGUMENT: max_execution_batch_size > max_batch_size")
        return params

    @property
    def execution(self):
        """Largest number of rows that are computed at once."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size


@dataclass
class Server:
    """A server of a folder mounted at /models/NAME, with the flags of its compose file.

    Attributes:
        loaded: the versions that are AVAILABLE.
        failed: version -> the error of its load.
        labels: label -> version, as clients can use them.
    """

    folder: Path
    loaded: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        (service,) = yaml.safe_load((self.folder / "docker-compose.yaml").read_text())[
            "services"
        ].values()
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in service["command"])
        self.allow_new_labels = flags["allow_version_labels_for_unavailable_models"] == "true"
        assert flags["enable_batching"] == "true" and service["volumes"][0].startswith(".:")
        # Read only here: a running server does not see later changes.
        self.batching = Batching.parse(self._path(flags["batching_parameters_file"]).read_text())
        self.config_file = flags["model_config_file"]
        self.reload()
        if not self.loaded:
            raise RequestRejected(f"the model did not become available: {self.failed}")

    def _path(self, container_path):
        """Return the path on disk of a path in the container."""
        _, models, self.name, *rest = container_path.split("/")
        assert models == "models"
        return self.folder.joinpath(*rest)

    def reload(self):
        """Apply the config file: labels first, then versions.

        Raises:
            RequestRejected: a label cannot move; nothing is loaded.
        """
        config = model_server_config_pb2.ModelServerConfig()
        text_format.Parse(self._path(self.config_file).read_text(), config)
        (model,) = config.model_config_list.config
        assert (model.name, model.base_path) == (self.name, f"/models/{self.name}")
        for label, version in model.version_labels.items():
            is_moved = self.labels.get(label, version) != version
            if version not in self.loaded and (is_moved or not self.allow_new_labels):
                raise RequestRejected(
                    f"FAILED_PRECONDITION: label {label} to version {version}, which is not "
                    "currently available for inference"
                )
        self.labels = dict(model.version_labels)
        policy = model.model_version_policy
        assert policy.WhichOneof("policy_choice") == "specific"
        aspired = {v for v in policy.specific.versions if (self.folder / str(v)).is_dir()}
        for version in sorted(aspired - self.loaded):
            try:
                self._run_warmup(self.folder / str(version))
                self.loaded.add(version)
            except RequestRejected as error:
                self.failed[version] = str(error)
        if aspired & self.loaded:  # availability is preserved
            self.loaded &= aspired

    def find(self, label=None, version=None):
        """Return the version that answers a request."""
        if label is not None:
            if label not in self.labels:
                raise RequestRejected(
                    f"INVALID_ARGUMENT: Unrecognized servable version label: {label}"
                )
            version = self.labels[label]
        version = max(self.loaded) if version is None else version
        if version not in self.loaded:
            raise RequestRejected(f"NOT_FOUND: Specific({self.name}, {version})")
        return version

    def answer(self, *requests):
        """Check concurrent requests to one signature; each maps input name -> shape."""
        queued_rows = 0
        for shapes in requests:
            self._schedule({shape[0] for shape in shapes.values()}, queued_rows)
            queued_rows += next(iter(shapes.values()))[0]
        if queued_rows <= self.batching.execution:  # they may share a batch
            for name in requests[0]:
                if len({shapes[name][1:] for shapes in requests}) > 1:
                    padding = self.batching.pad_variable_length_inputs
                    raise RequestRejected(
                        f"FAILED_PRECONDITION: {name}: different shapes, {padding=}"
                    )

    def _schedule(self, row_counts, queued_rows=0):
        """Check whether a request fits in the queue of its signature."""
        if len(row_counts) != 1 or 0 in row_counts:
            raise RequestRejected(f"INVALID_ARGUMENT: batch sizes {row_counts}")
        (size,), batching = row_counts, self.batching
        if size > batching.max_batch_size:
            raise RequestRejected(
                f"INVALID_ARGUMENT: Task size {size} is larger than maximum input batch size "
                f"{batching.max_batch_size}"
            )
        if queued_rows + size > batching.max_enqueued_batches * batching.execution:
            raise RequestRejected("UNAVAILABLE: the batch scheduling queue is full")

    def _run_warmup(self, version):
        """Run the recorded requests through the batching session."""
        path = version / "assets.extra" / "tf_serving_warmup_requests"
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        if len(records) > MAX_RECORDS:
            raise RequestRejected("INVALID_ARGUMENT: Number of warmup records exceeds the maximum")
        for record in records:
            self._schedule(batch_sizes(prediction_log_pb2.PredictionLog.FromString(record)))


def batch_sizes(entry):
    """Return the sizes of the first axes of a recorded request's inputs."""
    if entry.HasField("classify_log"):
        return {len(entry.classify_log.request.input.example_list.examples)}
    inputs = entry.predict_log.request.inputs.values()
    return {value.tensor_shape.dim[0].size for value in inputs}
