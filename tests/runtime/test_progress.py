"""What is seen of long work where the output is no terminal."""

import time

from segmenter_jax.runtime.progress import Progress, counted


def test_a_plain_line_a_minute_gives_rate_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(1000, "image") as progress, Progress(1000, "image", quiet=True) as quiet:
        # Programs are compiled before the first.
        now[0] = 30.0
        for _ in range(401):
            progress.update()
            quiet.update()
            now[0] += 0.5
    assert capsys.readouterr().err.splitlines() == [
        "61 of 1000 images, 2 images/s, 07:49 left",
        "181 of 1000 images, 2 images/s, 06:49 left",
        "301 of 1000 images, 2 images/s, 05:49 left",
    ]


def test_items_that_are_passed_on_are_counted(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for item in counted("abcd", 4, "image", "evaluation"):
        now[0] += {"a": 5.0, "b": 60.0}.get(item, 1.0)
    assert capsys.readouterr().err == "evaluation: 2 of 4 images, 0.0167 images/s, 02:00 left\n"
