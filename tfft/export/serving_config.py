"""Write the TF Serving configuration and the README beside the versions of an export.

    models.config           the versions to load, and their labels
    batching_params.pbtxt   how requests are batched and split; the same for every export
    docker-compose.yaml     TF Serving on this machine
    kubernetes.yaml         TF Serving on a cluster
    README.md               example requests; how to promote a version and roll back

TF Serving reads the batching parameters only when it starts (bundle_factory_util.cc). They must
not depend on an export: a running server would not see the new ones, and could reject the warm-up
requests of a version that was written for them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from tfft.export import exported_model
from tfft.export.models_config import MARK, STABLE, Config, may_write
from tfft.export.signatures import RAW, Servable, fixed, names, of_examples, output_specs
from tfft.utils import console, markdown
from tfft.utils.files import write_atomic

SIZES = (1, 2, 4, 8, 16, 32)  # batch sizes that the model computes
MAX_ROWS = 4096  # rows of a request, which is split into batches of the largest size
MAX_QUEUED_REQUESTS = 4  # requests of MAX_ROWS rows that may wait for each signature
MIN_SPEEDUP = 1.1  # least gain in rows per second for which a larger batch is worth its memory
PORTS = {"grpc": 8500, "rest": 8501}
CONFIG = "models.config"
BATCHING = "batching_params.pbtxt"


def write(folder: Path, name: str, servable: Servable) -> None:
    """Write the files beside the versions, except those that tfft did not write.

    Args:
        folder: the folder of the numbered versions.
        name: the name of the model in URLs, as `model_name` returns it.
        servable: the exported model.
    """
    path, published = folder / CONFIG, list(exported_model.versions(folder))
    config = Config.read(path)
    updated = config and config.after_export(published)
    files = {
        BATCHING: batching(),
        "docker-compose.yaml": compose(name),
        "kubernetes.yaml": kubernetes(name),
        "README.md": readme(name, servable, published[-1], updated),
    }
    if config is None or updated is None:
        console.log(
            f"export: {path} was edited beyond versions and labels and is not changed; add version "
            f"{published[-1]} to it"
        )
    else:
        for label, number in config.labels.items():
            if updated.labels[label] != number:
                console.log(
                    f"export: version {number} of the label {label} was deleted; the label is now "
                    f"at version {updated.labels[label]}. Restart a server that has not loaded "
                    "that version, or move the label by hand"
                )
        files[CONFIG] = updated.text(name)
    _write_files(folder, files)


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    for file, text in files.items():
        path = folder / file
        if not may_write(path):
            console.log(f"export: {path} was not written by tfft and is not changed")
            continue
        mark = f"<!-- {MARK} -->" if file.endswith(".md") else f"# {MARK}"
        write_atomic(path, f"{mark}\n{text}")


def model_name(text: str) -> str:
    """Return a name that is valid in URLs and in Kubernetes: lowercase letters, digits, dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    # A Kubernetes name has at most 63 characters.
    return name[:50].strip("-") or "model"


def warm_up_sizes(rates: Mapping[int, float]) -> list[int]:
    """Return the batch sizes up to the largest one that still raises the throughput.

    Args:
        rates: batch size -> rows per second.
    """
    sizes = [size for size in SIZES if size in rates]
    largest = 0
    for i in range(1, len(sizes)):
        if rates[sizes[i]] >= MIN_SPEEDUP * rates[sizes[largest]]:
            largest = i
    return sizes[: largest + 1] or [1]


def batching() -> str:
    """Return TF Serving's batching parameters, which are the same for every export."""
    # The last size must be max_batch_size (bundle_factory_util.cc), though no batch is that large:
    # requests are split first.
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in (*SIZES, MAX_ROWS))
    return f"""\
# TF Serving reads this file only when it starts. A batch waits batch_timeout_micros for more
# requests and is padded to the next allowed size. Requests with more rows than
# max_execution_batch_size are split. The last allowed size must be max_batch_size. If a batch takes
# too long or too much memory, lower max_execution_batch_size and remove the sizes between it and
# the last one.
max_batch_size {{ value: {MAX_ROWS} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {SIZES[-1]} }}
batch_timeout_micros {{ value: 1000 }}
max_enqueued_batches {{ value: {MAX_QUEUED_REQUESTS * MAX_ROWS // SIZES[-1]} }}
{allowed}
"""


def _flags(name: str) -> list[str]:
    """Return the command-line flags of TF Serving for a model mounted at /models/NAME."""
    return [
        f"--model_config_file=/models/{name}/{CONFIG}",
        "--model_config_file_poll_wait_seconds=30",
        # A starting server reads labels before it loads their versions. The flag admits such
        # labels only if they are new; a running server still moves labels to loaded versions only.
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file=/models/{name}/{BATCHING}",
    ]


def _docker_image() -> str:
    """Return the Docker image of TF Serving for this TensorFlow.

    It has patch number 0, because not every patch release of TensorFlow has a TF Serving release.
    """
    major, minor, *_ = tf.__version__.split(".")
    return f"tensorflow/serving:{major}.{minor}.0"


