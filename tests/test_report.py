"""What is reported of a run, by a clock of the test's own."""

from types import SimpleNamespace

import numpy as np
import pytest

from agents.reporting import report
from networks.value_heads import HLGauss


@pytest.fixture
def parts(monkeypatch):
    """A trainer, a logger and a display that do nothing but remember, and a clock."""
    clock, rows, printed = SimpleNamespace(now=100.0), [], []
    monkeypatch.setattr(report.time, "monotonic", lambda: clock.now)

    def evaluate(stop):
        clock.now += 300.0
        return np.ones(10)

    experiment = SimpleNamespace(
        dataset=None,
        eval_episodes=10,
        unit="agent steps",
        agent=SimpleNamespace(epsilon_eval=0.001),
        head=HLGauss(v_min=1.0, v_max=2.0),
    )
    trainer = SimpleNamespace(agent_steps=0, updates=0, experiment=experiment, epsilon=0.5, metrics=dict)
    trainer.evaluate, trainer.normalised = evaluate, lambda score: {}
    logger = SimpleNamespace(write=lambda steps, seconds, row: rows.append({"seconds": seconds, **row}))
    logger.flush = lambda: None
    display = SimpleNamespace(update=lambda *values: None, print=printed.append)
    return clock, trainer, logger, display, rows, printed


def test_evaluations_do_not_count_as_training(parts):
    """A speed that they lower would be no measurement of training."""
    clock, trainer, logger, display, rows, _ = parts
    reported = report.Report(trainer, logger, display, report.Clock())
    for _ in range(3):
        clock.now += 10.0
        trainer.agent_steps += 2000
        trainer.updates += 500
        reported.log_point()
        assert reported.evaluation(lambda: False)
    points = [row for row in rows if "speed/steps_per_second" in row]
    assert [row["speed/steps_per_second"] for row in points] == pytest.approx([200.0] * 3)
    assert [row["speed/updates_per_second"] for row in points] == pytest.approx([50.0] * 3)
    assert [row["train/replay_ratio"] for row in points] == [0.25] * 3
    assert reported.seconds == pytest.approx(30.0)
    again = report.Report(trainer, logger, display, report.Clock(), reported.save())
    assert again.seconds == pytest.approx(30.0)


def test_other_runs_evaluations_do_not_count_either(parts):
    """Of several seeds that train in turns, by one clock; nor does what they take to start."""
    now, trainer, logger, display, *_ = parts
    clock = report.Clock()
    with clock.pause():
        first = report.Report(trainer, logger, display, clock)
        now.now += 50.0
        second = report.Report(trainer, logger, display, clock, first.save() | {"seconds": 7.0})
        assert second.evaluation(lambda: False)
    now.now += 10.0
    assert first.evaluation(lambda: False) and second.evaluation(lambda: False)
    now.now += 1.0
    assert [first.seconds, second.seconds] == pytest.approx([11.0, 18.0])


@pytest.mark.parametrize("target, bound", [(0.0, 1.0), (-17.0, 30.0)])
def test_a_support_is_suggested_even_before_rewards(parts, target, bound):
    _, trainer, logger, display, _, printed = parts
    trainer.metrics = lambda: {"head/targets_outside_support": 0.5}
    trainer.diagnose = lambda: ({}, np.full(8, target))
    reported = report.Report(trainer, logger, display, report.Clock())
    for _ in range(2):
        reported.log_point()  # warns once
    [warning] = printed
    assert f"HLGauss.v_min = {-bound}'" in warning and f"HLGauss.v_max = {bound}'" in warning


def test_the_memory_of_an_accelerator_is_logged(parts, monkeypatch):
    _, trainer, logger, display, rows, _ = parts
    stats = iter([None, {"peak_bytes_in_use": 7.5e9}])
    monkeypatch.setattr(report.jax, "devices", lambda: [SimpleNamespace(memory_stats=lambda: next(stats))])
    reported = report.Report(trainer, logger, display, report.Clock())
    for _ in range(2):
        reported.log_point()
    assert [row.get("speed/peak_device_gb") for row in rows] == [None, 7.5]
