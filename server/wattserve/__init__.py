"""The OpenAI-compatible server that carries the meter: vLLM, a virtual GPU, or a sidecar."""