def compose(name: str) -> str:
    """Return a Docker Compose file that serves the export folder."""
    flags = "\n".join(f"      - {flag}" for flag in _flags(name))
    return f"""\
# docker compose up: serves this folder. TF Serving must not be older than the TensorFlow that
# exported the model.
services:
  {name}:
    image: {_docker_image()}
    command:
{flags}
    ports:
      - "{PORTS["grpc"]}:8500"
      - "{PORTS["rest"]}:8501"
    volumes:
      - .:/models/{name}:ro
    healthcheck:
      test: ["CMD", "bash", "-c", "exec 3<>/dev/tcp/localhost/8501"]
      interval: 10s
"""


def kubernetes(name: str) -> str:
    """Return a Kubernetes deployment that serves a volume with the export folder, and a service."""
    flags = "\n".join(f"            - {flag}" for flag in _flags(name))
    return f"""\
# kubectl apply -f kubernetes.yaml, after copying this folder into the volume claim {name}.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: 2
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      containers:
        - name: serving
          image: {_docker_image()}
          args:
{flags}
          ports:
            - {{name: grpc, containerPort: 8500}}
            - {{name: rest, containerPort: 8501}}
          readinessProbe:
            httpGet: {{path: /v1/models/{name}, port: rest}}
          resources:
            requests: {{cpu: "1", memory: 1Gi}}
          volumeMounts:
            - {{name: models, mountPath: /models/{name}, readOnly: true}}
      volumes:
        - name: models
          persistentVolumeClaim: {{claimName: {name}, readOnly: true}}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{app: {name}}}
  ports:
    - {{name: grpc, port: {PORTS["grpc"]}, targetPort: grpc}}
    - {{name: rest, port: {PORTS["rest"]}, targetPort: rest}}
"""


def readme(name: str, servable: Servable, version: int, config: Config | None) -> str:
    """Return the README: how to serve the model, send requests, promote a version and roll back.

    Args:
        name: the name of the model in URLs.
        servable: the exported model.
        version: the newest version.
        config: the content of models.config; None if an export must not change that file.
    """
    columns = servable.inputs.columns
    url = f"http://localhost:{PORTS['rest']}/v1/models/{name}"
    output_names = markdown.text(", ".join(servable.labels))
    return f"""\
# {name}

{servable.task.name}: {servable.task.summary}. Labels: {output_names}.

## Serve

{_serve_section(name)}

## Promote and roll back

{_promotion_section(name, url, version, config)}

## Send requests

{_rest_requests(url, columns, of_examples(servable.task, servable.labels, servable.inputs))}

{_grpc_request(name, columns)}

{_saved_model_cli(version, columns)}

## Signatures

{_signature_table(servable)}
"""


def _serve_section(name: str) -> str:
    return f"""\
```sh
docker compose up                                      # TF Serving, by docker-compose.yaml
tfft serve --model_base_path=. --model_name={name}     # a development server, without a container
```

TF Serving must not be older than {_docker_image().rpartition(":")[2]}. Copy the folder of a version
to a server before models.config, which names it. A server reads {BATCHING} only when
it starts. Each export rewrites the files beside the versions, except files whose first line lacks
"{MARK}" and a models.config with more than versions and labels."""


def _promotion_section(name: str, url: str, version: int, config: Config | None) -> str:
    if config is None:
        return f"""\
{CONFIG} was edited beyond versions and labels, so exports do not change it. Add version
{version} to its versions, and wait on every server until the state of the version is AVAILABLE:

```sh
curl {url}/versions/{version}
```

Then move a label to it: TF Serving moves labels only to loaded versions. To roll back, move the
label to its former version, which must still be loaded."""
    stable, former = config.labels[STABLE], config.former
    former_text = "" if former in (None, stable) else f" (before: {former}, which is still loaded)"
    previous = stable if stable != version else former or version
    return f"""\
Requests to `{name}/labels/{STABLE}` are answered by version {stable}{former_text}, requests to
`{name}` by the newest version. An export adds a version and moves no label. TF Serving moves a
label only to a loaded version, so first check on every server that version {version} is loaded:

```sh
curl {url}/versions/{version}     # until its state is AVAILABLE
```

Then promote it by its number in models.config, which a server rereads every 30 seconds:

```sh
sed -i 's/"{STABLE}" value: [0-9]*/"{STABLE}" value: {version}/' models.config
```

The former version of `{STABLE}` is still loaded. Roll back by its number:

```sh
sed -i 's/"{STABLE}" value: [0-9]*/"{STABLE}" value: {previous}/' models.config
```

If a label is moved too early, TF Serving logs that the version "is not currently available for
inference", loads nothing and keeps serving the versions that it had. Restore the old number, wait
until the version is loaded, and move the label again.

To give some clients another version, add a label to models.config:
`version_labels {{ key: "canary" value: {version} }}`. Exports do not move it, and they keep its
version loaded."""


