"""Continuous batching as vLLM v1 does it: which sequences get how many tokens in the next step.

Running sequences first, in order of admission; then waiting ones while the token budget, the number of
sequences and the KV cache allow. A prompt longer than what is left of the budget is computed in chunks. A
running sequence that finds no block preempts the youngest running one, which loses its blocks, goes to the
front of the queue and is computed again later.

wattmeter.energy_model.batching simulates batching too, and stays apart on purpose. It computes whole
stretches of steps at once from token counts, for estimates and tenant factors of minutes of traffic. This
engine runs one step at a time while requests come and go: with a KV cache in blocks, prefix hits,
preemption and aborts, and a callback for each token. What a step costs is the same StepModel in both.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from wattserve.sim.kv_cache import BLOCK_TOKENS, Holding, KVCache, block_hashes


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server was started with; names and meanings are vLLM's."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    max_model_len: int
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_cache_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.kv_cache_tokens // BLOCK_TOKENS * BLOCK_TOKENS < self.max_model_len:
            raise ValueError(
                f"--kv-cache-tokens {self.kv_cache_tokens} cannot hold one sequence of "
                f"--max-model-len {self.max_model_len}"
            )


class Sequence:
    """One answer being generated: a prompt, how far it is computed, and how long it will become.

    `computed` tokens stand in the KV cache; `generated` were sampled; `output_tokens` will be. `deliver` is
    called once for every token sampled, at the end of its step; of a sequence that generates nothing (0
    output tokens: an embedding, a score) once, at the end of the step that computed the last of its prompt.
    `salt`: sequences of different ones (LoRA adapters) share no prefix.
    """

    __slots__ = (
        "aborted",
        "arrival_ns",
        "cached_tokens",
        "computed",
        "deliver",
        "first_token_ns",
        "generated",
        "hashes",
        "holding",
        "output_id",
        "output_tokens",
        "preemptions",
        "prompt_ids",
        "prompt_tokens",
        "recompute_until",
        "request_id",
        "salt",
        "state",
    )

    def __init__(
        self,
        request_id: str,
        prompt_ids: list[int],
        output_tokens: int,
        *,
        arrival_ns: int,
        deliver: Callable[[Sequence], None],
        output_id: Callable[[int], int] | None = None,
        salt: int = 0,
    ) -> None:
        if not prompt_ids or output_tokens < 0:
            raise ValueError("a sequence needs a prompt")
        self.request_id = request_id
        self.prompt_ids = prompt_ids
        self.prompt_tokens = len(prompt_ids)
        self.output_tokens = output_tokens
        self.output_id = output_id
        self.salt = salt
        self.arrival_ns = arrival_ns
        self.deliver = deliver
        self.state = State.WAITING
        self.aborted = False
        self.computed = 0
        self.generated = 0
        self.cached_tokens = 0
        self.recompute_until = 0
        self.preemptions = 0
        self.first_token_ns = 0
        self.holding = Holding()
        self.hashes: list[int] | None = None

    @property
    def finished(self) -> bool:
        return self.state is State.FINISHED


@dataclass(slots=True)
class Step:
    """What one step computes: entries (sequence, tokens, context before, is decode), and their sums.

    `cached` has the entries' sequences that were admitted in this step with part of their prompt cached.
    """

    entries: list[tuple[Sequence, int, int, bool]] = field(default_factory=list)
    cached: dict[int, int] = field(default_factory=dict)
    prefill_tokens: int = 0
    decode_tokens: int = 0
    decode_context_tokens: int = 0
    attention_pairs: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens

    def add(self, seq: Sequence, tokens: int) -> None:
        context = seq.computed
        decode = seq.generated > 0 and context >= seq.recompute_until
        if decode:
            self.decode_tokens += tokens
            self.decode_context_tokens += context
        else:
            self.prefill_tokens += tokens
            self.attention_pairs += tokens * (context + 0.5 * tokens)
        self.entries.append((seq, tokens, context, decode))


class Scheduler:
    """The queue, the running batch and the KV cache of one virtual engine. Not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cache = KVCache(limits.kv_cache_tokens // BLOCK_TOKENS, prefix_caching=limits.prefix_caching)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises ValueError where it could never fit."""
        total = seq.prompt_tokens + seq.output_tokens
        if total > self.limits.max_model_len:
            raise ValueError(f"{total} tokens are more than the model's {self.limits.max_model_len}")
        self.waiting.append(seq)

    def abort(self, seq: Sequence) -> None:
        """Forget a sequence at once; what a step under way computes for it is computed for nothing."""
        if seq.state is State.FINISHED:
            return
        if seq.state is State.RUNNING:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        self._free(seq)

    def schedule(self, now_ns: int | None = None) -> Step:
        """The next step. `now_ns`: sequences that arrived after this moment are left waiting."""
        step = Step()
        budget = self.limits.max_num_batched_tokens
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            seq = self.running[index]
            tokens = min(seq.prompt_tokens + seq.generated - seq.computed, budget)
            missing = -(-(seq.computed + tokens) // BLOCK_TOKENS) - len(seq.holding)
            if missing > 0:
                while not self.cache.grow(seq.holding, missing):
                    preempted = True
                    victim = self.running.pop()
                    self._preempt(victim)
                    if victim is seq:
                        break
                if seq.state is not State.RUNNING:
                    break
            step.add(seq, tokens)
            budget -= tokens
            index += 1
        if not preempted:
            self._admit(step, budget, now_ns)
        return step

    def finish_step(self, step: Step) -> list[Sequence]:
        """Book what the step computed; returns the sequences that sampled a token, in order.

        Those that are complete are FINISHED and hold no blocks any more.
        """
        sampled = []
        any_finished = False
        for seq, tokens, _context, decode in step.entries:
            if seq.state is not State.RUNNING:
                continue
            seq.computed += tokens
            if not decode and seq.hashes is not None:
                self.cache.publish(seq.holding, seq.hashes[: seq.computed // BLOCK_TOKENS])
            if seq.computed == seq.prompt_tokens + seq.generated:
                seq.generated += seq.output_tokens > 0
                sampled.append(seq)
                if seq.generated == seq.output_tokens:
                    any_finished = True
                    self._finish(seq)
        if any_finished:
            self.running = [seq for seq in self.running if seq.state is State.RUNNING]
        return sampled

    def _admit(self, step: Step, budget: int, now_ns: int | None) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            seq = self.waiting[0]
            if now_ns is not None and seq.arrival_ns > now_ns:
                return
            known = seq.prompt_tokens + seq.generated
            hit: list[int] = []
            if self.limits.prefix_caching:
                if seq.hashes is None:
                    seq.hashes = block_hashes(seq.prompt_ids, seq.salt)
                # The last token is always computed: its result is what the next one is sampled from.
                reusable = seq.hashes[: (known - 1) // BLOCK_TOKENS]
                hit = reusable[: self.cache.find(reusable)]
            cached = len(hit) * BLOCK_TOKENS
            tokens = min(known - cached, budget)
            blocks = -(-(cached + tokens) // BLOCK_TOKENS) - len(hit)
            if not self.cache.admit(seq.holding, hit, blocks):
                return
            self.waiting.popleft()
            self.running.append(seq)
            seq.state = State.RUNNING
            seq.computed = cached
            if seq.preemptions == 0:
                seq.cached_tokens = cached
                self.prefix_queries += known
                self.prefix_hits += cached
            if cached:
                step.cached[len(step.entries)] = cached
            step.add(seq, tokens)
            budget -= tokens

    def _preempt(self, seq: Sequence) -> None:
        self.cache.release(seq.holding)
        seq.state = State.WAITING
        seq.computed = 0
        seq.recompute_until = seq.prompt_tokens + seq.generated
        seq.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(seq)

    def _finish(self, seq: Sequence) -> None:
        if seq.hashes is not None and seq.output_id is not None:
            # The answer can be the next turn's prefix. Its last token was sampled but never computed.
            done = len(seq.hashes)
            answer = [seq.output_id(i) for i in range(seq.computed - seq.prompt_tokens)]
            tail = seq.prompt_ids[done * BLOCK_TOKENS :] + answer
            parent = seq.hashes[-1] if done else seq.salt
            self.cache.publish(seq.holding, seq.hashes + block_hashes(tail, parent))
        self._free(seq)

    def _free(self, seq: Sequence) -> None:
        self.cache.release(seq.holding)
        seq.state = State.FINISHED
