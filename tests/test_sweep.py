"""A sweep expands to the runs that its gin file says, and trains them: all that can, whatever happens to the others."""

import collections
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import gin
import psutil
import pytest

from agents.configuration import config
from agents.dataset import Dataset
from agents.environments import ROMS
from agents.errors import ConfigError
from agents.reporting import logger
from scripts import sweep
from sweeping import cost, grid, local, progress, slurm
from sweeping.plan import Plan, Run
from sweeping.progress import SweepDisplay

HEADER = "from __gin__ import dynamic_registration\nfrom sweeping import grid\n"
ONE = "grid.Sweep.grids = [@grid.Grid()]\n"
TESTS = Path(__file__).parent
SHIPPED = sorted(path.stem for path in grid.SWEEPS.glob("*.gin"))
SIZES = {"atari_1": 1, "atari_5": 5, "atari_10": 10, "atari_26": 26, "atari_60": 60}
SIZES |= {"soft_moe_20_printed": 20, "soft_moe_20_figures": 20, "offline_17": 17}


@pytest.fixture
def write(tmp_path):
    """Writes a sweep; gives its path."""

    def write(text, header=HEADER + ONE):
        path = tmp_path / "own.gin"
        path.write_text(header + textwrap.dedent(text))
        return str(path)

    return write


def run(name="Pong/dqn-mse-fast/seed0", total=1000, start=0, replay_bytes=0, argv=()):
    return Run(tuple(argv), Path("runs", name), "new", start, total, replay_bytes, finished=start >= total)


# The grid


def test_a_grid_is_a_product(write):
    path = write(
        """
        grid.Grid.games = ['Pong', 'Breakout']
        grid.Grid.agents = ['dqn', 'rainbow']
        grid.Grid.heads = ['mse', 'hl_gauss']
        grid.Grid.seeds = [3, 1]
        grid.Grid.preset = 'quick'
        grid.Grid.torso = 'impala_cnn'
        grid.Grid.steps = 70_000
        grid.Grid.bindings = ['DQN.n_step = 2']
        grid.Grid.axes = {'ImpalaCNN.hidden': [16, 32], 'Learner.max_grad_norm': [None, 1e-3, 10.0]}
        """
    )
    expected = collections.Counter()
    for game, agent, head, seed in itertools.product(
        ("Pong", "Breakout"), ("dqn", "rainbow"), ("mse", "hl_gauss"), (1, 3)
    ):
        for hidden, norm in itertools.product(("16", "32"), ("None", "0.001", "10.0")):
            flags = [f"--game={game}", f"--agent={agent}", f"--head={head}", f"--seed={seed}", "--preset=quick"]
            flags += ["--torso=impala_cnn", "--steps=70000", "--gin_bindings=DQN.n_step = 2"]
            flags += [f"--gin_bindings=ImpalaCNN.hidden = {hidden}", f"--gin_bindings=Learner.max_grad_norm = {norm}"]
            expected[frozenset(flags)] += 1
    cells = grid.read(path).cells()
    assert collections.Counter(frozenset((*c.flags, c.task, f"--seed={c.seed}")) for c in cells) == expected
    assert [(c.seed, c.task) for c in cells] == sorted(
        ((c.seed, c.task) for c in cells), key=lambda pair: (pair[0], pair[1] == "--game=Breakout")
    )
    # The runs are those of these command lines, with the number of games that the preset says.
    runs = Plan("somewhere").runs(cells[:2])
    assert runs[0].argv == (*cells[0].flags, cells[0].task, "--seed=1", "--base_dir=somewhere")
    name = "Pong/dqn-mse-quick-impala_cnn-n_step=2-hidden=16-max_grad_norm=None/seed1"
    assert (runs[0].name, runs[0].total) == (name, 70_000)
    assert runs[0].replay_bytes == pytest.approx(200_000 * 84 * 84, rel=0.01)


def test_several_grids_share_what_has_no_scope(write):
    path = write(
        """
        grid.Sweep.grids = [@a/grid.Grid(), @b/grid.Grid()]
        grid.Grid.envs = ['CartPole-v1']
        grid.Grid.seeds = 2
        a/grid.Grid.heads = ['mse', 'c51']
        b/grid.Grid.gin_files = ['own.gin']
        """,
        HEADER,
    )
    cells = grid.read(path).cells()
    assert {cell.task for cell in cells} == {"--env=CartPole-v1"}
    assert [(cell.seed, *cell.flags[1:]) for cell in cells] == [
        (seed, flag) for seed in (0, 1) for flag in ("--head=mse", "--head=c51", "--gin_files=own.gin")
    ]


