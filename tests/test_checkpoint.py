"""Checkpoints and the replay log: what is written comes back, and what is damaged is found and named."""

import json
import shutil
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.actor import Actor
from agents.checkpointing import checkpoint as checkpoints
from agents.checkpointing import checkpointer as writing
from agents.checkpointing.checkpoint import Checkpoint, flatten, newest
from agents.checkpointing.checkpointer import Checkpointer
from agents.environments import Atari, Gymnasium
from agents.games import GameError, Games
from replay import files, log
from replay.files import DamagedError
from replay.log import Log, SegmentWriter
from replay.ring import TimeStep


def row(number, num_envs=3):
    """A row that tells its number."""
    rng = np.random.default_rng(number)
    return TimeStep(
        rng.integers(0, 18, num_envs, np.int32),
        rng.random(num_envs, np.float32),
        rng.random(num_envs) < 0.5,
        rng.random(num_envs) < 0.5,
        rng.integers(0, 255, (num_envs, 4, 5), np.uint8),
    )


def assert_rows(pieces, start, stop):
    """The pieces are the rows from start to stop, in order."""
    expected = start
    for first, piece in pieces:
        assert first == expected
        for i in range(len(piece.first)):
            jax.tree.map(np.testing.assert_array_equal, TimeStep(*(array[i] for array in piece)), row(expected))
            expected += 1
    assert expected == stop


def write_segment(path, rows):
    writer = SegmentWriter(path)
    for number in range(int(path.name), int(path.name) + rows):
        writer.append(row(number))
    writer.finish()
    return writer.commit()


@pytest.mark.parametrize("chunk_bytes", [1, 300, 10**6], ids=["a row", "a few rows", "all rows"])
def test_log_gives_back_its_rows(tmp_path, monkeypatch, chunk_bytes):
    """Whatever the chunks and whatever part is asked for; another reader of Zarr would find the same."""
    monkeypatch.setattr(log, "CHUNK_BYTES", chunk_bytes)
    paths = [tmp_path / f"{start:012d}" for start in (0, 7, 20)]
    for path, rows in zip(paths, (7, 13, 1), strict=True):
        digest = write_segment(path, rows)
        log.verify_segment(path, digest)
    whole = Log(paths)
    assert (whole.first_row, whole.end) == (0, 21)
    for start, stop in ((0, 21), (3, 15), (6, 8), (20, 21), (5, 5)):
        assert_rows(whole.pieces(start, stop), start, stop)
    assert_rows(Log(paths[1:]).pieces(9, 21), 9, 21)
    with pytest.raises(IndexError, match="holds the rows 7 to 21, not 6 to 9"):
        list(Log(paths[1:]).pieces(6, 9))
    metadata = json.loads((paths[0] / "observation/zarr.json").read_text())
    assert metadata["shape"] == [7, 3, 4, 5] and metadata["dimension_names"][:2] == ["row", "game"]
    assert json.loads((paths[1] / "zarr.json").read_text())["attributes"] == {"first_row": 7}


def test_rows_that_are_gone_are_no_zeros(tmp_path):
    """Also after their hashes have been checked; logs of before every chunk was written have none for zeros."""
    path = tmp_path / "000000000000"
    writer = SegmentWriter(path)
    for number in range(5):
        writer.append(row(number)._replace(terminated=np.zeros(3, bool)))
    writer.finish()
    writer.commit()
    whole = Log([path])
    terminated = lambda log: np.concatenate([piece.terminated for _, piece in log.pieces(0, 5)])
    assert not terminated(whole).any()
    (path / "terminated/c/0/0").unlink()
    with pytest.raises(DamagedError, match=r"cannot be read: .*terminated/c/0/0"):
        list(whole.pieces(0, 5))
    change(log.listing(path), '"write_empty_chunks": true', '"other": true')
    assert not terminated(Log([path])).any()
    shutil.rmtree(path / "terminated")
    with pytest.raises(DamagedError, match=r"cannot be read: .*terminated"):
        list(Log([path]).pieces(0, 5))
    log.listing(path).write_text("{}")
    with pytest.raises(DamagedError, match="does not tell how many rows"):
        Log([path])


