"""Repeated measurements: median and spread; and what the machine can do at best."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import jax
import numpy as np

from agents import launch


def summary(values) -> dict[str, float]:
    """Median, first and ninth decile of values, and their number."""
    p10, median, p90 = (float(value) for value in np.quantile(values, [0.1, 0.5, 0.9]))
    return {"median": median, "p10": p10, "p90": p90, "repeats": len(values)}


def seconds_of(call: Callable, repeats: int, seconds: float) -> np.ndarray:
    """Times `call`, whose result is waited for, again and again; its first call is not counted.

    An accelerator is given 20 calls at a time, since it computes one while the host sends the next, as in training.

    Args:
      call: what to time.
      repeats: timed calls, or times 20.
      seconds: stop after this time, but not before three repeats.

    Returns:
      Seconds of a call, for each repeat.
    """
    return by_turns({"": call}, repeats, seconds)[""]


def by_turns(calls: dict[str, Callable], repeats: int, seconds: float) -> dict[str, np.ndarray]:
    """As `seconds_of` for several calls, one after the other in each round, since a machine's speed drifts."""
    for call in calls.values():
        jax.block_until_ready(call())
    at_a_time = 1 if jax.default_backend() == "cpu" else 20
    begun, times = time.perf_counter(), {name: [] for name in calls}
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begun > seconds * len(calls):
            break
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(at_a_time):
                result = call()
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - started) / at_a_time)
    return {name: np.array(values) for name, values in times.items()}


def matmul_gflops(dtype: str = "float32") -> float:
    """Speed of a matrix product, GFLOP/s: what to compare machines, and updates, by.

    Float32 is what JAX makes of it without further wishes, as in training: on GPUs since Ampere products in TF32.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192  # large enough for the call to cost nothing
    # Random numbers: a GPU takes less power, and so runs faster, to multiply ones.
    product, a = jax.jit(lambda a: a @ a), jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / 1e9 / float(np.median(seconds_of(lambda: product(a), 30, 5)))


def machine() -> dict:
    """The machine, the version of JAX, what was set for it, and the speed of a matrix product now."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": launch.cores(),
        "jax": jax.__version__,
        "environment": {name: os.environ.get(name) for name in launch.SETTINGS},
        "matmul_gflops": matmul_gflops(),
    }