def _rest_requests(url: str, columns: Sequence[str], calls: Sequence[str]) -> str:
    """Return how to send requests over REST, with curl and from Python.

    Args:
        url: of the model.
        columns: names of the raw inputs.
        calls: the signatures that take tf.Examples.
    """
    row = ", ".join(f'"{column}": {_json_example(column)}' for column in columns)
    python = ", ".join(f'"{column}": {_python_example(column)}' for column in columns)
    examples = "".join(
        f'curl -d \'{{"signature_name": "{call}", "examples": [{{{row}}}]}}\' '
        f"{url}/labels/stable:{call}\n"
        for call in calls
    )
    return f"""\
```sh
curl {url}
curl -d '{{"instances": [{{{row}}}]}}' {url}:predict
{examples}curl {url}/metadata
```

A request has 1 to {MAX_ROWS:,} rows. Never send a request without rows: TF Serving does not
answer it.{_status_section(columns)}

```python
import base64, requests

row = {{{python}}}
answer = requests.post("{url}:predict", json={{"instances": [row]}}, timeout=10).json()
print(answer["predictions"][0])
```"""


def _grpc_request(name: str, columns: Sequence[str]) -> str:
    """Return how to send a request over gRPC from Python."""
    return f"""\
```python
import grpc, tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

channel = grpc.insecure_channel("localhost:{PORTS["grpc"]}")
request = predict_pb2.PredictRequest()
request.model_spec.name = "{name}"
for column, value in {{{_grpc_row(columns)}}}.items():
    request.inputs[column].CopyFrom(tf.make_tensor_proto([value]))
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
answer = stub.Predict(request, timeout=10)
for output, value in answer.outputs.items():
    print(output, tf.make_ndarray(value))
```"""


def _saved_model_cli(version: int, columns: Sequence[str]) -> str:
    """Return how to run the SavedModel without a server."""
    setup, arguments = _saved_model_cli_arguments(columns)
    return f"""\
To run the SavedModel without a server, import tensorflow_text first:

```sh
{setup}python -c 'import sys, tensorflow_text
from tensorflow.python.tools.saved_model_cli import main
sys.exit(main())' run --dir={version} --tag_set=serve --signature_def=serving_default \\
  {arguments}
```"""


def _status_section(columns: Sequence[str]) -> str:
    if "image" not in columns:
        return ""
    return """

`status` is `ok`, or the reason why an image cannot be decoded. The other outputs of a failed row
are 0, false or empty; the other rows are answered."""


def _signature_table(servable: Servable) -> str:
    columns = servable.inputs.columns
    prepared = ", ".join(f"`{k}` {_form(spec)}" for k, spec in fixed(servable.inputs).items())
    inputs = {
        RAW: ", ".join(f"`{c}`" for c in columns) + ": strings [B]",
        "tensors": prepared,
        "serialized": f"`examples`: tf.Examples with the features {', '.join(columns)}",
    }
    rows = [("signature", "inputs", "outputs"), ("---", "---", "---")]
    for signature in names(servable.task, servable.labels, servable.inputs):
        text = inputs.get(signature, "`inputs`: the same tf.Examples")
        outputs = _outputs(servable, signature)
        if "image" in columns and signature in (RAW, "serialized"):
            outputs += ", `status` string [B]"
        rows.append((f"`{signature}`", text, outputs))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _outputs(servable: Servable, signature: str) -> str:
    specs = output_specs(servable, signature).items()
    return ", ".join(f"`{name}` {_form(spec)}" for name, spec in specs)


def _form(spec: tf.TensorSpec) -> str:
    """Return the dtype and the shape of a tensor as text, such as `float32 [B, 3]`."""
    names = ["B", *["T"] * (len(spec.shape) - 1)]  # rows, tokens
    axes = ", ".join(
        name if size is None else str(size) for name, size in zip(names, spec.shape, strict=True)
    )
    return f"{spec.dtype.name} [{axes}]"


def _json_example(column: str) -> str:
    if column == "image":
        return """{"b64": "\'"$(base64 -w0 image.jpg)"\'"}"""
    return '"an example"'


def _python_example(column: str) -> str:
    if column == "image":
        return '{"b64": base64.b64encode(open("image.jpg", "rb").read()).decode()}'
    return '"an example"'


def _grpc_row(columns: Sequence[str]) -> str:
    values = {
        c: 'open("image.jpg", "rb").read()' if c == "image" else '"an example"' for c in columns
    }
    return ", ".join(f'"{column}": {value}' for column, value in values.items())


def _saved_model_cli_arguments(columns: Sequence[str]) -> tuple[str, str]:
    """Return the command to run before saved_model_cli, or "", and its inputs option."""
    setup, arguments = "", []
    if "image" in columns:
        code = 'import numpy; numpy.save("image.npy", [open("image.jpg", "rb").read()])'
        setup = f"python -c '{code}'\n"
        arguments.append("--inputs='image=image.npy'")
    values = ";".join(f'{column}=["an example"]' for column in columns if column != "image")
    if values:
        arguments.append(f"--input_exprs='{values}'")
    return setup, " ".join(arguments)
