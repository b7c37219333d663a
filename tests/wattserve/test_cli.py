"""The command line of the server: what nobody foresaw is a sentence too."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from wattserve import cli


@pytest.mark.parametrize("debug", ["0", "1"])
def test_an_unforeseen_error_is_one_sentence_and_a_file(
    debug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: str) -> None:
        raise KeyError("limits")

    monkeypatch.setattr("wattserve.sim.profile.load_profile", broken)
    monkeypatch.setattr(sys, "argv", ["wattserve", "profiles", "--name", "h200-llama-3.1-8b"])
    monkeypatch.setenv("WATTSERVE_DEBUG", debug)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.splitlines()[-1].startswith("wattserve: unexpected error: KeyError: 'limits'; ")
    if debug == "1":
        assert "Traceback" in said
        return
    assert len(said.splitlines()) == 1
    (kept,) = tmp_path.glob("wattserve-*.traceback.txt")
    assert str(kept) in said
    assert "in broken" in kept.read_text()
