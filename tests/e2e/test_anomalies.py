"""Batches that would do harm: the run ends, leaves them out or goes back, and says where they came from."""

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.tokenizer import UnitTokenizer

EXACT = ("loss", "grad_norm", "lr", "epoch", "tokens", "sequences", "max_loss", "truncated_units")
STEPS = ("training.steps=24", "scheduler.checkpoints=[24]", "checkpoint.hf_export=never", "validation.freq=12")
ON_TWO = ("parallelism=fsdp", "training.local_batch_size=2")
BATCH = 8


@dataclass
class Bad:
    """A unit of the training data that the tests poison, in global batch number `batch` (from 1)."""

    batch: int
    place: str
    tokens: list[int]
    beside: list[str]
    """Places of the other micro-batch of four sequences."""

    @property
    def order(self) -> str:
        return f"sequences {BATCH * (self.batch - 1)} to {BATCH * self.batch - 1} of the order"

    def poisoned(self, **how):
        return ("poison", {"unit": self.tokens, **how})

    def lacking(self, first_batch=None):
        return ("lack", {"first": BATCH * (first_batch or self.batch), "last": BATCH * self.batch})


@pytest.fixture(scope="module")
def units(cache) -> dict[int, Bad]:
    """The sixth sequence of each global batch, as the runs here see them."""
    tokenizer = UnitTokenizer.load(SAMPLE_DIR / "tokenizer")
    data = JsonlTaggedPackedDataset(
        paths=SAMPLE_DIR / "train",
        tokenizer=tokenizer,
        seq_len=128,
        local_batch_size=BATCH,
        cache_dir=cache,
        seed=42,
    )
    found = {}
    for number, batch in zip(range(1, 25), data, strict=False):
        places = [data.locate(unit_ids) for unit_ids in batch.unit_ids]
        tokens = batch.input_ids[5].tolist()
        end = [*tokens, tokenizer.pad_id].index(tokenizer.pad_id)
        found[number] = Bad(number, places[5][0], tokens[:end], [p for row in places[:4] for p in row])
    return found


def weights(run, step: int) -> list[bytes]:
    folder = run.root / "checkpoint" / f"step-{step:08d}"
    return [shard.read_bytes() for shard in sorted(folder.glob("*.safetensors"))]


def assert_same(run, other) -> None:
    assert run.curve(*EXACT) == other.curve(*EXACT)
    assert {s: r["loss"] for s, r in run.rows("validation").items()} == {
        s: r["loss"] for s, r in other.rows("validation").items()
    }
    assert weights(run, 24) == weights(other, 24)


def anomalies(run) -> dict[int, int]:
    return {step: row["anomalies"] for step, row in run.rows().items()}


@pytest.fixture(scope="module")
def lacking(faulty_factory, tiny, units):
    """Runs on this many ranks whose order lacks the eleventh batch."""
    options = {0: (*tiny, *STEPS), 2: (*tiny, *STEPS, *ON_TWO)}
    faults = [units[11].lacking()]
    return {n: faulty_factory("lacking").run(*options[n], ranks=n, faults=faults)[1] for n in options}


@pytest.mark.parametrize("ranks", [0, 2])
def test_skip_is_a_run_whose_order_lacks_the_batch(faulty, tiny, units, lacking, ranks: int) -> None:
    bad = units[11]
    options = (*tiny, *STEPS, *(ON_TWO if ranks else ()))
    output, run = faulty.run(*options, "training.anomaly=skip", ranks=ranks, faults=[bad.poisoned()])
    assert_same(run, lacking[ranks])
    assert anomalies(run) == {step: int(step >= 11) for step in range(1, 25)}
    [line] = [line for line in run.log.splitlines() if "WARNING" in line and "step 11: " in line]
    assert "step 11: loss is nan, gradient norm nan" in line
    assert bad.place in line
    assert bad.order in line
    assert not any(place in line for place in bad.beside), "a micro-batch without fault"
    assert "anomaly 1 of at most 10" in line
    assert output.count("the batch is left out") == 1, "every rank says so"


