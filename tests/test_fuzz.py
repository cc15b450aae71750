"""Whatever a user gets wrong is an error of ours, which scripts print in a line, and leaves nothing half-written."""

import contextlib
import io
import shutil
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from test_resume import assert_same_arrays
from test_training import catch

from agents import policy
from agents.configuration import config
from agents.errors import ConfigError
from scripts import benchmark, compare, convert, evaluate, plot, sweep, train
from training.command_line import load, parse_args
from training.jobs import jobs

# Errors that `launch.run` shows as one line; argparse exits by itself.
OURS = (ConfigError, OSError, MemoryError, SystemExit)
SETTINGS = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # the same examples every time
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)  # as a shell can pass it
VALUES = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["", "0", "-1", "1", "nan", "inf", "1e400", "None", "True", "[]", "{}", "'", "@x", "%X", "../.."]),
    st.sampled_from(["(", "[1", '"""', "b'x'", "1j", "{1}", "@optax.adam", "@optax.adam()", "@gin.macro()", "1e308"]),
    st.sampled_from(["Pong", "dqn", "cql", "hl_gauss", "quick", "mlp", "CartPole-v1", "data=2", "a=b"]),
    TEXT,
)
FLAGS = ["agent", "head", "preset", "torso", "game", "env", "seed", "seeds", "steps", "frames", "num_envs", "mesh"]
FLAGS += ["dataset", "updates", "freeze_torso", "run_dir"]
FLAGS += ["warmup_steps", "replay_capacity", "eval_every", "eval_episodes", "gin_files", "gin_bindings"]
NAMES = ["Learner.batch_size", "DQN.n_step", "Replay.capacity", "Experiment.num_envs", "HLGauss.num_bins", "X", ""]
NAMES += [
    "HLGauss.v_min",
    "HLGauss.sigma_ratio",
    "adam.learning_rate",
    "Experiment.replay_ratio",
    "Atari.sticky",
    "A.b",
    *("Learner.optimizer", "QNetwork.torso", "KERNEL_INIT", "NOISE", "Gymnasium.stack", "DQN.max_abs_reward"),
    *("Dataset.paths", "DQN.target", "MLP.features", "Experiment.head", "adam.eps", "MLP.dtype", "DQN.double"),
]
BINDINGS = st.tuples(st.sampled_from(NAMES), VALUES).map(lambda pair: f"--gin_bindings={pair[0]} = {pair[1]}")
FLAG = st.tuples(st.sampled_from(FLAGS), VALUES).map(lambda pair: f"--{pair[0]}={pair[1]}")


def refused_or_accepted(call, *args):
    """Calls; any error but ours is a mistake of this project."""
    try:
        call(*args)
    except OURS as error:
        assert error.code == 2 if isinstance(error, SystemExit) else str(error).strip()


