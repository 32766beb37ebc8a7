"""A bounded number of threads over many items."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from vmreconcile.effects.parallel import for_each


def test_every_item_with_its_result() -> None:
    """Each item comes once, with its result or its exception."""

    def half(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    found = dict(for_each(range(50), half, 8))
    assert {item: result for item, result in found.items() if item % 2 == 0} == {n: n // 2 for n in range(0, 50, 2)}
    assert all(isinstance(found[n], ValueError) for n in range(1, 50, 2))


def test_at_most_forks_at_once() -> None:
    """No more run at a time than asked, and as many as asked do."""
    running, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    assert len(list(for_each(range(20), work, 4))) == 20
    assert most == 4


def test_as_they_finish() -> None:
    """A quick item does not wait for a slow one."""
    gate = threading.Event()

    def work(name: str) -> str:
        if name == "slow":
            gate.wait(5)
        return name

    results = for_each(["slow", "quick"], work, 2)
    assert next(results) == ("quick", "quick")
    gate.set()
    assert next(results) == ("slow", "slow")


def test_stopping_early_begins_nothing_more() -> None:
    """Ctrl-C in the loop: what is under way ends by itself, nothing else begins."""
    begun: list[int] = []
    gate = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number > 1:
            gate.wait(5)
        return number

    results = for_each(range(100), work, 2)
    with pytest.raises(KeyboardInterrupt):
        interrupt_at_first(results)
    results.close()  # type: ignore[attr-defined]
    count = len(begun)
    gate.set()
    time.sleep(0.05)
    assert len(begun) == count <= 5


def test_ctrl_c_is_heard_whichever_thread_takes_it() -> None:
    """A signal that does not wake the waiting main thread is heard all the same, long before the item ends."""
    gate = threading.Event()

    def work(_: int) -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        gate.wait(5)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(for_each([1], work, 1))
    assert time.monotonic() - begun < 4
    gate.set()


def interrupt_at_first(results: object) -> None:
    """Do what Ctrl-C does in the caller's loop."""
    for _ in results:  # type: ignore[attr-defined]
        raise KeyboardInterrupt


def test_an_interrupt_in_a_worker_reaches_the_caller() -> None:
    """SystemExit and the like are no result of an item."""

    def work(_: int) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(for_each([1], work, 1))


def test_nothing_to_do() -> None:
    """No items, no threads."""
    assert list(for_each([], str, 5)) == []
