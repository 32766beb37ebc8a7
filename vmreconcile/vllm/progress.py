"""How far a start has come, as its log tells: bars that fill up, and lines that end a piece of work. Pure.

What is only repeated is no progress: a bar counts by the most that it ever showed, so a download that begins anew again
and again stands still. Waiting lines ("Waiting for 1 local engine core proc(s)", "No available shared memory broadcast
block found in 60 seconds") count for nothing, for a start that hangs prints them as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from vmreconcile.vllm.log import bare

_SHARE = re.compile(r"\s(\d{1,3})%(?: Completed)? ?\|")
"""How full a bar of tqdm is, behind its name:
'Loading safetensors checkpoint shards:  50% Completed | 2/4 [' (model_loader/weight_utils.py),
'Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  43%|████ | 22/51 [' (v1/worker/gpu_model_runner.py),
'model-00001-of-00004.safetensors:  45%|████▌ | 1.80G/3.99G [' and 'Fetching 4 files:  25%|' (huggingface_hub)."""

_DONE = re.compile(
    r"Resolved architecture: |Initializing a V[01] LLM engine|Starting to load model |Initializing model took "
    r"|Time spent downloading weights |Loading weights took |Model loading took |model weights take "
    r"|Dynamo bytecode transform time|Compiling a graph for |Directly load the compiled graph|torch\.compile takes "
    r"|Available KV cache memory|KV cache size|Graph capturing finished|init engine \("
    r"|Starting vLLM (?:API )?server|Started server process|Application startup complete"
)
"""Lines that vLLM logs once a piece of the work is done, once a worker or compiled range (0.10 to 0.32.0)."""

_ENDS = re.compile(r"[\r:|%]")
"""What no name of a bar holds."""

_LONGEST, _LONGEST_NAME = 1 << 14, 200

Progress = Mapping[str, int]
"""By piece of work, how far it is: per cent of a bar, times that a line stands in the log."""


def progress_of(lines: Iterable[str]) -> Progress:
    """What the lines of one start tell; a bar that is drawn over and over stands in one line of a log file."""
    found: Counter[str] = Counter()
    for line in lines:
        text = bare(bare(line))[-_LONGEST:]
        for name, share in _bars(text):
            found[f"{name} %"] = max(found[f"{name} %"], share)
        done = _DONE.search(text)
        if done is not None:
            found[done[0]] += 1
    return dict(found)


def _bars(text: str) -> Iterator[tuple[str, int]]:
    """The bars of a line, name and per cent. Goes through a line once, whatever a server wrote there."""
    for share in _SHARE.finditer(text):
        before = text[max(0, share.start() - _LONGEST_NAME) : share.start()].rstrip().removesuffix(":")
        name = _ENDS.split(before)[-1].strip()
        if name:
            yield name, int(share[1])


def further(before: Progress, now: Progress) -> bool:
    """Whether any piece of work has come further, or another one was begun."""
    return any(reached > before.get(name, -1) for name, reached in now.items())
