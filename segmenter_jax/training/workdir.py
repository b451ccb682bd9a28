"""The config of a run, kept in its workdir and compared when the run goes on."""

import json
from typing import Any

import jax
import ml_collections
from etils import epath

from segmenter_jax.runtime.console import logger

CONFIG_FILE = "config.json"


def check_same_run(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Saves the config; on resume, reports what changed and refuses what cannot change."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    path = workdir / CONFIG_FILE
    if path.exists():
        old, new = (_flatten(json.loads(t)) for t in (path.read_text(), text))
        changed = {
            k: (old.get(k), new.get(k)) for k in sorted(old | new) if old.get(k) != new.get(k)
        }
        fixed = [name for name, (was, now) in changed.items() if _fixes_state(name, was, now)]
        if fixed:
            listed = "; ".join(f"{k} was {changed[k][0]!r}, is {changed[k][1]!r}" for k in fixed)
            raise ValueError(f"{workdir} holds a run of another config: {listed}")
        for name, (was, now) in changed.items():
            logger.warning("config.%s was %r when this run began, is now %r", name, was, now)
    if jax.process_index() == 0:
        temporary = workdir / f".{CONFIG_FILE}.incomplete"
        temporary.write_text(text)
        temporary.replace(path)


def _fixes_state(name: str, was: Any, now: Any) -> bool:
    """Whether a checkpoint of a run with one value of a field fits no run with the other."""
    if name in ("ema_decay", "optimizer.freeze_encoder"):
        # On or off: whether a checkpoint holds an average, and moments of the encoder.
        return bool(was) != bool(now)
    if name in ("model.attention", "model.remat", "model.scan_layers", "model.dtype"):
        return False
    fixed = ("seed", "optimizer.name", "augment.crop_size")
    return name.startswith("model.") or name in fixed


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        inner = (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat |= inner
    return flat
