"""Data sets hold exactly the transitions that were played, and refuse what cannot be learned from."""

import dataclasses
import gzip
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import catch

from agents import dataset, recording
from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import newest
from agents.checkpointing.checkpointer import Checkpointer
from agents.dqn import DQN
from agents.environments import Atari, Gymnasium
from agents.errors import ConfigError
from replay import dqn_replay
from replay.files import DamagedError
from replay.ring import Replay, ReplayState, TimeStep
from scripts import convert, train

CATCH = Gymnasium("catch:Catch-v0")
STATES = np.zeros((1, 1, 6, 5), np.uint8)
PLAIN = DQN(discount=0.9, max_abs_reward=None)


@pytest.fixture(scope="module")
def run(once):
    """A run of four games that logged all of its 1,200 steps, in several segments."""

    def make(folder):
        flags = ["--log_replay", "--gin_bindings=Experiment.checkpoint_every_steps = 500", "--replay_capacity=800"]
        assert train.main([*catch(folder / "Catch-v0/dqn/seed0", "mse", 1200), *flags]) == 0

    return once("logged", make) / "Catch-v0/dqn/seed0"


def opened(run_dir, agent=PLAIN, **settings):
    return dataset.Dataset([str(run_dir)], **settings).open(CATCH, STATES, 3, agent)


def lying(data):
    """All rows, and one behind them, as they lie in memory."""
    pieces = [steps for _, steps in data.pieces(1)]
    return TimeStep(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def naive_episodes(run_dir):
    """All whole episodes by a slow walk through the log: lists of (observation, action, reward, terminated)."""
    log = newest(run_dir).log
    pieces = [piece for _, piece in log.pieces(log.first_row, log.end)]
    rows = TimeStep(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))
    episodes = []
    for game in range(rows.first.shape[1]):
        episode = None
        for t in range(len(rows.first)):
            if rows.first[t, game]:
                if episode:
                    episodes.append((*episode, int(rows.action_tm1[t, game])))
                episode = ([], game, t)
            episode[0].append(
                (rows.observation[t, game], rows.action_tm1[t, game], rows.r_t[t, game], rows.terminated[t, game])
            )
        if episode[0][-1][3]:
            episodes.append((*episode, 0))
    return episodes


def key(s_tm1, a_tm1, r_t, discount_t, s_t, a_t):
    return (s_tm1.tobytes(), int(a_tm1), round(float(r_t), 5), round(float(discount_t), 5), s_t.tobytes(), int(a_t))


def naive_transitions(episodes):
    found = []
    for steps, *_, after in episodes:
        for t in range(len(steps) - 1):
            (s_tm1, *_), (s_t, a_tm1, r_t, terminated) = steps[t : t + 2]
            a_t = steps[t + 2][1] if t + 2 < len(steps) else after
            found.append(key(s_tm1, a_tm1, r_t, 0.0 if terminated else 0.9, s_t, a_t))
    return sorted(found)


def transitions(steps, size, rows=None):
    """Everything that a ring with these rows can give."""
    steps = jax.tree.map(jnp.asarray, steps)
    state = ReplayState(steps, jnp.int32(size), jnp.int32(size), ())
    begins = np.flatnonzero(~np.roll(np.asarray(steps.first[:, 0]), -1)[: size - 2 + 1])
    begins = begins if rows is None else begins[begins < rows]
    zeros = np.zeros(len(begins), np.int32)
    batch = jax.device_get(Replay(8).gather(state, begins, zeros, zeros + 1.0, discount=0.9))
    return sorted(key(*(array[i] for array in batch[:6])) for i in range(len(begins)))


def test_what_lies_in_memory_is_every_transition_that_was_played(run):
    data = opened(run)
    steps = lying(data)
    assert transitions(steps, data.rows + 1) == naive_transitions(naive_episodes(run))
    description = data.description()
    assert description["transitions"] == len(naive_transitions(naive_episodes(run)))
    assert description["recordings"] == {str(run): len(naive_episodes(run))}
    returns = [sum(step[2] for step in steps[1:]) for steps, *_ in naive_episodes(run)]
    assert data.behaviour_return == pytest.approx(np.mean(returns))


