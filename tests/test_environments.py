"""Environments and the actor, against Gymnasium's own wrappers and plain loops."""

import gymnasium
import jax
import numpy as np
import pytest

from agents import environments
from agents.actor import Actor
from agents.environments import Atari, Gymnasium
from agents.errors import ConfigError
from replay.ring import Replay

# Atari


@pytest.mark.parametrize(
    "game, settings, terminates",
    [
        ("Breakout", {}, True),
        ("Seaquest", {}, True),
        ("MsPacman", {"full_action_space": True}, True),
        ("Pong", {"max_episode_frames": 2000}, False),
        ("Freeway", {"max_episode_frames": 1001}, False),  # the limit falls inside a skip
    ],
)
def test_atari_is_gymnasiums_preprocessing_bit_for_bit(game, settings, terminates):
    specification = Atari(game, sticky=0.0, **settings)
    ours, theirs = specification.make(1), specification.make_single()
    assert ours.single_observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.action_space
    rng = np.random.default_rng(0)
    over, episodes = True, -1
    while episodes < 2:  # two full ones, and the reset after each
        action = int(rng.integers(theirs.action_space.n))
        if over:
            # The vector environment spends a step on the reset and ignores its action.
            expected = (theirs.reset(seed=7 if episodes < 0 else None)[0], 0, False, False)
            found = (ours.reset(seed=np.array([7]))[0], [0], [False], [False]) if episodes < 0 else step(ours, action)
            episodes += 1
        else:
            expected, found = theirs.step(action)[:4], step(ours, action)
        np.testing.assert_array_equal(found[0][0], expected[0])
        assert [x[0] for x in found[1:]] == list(expected[1:])
        terminated, truncated = expected[2:]
        over = terminated or truncated
        if over:
            assert (terminated, truncated) == (terminates, not terminates)
    ours.close()
    theirs.close()


def step(envs, *actions):
    envs.send(np.array(actions))
    return envs.recv()[:4]


def test_atari_rewards_are_raw():
    envs = Atari("MsPacman", sticky=0.0).make(1)
    envs.reset(seed=np.array([0]))
    assert {int(step(envs, 3)[1][0]) for _ in range(100)} == {0, 10}  # ten points a pellet
    envs.close()


def test_atari_is_determined_by_seeds_and_actions():
    def play(*seeds):
        envs = Atari("Breakout", sticky=0.25).make(2)
        envs.reset(seed=np.array(seeds))
        actions = np.random.default_rng(0).integers(4, size=60)
        frames = np.stack([step(envs, action, action)[0] for action in actions], axis=1)
        envs.close()
        return frames

    first = play(1, 2)
    np.testing.assert_array_equal(first, play(1, 2))
    assert np.any(first[0] != first[1])  # sticky actions differ by seed


def test_one_game_sticks_as_several_do():
    """What videos show is the game that was trained in."""
    env = Atari("Breakout", sticky=1.0).make_single()
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 1.0
    env.close()


def test_random_noops_at_the_start():
    envs = Atari("MsPacman", sticky=0.0, noop_max=30).make(8)
    observation, _ = envs.reset(seed=environments.seeds(8, 0))
    envs.close()
    assert len({one.tobytes() for one in observation}) > 2


def test_every_game_of_ale_has_its_camel_case_name():
    registered = {name.removeprefix("ALE/").removesuffix("-v5") for name in gymnasium.registry if name[:4] == "ALE/"}
    # Of ALE's 108 ROMs, four are games for two players only, which Gymnasium does not register.
    for_two = {"Combat", "Joust", "MazeCraze", "Warlords"}
    assert len(registered | for_two) == 108
    assert set(environments.ROMS) - for_two == registered


@pytest.mark.parametrize("game", ["Combat", "Joust", "MazeCraze", "Warlords"])
def test_games_for_two_players_are_refused(game):
    with pytest.raises(ValueError, match=game):
        Atari(game)


def test_unknown_games_get_a_hint():
    with pytest.raises(ValueError, match="Unknown game 'Pongg'. Did you mean Pong"):
        Atari("Pongg")
    with pytest.raises(ValueError, match="Did you mean MsPacman"):
        Atari("ms_pacman")
    for name in ("PongNoFrameskip-v4", "ALE/Pong-v5"):  # as others call it
        with pytest.raises(ValueError, match="Did you mean Pong"):
            Atari(name)
    with pytest.raises(ValueError, match="Unknown game '@'. Other .* by --env. All games: Adventure, AirRaid"):
        Atari("@")


