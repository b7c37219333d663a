"""Real vLLM servers on this machine's CPU, with a two-layer model of random weights and a modelled meter."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests of this folder share a helper module.
sys.path.insert(0, str(Path(__file__).parent))
from metered_vllm import Server

REPOSITORY = Path(__file__).parents[4]
HAS_VLLM = importlib.util.find_spec("vllm") is not None

# Of an H200; on a CPU the joules only have to add up, and to say "modelled".
PROFILE = "h200-llama-3.1-8b"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not HAS_VLLM:
                item.add_marker(pytest.mark.skip(reason="needs vLLM (make vllm)"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = REPOSITORY / "benchmarks" / "random_model.py"
    specification = importlib.util.spec_from_file_location("random_model", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("model")
    module.write("tiny", folder)
    return folder


@pytest.fixture(scope="session")
def profile() -> str:
    return PROFILE


@pytest.fixture(scope="session")
def server(model: Path, profile: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Chunked prefill (256 tokens a step), prefix caching and the numbers of cached tokens switched on."""
    folder = tmp_path_factory.mktemp("server")
    flags = ("--max-num-batched-tokens", "256", "--max-num-seqs", "32", "--enable-prompt-tokens-details")
    running = Server(folder, model, profile, *flags)
    yield running
    running.stop()
