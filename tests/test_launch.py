"""Scripts start themselves again with the environment that makes updates fast; what the user has set stays."""

import json
import os
import subprocess
import sys

import jax
import pytest

from agents import launch
from agents.launch import PREPARED, SETTINGS

SCRIPT = """
import json, os, sys
from agents import launch
launch.prepare()
from agents.launch import SETTINGS
import jax
jax.devices()  # aborts if it does not know the flags
print(json.dumps([sys.argv[1:], sys.flags.utf8_mode, {name: os.environ.get(name) for name in SETTINGS}]))
"""


@pytest.mark.parametrize("own", [{}, {"XLA_FLAGS": ""}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}])
@pytest.mark.skipif(sys.platform != "linux", reason="the settings are for Linux")
def test_missing_settings_are_added_and_all_else_is_kept(own, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name not in {*SETTINGS, PREPARED}}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    start = lambda *flags: json.loads(
        subprocess.run(
            [sys.executable, "-X", "utf8", script, "--flag", "two words", *flags],
            env=environment | own,
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        ).stdout
    )
    expected = SETTINGS | own
    assert start() == [["--flag", "two words"], 1, expected]
    flags = f"{expected.get('XLA_FLAGS', '')} {launch.DETERMINISTIC}".strip()  # added to those of others
    assert start("--deterministic")[2] == expected | ({"XLA_FLAGS": flags} if "XLA_FLAGS" in SETTINGS else {})


def test_nothing_is_started_again_twice_or_under_jax(monkeypatch):
    """A variable that does not survive makes no endless loop, and a session that has JAX already is not replaced."""
    monkeypatch.setattr(os, "execve", lambda *args: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    launch.prepare()  # these tests have imported jax
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setenv(PREPARED, "1")
    launch.prepare()


def test_a_full_device_is_one_line_and_other_errors_of_jax_are_not(capsys):
    def main():
        raise jax.errors.JaxRuntimeError(message)

    message = "RESOURCE_EXHAUSTED: Out of memory\nwhile trying to allocate 9 bytes."
    with pytest.raises(SystemExit) as error:
        launch.run(main)
    said = capsys.readouterr().err
    assert error.value.code == 2 and said.count("\n") == 1 and "memory is full. Pass a smaller --replay_cap" in said
    message = "INTERNAL: no such kernel"
    with pytest.raises(jax.errors.JaxRuntimeError):
        launch.run(main)


def test_what_the_user_got_wrong_is_one_line(capsys):
    def main():
        raise launch.ConfigError("this is wrong:\n  \x1b[31mthat\n\nThat is allowed.")

    with pytest.raises(SystemExit) as error:
        launch.run(main)
    assert error.value.code == 2 and capsys.readouterr().err == "error: this is wrong: ?[31mthat That is allowed.\n"


PRINTS = """
import pathlib, sys
from rich.console import Console
from agents import launch

with launch.outlasting_readers():
    console = Console(file=sys.stdout)
    print("first", flush=True)
    sys.stdin.read()  # until nobody reads any more
    for i in range(100):
        print("x" * 1000, flush=i % 7 == 0)
        print("y" * 1000, file=sys.stderr)
        console.print("z" * 1000)
    print("w" * 10**6)
pathlib.Path(sys.argv[1]).write_text("saved")
"""


def test_what_nobody_reads_ends_nothing(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    command = [sys.executable, "-c", PRINTS, tmp_path / "out"]
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == b"first\n"
        for pipe in (process.stdout, process.stderr, process.stdin):
            pipe.close()
    assert process.returncode == 0 and (tmp_path / "out").read_text() == "saved"
