"""What the middleware sees of vLLM's application, without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class VllmApp:
    """Has of vLLM's state what the middleware reads; `answer` says what it sends to a request."""

    def __init__(self) -> None:
        self.seen: dict[bytes, bytes] = {}
        self.routes: list[Any] = []
        self.user_middleware: list[Any] = []
        client = SimpleNamespace(errored=False, shutdown=lambda timeout=0: None)
        parallel = SimpleNamespace(world_size=1, data_parallel_size=1)
        model = SimpleNamespace(served_model_name="m", model="m", max_model_len=100)
        self.state = SimpleNamespace(
            engine_client=client,
            args=SimpleNamespace(api_server_count=1),
            vllm_config=SimpleNamespace(parallel_config=parallel, model_config=model),
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": message["type"] + ".complete"})
            return
        self.seen = dict(scope["headers"])
        await self.answer(send)

    async def answer(self, send: Any) -> None:
        raise NotImplementedError
