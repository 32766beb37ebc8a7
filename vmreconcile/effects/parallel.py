"""One function over many items in a bounded number of threads. Knows nothing of hosts."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
LOOK = 0.1
"""Seconds after which a waiting main thread looks for signals by itself.

A signal that comes just before the thread begins to wait, or to another thread, does not wake it: Python hears of it
only when the main thread runs again. So nothing here waits without an end.
"""


def for_each(
    items: Iterable[Item], function: Callable[[Item], Result], forks: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `function` with each item, at most `forks` at once; yield each item as it finishes, with what came of it.

    When the caller stops early (Ctrl-C among other reasons), no further item is begun. Those under way go on in threads
    that do not keep the process alive.
    """
    waiting = collections.deque(items)
    count = len(waiting)
    finished: queue.SimpleQueue[tuple[Item, Result | Exception | BaseException]] = queue.SimpleQueue()
    for _ in range(min(max(forks, 1), count)):
        threading.Thread(target=_work, args=(waiting, function, finished), daemon=True).start()
    try:
        for _ in range(count):
            item, result = _next(finished)
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
            yield item, result
    finally:
        waiting.clear()


def wait_for(done: threading.Event) -> None:
    """Wait until `done` is set, and hear of Ctrl-C within `LOOK` seconds meanwhile.

    Raises:
        KeyboardInterrupt: Ctrl-C, when called in the main thread.
    """
    while not done.wait(LOOK):
        pass


def _next(finished: queue.SimpleQueue[Result]) -> Result:
    """The next of what has finished, waited for as `wait_for` waits."""
    while True:
        try:
            return finished.get(timeout=LOOK)
        except queue.Empty:
            continue


def _work(
    waiting: collections.deque[Item],
    function: Callable[[Item], Result],
    finished: queue.SimpleQueue[tuple[Item, Result | Exception | BaseException]],
) -> None:
    while True:
        try:
            item = waiting.popleft()
        except IndexError:
            return
        try:
            finished.put((item, function(item)))
        except BaseException as error:  # noqa: BLE001 - the caller's thread decides, this one must not lose it
            finished.put((item, error))