def test_the_replay_draws_all_of_it(run):
    """Also the first transition and the last one."""
    data = opened(run, fraction=0.05)
    steps = jax.tree.map(jnp.asarray, lying(data))
    state = ReplayState(steps, jnp.int32(data.rows + 1), jnp.int32(data.rows + 1), ())
    _, index = Replay(data.rows + 1).sample(state, jax.random.key(0), 20_000)
    expected = np.flatnonzero(~np.asarray(steps.first[1:, 0]))
    assert sorted(set(index.tolist())) == expected.tolist() and expected[-1] == data.rows - 2


def test_a_stream_brings_every_episode_once_per_pass_in_new_order(run):
    data = opened(run)
    passes = []
    for number in range(2):
        start = number * data.rows
        cuts = [start, start + 7, start + 150, start + data.rows]
        parts = [data.streamed(*cut) for cut in zip(cuts[:-1], cuts[1:], strict=True)]
        passes.append(TimeStep(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))
    whole = data.streamed(0, 2 * data.rows)
    for name, array in whole._asdict().items():
        both = np.concatenate([getattr(steps, name) for steps in passes])
        np.testing.assert_array_equal(array, both, err_msg=name)
    assert not np.array_equal(passes[0].observation, passes[1].observation)
    expected = naive_transitions(naive_episodes(run))
    many = transitions(whole, 2 * data.rows, data.rows - 1)  # the first pass, behind which comes another
    assert many == expected
    again = opened(run).streamed(data.rows - 5, data.rows + 9)
    np.testing.assert_array_equal(again.action_tm1, whole.action_tm1[data.rows - 5 : data.rows + 9])


def test_reading_ahead_changes_nothing(run):
    data = opened(run)
    ahead = [data.streamed(row, row + 40) for row in range(0, 200, 40)]
    for row, steps in zip(range(0, 200, 40), ahead, strict=True):
        np.testing.assert_array_equal(opened(run).streamed(row, row + 40).observation, steps.observation)


def test_a_fraction_of_the_episodes(run):
    episodes = sorted(naive_episodes(run), key=lambda episode: episode[2])
    first = opened(run, fraction=0.25, choose="first")
    assert transitions(lying(first), first.rows + 1) == naive_transitions(episodes[: round(len(episodes) / 4)])
    random, other = opened(run, fraction=0.25), opened(run, fraction=0.25, seed=1)
    assert random.number == first.number == round(len(episodes) / 4)
    chosen = transitions(lying(random), random.rows + 1)
    assert chosen == transitions(lying(opened(run, fraction=0.25)), random.rows + 1)
    assert chosen != transitions(lying(other), other.rows + 1) and random.digest == other.digest  # of the same logs
    assert [opened(run, fraction=(10 + part) / len(episodes)).number for part in (-0.4, 0.0, 0.4)] == [10, 10, 10]


def test_rewards_are_clipped_then_noisy(run):
    agent = dataclasses.replace(PLAIN, max_abs_reward=0.5)
    plain, noisy = lying(opened(run, agent)).r_t, lying(opened(run, agent, reward_noise=0.3))
    steps = ~noisy.first
    assert set(np.unique(plain)) == {-0.5, 0.0, 0.5}
    assert noisy.r_t.max() > 0.5  # not clipped again
    noise = (noisy.r_t - plain)[steps]
    assert 0 <= noise.min() < 0.01 and 0.29 < noise.max() <= 0.3 and len(np.unique(noise)) > 0.9 * len(noise)
    np.testing.assert_array_equal(noisy.r_t, lying(opened(run, agent, reward_noise=0.3)).r_t)  # drawn once
    assert opened(run, agent).behaviour_return == opened(run).behaviour_return  # of raw rewards


