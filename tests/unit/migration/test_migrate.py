"""Every key of the replaced stack: to the value that the composed run has, or to a reason."""

import math
import re
from functools import reduce
from pathlib import Path

import pytest

from molgen_pretrain.config.choices import InitMode
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.errors import UserError
from molgen_pretrain.migration import Migration

OLD_KEYS = {
    "job": "description dump_folder print_config custom_config_module",
    "molgen_run": "init_mode tokenizer_tag base_model_tag resume_run_path_tag run_name",
    "model": "name flavor hf_assets_path",
    "experimental": "custom_import",
    "training": "seq_len local_batch_size global_batch_size steps max_norm dtype seed dataset dataset_path",
    "optimizer": "name lr beta1 beta2 eps weight_decay",
    "lr_scheduler": "warmup_steps decay_type",
    "wsds_scheduler": "enable warmup_steps checkpoints lr_max lr_min decay_frac decay_steps base_lr",
    "checkpoint": "enable interval keep_latest_k folder initial_load_path initial_load_in_hf initial_load_model_only "
    "last_save_in_hf save_hf_per_checkpoint async_mode create_seed_checkpoint",
    "metrics": "log_freq enable_wandb save_for_all_ranks save_tb_folder",
    "parallelism": "data_parallel_replicate_degree data_parallel_shard_degree tensor_parallel_degree "
    "fsdp_reshard_after_forward",
    "validation": "enable dataset dataset_path local_batch_size seq_len freq steps",
    "molgen_data": "train_path_key tokenizer_key min_emb_len shuffle_lines infinite seed num_workers pin_memory "
    "drop_last persistent_workers prefetch_factor lookahead_limit",
}
OBSOLETE = {
    "job.print_config",
    "job.custom_config_module",
    "molgen_run.resume_run_path_tag",
    "model.hf_assets_path",
    "experimental.custom_import",
    "training.dataset",
    "lr_scheduler.warmup_steps",
    "lr_scheduler.decay_type",
    "wsds_scheduler.base_lr",
    "checkpoint.folder",
    "checkpoint.initial_load_path",
    "checkpoint.initial_load_in_hf",
    "checkpoint.initial_load_model_only",
    "checkpoint.create_seed_checkpoint",
    "metrics.save_tb_folder",
    "validation.dataset",
    "validation.seq_len",
    "molgen_data.tokenizer_key",
    "molgen_data.drop_last",
}
# What full.toml and paths.yaml come to, whatever the run starts from.
FULL = {
    "description": "qwen3 0.6B, 4k",
    "run_name": "260101-1200-abcd-qwen3",
    "paths.runs": "/scratch/runs",
    "model.hidden_size": 1024,
    "model.vocab_size": 151936,
    "training.seq_len": 4096,
    "training.local_batch_size": 3,
    "training.global_batch_size": 48,
    "training.steps": 120000,
    "training.max_norm": 0.5,
    "training.dtype": "bfloat16",
    "training.seed": 1234,
    "optimizer.lr": 2e-4,
    "optimizer.betas": [0.85, 0.98],
    "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.05,
    "scheduler.warmup_steps": 500,
    "scheduler.checkpoints": [30000, 60000, 120000],
    "scheduler.lr_max": 2e-4,
    "scheduler.lr_min": 0.0,
    "scheduler.decay_frac": 0.15,
    "scheduler.decay_steps": 4000,
    "checkpoint.enable": True,
    "checkpoint.interval": 20000,
    "checkpoint.keep_latest_k": 4,
    "checkpoint.hf_export": "last",
    "checkpoint.async_mode": "async",
    "metrics.log_freq": 20,
    "metrics.wandb": "online",
    "parallelism.data_parallel_replicate_degree": 2,
    "parallelism.data_parallel_shard_degree": 4,
    "parallelism.tensor_parallel_degree": 1,
    "parallelism.fsdp_reshard_after_forward": "never",
    "validation.enable": True,
    "validation.local_batch_size": 5,
    "validation.freq": 600,
    "validation.steps": 200,
    "data.train_path": "/scratch/data/conformers/train",
    "data.valid_path": "/scratch/data/conformers/valid/part1",
    "data.tokenizer": "/nowhere/qwen3_custom",
    "data.seq_len": 4096,
    "data.min_emb_len": 8,
    "data.shuffle_lines": False,
    "data.infinite": False,
    "data.seed": 2025,
    "data.num_workers": 6,
    "data.pin_memory": False,
    "data.persistent_workers": False,
    "data.prefetch_factor": 3,
    "data.lookahead_limit": 100,
}
SCHEDULED = "[wsds_scheduler]\nenable = true\ncheckpoints = [500]\n"


