"""What a plan tells of an edited unit: the directives that differ, and no secret that a person wrote there."""

from __future__ import annotations

import pytest

from vmreconcile.runtimes.unit_files import telling, unit_differences

SECRET = "Sh0rt!"


def test_differences_show_both_values() -> None:
    """None where a side has no such directive; repeated ones together."""
    assert unit_differences("[A]\nX=1\nY=2\n", "[A]\nX=3\nZ=4\nZ=5\n") == (
        ("X", "1", "3"),
        ("Y", "2", None),
        ("Z", None, "4 5"),
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"ExecStart=/bin/vllm serve m --api-key {SECRET} x --port 1", "/bin/vllm serve m --api-key *** *** --port 1"),
        (f'ExecStart="/bin/vllm" "serve" "--api-key" "{SECRET} 2"', '"/bin/vllm" "serve" "--api-key" ***'),
        (f"ExecStart=/bin/vllm serve --api_k={SECRET}", "/bin/vllm serve --api_k=***"),
        (
            f'ExecStart=/bin/vllm serve "--hf-token={SECRET}" --tokenizer t',
            "/bin/vllm serve --hf-token=*** --tokenizer t",
        ),
        (f"ExecStart=/usr/bin/env HF_TOKEN={SECRET} A=1 vllm serve", "/usr/bin/env HF_TOKEN=*** A=1 vllm serve"),
        (f"ExecStart=/usr/bin/env 'HF_TOKEN={SECRET}' vllm", "/usr/bin/env HF_TOKEN=*** vllm"),
        (f"ExecStart=/bin/sh -c 'A=1;HF_TOKEN={SECRET} exec vllm serve'", "/bin/sh -c ***"),
        (f'ExecStart=/bin/sh -c "exec vllm serve --api-key {SECRET}"', "/bin/sh -c ***"),
        (f"ExecStart=/bin/vllm \\\n  serve --api-key={SECRET} \\\n  m", "/bin/vllm    serve --api-key=***    m"),
        (f"ExecStart=/bin/vllm \\\n# HF_TOKEN={SECRET}\n serve", "/bin/vllm   serve"),
        (f"ExecStartPre=/usr/bin/curl https://me:{SECRET}@hub", "/usr/bin/curl https://***@hub"),
        ("ExecStart=/bin/vllm serve xhf_" + "a1B2" * 8, "/bin/vllm serve x***"),
        (f"Environment=A={SECRET}", "(hidden)"),
        (f"SetCredential=a:{SECRET}", "(hidden)"),
        (f"HF_TOKEN={SECRET}", "(hidden)"),
        (f"TOKEN={SECRET}", "(hidden)"),
        ("Restart=no", "no"),
        ("ExecStart=", ""),
        ('ExecStart=/bin/sh -c "vllm serve" \'', '/bin/sh -c "vllm serve" \''),
    ],
)
def test_a_secret_in_an_edited_unit_is_not_told(line: str, shown: str) -> None:
    """Neither as a difference nor in what a digest is made of; the rest of a line is."""
    name = line.partition("=")[0]
    assert unit_differences(f"[Service]\n{line}\n", "[Service]\n") == ((name, shown, None),)
    assert telling(f"# {SECRET}\n[Service]\n{line}\n").startswith(f"{name}={shown}\n")
    assert SECRET not in telling(f"# {SECRET}\n[Service]\n{line}\n")


def test_units_are_compared_as_they_are() -> None:
    """Where only the secret differs, the directive does."""
    old, new = (f"ExecStart=/bin/vllm serve --api-key {word}\n" for word in (SECRET, "***"))
    assert unit_differences(old, new) == (("ExecStart", "/bin/vllm serve --api-key ***", new[10:-1]),)
