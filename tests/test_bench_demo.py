"""What bench/demo says of a command's memory is that of the command and of what it starts."""

import subprocess
import sys

import pytest

from bench.demo import main, watch

_HOLDS = "held = bytearray(b'x' * (60 << 20)); import time; time.sleep(2.5)"


@pytest.mark.slow
def test_the_memory_of_what_a_command_starts_counts(tmp_path) -> None:
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_HOLDS!r}], check=True)"
    seconds, most = watch([sys.executable, "-c", starts], tmp_path)
    assert seconds > 2.5
    assert 60 << 20 < most < 250 << 20


def test_a_command_that_fails_is_no_measurement(tmp_path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        watch([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_make_trains_its_own_recipe_only(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--make", "--config", "recipes/tiny_qwen_vl.yaml"])
    with pytest.raises(SystemExit):
        main()
    assert "--make measures" in capsys.readouterr().err
