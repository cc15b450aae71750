"""Dopamine's JAX DQN on Pong, through its own runner: a process of `scripts/benchmark.py --against dopamine`.

Runs in an environment of its own (dopamine-requirements.txt). Appends its speed to the file that is its argument. The
values are those of Dopamine's dqn.gin (https://github.com/google/dopamine), which its package does not contain, but for
a shorter warm-up, a replay of 100,000, no debug mode, and no limit on the steps of an episode, so that all log points
are equally long.
"""

import json
import sys
import tempfile
import time

import gin
from dopamine.discrete_domains import atari_lib, iteration_statistics, run_experiment
from dopamine.jax.agents.dqn import dqn_agent  # noqa: F401  known to gin by its import

CONFIG = """
create_atari_environment.game_name = 'Pong'
create_atari_environment.sticky_actions = True
create_agent.agent_name = 'jax_dqn'
create_agent.debug_mode = False
JaxDQNAgent.gamma = 0.99
JaxDQNAgent.update_horizon = 1
JaxDQNAgent.min_replay_history = 1000
JaxDQNAgent.update_period = 4
JaxDQNAgent.target_update_period = 8000
JaxDQNAgent.epsilon_train = 0.01
JaxDQNAgent.epsilon_decay_period = 250000
JaxDQNAgent.optimizer = 'adam'
JaxDQNAgent.loss_type = 'mse'
JaxDQNAgent.seed = 0
create_optimizer.learning_rate = 6.25e-5
create_optimizer.eps = 1.5e-4
ReplayBuffer.max_capacity = 100000
ReplayBuffer.batch_size = 32
Runner.max_steps_per_episode = None
"""


def main(progress: str, interval: str) -> None:
    """Trains until it is killed."""
    gin.parse_config(CONFIG)
    with tempfile.TemporaryDirectory() as directory:
        runner = run_experiment.Runner(
            directory,
            run_experiment.create_agent,
            atari_lib.create_atari_environment,
            fine_grained_print_to_console=False,
        )
        while True:
            started = time.perf_counter()
            statistics = iteration_statistics.IterationStatistics()
            steps, _, _ = runner._run_one_phase(int(interval), statistics, "train")
            row = {"speed/steps_per_second": steps / (time.perf_counter() - started)}
            if runner._agent.training_steps > 1_000:  # the learner is at work
                row["train/loss"] = None
            with open(progress, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
