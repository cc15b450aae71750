"""Several devices share each batch, with the result of one; here four that the CPU pretends to be."""

import jax
import numpy as np
import pytest
from test_training import catch, policy_updates

from agents import policy
from agents.errors import ConfigError
from agents.trainer import Trainer, learn
from replay.ring import TimeStep, Transition
from scripts import train
from training.command_line import load, parse_args

pytestmark = pytest.mark.skipif(len(jax.devices()) < 4, reason="needs four devices; conftest.py asks the CPU for them")


def trained(num_devices):
    """A trainer of Rainbow that has made ten updates."""
    argv = catch("unused", "hl_gauss", 1000, f"--mesh=data={num_devices}", agent="rainbow")
    trainer = Trainer(load(parse_args(argv)).experiment)
    trainer.allocate_replay()
    random = np.random.default_rng(0)
    while trainer.updates < 10:
        step = TimeStep(
            action_tm1=random.integers(3, size=4, dtype=np.int32),
            r_t=random.integers(-1, 2, 4).astype(np.float32),
            terminated=random.random(4) < 0.1,
            first=np.zeros(4, bool),
            observation=random.integers(256, size=(4, *trainer._shape)).astype(trainer._dtype),
        )
        trainer.add(step)
        learn([trainer])
    return trainer


def test_four_devices_learn_what_one_does(monkeypatch):
    """Ten updates: the parameters to 1e-5; the priorities, and so the transitions drawn, too."""
    placed, device_put = [], jax.device_put

    def put(tree, target):
        placed.append(device_put(tree, target))
        return placed[-1]

    one = trained(1)
    monkeypatch.setattr(jax, "device_put", put)
    four = trained(4)
    assert four.updates == one.updates == 10
    on = {leaf.sharding for leaf in jax.tree.leaves(four.state.params)}
    assert all(len(sharding.device_set) == 4 and sharding.is_fully_replicated for sharding in on)
    assert len(four.replay_state.steps.observation.sharding.device_set) == 1
    batches = [batch for batch in placed if isinstance(batch, Transition)]
    shards = [leaf.addressable_shards for batch in batches for leaf in batch if not leaf.is_deleted()]
    assert (
        len(batches) == 10 and shards and all([shard.data.shape[0] for shard in parts] == [8] * 4 for parts in shards)
    )

    close = lambda a, b: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *jax.device_get((a, b)))
    close(four.state.params, one.state.params)
    close(four.replay_state.priorities, one.replay_state.priorities)
    ours, theirs = four.metrics(), one.metrics()
    assert ours == pytest.approx(theirs, rel=1e-4) and ours["loss"] > 0


def test_trains_evaluates_and_resumes(tmp_path):
    run_dir = tmp_path / "run"
    argv = lambda steps: catch(run_dir, "hl_gauss", steps, "--mesh=data=2")
    assert train.main(argv(300)) == 0
    assert train.main([flag for flag in argv(400) if "mesh" not in flag]) == 0  # on another number of devices
    assert policy_updates(run_dir) == (396 - 200) // 2
    assert policy.load(run_dir, ["catch"]).agent_steps == 400


@pytest.mark.parametrize(
    "mesh, message",
    [
        ("4", "takes data=N"),
        ("data=0", "cannot share it equally"),
        ("data=5", "batch_size is 32; 5 devices cannot share it equally"),
        ("data=32", f"asks for more devices than there are: {len(jax.devices())}"),
        ("model=2", "takes data=N"),
    ],
)
def test_bad_meshes(mesh, message, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=message):
        train.main(catch(tmp_path / "run", "mse", 1000, f"--mesh={mesh}"))
    assert not (tmp_path / "run").exists()
