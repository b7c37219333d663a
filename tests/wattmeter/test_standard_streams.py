"""Commands that are started without stdin, stdout or stderr, or with ones that take nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wattmeter.standard_streams import give_up, say

PYTHON = sys.executable
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def in_shell(code: str, redirected: str, argument: str = "") -> subprocess.CompletedProcess[str]:
    """Python with `code`, its streams as the shell's `redirected` says."""
    return subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" "$2" {redirected}', PYTHON, code, argument],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_opened_on_nothing(tmp_path: Path, closed: str) -> None:
    code = """if True:
        import os, sys
        from wattmeter.standard_streams import open_standard_streams
        open_standard_streams()
        with open(sys.argv[1], "w") as file:
            print("out"); print("err", file=sys.stderr, flush=True); sys.stdin.read()
            os.write(1, b"from a library"); os.write(2, b"from another")
            file.write(str(file.fileno() > 2))
    """
    kept = tmp_path / "kept"
    done = in_shell(code, closed if "<" in closed else f"{closed} </dev/null", str(kept))
    assert done.returncode == 0, done.stderr
    assert kept.read_text() == "True"
    assert ("out" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert ("err" in done.stderr) == ("2>&-" not in closed)


@needs_full
@pytest.mark.parametrize(("redirected", "error"), [(">/dev/full", False), ("2>/dev/full", True)])
def test_a_line_that_cannot_be_printed_is_lost_and_nothing_else(redirected: str, error: bool) -> None:
    code = f"from wattmeter.standard_streams import say\nfor i in range(3): say('a line', error={error})"
    done = in_shell(code, redirected)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_full
def test_what_was_buffered_does_not_change_the_status() -> None:
    code = """if True:
        import sys
        from wattmeter.standard_streams import give_up
        print("waits in the buffer")
        give_up(sys.stdout)
        sys.exit(3)
    """
    done = in_shell(code, ">/dev/full")
    assert (done.returncode, done.stderr) == (3, "")


def test_a_line_is_printed_where_it_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    say("to stdout")
    say("to stderr", error=True)
    assert capsys.readouterr() == ("to stdout\n", "to stderr\n")


def test_a_stream_without_a_descriptor_cannot_be_given_up() -> None:
    with pytest.raises(io.UnsupportedOperation):
        give_up(io.StringIO())


WATTLOAD = "from wattload.cli import main; import sys; sys.argv[1:] = sys.argv[1].split(); main()"
WATTSERVE = "from wattserve.cli import main; import sys; sys.argv[1:] = sys.argv[1].split(); main()"


@pytest.mark.parametrize(
    "redirected",
    ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", pytest.param("2>/dev/full", marks=needs_full)],
)
@pytest.mark.parametrize(
    ("code", "arguments"),
    [(WATTLOAD, "report no-such-run"), (WATTSERVE, "meter --meter recorded:no-such-file")],
)
def test_bad_input_has_its_status_whatever_can_be_printed(code: str, arguments: str, redirected: str) -> None:
    done = in_shell(code, redirected, arguments)
    assert (done.returncode, done.stderr) == (2, "")


@needs_full
@pytest.mark.parametrize(("code", "name"), [(WATTLOAD, "wattload"), (WATTSERVE, "wattserve")])
def test_an_answer_that_cannot_be_printed_is_one_sentence(code: str, name: str) -> None:
    done = in_shell(code, ">/dev/full", "--version")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: ")
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("code", [WATTLOAD, WATTSERVE])
def test_without_stdout_a_command_does_what_it_does(code: str) -> None:
    done = in_shell(code, ">&-", "--version")
    assert (done.returncode, done.stderr) == (0, "")
