"""API keys: every route that tells of energy asks for one, and a tenant sees its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sim_server import simulating
from wattserve.http.keys import KeyFileError, Keys, tag_of

FIRST, SECOND = "key-of-the-first", "key-of-the-second"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def complete(client: httpx.Client, name: str, **headers: str) -> httpx.Response:
    body = {"prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": True}
    return client.post("/v1/completions", json=body, headers={"x-request-id": name, **headers})


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        simulating(keys=Keys([FIRST, SECOND])) as (url, _),
        httpx.Client(base_url=url, timeout=20) as asked,
    ):
        yield asked


WINDOW = "start=1&end=2"
ROUTES = ["/energy", f"/energy?{WINDOW}", f"/energy?{WINDOW}&group_by=tag", f"/energy/series?{WINDOW}"]
ROUTES += ["/energy/clock", "/energy/requests/a", "/v1/models", "/metrics", "/energy/../energy", "//energy"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), {"authorization": "Bearer"}, {"authorization": FIRST},
     {"authorization": f"Basic {FIRST}"}, {"x-api-key": FIRST}, bearer(f"{FIRST} x"), bearer(tag_of(FIRST))],
)  # fmt: skip
def test_no_route_answers_without_a_right_key(
    client: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == 401
    assert "an API key is needed" in answer.json()["error"]["message"]
    assert FIRST not in answer.text


def test_what_only_says_that_it_lives_is_open(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/energy", headers=bearer(SECOND)).status_code == 200
    assert client.get("/energy", headers={"authorization": f"bearer  {SECOND}"}).status_code == 200


def test_a_tenant_is_its_key_and_sees_its_own(client: httpx.Client) -> None:
    begin = time.time()
    assert complete(client, "of-first", **bearer(FIRST), **{"x-energy-group": "somebody"}).status_code == 200
    assert complete(client, "of-second", **bearer(SECOND)).status_code == 200
    own = client.get("/energy/requests/of-first", headers=bearer(FIRST))
    assert own.json()["group"] == tag_of(FIRST), "and not what the client says"
    assert client.get("/energy/requests/of-first", headers=bearer(SECOND)).status_code == 404
    both = {"ids": ["of-first", "of-second"]}
    asked = client.post("/energy/requests", json=both, headers=bearer(SECOND)).json()["requests"]
    assert [entry["status"] == "unknown" for entry in asked] == [True, False]
    deadline = time.monotonic() + 60
    while True:
        query = f"/energy?start={begin}&end={time.time()}&group_by=tag"
        groups = client.get(query, headers=bearer(SECOND)).json()["groups"]
        if groups:
            break
        assert time.monotonic() < deadline, "the second's joules are never told"
        time.sleep(0.1)
    assert set(groups) == {tag_of(SECOND)}


def test_requests_without_a_key_leave_no_trace(client: httpx.Client) -> None:
    """100,000 of them pushed everybody's settled requests out; and ids of others were taken over."""
    assert complete(client, "victim", **bearer(FIRST)).status_code == 200
    before = client.get("/energy/requests/victim", headers=bearer(FIRST)).json()
    for _ in range(20):
        assert complete(client, "victim", **bearer("wrong")).status_code == 401
    after = client.get("/energy/requests/victim", headers=bearer(FIRST)).json()
    assert (after["group"], after["output_tokens"]) == (before["group"], 5)
    assert "request_id_reused" not in after["flags"]


def test_a_bad_request_with_anothers_id_takes_nothing(client: httpx.Client) -> None:
    assert complete(client, "mine", **bearer(FIRST)).status_code == 200
    bad = client.post(
        "/v1/completions", json={"prompt": []}, headers={"x-request-id": "mine", **bearer(SECOND)}
    )
    assert bad.status_code == 400
    assert bad.headers["x-request-id"] != "mine"
    mine = client.get("/energy/requests/mine", headers=bearer(FIRST)).json()
    assert (mine["group"], mine["output_tokens"], mine["aborted"]) == (tag_of(FIRST), 5, False)


def test_behind_a_proxy_the_header_names_the_tenant() -> None:
    keys = Keys([FIRST, SECOND], tenant_from="header")
    with simulating(keys=keys) as (url, _), httpx.Client(base_url=url, timeout=20) as asked:
        assert complete(asked, "a", **bearer(FIRST), **{"x-energy-group": "shop"}).status_code == 200
        seen = asked.get("/energy/requests/a", headers=bearer(SECOND)).json()
    assert seen["group"] == "shop"


def test_one_key_opens_everything_and_the_header_names_the_tenant() -> None:
    assert Keys([FIRST]).tenant_from == "header"
    assert Keys([FIRST, SECOND]).tenant_from == "key"
    assert Keys([FIRST], tenant_from="key").tenant_from == "key"
    assert not Keys([])
    assert Keys.closed()


@pytest.mark.parametrize(("flags", "variable", "count"), [
    ((), "", 0), (("a",), "b,c", 1), ((), "b, c ,d", 3), ((), " ,", 0),
])  # fmt: skip
def test_keys_come_from_flags_or_the_environment(flags: tuple[str, ...], variable: str, count: int) -> None:
    keys = Keys.given(flags, {"WATTSERVE_API_KEY": variable})
    given = [*flags] or [part.strip() for part in variable.split(",") if part.strip()]
    opened = [keys.tenant([(b"authorization", f"Bearer {key}".encode())]) for key in given]
    assert opened == [tag_of(key) for key in given]
    assert len(given) == count


@pytest.mark.parametrize("key", ["", "two words", "caf\u00e9", "a\nb"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(KeyFileError, match="WATTSERVE_API_KEY"):
        Keys.given([key], {})


def test_a_servers_own_meter_opens_to_nobody() -> None:
    from wattserve.meter.process import MeterOptions

    options: Any = MeterOptions(child=True, api_keys=("secret-key",))
    assert "secret-key" not in options.as_json()
    assert options.keys().tenant([(b"authorization", b"Bearer secret-key")]) is None
