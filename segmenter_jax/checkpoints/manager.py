"""Checkpoints of a training run: written in the background, whole or not at all."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from segmenter_jax.checkpoints.checksums import bit_sums, named_leaves
from segmenter_jax.runtime import processes
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line, root
from segmenter_jax.runtime.files import absolute

# Below a workdir.
CHECKPOINTS_FOLDER = "checkpoints"

_STATE, _DATA = "state", "data"

# What one process made of a checkpoint; of several processes the largest counts.
_GOOD, _DAMAGED, _UNUSABLE = range(3)

# Status codes of TensorStore, whose errors have one type and begin with the code, for what is no
# property of the files: nothing is wrong with a checkpoint.
_TRANSIENT = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
)

# Shape and dtype.
_Leaf = tuple[tuple[int, ...], str]
_Check = Callable[[dict[str, Any]], None]


class CheckpointError(ValueError):
    """A checkpoint of a run cannot be written, or none can be restored."""


class Checkpoints:
    """The latest states of one run, in `WORKDIR/checkpoints/STEP/`.

    Each holds the train state and what the run says of its data, saved together. Saving returns as
    soon as the values are copied; a directory gets its final name only when everything is in it.
    With several processes, all of them make the same calls.
    """

    def __init__(self, workdir: str, keep: int):
        """Opens or creates the folder; what interrupted saves have left goes before the next one.

        Args:
          workdir: of the run; local or remote.
          keep: number of latest checkpoints kept.

        Raises:
          ValueError: `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"{keep=} must be at least 1")
        self._path = absolute(workdir) / CHECKPOINTS_FOLDER
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
            item_names=(_STATE, _DATA),
        )

    def save(self, state: Any, data: dict[str, Any], step: int) -> None:
        """Starts saving; does nothing if this step is saved already.

        Args:
          state: pytree of arrays. May be donated or changed once this returns.
          data: JSON values: where the run is in its data, and what those are.
          step: number of updates done.

        Raises:
          CheckpointError: this or the save before it failed, for example for lack of space; older
            checkpoints are as they were.
        """
        if step in self._manager.all_steps():
            return
        record = {"data": data, "bit_sums": bit_sums(state)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{_STATE: ocp.args.StandardSave(state), _DATA: ocp.args.JsonSave(record)}
                ),
            )
        except Exception as error:
            raise self._not_written(error) from error

    def restore(
        self, target: Any, check: _Check | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """Newest whole checkpoint; damaged ones after it are set aside as `STEP.damaged`.

        Args:
          target: pytree of `jax.ShapeDtypeStruct` with shardings: the state wanted, on the devices
            wanted, whatever devices it was saved from.
          check: called with the data of a checkpoint before its state is read; raises a
            `CheckpointError` for one of another run.

        Returns:
          (state, data), or None if nothing was ever saved.

        Raises:
          CheckpointError: the newest whole checkpoint is one of another model; or none is whole;
            or reading failed for a reason outside of the files. All of them are as they were.
        """
        wanted = {name: _leaf(x) for name, x in named_leaves(target).items()}
        damaged: dict[epath.Path, str] = {}
        # One process says what there is: a shared file system may show others something older.
        steps = sorted(self._manager.all_steps(), reverse=True)
        for index in range(processes.broadcast(len(steps))):
            step = processes.broadcast(steps[index] if index < len(steps) else 0)
            path = self._path / str(step)
            restored, damaged[path] = self._restore_step(path, target, wanted, check)
            if restored is not None:
                del damaged[path]
                self._set_aside(damaged)
                return restored
        if damaged:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {self._path} is whole: {reasons}. Use another --workdir, or "
                "move them away to start afresh in this one"
            )
        return None

    def _restore_step(
        self, path: epath.Path, target: Any, wanted: dict[str, _Leaf], check: _Check | None
    ) -> tuple[tuple[Any, dict[str, Any]] | None, str]:
        """(state and data, ""), or (None, what is wrong); all processes agree."""
        verdict, reason, restored = _GOOD, "another process cannot read it", None
        try:
            restored = _read(path, target, wanted, check)
        except Exception as error:  # Orbax raises many types for a damaged directory.
            verdict = _UNUSABLE if _is_no_damage(error) else _DAMAGED
            reason = _reason(error)
        verdict = processes.maximum(verdict)
        if verdict == _UNUSABLE:
            raise CheckpointError(f"checkpoint {path} cannot be restored: {reason}")
        if verdict == _DAMAGED:
            return None, reason
        state, record = restored
        found, saved = bit_sums(state), record["bit_sums"]
        changed = [name for name in sorted(found) if found[name] != saved.get(name)]
        if changed:
            return None, f"other values than were saved in {len(changed)} arrays: {changed[0]}, ..."
        return (state, record["data"]), ""

    def _set_aside(self, damaged: dict[epath.Path, str]) -> None:
        """Renames checkpoints whose numbers are needed by the run that goes on."""
        for path, reason in damaged.items():
            if jax.process_index() > 0:
                break
            aside = path.with_name(f"{path.name}.damaged")
            for copy in itertools.count(2):
                if not aside.exists():
                    break
                aside = path.with_name(f"{path.name}.damaged.{copy}")
            path.rename(aside)
            logger.warning("checkpoint %s is damaged, and kept as %s: %s", path, aside.name, reason)
        if damaged:
            # After the renames, in every process.
            processes.barrier("damaged checkpoints set aside")
            self._manager.reload()

    def _not_written(self, error: Exception) -> CheckpointError:
        self._manager.reload()
        return CheckpointError(
            f"{self._path}: a checkpoint could not be written: {_reason(error)}. Those of "
            f"steps {sorted(self._manager.all_steps())} are as they were"
        )

    def close(self) -> None:
        """Waits for running writes and releases the folder; raises as `save` does."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._not_written(error) from error


def _read(
    path: epath.Path, target: Any, wanted: dict[str, _Leaf], check: _Check | None
) -> tuple[Any, dict[str, Any]]:
    record = ocp.JsonCheckpointHandler().restore(path / _DATA, args=ocp.args.JsonRestore())
    is_record = isinstance(record, dict) and record.keys() == {"data", "bit_sums"}
    if not is_record or not all(isinstance(value, dict) for value in record.values()):
        raise TypeError(f"{_DATA} holds no data position")
    if check is not None:
        check(record["data"])
    # The manager's own restore waits for processes that may have failed.
    handler = ocp.StandardCheckpointHandler()
    _check_fits(handler.metadata(path / _STATE).tree, wanted)
    return handler.restore(path / _STATE, args=ocp.args.StandardRestore(target)), record


def _leaf(array: Any) -> _Leaf:
    return tuple(array.shape), str(array.dtype)


def _check_fits(saved: Any, wanted: dict[str, _Leaf]) -> None:
    """Raises CheckpointError if a checkpoint is whole but of another model or optimizer."""
    arrays = [leaf for leaf in jax.tree.leaves(saved) if hasattr(leaf, "shape")]
    found = {leaf.name.replace(".", "/"): _leaf(leaf) for leaf in arrays}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            there, here = (_spell(leaves.get(name)) for leaves in (found, wanted))
            raise CheckpointError(
                f"it is one of another model or optimizer: {name} is {there} there and {here} here"
            )


def _spell(leaf: _Leaf | None) -> str:
    return "missing" if leaf is None else f"{leaf[1]} {leaf[0]}"


def _reason(error: BaseException) -> str:
    # Orbax wraps what TensorStore says.
    error = root(error)
    line = first_line(error)
    return line if isinstance(error, CheckpointError) else f"{type(error).__name__}: {line[:300]}"


def _is_no_damage(error: BaseException) -> bool:
    error = root(error)
    if isinstance(error, CheckpointError | MemoryError):
        return True
    # What the system refuses says nothing about the files, but that one is missing.
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
        return True
    return str(error).partition(":")[0] in _TRANSIENT
