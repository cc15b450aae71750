"""A long run with restarts every few minutes beside one without: the same result, no growth of memory or open files.

SOAK_STEPS=250000 makes it three quarters of an hour on two cores; curves are left in SOAK_OUTPUT.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import pytest
from test_resume import assert_same_run

from scripts import train

STEPS = int(os.environ.get("SOAK_STEPS", 20_000))
RESTART_SECONDS = (20, 40) if STEPS < 100_000 else (100, 300)


def command(run_dir):
    """Real games and the real network; the replay is full early, so that memory should be flat from then on."""
    flags = ["--game=RoadRunner", "--preset=quick", "--head=hl_gauss", f"--steps={STEPS}", f"--run_dir={run_dir}"]
    flags += ["--replay_capacity=10000", "--eval_episodes=2"]
    bindings = ("checkpoint_every_steps = 4000", "reseed_every_steps = 15000", "diagnose_every_steps = 10000")
    return [sys.executable, train.__file__, *flags, *(f"--gin_bindings=Experiment.{binding}" for binding in bindings)]


def run(flags, core, log, restart=False):
    """Trains on one core until it is finished; samples (minutes, MB, open files, start) every few seconds."""
    random, began, samples, starts = np.random.default_rng(0), time.monotonic(), [], 0
    with log.open("w") as output:
        while True:
            process = psutil.Popen(["taskset", "-c", str(core), *flags], stdout=output, stderr=output)
            deadline, starts = time.monotonic() + random.uniform(*RESTART_SECONDS), starts + 1
            while process.poll() is None:
                time.sleep(3)
                try:
                    now, memory = (time.monotonic() - began) / 60, process.memory_info().rss / 1e6
                    if memory:  # none is left in a process that has ended and was not waited for
                        samples.append((now, memory, process.num_fds(), starts))
                except psutil.Error:
                    break
                if restart and time.monotonic() > deadline:
                    process.send_signal([signal.SIGKILL, signal.SIGTERM][starts % 2])
                    break
            code = process.wait()
            killed = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM) if restart else ()
            assert code in (0, *killed), log.read_text()
            if code == 0:
                return samples


def growth(samples, column):
    """How much larger the median of the last quarter of the longest start is than that of its second quarter."""
    starts = {start: [row[column] for row in samples if row[3] == start] for start in {row[3] for row in samples}}
    values = max(starts.values(), key=len)
    quarter = len(values) // 4
    return np.median(values[-quarter:]) / np.median(values[quarter : 2 * quarter]) - 1


@pytest.mark.slow
def test_soak(tmp_path):
    output = Path(os.environ.get("SOAK_OUTPUT", tmp_path))
    results = {}

    def train_and_sample(name, *args):
        results[name] = run(command(tmp_path / name), *args)

    names = ("uninterrupted", "restarted")
    jobs = [(name, core, tmp_path / f"{name}.log", name == "restarted") for core, name in enumerate(names)]
    threads = [threading.Thread(target=train_and_sample, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (output / "soak.json").write_text(json.dumps(results))
    figure, (memory, files) = plt.subplots(2, sharex=True, figsize=(7.2, 4), layout="constrained")
    for name, samples in results.items():
        minutes, megabytes, open_files, _ = np.array(samples).T
        memory.plot(minutes, megabytes, label=name)
        files.plot(minutes, open_files)
    memory.set(ylabel="memory (MB)", ylim=0)
    files.set(xlabel="minutes", ylabel="open files", ylim=0)
    memory.legend(frameon=False)
    figure.savefig(output / "soak.png", dpi=120)
    plt.close(figure)
    assert results.keys() == set(names)  # neither thread has failed
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "restarted")
    assert results["restarted"][-1][3] > 2
    assert abs(growth(results["uninterrupted"], 2)) < 0.1
    if STEPS >= 100_000:  # until then memory grows as the replay's pages are first written
        assert abs(growth(results["uninterrupted"], 1)) < 0.1


def test_growth_is_seen():
    flat = [(i, 100 + i % 2, 40, 1) for i in range(100)]
    leaking = [(i, 100 + i, 40 + i // 10, 1) for i in range(100)]
    assert abs(growth(flat, 1)) < 0.02 and growth(flat, 2) == 0
    assert growth(leaking, 1) > 0.3 and growth(leaking, 2) > 0.1
