"""Derives the embedded workloads from the Azure 2023 traces: python benchmarks/fit_workloads.py TRACES_DIR

Writes loadgen/wattload/traces/embedded/{conv,code}.json: quantiles, a copula grid and the cascade's shapes.
What they mean is in wattload/traces/embedded/model.py. `wattload traces fetch azure-2023-conv` gets traces.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattload import traces

F64 = npt.NDArray[np.float64]
OUT = Path(__file__).resolve().parents[1] / "loadgen/wattload/traces/embedded"
CITATION = (
    "Patel, Choukse, Zhang, Shah, Goiri, Maleki, Bianchini: Splitwise: Efficient Generative LLM Inference "
    "Using Phase Splitting, ISCA 2024 (Azure/AzurePublicDataset, AzureLLMInferenceTrace 2023)"
)
TITLES = {
    "conv": "conversations of an Azure LLM service, one hour of 2023-11-16",
    "code": "code completions of an Azure LLM service, one hour of 2023-11-16",
}
CELLS = 16
LEVELS = 22
BLOCK_SECONDS = 3600.0
PROBABILITIES = np.unique(
    np.round(np.concatenate([np.linspace(0, 1, 201), [0.0005, 0.001, 0.002, 0.998, 0.999, 0.9995]]), 6)
)


def ranks(values: npt.NDArray[np.int32], rng: np.random.Generator) -> F64:
    """Ranks in (0, 1), shape (N,); ties are broken at random, as the copula of discrete values needs."""
    order = np.lexsort((rng.random(len(values)), values))
    result = np.empty(len(values))
    result[order] = (np.arange(len(values)) + 0.5) / len(values)
    return result


def beta_shape(seconds: F64, width: float) -> float:
    """The Beta(b, b) with which intervals of `width` split, by moments over intervals at 16 offsets.

    Of n arrivals, a and n - a fall into the halves; for p ~ Beta(b, b), E[(2a - n)^2 | n] = n + n (n - 1) /
    (2b + 1).
    """
    excess = pairs = 0.0
    for offset in np.arange(16) / 16 * width:
        cells, counts = np.unique(
            np.floor((seconds + offset) / (width / 2)).astype(np.int64), return_counts=True
        )
        parents, where = np.unique(cells // 2, return_inverse=True)
        halves = np.zeros((len(parents), 2))
        halves[where, cells % 2] = counts
        # Intervals that reach beyond the recording would look lopsided; all but those at its ends are whole.
        inside = (parents * width >= offset) & ((parents + 1) * width <= seconds[-1] + offset)
        a, b = halves[inside].T
        excess += float(((a - b) ** 2 - (a + b)).sum())
        pairs += float(((a + b) * (a + b - 1)).sum())
    spread = float(np.clip(excess / pairs, 1e-5, 0.98)) if pairs else 1e-5
    return (1 / spread - 1) / 2


def fit(name: str, path: Path) -> dict[str, object]:
    trace = traces.load(path)
    rng = np.random.default_rng(0)
    u, v = ranks(trace.prompt_tokens, rng), ranks(trace.output_tokens, rng)
    grid, _, _ = np.histogram2d(u, v, bins=CELLS, range=[[0, 1], [0, 1]])
    widths = BLOCK_SECONDS / 2.0 ** np.arange(LEVELS)
    shapes = [beta_shape(trace.seconds, w) for w in widths]
    # What does not fit into the recording takes the shape of the widest interval that does.
    first = int(np.argmax(widths <= trace.seconds[-1]))
    shapes[:first] = [shapes[first]] * first
    return {
        "name": name,
        "title": TITLES[name],
        "source": f"{path.name}, sha256 {trace.sha256}",
        "licence": "CC-BY 4.0",
        "citation": CITATION,
        "rows": len(trace),
        "lengths": {
            "probabilities": PROBABILITIES.tolist(),
            "prompt_tokens": np.quantile(trace.prompt_tokens, PROBABILITIES).round(1).tolist(),
            "output_tokens": np.quantile(trace.output_tokens, PROBABILITIES).round(1).tolist(),
            "copula_counts": grid.astype(int).tolist(),
        },
        "arrivals": {
            "rate_rps": round(trace.rate_rps, 4),
            "block_seconds": BLOCK_SECONDS,
            "beta_shapes": [float(f"{s:.4g}") for s in shapes],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds AzureLLMInferenceTrace_{conv,code}.csv")
    directory = parser.parse_args().directory
    for name in TITLES:
        described = fit(name, directory / f"AzureLLMInferenceTrace_{name}.csv")
        text = (
            json.dumps(described, indent=None, separators=(",", ":"))
            .replace('],"', '],\n"')
            .replace('},"', '},\n"')
        )
        (OUT / f"{name}.json").write_text(text + "\n")
        print(name, described["rows"], described["arrivals"])


if __name__ == "__main__":
    main()
