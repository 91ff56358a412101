from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.checkpoint.retention import steps_to_delete

COMMITTED = st.dictionaries(st.integers(0, 10_000), st.booleans(), max_size=20)


@given(COMMITTED, st.integers(0, 6), st.sets(st.integers(0, 10_000), max_size=3))
def test_what_must_stay_stays_and_nothing_else(
    committed: dict[int, bool], keep_latest_k: int, protect: set[int]
) -> None:
    gone = steps_to_delete(committed, keep_latest_k, protect)
    kept = set(committed) - set(gone)
    newest = set(sorted(committed)[-keep_latest_k:]) if keep_latest_k else set(committed)
    milestones = {step for step, is_milestone in committed.items() if is_milestone}
    assert kept == set(committed) & (newest | milestones | protect)
    assert gone == sorted(set(gone))
    assert not committed or kept


@given(COMMITTED, st.integers(0, 6))
def test_a_second_pass_finds_nothing_to_do(committed: dict[int, bool], keep_latest_k: int) -> None:
    for step in steps_to_delete(committed, keep_latest_k):
        del committed[step]
    assert steps_to_delete(committed, keep_latest_k) == []


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_latest_k=-1"):
        steps_to_delete({1: False}, -1)
