"""The OpenAI-compatible server that carries the meter: vLLM, the simulator, or a meter beside any server."""

from wattmeter import __version__ as __version__