def test_flags_replace_values_of_the_grid(write):
    path = write("grid.Grid.games = 'atari_60'\ngrid.Grid.seeds = 5\ngrid.Grid.preset = 'fast'")
    cells = lambda *flags: grid.read(path).replace(**sweep.changes(sweep.parse_args([path, *flags]))).cells()
    assert len(cells()) == 300
    named = cells("--games=Pong,Breakout", "--seeds=3,7", "--steps=5000", "--preset=quick")
    assert [(cell.task, cell.seed) for cell in named] == [
        (f"--game={game}", seed) for seed in (3, 7) for game in ("Pong", "Breakout")
    ]
    assert {cell.flags for cell in named} == {("--agent=dqn", "--preset=quick", "--steps=5000")}
    assert len(cells("--games=atari_5", "--seeds=2")) == 10 and len(cells("--games=Pong", "--seeds=7,")) == 1


@pytest.mark.parametrize("flag, length", [("--steps", "updates"), ("--updates", "steps")])
def test_a_length_of_another_kind_is_refused_with_a_hint(flag, length, write):
    path = write(f"grid.Grid.games = ['Pong']\ngrid.Grid.{length} = 9")
    with pytest.raises(ConfigError, match=f"{flag}: .* are counted in {length}: use --{length}"):
        sweep.main([path, f"{flag}=5", "--dry_run"])


