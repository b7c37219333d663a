"""Master and workers prove themselves: a stranger on either side gets nothing, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattload.errors import InputError
from wattload.load.distributed.given import Given
from wattload.load.distributed.secret import (
    VARIABLE,
    WINDOW,
    Handshake,
    SealError,
    check_reachable,
    given_secret,
    new_secret,
    nonce,
)

SECRET = "a secret of many characters"
KEY = "K3y-that-nobody-may-see"


def pair(mine: str = SECRET, theirs: str = SECRET) -> tuple[Handshake, Handshake]:
    """The handshakes of a master and a worker with these secrets."""
    of_worker, of_master = nonce(), nonce()
    return Handshake(mine, "w1", of_worker, of_master), Handshake(theirs, "w1", of_worker, of_master)


def test_both_prove_that_they_know_the_secret() -> None:
    master, worker = pair()
    assert worker.is_master(master.of_master)
    assert master.is_worker(worker.of_worker)
    assert not worker.is_master(worker.of_worker), "what one side proves is no proof of the other"


@pytest.mark.parametrize("theirs", ["", "another secret, as long", SECRET + " "])
def test_who_does_not_know_it_is_nobody(theirs: str) -> None:
    master, stranger = pair(theirs=theirs)
    assert not master.is_worker(stranger.of_worker)
    assert not stranger.is_master(master.of_master)
    assert not master.is_worker(None)
    assert not master.is_worker("text")


def test_a_proof_holds_for_its_conversation_and_worker_alone() -> None:
    of_worker, of_master = nonce(), nonce()
    first = Handshake(SECRET, "w1", of_worker, of_master)
    for other in (
        Handshake(SECRET, "w2", of_worker, of_master),
        Handshake(SECRET, "w1", nonce(), of_master),
        Handshake(SECRET, "w1", of_worker, nonce()),
    ):
        assert not other.is_worker(first.of_worker)


data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["rows", "plan"]), data), max_size=6))
def test_what_is_sealed_comes_out_as_it_went_in(told: list[tuple[str, Any]]) -> None:
    master, worker = pair()
    sending, taking = master.seal(master=True), worker.seal(master=False)
    for kind, value in told:
        assert taking.open(kind, sending.close(kind, value)) == value


def broken(sealed: dict[str, Any]) -> list[Any]:
    """Everything that is not what was sealed."""
    flipped = bytes([sealed["body"][0] ^ 1]) + sealed["body"][1:]
    changed = [{"body": flipped}, {"number": sealed["number"] + 1}, {"mac": b"\0" * 32}, {"mac": "text"}]
    unsealed = [{"body": sealed["body"]}, None, [], sealed["body"], {**sealed, "number": "1"}]
    return [*({**sealed, **change} for change in changed), *unsealed]


def test_what_was_changed_or_made_by_others_is_refused() -> None:
    master, worker = pair()
    sending, taking = master.seal(master=True), worker.seal(master=False)
    sealed = sending.close("plan", {"rows": [1, 2]})
    for wrong in broken(sealed):
        with pytest.raises(SealError, match="seal"):
            taking.open("plan", wrong)
    with pytest.raises(SealError, match="wrong seal"):
        taking.open("stop", sealed)
    with pytest.raises(SealError, match="wrong seal"):
        worker.seal(master=False).open("plan", worker.seal(master=False).close("plan", {}))
    assert taking.open("plan", sealed) == {"rows": [1, 2]}


def test_a_message_comes_once_and_places_may_change() -> None:
    master, worker = pair()
    sending, taking = worker.seal(master=False), master.seal(master=True)
    sealed = [sending.close("rows", number) for number in range(3 * WINDOW)]
    for first in range(0, 3 * WINDOW, 2):
        second = first + 1
        assert taking.open("rows", sealed[second]) == second
        assert taking.open("rows", sealed[first]) == first
    for again in (0, WINDOW, 3 * WINDOW - 1):
        with pytest.raises(SealError, match="came before"):
            taking.open("rows", sealed[again])


def test_where_the_secret_comes_from(tmp_path: Path) -> None:
    assert given_secret(None, {}) == ""
    assert given_secret(None, {VARIABLE: f" {SECRET}\n"}) == SECRET
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    assert given_secret(file, {VARIABLE: "of the variable, which the file wins over"}) == SECRET
    assert len(new_secret()) >= 32
    assert new_secret() != new_secret()
    for text in ("", "short"):
        file.write_text(text)
        with pytest.raises(InputError, match="fewer than 16 characters"):
            given_secret(file, {})
    with pytest.raises(InputError, match="cannot be read"):
        given_secret(tmp_path / "none", {})


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "10.0.0.1", "::"])
def test_a_master_that_strangers_reach_needs_a_secret(host: str) -> None:
    with pytest.raises(InputError, match=VARIABLE):
        check_reachable(host, "")
    check_reachable(host, SECRET)
    check_reachable("127.0.0.1", "")


def test_what_is_given_on_one_host_completes_what_the_master_tells() -> None:
    own = Given(SECRET, (f"X-Key: {KEY}", "Accept: a/b"), {"api_key": KEY})
    assert Given.of_line(own.line()) == own
    told = {"url": "http://h:1", "header": ["Accept: text/plain"]}
    options, requests = own.options(told, {}, ["X-Key", "body"])
    assert options.header == ["Accept: text/plain", f"X-Key: {KEY}"]
    assert requests.body == {"api_key": KEY}


@pytest.mark.parametrize(("withheld", "said"), [(["X-Key"], "--header 'X-Key"), (["body"], "--body")])
def test_a_worker_that_lacks_a_secret_says_which(withheld: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Given().options({"url": "http://h:1"}, {}, withheld)


def test_the_line_for_processes_is_one_line() -> None:
    line = Given("s", ("A: b\u2028c",), {"x": "\n"}).line()
    assert line.count(b"\n") == 1
    json.loads(line)
