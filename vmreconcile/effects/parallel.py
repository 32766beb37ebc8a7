"""One function over many items in a bounded number of threads. Knows nothing of hosts."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
            item, result = finished.get()
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
            yield item, result
    finally:
        waiting.clear()


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
