"""What is kept of a page of /metrics, and that a page read again gives the same series with new values."""

from __future__ import annotations

import pytest

from engine_metrics import PAGES, VLLM
from wattload.server_metrics import exposition
from wattload.server_metrics.exposition import Exposition


def values_of(page: Exposition, text: str) -> dict[tuple[str, str], float]:
    places, values = page.read(text)
    return {
        (page.series[place].metric, page.series[place].labels): value
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    }


def test_series_and_values() -> None:
    page = Exposition()
    found = values_of(page, VLLM)
    assert found["vllm:num_requests_running", 'engine="0",model_name="m"'] == 7
    assert found["python_gc_collections_total", 'generation="0"'] == 312
    names = {metric for metric, _ in found}
    assert "vllm:time_to_first_token_seconds_sum" in names, "a histogram's sum and count are kept"
    assert not any(name.endswith(("_bucket", "_created")) for name in names)
    kinds = {one.metric: one.kind for one in page.series}
    assert kinds["vllm:num_preemptions_total"] == "counter"
    assert kinds["vllm:time_to_first_token_seconds_count"] == "counter"
    assert kinds["vllm:kv_cache_usage_perc"] == "gauge"


def test_a_counter_without_a_suffix_is_one_by_its_declared_type() -> None:
    page = Exposition()
    page.read(PAGES["TGI"][0])
    assert {one.metric: one.kind for one in page.series}["tgi_request_count"] == "counter"


def test_the_same_page_again_has_new_values_and_no_new_series() -> None:
    page = Exposition()
    page.read(VLLM)
    known = list(page.series)
    again = values_of(
        page, VLLM.replace('running{engine="0",model_name="m"} 7.0', 'running{engine="0",model_name="m"} 31')
    )
    assert page.series == known
    assert again["vllm:num_requests_running", 'engine="0",model_name="m"'] == 31
    more = values_of(page, VLLM + 'vllm:num_requests_running{engine="2",model_name="m"} 4\n')
    assert more["vllm:num_requests_running", 'engine="2",model_name="m"'] == 4
    assert len(page.series) == len(known) + 1


def test_labels_with_spaces_braces_and_quotes() -> None:
    page = Exposition()
    found = values_of(page, 'a_metric{name="a } b",text="say \\"hi\\""} 1\n')
    assert found == {("a_metric", 'name="a } b",text="say \\"hi\\""'): 1.0}


def test_timestamps_are_not_taken_for_values() -> None:
    page = Exposition()
    assert values_of(page, 'a{b="c"} 5 1700000000000\nd 6 1700000000000\ne 7\n') == {
        ("a", 'b="c"'): 5,
        ("d", ""): 6,
        ("e", ""): 7,
    }
    assert values_of(page, 'a{b="c"} 8 1700000001000\nd 9 1700000001000\ne 1\n') == {
        ("a", 'b="c"'): 8,
        ("d", ""): 9,
        ("e", ""): 1,
    }


def test_what_is_no_number_is_left_out_and_never_zero() -> None:
    page = Exposition()
    assert values_of(page, "a NaN\nb +Inf\nc 2\n") == {("c", ""): 2}


def test_a_broken_line_costs_itself_alone() -> None:
    page = Exposition()
    assert values_of(page, 'good 1\nbad{"x" 2\nworse x\n') == {("good", ""): 1}
    assert page.unreadable is not None


@pytest.mark.parametrize("text", ["", "<html><body>Not found</body></html>\n", '{"detail": "Not Found"}'])
def test_a_page_without_metrics_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an exposition"):
        Exposition().read(text)


def test_series_are_bounded_and_those_with_a_common_name_come_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition, "MOST_OWN_SERIES", 3)
    page = Exposition()
    own = "".join(f'own{{number="{number}"}} 1\n' for number in range(10))
    found = values_of(page, own + VLLM)
    assert sum(metric == "own" for metric, _ in found) == 3
    assert page.left_out >= 7
    assert ("vllm:num_preemptions_total", 'engine="0",model_name="m"') in found
    assert values_of(page, own + VLLM) == found


def test_long_pages_pause() -> None:
    pauses: list[int] = []
    Exposition(lambda: pauses.append(1)).read("".join(f'm{{n="{number}"}} 1\n' for number in range(1_000)))
    assert len(pauses) >= 5
