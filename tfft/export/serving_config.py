"""The files beside the versions of an export, for TF Serving: which versions, in what batches, in
which container, and how to ask.

    models.config           the versions that are loaded, and their labels
    batching_params.pbtxt   how requests are joined and split: the same for every export
    docker-compose.yaml     TF Serving on this machine
    kubernetes.yaml         TF Serving on a cluster
    README.md               the calls, for these signatures; how to promote and to roll back

TF Serving reads the batching parameters once, at the start (bundle_factory_util.cc): hence they do
not depend on an export.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from tfft.export import exported_model
from tfft.export.models_config import MARK, STABLE, Config, may_write
from tfft.export.signatures import METHODS, Servable, fixed
from tfft.spec import Task
from tfft.utils import console, markdown
from tfft.utils.files import write_atomic

SIZES = (1, 2, 4, 8, 16, 32)  # rows that are computed at once
MAX_ROWS = 4096  # of a request, which is split into batches of the largest size
WAITING = 4  # requests of so many rows that may wait for each signature
GAIN = 1.1  # a batch of twice the size is worth its memory if it answers this much more a second
PORTS = {"grpc": 8500, "rest": 8501}
CONFIG = "models.config"
BATCHING = "batching_params.pbtxt"


def write(folder: Path, name: str, servable: Servable) -> None:
    """Write the files beside the versions, but for those that are another's.

    Args:
        folder: of the numbered versions.
        name: of the model.
    """
    path, published = folder / CONFIG, list(exported_model.versions(folder))
    before = Config.read(path)
    after = before and before.after_export(published)
    files = {
        BATCHING: batching(),
        "docker-compose.yaml": compose(name),
        "kubernetes.yaml": kubernetes(name),
        "README.md": readme(name, servable, published[-1], after),
    }
    if before is None or after is None:
        console.log(
            f"export: {path} has another first line, or more than an export writes, and stays as "
            f"it is: have it load version {published[-1]}"
        )
    else:
        for label, number in before.labels.items():
            if after.labels[label] != number:
                console.log(
                    f"export: version {number} of the label {label} is gone; it is now version "
                    f"{after.labels[label]}. A server that has not loaded that one must be "
                    "restarted, or the label moved by hand"
                )
        files[CONFIG] = after.text(name)
    _put(folder, files)


def _put(folder: Path, files: Mapping[str, str]) -> None:
    for file, text in files.items():
        path = folder / file
        if not may_write(path):
            console.log(f"export: {path} is not tfft's and stays as it is")
            continue
        mark = f"<!-- {MARK} -->" if file.endswith(".md") else f"# {MARK}"
        write_atomic(path, f"{mark}\n{text}")


def model_name(text: str) -> str:
    """A name that TF Serving's URLs and Kubernetes take: small letters, digits, dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain[:50].strip("-") or "model"


def warm_up_sizes(rates: Mapping[int, float]) -> list[int]:
    """Return the batch sizes up to that from which twice as many rows a batch gain nothing more.

    Args:
        rates: batch size -> rows a second.
    """
    sizes = [size for size in SIZES if size in rates]
    last = 0
    for at in range(1, len(sizes)):
        if rates[sizes[at]] >= GAIN * rates[sizes[last]]:
            last = at
    return sizes[: last + 1] or [1]


def batching() -> str:
    """TF Serving's batching parameters, the same for every export."""
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in (*SIZES, MAX_ROWS))
    return f"""\
# TF Serving reads this file when it starts, and not again. A batch waits this many microseconds for
# more requests, and is computed in one of the allowed sizes; requests with more rows than
# max_execution_batch_size are split. The last allowed size must be max_batch_size. Lower
# max_execution_batch_size, and leave out the sizes between it and the last, where a batch takes too
# long or too much memory.
max_batch_size {{ value: {MAX_ROWS} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {SIZES[-1]} }}
batch_timeout_micros {{ value: 1000 }}
max_enqueued_batches {{ value: {WAITING * MAX_ROWS // SIZES[-1]} }}
{allowed}
"""


