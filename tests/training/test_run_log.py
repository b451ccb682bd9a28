"""What a run's log holds after kills, and where it is kept."""

import json
import pathlib

import pytest
from etils import epath

from segmenter_jax.training.run_log import RunLog, read_metrics


def steps(folder):
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_log_goes_on_after_the_step_resumed_from(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.scalars(step, {"train/loss": 1.0})
    log.scalars(2, {"eval/mean_iou": float("nan")})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tra')
    log = RunLog(tmp_path, 2)
    assert log.has(2, "eval/mean_iou") and not log.has(1, "eval/mean_iou")
    log.scalars(3, {"train/loss": 2.0})
    log.close()
    assert steps(tmp_path) == [1, 2, 2, 3]


def test_disabled_log_writes_nothing(tmp_path):
    log = RunLog(tmp_path / "run", 0, enabled=False)
    log.scalars(1, {"train/loss": 1.0})
    assert not log.has(1, "train/loss")
    log.close()
    assert not (tmp_path / "run").exists()


def test_metrics_are_read_past_a_line_cut_short(tmp_path):
    lines = [{"step": 1, "time": 0.0, "train/loss": 2.0}, {"step": 2, "train/loss": None}]
    text = "\n".join(map(json.dumps, [*lines, {"step": 3, "train/loss": 1.0}]))
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 4, "tra')
    assert read_metrics(tmp_path) == {"train/loss": ([1, 3], [2.0, 1.0])}


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not the workdir of a run"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no numbers yet"):
        read_metrics(tmp_path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A path of a made-up object store that lies in a local folder and cannot append."""

    class Remote(type(epath.Path("/"))):
        def __fspath__(self):
            return "store://" + str(self)

        def open(self, mode="r", **kwargs):
            assert "a" not in mode
            return super().open(mode, **kwargs)

    folder = tmp_path / "bucket"
    monkeypatch.setattr("segmenter_jax.training.run_log.epath.Path", lambda _: Remote(folder))
    monkeypatch.setattr("segmenter_jax.training.run_log._event_writer", lambda *_: None)
    return pathlib.Path(folder)


def test_remote_log_is_whole_after_every_line(bucket):
    for start, step in ((0, 1), (1, 2)):
        log = RunLog("store://bucket", start)
        log.scalars(step, {"train/loss": 1.0})
        assert steps(bucket) == list(range(1, step + 1))
        log.close()
