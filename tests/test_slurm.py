"""A sweep on a real SLURM, started here on loopback: jobs that are interrupted save, are requeued and go on."""

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agents.reporting import logger
from scripts import sweep
from sweeping import slurm

TESTS = Path(__file__).parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason="needs Debian's slurm-wlm and munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=120 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF State=UP
"""

# Takes its time until a file `go` is there; the other breaks down at once.
ENVIRONMENTS = """
import pathlib, time
import gymnasium
from catch import Catch

class Slow(Catch):
    def step(self, action):
        if not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.05)
        return super().step(action)

class Broken(Catch):
    def step(self, action):
        raise RuntimeError("broken by the test")

gymnasium.register("Slow-v0", Slow)
gymnasium.register("Broken-v0", Broken)
"""

SWEEP = """
from __gin__ import dynamic_registration
from sweeping import grid

grid.Sweep.grids = [@grid.Grid()]
grid.Grid.envs = ['slurm_games:{env}']
grid.Grid.heads = ['mse']
grid.Grid.seeds = {seeds}
grid.Grid.steps = 3000
grid.Grid.num_envs = 2
grid.Grid.bindings = [
    'Experiment.warmup_steps = 100',
    'Experiment.log_every_steps = 20',
    'Experiment.eval_episodes = 2',
    'Replay.capacity = 1000',
    'Learner.batch_size = 4',
    'Learner.target_period_steps = 100',
]
"""


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wait_for(what, condition, seconds=180):
    """Waits until a condition holds; returns what it gives."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"after {seconds} s still not {what}:\n{run('squeue')}"
        time.sleep(0.3)
    return value


@pytest.fixture(scope="module")
def cluster():
    """A SLURM of one node with two CPUs, whose low partition is preempted by the high one; gives its configuration."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # munge's user must get at its socket
    munge = folder / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    user = pwd.getpwnam("munge")
    for path in (munge, munge / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in sockets]
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=ports))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--foreground", *(f"--{flag}={munge / file}" for flag, file in files.items())]
    env = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin"}
    with (folder / "output").open("w") as output:
        start = lambda command, **more: subprocess.Popen(command, stdout=output, stderr=output, env=env, **more)
        daemons = [start(munged, user="munge")]
        daemons += [start([name, "-D", "-f", str(conf)]) for name in ("slurmctld", "slurmd")]
    yield conf
    subprocess.run(["scancel", f"--user={os.getuid()}"], env=env | {"SLURM_CONF": str(conf)})
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()
    shutil.rmtree(folder)


@pytest.fixture
def submit(cluster, tmp_path, monkeypatch):
    """Runs `sweep.py` for an environment, as a program, since submitit reconfigures logging; returns what it prints."""
    (tmp_path / "slurm_games.py").write_text(ENVIRONMENTS)
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{TESTS}")
    idle = ["sinfo", "--noheader", "--states=idle", "--format=%T"]
    wait_for("started", lambda: subprocess.run(idle, capture_output=True).stdout)

    def submit(env, seeds, time=60, grace=300):
        (tmp_path / "own.gin").write_text(SWEEP.format(env=env, seeds=seeds))
        command = [sys.executable, str(Path(sweep.__file__)), str(tmp_path / "own.gin")]
        command += [f"--base_dir={tmp_path / 'runs'}", "--launcher=slurm", "--allow_import=slurm_games"]
        options = ("partition=low", "cpus=1", f"time={time}", f"grace={grace}", "mem=100MB", "job-name=renamed")
        return run(*command, *(f"--slurm={option}" for option in options))

    yield submit
    run("scancel", f"--user={os.getuid()}")
    wait_for("cancelled", lambda: not slurm._queue())


def steps(run_dir):
    return max((row["agent_steps"] for row in logger.read(run_dir)), default=0)


def starts(run_dir):
    """Agent steps at which a run was resumed, and those of its newest checkpoint."""
    resumed = json.loads((run_dir / "manifest.json").read_text()).get("resumed", [])
    checkpoints = [int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal()]
    return [start["agent_steps"] for start in resumed], max(checkpoints, default=0)


def test_interrupted_jobs_go_on(submit, tmp_path):
    assert "0 runs were queued or running, 2 more are submitted" in submit("Slow-v0", 2)
    first, second = sorted(slurm._queue())
    states = lambda: [slurm._queue().get(job) for job in (first, second)]
    assert "renamed" in run("squeue")
    one, two = (wait_for("created", lambda i=i: list((tmp_path / "runs").glob(f"*/*/seed{i}")))[0] for i in (0, 1))
    wait_for("training", lambda: min(steps(one), steps(two)) > 150)
    out = submit("Slow-v0", 2)
    assert (
        "2 runs were queued or running, 0 more" in out and f"running    {'/'.join(one.parts[-3:])}, job {first}" in out
    )

    # A job of higher priority needs both CPUs.
    run("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 3")
    wait_for("preempted", lambda: states() == ["PENDING", "PENDING"])
    saved = [starts(one)[1], starts(two)[1]]
    assert min(saved) > 150
    for job in (first, second):  # SLURM would wait two minutes
        run("scontrol", "update", f"job={job}", "StartTime=now")
    wait_for("resumed", lambda: starts(one)[0] and starts(two)[0])
    assert [starts(one)[0], starts(two)[0]] == [saved[:1], saved[1:]]
    wait_for("training", lambda: steps(two) > saved[1] + 40)

    # A job that is cancelled saves and does not return, until the sweep is submitted again.
    run("scancel", second)
    wait_for("cancelled", lambda: second not in slurm._queue())
    assert starts(two)[1] > saved[1] + 40
    (tmp_path / "go").touch()
    out = submit("Slow-v0", 2)
    assert f"submitted  {'/'.join(two.parts[-3:])}, job" in out
    wait_for("finished", lambda: not slurm._queue())
    assert submit("Slow-v0", 2) == "All 2 runs are finished.\n"
    assert (steps(one), len(starts(one)[0])) == (3000, 1) and (steps(two), len(starts(two)[0])) == (3000, 2)
    for run_dir in (one, two):  # nothing is logged twice
        logged = [row["agent_steps"] for row in logger.read(run_dir) if "train/epsilon" in row]
        assert logged == sorted(set(logged))


def test_the_end_of_the_time(submit, tmp_path):
    """SLURM announces it by SIGUSR2, up to a minute earlier than it is told to."""
    out = submit("Slow-v0", 1, time=2, grace=20)
    (job,) = slurm._queue()
    assert f"job {job}" in out
    (run_dir,) = wait_for("created", lambda: list((tmp_path / "runs").glob("*/*/seed0")))
    wait_for(
        "requeued", lambda: slurm._queue() == {job: "PENDING"} and "Restarts=1" in run("scontrol", "show", "job", job)
    )
    saved = starts(run_dir)[1]
    assert saved > 0
    (tmp_path / "go").touch()
    run("scontrol", "update", f"job={job}", "StartTime=now")
    wait_for("finished", lambda: not slurm._queue())
    assert starts(run_dir)[0] == [saved] and steps(run_dir) == 3000


def test_a_failed_job_is_submitted_again(submit, tmp_path):
    for _ in range(2):
        out = submit("Broken-v0", 1)
        assert "0 runs were queued or running, 1 more are submitted" in out
        job = out.split("job ")[1].split()[0]
        wait_for("ended", lambda: not slurm._queue())
        log = (tmp_path / f"runs/_sweep/own/slurm/{job}_0_log.out").read_text()
        assert "RuntimeError: broken by the test" in log and "The run ended with exit code 1" in log
