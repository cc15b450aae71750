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

from agents import config, policy
from scripts import compare, evaluate, sweep, train

# Errors that `launch.run` shows as one line; argparse exits by itself.
OURS = (config.ConfigError, OSError, MemoryError, SystemExit)
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
    st.sampled_from(["Pong", "dqn", "hl_gauss", "quick", "mlp", "CartPole-v1", "data=2", "a=b"]),
    TEXT,
)
FLAGS = ["agent", "head", "preset", "torso", "game", "env", "seed", "seeds", "steps", "frames", "num_envs", "mesh"]
FLAGS += ["warmup_steps", "replay_capacity", "eval_every", "eval_episodes", "gin_files", "gin_bindings"]
NAMES = ["Learner.batch_size", "DQN.n_step", "Replay.capacity", "Experiment.num_envs", "HLGauss.num_bins", "X", ""]
NAMES += [
    "HLGauss.v_min",
    "HLGauss.sigma_ratio",
    "adam.learning_rate",
    "Experiment.replay_ratio",
    "Atari.sticky",
    "A.b",
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
def test_flags(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    refused_or_accepted(lambda: train.jobs(train.parse_args([f"--base_dir={folder}", *flags])))
    assert not list(folder.iterdir())


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
        refused_or_accepted(train.load, train.parse_args(["--env=CartPole-v1", f"--gin_files={path}"]))
    assert list(path.parent.iterdir()) == [path]


CHECKPOINTS = "--gin_bindings=Experiment.checkpoint_every_steps = 200"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "Catch/dqn-mse-fast/seed0"
    assert train.main([*catch(run_dir, "mse", 400), CHECKPOINTS]) == 0
    return run_dir


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


@hypothesis.settings(SETTINGS, max_examples=20)
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


@hypothesis.settings(SETTINGS, max_examples=15)
@hypothesis.given(name=st.sampled_from(FILES[1:3]), edits=BYTES)
def test_compare_reads_damaged_runs(name, edits, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    damage(finished, folder, name, edits)
    refused_or_accepted(compare.main, [str(folder), f"--output={folder / 'out'}"])


@pytest.mark.parametrize("script", [evaluate, compare, sweep])
@SETTINGS
@hypothesis.given(flags=st.lists(VALUES, min_size=1, max_size=3))
def test_other_scripts(script, flags):
    hypothesis.assume(not any(Path(flag).exists() for flag in flags))
    refused_or_accepted(script.main, flags)