def _flags(name: str) -> list[str]:
    return [
        f"--model_config_file=/models/{name}/{CONFIG}",
        "--model_config_file_poll_wait_seconds=30",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file=/models/{name}/{BATCHING}",
    ]


def _image() -> str:
    """TF Serving's first release of TensorFlow's version: not every patch of TensorFlow has one."""
    major, minor, *_ = tf.__version__.split(".")
    return f"tensorflow/serving:{major}.{minor}.0"


def compose(name: str) -> str:
    """One container over this folder."""
    flags = "\n".join(f"      - {flag}" for flag in _flags(name))
    return f"""\
# docker compose up: TF Serving over this folder. Its TensorFlow must not be older than the model's.
services:
  {name}:
    image: {_image()}
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
    """A deployment over a volume that holds this folder, and a service."""
    flags = "\n".join(f"            - {flag}" for flag in _flags(name))
    return f"""\
# kubectl apply -f kubernetes.yaml, once the claim {name} holds the content of this folder.
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
          image: {_image()}
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
    """How to serve it, how to ask, and how to promote a version and to roll back.

    Args:
        name: of the model.
        version: the newest one.
        config: what models.config says; None where that is not an export's.
    """
    columns = servable.inputs.columns
    url = f"http://localhost:{PORTS['rest']}/v1/models/{name}"
    row = ", ".join(f'"{column}": {_json_of(column)}' for column in columns)
    python = ", ".join(f'"{column}": {_python_of(column)}' for column in columns)
    before, options = _cli(columns)
    classes = markdown.text(", ".join(servable.labels))
    return f"""\
# {name}

{servable.task.name}: {_answered(servable.task)} Classes: {classes}.

## Serve

```sh
docker compose up                                      # TF Serving, as docker-compose.yaml says
tfft serve --model_base_path=. --model_name={name}     # to try it out, without a container
```

TF Serving must not be older than {_image().rpartition(":")[2]}. Copy the folder of a version to a
server before models.config, which names it. {BATCHING} is read when a server starts. An export
writes the files beside the versions again, except one whose first line, "{MARK}", was
removed, and a models.config that holds more than versions and labels.

## Promote and roll back

{_promotion(name, url, version, config)}

## Ask

```sh
curl {url}
curl -d '{{"instances": [{{{row}}}]}}' {url}:predict
curl -d '{{"signature_name": "classify", "examples": [{{{row}}}]}}' {url}/labels/stable:classify
curl {url}/metadata
```

A request has 1 to {MAX_ROWS:,} rows. Never send one without rows: TF Serving does not answer
it.{_status(columns)}

```python
import base64, requests

row = {{{python}}}
answer = requests.post("{url}:predict", json={{"instances": [row]}}, timeout=10).json()
print(answer["predictions"][0])
```

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
print(tf.make_ndarray(answer.outputs["probabilities"]))
```

Without a server, `import tensorflow_text` first:

```sh
{before}python -c 'import sys, tensorflow_text
from tensorflow.python.tools.saved_model_cli import main
sys.exit(main())' run --dir={version} --tag_set=serve --signature_def=serving_default \\
  {options}
```

## Signatures

{_table(servable)}
"""


