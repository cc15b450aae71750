#!/usr/bin/env python
"""Fits targets whose size grows (Section 5.2.3 and Appendix B.4 of the paper, Figure 17): does the loss matter?

Images get the targets y = sin(10^5 f(x)) + b, f a network with random parameters. In each phase b grows and f is drawn
anew, while the network that is trained goes on: first b = 0, then 8, 16, 24, 32. Losses: MSE, Two-Hot and HL-Gauss on
[-40, 40] with 101 bins, Adam at 0.001. The paper trains on CIFAR-10, for 5,000 steps of 512 images per phase, with 30
seeds (--full). It does not say how many images (50,000 there, all that are for training), on which network (NatureCNN
here), nor whether Adam's state is kept (it is).

examples:
  python scripts/synthetic.py --output synthetic                        three seeds, 500 images, 2,000 steps per phase
  python scripts/synthetic.py --output synthetic --cifar PATH/cifar-10-batches-bin --full          for a GPU
  python scripts/synthetic.py --output synthetic --csv .github/results/growing_targets.csv         the README's figure
"""

from __future__ import annotations

import argparse
import csv

from agents import launch

if __name__ == "__main__":
    launch.prepare()

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import synthetic_images as images
from agents.environments import ROMS
from agents.errors import ConfigError
from comparison import figures
from networks.layers import convolve_by_product
from networks.q_network import QNetwork
from networks.torsos import NatureCNN, xavier_uniform
from networks.value_heads import HLGauss, Scalar, TwoHot

FREQUENCY = 1e5
OFFSETS = (0, 8, 16, 24, 32)
HEADS = {"MSE": Scalar(), "Two-Hot": TwoHot(-40.0, 40.0, 101), "HL-Gauss": HLGauss(-40.0, 40.0, 101)}
FULL = {"images": 50_000, "batch_size": 512, "steps": 5_000, "seeds": 30, "learning_rate": 1e-3}
REDUCED = {**FULL, "images": 500, "batch_size": 64, "steps": 2_000, "seeds": 3}  # images that are learned in that time
POINTS = 20  # measurements per phase


def targets(pictures, seeds: int) -> np.ndarray:
    """Computes sin(10^5 f(x)) [seeds, phases, images], once and in float64: float32 would make noise of it."""
    torso = NatureCNN(dtype="float64")
    y = np.zeros((seeds, len(OFFSETS), len(pictures)))
    with jax.enable_x64(True):
        value = jax.jit(lambda params, kernel, x: torso.apply(params, x) @ kernel)
        for seed, phase in np.ndindex(y.shape[:2]):
            torso_key, head_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1 + phase))
            params = torso.init(torso_key, pictures[:1, None])
            kernel = xavier_uniform(head_key, (512, 1), "float64")
            for start in range(0, len(pictures), 1000):
                part = pictures[start : start + 1000, None]
                y[seed, phase, start : start + 1000] = np.sin(FREQUENCY * value(params, kernel, part)[:, 0])
    return y


