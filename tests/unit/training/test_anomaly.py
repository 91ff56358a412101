"""What counts as an anomaly, and how its origin is told."""

import json
import math

import pytest

from molgen_pretrain.config.choices import AnomalyAction
from molgen_pretrain.training.anomaly import AnomalyPolicy, Suspect, origin
from molgen_pretrain.training.plan import Progress


def policy(sigmas: float | None = 4.0, window: int = 32) -> AnomalyPolicy:
    return AnomalyPolicy(action=AnomalyAction.skip, limit=3, spike_sigmas=sigmas, spike_window=window)


def after(steps: int, judge: AnomalyPolicy) -> Progress:
    """Losses of 3 +- 0.1 and gradient norms of 1 +- 0.1."""
    progress = Progress()
    for step in range(steps):
        judge.accept(progress, 3.0 + 0.1 * (-1) ** step, 1.0 + 0.1 * (-1) ** step)
    return progress


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (3.0, math.nan), (math.inf, 1.0), (3.0, -math.inf)])
def test_what_is_not_finite_is_one_at_any_time(loss: float, norm: float) -> None:
    for judge in (policy(), policy(sigmas=None)):
        assert judge.judge(Progress(), loss, norm) == f"loss is {loss}, gradient norm {norm}"


def test_spikes_are_far_above_the_mean_of_enough_steps() -> None:
    judge = policy(sigmas=4.0)
    assert judge.judge(after(15, judge), 100.0, 1.0) is None, "too few to know what is usual"
    progress = after(16, judge)
    assert judge.judge(progress, 3.39, 1.39) is None
    assert "loss is 3.41, more than 4 standard deviations (0.1)" in judge.judge(progress, 3.41, 1.0)
    assert "gradient norm is 1.41" in judge.judge(progress, 3.0, 1.41)
    assert judge.judge(progress, 0.0, 0.0) is None, "a fall is none"
    assert policy(sigmas=None).judge(progress, 1e9, 1e9) is None


def test_only_the_window_counts_and_survives_json() -> None:
    judge = policy(window=16)
    progress = after(40, judge)
    assert len(progress.recent) == 16
    back = Progress(**json.loads(json.dumps(progress.state())))
    assert judge.judge(back, 3.41, 1.0) == judge.judge(progress, 3.41, 1.0)
    assert Progress() == after(40, policy(sigmas=None)), "nothing is kept that nobody looks at"


def test_the_origin_is_the_broken_batch_or_else_the_highest_loss_first() -> None:
    suspects = [Suspect(2.0, ["a:1, a:2"]), Suspect(9.0, ["b:1"]), Suspect(2.0, ["a:1, a:2"])]
    assert origin(suspects) == "b:1; a:1, a:2"
    assert origin([*suspects, Suspect(math.nan, ["c:7"]), Suspect(math.inf, ["d:1"])]) == "c:7; d:1"
    many = origin([Suspect(1.0, [f"a:{n}" for n in range(1000)])])
    assert many.startswith("a:0; a:1; ")
    assert many.endswith("; and 968 more sequences")


def test_going_back_keeps_the_place_in_the_data_and_the_count() -> None:
    now = Progress(step=9, tokens=900, anomalies=2, position={"offset": 9}, recent=[(1.0, 1.0)])
    now.go_back_to(Progress(step=4, tokens=400, anomalies=0, position={"offset": 4}, losses=[3.0]))
    assert now == Progress(step=4, tokens=400, anomalies=2, position={"offset": 9}, losses=[3.0])