@SETTINGS
@hypothesis.given(flags=st.lists(st.one_of(FLAG, BINDINGS, VALUES), max_size=4))
@hypothesis.example(flags=["--game=Pong", "--steps=-1"])
@hypothesis.example(flags=["--game=Pong", "--gin_bindings=HLGauss.num_bins = 1"])
@hypothesis.example(flags=["--env=CartPole-v1", "--num_envs=-3"])
@hypothesis.example(flags=["--env=CartPole-v1", "--gin_bindings=MLP.features = (256, 256"])
@hypothesis.example(flags=["--env=CartPole-v1", "--run_dir=\udcff"])
def test_flags(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    refused_or_accepted(lambda: jobs(parse_args([f"--base_dir={folder}", *flags])))
    assert not list(folder.iterdir())


# Values that pass for what they are bound to, of which nothing can be trained.
UNUSABLE = [
    *("adam.learning_rate = @optax.adam", "adam.learning_rate = None", "adam.b1 = None", "adam.eps = 'x'"),
    *("Learner.optimizer = None", "Learner.optimizer = @optax.adam", "Experiment.head = None"),
    *("QNetwork.torso = None", "QNetwork.kernel_init = None", "KERNEL_INIT = @optax.adam()", "KERNEL_INIT = 1"),
    *("MLP.dtype = 'x'", "xavier_uniform.in_axis = 5", "Gymnasium.stack = 0", "Gymnasium.stack = -1"),
    *("Gymnasium.kwargs = {'render_mode': []}", "MLP.features = (-1,)", "MLP.features = 'ab'"),
    *("DQN.double = b'x'", "DQN.max_abs_reward = -1.0", "HLGauss.v_max = 1e308", "HLGauss.num_bins = 10000000000"),
    *("Experiment.reseed_every_steps = 123456789012345678901234567890", "adam.learning_rate = 1e400"),
]


USABLE = ["--env=CartPole-v1", "--num_envs=4", "--steps=500", "--warmup_steps=100", "--replay_capacity=500"]


def test_without_them_there_is_something_to_train():
    assert train.build(load(parse_args(USABLE)).experiment, own_code=False)


@pytest.mark.parametrize("binding", UNUSABLE)
def test_values_of_which_nothing_can_be_trained_leave_nothing(binding, tmp_path):
    with pytest.raises(ConfigError) as error:
        train.main([*USABLE, f"--run_dir={tmp_path / 'run'}", f"--gin_bindings={binding}"])
    assert "\n" not in str(error.value) or "Classes in use" in str(error.value)
    assert not (tmp_path / "run").exists()


def mutated(text, edits):
    """Cuts, doubles or replaces pieces of text or bytes."""
    for place, kind, piece in edits:
        at = int(place * len(text))
        new = {"cut": piece[:0], "insert": piece, "double": text[at : at + 30] * 2}[kind]
        text = text[:at] + new + text[at + len(piece) :]
    return text


def edits_with(pieces):
    kinds = st.sampled_from(["cut", "insert", "double"])
    return st.lists(st.tuples(st.floats(0, 1), kinds, pieces), min_size=1, max_size=3)


SHIPPED = sorted(config.CONFIGS.rglob("*.gin"))


@SETTINGS
@hypothesis.given(number=st.integers(0, len(SHIPPED) - 1), edits=edits_with(TEXT.filter(bool)))
def test_gin_files(number, edits, tmp_path_factory):
    """Shipped ones, damaged."""
    path = tmp_path_factory.mktemp("gin") / "own.gin"
    path.write_text(mutated(SHIPPED[number].read_text(), edits))
    if SHIPPED[number].parent.name == "sweeps":
        flags = ["--dry_run", f"--base_dir={path.parent}", "--games=Pong", "--seeds=1"]
        refused_or_accepted(sweep.main, [str(path), *flags])
    else:
        refused_or_accepted(load, parse_args(["--env=CartPole-v1", f"--gin_files={path}"]))
    assert list(path.parent.iterdir()) == [path]


CHECKPOINTS = "--gin_bindings=Experiment.checkpoint_every_steps = 200"


@pytest.fixture(scope="module")
def finished(once):
    def make(folder):
        assert train.main([*catch(folder / "Catch/dqn-mse-fast/seed0", "mse", 400), CHECKPOINTS]) == 0

    return once("finished", make) / "Catch/dqn-mse-fast/seed0"


@pytest.fixture(scope="module")
def longer(finished, tmp_path_factory):
    """The same run, intact, gone on with."""
    run_dir = shutil.copytree(finished, tmp_path_factory.mktemp("longer") / "run")
    assert train.main([*catch(run_dir, "mse", 500), CHECKPOINTS]) == 0
    return run_dir


FILES = ["config.gin", "manifest.json", "metrics.jsonl"]
FILES += ["checkpoints/400/manifest.json", "checkpoints/400/state.safetensors"]
FILES += ["replay/000000000000.json", "replay/000000000000/zarr.json", "replay/000000000000/r_t/zarr.json"]
BYTES = edits_with(st.binary(min_size=1, max_size=6))


def damage(finished, folder, name, edits):
    run_dir = shutil.copytree(finished, folder / "Catch/dqn-mse-fast/seed0")
    path = run_dir / name
    path.write_bytes(mutated(path.read_bytes(), edits))
    return run_dir


@hypothesis.settings(SETTINGS, max_examples=12)
@hypothesis.given(name=st.sampled_from(FILES), edits=BYTES)
def test_run_directories(name, edits, finished, longer, tmp_path_factory):
    """Damaged ones, as every script reads them."""
    run_dir = damage(finished, tmp_path_factory.mktemp("damaged"), name, edits)
    refused_or_accepted(policy.load, run_dir, ["catch"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            assert train.main([*catch(run_dir, "mse", 500), CHECKPOINTS]) == 0
        except OURS as error:
            assert str(error).strip()
            return
    if name.startswith(("checkpoints", "replay")):  # nothing wrong goes on silently
        unchanged = mutated((finished / name).read_bytes(), edits) == (finished / name).read_bytes()
        assert unchanged or "damaged" in said.getvalue()
        assert_same_arrays(longer, run_dir)


@hypothesis.settings(SETTINGS, max_examples=10)
@hypothesis.given(name=st.sampled_from(FILES[1:3]), edits=BYTES)
def test_compare_reads_damaged_runs(name, edits, finished, tmp_path_factory, undrawn):
    folder = tmp_path_factory.mktemp("damaged")
    damage(finished, folder, name, edits)
    refused_or_accepted(compare.main, [str(folder), f"--output={folder / 'out'}"])


OTHERS = ["--seeds=1,99999999999999", "--watch=nan", "--resamples=100000000", "--episodes=0", "--json=/tmp", "--only=x"]
OTHERS += ["--repeats=0", "--seconds=nan", "--against=serial", "--output=", "--games=", "--steps=x", "--checkpoints=x"]


@pytest.mark.parametrize("script", [evaluate, compare, sweep, convert, plot])
@SETTINGS
@hypothesis.given(flags=st.lists(st.one_of(VALUES, st.sampled_from(OTHERS)), min_size=1, max_size=3))
def test_other_scripts(script, flags):
    hypothesis.assume(not any(Path(flag).exists() for flag in flags))
    refused_or_accepted(script.main, flags)


@SETTINGS
@hypothesis.given(flags=st.lists(st.one_of(VALUES, st.sampled_from(OTHERS)), min_size=1, max_size=3))
def test_benchmarks_flags(flags):
    refused_or_accepted(benchmark.parse_args, flags)


# Files of others, as every script reads them

GRIDS = ["seeds = 1000000000000", "seeds = @grid.Grid", "gin_files = None", "bindings = None", "agents = ['']"]
GRIDS += [
    "games = 5",
    "axes = {'A': 1}",
    "axes = {'HLGauss.num_bins': [" + "1, " * 60_000 + "], 'A': [1, 2]}",
    "heads = [((",
]


@pytest.mark.parametrize("line", GRIDS, ids=lambda line: line[:30])
def test_grids(line, tmp_path):
    own = tmp_path / "own.gin"
    own.write_text(
        "from __gin__ import dynamic_registration\nfrom sweeping import grid\ngrid.Sweep.grids = [@grid.Grid()]\n"
        + ("" if line.startswith("games") else "grid.Grid.games = ['Pong']\n")
        + f"grid.Grid.{line}\n"
    )
    with pytest.raises((ConfigError, SystemExit)) as error:
        sweep.main([str(own), "--dry_run", f"--base_dir={tmp_path / 'runs'}"])
    assert "In call to configurable" not in str(error.value)


STRANGE = ["[]", "1", "null", '"x"', "{}", "[" * 100_000, '{"settings": {}, "num_envs": 1e400}', "\x00"]


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: text[:20])
@pytest.mark.parametrize("name", ["manifest.json", "checkpoints/400/manifest.json"])
def test_strange_manifests(name, text, finished, tmp_path, undrawn, capsys):
    """The older checkpoint is used where the newest is damaged; nothing else goes on."""
    run_dir = shutil.copytree(finished, tmp_path / "Catch/dqn-mse-fast/seed0")
    (run_dir / name).write_text(text)
    refused_or_accepted(policy.load, run_dir, ["catch"])
    refused_or_accepted(plot.main, [str(run_dir), f"--output={tmp_path / 'x.png'}"])
    refused_or_accepted(compare.main, [str(tmp_path), f"--output={tmp_path / 'out'}"])
    flags = [*catch(run_dir, "mse", 500), CHECKPOINTS]
    if name == "manifest.json":
        with pytest.raises(ConfigError, match=r"manifest\.json is damaged"):
            train.main(flags)
    else:
        assert train.main(flags) == 0
        assert f"WARNING: the checkpoint {run_dir / 'checkpoints/400'} is damaged" in capsys.readouterr().out


ROWS = [
    '{"frames": 1e15, "episode/return": 1}',
    '{"frames": 5, "episode/return": 1e308}',
    "5",
    "{x}",
    "\udcff",
    "[" * 9999,
]
ROWS += ['{"frames": "x", "episode/return": 1}', '{"frames": 1e308, "episode/return": 1}', '{"episode/return": null}']
ROWS += ['{"agent_steps": "x", "speed/steps_per_second": [1]}']


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[:40].encode(errors="replace").decode())
def test_strange_metrics(row, finished, tmp_path, request):
    """Whoever reads them leaves out what is no metric, or the run."""
    if "1e" not in row:  # nothing strange to draw
        request.getfixturevalue("undrawn")
    run_dir = shutil.copytree(finished, tmp_path / "Catch/dqn-mse-fast/seed0")
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + row.encode(errors="surrogateescape") + b"\n")
    refused_or_accepted(plot.main, [str(run_dir), f"--output={tmp_path / 'x.png'}"])
    refused_or_accepted(compare.main, [str(tmp_path), f"--output={tmp_path / 'out'}"])
    flags = ["configs/sweeps/quick.gin", "--dry_run", "--games=Pong", f"--base_dir={tmp_path}"]
    assert sweep.main(flags) == 0


def test_links_out_of_a_run_directory_are_refused(finished, tmp_path):
    """By which one from elsewhere could have files overwritten or removed."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "2023-photos").mkdir()
    (precious / "file").write_text("mine")
    for name in ("manifest.json.partial", ".lock", "metrics.jsonl", "replay", "checkpoints/500.partial"):
        run_dir = shutil.copytree(finished, tmp_path / "run")
        path = run_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(precious if name == "replay" else precious / "file")
        with pytest.raises((ConfigError, OSError), match=r"is a link|No checkpoint .* is intact"):
            train.main([*catch(run_dir, "mse", 500), CHECKPOINTS])
        assert (precious / "file").read_text() == "mine" and (precious / "2023-photos").is_dir()
        shutil.rmtree(run_dir)


def test_a_run_that_cannot_go_on_is_not_touched(finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    for path in run_dir.glob("checkpoints/*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    contents = lambda: {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    before = contents()
    with pytest.raises(OSError, match=r"No checkpoint .* is intact.*nothing in it has been changed"):
        train.main([*catch(run_dir, "mse", 500), CHECKPOINTS])
    assert contents() == before
