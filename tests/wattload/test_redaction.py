"""No secret is written down: not where it was set, not where a server echoes it, not in an address."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattload.config import load
from wattload.errors import InputError
from wattload.redaction import HIDDEN, Redactor, header_line, plain, secrets_of, without_credentials
from wattload.rundir.host import command_line

KEY = "K3y-that-nobody-may-see"
BASE = {"url": "http://h:1", "trace": "conv"}


@pytest.mark.parametrize(
    "name",
    ["Authorization", "X-Api-Key", "X-Auth-Token", "X-Custom-Token", "Ocp-Apim-Subscription-Key", "cf-access",
     "Cookie", "X-Anything-At-All", "Proxy-Authorization", "X-Tenant"],
)  # fmt: skip
def test_every_header_is_hidden_that_is_not_known_to_be_harmless(name: str) -> None:
    assert KEY not in str(load({**BASE, "header": [f"{name}: {KEY}"]}).saved())
    assert header_line(f"{name}: {KEY}") == f"{name}: {HIDDEN}"
    assert header_line("Accept-Language: en") == "Accept-Language: en"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{KEY}@host:9091/path",
        f"https://{KEY}@host",
        f"http:/user:{KEY}@host: no such run directory",
        f"dcgm+http://user:{KEY}@host:9400/metrics?gpu=0",
        f"prometheus+https://a:b/{KEY}@host?query=x",
        f"http://host/metrics?token={KEY}&gpu=1",
        f"http://host/?a=b&X-Api-Key={KEY}",
        f"GET http://user:{KEY}@host failed: http://user:{KEY}@host/x",
        f"Authorization: Bearer {KEY}",
        "sk-proj-abcdefgh12345678 is no key of this project",
        "hf_abcdefghijklmnop and ghp_abcdefghijklmnop1234",
    ],
)
def test_addresses_and_keys_lose_their_credentials(text: str) -> None:
    told = without_credentials(text)
    assert KEY not in told
    assert not any(shape in told for shape in ("abcdefgh12345678", "abcdefghijklmnop"))


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/v1/models",
        "http://[::1]:8000/path@3",
        "prometheus+http://p:9090?query=rate(x[5m])&pod=vllm-0&namespace=a",
        "mail me@example.org about http://host/",
        "max_tokens=3 of tokens",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert without_credentials(text) == text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='/?#@"'), min_size=1))
def test_any_password_is_cut_out_of_an_address(password: str) -> None:
    assert without_credentials(f"http://me:{password}@host/x") == "http://host/x"


@pytest.mark.parametrize("setting", ["push_gateway", "energy"])
def test_an_address_among_the_settings_is_saved_without_its_password(setting: str) -> None:
    scheme = "dcgm+http" if setting == "energy" else "http"
    saved = load({**BASE, setting: f"{scheme}://user:{KEY}@host/metrics"}).saved()
    assert saved[setting] == f"{scheme}://host/metrics"


@pytest.mark.parametrize(
    "body",
    [{"api_key": KEY}, {"nested": {"password": KEY}}, {"list": [{"auth_token": KEY}]}, {"secret": [KEY]},
     {"metadata": {"note": f"Bearer {KEY}"}}],
)  # fmt: skip
def test_secrets_in_the_body_are_hidden(body: dict[str, Any]) -> None:
    assert KEY not in str(load({**BASE, "body": json.dumps(body)}).saved())
    assert KEY not in str(plain(body))


def test_a_body_without_secrets_is_saved_as_it_was_written() -> None:
    written = '{"temperature":  1, "max_tokens_hint": 7}'
    assert load({**BASE, "body": written}).saved()["body"] == written


@pytest.mark.parametrize(
    ("header", "echo"),
    [
        ("Bearer " + KEY, f"the key {KEY} is not known"),
        ("Basic " + base64.b64encode(f"me:{KEY}".encode()).decode(), f"user me with password {KEY}"),
        (KEY, json.dumps({"you sent": KEY})),
        ("ab/cd+ef=" + KEY, "ab%2Fcd%2Bef%3D" + KEY),
        (KEY, base64.b64encode(KEY.encode()).decode()),
    ],
)
def test_what_a_server_echoes_is_cut_out(header: str, echo: str) -> None:
    told = Redactor(secrets_of({"X-Any": header}))(echo)
    assert HIDDEN in told
    assert KEY not in told
    assert base64.b64encode(KEY.encode()).decode() not in told


def test_harmless_headers_and_short_values_do_not_mangle_texts() -> None:
    told = Redactor(secrets_of({"Accept": "text/event-stream", "X-Env": "prod"}))
    assert told("no text/event-stream of the product") == "no text/event-stream of the product"


def test_errors_of_input_tell_no_password() -> None:
    error = InputError("energy", f"'dcgm+http://me:{KEY}@': needs a host")
    assert KEY not in str(error)
    assert KEY not in error.for_command_line()


def test_the_command_is_kept_without_its_secrets() -> None:
    body = json.dumps({"api_key": KEY})
    given_line = ["run", "http://h", "--header", f"X-Any: {KEY}", f"--header=Y: {KEY}", "--body", body]
    given_line += ["--push-gateway", f"http://u:{KEY}@g", "--rate", "3"]
    kept = command_line(given_line)
    assert KEY not in str(kept)
    assert kept[:3] == ["run", "http://h", "--header"]
    assert kept[-4:] == ["--push-gateway", "http://g", "--rate", "3"]