def test_monte_carlo_rewards_are_returns(run):
    plain = lying(opened(run))
    returns = lying(opened(run, dataclasses.replace(PLAIN, target="monte_carlo"))).r_t[:, 0]
    starts = np.flatnonzero(plain.first[:, 0])
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        rewards = plain.r_t[start + 1 : stop, 0]
        expected = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
        np.testing.assert_allclose(returns[start + 1 : stop], expected, rtol=1e-6)


def test_an_episode_of_no_step_is_none(tmp_path):
    """Games that cannot be brought to where they were begin new episodes."""
    path = write_log(tmp_path / "log", [step(True), step(True), step(reward=2.0, terminated=True)])
    one = opened(path)
    assert (one.number, one.rows, one.behaviour_return) == (1, 2, 2.0)


def write_log(path, steps, environment=CATCH):
    """A log with these steps of one game, whatever they are."""
    checkpointer = Checkpointer(path, keep_replay=True)
    for step in steps:
        checkpointer.append(step)
    checkpointer.save(len(steps), {}, {}, 0)
    checkpointer.close()
    protocol = {"environment": type(environment).__name__, **dataclasses.asdict(environment)}
    (path / "manifest.json").write_text(json.dumps({"protocol": protocol}))
    return path


def step(first=False, action=0, reward=0.0, terminated=False, shape=(6, 5), dtype=np.uint8):
    one = lambda value, dtype: np.array([value], dtype)
    flags = one(terminated, bool), one(first, bool)
    return TimeStep(one(action, np.int32), one(reward, np.float32), *flags, np.zeros((1, *shape), dtype))


EPISODE = [step(first=True), step(), step(terminated=True)]
PONG = Atari("Pong")


@pytest.mark.parametrize(
    "steps, environment, message",
    [
        ([], CATCH, "holds no replay log"),
        ([step(first=True), step()], CATCH, "no episode is whole"),
        ([step(), step(terminated=True)], CATCH, "no episode is whole"),
        ([step(first=True), step(action=3), step(terminated=True)], CATCH, "actions from 0 to 3; there are 3"),
        ([step(first=True), step(action=-1), step(terminated=True)], CATCH, "actions from -1 to 0; there are 3"),
        ([step(first=True), step(reward=np.nan), step(terminated=True)], CATCH, "rewards that are not finite"),
        ([step(shape=(6, 6))], CATCH, r"holds observations uint8\[6, 6\], not uint8\[6, 5\]"),
        ([step(dtype=np.float32)], CATCH, r"holds observations float32\[6, 5\]"),
        (EPISODE, Gymnasium("CartPole-v1"), "no log is of Catch-v0; there are CartPole-v1"),
        (EPISODE, PONG, "no log is of Catch-v0; there are Pong"),
    ],
)
def test_bad_data_is_named(steps, environment, message, tmp_path):
    path = write_log(tmp_path / "log", steps, environment)
    with pytest.raises(ConfigError, match=message):
        opened(path)


def test_keywords_that_json_changes_are_the_same(tmp_path):
    environment = Gymnasium("catch:Catch-v0", kwargs={"size": (5, 5)})
    path = write_log(tmp_path / "log", EPISODE, environment)
    assert dataset.Dataset([str(path)]).open(environment, STATES, 3, PLAIN).number == 1