def test_stop_keeps_the_state_before_the_batch(faulty, tiny, units, lacking) -> None:
    """On two ranks, of which one sees the NaN; `skip` then goes on from there as if nothing had been."""
    bad = units[11]
    options = (*tiny, *STEPS, *ON_TWO)
    output, run = faulty.run(*options, "run_name=stop", ranks=2, faults=[bad.poisoned()], code=1)
    assert "Traceback" not in output
    [said] = [line for line in output.splitlines() if "error: " in line]
    assert "step 11: loss is nan" in said
    assert bad.place in said
    assert "stopped before the optimizer moved, the weights are those of step 10" in said
    assert run.facts["status"] == "failed"
    assert run.steps_saved() == [8, 10]
    assert list(run.rows()) == list(range(1, 11))
    faulty.run(*options, "training.anomaly=skip", "run_name=stop", ranks=2, faults=[bad.poisoned()])
    assert_same(run, lacking[2])


def test_rewind_leaves_out_what_came_since_the_checkpoint(faulty, tiny, units) -> None:
    bad = units[14]  # step 14: 9 to 13 are void, and so is the validation of step 12
    options = (*tiny, *STEPS, "metrics.tensorboard=true")
    output, run = faulty.run(*options, "training.anomaly=rewind", "run_name=rewind", faults=[bad.poisoned()])
    _, other = faulty.run(*options, "run_name=lacking", faults=[bad.lacking(first_batch=9)])
    assert_same(run, other)
    assert anomalies(run) == {step: int(step > 8) for step in range(1, 25)}
    lines = (run.root / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 24 + 2
    assert output.index("step 14: loss is nan") < output.index("rewound to")
    assert scalars(run) == scalars(other)


def test_rewind_waits_for_a_failed_save_and_keeps_a_plan_that_was_changed(faulty, tiny, units) -> None:
    """The background save of step 16 has failed, step 10 was saved by the plan that came before."""
    options = (*tiny, *STEPS, "training.anomaly=rewind", "checkpoint.async_mode=async", "run_name=changed")
    stop = ("at", {"step": 10, "phase": "forward", "action": "signalled", "number": signal.SIGTERM})
    faulty.run(*options, faults=[stop], code=128 + signal.SIGTERM)
    folder = str(faulty.app.folder / "runs" / "changed" / "checkpoint")
    faults = [
        ("at", {"step": 15, "phase": "forward", "action": "blocked", "folder": folder}),
        ("at", {"step": 17, "phase": "forward", "action": "unblocked", "folder": folder}),
        units[17].poisoned(),
    ]
    changed = ("optimizer.lr=1e-3", "scheduler.on_resume=override")
    output, run = faulty.run(*options, *changed, faults=faults)
    assert "Traceback" not in output
    assert "checkpoint of step 16 was not saved" in run.log
    assert "rewound to" in output
    assert "step-00000010" in output.partition("rewound to")[2].splitlines()[0]
    assert {row["lr"] for step, row in run.rows().items() if step <= 10} == {3e-3}
    assert {row["lr"] for step, row in run.rows().items() if 10 < step <= 22} == {1e-3}
    assert anomalies(run) == {step: int(step > 10) for step in range(1, 25)}


def test_rewind_without_a_checkpoint_names_the_batch_all_the_same(faulty, tiny, units) -> None:
    options = (*tiny, *STEPS, "training.anomaly=rewind", "run_name=early")
    output, _ = faulty.run(*options, faults=[units[3].poisoned()], code=1)
    assert units[3].place in output
    assert "training.anomaly=rewind: the run has no checkpoint to go back to yet" in output


def test_the_limit_holds_over_restarts(faulty, tiny, units) -> None:
    options = (*tiny, *STEPS, "training.anomaly=skip", "training.max_anomalies=1", "run_name=limit")
    faults = [units[5].poisoned(), units[12].poisoned(where="gradient")]
    stop = ("at", {"step": 7, "phase": "forward", "action": "signalled", "number": signal.SIGTERM})
    _, run = faulty.run(*options, faults=[*faults, stop], code=128 + signal.SIGTERM)
    assert run.rows()[7]["anomalies"] == 1
    output, run = faulty.run(*options, faults=faults, code=1)
    assert "step 11: loss is 4." in output, "the loss was fine"
    assert "gradient norm nan" in output
    assert units[12].place in output
    assert "training.max_anomalies=1: this is one more" in output
    assert list(run.rows()) == list(range(1, 11))
    assert run.steps_saved()[-1] == 10


def test_spikes_are_judged_alike_on_two_ranks_and_after_a_resume(faulty, tiny, units) -> None:
    bad = units[20]
    options = (*tiny, *STEPS, "training.anomaly=skip", "training.spike_sigmas=6", "training.spike_window=16")
    faults = [bad.poisoned(factor="40")]
    _, on_two = faulty.run(*options, *ON_TWO, "run_name=two", ranks=2, faults=faults)
    stop = ("at", {"step": 18, "phase": "forward", "action": "signalled", "number": signal.SIGUSR1})
    faulty.run(*options, "run_name=one", faults=[*faults, stop], code=128 + signal.SIGUSR1)
    output, resumed = faulty.run(*options, "run_name=one", faults=faults)
    assert "start: after step 18" in output
    for run in (on_two, resumed):
        assert anomalies(run) == {step: int(step >= 20) for step in range(1, 25)}
        assert "step 20: loss is " in run.log
        assert "more than 6 standard deviations" in run.log
        assert "above the mean of the last 16 steps" in run.log
        assert run.log.index(bad.place) < min(run.log.index(place) for place in bad.beside), "the highest loss first"
    for step, row in on_two.rows().items():
        assert resumed.rows()[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_steps_in_flight_end_no_other_way_than_one_by_one(faulty, tiny, units) -> None:
    """On two ranks with FSDP, and through a stop, a kill and a resume."""
    options = (*tiny, *STEPS, *ON_TWO, "metrics.log_freq=5")
    skip = (*options, "training.anomaly=skip")
    faults = [units[11].poisoned(), units[14].poisoned(where="gradient")]
    _, one_by_one = faulty.run(*skip, "run_name=one-by-one", ranks=2, faults=faults)
    assert anomalies(one_by_one)[24] == 2
    faults.append(("ahead", {}))
    output, run = faulty.run(*options, "run_name=ahead", ranks=2, faults=faults, code=1)
    assert "stopped before the optimizer moved, the weights are those of step 10" in output
    assert run.steps_saved() == [8, 10]
    killed = ("at", {"step": 15, "phase": "forward", "action": "signalled", "number": signal.SIGKILL, "rank": 1})
    faulty.start(*skip, "run_name=ahead", ranks=2, faults=[*faults, killed]).end()
    assert run.steps_saved() == [8, 10]
    faulty.run(*skip, "run_name=ahead", ranks=2, faults=faults)
    assert_same(run, one_by_one)
    assert anomalies(run) == anomalies(one_by_one)


def test_rewinding_with_steps_in_flight(faulty, tiny, units) -> None:
    options = (*tiny, *STEPS, "metrics.log_freq=5", "training.anomaly=rewind")
    faults = [units[14].poisoned()]
    _, one_by_one = faulty.run(*options, "run_name=one-by-one", faults=faults)
    _, run = faulty.run(*options, "run_name=ahead", faults=[*faults, ("ahead", {})])
    assert_same(run, one_by_one)
    assert anomalies(run) == anomalies(one_by_one)
    assert anomalies(run)[24] == 1


def scalars(run) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of losses: no step twice, purged ones gone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(Path(run.root) / "tb"))
    shown.Reload()
    tags = ("train/loss", "validation/loss")
    return [(tag, event.step, event.value) for tag in tags for event in shown.Scalars(tag)]