def values(cfg: RunConfig, keys) -> dict[str, object]:
    found = {key: reduce(getattr, key.split("."), cfg) for key in keys}
    return {key: getattr(value, "value", value) for key, value in found.items()}


def fates(migration: Migration) -> dict[str, str]:
    return {fate.key: fate.new or fate.reason for fate in migration.fates}


def with_lines(text: str, section: str, *lines: str) -> str:
    """The text with lines added to one of its sections."""
    assert f"[{section}]\n" in text
    return text.replace(f"[{section}]\n", f"[{section}]\n" + "\n".join(lines) + "\n")


def test_every_key_is_accounted_for(migrated, old_text) -> None:
    migration = migrated(old_text("full"))
    known = {f"{section}.{name}" for section, names in OLD_KEYS.items() for name in names.split()}
    assert [fate.key for fate in migration.fates if fate.new and fate.reason] == []
    assert {fate.key for fate in migration.fates} == known
    assert {fate.key for fate in migration.fates if fate.is_obsolete} == OBSOLETE
    lines = old_text("full").splitlines()
    assert all(lines[fate.line - 1].startswith(fate.key.partition(".")[2]) for fate in migration.fates)
    assert migration.assumed == []


def test_the_composed_run_has_the_values_of_a_resume(composed, old_text) -> None:
    text = old_text("full").replace('"hf_pretrain"', '"resume"')
    cfg = composed(text)
    assert values(cfg, FULL) == FULL
    assert (cfg.init.mode, cfg.init.source) == (InitMode.resume, "/scratch/checkpoints/run1/step-1000")


def test_the_composed_run_has_the_values_of_a_pretrained_start(composed, old_text) -> None:
    cfg = composed(old_text("full"))
    assert values(cfg, FULL) == FULL
    assert (cfg.init.mode, cfg.init.source) == (InitMode.hf_pretrain, "/scratch/models/Qwen3-0.6B-Base")
    assert cfg.metrics.save_for_all_ranks is True


def test_what_a_minimal_file_leaves_out_is_as_it_was(composed, old_text) -> None:
    cfg = composed(old_text("minimal"))
    expected = {
        "model.hidden_size": 2048,
        "training.steps": 500,
        "training.seq_len": 2048,
        "training.local_batch_size": 8,
        "training.global_batch_size": -1,
        "training.dtype": "bfloat16",  # computed in by mixed precision
        "optimizer.lr": 8e-4,
        "optimizer.weight_decay": 0.1,
        "data.train_path": "/data/train",
        "data.tokenizer": "/data/tokenizers/qwen3_custom",
        "validation.enable": False,
        "parallelism.data_parallel_shard_degree": -1,
        "init.mode": "scratch",
    }
    assert values(cfg, expected) == expected
    schedule = build_schedule(cfg.scheduler)
    assert (schedule.lr(200), schedule.lr(350), schedule.lr(500)) == pytest.approx((8e-4, 4e-4, 0.0))


def test_references_stay_interpolations(migrated, composed, old_text, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.parent.name: text for path, text in migrated(old_text("full")).files.items()}
    assert "train_path: ${paths.aliases.data.conformers_train}\n" in files["experiment"]
    assert "valid_path: ${paths.aliases.data.conformers_valid}/part1\n" in files["experiment"]
    assert "qwen3_0_6b_base_model: ${paths.aliases.base_paths.models_root}/Qwen3-0.6B-Base\n" in files["paths"]
    monkeypatch.setenv("OLD_DATA", "/elsewhere")
    text = with_lines(old_text("minimal"), "molgen_run").replace('"/data/train"', '"data:conformers_train"')
    assert composed(text).data.train_path == "/elsewhere/conformers/train"


