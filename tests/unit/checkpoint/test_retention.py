from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molgen_pretrain.checkpoint.retention import Candidate, reasons_to_keep

CANDIDATES = st.dictionaries(
    st.integers(0, 10_000), st.builds(Candidate, st.booleans(), st.sampled_from([True, False, None])), max_size=20
)


@given(CANDIDATES, st.integers(0, 6))
def test_what_must_stay_stays_and_nothing_else(candidates: dict[int, Candidate], keep_latest_k: int) -> None:
    reasons = reasons_to_keep(candidates, keep_latest_k)
    assert list(reasons) == sorted(candidates)
    newest = set(sorted(candidates)[-keep_latest_k:]) if keep_latest_k else set(candidates)
    finite = [step for step, candidate in candidates.items() if candidate.finite]
    for step, why in reasons.items():
        assert ("newest" in why) == (step in newest)
        assert ("milestone" in why) == candidates[step].milestone
        assert ("last finite" in why) == (finite != [] and step == max(finite))
    assert not candidates or any(reasons.values())


@given(CANDIDATES, st.integers(0, 6))
def test_a_second_pass_finds_nothing_to_do(candidates: dict[int, Candidate], keep_latest_k: int) -> None:
    kept = {step: candidates[step] for step, why in reasons_to_keep(candidates, keep_latest_k).items() if why}
    assert all(reasons_to_keep(kept, keep_latest_k).values())


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_latest_k=-1"):
        reasons_to_keep({1: Candidate(False, True)}, -1)
