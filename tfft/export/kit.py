"""What stands beside the versions of an export, for TF Serving: which versions, in what batches, in
which container, and how to ask.

    models.config           versions and their labels: `stable`, and `canary` for a newer one
    batching_params.pbtxt   batch sizes, as far as a larger one still answered more rows a second
    docker-compose.yaml     TF Serving on this machine
    kubernetes.yaml         TF Serving on a cluster
    README.md               the calls, for these signatures
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from tfft import log
from tfft.export.signatures import METHODS, Servable
from tfft.files import write_atomic
from tfft.spec import Task

GAIN = 1.1  # so much more a second must twice the batch answer
PORTS = {"grpc": 8500, "rest": 8501}
CONFIG = "models.config"
MARK = "written by tfft export"  # in the first line: what lacks it is another's and is left alone


def write(folder: Path, name: str, servable: Servable, rates: Mapping[int, float]) -> None:
    """Write everything anew; the label `stable` stays where it is.

    Args:
        folder: of the numbered versions.
        name: of the model.
        rates: batch size -> rows a second, as measured when the newest version was verified.
    """
    versions = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    files = {
        CONFIG: models_config(name, versions, _stable(folder / CONFIG)),
        "batching_params.pbtxt": batching(rates),
        "docker-compose.yaml": compose(name),
        "kubernetes.yaml": kubernetes(name),
        "README.md": readme(name, servable, versions[-1]),
    }
    _put(folder, files)


def _put(folder: Path, files: Mapping[str, str]) -> None:
    for file, text in files.items():
        path = folder / file
        if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            log.say(f"export: {path} is not tfft's and stays as it is")
            continue
        mark = f"<!-- {MARK} -->" if file.endswith(".md") else f"# {MARK}"
        write_atomic(path, f"{mark}\n{text}")


def model_name(text: str) -> str:
    """A name that TF Serving's URLs and Kubernetes take: small letters, digits, dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain[:50].strip("-") or "model"


def batch_sizes(rates: Mapping[int, float]) -> list[int]:
    """The sizes up to that from which twice as many rows a batch gain nothing more."""
    sizes = sorted(rates)
    last = 0
    for at in range(1, len(sizes)):
        if rates[sizes[at]] >= GAIN * rates[sizes[last]]:
            last = at
    return sizes[: last + 1] or [1]


def models_config(name: str, versions: Sequence[int], stable: int | None) -> str:
    """Serve what is `stable`, and what is newest as `canary`."""
    newest = versions[-1]
    stable = stable if stable in versions else newest
    labels = {"stable": stable} | ({"canary": newest} if newest != stable else {})
    served = "\n".join(f"        versions: {v}" for v in sorted(set(labels.values())))
    told = "\n".join(
        f'    version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items()
    )
    return f"""\
# Clients ask for {name}/labels/stable, or for {name}: the newest. `tfft export` leaves stable where
# it is; write the newer number there when the canary is good. TF Serving reads this file again.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{
      specific {{
{served}
      }}
    }}
{told}
  }}
}}
"""


def batching(rates: Mapping[int, float]) -> str:
    """TF Serving's batching parameters."""
    sizes = batch_sizes(rates)
    told = ", ".join(f"{size}: {rate:,.0f}" for size, rate in sorted(rates.items()))
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in sizes)
    return f"""\
# Rows a second by batch size, where this was exported: {told}.
# A batch waits at most so many microseconds for more requests.
max_batch_size {{ value: {sizes[-1]} }}
batch_timeout_micros {{ value: 1000 }}
max_enqueued_batches {{ value: 100 }}
{allowed}
"""


def _flags(name: str) -> list[str]:
    return [
        f"--model_config_file=/models/{name}/{CONFIG}",
        "--model_config_file_poll_wait_seconds=30",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file=/models/{name}/batching_params.pbtxt",
    ]


def _image() -> str:
    return f"tensorflow/serving:{tf.__version__}"


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


def readme(name: str, servable: Servable, version: int) -> str:
    """How to serve it and how to ask."""
    columns = servable.inputs.columns
    url = f"http://localhost:{PORTS['rest']}/v1/models/{name}"
    row = ", ".join(f'"{column}": {_json_of(column)}' for column in columns)
    python = ", ".join(f'"{column}": {_python_of(column)}' for column in columns)
    before, given = _cli(columns)
    return f"""\
# {name}

{servable.task.name}: {_answered(servable.task)} Classes: {", ".join(servable.labels)}.

## Serve

```sh
docker compose up                                      # TF Serving, as docker-compose.yaml says
tfft serve --model_base_path=. --model_name={name}     # to try it out, without a container
```

## Ask

```sh
curl {url}
curl -d '{{"instances": [{{{row}}}]}}' {url}:predict
curl -d '{{"signature_name": "classify", "examples": [{{{row}}}]}}' {url}/labels/stable:classify
curl {url}/metadata
```

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
  {given}
```

## Signatures

{_table(servable)}
"""


def _table(servable: Servable) -> str:
    columns, classes = servable.inputs.columns, len(servable.labels)
    rows = [
        ("signature", "takes", "answers"),
        ("---", "---", "---"),
        (
            "`serving_default`",
            ", ".join(f"`{column}`" for column in columns) + ": strings [B]",
            _outputs(servable.task),
        ),
        ("`tensors`", _prepared(servable), "the same"),
        (
            "`serialized`",
            f"`examples`: tf.Examples with the features {', '.join(columns)}",
            "the same",
        ),
        *(
            (f"`{m}`", "`inputs`: such tf.Examples", f"`classes`, `scores` [B, {classes}]")
            for m in METHODS
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _answered(task: Task) -> str:
    if task.several:
        return "the probability of each class; those from its threshold on are chosen."
    return "the probability of each class, and the most probable one."


def _outputs(task: Task) -> str:
    chosen = ", `chosen` [B, C]" if task.several else ""
    return f"`probabilities` float32 [B, C]{chosen}, `label` string [B]"


def _prepared(servable: Servable) -> str:
    specs = servable.inputs.served().items()
    shape = {
        name: ", ".join("?" if size is None else str(size) for size in spec.shape)
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
    given = ";".join(f'{column}=["an example"]' for column in columns)
    return "", f"--input_exprs='{given}'"


def _stable(path: Path) -> int | None:
    """The version that the label has now."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'key:\s*"stable"\s*value:\s*(\d+)', text)
    return int(found[1]) if found else None
