"""The commands on wrong inputs: name -> arguments, a part of the error, standard input."""

import shlex
from typing import NamedTuple

from tests.cli.wrong_input import files
from tests.cli.wrong_input.files import DIGITS

RUN = "runs/new"  # the run directory of the commands that would write one


class Case(NamedTuple):
    """A command with one mistake.

    Attributes:
        line: its arguments, as in a shell.
        expected: part of the line that refuses it.
        stdin: its standard input.
    """

    line: str
    expected: str
    stdin: str = ""

    @property
    def arguments(self):
        return shlex.split(self.line)


COMMANDS = {
    "unknown command": ("trian", "unknown command 'trian'; did you mean 'train'?"),
    "init without data": ("init", "--data: required and not given"),
    "init: empty data": ("init --data= --output=new.yaml", "--data: must not be empty"),
    "init: second text alone": (
        "init --data=train.csv --text_pair=text --output=new.yaml",
        "--text_pair: needs --text",
    ),
    "init: text and image": (
        "init --data=train.csv --text=text --image=text --output=new.yaml",
        "--text: cannot be given with --image",
    ),
    "init: several TFDS sets": (
        "init --data=sets --output=new.yaml",
        "sets holds 2 sets of TFDS; give one: 'sets/colours, sets/shapes'",
    ),
    "init: no such table": (
        "init --data=trian.csv --output=new.yaml",
        "no such file: trian.csv; did you mean 'train.csv'?",
    ),
    "init: table is a FIFO": ("init --data=fifo.yaml --output=new.yaml", "fifo.yaml is a FIFO"),
    "init: format": ("init --data=x.h5 --output=new.yaml", "cannot tell the format of x.h5"),
    "init: table without labels": (
        "init --data=tables/plain.txt",
        "no label column can be identified: the rows have a single column",
    ),
    "init: table of one class": (
        "init --data=tables/one-class.csv",
        "no label column can be identified among 'text', 'label'",
    ),
    "init: table with a header alone": ("init --data=tables/header.csv", "holds no row"),
    "init: unknown column": (
        "init --data=train.csv --label=lable --output=new.yaml",
        "no column 'lable' in the header; did you mean 'label'?",
    ),
    "init: output that exists": (
        "init --data=train.csv --output=good.yaml",
        "good.yaml exists and is not overwritten",
    ),
    "init: output below no folder": (
        "init --data=train.csv --output=none/new.yaml",
        "none/new.yaml: No such file or directory",
    ),
    "init: backbone of no provider": (
        "init --data=train.csv --backbone=tiny --output=new.yaml",
        "--backbone: backbone: must be PROVIDER:NAME",
    ),
    "init: array that is none": ("init --data=tables/text.npz", "not an npz file of plain arrays"),
    "init: JSON cut": ("init --data=tables/cut.jsonl", "cut.jsonl:1: not valid JSON"),
    "init: TFDS set cut": ("init --data=tfds/features-cut", "TFDS cannot give colours"),
    "train without config": ("train", "--config: required and not given"),
    "train with an unknown flag": ("train --confg=x", "Unknown command line flag 'confg'"),
    "train with an argument": ("train good.yaml", "unexpected argument 'good.yaml'"),
    "train: no such config": ("train --config=god.yaml", "did you mean 'good.yaml'?"),
    "train: config is a FIFO": ("train --config=fifo.yaml", "fifo.yaml: no such config file"),
    "train: config is a folder": ("train --config=tiny", "tiny: no such config file"),
    "train: workdir is a file": ("train --config=good.yaml --workdir=train.csv", "is a file"),
    "train: workdir below a file": (
        "train --config=good.yaml --workdir=train.csv/run",
        "train.csv/run: cannot be written: Not a directory",
    ),
    "train: workdir of something else": (
        "train --config=good.yaml --workdir=images",
        "images: is not empty and holds no run",
    ),
    "train: workdir of another run": (
        "train --config=good.yaml --workdir=finished",
        "finished: holds a run with another config (method.name: 'head' there, 'full' here",
    ),
    "train: workdir in use": (
        "train --config=good.yaml --workdir=locked",
        "locked: another process trains there",
    ),
    "train: worker that is none": (
        f"train --config=good.yaml --workdir={RUN} --workers=a:1,b:1 --worker=2",
        "--worker: must be below 2",
    ),
    "train: worker without a port": (
        f"train --config=good.yaml --workdir={RUN} --workers=a,b:1",
        "--workers: must be HOST:PORT",
    ),
    "train: cache that is a file": (
        f"train --config=good.yaml --workdir={RUN} --set=data.cache_dir=train.csv",
        "train.csv/tokens: Not a directory",
    ),
    "train: teacher that is none": (
        f"train --config=good.yaml --workdir={RUN} "
        "--set=regularization.distillation.teacher=images",
        "regularization.distillation.teacher: images: holds no run",
    ),
    "profile: no such table": (
        "profile --config=good.yaml --set=data.train=trian.csv",
        "no such file: trian.csv; did you mean 'train.csv'?",
    ),
    "profile: table is a FIFO": (
        "profile --config=good.yaml --set=data.train='{source: csv, path: fifo.yaml}'",
        "fifo.yaml is a FIFO or a device",
    ),
    "profile: table is a device": (
        "profile --config=good.yaml --set=data.train='{source: csv, path: /dev/zero}'",
        "/dev/zero is a FIFO or a device",
    ),
    "profile: table is a folder": (
        "profile --config=good.yaml --set=data.train='{source: csv, path: tables}'",
        "tables is a folder; write tables/*",
    ),
    "profile: glob of nothing": (
        "profile --config=good.yaml --set=data.train='{source: csv, path: none*.csv}'",
        "none*.csv matches no file",
    ),
    "profile: unknown encoding": (
        "profile --config=good.yaml "
        "--set=data.train='{source: csv, path: train.csv, encoding: utf9}'",
        "unknown encoding 'utf9'",
    ),
    "profile: column number": (
        "profile --config=good.yaml --set=data.text=0 --set=data.label=9",
        "train.csv:1: no column 9: the row has 2 (0 to 1)",
    ),
    "profile: label of the test split": (
        "profile --config=good.yaml --set=data.test=tables/label.csv",
        "label.csv:2: label 'redd' is not a class; did you mean 'red'?",
    ),
    "profile: no such labels": (
        "profile --config=good.yaml --set=data.labels=none.txt",
        "data.labels: no such file: none.txt",
    ),
    "profile: one label": (
        "profile --config=good.yaml --set=data.labels=one.txt",
        "at least two names",
    ),
    "profile: labels without one of the table": (
        "profile --config=good.yaml --set=data.labels='[red, green]'",
        "label 'blue' is not a class",
    ),
    "profile: augmented texts": (
        "profile --config=good.yaml --augmented=x.html",
        "needs a task on images",
    ),
    "profile: output below no folder": (
        "profile --config=good.yaml --output=none/profile.json",
        "none/profile.json: No such file or directory",
    ),
    "profile: no such folder of images": (
        "profile --config=images.yaml --set=data.train=imgaes/",
        "no such folder: imgaes/; did you mean 'images'?",
    ),
    "profile: folder without classes": (
        "profile --config=images.yaml --set=data.train=tables/",
        "tables/ holds no folder; each class needs a folder",
    ),
    "profile: folders without images": (
        "profile --config=images.yaml --set=data.train=finished/",
        "data.train: finished/ holds no usable image",
    ),
    "profile: TFDS set of a namespace": (
        "profile --config=good.yaml --set=data.train=tfds:kaggle:some/set",
        "data.train",
    ),
    "profile: TFDS set that is none": (
        "profile --config=good.yaml "
        "--set=data.train='{source: tfds, path: colors, data_dir: tfds}'",
        "data.train",
    ),
    "show: weights for keras.applications that are none": (
        "show --config=images.yaml --set=model='{backbone: keras:MobileNet, weights: x.h5}'",
        "x.h5",
    ),
    "tune without a space": (
        f"tune --config=good.yaml --workdir={RUN}",
        "holds no search space",
    ),
    "tune: parallel": ("tune --config=good.yaml --parallel=0", "parallel"),
    "tune: space upside down": (
        f"tune --config=good.yaml --workdir={RUN} "
        "--set=train.epochs='{search: int, min: 3, max: 1}'",
        "min must be below max",
    ),
    "tune: unknown kind of space": (
        f"tune --config=good.yaml --workdir={RUN} "
        "--set=train.epochs='{search: integer, min: 1, max: 3}'",
        "train.epochs: search: must be one of",
    ),
    "tune: choice of nothing": (
        f"tune --config=good.yaml --workdir={RUN} "
        "--set=train.epochs='{search: choice, values: []}'",
        "train.epochs: values: ",
    ),
    "tune: figure of no task": (
        f"tune --config=search.yaml --workdir={RUN} --set=tune.objective=acuracy",
        "did you mean 'accuracy'?",
    ),
    "tune: workdir of something else": ("tune --config=search.yaml --workdir=images", "images"),
    "tune: workdir of another search": (
        "tune --config=search.yaml --workdir=runs/whole --set=train.batch_size=8",
        "runs/whole: holds a search of another config",
    ),
    "tune: search cut": (
        "tune --config=search.yaml --workdir=runs/search-cut",
        "runs/search-cut/search.yaml:1:13: not valid YAML",
    ),
    "tune: journal cut": (
        "tune --config=search.yaml --workdir=runs/journal-cut",
        "runs/journal-cut/journal.jsonl:1: not an event",
    ),
    "evaluate without workdir": ("evaluate", "--workdir: required and not given"),
    "evaluate: no such run": ("evaluate --workdir=none", "none: holds no run"),
    "evaluate: split": ("evaluate --workdir=finished --split=tset", "did you mean 'test'"),
    "evaluate: data": (
        "evaluate --workdir=finished --data=data.bin",
        "cannot tell the format of data.bin from its name",
    ),
    "evaluate: row of the data": (
        "evaluate --workdir=finished --data=tables/ragged.csv",
        "ragged.csv:2: 1 columns where 2 are expected",
    ),
    "evaluate: backbone that is gone": (
        "evaluate --workdir=finished --backbone=hf:./nowhere",
        "finished holds only the trained weights",
    ),
    "evaluate: backbone of no provider": (
        "evaluate --workdir=finished --backbone=nowhere",
        "finished: backbone: must be PROVIDER:NAME",
    ),
    "predict without a model": ("predict", "one of --workdir and --export is required"),
    "predict: two models": ("predict --workdir=a --export=b", "required, not both"),
    "predict: no such input": (
        "predict --workdir=finished --input=none.txt",
        "--input: no such file: none.txt",
    ),
    "predict: input is a FIFO": ("predict --workdir=finished --input=fifo.yaml", "no such file"),
    "predict: batch of none": ("predict --workdir=finished --batch_size=0", "batch_size"),
    "predict: batch of text": ("predict --workdir=finished --batch_size=x", "batch_size"),
    "predict: cut object": (
        "predict --workdir=finished",
        "standard input:1: not valid JSON",
        '{"text": "a"',
    ),
    "predict: object of another key": (
        "predict --workdir=finished --input_format=jsonl",
        "standard input:1: must be an object with strings at 'text'",
        '{"txt": "a"}\n',
    ),
    "predict: text of digits": (
        "predict --workdir=finished --input_format=jsonl",
        "standard input:1: not valid JSON (Exceeds the limit",
        f'{{"text": {DIGITS}}}\n',
    ),
    "predict: half of a character": (
        "predict --workdir=finished",
        "standard input:1: holds a lone surrogate",
        '{"text": "\\ud800"}\n',
    ),
    "predict: input not in UTF-8": (
        "predict --workdir=finished --input=tables/latin-1.csv",
        "latin-1.csv: not UTF-8 text",
    ),
    "export without workdir": ("export", "--workdir: required and not given"),
    "export: format": ("export --workdir=finished --format=onyx", "should be one of"),
    "export: weights of another format": (
        "export --workdir=finished --format=onnx --weight_dtype=int8",
        "--weight_dtype: needs --format=saved_model",
    ),
    "export: no such run": ("export --workdir=images", "images: holds no run"),
    "serve without a model": ("serve", "one of --workdir and --model_base_path is required"),
    "serve: port": ("serve --workdir=finished --port=70000", "port"),
    "serve: timeout": ("serve --workdir=finished --timeout=0", "timeout"),
    "serve: no such folder": ("serve --model_base_path=none", "none: must contain a version"),
    "serve: folder without versions": (
        "serve --model_base_path=images",
        "must contain a version",
    ),
    "serve: graph cut": ("serve --model_base_path=exports/graph-cut", "graph-cut"),
    "serve: models.config": ("serve --model_base_path=configured", "configured/models.config"),
    "show without config": ("show", "--config: required and not given"),
    "lr-find without config": ("lr-find", "--config: required and not given"),
    "lr-find: steps": ("lr-find --config=good.yaml --steps=3", "steps"),
    "lr-find: low above high": (
        "lr-find --config=good.yaml --low=1 --high=0.1",
        "--low, --high: must be 0 < low < high. Received: 1, 0.1",
    ),
    "lr-find: low that is no number": ("lr-find --config=good.yaml --low=x", "low"),
    "lr-find: rate of nan": ("lr-find --config=good.yaml --high=nan", "--low, --high: must be"),
    "launch without a command": ("launch", "launch: name the command"),
    "launch of another command": ("launch show --config=good.yaml", "launch: "),
    "launch: workers": ("launch --workers=0 train", "workers"),
    "launch: restarts": ("launch --restarts=x train", "restarts"),
    "doctor with an unknown flag": ("doctor --quick", "Unknown command line flag 'quick'"),
    "schema with an argument": ("schema good.yaml", "unexpected argument 'good.yaml'"),
}


