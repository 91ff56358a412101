"""Every shipped config composes; every mistake gets its message."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from molgen_pretrain.config.choices import InitMode
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.store import conf_dir, group_choices
from molgen_pretrain.config.validate import parallel_degrees, validate
from molgen_pretrain.errors import UserError

GROUPS = sorted(p.name for p in conf_dir().iterdir() if p.is_dir() and p.name not in {"hydra", "experiment"})
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))]
EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_NAME", "WANDB_RUN_NAME", "RUN_DESC", "JOB_DESCRIPTION", "MOLGEN_DATA", "MOLGEN_TRAIN"):
        monkeypatch.delenv(name, raising=False)


def composed(*overrides: str) -> RunConfig:
    return compose_run(overrides)


def message_of(*overrides: str, world_size: int = 1) -> str:
    with pytest.raises((HydraException, OmegaConfBaseException, UserError)) as caught:
        validate(composed(*overrides), world_size)
    message = explain(caught.value)
    assert message
    return message


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_is_valid(choice: str) -> None:
    extra = ["init.from=somewhere"] if choice in ("init=resume", "init=hf_pretrain") else []
    cfg = composed(choice, *extra)
    validate(cfg, world_size=2 if choice in ("parallelism=hsdp", "parallelism=fsdp_tp") else 1)
    group, _, name = choice.partition("=")
    section = getattr(cfg, group)
    for key, value in yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text()).items():
        if isinstance(value, (bool, int)):
            assert getattr(section, key) == value, f"{choice} does not set {key}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("world_size", [1, 8])
def test_every_experiment_composes_and_is_valid(experiment: str, world_size: int) -> None:
    layout = ["parallelism=fsdp"] if experiment in ("sample", "decay_frac_sweep") else []
    cfg = composed(f"+experiment={experiment}", *layout)
    validate(cfg, world_size)
    assert cfg.description == experiment


def test_the_recipe_shrinks_to_two_steps() -> None:
    cfg = composed("+experiment=qwen3_0_6b", "training.steps=2", "training.seq_len=256", "training.local_batch_size=1")
    validate(cfg, 1)
    assert build_schedule(cfg.scheduler).milestones[-1] == 2


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("other", ["scheduler=constant", "scheduler=wsd", "optimizer=muon", "model=qwen3_nano"])
def test_a_recipe_leaves_every_choice_open(experiment: str, other: str) -> None:
    assert validate(composed(f"+experiment={experiment}", other), world_size=1) is None


def test_the_bare_config_is_the_sample_recipe() -> None:
    bare, recipe = composed(), composed("+experiment=sample")
    assert dataclasses.replace(bare, description="") == dataclasses.replace(recipe, description="")


def test_one_value_one_home() -> None:
    cfg = composed("training.seq_len=1024", "training.steps=77", "training.seed=5", "optimizer.lr=0.01")
    assert cfg.data.seq_len == 1024
    assert cfg.scheduler.total_steps == 77
    assert cfg.data.seed == 5
    assert build_schedule(cfg.scheduler).lr(5) == 0.01


def test_data_decides_the_embedding_of_the_small_model() -> None:
    assert composed("data=conformers").model.vocab_size == 151936


def test_run_name_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert composed().run_name is None
    monkeypatch.setenv("WANDB_RUN_NAME", "from-wandb")
    assert composed().run_name == "from-wandb"
    monkeypatch.setenv("RUN_NAME", "from-run-name")
    assert composed().run_name == "from-run-name"


def test_description_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_DESCRIPTION", "a-job")
    assert composed().description == "a-job"
    monkeypatch.setenv("RUN_DESC", "a-run")
    assert composed().description == "a-run"


def test_init_from_becomes_source() -> None:
    init = composed("init=resume", "init.from=/runs/a", "init.model_only=true").init
    assert (init.mode, init.source, init.model_only) == (InitMode.resume, "/runs/a", True)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.stepz=1"], ["training.stepz: unknown key, did you mean steps?", "local_batch_size"]),
        (["+training.foo=1"], ["training.foo: unknown key", "local_batch_size"]),
        (["+foo=1"], ["foo: unknown key", "training"]),
        (["trainnig=sample"], ["trainnig: unknown key, did you mean training?"]),
        (["training.steps=abc"], ["training.steps=abc", "Integer"]),
        (["training.dtype=fp16"], ["training.dtype=fp16", "auto, float32, bfloat16"]),
        (["scheduler=wsdss"], ["scheduler=wsdss: no such choice, did you mean wsds?", "constant, cosine"]),
        (["scheduler=constant", "scheduler.decay_frac=0.1"], ["scheduler.decay_frac: unknown key", "warmup_steps"]),
        (["init=resume"], ["init.from: a value is needed"]),
        (["init=scratch", "+init.from=x"], ["init.from: unknown key for init=scratch"]),
        (["init=resume", "init.from=null"], ["init.from=None: "]),
        (["init=resume", "init.from=x", "init.model_only=maybe"], ["init.model_only=maybe", "bool"]),
        (["init=resume", "init.from=x", "+init.new_tokens=mean"], ["init.new_tokens: unknown key for init=resume"]),
        (["init=hf_pretrain", "init.from=x", "init.new_tokens=zero"], ["init.new_tokens=zero", "normal, mean"]),
        (["checkpoint.hf_export_shard_size=2GiB"], ["checkpoint.hf_export_shard_size=2GiB", "2GB"]),
        (["scheduler.checkpoints=[100,50]"], ["scheduler.checkpoints=[100, 50]", "strictly increasing"]),
        (["scheduler.checkpoints=[5000]"], ["[5000] beyond the run's 400 steps", "raise training.steps"]),
        (["training.global_batch_size=13"], ["training.global_batch_size=13", "nearest legal: 12 or 16"]),
        (["training.global_batch_size=3"], ["nearest legal: 4,"]),
        (["training.local_batch_size=0"], ["training.local_batch_size=0: must be at least 1"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "two numbers"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1", "scheduler.lr_max=-1"]),
        (["training.seq_len=50000"], ["training.seq_len=50000: exceeds model.max_position_embeddings"]),
        (["model.num_key_value_heads=3"], ["model.num_attention_heads=4: must be a multiple"]),
        (["validation.steps=0"], ["validation.steps=0: must be -1"]),
        (["data.valid_path=null"], ["data.valid_path=null", "validation.enable=false"]),
        (["parallelism.data_parallel_shard_degree=0"], ["shard_degree=0: must be at least 1, or -1"]),
        (["parallelism.tensor_parallel_degree=-1"], ["tensor_parallel_degree=-1: must be at least 1"]),
        (["parallelism=fsdp", "parallelism.data_parallel_replicate_degree=-1"], ["give one of them"]),
        (["parallelism.cpu_offload=true"], ["parallelism.cpu_offload=true", "data_parallel_shard_degree=-1"]),
        (["parallelism.fsdp_prefetch=-1"], ["parallelism.fsdp_prefetch=-1: must be at least 0"]),
        (["training.profile_steps=[5]"], ["training.profile_steps=[5]: must be [first, last]"]),
        (["training.profile_steps=[9,401]"], ["training.profile_steps=[9, 401]", "last <= training.steps=400"]),
        (["model.loss_kernel=liger"], ["model.loss_kernel=liger", "auto, fused, checkpointed, plain"]),
        (["run_name=a/b"], ["run_name=a/b: must be one folder name"]),
    ],
)
def test_mistakes(overrides: list[str], expected: list[str]) -> None:
    message = message_of(*overrides)
    assert all(part in message for part in expected), message


def test_all_violations_in_one_message() -> None:
    message = message_of("scheduler.checkpoints=[90,30]", "training.global_batch_size=3", "optimizer.eps=0")
    assert [line.partition("=")[0] for line in message.splitlines()] == [
        "scheduler.checkpoints",
        "optimizer.eps",
        "training.global_batch_size",
    ]


def test_what_tensor_parallelism_excludes() -> None:
    message = message_of(
        "parallelism=fsdp_tp",
        "model.loss_kernel=fused",
        "training.float8=rowwise",
        "data.embedding_rows=384",
        world_size=2,
    )
    assert "model.loss_kernel=fused: needs the whole head" in message
    assert "training.float8=rowwise: not with parallelism.tensor_parallel_degree=2; use none" in message


def test_degrees_must_multiply_to_the_world_size() -> None:
    single = message_of(world_size=2)
    assert "use parallelism=fsdp" in single
    assert "legal degrees: 1 x 2 x 1, 2 x 1 x 1, 1 x 1 x 2" in single
    wrong = message_of("parallelism=fsdp", "parallelism.data_parallel_shard_degree=4", world_size=6)
    assert "1 x 4 x 1 is not the number of processes: 6 processes were started" in wrong
    # Two heads of keys and values: two tensor-parallel ranks at most.
    assert "legal: 1 x 6 x 1, 2 x 3 x 1, 3 x 2 x 1, 6 x 1 x 1, 1 x 3 x 2, 3 x 1 x 2; " in wrong
    assert "2 x -1 x 2 is not" in message_of(
        "parallelism=fsdp_tp", "parallelism.data_parallel_replicate_degree=2", world_size=6
    )


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["parallelism=fsdp"], 1, (1, 1, 1, True)),
        (["parallelism=single"], 1, (1, 1, 1, False)),
        (["parallelism=fsdp"], 8, (1, 8, 1, True)),
        (["parallelism=ddp"], 8, (8, 1, 1, False)),
        (["parallelism=hsdp"], 8, (2, 4, 1, True)),
        (["parallelism=fsdp_tp"], 8, (1, 4, 2, True)),
        (["parallelism=hsdp", "parallelism.tensor_parallel_degree=2"], 8, (2, 2, 2, True)),
        (["parallelism.tensor_parallel_degree=2"], 2, (1, 1, 2, True)),
    ],
)
def test_choices_of_parallelism(overrides: list[str], world_size: int, expected: tuple[int, int, int, bool]) -> None:
    cfg = composed(*overrides, "training.local_batch_size=1")
    validate(cfg, world_size)
    assert dataclasses.astuple(parallel_degrees(cfg, world_size)) == expected


def test_rows_cut_along_both_axes_leave_no_rest() -> None:
    overrides = ["parallelism=fsdp_tp", "parallelism.tensor_parallel_degree=2", "model.vocab_size=389"]
    message = message_of(*overrides, world_size=8)
    assert "model.vocab_size=389: must be a multiple of" in message
    assert "2 x 4 = 8" in message
    assert "nearest legal: 384 or 392" in message
    assert "vocab_size" not in message_of(*overrides[:2], "model.vocab_size=389", "training.steps=0", world_size=2)


def test_tensor_parallel_ranks_have_whole_heads() -> None:
    message = message_of("parallelism=fsdp_tp", "parallelism.tensor_parallel_degree=4", world_size=4)
    assert message == (
        "parallelism.tensor_parallel_degree=4: must divide model.num_key_value_heads=2; legal for this model: 1, 2"
    )


def test_the_batch_is_divided_among_data_parallel_ranks_alone() -> None:
    overrides = ["parallelism=fsdp_tp", "training.local_batch_size=4", "training.global_batch_size=12"]
    assert "data-parallel degree (2) = 8; nearest legal: 8 or 16" in message_of(*overrides, world_size=4)
    assert validate(composed(*overrides), world_size=2) is None


def test_errors_of_the_program_are_not_explained_away() -> None:
    assert explain(RuntimeError("a bug")) is None


def test_help_lists_every_group_and_choice() -> None:
    text = group_choices()
    for choice in CHOICES:
        group, _, name = choice.partition("=")
        assert any(group in line and name in line for line in text.splitlines())
    assert all(name in text for name in EXPERIMENTS)
    assert "schema" not in text


def test_every_yaml_is_reached_by_a_test() -> None:
    files = {p.relative_to(conf_dir()) for p in conf_dir().rglob("*.yaml")}
    groups = {Path(*choice.split("=")).with_suffix(".yaml") for choice in CHOICES}
    experiments = {Path("experiment", name).with_suffix(".yaml") for name in EXPERIMENTS}
    hydras = {path for path in files if path.parts[:2] in (("hydra", "launcher"), ("hydra", "sweeper"))}
    # Those of Hydra's groups are in test_multirun_config.py.
    assert files - groups - experiments - hydras == {Path("config.yaml"), Path("hydra/help/molgen.yaml")}


def test_the_published_architectures() -> None:
    from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, count_parameters

    def parameters(name: str) -> int:
        sizes = composed(f"model={name}").model.sizes()
        return count_parameters(build_on_meta(Qwen3Arch(**sizes).hf_config(eos_token_id=0, pad_token_id=0)))

    # Counts of the safetensors of Qwen3-0.6B, 1.7B and 4B on the Hugging Face hub, the tied head once.
    assert parameters("qwen3_0_6b") == 596_049_920
    assert parameters("qwen3_1_7b") == 1_720_574_976
    assert parameters("qwen3_4b") == 4_022_468_096
    assert 1e6 <= parameters("qwen3_nano") <= 3e6
