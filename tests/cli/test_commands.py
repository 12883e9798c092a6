"""User errors: each gets one line and exit code 2, without a traceback or a lost file.

All run in one process, through the same entry point as the console script.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.console import run_command
from tfft.cli import __main__ as console


@pytest.fixture
def setting(config, tiny_two_blocks, tmp_path):
    """A config file, its content and the path of a run directory."""
    config["model"]["backbone"] = f"hf:{tiny_two_blocks}"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, config, tmp_path / "run"


def edit_config(setting, change):
    path, config, _ = setting
    change(config)
    path.write_text(yaml.safe_dump(config))


def edit_checkpoint(setting, change):
    """Point the config to a changed copy of its checkpoint."""
    path, config, _ = setting
    folder = path.parent / "checkpoint"
    shutil.copytree(config["model"]["backbone"].removeprefix("hf:"), folder)
    change(folder)
    edit_config(setting, lambda c: c["model"].update(backbone=f"hf:{folder}"))


def write_train_table(setting, text, encoding="utf-8"):
    (setting[0].parent / "train.csv").write_text(text, encoding=encoding)


def edit_settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_workdir(setting, name, text=""):
    setting[2].mkdir()
    (setting[2] / name).write_text(text)


ERRORS = {
    # config
    "no such config": (
        lambda s: s[0].rename(s[0].with_name("confog.yaml")),
        "config.yaml: no such config file; did you mean 'confog.yaml'?",
    ),
    "unknown section": (
        lambda s: edit_config(s, lambda c: c.update(trian={})),
        "config.yaml: trian: unknown key; did you mean 'train'?",
    ),
    "unknown key": (
        lambda s: edit_config(s, lambda c: c["train"].update(epoch=3)),
        "config.yaml: train.epoch: unknown key; did you mean 'epochs'?",
    ),
    "wrong value": (
        lambda s: edit_config(s, lambda c: c["train"].update(batch_size=0)),
        "config.yaml: train.batch_size: input should be greater than or equal to 1. Received: 0",
    ),
    "unknown method": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "fulll"})),
        "method.name: unknown method. Received: 'fulll'; did you mean 'full'?",
    ),
    "no YAML": (lambda s: s[0].write_text("data: ["), "not valid YAML"),
    "unknown class weight": (
        lambda s: edit_config(s, lambda c: c.update(task={"class_weights": {"rde": 2}})),
        "task.class_weights: 'rde' is not a class; did you mean 'red'?",
    ),
    "mask that matches nothing": (
        lambda s: edit_config(s, lambda c: c.update(mask=[{"match": "blok_1"}])),
        "mask: must match a stage or a variable. Received: 'blok_1'; did you mean 'block_1'?",
    ),
    "too many stages": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "top", "stages": 9})),
        "method.stages: must be at most 2, the number of blocks",
    ),
    "max_length beyond the positions": (
        lambda s: edit_config(s, lambda c: c["data"].update(max_length=4000)),
        "data.max_length: the backbone has positions for 24 tokens. Received: 4000",
    ),
    "no such device": (
        lambda s: edit_config(
            s, lambda c: c.update(distribute={"strategy": "one_device", "devices": ["GPU:7"]})
        ),
        "distribute.devices: no such device; available: CPU:0",
    ),
    "float16 on a CPU": (
        lambda s: edit_config(s, lambda c: c.update(distribute={"precision": "mixed_float16"})),
        "distribute.precision: mixed_float16 needs a GPU",
    ),
    # methods and what goes with them
    "targets that find nothing": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "lora", "targets": "querry"})),
        "method.targets: must match one of block_0/attention/query, ",
    ),
    "targets that are no expression": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "dora", "targets": "("})),
        "method.targets: must be a regular expression: ",
    ),
    "a rank of none": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "lora", "rank": 0})),
        "method.rank: input should be greater than or equal to 1. Received: 0",
    ),
    "a key of another method": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "ia3", "rank": 4})),
        "method.rank: unknown key; valid: name, targets, feedforward",
    ),
    "a plan that does not begin": (
        lambda s: edit_config(
            s,
            lambda c: c.update(
                method={"name": "gradual", "plan": [{"at": "1 epochs", "stages": ["head"]}]}
            ),
        ),
        "`plan` must begin at 0",
    ),
    "a plan that goes back": (
        lambda s: edit_config(
            s,
            lambda c: c.update(
                method={
                    "name": "gradual",
                    "plan": [
                        {"at": "0 steps", "stages": ["head"]},
                        {"at": "5 steps", "stages": ["block_1"]},
                        {"at": "2 steps", "stages": ["block_0"]},
                    ],
                }
            ),
        ),
        "a phase at step 2 does not come after the one at step 5",
    ),
    "rules that leave some out": (
        lambda s: edit_config(
            s, lambda c: c.update(method={"name": "mask"}, mask=[{"match": "head"}])
        ),
        "mask: no rule covers embeddings/token/embeddings",
    ),
    "a prompt beyond the positions": (
        lambda s: edit_config(s, lambda c: c.update(method={"name": "prompt", "length": 20})),
        "the backbone has positions for 24 tokens, of which method prompt takes 20",
    ),
    "no such block to drop": (
        lambda s: edit_config(s, lambda c: c["model"].update(surgery={"drop": ["block_9"]})),
        "model.surgery.drop: no block 'block_9'; did you mean 'block_",
    ),
    "an option of another optimizer": (
        lambda s: edit_config(
            s, lambda c: c.update(optimizer={"name": "lion", "options": {"momentum": 0.9}})
        ),
        "optimizer.options: lion has no 'momentum'",
    ),
    "averages of two kinds": (
        lambda s: edit_config(s, lambda c: c.update(optimizer={"ema": 0.9, "swa": {}})),
        "only one of `ema` and `swa` can be set",
    ),
    "no teacher": (
        lambda s: edit_config(
            s,
            lambda c: c.update(regularization={"distillation": {"teacher": "runs/none"}}),
        ),
        "runs/none: holds no run",
    ),
    "a soup of nothing": (
        lambda s: edit_config(
            s, lambda c: (c["data"].update(validation=None), c["train"].update(soup=2))
        ),
        "train.soup: needs a validation split",
    ),
    "remat of what an adversary looks into": (
        lambda s: edit_config(
            s,
            lambda c: (
                c.update(regularization={"adversarial": {"name": "fgm"}}),
                c["train"].update(remat=True),
            ),
        ),
        "train.remat: does not go with regularization.adversarial",
    ),
    "a cache that cannot be": (
        lambda s: edit_config(s, lambda c: c["train"].update(cache_features=True)),
        "train.cache_features: the lowest stage is trainable",
    ),
    # file
    "no such table": (
        lambda s: edit_config(s, lambda c: c["data"].update(train=c["data"]["train"] + "x.csv")),
        "data.train.path: no such file",
    ),
    "no such column": (
        lambda s: write_train_table(s, "sentence,label\na,b\n"),
        "train.csv:1: no column 'text' in the header",
    ),
    "empty table": (lambda s: write_train_table(s, ""), "train.csv: empty; needs a header line"),
    "header only": (lambda s: write_train_table(s, "text,label\n"), "data.train: "),
    "wrong encoding": (
        lambda s: write_train_table(s, "text,label\ncafé,b\n", "latin-1"),
        "train.csv:2: byte 0xe9 is not utf-8; declare the file's encoding",
    ),
    # row
    "ragged row": (
        lambda s: write_train_table(s, "text,label\na,b\nc\n"),
        "train.csv:3: 1 columns where 2 are expected",
    ),
    "empty text": (
        lambda s: write_train_table(s, "text,label\n,b\n"),
        "train.csv:2: column 'text' is empty",
    ),
    "one class": (
        lambda s: (
            write_train_table(s, "text,label\n" + "a,b\n" * 9),
            edit_config(s, lambda c: c["data"].pop("test")),
        ),
        "data.label: at least two classes are needed; found ['b']",
    ),
    "unknown test label": (
        lambda s: (s[0].parent / "test.csv").write_text("text,label\na,redd\n"),
        "test.csv:2: label 'redd' is not a class; did you mean 'red'?",
    ),
    # checkpoint
    "no such checkpoint": (
        lambda s: edit_config(s, lambda c: c["model"].update(backbone="hf:./nowhere")),
        "model.backbone: no such folder: ./nowhere",
    ),
    "unknown model type": (
        lambda s: edit_checkpoint(s, lambda f: edit_settings(f, model_type="bertt")),
        "config.json: model_type 'bertt' is not supported; did you mean 'bert'?",
    ),
    "pickled weights": (
        lambda s: edit_checkpoint(s, lambda f: (f / "model.safetensors").rename(f / "w.bin")),
        "w.bin is a pickle, which tfft never reads",
    ),
    "torn weights": (
        lambda s: edit_checkpoint(s, lambda f: (f / "model.safetensors").write_bytes(b"x" * 99)),
        "not a safetensors file",
    ),
    "no tokenizer": (
        lambda s: edit_checkpoint(s, lambda f: (f / "vocab.txt").unlink()),
        "holds no tokenizer; needs one of tokenizer.json",
    ),
    "tokenizer of another model": (
        lambda s: edit_checkpoint(
            s,
            lambda f: (f / "vocab.txt").write_text(
                "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"t{i}" for i in range(999))])
            ),
        ),
        "the files are of two different models",
    ),
    "tokenizer without its unknown token": (
        lambda s: edit_checkpoint(
            s, lambda f: (f / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]\na")
        ),
        "the tokenizer cannot be used: WordPiece error: Missing [UNK] token",
    ),
    "no stored head": (
        lambda s: edit_config(s, lambda c: c["model"].update(head="checkpoint")),
        "holds no classification head; use head: new",
    ),
    "cache that cannot be written": (
        lambda s: edit_config(s, lambda c: c["data"].update(cache_dir=str(s[0]))),
        "config.yaml/tokens: Not a directory",
    ),
    # workdir
    "workdir of another config": (
        lambda s: write_workdir(s, "config.yaml", "data: {}\n"),
        "holds a run with another config",
    ),
    "workdir of something else": (
        lambda s: write_workdir(s, "thesis.tex", "years of work"),
        "is not empty and holds no run; choose another --workdir",
    ),
    "workdir is a file": (lambda s: s[2].write_text("x"), "is a file; --workdir must be a folder"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_train_reports_the_error(name, setting):
    change, expected = ERRORS[name]
    change(setting)
    path, _, workdir = setting
    contents = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    code, _, err = run_command("train", f"--config={path}", f"--workdir={workdir}")
    assert code == 2, err
    errors = [line for line in err.split("\n") if line.startswith("tfft: ")]
    assert len(errors) == 1, err
    assert expected in errors[0]
    assert "Traceback" not in err
    assert all(p.read_bytes() == content for p, content in contents.items())


def test_overrides_are_validated(setting):
    code, _, err = run_command(
        "train", f"--config={setting[0]}", "--set=train.epochs=x", "--set=a.b=1"
    )
    assert code == 2
    assert "train.epochs" in err and "a: unknown key" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "--config: required and not given"),
        (["train", "--confg=x"], "Unknown command line flag 'confg'"),
        (["train", "config.yaml"], "unexpected argument 'config.yaml'"),
        (["data"], "unknown command 'data'; renamed to profile"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["predict"], "one of --workdir and --export is required"),
        (["predict", "--workdir={}", "--input=none.txt"], "--input: no such file: none.txt"),
        (["predict", "--workdir={}"], "holds no run (no config.yaml)"),
        (["predict", "--export={}"], "must contain a SavedModel"),
        (["predict", "--export={}", "--batch_size=0"], "batch_size"),
        (["evaluate", "--workdir={}"], "holds no run"),
        (["evaluate", "--workdir={}", "--split=tset"], "unknown split 'tset'; did you mean 'test'"),
        (["export"], "--workdir: required and not given"),
        (["export", "--weights=int8"], "flag 'weights'. Did you mean: weight_dtype"),
        (["export", "--workdir={}", "--format=onyx"], "should be one of"),
        (["show"], "--config: required"),
        (["lr-find"], "--config: required"),
        (["lr-find", "--steps=3"], "steps"),
        (["profile"], "--config: required"),
    ],
)
def test_other_commands_report_the_error(arguments, expected, tmp_path):
    code, _, err = run_command(*(a.format(tmp_path) for a in arguments))
    assert code == 2, err
    assert expected in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workers=a:1,b:1", "--worker=2"], "--worker: must be below 2"),
        (["--workers=a,b:1"], "--workers: must be HOST:PORT,HOST:PORT,... Received: 'a'"),
        (["--worker=-1"], "worker"),
        (["--set=distribute.strategy=multi_worker"], "multi_worker needs TF_CONFIG with two"),
        (["--set=distribute.strategy=tpu"], "tpu needs a TPU, and TensorFlow sees none"),
        (["--set=train.remat=[blok_1]"], "train.remat: no stage 'blok_1'; did you mean 'block_1'?"),
        (["--set=train.profile=[3, 1]"], "train.profile: must be two steps in order"),
    ],
)
def test_device_and_worker_errors(setting, arguments, expected):
    path, _, workdir = setting
    code, _, err = run_command("train", f"--config={path}", f"--workdir={workdir}", *arguments)
    assert code == 2, err
    assert expected in err and "Traceback" not in err


def test_each_command_has_a_module_and_short_help():
    folder = Path(console.__file__).parent
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "__main__", "common"}
    assert files == {command.replace("-", "_") for command in console.COMMANDS}
    for command in console.COMMANDS:
        code, out, _ = run_command(command, "--help")
        assert code == 0 and len(out.splitlines()) < 24
        example = re.search(r"^Example:\n    tfft (\S+)(.*)$", out, re.MULTILINE)
        assert example is not None and example[1] == command
        arguments = example[2].split(" train ")[0].split()  # launch passes the others on
        for flag in (a.split("=")[0] for a in arguments if a.startswith("--")):
            assert f"\n  {flag}: " in out


def test_help_shows_where_to_begin():
    code, out, _ = run_command("--help")
    assert code == 0 and "tfft init --data=" in out and "tfft train --config=" in out
    assert all(f"\n  {command} " in out for command in console.COMMANDS)


def test_commands_on_a_trained_run(setting, tiny, tmp_path):
    small = {"model": {"backbone": f"hf:{tiny}"}, "method": {"name": "head"}}
    edit_config(setting, lambda c: c.update(small))
    path, _, workdir = setting
    code, _, err = run_command(
        "train",
        f"--config_file={path}",
        f"--model_dir={workdir}",
        "--params_override=export.enabled=true",
    )
    assert code == 0, err
    code, out, _ = run_command(
        "evaluate", f"--workdir={workdir}", f"--output={tmp_path / 'f.json'}"
    )
    assert code == 0 and "accuracy" in out
    assert "test/accuracy" in json.loads((tmp_path / "f.json").read_text())
    code, out, _ = run_command(
        "evaluate", f"--workdir={workdir}", f"--data={tmp_path / 'train.csv'}"
    )
    assert code == 0 and out.splitlines()[0].split() == ["train.csv"]

    rows = "a red sky\n\nthe blue apple\n"
    code, predicted, _ = run_command("predict", f"--workdir={workdir}", stdin=rows)
    assert code == 0
    (tmp_path / "rows.txt").write_text(rows)
    code, exported, _ = run_command(
        "predict", f"--export={workdir / 'export'}", f"--input={tmp_path / 'rows.txt'}"
    )
    assert code == 0
    for expected, actual in zip(predicted.splitlines(), exported.splitlines(), strict=True):
        expected, actual = json.loads(expected), json.loads(actual)
        assert (expected["text"], expected["label"]) == (actual["text"], actual["label"])
        assert expected["probabilities"] == pytest.approx(actual["probabilities"], abs=1e-5)
    code, out, _ = run_command("predict", f"--workdir={workdir}", stdin='{"text": "a red sky"}\n')
    assert code == 0 and json.loads(out)["label"] == json.loads(predicted.splitlines()[0])["label"]
    code, out, err = run_command(
        "predict", f"--workdir={workdir}", stdin='{"text": "a"}\n{"txt": 1}\n'
    )
    assert code == 2 and "standard input:2: must be an object with strings at 'text'" in err

    code, out, _ = run_command("export", f"--workdir={workdir}")
    assert code == 0 and out.strip() == str(workdir / "export" / "2")
    code, out, err = run_command("export", f"--workdir={workdir}", "--format=huggingface")
    assert code == 0 and out.strip() == str(workdir / "huggingface"), err
    code, out, _ = run_command("show", f"--config={path}")
    assert code == 0 and "parameters are trainable" in out and "MiB a device, with" in out
    page = tmp_path / "rates.html"
    code, out, err = run_command("lr-find", f"--config={path}", "--steps=20", f"--output={page}")
    assert code == 0 and "try --set=optimizer.learning_rate=" in out and page.is_file(), err
    code, out, _ = run_command("profile", f"--config={path}", f"--output={tmp_path / 'p.json'}")
    assert code == 0 and "leaks between splits" in out
    assert set(json.loads((tmp_path / "p.json").read_text())) >= {"targets", "lengths", "leaks"}
    code, out, err = run_command("doctor")
    assert "oneDNN               o" in out
    assert "device               CPU:0" in out and (code, err.count("Traceback")) in (
        (0, 0),
        (2, 0),
    )
    code, out, _ = run_command("schema")
    assert code == 0 and "properties" in json.loads(out)