def test_the_environment_names_the_run_as_before(composed, old_text, monkeypatch: pytest.MonkeyPatch) -> None:
    text = with_lines(old_text("minimal"), "molgen_run", 'run_name = "mine"') + '[job]\ndescription = "it\'s ${x}"\n'
    cfg = composed(text)
    assert (cfg.run_name, cfg.description) == ("mine", "it's ${x}")
    monkeypatch.setenv("WANDB_RUN_NAME", "other")
    monkeypatch.setenv("JOB_DESCRIPTION", "another")
    cfg = composed(text)
    assert (cfg.run_name, cfg.description) == ("other", "another")


def test_all_mistakes_at_once_with_their_lines(migrated, old_text, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        migrated(old_text("mistakes"))
    lines = str(caught.value).splitlines()
    expected = [
        ":5: trainnig: unknown section, did you mean training?",
        ":9: training.stepz: unknown key, did you mean steps?",
        ":10: training.steps=many: must be a whole number",
        ":11: training.global_batch_size=13: must be a positive multiple of training.local_batch_size (8)",
        ":12: training.dataset_path=data:conformer_train: no conformer_train in data, did you mean conformers_train?",
        ":17: wsds_scheduler.checkpoints: scheduler.checkpoints=[2000, 1000]: milestones must be strictly increasing",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"{tmp_path / 'old.toml'}{start}")
    assert not (tmp_path / "conf").exists()


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("model", 'name = "llama3"', "model.name=llama3: only Qwen3"),
        ("training", "max_norm = true", "training.max_norm=true: must be a number"),
        (
            "training",
            'dtype = "float16"',
            "training.dtype=float16: no such choice, did you mean bfloat16?; legal: float32",
        ),
        ("training", "seq_len = 50000", "training.seq_len=50000: exceeds model.max_position_embeddings"),
        ("molgen_run", 'init_mode = "resume"', "molgen_run.init_mode=resume: needs molgen_run.resume_run_path_tag"),
        ("molgen_run", 'init_mode = "pretrain"', "no such choice, did you mean hf_pretrain?; legal: scratch,"),
        ("molgen_run", 'base_model_tag = "modls:x"', "modls:x: no section modls in"),
        ("molgen_run", 'base_model_tag = "data:GEOM"', "data:GEOM: is no place; legal: drugs"),
        ("molgen_run.deeper", "x = 1", "molgen_run.deeper.x: unknown key"),
    ],
)
def test_a_mistake(migrated, old_text, section: str, line: str, message: str) -> None:
    text = old_text("minimal")
    changed = with_lines(text, section, line) if f"[{section}]" in text else f"{text}[{section}]\n{line}\n"
    with pytest.raises(UserError) as caught:
        migrated(changed)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_without_a_size_or_a_valid_toml(migrated) -> None:
    with pytest.raises(UserError, match=r"model.flavor: is missing.*legal: 0.6B, 1.7B, 4B"):
        migrated("[training]\nsteps = 10\n")
    with pytest.raises(UserError, match=r"old.toml:2: is not valid TOML"):
        migrated("[training]\nsteps = = 10\n")


@pytest.mark.parametrize(
    ("optimizer", "wsds", "lr", "peak"),
    [
        ("", "lr_max = 3e-4", 3e-4, 3e-4),
        ("", "base_lr = 4e-4", 4e-4, 4e-4),
        ("lr = 2e-4", "", 2e-4, 2e-4),
        ("lr = 2e-4", "lr_max = 3e-4", 2e-4, 3e-4),
        ("", "", 8e-4, 8e-4),
    ],
)
def test_the_peak_learning_rate(composed, old_text, optimizer: str, wsds: str, lr: float, peak: float) -> None:
    text = f"{old_text('minimal')}[optimizer]\n{optimizer}\n{SCHEDULED}{wsds}\n"
    cfg = composed(text)
    assert (cfg.optimizer.lr, build_schedule(cfg.scheduler).lr(100)) == (lr, peak)


