"""Checkpoints: atomic directories written by orbax, without pickle, the learner's state apart from the replay.

checkpoints/<agent_steps>/learner/   parameters, target, optimizer, random key: small, all that `evaluate` reads
                          replay/    the filled rows of the ring, compressed, and their priorities
                          progress/  counters, and the sizes of the log files at that moment

Orbax takes a quarter of all imports' time, so it is imported where it is used: help and refused flags do without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from replay.ring import ReplayState


class Checkpointer:
    """Keeps the last two checkpoints of a run.

    Args:
      run_dir: the run directory.
      read_only: leaves it as it is; otherwise checkpoints that were never completed are removed.
    """

    def __init__(self, run_dir, read_only: bool = False):
        import orbax.checkpoint as ocp

        directory = Path(run_dir).resolve() / "checkpoints"
        if not read_only:
            directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            directory,
            item_names=("learner", "replay", "progress"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else 2,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=not read_only,
                create=False,
            ),
        )

    def latest(self) -> int | None:
        """Agent steps of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, agent_steps: int, state, replay_state: ReplayState, progress: dict[str, Any]) -> None:
        """Writes a checkpoint; it exists only once it is complete."""
        from orbax.checkpoint import args as ocp

        size = int(replay_state.size)
        rows = jax.tree.map(lambda ring: np.asarray(ring)[:size], replay_state.steps)
        replay = {"steps": rows._asdict(), "head": replay_state.head, "priorities": replay_state.priorities}
        self._manager.save(
            agent_steps,
            args=ocp.Composite(
                learner=ocp.PyTreeSave(state._asdict()),
                replay=ocp.PyTreeSave(replay),
                progress=ocp.JsonSave({**progress, "replay_rows": size}),
            ),
        )

    def restore_learner(self, like):
        """Restores the learner's state, or the dict of those of its fields that `like` has."""
        fields = like if isinstance(like, dict) else like._asdict()
        restored = self._restore(learner=_like(_on_device(fields)))["learner"]
        return restored if isinstance(like, dict) else type(like)(**restored)

    def restore_progress(self) -> dict[str, Any]:
        """Restores the counters."""
        from orbax.checkpoint import args as ocp

        return self._restore(progress=ocp.JsonRestore())["progress"]

    def restore_replay(self, empty: ReplayState) -> ReplayState:
        """Restores the ring into an empty one, which is donated."""
        size = self.restore_progress()["replay_rows"]
        rows = jax.tree.map(lambda ring: np.empty((size, *ring.shape[1:]), ring.dtype), empty.steps)
        saved = {"steps": rows._asdict(), **_on_device({"head": empty.head, "priorities": empty.priorities})}
        saved = self._restore(replay=_like(saved))["replay"]
        steps = type(rows)(**saved["steps"])

        @jax.jit(donate_argnums=0)
        def fill(ring, rows):
            return jax.lax.dynamic_update_slice_in_dim(ring, rows, 0, axis=0)

        steps = jax.tree.map(fill, empty.steps, steps)
        return ReplayState(steps, saved["head"], jnp.int32(size), saved["priorities"])

    def _restore(self, **items):
        from orbax.checkpoint import args as ocp

        step = self.latest()
        if step is None:
            raise FileNotFoundError(f"There is no checkpoint in {self._manager.directory}.")
        try:
            return self._manager.restore(step, args=ocp.Composite(**items))
        except Exception as error:  # orbax raises of all kinds
            reason = str(error).partition("\n")[0][:200]
            raise OSError(
                f"The checkpoint {self._manager.directory / str(step)} is damaged: {reason}\n"
                "Remove it to go on from the one before."
            ) from error

    def close(self) -> None:
        """Waits for the writer."""
        self._manager.close()


def _on_device(tree):
    """Describes jax arrays like the leaves of `tree`, on the learner's device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree)


def _like(tree):
    """Asks orbax for the leaves that `tree` names, with their types: jax arrays or numpy arrays."""
    import orbax.checkpoint as ocp

    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
    return ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
