"""One command, several processes: starting ranks, passing on Ctrl-C, ending all when one fails.

Knows: processes, signals, which of several failures caused the others. Does not know: what ranks compute.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qvl.runtime import Place, place_given, set_up_logging, usable_cores
from qvl.train.interrupt import Stopped

MOST_BY_DEFAULT = 4
_LAST_WORDS_S = 2.0
"""After one rank has failed, how long the others may say what they know: often the second to speak is the cause."""
_WRONG, _STOPPED, _CRASHED, _KILLED = "wrong", "stopped", "crashed", "killed"
_CAUSES = (_WRONG, _STOPPED, _KILLED, _CRASHED)
"""Which report is believed first: a rank that lost another one crashes in the middle of its work."""


def ranks_by_default() -> int:
    """One rank per core, up to four."""
    return min(MOST_BY_DEFAULT, usable_cores())


def on_ranks(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(ranks, *arguments)` on `count` ranks and returns when all are done.

    One rank is this process. More are processes of their own on this machine. Under torchrun this process already is
    one of several, and `count` is left aside.

    Args:
        work: a function of a module (processes find it by name).

    Raises:
        ValueError: `count` below 1, or what the first failing rank raised.
        OSError, Stopped: as the rank that raised it.
        RuntimeError: a rank crashed or was killed.
    """
    if count < 1:
        raise ValueError(f"ranks must be at least 1, got {count}")
    place = place_given()
    if place is not None or count == 1:
        _work(place or Place(), None, work, arguments)
        return
    with tempfile.TemporaryDirectory(prefix="qvl-ranks-") as folder:
        _Crew(count, Path(folder) / "meeting", work, arguments).run()


def _work(place: Place, meeting: Path | None, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    from qvl.train.ranks import Ranks

    if place.rank:
        logging.getLogger().setLevel(logging.WARNING)  # one log: the first rank's
    ranks = Ranks.join(place, meeting)
    work(ranks, *arguments)
    ranks.wait()
    ranks.leave()  # not after a failure: the others must not notice before its reason is told


@dataclass(frozen=True)
class _Report:
    """How a rank ended, if not well."""

    rank: int
    kind: str
    message: str
    at: float = field(default_factory=time.monotonic)

    def error(self) -> Exception:
        if self.kind == _STOPPED:
            return Stopped(self.message)
        return ValueError(self.message) if self.kind == _WRONG else RuntimeError(self.message)


class _Crew:
    """The processes of one command."""

    def __init__(self, count: int, meeting: Path, work: Callable[..., None], arguments: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would share torch's threads
        self._members: dict[Connection, BaseProcess] = {}
        for rank in range(count):
            ours, theirs = context.Pipe(duplex=False)
            place = Place(rank, count, rank, count)
            process = context.Process(target=_rank_main, args=(place, meeting, theirs, work, arguments))
            process.start()
            theirs.close()
            self._members[ours] = process
        self._asked = False

    def run(self) -> None:
        """Waits for all; the first failure ends the rest and is raised."""
        before = {s: signal.signal(s, self._pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            reports = self._reports()
            self._end()
            if reports:
                raise min(reports, key=lambda r: (_CAUSES.index(r.kind), r.at)).error()
        finally:
            self._end()
            for s, handler in before.items():
                signal.signal(s, handler)

    def _pass_on(self, number: int, frame: object) -> None:
        """The first Ctrl-C asks for an orderly end, the second ends at once."""
        for process in self._members.values():
            if process.is_alive():
                process.kill() if self._asked else process.terminate()
        self._asked = True

    def _reports(self) -> list[_Report]:
        """What ranks that failed had to say; ends when all are done, or soon after the first failure."""
        open_ones = dict(self._members)
        reports: list[_Report] = []
        until = None
        while open_ones and (until is None or time.monotonic() < until):
            for pipe in wait(list(open_ones), timeout=None if until is None else until - time.monotonic()):
                assert isinstance(pipe, Connection)
                report = self._listen(pipe, open_ones.pop(pipe), list(self._members).index(pipe))
                if report is not None:
                    reports.append(report)
                    until = until or time.monotonic() + _LAST_WORDS_S
        return reports

    def _listen(self, pipe: Connection, process: BaseProcess, rank: int) -> _Report | None:
        """The rank's last words; none and a bad end = it was killed."""
        try:
            return pipe.recv()
        except EOFError:
            process.join()
        code = process.exitcode or 0
        if code == 0:
            return None
        if self._asked:
            return _Report(rank, _STOPPED, "stopped")
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
        return _Report(rank, _KILLED, f"rank {rank} {how}; if the machine ran out of memory, use fewer ranks")

    def _end(self) -> None:
        for process in self._members.values():
            if process.is_alive() and process.exitcode is None:
                process.join(timeout=0.2)
                process.kill()
        for process in self._members.values():
            process.join()


def _rank_main(
    place: Place, meeting: Path, pipe: Connection, work: Callable[..., None], arguments: Sequence[Any]
) -> None:
    """A rank's process. It ends as the work did, without the interpreter's tidying up, in which gloo may abort."""
    os.setsid()  # the terminal's Ctrl-C goes to the launcher alone, which passes it on once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.register_at_fork(after_in_child=pipe.close)  # or a data worker would keep the line open after this process
    set_up_logging()
    status = 1
    try:
        _work(place, meeting, work, arguments)
        status = 0
    except (ValueError, OSError) as error:
        pipe.send(_Report(place.rank, _WRONG, str(error)))
    except (KeyboardInterrupt, Stopped) as error:
        pipe.send(_Report(place.rank, _STOPPED, str(error)))
    except BaseException:
        pipe.send(_Report(place.rank, _CRASHED, f"rank {place.rank} failed:\n{traceback.format_exc()}"))
    sys.stdout.flush()
    sys.stderr.flush()
    for worker in multiprocessing.active_children():
        worker.terminate()
    pipe.close()
    os._exit(status)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
