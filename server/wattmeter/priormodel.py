"""The step model that a server starts from, before it has measured its own."""

from __future__ import annotations

from wattmeter.stepmodel import StepEnergyModel

# Fitted to 1,065 s of the recorded H200 with Llama-3.1-8B in bf16 (docs/validation.md), rms 0.9 %. On another
# machine the proportions are a first guess until a model is fitted there: the counter sets the sum, and every
# figure is flagged model_not_trusted.
PRIOR_MODEL = StepEnergyModel(
    fixed_joules=1.82,
    prefill_token_joules=13.33e-3,
    decode_token_joules=15.6e-3,
    context_token_joules=23.7e-6,
    attention_pair_joules=0.57e-6,
    fixed_seconds=4.82e-3,
    prefill_token_seconds=10.2e-6,
    decode_token_seconds=10.5e-6,
    context_token_seconds=35.6e-9,
    attention_pair_seconds=1.56e-9,
    large_prompt_token_seconds=8.4e-6,
    first_context_token_seconds=10.4e-9,
    tail_watts=36.4,
    fitted_on="prior: H200, Llama-3.1-8B, bf16",
)