def _promotion(name: str, url: str, version: int, config: Config | None) -> str:
    if config is None:
        return f"""\
{CONFIG} is not as an export writes it, and exports leave it as it is. Add version {version} to it
where it names versions, and wait on every server until its state is AVAILABLE:

```sh
curl {url}/versions/{version}
```

Then move a label to it: TF Serving moves labels to loaded versions only. To roll back, move the
label to the version that it had, which must still be loaded."""
    stable, former = config.labels[STABLE], config.former
    before = "" if former in (None, stable) else f" (before: {former}, which is loaded too)"
    back = stable if stable != version else former or version
    return f"""\
Clients that ask for `{name}/labels/{STABLE}` get version {stable}{before}, those that ask for
`{name}` the newest. An export moves no label: version {version} is loaded beside those that were.
TF Serving moves a label to a loaded version only, so look first, on every server:

```sh
curl {url}/versions/{version}     # until its state is AVAILABLE
```

Then promote it by its number in models.config, which a server reads again every 30 seconds:

```sh
sed -i 's/"{STABLE}" value: [0-9]*/"{STABLE}" value: {version}/' models.config
```

The version that was `{STABLE}` before is still loaded; roll back by its number:

```sh
sed -i 's/"{STABLE}" value: [0-9]*/"{STABLE}" value: {back}/' models.config
```

If a label was moved too early, TF Serving logs that the version "is not currently available for
inference", loads nothing, and serves what it served. Put the old number back, wait until the
version is loaded, and move the label again.

A label for some of the clients is one more line in models.config,
`version_labels {{ key: "canary" value: {version} }}`; exports leave it where it is, and its version
loaded."""


def _status(columns: Sequence[str]) -> str:
    if "image" not in columns:
        return ""
    return """

An image that cannot be decoded fails no other row: its `status` is the reason, and `ok` elsewhere.
Its probabilities are 0 and its label is empty; so are the scores and classes of `classify`."""


def _table(servable: Servable) -> str:
    columns, classes = servable.inputs.columns, len(servable.labels)
    outputs = _outputs(servable.task)
    decoded = f"{outputs}, `status` string [B]" if "image" in columns else outputs
    examples = f"`examples`: tf.Examples with the features {', '.join(columns)}"
    rows = [
        ("signature", "takes", "answers"),
        ("---", "---", "---"),
        ("`serving_default`", ", ".join(f"`{c}`" for c in columns) + ": strings [B]", decoded),
        ("`tensors`", _prepared(servable), outputs),
        ("`serialized`", examples, decoded),
        *(
            (f"`{m}`", "`inputs`: such tf.Examples", f"`classes`, `scores` [B, {classes}]")
            for m in METHODS
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _answered(task: Task) -> str:
    if task.multi_label:
        return "the probability of each class; those from its threshold on are chosen."
    return "the probability of each class, and the most probable one."


def _outputs(task: Task) -> str:
    chosen = ", `chosen` [B, C]" if task.multi_label else ""
    return f"`probabilities` float32 [B, C]{chosen}, `label` string [B]"


def _prepared(servable: Servable) -> str:
    specs = fixed(servable.inputs).items()
    shape = {
        name: ", ".join("B" if size is None else str(size) for size in spec.shape)
        for name, spec in specs
    }
    return ", ".join(f"`{name}` {spec.dtype.name} [{shape[name]}]" for name, spec in specs)


def _json_of(column: str) -> str:
    if column == "image":
        return """{"b64": "\'"$(base64 -w0 picture.jpg)"\'"}"""
    return '"an example"'


def _python_of(column: str) -> str:
    if column == "image":
        return '{"b64": base64.b64encode(open("picture.jpg", "rb").read()).decode()}'
    return '"an example"'


def _grpc_row(columns: Sequence[str]) -> str:
    values = {
        c: 'open("picture.jpg", "rb").read()' if c == "image" else '"an example"' for c in columns
    }
    return ", ".join(f'"{column}": {value}' for column, value in values.items())


def _cli(columns: Sequence[str]) -> tuple[str, str]:
    """What must be run before saved_model_cli, and its inputs: literals, or files of numpy's."""
    if "image" in columns:
        code = 'import numpy; numpy.save("picture.npy", [open("picture.jpg", "rb").read()])'
        return f"python -c '{code}'\n", "--inputs='image=picture.npy'"
    values = ";".join(f'{column}=["an example"]' for column in columns)
    return "", f"--input_exprs='{values}'"
