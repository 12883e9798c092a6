"""Tests of `method: auto`: its rules, and that its run equals the run of the plain config."""

import dataclasses

import pytest

import tfft
from tfft.config import parse
from tfft.methods.auto import Facts, advise
from tfft.utils.errors import UserError

RAW = {"data": {"train": "a.csv"}, "model": {"backbone": "hf:x"}, "method": {"name": "auto"}}
FACTS = Facts(5000, 6, 12.0, 22_000_000, 6, "CPU", 16 * 2**30, 0.002)


def advise_with(raw=None, **facts):
    return advise(parse({**RAW, **(raw or {})}), dataclasses.replace(FACTS, **facts))


@pytest.mark.parametrize(
    ("facts", "method", "epochs", "batch"),
    [
        ({"num_rows": 100}, "full", 30, 16),
        ({"num_rows": 900}, "full", 6, 16),
        ({}, "full", 4, 32),
        ({"num_rows": 50_000}, "full", 3, 32),
        ({"num_rows": 900_000}, "full", 1, 64),
        ({"free_memory": 2**28}, "lora", 4, 32),
        ({"time_limit": 600.0}, "full", 4, 32),
        ({"time_limit": 100.0}, "full", 3, 32),
        ({"time_limit": 52.0}, "top", 4, 32),
        ({"time_limit": 20.0}, "head", 20, 32),
    ],
)
def test_rules_for_text(facts, method, epochs, batch):
    config, reasons = advise_with(**facts)
    assert config.method.name == method
    assert (config.train.epochs, config.train.batch_size) == (epochs, batch)
    assert len(reasons) >= 3 and all(": " in line or ";" in line for line in reasons)


def test_rates_by_size_and_method():
    def rates(**facts):
        optimizer = advise_with(**facts)[0].optimizer
        return optimizer.learning_rate, optimizer.layer_decay

    large = {"num_parameters": 110_000_000}
    assert rates(num_rows=300) == rates() == (2e-4, 0.8)
    assert rates(num_rows=50_000) == (1e-4, 1.0)
    assert rates(num_rows=300, **large) == (6e-5, 0.8)
    assert rates(**large) == (3e-5, 0.9)
    assert rates(num_rows=50_000, **large) == (3e-5, 1.0)
    assert rates(free_memory=2**28) == (pytest.approx(1e-3), 1.0)
    assert rates(time_limit=52.0) == (pytest.approx(5e-4), 1.0)
    assert rates(time_limit=20.0) == (3e-3, 1.0)


def test_two_phases_need_steps():
    def method(epochs):
        raw = {"task": {"name": "image_classification"}, "train": {"epochs": epochs}}
        return advise_with(raw, num_rows=30, mean_tokens=None)[0].method.name

    assert (method(1), method(3), method(4)) == ("full", "full", "lp_ft")


def test_values_of_the_config_are_kept():
    config, reasons = advise_with({"train": {"epochs": 7}, "optimizer": {"learning_rate": 1e-5}})
    assert config.train.epochs == 7 and config.optimizer.learning_rate == 1e-5
    assert "kept from the config: train.epochs" in reasons
    assert "kept from the config: optimizer.learning_rate" in reasons


def test_run_equals_that_of_the_plain_config(config, tmp_path, capfd):
    config["method"] = {"name": "auto", "time": "5 minutes"}
    config["train"] = {"epochs": 2}
    run = tfft.train(config, workdir=tmp_path / "auto")
    assert "method auto:" in capfd.readouterr().err
    assert run.config.method.name == "full"
    for name in ("advice.txt", "config.given.yaml", "config.yaml"):
        assert (run.workdir / name).is_file()
    # The run is finished, so the same command returns it.
    repeated = tfft.train(config, workdir=tmp_path / "auto")
    assert repeated.metrics == run.metrics
    plain = tfft.train(run.workdir / "config.yaml", workdir=tmp_path / "plain")
    for a, b in zip(run.model.weights, plain.model.weights, strict=True):
        assert (a.numpy() == b.numpy()).all()
    with pytest.raises(UserError, match="another config"):
        tfft.train({**config, "train": {"epochs": 3}}, workdir=tmp_path / "auto")


def test_advice_of_a_failed_start_is_deleted(config, tmp_path):
    config["data"]["validation"] = config["data"]["test"] = None
    config["train"] = {"epochs": 1, "cache_features": True}
    with pytest.raises(UserError, match=r"train\.cache_features"):
        tfft.train({**config, "method": {"name": "auto"}}, workdir=tmp_path / "run")
    assert (tmp_path / "run" / "config.given.yaml").is_file()
    config["train"] = {"epochs": 1}
    run = tfft.train(config, workdir=tmp_path / "run")
    assert run.metrics["steps"] > 0
    assert not (run.workdir / "config.given.yaml").exists()
    assert not (run.workdir / "advice.txt").exists()


def test_time_must_be_in_minutes():
    with pytest.raises(UserError, match="must be minutes"):
        parse({**RAW, "method": {"name": "auto", "time": "3 epochs"}})