def test_a_slow_disk_holds_the_games_up_instead_of_filling_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "CHUNK_BYTES", 60)
    writer = SegmentWriter(tmp_path / f"{0:012d}")
    for number in range(50):
        writer.append(row(number))
        assert len(writer._pending) <= log.PENDING_CHUNKS


STATE = {"key": jax.random.key(3), "counts": jnp.arange(3), "nested": (jnp.float32(1.5), {"half": jnp.bfloat16(2)})}


def save_some(run_dir, steps=(10, 20, 30), keep_replay=False):
    """Checkpoints with ten new rows each, of which the last fifteen are needed."""
    checkpointer = Checkpointer(run_dir, keep_replay)
    checkpointer.resume()
    for step in steps:
        for number in range(checkpointer.rows, checkpointer.rows + 10):
            checkpointer.append(row(number))
        state = {**STATE, "counts": STATE["counts"] + step}
        checkpointer.save(step, flatten("state", state), {"step": step}, rows=15)
    checkpointer.close()
    return run_dir


def segments(run_dir):
    """First rows of the segments, each of which has a directory and a list."""
    names = sorted(path.name for path in (run_dir / "replay").iterdir())
    assert names[1::2] == [f"{name}.json" for name in names[::2]]
    return [int(name) for name in names[::2]]


def test_checkpoints_give_back_what_was_saved(tmp_path):
    """The last two are kept, and the segments that one of them needs."""
    run_dir = save_some(tmp_path, (10, 20, 30, 40))
    assert [path.name for path in checkpoints.checkpoints(run_dir)] == ["40", "30"]
    latest = newest(run_dir)
    assert (latest.agent_steps, latest.rows, latest.progress) == (40, 40, {"step": 40})
    restored = latest.restore("state", STATE)
    assert jax.tree.structure(restored) == jax.tree.structure(STATE)
    np.testing.assert_array_equal(restored["counts"], [40, 41, 42])
    assert jnp.array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(STATE["key"]))
    assert restored["nested"][1]["half"].dtype == jnp.bfloat16
    assert segments(run_dir) == [10, 20, 30]
    assert_rows(latest.log.pieces(25, 40), 25, 40)
    with pytest.raises(ValueError, match=r"int32\[3\] for state/counts, not float32\[2\]"):
        latest.restore("state", {"counts": jnp.zeros(2)})
    with pytest.raises(ValueError, match="has nothing for state/another"):
        latest.restore("state", {"another": jax.random.key(0)})


def test_a_whole_log_is_kept_on_demand(tmp_path):
    latest = newest(save_some(tmp_path, (10, 20, 30, 40), keep_replay=True))
    assert_rows(latest.log.pieces(0, 40), 0, 40)


def test_saving_again_at_the_same_step_changes_only_what_is_said_about_it(tmp_path):
    checkpointer = Checkpointer(save_some(tmp_path, (10,)))
    assert checkpointer.resume().progress == {"step": 10}
    checkpointer.save(10, flatten("state", STATE), {"step": "again"}, rows=15)
    checkpointer.close()
    latest = newest(tmp_path)
    latest.verify()
    assert latest.progress == {"step": "again"} and latest.rows == 10
    np.testing.assert_array_equal(latest.restore("state", STATE)["counts"], [10, 11, 12])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


