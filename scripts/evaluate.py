#!/usr/bin/env python
"""Evaluates the newest checkpoint of a run; prints JSON.

examples:
  python scripts/evaluate.py runs/Pong/dqn-hl_gauss-fast/seed0 --episodes 10
  python scripts/evaluate.py RUN_DIR --video out.mp4     one more episode, beside the predicted value distributions
  python scripts/evaluate.py RUN_DIR --epsilon 1         the level of random play
  python scripts/evaluate.py RUN_DIR --export params.safetensors
"""

from __future__ import annotations

import argparse
import json

from agents import launch, video
from agents import policy as policies
from agents.checkpointing import run_directory
from agents.configuration.trust import ALLOW_IMPORT
from agents.evaluation import behaviour_normalised, evaluate, human_normalised

MOST_EPISODES = 1_000_000
OTHER_EPISODES = 1  # in the seeds: other games than those of the run's own evaluation


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run_dir", help="run directory, or one checkpoint of it, RUN_DIR/checkpoints/STEPS")
    parser.add_argument(
        "--episodes", type=int, default=10, help="to play (default: 10; 0 only with --video or --export)"
    )
    parser.add_argument("--epsilon", type=float, help="exploration rate (default: the run's epsilon_eval, 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="of games and exploration; not the run's own (default: 0)")
    parser.add_argument("--video", metavar="FILE.mp4", help="record one more episode")
    parser.add_argument("--export", metavar="FILE.safetensors", help="write the parameters, too")
    parser.add_argument("--allow_import", action="append", default=[], metavar="PKG", help=ALLOW_IMPORT)
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    fewest = 0 if args.video or args.export else 1
    if not fewest <= args.episodes <= MOST_EPISODES:
        parser.error(f"--episodes lies between {fewest} and {MOST_EPISODES:,}; got {args.episodes}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed lies between 0 and 2^32 - 1; got {args.seed}")
    if args.export and not args.export.endswith(".safetensors"):
        parser.error(f"--export writes a file whose name ends in .safetensors; got {args.export}")
    if args.epsilon is not None and not 0 <= args.epsilon <= 1:
        parser.error(f"--epsilon is a probability; got {args.epsilon}")
    policy = policies.load(args.run_dir, args.allow_import)
    environment, agent = policy.experiment.environment, policy.experiment.agent
    if args.video:
        video.check_path(args.video)
        video.check_environment(environment)
    if args.export:
        policy.export(args.export)
    epsilon = agent.epsilon_eval if args.epsilon is None else args.epsilon
    shown = {}
    if args.video:  # before the episodes, which take longer, and would be lost with it
        shown = {"video": args.video, "video_return": video.record(policy, args.video, epsilon, args.seed)}
    steps, per_step = policy.agent_steps, policy.experiment.frames_per_step
    made = {"agent_steps": steps, "frames": steps * per_step} if per_step else {"updates": steps}
    result = {"run_dir": args.run_dir, "game": environment.name, **made, "episodes": args.episodes, "epsilon": epsilon}
    if args.episodes:
        entropy = (args.seed, policy.agent_steps, OTHER_EPISODES)
        returns = evaluate(environment, policy.act, policy.params, args.episodes, epsilon, entropy)
        mean = returns.mean()
        result |= {"mean": mean, "std": returns.std(), "human_normalised": human_normalised(environment.name, mean)}
        if policy.experiment.dataset is not None:
            manifest = run_directory.read_manifest(policy.run_dir) or {}
            behaviour = (manifest.get("dataset") or {}).get("behaviour_return")
            result["behaviour_normalised"] = behaviour_normalised(environment.name, mean, behaviour)
        result["returns"] = returns.tolist()
    if args.export:
        shown["export"] = args.export
    print(json.dumps(result | shown, indent=2))
    return 0


if __name__ == "__main__":
    launch.run(main)