def fit(head, pictures, y, seeds, args, report):
    """Trains several seeds at once; yields (phase, step, MSE of each seed).

    Args:
      head: a value head.
      pictures: uint8 [images, 32, 32, 3].
      y: targets without their offsets [seeds, phases, images].
      seeds: their numbers.
      args: batch_size, steps per phase, and learning_rate.
      report: called with the number of each phase.
    """
    network = QNetwork(num_actions=1, num_logits=head.num_logits, torso=NatureCNN())
    optimizer = optax.adam(args.learning_rate)
    predict = lambda params, x: head.decode(network.apply(params, x[:, None])[0][:, 0])

    def update(params, state, key, x, target):
        index = jax.random.randint(key, (args.batch_size,), 0, len(x))

        def loss(params):
            logits = network.apply(params, x[index][:, None])[0][:, 0]
            return jnp.mean(jax.vmap(head.loss)(logits, jax.vmap(head.encode)(target[index])))

        changes, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, changes), state

    error = lambda params, x, target: jnp.mean((predict(params, x) - target) ** 2)
    if jax.default_backend() != "cpu":
        update, error = map(nn.intercept_methods(convolve_by_product), (update, error))
    several = jax.jit(jax.vmap(update, in_axes=(0, 0, 0, None, 0)), donate_argnums=(0, 1))
    measure = jax.jit(jax.vmap(error, (0, None, 0)))
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    params = jax.vmap(lambda key: network.init(key, pictures[:1, None]))(keys)
    state, x = jax.vmap(optimizer.init)(params), jnp.asarray(pictures)
    every = max(args.steps // POINTS, 1)
    for phase, offset in enumerate(OFFSETS):
        report(phase)
        target = jnp.asarray(y[:, phase] + offset, jnp.float32)
        for step in range(1, args.steps + 1):
            draw = jax.vmap(lambda key, n=phase * args.steps + step: jax.random.fold_in(key, n))(keys)
            params, state = several(params, state, draw, x, target)
            if step % every == 0 or step == args.steps:
                parts = [measure(params, x[i : i + 1000], target[:, i : i + 1000]) for i in range(0, len(x), 1000)]
                sizes = [len(x[i : i + 1000]) for i in range(0, len(x), 1000)]
                yield phase, step, np.average(jax.device_get(parts), axis=0, weights=sizes)


def draw(rows: list[dict], steps: int) -> Figure:
    """The MSE against steps, one phase after the other: mean over seeds, and their range."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, loss in enumerate(HEADS):
        by_step: dict[int, list[float]] = {}
        for row in rows:
            if row["loss"] == loss:
                by_step.setdefault(OFFSETS.index(row["b"]) * steps + row["step"], []).append(row["mse"])
        x, values = list(by_step), list(by_step.values())
        colour = figures.COLOURS[number]
        axes.plot(x, [np.mean(of_step) for of_step in values], color=colour, label=loss)
        axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, linewidth=0)
    for phase, offset in enumerate(OFFSETS):
        axes.axvline(phase * steps, color="0.5", linewidth=0.6)
        axes.annotate(f"b = {offset}", (phase * steps, 1.01), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set(xlabel="steps", ylabel="MSE on all images", yscale="log")
    axes.yaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter()
    )  # powers would be maths, which the style of figures turns off
    axes.margins(x=0)
    figure.legend(loc="outside lower center", ncols=len(HEADS))
    return figure


def parse_args(argv) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output", type=launch.path, required=True, help="folder for mse.csv and mse.png")
    add("--full", action="store_true", help=f"the paper's size, where flags say nothing else: {FULL}")
    add(
        "--cifar",
        type=launch.path,
        metavar="DIR",
        help="folder with CIFAR-10's data_batch_1.bin ... _5.bin, instead of frames",
    )
    add("--images", type=int, help="how many; without --cifar frames of all Atari games (default: 500)")
    add("--batch_size", type=int, help="images per step (default: 64)")
    add("--steps", type=int, help="per phase (default: 2000)")
    add("--seeds", type=int, help="number of seeds (default: 3)")
    add("--learning_rate", type=float, help="of Adam (default: 0.001, the paper's)")
    add("--csv", type=launch.path, metavar="FILE", help="draw an earlier mse.csv again, instead of training")
    add("--seeds_at_once", type=int, help="in one batched computation (default: 1 on a CPU, else all)")
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    training = ("full", "cifar", *FULL, "seeds_at_once")
    if args.csv and (given := [name for name in training if getattr(args, name)]):
        parser.error(f"--csv trains nothing: leave out --{' and --'.join(given)}")
    for name, value in (FULL if args.full else REDUCED).items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    if args.seeds_at_once is None:
        args.seeds_at_once = 1 if jax.default_backend() == "cpu" else args.seeds
    bounds = {"images": 50_000, "batch_size": 2**16, "steps": 10**6, "seeds": 1000, "seeds_at_once": 1000}
    for name, most in bounds.items():
        if not 1 <= getattr(args, name) <= most:
            parser.error(f"--{name} lies between 1 and {most:,}; got {getattr(args, name)}")
    if not 0 < args.learning_rate <= 1:
        parser.error(f"--learning_rate lies between 0 and 1; got {args.learning_rate}")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output: {args.output} is no folder")
    return args


def study(args) -> list[dict]:
    """Trains with every loss; returns the rows of mse.csv."""
    pictures = images.cifar(args.cifar, args.images) if args.cifar else images.frames(list(ROMS), args.images)
    if len(pictures) < args.images:
        raise ConfigError(f"There are {len(pictures):,} images: pass --images {len(pictures)} or less.")
    args.output.mkdir(parents=True, exist_ok=True)  # where it cannot be, that is said before training
    print(
        f"{args.images:,} images, {args.steps:,} steps of {args.batch_size} per phase, {args.seeds} seeds, "
        f"Adam at {args.learning_rate:g}",
        flush=True,
    )
    y, rows = targets(pictures, args.seeds), []
    for loss, head in HEADS.items():
        for first in range(0, args.seeds, args.seeds_at_once):
            seeds = range(first, min(first + args.seeds_at_once, args.seeds))
            told = f"{loss}, seeds {seeds.start} to {seeds.stop - 1}"
            report = lambda phase, told=told: print(f"{told}, b = {OFFSETS[phase]}", flush=True)
            for phase, step, errors in fit(head, pictures, y[seeds.start : seeds.stop], seeds, args, report):
                what = {"loss": loss, "b": OFFSETS[phase], "step": step}
                rows += [{**what, "seed": s, "mse": float(e)} for s, e in zip(seeds, errors, strict=True)]
    return rows


def read(path) -> list[dict]:
    """Reads an earlier mse.csv.

    Raises:
      ConfigError: if it is none.
    """
    types = {"loss": str, "b": int, "step": int, "seed": int, "mse": float}
    try:
        with path.open(newline="") as file:
            rows = [{key: kind(row[key]) for key, kind in types.items()} for row in csv.DictReader(file)]
        phases = {(row["loss"], row["b"]) for row in rows}
        if phases != {(loss, b) for loss in HEADS for b in OFFSETS}:
            raise ValueError("losses or phases are missing, or others")
        if len({max(row["step"] for row in rows if (row["loss"], row["b"]) == phase) for phase in phases}) > 1:
            raise ValueError("phases end at different steps")
        if len({frozenset(row["seed"] for row in rows if (row["loss"], row["b"]) == phase) for phase in phases}) > 1:
            raise ValueError("phases are of different seeds")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(f"--csv: {path} is no mse.csv of this study ({error}).") from error
    return rows


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    with jax.default_matmul_precision("highest"):  # a GPU's TF32 would add errors of 1e-2 to MSE's outputs near 33
        rows = read(args.csv) if args.csv else study(args)
    args.output.mkdir(parents=True, exist_ok=True)
    last = max(row["step"] for row in rows)
    with (args.output / "mse.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, last).savefig(args.output / "mse.png", dpi=130)
    print("\n| loss | " + " | ".join(f"b = {b}" for b in OFFSETS) + " |\n| --- |" + " --- |" * len(OFFSETS))
    for loss in HEADS:
        ends = [[r["mse"] for r in rows if (r["loss"], r["b"], r["step"]) == (loss, b, last)] for b in OFFSETS]
        print(f"| {loss} | " + " | ".join(f"{np.mean(e):.3g} ({min(e):.3g} to {max(e):.3g})" for e in ends) + " |")
    print(f"MSE on all images at the end of each phase: mean over seeds, and their range. In {args.output}")
    return 0


if __name__ == "__main__":
    launch.run(main)
