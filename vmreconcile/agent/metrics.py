"""What a server's page of metrics says, in Prometheus' text format: requests, and the KV cache as it was configured."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def parse_metrics(body: bytes) -> dict[str, Any]:
    """The few of vLLM's metrics that tell what it is doing and what it settled for."""
    found: dict[str, Any] = {"requests_running": None, "requests_waiting": None, "cache_config": {}}
    wanted = {b"vllm:num_requests_running": "requests_running", b"vllm:num_requests_waiting": "requests_waiting"}
    for line in body.split(b"\n"):
        if not line.startswith(b"vllm:"):
            continue
        name = line.partition(b"{")[0].partition(b" ")[0]
        if name in wanted:
            found[wanted[name]] = (found[wanted[name]] or 0) + _count(line)
        elif name == b"vllm:cache_config_info" and not found["cache_config"]:
            labels = line[len(name) + 1 : line.rfind(b"}")].decode("utf-8", "backslashreplace")
            found["cache_config"] = parse_labels(labels)
    return found


def _count(line: bytes) -> int:
    """The value at the end of a sample line."""
    try:
        return int(float(line.rpartition(b" ")[2]))
    except (ValueError, OverflowError):
        return 0


def parse_labels(text: str) -> dict[str, str]:
    """Split `a="x",b="y"` (the Prometheus text format: backslash escapes quote, backslash and newline)."""
    found = {}
    at, end = 0, text.find('="')
    while end >= 0:
        name = text[at:end].strip(", ")
        found[name], at = _label(text, end + 2)
        end = text.find('="', at)
    return found


def _label(text: str, at: int) -> tuple[str, int]:
    """The value that begins at `at`, and where what follows it begins; goes through each letter once."""
    parts: list[str] = []
    end = _find(text, '"', at)
    while True:
        slash = text.find("\\", at, end)
        if slash < 0 or slash + 1 == len(text):
            return "".join([*parts, text[at:end]]), end + 1
        parts += [text[at:slash], {"n": "\n"}.get(text[slash + 1], text[slash + 1])]
        at = slash + 2
        if at > end:
            end = _find(text, '"', at)


def _find(text: str, letter: str, at: int) -> int:
    """Where a letter comes next; the end of the text where it does not."""
    found = text.find(letter, at)
    return found if found >= 0 else len(text)