def test_all_runs_have_the_same_number_of_games(write):
    """Where the preset leaves it to the machine, the grid decides; where the preset says it, the preset."""
    path = write("grid.Grid.games = ['Pong']\ngrid.Grid.num_envs = 32\ngrid.Grid.seeds = 2")
    for flags, expected in (([], ["--num_envs=32"]), (["--preset=paper"], [])):
        cells = grid.read(path).replace(**sweep.changes(sweep.parse_args([path, *flags]))).cells()
        for planned in Plan("runs").runs(cells):
            assert [flag for flag in planned.argv if flag.startswith("--num_envs")] == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("grid.Grid.games = 'atari_7'", r"Unknown set of games 'atari_7'.*Sets: atari_1, .*atari_60"),
        ("grid.Grid.games = ['Pong', 'Breakuot']", r"cannot start: Unknown game 'Breakuot'. Did you mean Breakout"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.heads = ['mes']", "cannot start: Unknown head 'mes'. Did you mean mse"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.heads = []", "The grid is empty"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.seeds = 0", "The grid is empty"),
        ("grid.Grid.games = []", "needs games or envs"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.envs = ['CartPole-v1']", "needs games or envs, one of them"),
        (
            "grid.Grid.games = ['Pong']\ngrid.Grid.seeds = [0, '1']",
            r"seeds is \[0, '1'\]; it takes values of the type int",
        ),
        (
            "grid.Grid.games = ['Pong']\ngrid.Grid.seeds = 'all'",
            "Grid.seeds = 'all' is of the wrong type",
        ),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.seeds = [4294967296]", r"seeds lie between 0 and 2\^32 - 1"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.seeds = [0, 0]", "Two runs of the sweep have the same directory"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.axes = {'DQN.n_step': 3}", "'DQN.n_step' needs a list of values"),
        (
            "grid.Grid.games = ['Pong']\ngrid.Grid.axes = {'DQN.n_steps': [3]}",
            "doesn't have a parameter named 'n_steps'",
        ),
        (
            "grid.Grid.games = ['Pong']\ngrid.Grid.bindings = ['C51.num_bins = 3']",
            "cannot start: .*is not used by this run",
        ),
        (
            """grid.Grid.games = ['Pong']\ngrid.Grid.bindings = ["NatureCNN.dtype = 'float17'"]""",
            "cannot start: TypeError: .*float17",
        ),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.head = ['mse']", "doesn't have a parameter named 'head'.*mean heads"),
        ("grid.Grid.games = ['Pong']\na/grid.Grid.heads = ['mse']", "a/Grid.heads = .* is not used"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.games = ['Boxing']", "is bound twice"),
        ("grid.Grid.envs = ['MinAtar/Pong-v1']", "cannot start: Cannot make the environment 'MinAtar/Pong-v1'"),
        ("grid.Grid.games = ['Pong']\ngrid.Grid.num_envs = 3", "cannot start: 3 games at 0.25 updates per agent step"),
    ],
)
def test_mistakes_end_before_the_first_run(write, tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        sweep.main([write(text), f"--base_dir={tmp_path / 'runs'}", "--launcher=print"])  # rather than train by mistake
    assert not (tmp_path / "runs").exists()


def test_mistakes_in_flags_are_named(write, capsys):
    path = write("grid.Grid.envs = ['CartPole-v1']")
    for flags, message in (
        ([path, "--jobs=0"], "--jobs must be at least 1; got 0"),
        ([path, "--slurm=time=3"], "--slurm is for --launcher slurm"),
        ([path, "--dry_run", "--steps_per_second=0"], "must be positive"),
        ([path, "--steps_per_second=9"], "--steps_per_second is for --dry_run"),
        ([path, "--launcher=print", "--jobs=2"], "--jobs is for launchers that train"),
    ):
        with pytest.raises(SystemExit):
            sweep.main(flags)
        assert message in capsys.readouterr().err
    for flags, message in (
        (["nowhere.gin"], "no sweep 'nowhere.gin'. Shipped: configs/sweeps/calibration.gin"),
        ([path, "--games=Pong"], "the sweep has grid.Grid.envs"),
        ([path, "--seeds=a"], "--seeds is 'a'; it takes a number"),
        ([path, "--launcher=slurm", "--slurm=account="], "--slurm takes KEY=VALUE"),
        ([path, "--launcher=slurm", "--slurm=time=1-00:00"], "--slurm time takes a positive whole number"),
        (["configs/dqn.gin"], "configs/dqn.gin describes no sweep"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep.main(flags)


def test_a_run_with_other_settings_is_refused(write, tmp_path):
    """One that was started with another number of games, say."""
    path = write("grid.Grid.games = ['Pong']\ngrid.Grid.seeds = 2")
    (_, planned) = Plan(str(tmp_path)).runs(grid.read(path).cells())
    settings = {"Experiment.num_envs": "8"}
    planned.run_dir.mkdir(parents=True)
    (planned.run_dir / "manifest.json").write_text(json.dumps({"settings": settings, "num_envs": 8}))
    with pytest.raises(ConfigError, match="(?s)cannot start.*Experiment.num_envs = 16, but the run there has 8"):
        sweep.main([path, f"--base_dir={tmp_path}", "--launcher=print"])


# Shipped files


def test_sets_of_games():
    assert {path.stem for path in (grid.SWEEPS / "games").glob("*.txt")} == SIZES.keys()
    games = {name: grid.named_games(name) for name in SIZES}
    for name, size in SIZES.items():
        assert len(set(games[name])) == len(games[name]) == size and set(games[name]) <= set(ROMS)
    assert set(games["atari_5"]) < set(games["atari_10"]) < set(games["atari_60"]) > set(games["atari_26"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweeps(name, tmp_path, monkeypatch):
    """Each has the runs that its remarks say; every arm of it starts, on one of its games."""
    counts = {"losses": 60 * 4 * 5, "learning_rates": 60 * 5 * 5, "soft_moe": 20 * (2 * 4 + 4) * 5}
    counts |= {
        "smoothing": 10 * (4 * 5 + 1) * 5,
        "stickiness": 60 * 2 * 3 * 5,
        "quick": 2 * 5 * 3,
        "minatar": 5 * 5 * 3,
        "minatar_smoothing": 2 * (3 * 3 + 1) * 2,
        "minatar_stickiness": 2 * 3 * 2 * 2,
        "calibration": 2 * 2 * 2,
        "offline_losses": 17 * 4 * 3,
        "offline_softmax": 17 * 4 * 2 * 3,
        "offline_noise": 17 * 2 * 4 * 3,
        "offline_targets": 17 * 3 * 2 * 3,
        "offline_quick": 4 * 2,
    }
    monkeypatch.setattr(Dataset, "most_rows", lambda self: 1000)  # there are no logs
    monkeypatch.setattr(Dataset, "check_game", lambda self, environment: None)
    cells = grid.read(f"configs/sweeps/{name}.gin").cells()
    assert len({cell[:3] for cell in cells}) == len(cells) == counts[name]
    arms = {cell.flags: cell for cell in cells}
    runs = Plan(str(tmp_path)).runs(list(arms.values()))
    assert len({planned.run_dir for planned in runs}) == len(arms)
    lengths = {"quick": 60_000, "minatar": 1_000_000, "offline_quick": 50_000, "calibration": 750_000}
    lengths |= dict.fromkeys(("minatar_smoothing", "minatar_stickiness"), 300_000)
    lengths |= dict.fromkeys(("offline_losses", "offline_softmax", "offline_noise", "offline_targets"), 6_250_000)
    assert {planned.total for planned in runs} == {lengths.get(name, 50_000_000)}


def test_the_paper_s_arms_are_shared(tmp_path):
    """The runs of losses.gin are no others in the sweeps that have them, too."""
    names = lambda name: {
        planned.name
        for planned in Plan(str(tmp_path)).runs(
            grid.read(f"configs/sweeps/{name}.gin").replace(games=["Pong"], seeds=1).cells()
        )
    }
    paper = names("losses")
    assert paper < names("learning_rates")
    assert len(paper & names("stickiness")) == 3


def test_sweeps_do_not_concern_other_programs(monkeypatch):
    """Without scripts/ on the path, as in a program of a user's, configurations load as before."""
    gin.clear_config()
    for name in ("sweeping", "sweeping.grid"):
        monkeypatch.setitem(sys.modules, name, None)
    config._register.__wrapped__(config.CONFIGS)
    with pytest.raises(ConfigError) as error:
        config.resolve("nowhere.gin")
    assert "sweeps" not in str(error.value)


# The table


def test_dry_run_writes_nothing(write, tmp_path, capsys):
    """The hours are those at the median speed of runs of the arm once they learn, else of their like, or as told."""
    runs = tmp_path / "runs"
    for name, seed, speeds in (
        ("Boxing/dqn-mse-quick", 0, [999, 10, 20, 30]),
        ("Boxing/dqn-mse-quick", 1, [999, 50]),
        ("Boxing/baseline", 0, [999, 7]),  # as --run_dir may have it
        ("Boxing/full_rainbow-c51-quick-learning_rate=2.5e-4-v_min=-20.0", 0, [999, 100]),
        ("CartPole-v1/dqn-mse-quick", 0, [999, 5000]),
    ):
        run_dir = runs / name / f"seed{seed}"
        run_dir.mkdir(parents=True)
        rows = [{"agent_steps": i, "speed/steps_per_second": speed} for i, speed in enumerate(speeds)]
        rows = [rows[0], *(row | {"train/loss": 1.0} for row in rows[1:]), {"agent_steps": 9, "episode/return": 1.0}]
        (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"agent_st')
    path = write(
        """
        grid.Grid.games = ['Pong']
        grid.Grid.agents = ['dqn', 'rainbow', 'full_rainbow']
        grid.Grid.heads = ['mse', 'c51']
        grid.Grid.preset = 'quick'
        """
    )
    before = sorted(tmp_path.rglob("*"))
    command = [path, f"--base_dir={runs}", "--dry_run", "--jobs=2"]
    assert sweep.main(command) == 0
    out = capsys.readouterr().out
    hours = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.startswith("Pong/")}
    speed = 35  # of runs with 20 and 50
    assert hours == {
        "Pong/dqn-mse-quick/seed0": f"{200_000 / speed / 3600:.2f}",
        "Pong/dqn-c51-quick/seed0": f"{200_000 / speed / 3600:.2f}",
        "Pong/rainbow-mse-quick/seed0": "?",
        "Pong/rainbow-c51-quick/seed0": "?",
        "Pong/full_rainbow-mse-quick/seed0": f"{200_000 / 100 / 3600:.2f}",
        "Pong/full_rainbow-c51-quick/seed0": f"{200_000 / 100 / 3600:.2f}",
    }
    assert "6 runs, 0 finished; 1,200,000 steps left in 6" in out
    total = 200_000 / speed + 200_000 / 100  # of two runs each, two at a time
    assert f"about {total / 3600:.2f} hours with --jobs 2" in out and "without the 2 runs" in out
    assert "replay of 2 at a time: up to 2.8" in out  # 200,000 frames each, and priorities
    assert sweep.main([*command, "--preset=fast", "--steps=200000"]) == 0  # has another network
    assert "about" not in capsys.readouterr().out
    assert sweep.main([*command, "--steps_per_second=100"]) == 0
    out = capsys.readouterr().out
    assert out.count(f" {200_000 / 100 / 3600:.2f}\n") == 6 and "with --jobs 2, at 100 steps/s" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_finished_runs_cost_nothing():
    lines = cost.table([run(start=1000), run("Pong/dqn-mse-fast/seed1", start=400)], "nowhere", 1, 10.0)
    assert lines[1].split() == ["Pong/dqn-mse-fast/seed0", "finished", "0"]
    assert "2 runs, 1 finished; 600 steps left in 1" in lines


def test_the_end_of_a_log_is_read(tmp_path):
    """However long it is, and whatever its last line is cut to."""
    rows = [{"agent_steps": step, "speed/steps_per_second": step / 10} for step in range(5000)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"agent_steps": 5000')
    assert len(text) > 2 * 16_384
    found = logger.read(tmp_path, progress.LATEST)
    assert found == rows[-len(found) :] and 100 < len(found) < 1000
    assert logger.read(tmp_path, 10**6) == logger.read(tmp_path) == rows
    planned = run(total=4500)._replace(run_dir=tmp_path)
    assert progress.progress_of(planned) == (4500, 499.9)
    assert progress.progress_of(run(start=7)) == (7, None)


def test_a_terminal_has_a_bar_for_each_run(tmp_path, monkeypatch, capsys):
    """With the beginning and the end of its name, agent steps, speed and the time left; above them, what has ended."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "110")
    runs = [
        run(f"Pong/dqn-{'mse' * 20}-fast/seed{seed}", total=5000)._replace(run_dir=tmp_path / str(seed))
        for seed in (0, 1)
    ]
    runs[0].run_dir.mkdir()
    (runs[0].run_dir / "metrics.jsonl").write_text('{"agent_steps": 2000, "speed/steps_per_second": 50.0}\n')
    display = SweepDisplay(3, 1)
    for planned in runs:
        display.started(planned, tmp_path)
    display.update(runs)
    display.ended(runs[1], "failed", 3723)
    display.close()
    out = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "2,000/5,000, 50 steps/s, ETA 0:01:00" in out and "1/3 runs  1 failed" in out
    assert "failed    " in out and "after 1:02:03" in out
    assert (
        progress.shortened("abc" * 20, 30) == "abcabcabcabcab…abcabcabcabcabc"
        and progress.shortened("a" * 24, 3) == "a" * 24
    )


# This machine


def test_a_machine_is_divided():
    cores = [2, 3, 5, 7, 11]
    share = lambda jobs: [sorted(slot.cores) for slot in local.slots(jobs, cores, [], {})]
    assert share(1) == [cores] and share(2) == [[2, 3], [5, 7, 11]] and share(5) == [[core] for core in cores]
    assert sorted(sum(share(10), [])) == sorted(cores * 2)
    assert local.slots(2, [], [], {"A": "1"}) == [local.Slot(frozenset(), {"A": "1"})] * 2

    fraction, deprecated = local.MEMORY
    env = lambda jobs, gpus, env: [slot.env for slot in local.slots(jobs, cores, gpus, env)]
    shared, alone = {"CUDA_VISIBLE_DEVICES": "0", fraction: "0.450"}, {"CUDA_VISIBLE_DEVICES": "1"}
    assert env(3, ["0", "1"], {}) == [shared, alone, shared]
    assert env(2, ["4", "6"], {"A": "1"}) == [{"A": "1", "CUDA_VISIBLE_DEVICES": gpu} for gpu in "46"]
    assert env(2, list("0123"), {}) == [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in ("0,1", "2,3")]
    for name in (fraction, deprecated):
        assert env(2, ["0"], {name: ".1"}) == [{"CUDA_VISIBLE_DEVICES": "0", name: ".1"}] * 2


def test_gpus_are_found(tmp_path, monkeypatch):
    plugins = [SimpleNamespace(name="xla_cuda13")]
    monkeypatch.setattr(local.importlib.metadata, "entry_points", lambda group: plugins * (group == "jax_plugins"))
    assert local.gpus({"PATH": str(tmp_path)}) == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n[ \"$1\" = --list-gpus ] && printf 'GPU 0: A (UUID: a)\\nGPU 1: A (UUID: b)\\n'\n")
    program.chmod(0o755)
    env = {"PATH": str(tmp_path)}
    assert local.gpus(env) == ["0", "1"]
    assert local.gpus(env | {"CUDA_VISIBLE_DEVICES": "3,GPU-b"}) == ["3", "GPU-b"]
    assert local.gpus(env | {"CUDA_VISIBLE_DEVICES": ""}) == local.gpus(env | {"JAX_PLATFORMS": "cpu"}) == []
    plugins.clear()  # of no use without JAX for CUDA
    assert local.gpus(env) == []


def test_runs_that_do_not_fit_together_are_refused(monkeypatch):
    monkeypatch.setattr(local.memory, "available", lambda: 20e9)
    runs = [run(f"Pong/dqn/seed{i}", replay_bytes=10e9 if i else 10) for i in range(3)]
    with pytest.raises(ConfigError, match=r"2 runs at a time need 21.0 GB, .*; 20.0 GB are available"):
        local.refuse_too_much_memory(runs, 2)
    local.refuse_too_much_memory(runs, 1)
    local.refuse_too_much_memory(runs[:1] * 35, 35)
    with pytest.raises(ConfigError, match=r"37 runs at a time need 18.5 GB"):
        local.refuse_too_much_memory(runs[:1] * 40, 37)


def test_commands_are_printed(write, tmp_path, capsys):
    path = write("grid.Grid.games = ['Pong']\ngrid.Grid.bindings = ['DQN.n_step = 2']\ngrid.Grid.seeds = 2")
    assert sweep.main([path, f"--base_dir={tmp_path}", "--launcher=print"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    runs = Plan(str(tmp_path)).runs(grid.read(path).cells())
    assert commands == [planned.command for planned in runs] and len(commands) == 2
    assert commands[0][1] == str(config.ROOT / "scripts/train.py")


# Instead of training: says what it got, and ends with a code of its own; on a signal it takes a moment to save.
CHILD = """
import os, signal, sys, time
name, code = sys.argv[1:]
def save(number, frame):
    signal.signal(number, signal.SIG_DFL)
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print(name, sorted(os.sched_getaffinity(0)), os.environ["MARK"], sys.stdin.read(), flush=True)
if code == "wait":
    time.sleep(60)
sys.exit(int(code))
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launches children with given exit codes, two at a time."""
    monkeypatch.setattr(local, "POLL", 0.05)
    monkeypatch.setattr(Run, "command", property(lambda self: [sys.executable, "-c", CHILD, *self.argv]))
    cores = local.cores()

    def launch(*codes, display=SweepDisplay):
        runs = [run(f"Pong/arm{i}/seed0", argv=(f"child{i}", code)) for i, code in enumerate(codes)]
        slots = local.slots(2, cores, [], os.environ | {"MARK": "marked"})
        launcher = local.Launcher(tmp_path / "logs", slots, display(len(runs), 0))
        outcomes, number = launcher.launch(runs)
        assert local.cores() == cores  # ours are as before
        return runs, outcomes, number, slots

    return launch


def test_a_failed_child_stops_no_other(launch, capsys):
    runs, outcomes, number, slots = launch("0", "7", "0", "0")
    assert number is None and {(o.run, o.how, o.code) for o in outcomes} == {
        (planned, "failed" if i == 1 else "finished", 7 if i == 1 else 0) for i, planned in enumerate(runs)
    }
    shares = [str(sorted(slot.cores)) for slot in slots]
    for i, outcome in enumerate(sorted(outcomes, key=lambda outcome: outcome.run.name)):
        text = outcome.log.read_text()
        assert re.match(r"20\d\d-.* \$ .*python -c ", text) and f"sys.exit(int(code))\n' child{i} " in text
        name, share, mark = re.fullmatch(r"(\w+) (\[.*\]) (\w+) ", text.splitlines()[-1]).groups()
        assert (name, mark) == (f"child{i}", "marked") and share in shares
    lines = "\n".join(local.summary(runs, outcomes))
    assert "arm1/seed0 ended with exit code 7" in lines and "    child1 [" in lines
    assert "3 of 4 runs are finished, 1 failed." in lines
    out = capsys.readouterr().out
    assert out.count("started ") == 4 and out.count("finished  Pong/") == 3 and out.count("failed    Pong/arm1") == 1
    _, outcomes, *_ = launch("0", "9", "0", "0")
    assert "\n".join(local.summary(runs, outcomes)).count("    child1 [") == 1  # nothing of the time before


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize(
    "number, directly",
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)],
)
def test_a_signal_goes_on_to_the_children(launch, tmp_path, number, directly):
    """They save and end, and no other is started; even if somebody has sent them the signal, too."""

    class Interrupting(SweepDisplay):
        sent = False

        def update(self, running):
            logs = [path.read_text() for path in (tmp_path / "logs").glob("*.log")]
            if sum("marked" in log for log in logs) == 2 and not self.sent:
                Interrupting.sent = True
                for child in psutil.Process().children() if directly else []:
                    child.send_signal(number)
                os.kill(os.getpid(), number)

    runs, outcomes, interrupted, _ = launch("wait", "wait", "0", display=Interrupting)
    assert interrupted == number
    assert {(o.run, o.how) for o in outcomes} == {(planned, "stopped") for planned in runs[:2]}
    assert all(o.log.read_text().endswith("saved\n") for o in outcomes)
    lines = local.summary(runs, outcomes)
    assert "0 of 3 runs are finished, 0 failed." in lines and "goes on with the others" in lines[-1]


# SLURM (the whole of it is in test_slurm.py)

PROGRAMS = {
    "squeue": 'cat "$(dirname "$0")/queue"',
    "srun": "exit 1",
    "sbatch": """
        cd "$(dirname "$0")"
        cat "$1" >> scripts
        echo x >> submitted
        echo Submitted batch job $(wc -l < submitted)
    """,
}


@pytest.fixture
def slurm_programs(tmp_path, monkeypatch):
    """SLURM's commands, which write down what they are asked for; gives their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{textwrap.dedent(text)}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # else it closes the handlers of pytest
    return folder


def test_arrays_are_submitted_once(slurm_programs, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 2)
    options = slurm.options(["partition=gpu", "time=90", "gpus=1", "cpus=4", "mem=32GB", "grace=120", "mail-type=END"])
    folder, runs = tmp_path / "_sweep/own", [run(f"Pong/arm/seed{i}", argv=(str(i),)) for i in range(5)]
    runs = [planned._replace(run_dir=tmp_path / planned.run_dir) for planned in runs]
    out = slurm.submit(runs, folder, 7, options)
    jobs = ["1_0", "1_1", "2_0", "2_1", "3"]
    assert out[:5] == [f"submitted  Pong/arm/seed{i}, job {job}" for i, job in enumerate(jobs)]
    scripts = (slurm_programs / "scripts").read_text()
    flags = ["array=0-1%2", "partition=gpu", "time=90", "gpus-per-node=1", "cpus-per-task=4", "mem=32GB"]
    for flag in (*flags, "signal=USR2@120", "mail-type=END", "requeue", "job-name=own"):
        assert f"#SBATCH --{flag}\n" in scripts
    assert re.search(r"^srun .*--cpus-per-task=4 ", scripts, re.MULTILINE)
    for planned, job in zip(runs, jobs, strict=True):
        submission = submitit.core.utils.DelayedSubmission.load(folder / f"slurm/{job}_submitted.pkl")
        assert submission.function.command == planned.command

    (slurm_programs / "queue").write_text("1_1 RUNNING\n3 PENDING\n17 RUNNING\n")
    out = slurm.submit(runs, folder, None, options)
    assert out[:2] == [
        "running    Pong/arm/seed1, job 1_1, 0 of 1,000",
        "pending    Pong/arm/seed4, job 3, 0 of 1,000",
    ]
    assert [line.split("job ")[1] for line in out[2:5]] == ["4_0", "4_1", "5"]
    assert "2 runs were queued or running, 3 more are submitted." in out
    (slurm_programs / "queue").write_text("4_0 RUNNING\n4_1 RUNNING\n5 RUNNING\n1_1 RUNNING\n3 PENDING\n")
    assert "5 runs were queued or running, 0 more are submitted." in slurm.submit(runs, folder, None, options)


def test_options_of_slurm():
    options = slurm.options(["cpus-per-task=2", "gpus-per-node=1", "exclusive", "account=mine", "time=10"])
    assert options == {"time": "10", "cpus": "2", "grace": "300", "gpus": "1", "exclusive": True, "account": "mine"}
    assert slurm._parameters("own", options)["additional_parameters"]["exclusive"] is True
    for settings, message in {
        ("=3",): "takes KEY=VALUE",
        ("account=",): "takes KEY=VALUE",
        ("cpus",): "takes a positive whole number",
        ("gpus-per-node=a100:1",): "gpus-per-node takes a positive whole number; got 'a100:1'",
        ("array=0-3",): "--slurm array: this is chosen here",
        ("time=5",): "time=5 is in minutes; a run saves grace=300 seconds before",
        ("time=60", "grace=1900"): "Raise time, or lower grace",
    }.items():
        with pytest.raises(ConfigError, match=message):
            slurm.options(list(settings))


def test_two_sweeps_at_once_submit_no_run_twice(slurm_programs, tmp_path):
    pytest.importorskip("submitit")
    told = """
        sleep 1
        cd "$(dirname "$0")"
        echo "1 RUNNING" > queue
        echo Submitted batch job 1
    """
    (slurm_programs / "sbatch").write_text(f"#!/bin/sh\n{textwrap.dedent(told)}\n")
    (tmp_path / "own.gin").write_text(
        f"{HEADER}grid.Sweep.grids = [@grid.Grid()]\ngrid.Grid.envs = ['CartPole-v1']\ngrid.Grid.steps = 30000\n"
    )
    command = [sys.executable, str(config.ROOT / "scripts/sweep.py"), str(tmp_path / "own.gin"), "--launcher=slurm"]
    start = lambda: subprocess.Popen([*command, f"--base_dir={tmp_path / 'runs'}"], stdout=subprocess.PIPE, text=True)
    told = [process.communicate()[0] for process in (start(), start())]
    counts = [line for out in told for line in out.splitlines() if "queued or running" in line]
    assert sorted(counts) == [
        "0 runs were queued or running, 1 more are submitted.",
        "1 runs were queued or running, 0 more are submitted.",
    ]


def test_what_slurm_needs_is_said(slurm_programs, tmp_path, monkeypatch):
    submit = lambda: slurm.submit([run()], tmp_path / "_sweep/own", None, slurm.options([]))
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=r"pip install -e '\.\[slurm\]'"):
        patch.setitem(sys.modules, "submitit", None)
        submit()
    record = tmp_path / "_sweep" / slurm.JOBS
    record.parent.mkdir()
    record.write_text('{"run": "a", "job": "1"}\n{"run": "b", "jo')
    with pytest.raises(ConfigError, match=rf"{record} has a damaged line: '{{\"run\": \"b\", \"jo'"):
        submit()
    (slurm_programs / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1")
    with pytest.raises(ConfigError, match="SLURM does not answer: no controller"):
        submit()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs SLURM's commands"):
        submit()


# An environment that breaks down in its 300th step, until somebody mends it.
BREAKS = """
import json, os, pathlib
import gymnasium
from catch import Catch

class Breaks(Catch):
    steps = 0
    def step(self, action):
        Breaks.steps += 1
        if Breaks.steps == 300 and not pathlib.Path(__file__).with_name("mended").exists():
            raise RuntimeError("broken by the test")
        return super().step(action)

gymnasium.register("Breaks-v0", Breaks)
"""


def test_a_sweep_trains(write, tmp_path, monkeypatch, capsys):
    """One of two runs breaks, the other finishes; then that is skipped, and the broken one goes on."""
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{TESTS}")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(
        """
        grid.Grid.envs = ['catch:Catch-v0', 'breaks:Breaks-v0']
        grid.Grid.heads = ['mse']
        grid.Grid.steps = 400
        grid.Grid.num_envs = 2
        grid.Grid.bindings = [
            'Experiment.warmup_steps = 100',
            'Experiment.checkpoint_every_steps = 200',
            'Experiment.eval_episodes = 2',
            'Replay.capacity = 1000',
            'Learner.batch_size = 4',
            'Learner.target_period_steps = 100',
            'MLP.features = (8,)',
        ]
        """
    )
    base = tmp_path / "runs"
    command = [path, f"--base_dir={base}", "--jobs=2", "--allow_import=catch", "--allow_import=breaks"]
    assert sweep.main(command) == 1
    out = capsys.readouterr().out
    assert "1 of 2 runs are finished, 1 failed." in out and "RuntimeError: broken by the test" in out
    (log,) = (base / "_sweep/own").glob("Breaks-v0_*_seed0.log")
    assert f"{log} ends in:" in out

    (tmp_path / "mended").touch()
    assert sweep.main(command) == 0
    out = capsys.readouterr().out
    assert "Catch" not in out and "goes on at 200 agent steps" in out and "2 of 2 runs are finished, 0 failed." in out
    assert "goes on at 200 agent steps" in log.read_text()
    (metrics,) = base.glob("Breaks-v0/*/seed0/metrics.jsonl")
    assert logger.read(metrics.parent)[-1]["agent_steps"] == 400

    assert sweep.main(command) == 0
    assert capsys.readouterr().out == "All 2 runs are finished.\n"
