"""Linear probes: a fresh last layer on the frozen torso of a trained run (Section 5.2.2 of the paper, Figure 16)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import named
from agents.errors import ConfigError
from agents.learner import TrainState
from replay.files import DamagedError

OWN = ("kernel_init", "noise")  # of how parameters begin, not of what they compute


def torso_of(source: str, torso: nn.Module, settings: dict[str, str], like):
    """Loads the torso of a checkpoint; returns it, and what it is from, for the probe's manifest.

    Args:
      source: a run directory, of which the newest intact checkpoint is taken, or one checkpoint of it.
      torso: the module that is to have it; it must be built as the run's is.
      settings: from which it was built.
      like: its parameters, of which shapes and types are compared.

    Raises:
      ConfigError: if there is no run with a checkpoint, or its torso is another one.
    """
    try:
        run_dir, checkpoint = named(source)
    except DamagedError as error:
        raise ConfigError(f"--freeze_torso: {error}.") from error
    manifest = None if checkpoint is None else run_directory.read_manifest(run_dir)
    if not manifest:
        raise ConfigError(f"--freeze_torso: {source} holds no run with an intact checkpoint.")
    theirs = manifest["settings"]
    owner = lambda name: name.partition(".")[0].rpartition("/")[2]  # without the scope
    parts = {name for name in settings if owner(name) in _modules(torso)} | {"QNetwork.torso"}
    different = [
        f"{name} = {settings.get(name)}, there {theirs.get(name)}"
        for name in sorted(parts)
        if not name.endswith(OWN) and settings.get(name) != theirs.get(name)
    ]
    if different:
        raise ConfigError(f"--freeze_torso: the torso of {source} is another one: {'; '.join(different)}.")
    origin = {"checkpoint": str(checkpoint.path), "state_sha256": checkpoint.state_sha256}
    return checkpoint.restore("learner/params/params/torso", like), origin


def _modules(module: nn.Module) -> set[str]:
    """Names of the classes of a module and of those that it is built of."""
    values = [getattr(module, field.name) for field in dataclasses.fields(module) if field.name != "parent"]
    inner = [value for value in values if isinstance(value, nn.Module)]
    return {type(module).__name__}.union(*map(_modules, inner))


def with_torso(state: TrainState, torso) -> TrainState:
    """Puts a torso into the parameters of a state, and copies of it into those that are bootstrapped from."""
    copied = lambda params: {**params, "params": {**params["params"], "torso": jax.tree.map(jax.numpy.copy, torso)}}
    return state._replace(params=copied(state.params), target_params=copied(state.target_params))