@pytest.mark.parametrize("name", ["ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4", "MsPacman-v0"])
def test_atari_by_names_of_gymnasium_is_refused(name):
    with pytest.raises(ConfigError, match="another protocol here; use --game MsPacman"):
        Gymnasium(name)


@pytest.mark.filterwarnings("ignore:.*version:UserWarning", "ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", ["ALE/MsPacman", "ale_py:ALE/MsPacman-v5", "MsPacmanNoFrameskip"])
def test_atari_by_names_that_gymnasium_completes_is_refused(name):
    with pytest.raises(ConfigError, match="another protocol here; use --game MsPacman"):
        Gymnasium(name).make_single()


def test_seeds_are_unrelated():
    drawn = [environments.seeds(4, *entropy) for entropy in ((0,), (1,), (0, 1), (1, 1), (0, 0, 1))]
    assert len(set(np.concatenate(drawn).tolist())) == 20
    np.testing.assert_array_equal(drawn[2], environments.seeds(4, 0, 1))
    many = environments.seeds(1000, 3)
    assert many.dtype == np.int32 and np.all(many >= 0)


def test_seeds_tell_trailing_zeros_apart():
    # numpy pads entropy with zeros, so that (1,) and (1, 0) are one to it.
    assert set(environments.seeds(4, 1)).isdisjoint(environments.seeds(4, 1, 0))


# Gymnasium


@pytest.mark.parametrize("id", ["Pendulum-v1", "NoSuchGame-v0", "no_such_module:Game-v0", "FrozenLake-v1"])
def test_environments_that_cannot_be_trained_are_refused(id):
    with pytest.raises(ValueError, match=id):
        Gymnasium(id).make_single()


def test_minatar():
    pytest.importorskip("minatar")
    specification = Gymnasium("MinAtar/Breakout-v1", stack=2)
    assert specification.name == "MinAtar-Breakout-v1"
    envs = specification.make(2)
    observation, _ = envs.reset(seed=environments.seeds(2, 0))
    assert observation.shape == (2, 2, 10, 10, 4)
    observation, reward, terminated, truncated = step(envs, 0, 1)
    assert observation.shape == (2, 2, 10, 10, 4) and reward.shape == terminated.shape == truncated.shape == (2,)
    envs.close()


# The actor


