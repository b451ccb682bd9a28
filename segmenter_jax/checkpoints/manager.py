"""Checkpoints of a training run: written in the background, whole or not at all."""

import logging
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

logger = logging.getLogger("segmenter_jax")


class CheckpointError(ValueError):
    """No checkpoint of a run can be restored."""


class Checkpoints:
    """The latest states of one run, in `WORKDIR/checkpoints/STEP/`.

    Each holds the train state and the data position, saved together. Saving returns as soon as the
    values are copied; a directory gets its final name only when everything is in it.
    """

    def __init__(self, workdir: str, keep: int):
        """Opens or creates the folder.

        Args:
          workdir: of the run; local or remote.
          keep: number of latest checkpoints kept.

        Raises:
          ValueError: `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1, got {keep}")
        self._path = epath.Path(workdir).expanduser().resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=True
            ),
            item_names=("state", "data"),
        )

    def save(self, state: Any, data: dict[str, Any], step: int) -> None:
        """Starts saving; does nothing if this step is saved already.

        Args:
          state: pytree of arrays. May be donated or changed once this returns.
          data: JSON values: the data position.
          step: number of updates done.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
            ),
        )

    def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """Newest readable checkpoint; a damaged one is reported and the one before it is used.

        Args:
          target: pytree of `jax.ShapeDtypeStruct` with shardings: the state wanted, on the devices
            wanted, whatever devices it was saved from.

        Returns:
          (state, data position), or None if nothing was ever saved.

        Raises:
          CheckpointError: there are checkpoints, and none can be read into the target.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reason = None
        for step in steps:
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:  # Orbax raises many types for a damaged directory.
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                logger.warning("checkpoint %s is unreadable: %s", self._path / str(step), reason)
                continue
            for damaged in steps[: steps.index(step)]:
                # Its number is needed again by the run that goes on.
                self._manager.delete(damaged)
            return restored["state"], restored["data"]
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self._path} fits this run; last reason: "
                f"{reason}. Use another --workdir to start afresh"
            )
        return None

    def close(self) -> None:
        """Waits for running writes and releases the folder."""
        self._manager.close()
