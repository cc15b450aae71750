"""The trainer: state of the learner and the replay, and the compiled functions that change it."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from agents import evaluation, memory, probe
from agents.checkpointing.checkpoint import Checkpoint, flatten
from agents.errors import ConfigError
from agents.experiment import Experiment
from agents.learner import make_update
from agents.reporting.diagnosis import make_diagnose
from agents.step import gather, make_step, spread
from replay.ring import Replay
from replay.samplers import Uniform

# The features are measured on 2,048 states as in Kumar et al. 2021; in batches, for the sake of memory.
DIAGNOSE_BATCHES, DIAGNOSE_BATCH_SIZE = 8, 256


class Trainer:
    """Owns the learner's state, the replay and the metrics summed up since the last log point.

    A new linear probe needs `load_torso` first; a run that goes on, `restore`.

    Args:
      experiment: all settings.

    Attributes:
      network: the Q-network.
      act: compiled function `act(params, observation, key, epsilon, noise) -> actions [N]`.
      state: the learner's state, `learner.TrainState`.
      replay_state: the ring, `ring.ReplayState`; None until it is allocated.
      agent_steps: agent steps stored so far.
      updates: gradient steps made so far.
      torso_origin: the checkpoint that a linear probe's torso is from, None without.

    Raises:
      ConfigError: if the network does not fit the environment.
      MemoryError: if the replay or the network cannot fit; nothing is allocated then.
    """

    def __init__(self, experiment: Experiment):
        x = self.experiment = experiment
        self.network, observation = x.build_network()
        self._stack, *self._shape = observation.shape[1:]
        self._dtype = observation.dtype
        self._ring = self._make_ring(observation)
        self._mesh = x.learner.mesh()
        self._num_seeds = 1  # that learn in one call

        self.act = jax.jit(partial(x.agent.act, self.network, x.head), static_argnames="noise")
        window = {"stack": self._stack, "n_step": x.agent.n_step}
        rewards = {"discount": x.agent.discount, "max_abs_reward": self._max_abs_reward}
        sample = partial(x.replay.sample, **window, **rewards, batch_size=x.learner.batch_size)
        self._gather = jax.jit(partial(x.replay.gather, **window, **rewards))
        update = make_update(x.learner, x.agent, self.network, x.head, x.replay_ratio)
        self._step = make_step(update, sample, x.replay.sampler.update, x.updates_per_call, self._mesh)
        uniform = dataclasses.replace(x.replay, sampler=Uniform())  # features are measured on states drawn alike
        sample = partial(uniform.sample, **window, **rewards, batch_size=DIAGNOSE_BATCH_SIZE)
        self._diagnose = make_diagnose(x.agent, self.network, x.head, sample, DIAGNOSE_BATCHES)
        self._add = jax.jit(partial(x.replay.add, **window), donate_argnums=0)

        self._init = partial(jax.jit(partial(x.learner.init, self.network)), observation=observation)
        self._torso, self.torso_origin = None, None
        try:
            self._check_memory()
            self._begin()
        except ConfigError:
            raise
        except ValueError as error:
            if not type(getattr(self.network, "torso", self.network)).__module__.startswith("networks."):
                raise  # in a torso of one's own: the traceback says where
            raise ConfigError(f"The network does not fit {x.environment.name}: {error}") from error

    def _make_ring(self, observation) -> Replay:
        """Returns the settings of the replay."""
        del observation
        return self.experiment.replay

    @property
    def _max_abs_reward(self) -> float | None:
        """To what the replay clips rewards."""
        return self.experiment.agent.max_abs_reward

    def _check_memory(self, seeds: int = 1) -> None:
        state = jax.eval_shape(self._init, key=jax.random.key(0))
        num_bytes = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        copies = 1 if seeds == 1 else 2  # the states of several seeds are stacked for their call
        network_bytes = copies * num_bytes(state) + num_bytes(state.params)  # with the gradients
        if seeds * network_bytes > memory.usable():
            number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            raise MemoryError(
                f"The network's {number:,} parameters take {seeds * network_bytes / 1e9:.2f} GB with their copies"
                f"{'' if seeds == 1 else f' for {seeds} seeds'}; {jax.default_backend().upper()} has "
                f"{memory.on_device() / 1e9:.2f} GB free. Choose a smaller network."
            )
        self._check_replays(seeds, network_bytes)

    def _check_replays(self, seeds: int, network_bytes: int) -> None:
        memory.check(self.replay_bytes, self._ring.capacity, seeds, network_bytes)

    def _begin(self) -> None:
        state = self._init(key=jax.random.key(self.experiment.seed))
        self._place(state if self._torso is None else probe.with_torso(state, self._torso))
        self.replay_state = None
        self.agent_steps, self.updates, self._sums = 0, 0, {}

    def load_torso(self, settings: dict[str, str]) -> None:
        """Begins with the torso of `Experiment.torso_from`. What goes on from a checkpoint has it from there.

        Args:
          settings: of this experiment, which say how its own torso is built.

        Raises:
          ConfigError: if there is none, or it is built in another way.
        """
        like, source = self.state.params["params"]["torso"], self.experiment.torso_from
        self._torso, self.torso_origin = probe.torso_of(source, self.network.torso, settings, like)
        self._begin()

    def with_seeds(self, seeds) -> list[Trainer]:
        """Returns a trainer for each of several seeds; they share compiled functions, and calls of `learn`.

        Raises:
          MemoryError: if their replays do not fit together.
          ConfigError: if a mesh of devices is to share each batch.
        """
        if self._mesh is not None:
            raise ConfigError("Several seeds learn on one device: pass --seeds or --mesh, not both.")
        self._check_memory(len(seeds))
        trainers = [copy.copy(self) for _ in seeds]
        for trainer, seed in zip(trainers, seeds, strict=True):
            trainer.experiment = dataclasses.replace(self.experiment, seed=seed)
            trainer._num_seeds = len(seeds)
            trainer._begin()
        return trainers

    def _place(self, state) -> None:
        self.state = state if self._mesh is None else spread(self._mesh, state)

    @property
    def local_state(self):
        """The learner's state on its first device, where the replay is, valid until `learn` is called."""
        return self.state if self._mesh is None else gather(self._mesh, self.state)

    @property
    def params(self):
        """The parameters to act with, valid until `learn` is called."""
        return self.state.params if self._mesh is None else gather(self._mesh, self.state.params)

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    @property
    def replay_bytes(self) -> int:
        """Memory of the replay, which is allocated at once."""
        return self._ring.num_bytes(self.experiment.num_envs, self._shape, self._dtype)

    @property
    def epsilon(self) -> float:
        """Current exploration rate."""
        return self.experiment.agent.epsilon(self.agent_steps, self.experiment.warmup_steps)

    def _empty_replay(self):
        return self._ring.init(self.experiment.num_envs, self._shape, self._dtype)

    def allocate_replay(self) -> None:
        """Allocates the empty replay.

        Raises:
          MemoryError: if the device has no room for it after all.
        """
        self.replay_state = None  # an earlier one makes room
        try:
            self.replay_state = jax.block_until_ready(self._empty_replay())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(
                f"The device has no room for a replay of {self.replay_bytes / 1e9:.2f} GB. Pass a smaller "
                f"--replay_capacity than {self._ring.capacity}."
            ) from error

    def trace(self) -> None:
        """Traces an update, so that settings of which none can be made are an error before anything is written."""
        if self._mesh is None:
            empty = jax.eval_shape(self._empty_replay)
            jax.eval_shape(self._step, [self.state], [empty], [{}])

    def add(self, step) -> None:
        """Stores a time step of all games. Those that have just been reset made no agent step."""
        self.replay_state = self._add(self.replay_state, step)
        self.agent_steps += int(np.sum(~step.first))

    def metrics(self) -> dict[str, float]:
        """Means over the updates since the last call; empty if there were none."""
        sums, self._sums = jax.device_get(self._sums), {}
        updates = sums.pop("updates", 0)
        sums.pop("not_finite", None)
        return {name: float(value) / float(updates) for name, value in sums.items()}

    def not_finite(self) -> dict[str, np.ndarray] | None:
        """The first batch since the last log point whose loss or gradient was not finite; None if there is none.

        It is drawn again from where it lay: `s_tm1` and so on [B, ...], the `weight` of each item, its `index` in the
        replay, and the number of the `update`. What has been overwritten since then, at most the oldest rows of one log
        interval, is there as it is now.
        """
        found = jax.device_get(self._sums.get("not_finite", {"found": False}))
        if not found["found"]:
            return None
        row, game = np.divmod(found["index"], self.experiment.num_envs)
        batch = self._gather(self.replay_state, row, game, found["weight"])
        return {**batch._asdict(), "index": found["index"], "update": found["update"]}

    def diagnose(self) -> tuple[dict[str, float], np.ndarray]:
        """Measures the features on a large batch; returns metrics and the TD targets [2048]."""
        state = self.local_state
        key = jax.random.fold_in(state.key, self.agent_steps)
        return jax.device_get(self._diagnose(state, self.replay_state, key))

    def evaluate(self, stop) -> np.ndarray:
        """Plays evaluation episodes in games of their own until `stop()`; returns [episodes]."""
        x = self.experiment
        play = partial(evaluation.evaluate, x.environment, self.act, self.params)
        return play(x.eval_episodes, x.agent.epsilon_eval, (x.seed, self.agent_steps), stop)

    def normalised(self, mean_return: float) -> dict[str, float]:
        """Scores of a mean return, by what they are measured against."""
        human = evaluation.human_normalised(self.experiment.environment.name, mean_return)
        return {} if human is None else {"human_normalised": human}

    def save(self) -> dict[str, np.ndarray]:
        """Copies all state but the replay's rows to the host, for a checkpoint."""
        state = {"learner": self.local_state, "priorities": self.replay_state.priorities, "sums": self._sums}
        return {key: array for name, tree in state.items() for key, array in flatten(name, tree).items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Allocates the replay, and continues from a checkpoint.

        Raises:
          ConfigError: if it does not fit this experiment.
        """
        self.agent_steps = checkpoint.agent_steps
        self._place(checkpoint.restore("learner", self.state))
        self.updates = int(self.state.updates)
        self._sums = {name: jnp.asarray(array) for name, array in checkpoint.arrays("sums/").items()}
        if self._sums:  # names of metrics have slashes of their own
            names = [name for name in self._sums if name.startswith("not_finite/")]
            self._sums["not_finite"] = {name.removeprefix("not_finite/"): self._sums.pop(name) for name in names}
        self._restore_replay(checkpoint)

    def _restore_replay(self, checkpoint: Checkpoint) -> None:
        self.allocate_replay()
        priorities = checkpoint.restore("priorities", self.replay_state.priorities)
        rows = min(checkpoint.rows, self.experiment.replay.num_rows(self.experiment.num_envs))
        pieces = checkpoint.log.pieces(checkpoint.rows - rows, checkpoint.rows)
        self.replay_state = self.experiment.replay.restore(self.replay_state, pieces, priorities)


def learn(trainers: list[Trainer]) -> None:
    """Makes the updates that are due for the agent steps stored so far.

    Args:
      trainers: one, or those of several seeds from `with_seeds`. A call is made for all together where all have updates
        due; else for each alone, which is rare: seeds get out of step by an agent step for each episode's end. Near the
        end, with some of them finished, no call is compiled for the others.
    """
    x = trainers[0].experiment
    left = x.total_steps - max(trainer.agent_steps for trainer in trainers)
    together = len(trainers) == trainers[0]._num_seeds or left > 0.01 * x.total_steps
    is_due = lambda trainer: trainer.updates + x.updates_per_call <= x.updates_due(trainer.agent_steps)
    while due := list(filter(is_due, trainers)):
        for group in [due] if together and len(due) == len(trainers) else [[trainer] for trainer in due]:
            results = trainers[0]._step(*zip(*((t.state, t.replay_state, t._sums) for t in group), strict=True))
            for trainer, state, replay_state, sums in zip(group, *results, strict=True):
                trainer.state, trainer.replay_state, trainer._sums = state, replay_state, sums
                trainer.updates += x.updates_per_call