@pytest.mark.parametrize(
    "game, changes, message",
    [
        ("Breakout", {}, "is of Pong with the actions NOOP, FIRE, RIGHT.*Breakout has NOOP, FIRE, RIGHT, LEFT"),
        ("Pong", {"frame_skip": 5}, "recorded with frame_skip 4, not 5"),
        ("Pong", {"full_action_space": True}, "is of Pong with the actions"),
    ],
)
def test_another_games_actions_are_refused(game, changes, message, tmp_path):
    write_log(tmp_path / "log", [step(shape=(84, 84)) for step_ in EPISODE], PONG)
    environment = Atari(game, **changes)
    if game != "Pong":
        with pytest.raises(ConfigError, match="no log is of Breakout; there are Pong"):
            dataset.Dataset([str(tmp_path)]).open(environment, np.zeros((1, 4, 84, 84), np.uint8), 4, DQN())
        write_log(tmp_path / "other", [step(shape=(84, 84)) for step_ in EPISODE], environment)
    with pytest.raises(ConfigError, match=message):
        dataset.Dataset([str(tmp_path)]).open(environment, np.zeros((1, 4, 84, 84), np.uint8), 4, DQN())


def test_games_of_the_same_actions_mix(tmp_path):
    """The behaviour return is that of the game that is learned."""
    for game, reward in (("Pong", 1.0), ("Breakout", 3.0)):
        episode = [step(True, shape=(84, 84)), step(False, 0, reward, True, shape=(84, 84))]
        write_log(tmp_path / game, episode * 2, Atari(game, full_action_space=True))
    environment = Atari("Breakout", full_action_space=True)
    data = dataset.Dataset([str(tmp_path)]).open(environment, np.zeros((1, 4, 84, 84), np.uint8), 18, DQN())
    assert (data.number, data.behaviour_return) == (4, 3.0)


