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

    Args:
      call: what to time.
      repeats: timed calls.
      seconds: stop after this time, but not before three calls.

    Returns:
      Seconds of each call.
    """
    return by_turns({"": call}, repeats, seconds)[""]


def by_turns(calls: dict[str, Callable], repeats: int, seconds: float) -> dict[str, np.ndarray]:
    """As `seconds_of` for several calls, one after the other in each round, since a machine's speed drifts."""
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


def matmul_gflops(dtype: str = "float32") -> float:
    """Speed of a matrix product, GFLOP/s: what to compare machines, and updates, by."""
    size = 1024 if jax.default_backend() == "cpu" else 8192  # large enough for the call to cost nothing
    product, a = jax.jit(lambda a: a @ a), jax.numpy.ones((size, size), dtype)
    return 2 * size**3 / 1e9 / float(np.median(seconds_of(lambda: product(a), 30, 5)))


def machine() -> dict:
    """The machine, the version of JAX, what was set for it, and the speed of a matrix product now."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "jax": jax.__version__,
        "environment": {name: os.environ.get(name) for name in launch.SETTINGS},
        "matmul_gflops": matmul_gflops(),
    }
