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
HUB, ORGANISATION, KEY = "hf_", "api_org_", "sk-"
LEAST = 16  # letters of a token behind its prefix
_HEX = "0123456789abcdefABCDEF"
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


def _is_letter(letter: str) -> bool:
    """Whether a token may hold this letter."""
    return letter.isascii() and (letter.isalnum() or letter in "-_")


def _run_of(text: str, at: int) -> int:
    """Where the run of token letters that begins at `at` ends."""
    while at < len(text) and _is_letter(text[at]):
        at += 1
    return at


def _is_fresh(text: str, at: int) -> bool:
    """Whether a word begins at `at`: behind what belongs to none, an escape, a colour's code or a URL's `%3D`."""
    before, two, three = text[at - 1 : at], text[max(at - 2, 0) : at], text[max(at - 3, 0) : at]
    if not before or not _is_letter(before) or two in ("\\n", "\\r", "\\t"):
        return True
    colour = len(two) == 2 and two[1] == "m" and two[0] in "0123456789;["
    return colour or (len(three) == 3 and three[0] == "%" and all(letter in _HEX for letter in two))


def _is_token(text: str, at: int, prefix: str, end: int) -> bool:
    """Whether the word from `at` to `end` is a token: a Hub's with 16 letters and digits, wherever it begins."""
    start = at + len(prefix)
    if end - start < LEAST:
        return False
    plain = text[start : start + LEAST].replace("-", "_")
    return (prefix != KEY and "_" not in plain) or (prefix != ORGANISATION and _is_fresh(text, at))


def mask_text(text: str) -> str:
    """Replace what looks like a token (`hf_…`, `api_org_…`, `sk-…`, 16 letters or more) or a URL's password by `***`.

    The controller has the same rules (model/showing.py).
    """
    for prefix in (HUB, ORGANISATION, KEY):
        at, end = text.find(prefix), 0
        while at >= 0:
            end = _run_of(text, max(at, end))  # a run is gone through once, however often the prefix is in it
            step = at + len(prefix)
            if _is_token(text, at, prefix, end):
                text = text[:at] + STARS + text[end:]
                step = end = at + len(STARS)
            at = text.find(prefix, step)
    return _mask_urls(text) if "://" in text else text


def _mask_urls(text: str) -> str:
    """Replace `user:password@` after `://`."""
    at, word_end = text.find("://"), 0
    while at >= 0:
        start = at + 3
        word_end = _reach(text, max(start, word_end), "")  # a word is gone through once, whatever is in it
        sign = _password_end(text, start, word_end)
        if sign:
            text = text[:start] + STARS + text[sign:]
            word_end += start + len(STARS) - sign
        at = text.find("://", start)
    return text


def _password_end(text: str, start: int, word_end: int) -> int:
    """Where the password of a URL that goes on at `start`, in a word up to `word_end`, ends, at its `@`; 0 for none.

    A password that nobody escaped may hold what ends a host's name; behind a port, though, that is a path.
    """
    end = _reach(text, start, "/?#")
    sign = text.rfind("@", start, end)
    if sign > start and ":" in text[start:sign]:
        return sign
    user, colon, rest = text[start:end].partition(":")
    if not colon or "@" in user or "[" in user or not rest or (rest.isdigit() and len(rest) <= 5):
        return 0
    return max(text.rfind("@", end, word_end), 0)


def _reach(text: str, at: int, stops: str) -> int:
    """Where an address that goes on at `at` ends: at a blank, a quote or one of `stops`."""
    while at < len(text) and text[at] not in stops and text[at] not in "\"'" and not text[at].isspace():
        at += 1
    return at


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
