"""Repeated measurements: median and spread; and what the machine can do at best."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import jax
import numpy as np


def summary(values) -> dict[str, float]:
    """Median, first and ninth decile of values, and their number."""
    p10, median, p90 = (float(value) for value in np.quantile(values, [0.1, 0.5, 0.9]))
    return {"median": median, "p10": p10, "p90": p90, "repeats": len(values)}


def seconds_of(call: Callable, repeats: int, seconds: float) -> np.ndarray:
    """Times `call`, whose result is waited for, again and again; its first call is not counted.

    Args:
      call: what to time.
      repeats: timed calls.
      seconds: stop after this time, but not before three calls.

    Returns:
      Seconds of each call.
    """
    return by_turns({"": call}, repeats, seconds)[""]


def by_turns(calls: dict[str, Callable], repeats: int, seconds: float) -> dict[str, np.ndarray]:
    """As `seconds_of` for several calls, one after the other in each round: all see the same weather of the machine."""
    for call in calls.values():
        jax.block_until_ready(call())
    begun, times = time.perf_counter(), {name: [] for name in calls}
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begun > seconds * len(calls):
            break
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in times.items()}


def matmul_gflops() -> float:
    """Speed of a float32 product of 1024x1024 matrices, GFLOP/s: what to compare machines, and updates, by."""
    product, a = jax.jit(lambda a: a @ a), jax.numpy.ones((1024, 1024))
    return 2 * 1024**3 / 1e9 / float(np.median(seconds_of(lambda: product(a), 30, 5)))


def machine() -> dict:
    """The machine, the version of JAX, and the speed of a matrix product now."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "matmul_gflops": matmul_gflops(),
    }
