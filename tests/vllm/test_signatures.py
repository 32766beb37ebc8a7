"""Why a start failed, read from logs: recorded (shortened) from vLLM 0.32.0 on a CPU and 0.22.1 on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreconcile.vllm.signatures import cause, explain, signatures

LOGS = Path(__file__).parent / "logs"
FAILED = sorted(path.stem for path in LOGS.glob("*.log") if not path.stem.startswith(("ready", "died")))
LAST_WORDS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


def log(name: str) -> list[str]:
    """The lines of one recorded log."""
    return (LOGS / f"{name}.log").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", FAILED)
def test_each_log_is_explained(name: str) -> None:
    """The class is that of the log's name, the evidence is a line of the log, and the way out is said in full."""
    lines = log(name)
    found = explain(lines, 2 if name in ("unknown_argument", "bad_argument") else 1)
    assert found is not None
    assert found.kind == name.partition("-")[0]
    assert found.evidence.rpartition(": ")[2].rstrip("…")[:60] in lines[found.line - 1]
    assert "{" not in found.summary + found.remedy.replace("{server}", "").replace("{host}", "")
    assert "?" not in found.summary
    assert "Engine core initialization failed" not in found.evidence or found.kind == "killed"
    assert explain(lines) == found


def test_every_class_has_a_log() -> None:
    """No signature without a log that shows it."""
    assert {signature.kind for signature in signatures()} == {name.partition("-")[0] for name in FAILED}


@pytest.mark.parametrize(
    ("name", "summary", "line_holds"),
    [
        ("kv_too_small", "the KV cache for max_model_len 2048 needs 0.0 GiB, 0.0 GiB are left", "core.py"),
        ("gpu_already_used", "5.06 of 79.18 GiB are free, gpu_memory_utilization 0.92 wants 72.84 GiB", "Free memory"),
        ("max_model_len", "max_model_len 999999 is more than the model was made for (2048)", "User-specified"),
        ("not_enough_gpus", "2 GPUs are wanted, 1 are there", "World size"),
        ("unknown_argument", "this vLLM has no argument --swap-space", "error: unrecognized"),
        ("out_of_memory", "the GPU ran out of memory", "Failed to load model"),
        ("invalid_setting-range", "vLLM refuses a setting: Input should be less than or equal to 1", "Input should"),
    ],
)
def test_numbers_of_the_log_are_in_the_summary(name: str, summary: str, line_holds: str) -> None:
    """The summary carries the log's own numbers, and the line is the first that shows the cause."""
    found = explain(log(name))
    assert found is not None
    assert found.summary == summary
    assert line_holds in log(name)[found.line - 1]


def test_evidence_names_the_setting_of_the_line_before() -> None:
    """Pydantic names the setting one line ahead of what is wrong with it."""
    found = explain(log("invalid_setting-range"))
    assert found is not None
    assert found.evidence.startswith("gpu_memory_utilization: Input should be less than or equal to 1")


def test_the_generic_last_line_is_no_cause() -> None:
    """'Engine core initialization failed' alone explains nothing."""
    assert explain([LAST_WORDS]) is None
    assert explain([]) is None
    assert explain(log("ready-gpu")) is None
    assert explain(log("ready-cpu")) is None


KEY_ERROR = "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] KeyError: 'frobnicate'"


@pytest.mark.parametrize(
    ("lines", "evidence"),
    [
        ([KEY_ERROR, "Process EngineCore:", LAST_WORDS], "KeyError: 'frobnicate'"),
        ([KEY_ERROR, LAST_WORDS, "ConnectionResetError: [Errno 104] while shutting down"], "KeyError: 'frobnicate'"),
        (
            [
                "(Worker pid=9) ERROR 01-31 12:00:00 [multiproc_executor.py:9] WorkerProc failed to start.",
                "(Worker pid=9) ERROR 01-31 12:00:00 [multiproc_executor.py:9] [rank0]: acme.OddError: no",
                "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] Exception: WorkerProc initialization failed. See",
                LAST_WORDS,
            ],
            "[rank0]: acme.OddError: no",
        ),
        (["Traceback (most recent call last):", "ImportError: libcudart.so.12: cannot open", ""], "ImportError: "),
        ([*log("ready-cpu"), KEY_ERROR, "AsyncLLM: EngineDeadError", "a.EngineDeadError: x", ""], "KeyError: "),
    ],
)
def test_an_unknown_cause_is_the_error_above_the_generic_words(lines: list[str], evidence: str) -> None:
    """The root's exception, not what follows from it, nor what vLLM says of any end."""
    found = cause(lines)
    assert found is not None
    assert found.kind == "died"
    assert found.evidence.startswith(evidence)
    assert cause(lines, ended=True) == found


def test_a_recorded_end_that_no_signature_knows() -> None:
    """Weights that were cut off: the worker's exception, which the engine and the API server hand on without it."""
    lines = log("died")
    assert explain(lines) is None
    found = cause(lines, 1)
    assert found is not None
    assert found.evidence.startswith("safetensors._safetensors_rust.SafetensorError: Error while deserializing header")
    assert found.evidence in lines[found.line - 1]


