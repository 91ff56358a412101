"""A head row for tokens that a model must never emit, where the head has no bias to say so.

A logit is the product of a row with the hidden state behind the last norm. No row makes it low for every state: the
opposite state makes it high. But the states that a model really comes to share a component, so a row can be fitted
whose logit stays far below the largest one on all of them: ridge regression of (largest logit - DEPTH) on the state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

# In logits. The margin is what must be left of the depth on states that were not fitted: with e^-40 each, even
# 152,000 rows take less than 1e-12 of the probability.
DEPTH = 200.0
MARGIN = 60.0
_RIDGE = 1e-3  # of the mean square of a state's components
_SEQUENCES, _LENGTH = 32, 64  # of each kind, to fit and again to judge


@dataclass(frozen=True, eq=False)
class UnusedRow:
    """`row` [hidden], float32. Its logit stayed at least `margin` below the largest; `is_masked`: MARGIN or more."""

    row: Tensor
    margin: float

    @property
    def is_masked(self) -> bool:
        return self.margin >= MARGIN


@torch.inference_mode()
def unused_row(model: Qwen3ForCausalLM, tokens: int, *, first: int, dtype: torch.dtype) -> UnusedRow:
    """The head's row for ids that are never to come out of a model whose first `tokens` ids are in use.

    Fitted to the states of text that the model samples after the token `first` and of random tokens; judged, rounded
    to the `dtype` that will be written, on as many others. Where no row keeps the margin, as with weights that were
    never trained, it is the mean of the rows in use: its logit is the mean of theirs, so never the largest, whatever
    the state, but in sum such rows can be likely.
    """
    generator = torch.Generator().manual_seed(0)
    starts = torch.full((2 * _SEQUENCES, 1), first)
    noise = torch.randint(tokens, (2 * _SEQUENCES, _LENGTH), generator=generator)
    states = torch.cat([_sampled_states(model, tokens, starts, generator), model.model(noise).last_hidden_state])
    head = model.lm_head.weight[:tokens].float()
    fitted, judged = states[0::2].flatten(0, 1).float(), states[1::2].flatten(0, 1).float()  # [states, hidden]
    row = _ridge(fitted, (fitted @ head.T).amax(dim=1) - DEPTH)
    largest = (judged @ head.T).amax(dim=1)
    found = [
        UnusedRow(rounded, float((largest - judged @ rounded).min()))
        for rounded in (value.to(dtype).float() for value in (row, head.mean(dim=0)))
    ]
    return found[0] if found[0].is_masked else found[1]


def _sampled_states(model: Qwen3ForCausalLM, tokens: int, ids: Tensor, generator: torch.Generator) -> Tensor:
    """States [sequences, _LENGTH, hidden] while the model goes on from `ids` [sequences, 1] at temperature 1."""
    states, cache = [], None
    for _ in range(_LENGTH):
        decoded = model.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = decoded.past_key_values
        states.append(decoded.last_hidden_state)
        probabilities = model.lm_head(states[-1])[:, -1, :tokens].float().softmax(dim=-1)
        ids = torch.multinomial(probabilities, 1, generator=generator)
    return torch.cat(states, dim=1)


def _ridge(states: Tensor, wanted: Tensor) -> Tensor:
    """The row whose products with `states` [states, hidden] come closest to `wanted` [states], its size penalised."""
    states, wanted = states.double(), wanted.double()
    squares = states.T @ states
    penalty = _RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype)
    return torch.linalg.solve(squares + penalty, states.T @ wanted).float()
