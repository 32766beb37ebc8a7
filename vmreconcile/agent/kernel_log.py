"""What the kernel's messages say of GPUs: the driver's error numbers (Xid), by the GPU's place on the PCI bus.

NVML tells them only to those who wait for them. `/dev/kmsg` gives one message a read, from the oldest that is kept
(Linux, Documentation/ABI/testing/dev-kmsg): 'priority,number,microseconds,-;text'. Not every user may read it.
"""

from __future__ import annotations

import os
import time

PATH = "/dev/kmsg"
MESSAGE = 1 << 14
"""No message is longer; a shorter buffer is refused."""

SIZE_LIMIT = 1 << 22
"""Bytes; the kernel keeps 2 MiB at most on the largest machines, unless it was told to keep more."""

TIME_LIMIT_S = 0.2
MARK = "NVRM: Xid (PCI:"


def xids() -> dict[tuple[int, ...], list[int]]:
    """The numbers of each place, each once, in the order in which they came first; empty where they cannot be read."""
    return parse(_read())


def parse(text: str) -> dict[tuple[int, ...], list[int]]:
    """Read messages such as '3,1,2,-;NVRM: Xid (PCI:0000:c1:00): 79, pid=1, GPU has fallen off the bus.'.

    Where an instance is to blame, it stands behind the place: 'PCI:0000:c1:00 GPU-I:05 GPU-CI:00' (NVIDIA,
    open-gpu-kernel-modules, kernel_rc.c).
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for line in text.split("\n"):
        said = line.partition(";")[2]
        if not said.startswith(MARK):
            continue
        place, _, rest = said[len(MARK) :].partition("): ")
        number, at = rest.partition(",")[0].strip(), place_of(place.partition(" ")[0])
        if not at or not (number.isdigit() and number.isascii() and len(number) < 6):
            continue
        numbers = found.setdefault(at, [])
        if int(number) not in numbers:
            numbers.append(int(number))
    return found


def place_of(text: str) -> tuple[int, ...]:
    """'0000:c1:00.0', with or without the function, as numbers; () for what is none."""
    try:
        found = tuple(int(part, 16) for part in text.partition(".")[0].split(":"))
    except ValueError:
        return ()
    return found if len(found) == 3 else ()


def written(place: tuple[int, ...]) -> str:
    """A place as the kernel writes it."""
    return "{:04x}:{:02x}:{:02x}".format(*place)


def _read() -> str:
    """All messages, as far as they may be read and the limits allow."""
    try:
        descriptor = os.open(PATH, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    chunks: list[bytes] = []
    size, until = 0, time.monotonic() + TIME_LIMIT_S
    try:
        while size < SIZE_LIMIT and time.monotonic() < until:
            try:
                chunk = os.read(descriptor, MESSAGE)
            except BrokenPipeError:
                continue  # the next message was overwritten meanwhile; reading goes on after it
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
    except OSError:
        pass  # EAGAIN: that was the newest
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode("utf-8", "replace")