DAMAGES = {
    "bit of the state": lambda run: flip(run / "checkpoints/30/state.safetensors"),
    "state gone": lambda run: (run / "checkpoints/30/state.safetensors").unlink(),
    "manifest cut": lambda run: (run / "checkpoints/30/manifest.json").write_text('{"format": 1, "rows"'),
    "digit of the manifest": lambda run: change(run / "checkpoints/30/manifest.json", '"rows": 30', '"rows": 29'),
    "letter of the manifest": lambda run: change(run / "checkpoints/30/manifest.json", '"step"', '"stop"'),
    "manifest gone": lambda run: (run / "checkpoints/30/manifest.json").unlink(),
    "bit of a frame": lambda run: flip(run / "replay/000000000020/observation/c/0/0/0/0"),
    "segment gone": lambda run: shutil.rmtree(run / "replay/000000000020"),
    "list of a segment": lambda run: flip(run / "replay/000000000020.json"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    run_dir, told = save_some(tmp_path), []
    damage(run_dir)
    checkpointer = Checkpointer(run_dir)
    checkpoint = checkpointer.resume(told.append)
    checkpointer.close()
    assert checkpoint.agent_steps == 20 and len(told) == 1
    assert "checkpoints/30 is damaged" in told[0] and any(name in told[0] for name in ("30/", "000000000020"))
    assert (run_dir / "checkpoints/damaged-30").is_dir()
    assert segments(run_dir) == [0, 10]
    save_some(run_dir, (30,))  # goes on as if it had never been
    assert_rows(newest(run_dir).log.pieces(15, 30), 15, 30)


def test_no_intact_checkpoint_changes_nothing(tmp_path):
    run_dir = save_some(tmp_path)
    flip(run_dir / "replay/000000000010/r_t/c/0/0")  # both checkpoints need it
    before = sorted(run_dir.rglob("*"))
    checkpointer = Checkpointer(run_dir)
    with pytest.raises(
        DamagedError, match="No checkpoint .* is intact: [^ ]*000000000010/r_t/c/0/0 is not what was written there. To"
    ):
        checkpointer.resume(lambda text: None)
    checkpointer.close()
    assert sorted(run_dir.rglob("*")) == before
    assert newest(run_dir, verified=True).agent_steps == 30  # to evaluate, the replay need not be intact


def test_what_an_interrupted_write_left_is_removed(tmp_path):
    run_dir = save_some(tmp_path)
    for path in ("checkpoints/40.partial", "checkpoints/10", "replay/000000000030/observation"):
        (run_dir / path).mkdir(parents=True)  # of the two that are kept 10 was to be removed when 30 was there
    checkpointer = Checkpointer(run_dir)
    assert checkpointer.resume().agent_steps == 30
    checkpointer.close()
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["20", "30"]
    assert not (run_dir / "checkpoints/40.partial").exists() and not (run_dir / "replay/000000000030").exists()


def test_paths_in_a_manifest_cannot_escape(tmp_path):
    run_dir = save_some(tmp_path / "run")
    path = run_dir / "checkpoints/30"
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    writing._write_manifest(path, manifest | {"segments": {"../../secret": "0"}})
    with pytest.raises(DamagedError, match="strange segments"):
        Checkpoint(path)
    segment = run_dir / "replay/000000000020"
    for name in ("/etc/passwd", "../../../secret"):
        log.listing(segment).write_text(json.dumps({"rows": 10, "files": {name: "0"}}))
        with pytest.raises(DamagedError, match="outside of its segment"):
            log.verify_segment(segment, files.sha256(log.listing(segment)))


def test_to_resume_leaves_the_checkpoint_before_whole(tmp_path):
    """A segment that only the older one needs stays until a newer one is written."""
    run_dir = save_some(tmp_path)
    checkpointer = Checkpointer(run_dir)
    assert checkpointer.resume().agent_steps == 30
    checkpointer.close()
    Checkpoint(run_dir / "checkpoints/20").verify()


def test_damaged_twice_at_the_same_step(tmp_path):
    run_dir = save_some(tmp_path)
    for _ in range(2):
        flip(run_dir / "checkpoints/30/state.safetensors")
        save_some(run_dir, (30,))
    assert newest(run_dir).agent_steps == 30


def test_a_failed_write_is_told_soon_and_again_at_the_end(tmp_path, monkeypatch):
    """A full disk: the next row says so, and the checkpoints before stay whole."""
    run_dir = save_some(tmp_path)
    checkpointer = Checkpointer(run_dir)
    checkpointer.resume()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_durably", full)
    checkpointer.append(row(30))
    checkpointer.save(40, flatten("state", STATE), {}, rows=15)
    checkpointer._committing.exception()
    with pytest.raises(OSError, match="No space left"):
        checkpointer.append(row(31))
    checkpointer.close()
    monkeypatch.undo()
    checkpointer = Checkpointer(run_dir)
    assert checkpointer.resume().agent_steps == 30
    checkpointer.close()


# Games


def play(games, steps, seed):
    """Plays with random actions; returns all that the games gave, and the observation now."""
    rng, seen, observation = np.random.default_rng(seed), [], None
    for _ in range(steps):
        games.send(rng.integers(0, 2, 3).astype(np.int32))
        observation, *rest = games.recv()
        seen.append([observation.copy(), *rest])
    return seen, observation


ENVIRONMENTS = {
    "atari": Atari("Breakout", max_episode_frames=100),
    "gymnasium": Gymnasium("CartPole-v1", stack=2),
    "minatar": Gymnasium("MinAtar/Breakout-v1", kwargs={"sticky_action_prob": 0.5}),
}


RESTORED = [("atari", 0), ("atari", 333), *product(("gymnasium", "minatar"), (0, 1, 26, 100, 333))]


@pytest.mark.parametrize("name, steps", RESTORED)
def test_games_are_restored_from_their_seeds_and_actions(name, steps):
    """Before and after some of them have been given new seeds; what follows is the same."""
    environment = ENVIRONMENTS[name]
    games, copy = (Games(environment, 3, (5,), reseed_every_steps=150) for _ in range(2))
    start = games.reset()
    _, observation = play(games, steps, 0)
    saved = {name: np.array(value) for name, value in games.save().items()}
    assert copy.restore(saved, start if steps == 0 else observation)
    expected, _ = play(games, 120, 1)
    found, _ = play(copy, 120, 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    if steps == 333:
        assert saved["seeded_at"].min() > 0 and len(saved["actions"]) < 200
    for each in (games, copy):
        each.close()


@pytest.mark.parametrize("name", ["gymnasium", "minatar"])
def test_new_seeds_do_not_depend_on_when_games_were_saved(name):
    """Nor does what follows on what was played before: MinAtar's last action, which may stick, outlasts a reset."""
    games, copy = (Games(ENVIRONMENTS[name], 3, (5,), reseed_every_steps=150) for _ in range(2))
    games.reset()
    expected, _ = play(games, 200, 0)
    observation = copy.reset()
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        saved = {name: np.array(value) for name, value in copy.save().items()}
        copy = Games(ENVIRONMENTS[name], 3, (5,), reseed_every_steps=150)
        assert copy.restore(saved, observation)
        copy.send(rng.integers(0, 2, 3).astype(np.int32))
        found.append(list(copy.recv()))
        observation = found[-1][0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_games_get_new_seeds_when_they_are_due():
    """At the first end of an episode after every 150 steps of all three; none is given twice."""
    games = Games(ENVIRONMENTS["gymnasium"], 3, (5,), reseed_every_steps=150)
    given, reset = [], games._envs.reset
    games._envs.reset = lambda **options: given.extend(options["seed"].tolist()) or reset(**options)
    games.reset()
    play(games, 345, 0)
    games.close()
    assert len(given) == len(set(given)) and 15 < len(given) <= 3 * (1 + 345 // 50)


def test_the_log_of_actions_keeps_nothing_else_alive():
    """A view of what was computed would: kilobytes a step, for days."""
    act = jax.jit(lambda params, observation, key, epsilon: jnp.zeros(len(observation), jnp.int32))
    actor = Actor(ENVIRONMENTS["gymnasium"], 3, act, 5)
    actor.reset()
    actor.send(None, 0.0)
    assert actor.games._actions[-1].base is None


def test_games_that_depend_on_more_than_seeds_are_told():
    """What they show after their actions is not what was seen."""
    act = lambda params, observation, key, epsilon: np.zeros(len(observation), np.int32)
    actor = Actor(ENVIRONMENTS["gymnasium"], 3, act, 5)
    actor.reset()
    for _ in range(5):
        actor.send(None, 0.0)
        actor.recv()
    saved = jax.tree.map(np.array, actor.save())
    assert actor.restore(saved)
    assert not actor.restore({**saved, "observation": saved["observation"] + 1})
    assert not actor.restore({**saved, "games": {**saved["games"], "over": ~saved["games"]["over"]}})
    assert actor.reset().first.all()
    actor.close()


def test_a_reward_that_is_not_finite_ends_a_run(monkeypatch):
    games = Games(ENVIRONMENTS["gymnasium"], 2, (5,))
    games.reset()
    given = games._envs.recv
    monkeypatch.setattr(games._envs, "recv", lambda: (given()[0], np.array([1.0, np.inf]), *given()[2:]))
    games.send(np.zeros(2, np.int32))
    with pytest.raises(GameError, match=r"has given the rewards \[ 1. inf\] in step 1 of"):
        games.recv()
    games.close()
