"""What must not leave the host: which names are secret, which values look it, how a command line is masked. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha256 import sha256  # hashlib would load OpenSSL, 3 ms
    except ImportError:  # Python 3.12 and newer
        try:
            from _sha2 import sha256
        except ImportError:
            from hashlib import sha256

WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "AUTH")
REPORTED = ("VMRECONCILE_", "VLLM_", "HF_", "CUDA_")
STARS = "***"
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


def fingerprint(salt: bytes, name: str, value: str) -> str:
    """HMAC-SHA256(salt, "NAME=value"), its first 16 hex digits (RFC 2104; hashlib's and hmac's import cost 4 ms)."""
    block = salt if len(salt) <= 64 else _sha256(salt)
    block = block.ljust(64, b"\0")
    inner = _sha256(block.translate(_INNER) + "{}={}".format(name, value).encode("utf-8", "replace"))
    return _sha256(block.translate(_OUTER) + inner).hex()[:16]


def _sha256(data: bytes) -> bytes:
    """The digest as bytes."""
    return sha256(data).digest()


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name is taken to hold a secret."""
    upper = name.upper()
    return any(word in upper for word in WORDS)


def value_or_none(name: str, value: str) -> str | None:
    """The value where it may be shown, else None."""
    return None if is_secret_name(name) or mask_text(value) != value else value


def described(salt: bytes, environment: dict[str, str], names: set[str]) -> dict[str, dict[str, str | None]]:
    """What may be told of an environment: ours, vLLM's and the Hub's names, and `names`; fingerprints throughout."""
    return {
        name: {"fingerprint": fingerprint(salt, name, value), "value": value_or_none(name, value)}
        for name, value in sorted(environment.items())
        if name in names or name.startswith(REPORTED) or name == "HUGGING_FACE_HUB_TOKEN"
    }


def _run_of(text: str, at: int) -> int:
    """Where the run of token letters that begins at `at` ends."""
    while at < len(text) and (text[at].isascii() and (text[at].isalnum() or text[at] in "-_")):
        at += 1
    return at


def mask_text(text: str) -> str:
    """Replace what looks like a token (`hf_…`, `sk-…`, 16 letters or more) or a URL's password by `***`."""
    for prefix in ("hf_", "sk-"):
        at = text.find(prefix)
        while at >= 0:
            end = _run_of(text, at)
            fresh = at == 0 or not (text[at - 1].isalnum() or text[at - 1] in "-_")
            if fresh and end - at >= len(prefix) + 16:
                text = text[:at] + STARS + text[end:]
                end = at + len(STARS)
            at = text.find(prefix, end)
    return _mask_urls(text) if "://" in text else text


def _mask_urls(text: str) -> str:
    """Replace `user:password@` after `://`."""
    at = text.find("://")
    while at >= 0:
        start = end = at + 3
        while end < len(text) and text[end] not in "/ \t\n\"'?#":
            end += 1
        sign = text.rfind("@", start, end)
        if sign > start and ":" in text[start:sign]:
            text = text[:start] + STARS + text[sign:]
        at = text.find("://", start)
    return text


def is_secret_option(word: str) -> bool:
    """Whether `--word` takes an API key or a token, in any spelling that argparse accepts."""
    name = word.lstrip("-").replace("_", "-")
    return word.startswith("--") and (
        ("api-key".startswith(name) and len(name) >= 5) or ("hf-token".startswith(name) and len(name) >= 4)
    )


def mask_argv(argv: tuple[str, ...]) -> list[str]:
    """A command line that can be shown: the values of secret options and all that looks like a token replaced."""
    masked: list[str] = []
    hiding = False
    for word in argv:
        option, equals, _ = word.partition("=")
        if is_secret_option(option):
            masked.append(option + equals + STARS if equals else word)
            hiding = not equals
        elif hiding and not word.startswith("-"):
            masked.append(STARS)
        else:
            hiding = False
            masked.append(mask_text(word))
    return masked
