"""The benchmark runs, and writes what it prints; its figures are not tested."""

import json

import pytest

from scripts import benchmark


def test_a_row_of_the_table(tmp_path, capsys):
    assert benchmark.main(["--only=dqn mse NatureCNN, VALID", "--repeats=2", f"--json={tmp_path / 'out.json'}"]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["updates"]
    assert row["parameters"] == 1_693_362 and 0 < row["p10"] <= row["updates_per_second"] <= row["p90"]
    assert "| dqn | mse | NatureCNN, VALID | 1,693,362 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [(["--only=nope"], "no row contains 'nope'"), (["--repeats=0"], "positive"), (["--json=no/x"], "no directory")],
)
def test_bad_input(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(argv)
    assert exit_.value.code == 2 and message in capsys.readouterr().err
