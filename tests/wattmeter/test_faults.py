"""Each fault is declared once, with a sentence, and names of others are tolerated."""

from __future__ import annotations

import json
import pickle

import pytest

from wattmeter.faults import Fault, invalidating, known_faults, meaning_of


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_has_one_sentence_and_is_its_name(fault: Fault) -> None:
    assert fault.meaning.endswith(".")
    assert fault.meaning[0].isupper()
    assert fault.clause == fault.meaning[0].lower() + fault.meaning[1:-1]
    assert json.loads(json.dumps([fault])) == [fault.value] == [str(fault)]
    assert Fault(fault.value) is fault is pickle.loads(pickle.dumps(fault))


def test_names_that_a_newer_server_has_are_passed_over() -> None:
    names = ["modelled", "of_tomorrow", "gpu_lost", "counter_reset"]
    assert known_faults(names) == [Fault.COUNTER_RESET, Fault.GPU_LOST, Fault.MODELLED]
    assert invalidating(names) == [Fault.COUNTER_RESET, Fault.GPU_LOST]
    assert meaning_of("of_tomorrow") == ""
    assert meaning_of("gpu_lost") == Fault.GPU_LOST.meaning