def of_files():
    """Yield name and case of every wrong file, checkpoint, folder and value."""
    show, data = "show --config=good.yaml --set=", "profile --config=good.yaml --set="
    images = "profile --config=images.yaml --set=data.train="
    templates = [
        ("config", "show --config=yaml/{}.yaml", files.CONFIGS),
        ("table", data + "data.test=null --set=data.train=tables/{}", files.TABLES),
        ("array", images + "tables/{}", files.ARRAYS),
        ("image", images + "broken/{}/", files.IMAGES),
        ("checkpoint", show + "model.backbone=hf:checkpoints/{}", files.CHECKPOINTS),
        ("tokenizer", data + "model.backbone=hf:checkpoints/{}", files.TOKENIZERS),
        (
            "tfds",
            data + "data.train='{{source: tfds, path: colours, data_dir: tfds/{}}}'",
            files.TFDS,
        ),
        ("export", "predict --export=exports/{}", files.EXPORTS),
        ("run", "predict --workdir=finished-but/{}", files.RUNS | files.DESCRIPTIONS),
    ]
    for kind, template, wrong in templates:
        for name, (_, expected) in wrong.items():
            yield f"{kind}: {name}", Case(template.format(name), expected, "a text\n")
    for name, (override, expected) in files.VALUES.items():
        line = f"train --config=good.yaml --workdir={RUN} --set={shlex.quote(override)}"
        yield f"value: {name}", Case(line, expected)
    for name, expected in files.OTHER_BACKBONES.items():
        yield f"backbone: {name}", Case(f"{show}model.backbone={name}", expected)


CASES = {name: Case(*command) for name, command in COMMANDS.items()} | dict(of_files())
