"""What devices did in a profiler's trace: how long they were busy, and with what."""

import collections
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from segmenter_jax.benchmark.measure import Result

# Of an operation of a device: where in the traced program it is from, on a GPU and on a TPU.
_SOURCES = ("name", "tf_op")


class _Event(NamedTuple):
    start: float
    end: float
    name: str
    source: str


def read_trace(folder: str) -> ProfileData:
    """The newest trace below a folder, as `--profile` of a benchmark and a run's own leave it.

    Raises:
      ValueError: there is none.
    """
    files = pathlib.Path(folder).expanduser().rglob("*.xplane.pb")
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(f"{folder}: no *.xplane.pb below it, as the profiler writes them")
    return ProfileData.from_file(str(newest))


def summarise_trace(data: ProfileData, top: int) -> Result:
    """Busy share and longest operations.

    Args:
      data: the trace.
      top: number of operations.

    Returns:
      `span_ms` from the first operation's start to the last one's end and `busy_ms` with at least
      one of them running, both added up over the devices; `busy_percent`; `launches`; and
      `longest`, one dictionary for each name of operations: `name`, its own `ms` without the
      operations within, `percent` of all of these, `count`, and the `source` of one of them.

    Raises:
      ValueError: the trace holds no operation.
    """
    span = busy = 0.0
    times, counts, sources = collections.Counter(), collections.Counter(), {}
    for lines in _devices(data):
        events = sorted(event for line in lines for event in line)
        span += max(event.end for event in events) - events[0].start
        busy += _covered(events)
        for line in lines:
            counts.update(event.name for event in line)
            sources |= {event.name: event.source for event in line}
            for name, own in _own_times(sorted(line, key=lambda e: (e.start, -e.end))):
                times[name] += own
    if not span:
        raise ValueError("the trace holds no operation of a device")
    return {
        "span_ms": span / 1e6,
        "busy_ms": busy / 1e6,
        "busy_percent": 100 * busy / span,
        "launches": counts.total(),
        "longest": [
            {
                "name": name,
                "ms": own / 1e6,
                "percent": 100 * own / times.total(),
                "count": counts[name],
                "source": sources[name],
            }
            for name, own in times.most_common(top)
        ],
    }


def _devices(data: ProfileData) -> Iterator[list[list[_Event]]]:
    """Events of each device that did something, by streams or threads."""
    planes = [plane for plane in data.planes if plane.name.startswith("/device:")]
    found = [lines for plane in planes if (lines := _device_lines(plane))]
    # On a CPU operations run in threads of the host, between much else.
    yield from found or [
        lines
        for plane in data.planes
        if plane.name == "/host:CPU"
        and (lines := _filled(_events(line, "hlo_op") for line in plane.lines))
    ]


def _device_lines(plane: Any) -> list[list[_Event]]:
    # The other lines of a device repeat the operations by module, step and source.
    streams = [line for line in plane.lines if line.name.startswith("Stream")]
    operations = streams or [line for line in plane.lines if line.name == "XLA Ops"]
    return _filled(map(_events, operations))


def _filled(lines: Iterable[list[_Event]]) -> list[list[_Event]]:
    return [line for line in lines if line]


def _events(line: Any, having: str | None = None) -> list[_Event]:
    events = []
    for event in line.events:
        stats = dict(event.stats)
        if having is None or having in stats:
            source = next((str(stats[name]) for name in _SOURCES if name in stats), "")
            end = event.start_ns + event.duration_ns
            events.append(_Event(event.start_ns, end, event.name, source))
    return events


def _covered(events: list[_Event]) -> float:
    """Time with at least one of the events, which are sorted."""
    total = 0.0
    reached = events[0].start
    for event in events:
        total += max(event.end - max(event.start, reached), 0.0)
        reached = max(reached, event.end)
    return total


def _own_times(events: list[_Event]) -> Iterator[tuple[str, float]]:
    """Durations of one line's events, sorted by start, without those within them."""
    open_events: list[tuple[_Event, list[float]]] = []
    for event in events:
        while open_events and open_events[-1][0].end <= event.start:
            closed, own = open_events.pop()
            yield closed.name, own[0]
        if open_events:
            outer, own = open_events[-1]
            own[0] -= min(event.end, outer.end) - event.start
        open_events.append((event, [event.end - event.start]))
    yield from ((event.name, own[0]) for event, own in open_events)
