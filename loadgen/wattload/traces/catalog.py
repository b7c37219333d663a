"""Public traces that can be fetched: where they lie, whose they are, under which licence, with which
checksum.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublicTrace:
    """`rows` as its publisher says, 0 where it does not. `sha256` is None where none was published or
    verified: the first fetch then writes down what it found, and later ones are held against that.
    """

    name: str
    url: str
    rows: int
    licence: str
    citation: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The last part of its address."""
        return self.url.rsplit("/", 1)[-1]


_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/AzureLLMInferenceTrace_"
_AZURE_2024 = (
    "https://azurepublicdatasettraces.blob.core.windows.net/azurellminfererencetrace/AzureLLMInferenceTrace_"
)
_BURST = "https://github.com/HPMLL/BurstGPT/releases/download/"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/"
_TRACELAB = "https://github.com/uw-syfi/TraceLab/releases/download/v2026-06-08-syfi-trace/"
_WEKA = "https://raw.githubusercontent.com/callanjfox/kv-cache-tester/master/traces/"
_BAILIAN = "https://media.githubusercontent.com/media/alibaba-edu/qwen-bailian-usagetraces-anon/main/"

_CC_BY = "CC-BY 4.0"
_APACHE = "Apache-2.0"
_SPLITWISE = (
    "Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting, ISCA 2024 "
    "(Azure/AzurePublicDataset)"
)
_DYNAMO = (
    "Stojkovic et al., DynamoLLM: Designing LLM Inference Clusters for Performance and Energy Efficiency, "
    "HPCA 2025 (Azure/AzurePublicDataset)"
)
_BURSTGPT = (
    "Wang et al., BurstGPT: A Real-World Workload Dataset to Optimize LLM Serving Systems, KDD 2025 "
    "(HPMLL/BurstGPT)"
)
_FAST = "Qin et al., Mooncake: Trading More Storage for Less Computation, FAST 2025 (kvcache-ai/Mooncake)"
_ATC = (
    "Wang et al., KVCache Cache in the Wild: Characterizing and Optimizing KVCache Cache at a Large Cloud "
    "Provider, USENIX ATC 2025 (alibaba-edu/qwen-bailian-usagetraces-anon)"
)

_SOCC = (
    "Qiu et al., ModServe: Modality- and Stage-Aware Resource Disaggregation for Scalable Multimodal Model "
    "Serving, SoCC 2025 (Azure/AzurePublicDataset)"
)
_ZHU = (
    "Zhu et al., TraceLab: Characterizing Coding Agent Workloads for LLM Serving, arXiv 2606.30560, 2026 "
    "(uw-syfi/TraceLab)"
)
_FOX = "Fox, kv-cache-tester: agentic coding traces recorded at WEKA, 2026 (callanjfox/kv-cache-tester)"

CATALOG: tuple[PublicTrace, ...] = (
    PublicTrace(
        "azure-2023-conv", _AZURE + "conv.csv", 19_366, _CC_BY, _SPLITWISE,
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    PublicTrace(
        "azure-2023-code", _AZURE + "code.csv", 8_819, _CC_BY, _SPLITWISE,
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    ),
    PublicTrace("azure-2024-conv", _AZURE_2024 + "conv_1week.csv", 0, _CC_BY, _DYNAMO),
    PublicTrace("azure-2024-code", _AZURE_2024 + "code_1week.csv", 16_803_695, _CC_BY, _DYNAMO),
    PublicTrace(
        "burstgpt-1", _BURST + "v1.1/BurstGPT_1.csv", 1_429_700, _CC_BY, _BURSTGPT,
        "4bb3783693d0a435686fbfc885615d2349bd067239079fa4b749f2e679e12122",
    ),
    PublicTrace(
        "burstgpt-1-served", _BURST + "v1.1/BurstGPT_without_fails_1.csv", 1_404_300, _CC_BY, _BURSTGPT,
        "a4d068a7113ec0290e74063a1b3447dc6001a30e4298eb313581b71006dda1f4",
    ),
    PublicTrace(
        "burstgpt-2", _BURST + "v1.1/BurstGPT_2.csv", 3_858_400, _CC_BY, _BURSTGPT,
        "44bf5942b03fca42c01a226a545ad3a750ec62688faecd67b6831c56a8928bf7",
    ),
    PublicTrace(
        "burstgpt-3", _BURST + "v2.0/BurstGPT_3.csv", 5_344_021, _CC_BY, _BURSTGPT,
        "2299986a07388aa303ec2c41d1131e756db650a39ed6ef9dfe7cc3d7f9a43b8f",
    ),
    PublicTrace(
        "burstgpt-3-served", _BURST + "v2.0/BurstGPT_without_fails_3.csv", 4_956_058, _CC_BY, _BURSTGPT
    ),
    PublicTrace(
        "mooncake-conversation", _MOONCAKE + "conversation_trace.jsonl", 12_031, _APACHE, _FAST,
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    ),
    PublicTrace(
        "mooncake-synthetic", _MOONCAKE + "synthetic_trace.jsonl", 3_993, _APACHE, _FAST,
        "bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
    ),
    PublicTrace("mooncake-toolagent", _MOONCAKE + "toolagent_trace.jsonl", 23_608, _APACHE, _FAST),
    PublicTrace(
        "azure-2025-multimodal",
        "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/"
        "AzureLMMInferenceTrace_multimodal.csv.gz",
        0, _CC_BY, _SOCC,
    ),
    PublicTrace(
        "tracelab", _TRACELAB + "syfi_coding_trace.jsonl.gz", 357_161, _CC_BY, _ZHU,
        "9d265eae69a31cae203848bea936f018148eed7ca8bf56050c5abe96da0b4e6b",
    ),
    PublicTrace(
        "weka-subagents", _WEKA + "trace_0003.json", 0, _APACHE, _FOX,
        "d999f495fc2a1459d357d745872046d06435cdff2143094078f2bc6483f79f52",
    ),
    PublicTrace("bailian-chat", _BAILIAN + "qwen_traceA_blksz_16.jsonl", 0, _APACHE, _ATC),
    PublicTrace("bailian-api", _BAILIAN + "qwen_traceB_blksz_16.jsonl", 0, _APACHE, _ATC),
    PublicTrace(
        "bailian-coder", _BAILIAN + "qwen_coder_blksz_16.jsonl", 0, _APACHE, _ATC,
        "3d74974cebb7bccb69b1ca6ea210a44d9a3033443c0271ed015327284dea1aff",
    ),
    PublicTrace(
        "bailian-thinking", _BAILIAN + "qwen_thinking_blksz_16.jsonl", 0, _APACHE, _ATC,
        "41ac36d9d1b54d084eeb6b05e9d142ba9d02f8bf79cfc9fff418d8ab7cdee906",
    ),
)  # fmt: skip
