"""transformers' own tests are never left out unnoticed where they count."""

import subprocess

import pytest
import transformers_suite


@pytest.mark.parametrize("ci, outcome", [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_tests_out_of_reach_fail_in_ci(ci, outcome, tmp_path, monkeypatch):
    def fail(folder):
        raise subprocess.CalledProcessError(1, "pip", stderr="no network")

    monkeypatch.setattr(transformers_suite, "_fetch", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no network"):
        transformers_suite.suite_module("test_modeling_common")