def test_a_root_that_was_killed_says_nothing_itself() -> None:
    """Its exit code tells, and the log only how far it had come; a cause that the log knows goes before."""
    found = cause(["(APIServer pid=4) INFO 11-25 17:09:27 [loader.py:1] Starting to load model", ""], -9, ended=True)
    assert found is not None
    assert (found.kind, found.evidence, found.line) == ("killed", "Starting to load model", 1)
    assert "journalctl -k" in found.remedy
    silent = cause([], -9, ended=True)
    assert silent is not None
    assert (silent.kind, silent.evidence) == ("killed", "")
    known = cause(log("out_of_memory"), -9, ended=True)
    assert known is not None
    assert known.kind == "out_of_memory"


def test_what_goes_on_is_not_called_dead() -> None:
    """A logged error of a request or a retry ends nothing, nor does a person who stops a server."""
    for name in ("ready-cpu", "ready-gpu"):
        lines = [*log(name), KEY_ERROR, "  Value error, of a request [type=value_error]"]
        assert cause(lines) is None
    served = '(APIServer pid=4) INFO:     127.0.0.1:4 - "POST /v1/completions HTTP/1.1" 400 Bad Request'
    assert cause([served, "  Value error, of a request [type=value_error]"]) is None
    assert cause([KEY_ERROR, "and on it goes"]) is None
    assert cause(["Traceback (most recent call last):", "KeyboardInterrupt: terminated"]) is None


def test_only_what_says_something_is_the_last_line() -> None:
    """Where nothing else is known of an end: the last line that is neither empty nor generic; there may be none."""
    found = cause(["Segmentation fault", LAST_WORDS, ""], ended=True)
    assert found is not None
    assert found.evidence == "Segmentation fault"
    assert cause([LAST_WORDS, ""], ended=True) is None
    assert cause(["Segmentation fault"]) is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("401 Client Error: Unauthorized for url: https://huggingface.co/a/b/resolve/main/config.json", "bad_token"),
        ("httpx2.HTTPStatusError: Client error '401 Unauthorized' for url 'https://huggingface.co/a/b'", "bad_token"),
        ("403 Client Error: Forbidden for url: https://huggingface.co/a/b/resolve/main/config.json", "gated"),
        ("httpx2.HTTPStatusError: Client error '403 Forbidden' for url 'https://huggingface.co/a/b'", "gated"),
    ],
)
def test_the_hubs_refusal_alone_is_told(line: str, kind: str) -> None:
    """The guide's symptom with no further word, though transformers calls it a lack of connection."""
    found = explain([line, "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and"])
    assert found is not None
    assert found.kind == kind


def test_a_token_that_lacks_a_permission_is_not_one_without_access() -> None:
    """The Hub says what a fine-grained token lacks: the way out is at the token, not at the model's page."""
    found = explain(log("gated-fine_grained"))
    assert found is not None
    assert "fine-grained token settings" in found.evidence
    assert found.remedy.startswith("edit the token at the Hub")
    assert "is expired" in explain(log("bad_token-expired")).evidence


def test_the_earliest_cause_wins() -> None:
    """Consequences come later in the log; weak signatures give way wherever they stand."""
    lines = ["PermissionError: [Errno 13] Permission denied: '/x'", *log("no_kv_memory"), *log("port_in_use")[-2:]]
    found = explain(lines)
    assert found is not None
    assert found.kind == "no_kv_memory"


def test_the_latest_start_wins() -> None:
    """A log with several starts is read from the latest; an earlier failure is none of its business."""
    found = explain(log("out_of_memory") + log("gpu_already_used"))
    assert found is not None
    assert found.kind == "gpu_already_used"
    assert found.line > len(log("out_of_memory"))
    assert explain(log("ready-gpu") + log("unknown_argument"), 2).kind == "unknown_argument"
    assert explain(log("out_of_memory") + log("unknown_argument"), 2).kind == "unknown_argument"
    assert explain(log("ready-gpu") + log("unknown_argument")).kind == "unknown_argument"


def test_tokens_are_taken_out_of_the_evidence() -> None:
    """A token on a refused command line does not travel with the explanation."""
    found = explain(["vllm: error: unrecognized arguments: --hf-tok hf_sentinelsentinel"], 2)
    assert found is not None
    assert "sentinel" not in found.evidence + found.summary


def test_an_exception_whose_text_begins_on_its_next_line_is_told_with_it() -> None:
    """Python's multiprocessing, for one, leaves the first line empty."""
    lines = ["RuntimeError:", "", "        An attempt has been made to start a new process too early.", "        More."]
    found = cause(lines)
    assert found is not None
    assert found.evidence == "RuntimeError: An attempt has been made to start a new process too early."
    alone = cause(["RuntimeError:"])
    assert alone is not None
    assert alone.evidence == "RuntimeError"


def test_neither_questions_nor_the_inside_of_a_traceback_are_last_words() -> None:
    """An engine that dies once it was ready leaves generic words: what stands before them is told, not who asked."""
    lines = [
        "INFO:     Application startup complete.",
        "(APIServer pid=4) ERROR 01-31 12:00:00 [async_llm.py:906] AsyncLLM output_handler failed.",
        "Traceback (most recent call last):",
        '  File "vllm/v1/engine/core_client.py", line 1, in get',
        "    raise",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above).",
        'INFO:     127.0.0.1:1 - "GET /v1/models HTTP/1.1" 200 OK',
    ]
    found = cause(lines, 0, ended=True)
    assert found is not None
    assert (found.kind, found.evidence) == ("died", "AsyncLLM output_handler failed.")
