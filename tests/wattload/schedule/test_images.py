"""Images by trace: as many in a request as the trace tells, in its row, and refused where nothing can carry
them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wattload import traces
from wattload.client.api import APIS
from wattload.errors import InputError
from wattload.load.plan import planned_record
from wattload.schedule import content
from wattload.schedule.build import build_schedule
from wattload.schedule.frame import Frame
from wattload.schedule.images import check_images, noting_images, planned_images
from wattload.schedule.mapped import mapped
from wattload.schedule.parquet import load, save
from wattload.schedule.table import Schedule
from wattload.schedule.tenants import superposed
from wattload.traces import ReadOptions, Trace

WORDS = ("apple", "bread", "cloud", "dance")
COUNTS = [2, 0, 3, 1]
PNG = Frame(image=(20, 10))


def multimodal(folder: Path, counts: list[object] | None = None) -> Trace:
    lines = [
        f"2024-10-15 00:00:0{row}.5,{n},40,5" for row, n in enumerate(COUNTS if counts is None else counts)
    ]
    path = folder / "m.csv"
    path.write_text("\n".join(["TIMESTAMP,NumImages,ContextTokens,GeneratedTokens", *lines]))
    return traces.load(path)


def scheduled(folder: Path, frame: Frame = PNG) -> Schedule:
    return replace(build_schedule(multimodal(folder)), words=WORDS, frame=frame)


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_a_request_has_the_images_that_its_trace_tells(api: str, tmp_path: Path) -> None:
    schedule = scheduled(tmp_path)
    make = content.prompt_maker(schedule, api=api)
    seen = []
    for row, count in enumerate(COUNTS):
        said = json.loads(make(schedule, row))[0]["content"]
        if not count:
            assert len(said.split()) == 40
            continue
        text, *images = said
        assert len(text["text"].split()) == 40
        assert len(images) == count
        seen += [json.dumps(image) for image in images]
    assert len(set(seen)) == sum(COUNTS)
    # Another process makes the same ones.
    assert content.prompt_maker(schedule, api=api)(schedule, 2) == make(schedule, 2)


def test_rows_and_sums_say_what_was_planned_and_what_is_sent(tmp_path: Path) -> None:
    schedule = scheduled(tmp_path)
    assert [planned_record(schedule, row, "r").images_planned for row in range(4)] == COUNTS
    assert [schedule.images_sent(row) for row in range(4)] == COUNTS
    assert planned_images(schedule) == 6
    assert noting_images(schedule).notes == schedule.notes
    alone = noting_images(replace(schedule, frame=Frame()))
    assert [planned_record(alone, row, "r").images_planned for row in range(4)] == COUNTS
    assert [alone.images_sent(row) for row in range(4)] == [0] * 4
    assert planned_images(alone) == 6
    assert "3 of 4 requests have images in the trace (6 in all)" in alone.notes[-1]
    text = build_schedule(traces.load("random:prompt=40,output=5"), "offline", requests=3)
    assert planned_images(text) is text.images_planned(0) is text.images_sent(0) is None
    each = replace(text, frame=PNG)
    assert (planned_images(each), each.images_planned(0), each.images_sent(0)) == (3, 1, 1)


def test_numbers_of_images_stay_with_their_requests(tmp_path: Path) -> None:
    trace = multimodal(tmp_path)
    assert trace.images is not None
    assert trace.head(3).images.tolist() == COUNTS[:3]  # type: ignore[union-attr]
    assert trace.take(np.array([2, 0])).images.tolist() == [3, 2]  # type: ignore[union-attr]
    repeated = build_schedule(trace, requests=6, repeat=True)
    assert repeated.images is not None
    assert repeated.images.tolist() == [*COUNTS, *COUNTS[:2]]
    parts = [repeated.shard(worker, 2) for worker in (0, 1)]
    assert [part.images.tolist() for part in parts] == [[2, 3, 2], [0, 1, 0]]  # type: ignore[union-attr]
    save(repeated, tmp_path / "s.parquet")
    assert load(tmp_path / "s.parquet").images.tolist() == repeated.images.tolist()  # type: ignore[union-attr]
    kept = mapped(repeated, tmp_path, least_rows=1)
    assert kept.images is not None
    assert kept.images.tolist() == repeated.images.tolist()


def test_tenants_with_and_without_images(tmp_path: Path) -> None:
    text = build_schedule(traces.load("random:prompt=40,output=5"), "constant", rate=1, requests=3)
    pictures = replace(build_schedule(multimodal(tmp_path)), tags=("pictures",))
    both = replace(superposed([pictures, text]), frame=PNG)
    found = {tag: [] for tag in ("pictures", "")}  # type: dict[str, list[int | None]]
    for row in range(len(both)):
        found[both.tags[both.tag[row]]].append(both.images_planned(row))
    assert found == {"pictures": COUNTS, "": [1, 1, 1]}
    assert planned_images(both) == 9
    alone = replace(both, frame=Frame())
    assert planned_images(alone) == 6
    assert sorted({alone.images_planned(row) for row in range(7)}, key=str) == [0, 1, 2, 3, None]


def test_plain_files_and_named_columns_may_have_images(tmp_path: Path) -> None:
    plain = tmp_path / "p.jsonl"
    rows = [{"seconds": t, "prompt_tokens": 9, "output_tokens": 2, "images": n} for t, n in enumerate((0, 4))]
    plain.write_text("\n".join(json.dumps(row) for row in rows))
    assert traces.load(plain).images.tolist() == [0, 4]  # type: ignore[union-attr]
    named = tmp_path / "n.csv"
    named.write_text("at,in,out,pics\n0,9,2,1\n1,9,2,0\n")
    columns = "seconds=at,prompt_tokens=in,output_tokens=out,images=pics"
    assert traces.load(named, ReadOptions(column_map=columns)).images.tolist() == [1, 0]  # type: ignore
    every = "seconds=at,prompt_tokens=in,output_tokens=out,images==2"
    assert traces.load(named, ReadOptions(column_map=every)).images.tolist() == [2, 2]  # type: ignore


@pytest.mark.parametrize(
    ("count", "said"), [(-1, "is negative"), (70_000, "is more than"), ("x", "is not a whole number")]
)
def test_a_number_of_images_that_cannot_be(count: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"line 3: NumImages '?{count}'? {said}"):
        multimodal(tmp_path, [0, count])


def test_images_that_nothing_carries_are_refused(tmp_path: Path) -> None:
    def refusal(image: str | None, api: str, trace: Trace, *, history: bool = False) -> str:
        with pytest.raises(InputError) as raised:
            check_images(image, APIS[api], [text, trace], server_history=history)
        return raised.value.for_command_line()

    text, pictures = traces.load("random:prompt=40,output=5"), multimodal(tmp_path)
    for api in ("completions", "embeddings", "rerank", "score"):
        said = refusal(None, api, pictures)
        assert said.startswith(f"--api {api} takes no images, and 3 of 4 requests of m.csv have images")
        assert "--image none" in said
        assert refusal("5x5", api, text) == (
            f"--image 5x5: --api {api} takes no images; chat, responses and messages do"
        )
        check_images("none", APIS[api], [pictures], server_history=True)
        check_images(None, APIS[api], [text, multimodal(tmp_path, [0, 0])], server_history=False)
    said = refusal(None, "chat", pictures)
    assert said.startswith("--image: 3 of 4 requests of m.csv have images")
    assert "WIDTHxHEIGHT" in said
    assert "--history server" in refusal("5x5", "chat", text, history=True)
    check_images("5x5", APIS["chat"], [pictures], server_history=False)
