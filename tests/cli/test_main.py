"""An error that no command expects."""

import os

from tests.cli.test_damaged_files import assert_one_error
from tests.console import run_command


def test_unexpected_error_is_one_line_and_a_log_file(monkeypatch, tmp_path):
    def schema():
        raise ZeroDivisionError("of an unexpected\nkind \udcff")

    monkeypatch.setattr("tfft.config.schema", schema)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run_command("schema")
    (log,) = tmp_path.glob("tfft-*.log")
    assert_one_error(code, err, "ZeroDivisionError: of an unexpected kind \udcff; ", exit_code=1)
    assert err.endswith(f"the traceback is in {log}\n") and not out
    text = log.read_text()
    assert "Traceback (most recent call last)" in text and "in schema" in text
    assert os.stat(log).st_mode & 0o777 == 0o600