def test_rates_that_contradict_each_other_are_pointed_out(migrated, old_text) -> None:
    text = f"{old_text('minimal')}[optimizer]\nlr = 2e-4\n{SCHEDULED}lr_max = 3e-4\nbase_lr = 1e-4\n"
    notes = "\n".join(migrated(text).notes)
    assert "optimizer.lr=0.0002 and wsds_scheduler.lr_max=0.0003 differ" in notes
    assert "multiplied all rates of the schedule by 2;" in notes


@pytest.mark.parametrize(
    ("decay_type", "at_450"),
    [
        ("linear", 8e-4 * (1 - 7 / 8)),
        ("cosine", 8e-4 * (1 + math.cos(math.pi * 7 / 8)) / 2),
        ("sqrt", 8e-4 * (1 - math.sqrt(7 / 8))),
        ("constant", 8e-4),
    ],
)
def test_titans_own_schedule(composed, old_text, decay_type: str, at_450: float) -> None:
    """Its decays end with the run; at step 450 of 500, after a warmup of 100 steps, 7/8 of them are over."""
    schedule = build_schedule(
        composed(f"{old_text('minimal')}[lr_scheduler]\nwarmup_steps = 100\ndecay_type = '{decay_type}'\n").scheduler
    )
    assert schedule.lr(100) == 8e-4
    assert schedule.lr(450) == pytest.approx(at_450)
    assert schedule.lr(500) == (8e-4 if decay_type == "constant" else 0)


@pytest.mark.parametrize(
    ("lines", "export"),
    [
        ("last_save_in_hf = true", "last"),
        ("last_save_in_hf = false", "never"),
        ("last_save_in_hf = true\nsave_hf_per_checkpoint = true", "every"),
    ],
)
def test_hugging_face_export(migrated, old_text, lines: str, export: str) -> None:
    migration = migrated(f"{old_text('minimal')}[checkpoint]\n{lines}\n")
    assert {fates(migration)[f"checkpoint.{line.partition(' ')[0]}"] for line in lines.splitlines()} == {
        f"checkpoint.hf_export={export}"
    }


def test_start_without_init_mode_is_titans(migrated, old_text) -> None:
    text = f'{old_text("minimal")}[checkpoint]\ninitial_load_path = "ckpts:run1"\ninitial_load_model_only = false\n'
    migration = migrated(text)
    assert fates(migration)["checkpoint.initial_load_path"] == "init.from=${paths.aliases.ckpts.run1}"
    assert fates(migration)["checkpoint.initial_load_model_only"] == "init.model_only=false"
    text = text.replace("initial_load_model_only = false", "initial_load_in_hf = true")
    assert fates(migrated(text, replace=True))["checkpoint.initial_load_in_hf"] == "init=hf_pretrain"


@pytest.mark.parametrize(
    ("degrees", "starter"),
    [
        ("data_parallel_shard_degree = 1", "python -m"),
        ("data_parallel_shard_degree = 4\ntensor_parallel_degree = 2", "torchrun --nproc-per-node=8 -m"),
        ("tensor_parallel_degree = 2", "torchrun --nproc-per-node=gpu -m"),
    ],
)
def test_the_command_starts_as_many_processes_as_the_degrees(
    migrated, old_text, tmp_path: Path, degrees: str, starter: str
) -> None:
    migration = migrated(f"{old_text('minimal')}[parallelism]\n{degrees}\n")
    words = f"molgen_pretrain --config-dir {tmp_path / 'conf'} +experiment=mine"
    assert migration.command == f"{starter} {words}"


def test_files_that_stand_are_not_replaced_unasked(migrated, old_text) -> None:
    migrated(old_text("minimal"))
    with pytest.raises(UserError, match="exists; take another name, or --force"):
        migrated(old_text("minimal"))
    migrated(old_text("minimal"), replace=True)


def test_the_guide_names_every_key() -> None:
    guide = Path(__file__).parents[3] / "docs" / "migrating.md"
    named = set(re.findall(r"`([a-z_]+\.[a-z_0-9]+)`", guide.read_text()))
    assert {f"{section}.{name}" for section, names in OLD_KEYS.items() for name in names.split()} - named == {
        "experimental.custom_import"  # a section that is obsolete as a whole
    }