def test_damaged_and_missing_logs_are_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    [victim, *_] = sorted(copy.glob("replay/*/r_t/c/*/*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="is not what was written there"):
        opened(copy)
    shutil.rmtree(copy)
    manifest = max(shutil.copytree(run, copy).glob("checkpoints/*"), key=lambda path: int(path.name)) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows"', '"row"'))  # the one before has less of the log
    with pytest.raises(DamagedError, match="manifest.json is missing or damaged"):
        opened(copy)
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        opened(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no replay log.*--log_replay"):
        opened(tmp_path / "empty")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        opened(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json cannot be read"):
        opened(copy)


def test_parents_of_logs_are_searched(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    found = recording.find([str(run.parents[1]), str(tmp_path), str(run)])
    assert [path.resolve() for path in found] == [run.resolve()]


# The DQN Replay Dataset


def write_dqn_replay(folder, rows, number=0, added=None, **changes):
    """Rows are (observation, action, reward, terminal), in the order in which they lie in the files."""
    folder.mkdir(exist_ok=True)
    arrays = {
        "$store$_observation": np.array([np.full((4, 4), row[0]) for row in rows], np.uint8),
        "$store$_action": np.array([row[1] for row in rows], np.int32),
        "$store$_reward": np.array([row[2] for row in rows], np.float32),
        "$store$_terminal": np.array([row[3] for row in rows], np.uint8),
        "add_count": np.array(len(rows) if added is None else added),
    }
    for name, array in (arrays | changes).items():
        with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb") as file:
            np.save(file, array)
    return folder


ZEROS = [(0, 0, 0.0, 0)] * 3  # Dopamine pads stacks with these before every episode
PLAYED = [*ZEROS, (1, 2, 0.5, 0), (2, 3, 1.0, 1), *ZEROS, (3, 0, 0.0, 0), (0, 0, 0.0, 0), (5, 1, -1.0, 1)]
# first, action that led here, reward, terminated, observation
EXPECTED = [(1, 0, 0, 0, 1), (0, 2, 0.5, 0, 2), (0, 3, 1, 1, 0)]
EXPECTED += [(1, 0, 0, 0, 3), (0, 0, 0, 0, 0), (0, 0, 0, 0, 5), (0, 1, -1, 1, 0)]


def rows_of(steps):
    return [
        (s.first[0], s.action_tm1[0], s.r_t[0], s.terminated[0], int(np.unique(s.observation).item())) for s in steps
    ]


def test_dqn_replay_is_read(tmp_path):
    folder = write_dqn_replay(tmp_path / "logs", PLAYED)
    assert dqn_replay.checkpoints(folder) == [0]
    assert rows_of(dqn_replay.read(folder, 0)) == EXPECTED
    # A ring that has gone round may begin in the midst of an episode, here with a black screen in it.
    begun = [(7, 1, 0.0, 0), (0, 0, 0.0, 0), (8, 0, 0.0, 0), (8, 0, 0.0, 1), *PLAYED]
    write_dqn_replay(folder, begun, 3, added=2 * len(begun))
    assert rows_of(dqn_replay.read(folder, 3)) == EXPECTED
    turned = PLAYED[-4:] + PLAYED[:-4]  # a ring that has gone round begins at its cursor
    write_dqn_replay(folder, turned, 1, added=len(turned) + 4)
    assert rows_of(dqn_replay.read(folder, 1)) == EXPECTED
    write_dqn_replay(folder, begun + [(9, 0, 0, 0)] * 5, 2, added=len(begun))  # a run's last file, not full
    assert rows_of(dqn_replay.read(folder, 2)) == EXPECTED


def test_dqn_replay_becomes_a_data_set(tmp_path, capsys):
    """By the command; what came of it is learned from as any log."""
    big = lambda rows: np.array([np.full((84, 84), row[0]) for row in rows], np.uint8)
    folder = write_dqn_replay(tmp_path / "logs", PLAYED, **{"$store$_observation": big(PLAYED)})
    write_dqn_replay(folder, PLAYED * 2, 7, **{"$store$_observation": big(PLAYED * 2)})
    write_dqn_replay(folder, PLAYED, 8, added=0, **{"$store$_observation": big(PLAYED)})  # a last file of no rows
    write_dqn_replay(folder, PLAYED[4:8], 9, **{"$store$_observation": big(PLAYED[4:8])})  # the end of an episode
    write_dqn_replay(folder, PLAYED[:4], 10, **{"$store$_observation": big(PLAYED[:4])})  # the beginning of one
    assert convert.main([str(folder), "--game=Pong", f"--output={tmp_path / 'Pong'}"]) == 0
    said = capsys.readouterr().out
    assert all(f"checkpoint {number}, which is left out" in said for number in (8, 9, 10))
    assert sorted(path.name for path in (tmp_path / "Pong").iterdir()) == ["ckpt_0", "ckpt_7"]
    with pytest.raises(ConfigError, match="ckpt_0 is of Pong. Choose another --output for Breakout"):
        convert.main([str(folder), "--game=Breakout", f"--output={tmp_path / 'Pong'}"])
    with pytest.raises(ConfigError, match="No episode is whole in these checkpoints"):
        convert.main([str(folder), "--game=Pong", f"--output={tmp_path / 'none'}", "--checkpoints", "8", "9"])
    assert not (tmp_path / "none").exists()
    again = [f"--output={tmp_path / 'Pong'}", "--game=Pong", "--checkpoints", "0"]
    assert convert.main([str(folder), *again]) == 0
    assert "ckpt_0 is there already" in capsys.readouterr().out
    other = shutil.copytree(folder, tmp_path / "another_run")
    with pytest.raises(ConfigError, match="logs, checkpoint 0, not of .*another_run, checkpoint 0. Choose another"):
        convert.main([str(other), *again])
    paths = [str(tmp_path / "Pong")]
    data = dataset.Dataset(paths).open(PONG, np.zeros((1, 4, 84, 84), np.uint8), 6, DQN())
    assert (data.number, data.rows) == (6, 3 * len(EXPECTED))
    assert data.behaviour_return is None  # those rewards had been clipped
    first = dataset.Dataset(paths, fraction=0.5, choose="first").open(
        PONG, np.zeros((1, 4, 84, 84), np.uint8), 6, DQN()
    )
    assert first.number == 3


def test_two_conversions_to_one_folder_do_not_mix(tmp_path):
    """The second is refused; what was interrupted is begun anew."""
    folder = write_dqn_replay(tmp_path / "logs", PLAYED)
    screen = {"$store$_observation": np.ones((len(PLAYED), 84, 84), np.uint8)}
    write_dqn_replay(folder, PLAYED, **screen)
    flags = [str(folder), "--game=Pong", f"--output={tmp_path / 'Pong'}"]
    partial = tmp_path / "Pong/ckpt_0.partial"
    with run_directory.lock(partial), pytest.raises(ConfigError, match=r"Another process writes to .*ckpt_0\.partial"):
        convert.main(flags)
    (partial / "replay/000000000000").mkdir(parents=True)
    assert convert.main(flags) == 0
    assert [path.name for path in (tmp_path / "Pong").iterdir()] == ["ckpt_0"]
    assert recording.Recording(tmp_path / "Pong/ckpt_0").rows.first.shape == (len(EXPECTED), 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"$store$_reward": np.zeros(3)}, "different lengths"),
        ({"$store$_observation": np.zeros((3, 84, 84), np.uint8)}, "instead of 11 observations of bytes"),
        ({"$store$_observation": np.zeros((11, 84, 84), np.float32)}, "instead of 11 observations of bytes"),
        ({"$store$_observation": np.zeros((11, 4, 4), np.uint8)}, r"holds observations \[4, 4\], not \[84, 84\]"),
        ({"$store$_action": np.full(11, 77)}, "holds actions from 77 to 77; the game has 6"),
        ({"$store$_action": np.full(11, -1)}, "holds actions from -1 to -1"),
        ({"$store$_action": np.full(11, np.nan)}, "hold something else"),
        ({"$store$_reward": np.full(11, np.nan)}, "rewards that are not finite"),
        ({"$store$_action": np.array([{}] * 11)}, "an array of another kind"),  # a pickle
        ({"add_count": np.array(-1)}, "hold nothing"),
        ({"add_count": np.array([1, 2])}, "hold something else"),
        ({"add_count": np.array(np.nan)}, "hold something else"),
    ],
)
def test_damaged_dqn_replay_is_refused_and_leaves_nothing(changes, message, tmp_path):
    whole = {"$store$_observation": np.ones((11, 84, 84), np.uint8)}
    folder = write_dqn_replay(tmp_path / "logs", PLAYED, **whole | changes)
    with pytest.raises(DamagedError, match=message):
        convert.main([str(folder), "--game=Pong", f"--output={tmp_path / 'Pong'}"])
    assert not (tmp_path / "Pong").exists()


def test_dqn_replay_files_that_are_cut_or_missing(tmp_path):
    folder = write_dqn_replay(tmp_path / "logs", PLAYED)
    victim = folder / "$store$_observation_ckpt.0.gz"
    victim.write_bytes(victim.read_bytes()[:-12])
    with pytest.raises(DamagedError, match="observation_ckpt.0.gz is missing or damaged"):
        list(dqn_replay.read(folder, 0))
    write_dqn_replay(folder, PLAYED)
    flipped = bytearray(victim.read_bytes())
    flipped[-5] ^= 1  # of the sum at the end
    victim.write_bytes(flipped)
    with pytest.raises(DamagedError, match="observation_ckpt.0.gz is missing or damaged"):
        list(dqn_replay.read(folder, 0))
    (folder / "$store$_reward_ckpt.0.gz").unlink()
    with pytest.raises(DamagedError, match="reward_ckpt.0.gz is missing or damaged"):
        list(dqn_replay.read(folder, 0))
    with pytest.raises(ConfigError, match=r"lacks \[3\]; it has 0 to 0"):
        convert.main([str(folder), "--game=Pong", f"--output={tmp_path}", "--checkpoints", "3"])
    with pytest.raises(ConfigError, match="Unknown game 'pong'"):
        convert.main([str(folder), "--game=pong", f"--output={tmp_path}"])
    with pytest.raises(ConfigError, match="holds no file like"):
        convert.main([str(tmp_path), "--game=Pong", f"--output={tmp_path}"])
