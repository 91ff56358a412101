"""More processes, the same training."""

import pytest


def test_two_processes_write_one_run_directory(whole_on_two) -> None:
    output, run = whole_on_two
    assert [p.name for p in run.root.parent.iterdir()] == [run.root.name]
    assert run.facts["world_size"] == 2
    assert not list(run.root.glob("runtime.rank*.log"))
    assert output.count("first sequence") == 1


def test_losses_are_those_of_one_process(faulty, tiny, whole, whole_on_two) -> None:
    _, one = whole
    _, two = whole_on_two
    sizes = ("training.local_batch_size=2", "validation.local_batch_size=4")
    _, four = faulty.run(*tiny, *sizes, "parallelism=fsdp", ranks=4)
    for other in (two, four):
        for step, row in one.rows().items():
            same = other.rows()[step]
            assert same["tokens"] == row["tokens"], "another batch"
            assert same["loss"] == pytest.approx(row["loss"], abs=1e-4)
            assert same["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3)


def test_fsdp_on_one_process_is_bit_identical(faulty, tiny, whole) -> None:
    _, one = whole
    _, run = faulty.run(*tiny, "parallelism=fsdp")
    assert run.curve("loss", "grad_norm") == one.curve("loss", "grad_norm")


def test_validation_of_the_whole_split_is_the_same_on_any_number_of_ranks(faulty, tiny) -> None:
    losses = {}
    short = (*tiny, "training.steps=1", "scheduler.checkpoints=[1]", "validation.steps=-1", "checkpoint.enable=false")
    for processes in (0, 2, 3):
        batch = ("training.global_batch_size=12", "training.local_batch_size=4")
        size = ("training.global_batch_size=8",) if processes == 2 else batch
        layout = ("parallelism=fsdp",) if processes else ()
        _, run = faulty.run(*short, *size, *layout, f"run_name=v{processes}", ranks=processes)
        losses[processes] = run.rows("validation")[1]
    assert losses[2]["tokens"] == losses[0]["tokens"] == losses[3]["tokens"]
    assert losses[2]["unigram_entropy"] == pytest.approx(losses[0]["unigram_entropy"], rel=1e-12)
    assert losses[3]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-6)
