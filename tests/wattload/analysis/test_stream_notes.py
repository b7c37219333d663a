"""Notes about the responses: what came together, what was not counted, what was passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from synthetic_run import Synthetic
from wattload import report
from wattload.analysis.compare import compare
from wattload.analysis.compute import finish
from wattload.report.table import print_summary
from wattload.rundir.directory import RunDir
from wattload.rundir.result import RunJson, SloLimits

Change = Callable[[pa.Table], pa.Table]


def computed(path: Path, change: Change = lambda table: table, **settings: object) -> RunJson:
    """A run whose rows are `change`d before it is computed."""
    limits = SloLimits(tpot_seconds=0.5)
    made = Synthetic(rate=20.0, duration=30.0, warmup=5.0, slo=limits, **settings)  # type: ignore[arg-type]
    run = made.write(path)
    run.write_requests(change)
    return finish(run)


def replaced(name: str, values: Callable[[pa.Table], object]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        return table.set_column(
            place, table.schema.field(name), pa.array(values(table), table.schema.types[place])
        )

    return change


def test_a_usual_run_has_none(tmp_path: Path) -> None:
    notes = computed(tmp_path / "run").notes
    assert not [n for n in notes if "together" in n or "counted" in n or "understood" in n or "failed" in n]


def test_tokens_that_came_at_once_have_no_tpot(tmp_path: Path) -> None:
    at_once = replaced("first_token_unix", lambda table: table.column("last_token_unix").to_pylist())
    result = computed(tmp_path / "run", at_once)
    assert result.latency.tpot_seconds is None
    assert "latency.tpot_seconds" in result.absent
    assert result.slo is not None
    assert result.slo.met_fraction is not None
    assert result.slo.met_fraction < 0.05, "only responses of one token have no TPOT to miss"
    assert any("came all at once" in note for note in result.notes)


def test_chunks_that_come_in_bundles_are_noted(tmp_path: Path) -> None:
    def bundled(table: pa.Table) -> list[list[float]]:
        gaps = table.column("itl_seconds").to_pylist()
        return [[gap if place % 4 == 3 else 0.0 for place, gap in enumerate(row)] for row in gaps]

    notes = computed(tmp_path / "run", replaced("itl_seconds", bundled)).notes
    assert any("75% of the chunks came together" in n or "76% of the chunks" in n for n in notes), notes


def test_counts_that_are_missing_are_noted(tmp_path: Path) -> None:
    def partly(table: pa.Table) -> list[int | None]:
        return [n if i % 2 else None for i, n in enumerate(table.column("output_tokens").to_pylist())]

    result = computed(tmp_path / "run", replaced("output_tokens", partly))
    assert any("gave no count of their tokens" in note for note in result.notes)


def test_what_was_passed_over_is_quoted_and_bounded(tmp_path: Path) -> None:
    def odd(table: pa.Table) -> list[str | None]:
        return [None if i % 3 else f"ping {i % 30}" for i in range(table.num_rows)]

    (note,) = [n for n in computed(tmp_path / "run", replaced("unread", odd)).notes if "not understood" in n]
    assert note.count("ping") == 3
    assert int(note.split()[0]) > 100, "how many there were"


@pytest.mark.parametrize("columns", [["unread"]])
def test_a_run_of_an_earlier_version_lacks_what_was_added_later(columns: list[str], tmp_path: Path) -> None:
    first = computed(tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    pq.write_table(pq.read_table(run.requests_path).drop_columns(columns), run.requests_path)
    again = finish(run)
    assert again.notes == first.notes
    assert run.read_requests().column("unread").null_count == run.read_requests().num_rows


def test_reasoning_and_tool_calls_are_in_the_figures(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        due = table.column("due_unix").to_pylist()
        table = replaced(
            "first_answer_unix", lambda _: [d + 0.5 if i % 2 else None for i, d in enumerate(due)]
        )(table)
        table = replaced("reasoning_chunks", lambda t: [n // 2 for n in t.column("chunks").to_pylist()])(
            table
        )
        table = replaced("reasoning_tokens", lambda t: [1 if i % 2 else None for i in range(t.num_rows)])(
            table
        )
        return replaced("tool_calls", lambda t: [2 if i % 2 else None for i in range(t.num_rows)])(table)

    result = computed(tmp_path / "run", change)
    assert result.latency.ttfa_seconds is not None
    assert result.latency.ttfa_seconds.mean == pytest.approx(0.5)
    done = result.requests.completed_in_window or 0
    assert result.tokens.output is not None
    assert result.tokens.reasoning is not None
    # Half of the responses say one token; of the others half the chunks are reasoning.
    assert result.tokens.reasoning == pytest.approx(done / 2 + result.tokens.output / 4, rel=0.1)
    assert result.tokens.tool_calls == pytest.approx(done, abs=2)
    plain = computed(tmp_path / "plain")
    assert (plain.latency.ttfa_seconds, plain.tokens.reasoning, plain.tokens.tool_calls) == (None, None, None)
    assert plain.absent["latency.ttfa_seconds"] == "no response reasoned before its answer"


def test_lengths_of_the_models_own_qualify_energy_per_request(tmp_path: Path) -> None:
    runs = []
    for name, config in (("a", {"natural_lengths": 500}), ("b", {})):
        made = Synthetic(rate=20.0, duration=30.0, warmup=5.0, overrides={"config": config}).write(
            tmp_path / name
        )
        made.write_requests(shorter if config else lambda table: table)
        runs.append(finish(made))
    assert any("responses ended by themselves, after" in note for note in runs[0].notes)
    assert not any("by themselves" in note for note in runs[1].notes)
    comparison = compare([tmp_path / "a", tmp_path / "b"])
    assert any("energy per output token and TPOT compare" in note for note in comparison.against[0].notes)
    assert not any(
        "by themselves" in note for note in compare([tmp_path / "b", Path(copied(tmp_path))]).against[0].notes
    )


def shorter(table: pa.Table) -> pa.Table:
    """Every third response is one token long."""

    def lengths(table: pa.Table) -> list[int]:
        planned = table.column("output_tokens_planned").to_pylist()
        return [1 if place % 3 == 0 else tokens for place, tokens in enumerate(planned)]

    return replaced("output_tokens", lengths)(table)


@pytest.mark.parametrize(
    ("config", "forced"),
    [
        ({"api": "messages"}, False),
        ({"api": "chat", "exact_output": False}, False),
        ({"natural_lengths": 500}, False),
        ({"api": "chat"}, True),
        ({"api": "responses"}, True),
        ({}, True),
    ],
)
def test_lengths_that_were_not_forced_are_told_wherever_a_run_is_shown(
    config: dict[str, object], forced: bool, tmp_path: Path
) -> None:
    said = "responses ended by themselves, after"
    result = computed(tmp_path / "run", shorter, overrides={"config": config})
    places = (
        result.as_text(),
        printed(result),
        report.build(RunDir(tmp_path / "run")).read_text(encoding="utf-8"),
    )
    assert [said in text for text in places] == [not forced] * 3
    counted = result.tokens.mismatches
    assert counted
    of = result.requests.completed_in_window
    words = f"{counted:,} of {of:,} responses have another length than planned"
    assert any(words in note for note in result.notes) == (not forced)
    # Where each came at its planned length, the work is that of the plan.
    as_planned = computed(tmp_path / "planned", overrides={"config": config})
    assert not any(said in note for note in as_planned.notes)


def printed(run: RunJson) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        print_summary(run, console)
    return captured.get()


def copied(tmp_path: Path) -> Path:
    """A second run with forced lengths."""
    run = Synthetic(rate=20.0, duration=30.0, warmup=5.0).write(tmp_path / "c")
    finish(run)
    return run.path
