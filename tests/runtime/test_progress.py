"""What is seen of long work where the output is no terminal."""

import time

from segmenter_jax.runtime.progress import Progress


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