class Sum(gymnasium.Env):
    """Ends when an episode's actions sum up to 4; its time limit is 3 steps. Action a at time t gives 10 a + t."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(5)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.zeros(2, np.float32)
        return self.state, {}

    def step(self, action):
        self.state = self.state + np.array([action, 1], np.float32)
        total, t = self.state.tolist()
        return self.state, 10.0 * action + t, total >= 4, t >= 3 and total < 4, {}


gymnasium.register("Sum-v0", Sum)


class Bare(Sum):
    """An environment that nobody can watch: `gymnasium.make` takes it, though it knows no render mode."""

    def __init__(self):
        super().__init__()


gymnasium.register("Bare-v0", Bare)


def test_environments_without_rendering_can_be_trained():
    assert Gymnasium("Bare-v0").make_single().action_space.n == 5


def act(params, observation, key, epsilon):
    """Actions that differ between games and steps."""
    del key, epsilon
    return (params + observation[:, -1, 1]).astype("int32")


# 0, 1, 2 meets the time limit; 2, 3 sums up to 5; 4 ends its episode at once.
PARAMS = np.array([0.0, 2.0, 4.0], np.float32)


def plain_loop(game, num_rows):
    """Rows (action, reward, terminated, first, observation) and episodes (row, return, length) of one game."""
    env = gymnasium.make("Sum-v0")
    rows, episodes, over = [], [], True
    while len(rows) < num_rows:
        if over:
            observation, _ = env.reset()
            episode_return, length, over = 0.0, 0, False
            rows.append((None, None, False, True, observation))
            continue
        action = int(PARAMS[game] + observation[1])
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append((action, reward, terminated, False, observation))
        episode_return, length, over = episode_return + reward, length + 1, terminated or truncated
        if over:
            episodes.append((len(rows) - 1, episode_return, length))
    return rows, episodes


def test_actor_is_a_plain_loop_per_game():
    num_rows = 40
    actor = Actor(Gymnasium("Sum-v0", stack=2), 3, act, 0)
    steps, episodes = [actor.reset()], [[], [], []]
    for row in range(1, num_rows):
        actor.send(PARAMS, 0.0)
        step, finished = actor.recv()
        steps.append(step)
        for episode in finished:
            episodes[episode.game].append((row, episode.episode_return, episode.length))
    actor.close()
    # Compared at the end, so that a row that shares memory with a later one is noticed.
    for game in range(3):
        rows, expected_episodes = plain_loop(game, num_rows)
        assert episodes[game] == expected_episodes
        assert episodes[game][0][1:] == [(36.0, 3), (53.0, 2), (41.0, 1)][game]
        for step, (action, reward, terminated, first, observation) in zip(steps, rows, strict=True):
            assert (bool(step.terminated[game]), bool(step.first[game])) == (terminated, first)
            np.testing.assert_array_equal(step.observation[game], observation)
            if not first:
                assert (int(step.action_tm1[game]), float(step.r_t[game])) == (action, reward)
        # Dead steps are nobody's: every row is a first one or one of an episode's steps.
        over_at = expected_episodes[-1][0]
        firsts = sum(bool(step.first[game]) for step in steps[: over_at + 1])
        assert over_at + 1 - firsts == sum(length for _, _, length in expected_episodes)
    assert step.action_tm1.dtype == np.int32 and step.r_t.dtype == np.float32


def test_actor_ignores_what_comes_with_a_reset():
    # The frame of a reset carries no reward, also where the policy chose an action for it.
    actor = Actor(Gymnasium("Sum-v0"), 1, lambda *_: np.array([4]), 0)
    actor.reset()
    returns = []
    for _ in range(6):
        actor.send(PARAMS, 0.0)
        step, finished = actor.recv()
        returns.append([(e.episode_return, e.length) for e in finished])
        assert not (step.first[0] and step.r_t[0])
    actor.close()
    assert returns == [[(41.0, 1)], []] * 3


def test_actor_is_determined_by_its_entropy():
    def start(*entropy):
        actor = Actor(Gymnasium("CartPole-v1"), 3, act, *entropy)
        observation = actor.reset().observation
        actor.close()
        return observation

    first = start(0, 100)
    assert len(np.unique(first, axis=0)) == 3  # each game has a seed of its own
    np.testing.assert_array_equal(first, start(0, 100))
    for other in ((1, 100), (0, 101)):
        assert not np.any(first == start(*other))


def test_exploration_is_new_at_every_step():
    keys = []

    def noting(params, observation, key, epsilon):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return np.zeros(1, np.int32)

    actor = Actor(Gymnasium("CartPole-v1"), 1, noting, 0)
    actor.reset()
    for _ in range(5):
        actor.send(None, 0.0)
        actor.recv()
    actor.close()
    assert len(set(keys)) == 5


class InPlace(Sum):
    """Gives the same array again and again, changed in place, of values that are never 0."""

    observation_space = gymnasium.spaces.Box(1, 9, (4,), np.float32)
    observed = np.zeros(4, np.float32)

    def reset(self, **options):
        self.observed[:] = 1
        return self.observed, super().reset(**options)[1]

    def step(self, action):
        self.observed += 1
        return self.observed, *super().step(action)[1:]


gymnasium.register("InPlace-v0", InPlace)


@pytest.mark.parametrize("id", ["CartPole-v1", "InPlace-v0"])
def test_the_learner_sees_what_the_policy_saw(id):
    """States are stacked twice, by the environment and by the replay: alike, also at the start of an episode."""
    seen = []

    def noting(params, observation, key, epsilon):
        seen.append(observation.copy())
        return np.ones(len(observation), np.int32)

    actor, replay = Actor(Gymnasium(id, stack=3), 2, noting, 0), Replay(100)
    state = replay.add(replay.init(2, (4,), np.float32), actor.reset(), stack=3)
    for _ in range(40):
        actor.send(None, 0.0)
        state = replay.add(state, actor.recv()[0], stack=3)
    actor.close()
    row, game = np.divmod(np.arange(2 * 39), 2)
    batch = replay.gather(state, row, game, np.ones(len(row), np.float32), stack=3)
    np.testing.assert_array_equal(batch.s_tm1, np.stack(seen)[row, game])
    assert np.sum(state.steps.first) > 6
