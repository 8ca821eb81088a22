"""The programs that run a command in a virtual machine, alone and without ssh: whatever the words, whichever the login
shell."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.access.remote_script import GO, Command, Ear, render_first, render_line
from tests.support.examples import fix_examples

fix_examples()

SHELLS = [path for path in map(shutil.which, ("sh", "dash", "bash", "zsh", "fish", "tcsh")) if path]
WORDS = st.lists(st.binary(max_size=60).map(lambda word: word.replace(b"\0", b"")), max_size=6)


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS, value=st.binary(max_size=30).map(lambda word: word.replace(b"\0", b"")), code=st.integers(0, 255))
def test_any_shell_passes_any_words(shell: str, words: list[bytes], value: bytes, code: int) -> None:
    nonce = "ab" * 16
    script = 'printf "%s\\000" "$PWD" "$VALUE" "$@"; cat; echo error >&2; exit ' + str(code)
    argv = ["sh", "-c", script, "sh", *map(os.fsdecode, words)]
    command = Command("/var", {"PATH": os.defpath, "VALUE": os.fsdecode(value)}, argv)
    program = render_first(command, nonce, terminal=False) + GO + b"the input\n\n"
    line = [shell, "-c", render_line(nonce)]
    result = subprocess.run(line, input=program, capture_output=True, timeout=30, env={"PATH": os.defpath})
    output, errors = Ear(nonce, has_end=False), Ear(nonce, has_end=True)
    assert (
        output.take(result.stdout) == b"".join(b"%s\0" % word for word in [b"/var", value, *words]) + b"the input\n\n"
    )
    assert errors.take(result.stderr) == b"error\n"
    assert errors.code == result.returncode == code
