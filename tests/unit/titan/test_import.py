import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.errors import UserError
from molgen_pretrain.titan.checkpoint import TitanCheckpoint
from molgen_pretrain.titan.lazy import LazyTensor, split_into_shards
from molgen_pretrain.tools import import_titan

TOKENIZER = Path(__file__).resolve().parents[3] / "molgen_pretrain" / "sample" / "tokenizer"


def run(*words: object) -> int:
    return import_titan.main([str(word) for word in words])


@pytest.mark.parametrize("older", [False, True], ids=["current names", "older names"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_imported_model_computes_the_same(titan: Any, tmp_path: Path, tied: bool, older: bool) -> None:
    model = titan.model(tied=tied)
    assert run(titan.save(titan.state(model, older=older)), tmp_path / "hf") == 0
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert imported.config.tie_word_embeddings == tied
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(imported(tokens).logits, model(tokens).logits, atol=1e-5, rtol=0)


def test_an_untied_head_is_known_by_its_moments_even_where_it_equals_the_embedding(titan: Any) -> None:
    model = titan.model(tied=False)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    full = titan.state(model, moments=titan.moments(model))
    assert not TitanCheckpoint(titan.save(full)).sizes.tie_word_embeddings
    assert TitanCheckpoint(titan.save(titan.state(model), "step-8")).sizes.tie_word_embeddings


def test_dtypes_stay_in_a_hugging_face_folder(titan: Any, tmp_path: Path) -> None:
    model = titan.model(tied=True).bfloat16()
    run(titan.save(titan.state(model)), tmp_path / "hf")
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert imported.dtype == torch.bfloat16
    assert torch.equal(imported.lm_head.weight, model.lm_head.weight)


def test_large_models_come_in_several_files(titan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = titan.model(tied=False)
    monkeypatch.setattr(import_titan, "_MAX_FILE", "5KB")
    monkeypatch.setattr(import_titan, "_MAX_FILE_BYTES", 5000)
    step = titan.save(titan.state(model, moments=titan.moments(model)))
    run(step, tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 3
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in imported.named_parameters())

    run(step, tmp_path / "run", "--resume")
    assert len(list((tmp_path / "run").glob("checkpoint/*/rank-*.safetensors"))) > 3
    Checkpointer(tmp_path / "run" / "checkpoint", keep_latest_k=0).load(7, model=imported, optimizer=None)


def test_shards_hold_at_most_what_they_may() -> None:
    sizes = [3, 5, 2, 20, 1, 1, 8]
    tensors = {str(n): LazyTensor(torch.uint8, (size,), lambda: torch.empty(0)) for n, size in enumerate(sizes)}
    shards = split_into_shards(tensors, 10)
    assert [name for shard in shards for name in shard] == list(tensors)
    assert shards == [["0", "1", "2"], ["3"], ["4", "5", "6"]]


@pytest.mark.parametrize(
    ("older", "fused"), [(False, True), (False, False), (True, False)], ids=["fused", "separate", "older names"]
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_training_state_is_carried(titan: Any, tmp_path: Path, tied: bool, fused: bool, older: bool) -> None:
    model, other = titan.model(tied=tied), titan.model(tied=tied, seed=1)
    moments = titan.moments(model)
    step = titan.save(titan.state(model, older=older, moments=moments, fused=fused))
    assert run(step, tmp_path / "run", "--resume", "--sequences", 12) == 0

    optimizer = torch.optim.AdamW(other.parameters())
    state = Checkpointer(tmp_path / "run" / "checkpoint", keep_latest_k=0).load(
        7, model=other, optimizer=optimizer, hyperparameters=True
    )
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, moments[name][key]), f"{name} {key}"
    assert optimizer.param_groups[0]["lr"] == 2e-4
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    progress = state["progress"]
    assert (progress["step"], progress["tokens"], progress["sequences"]) == (7, 2 * 1000, 12)  # two data-parallel ranks
    assert progress["position"] == {"epoch": 0, "block": 0, "offset": 12, "sequences": 12}


def test_what_is_not_carried_is_said(titan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = titan.model(tied=True)
    run(titan.save(titan.state(model, moments=titan.moments(model))), tmp_path / "run", "--resume", "--tokens", 5)
    output = capsys.readouterr().out
    assert "not carried: dataloader, lr_scheduler" in output
    assert "the order of sequences starts anew" in output
    assert "scheduler.on_resume=override" in output
    state = json.loads((tmp_path / "run" / "checkpoint" / "step-00000007" / "state.json").read_text())
    assert state["progress"]["tokens"] == 5
    assert state["progress"]["position"] == {}


def test_the_tokenizer_comes_along(titan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = titan.save(titan.state(titan.model(tied=True)))
    assert run(step, tmp_path / "hf", "--tokenizer", TOKENIZER) == 1
    assert f"the embedding has {50} rows" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()

    state = titan.state(titan.model(tied=True))
    grown = {name: torch.cat([state[name]] * 8) for name in ("tok_embeddings.weight", "lm_head.weight")}
    assert run(titan.save({**state, **grown}, "grown"), tmp_path / "hf", "--tokenizer", TOKENIZER) == 0
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (TOKENIZER / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["vocab_size"] == 400
    assert config["eos_token_id"] == config["pad_token_id"] is not None


def test_a_config_adds_what_weights_do_not_tell(titan: Any, tmp_path: Path) -> None:
    model = titan.model(tied=True)
    step = titan.save(titan.state(model))
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1234.0}
    model.config.rms_norm_eps = 1e-5
    model.config.save_pretrained(tmp_path / "given")
    assert run(step, tmp_path / "hf", "--config", tmp_path / "given") == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").config
    assert config.rope_parameters["rope_theta"] == 1234.0
    assert config.rms_norm_eps == 1e-5


def test_a_config_that_contradicts_is_refused(titan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = titan.save(titan.state(titan.model(tied=False)))
    assert run(step, tmp_path / "hf", "--config", "qwen3_0_6b") == 1
    message = capsys.readouterr().err
    for field in ("hidden_size=1024", "num_key_value_heads=8", "tie_word_embeddings=True"):
        assert field in message
    assert run(step, tmp_path / "hf", "--config", "qwen9") == 1
    assert "qwen3_0_6b" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert run(step, tmp_path / "hf", "--config", tmp_path) == 1
    assert 'model_type is "llama"' in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_wrong_weights_are_listed(titan: Any) -> None:
    state = titan.state(titan.model(tied=False))
    del state["layers.1.attention.wo.weight"], state["norm.weight"]
    with pytest.raises(UserError) as error:
        TitanCheckpoint(titan.save(state))
    assert "model.layers.1.self_attn.o_proj.weight: missing" in str(error.value)
    assert "model.norm.weight: missing" in str(error.value)

    state = titan.state(titan.model(tied=False))
    moe = {f"layers.0.moe.router.{name}.weight": torch.zeros(3) for name in ("gate", "bias")}
    with pytest.raises(UserError) as error:
        TitanCheckpoint(titan.save({**state, **moe}, "moe"))
    assert all(name in str(error.value) for name in moe)

    bad = {"layers.0.ffn_norm.weight": torch.zeros(7), "layers.1.attention.qkv_linear.wv.weight": torch.zeros(2, 24)}
    with pytest.raises(UserError) as error:
        TitanCheckpoint(titan.save({**state, **bad}, "bad"))
    assert "model.layers.0.post_attention_layernorm.weight: (7,), where the other weights ask for (24,)" in str(
        error.value
    )
    assert "model.layers.1.self_attn.v_proj.weight: (2, 24)" in str(error.value)

    twice = {"layers.0.attention.wq.weight": state["layers.0.attention.qkv_linear.wq.weight"]}
    with pytest.raises(UserError, match=r"another tensor for model\.layers\.0\.self_attn\.q_proj"):
        TitanCheckpoint(titan.save({**state, **twice}, "twice"))


def test_wrong_training_state_is_listed(titan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = titan.model(tied=True)
    state = titan.state(model, moments=titan.moments(model))
    del state["optimizer.state.norm.weight.exp_avg"]
    state["optimizer.state.layers.0.attention.qkv_linear.wqkv.weight.exp_avg"] = torch.zeros(5, 24)
    state["optimizer.state.norm.weight.momentum_buffer"] = torch.zeros(24)
    assert run(titan.save(state), tmp_path / "run", "--resume") == 1
    message = capsys.readouterr().err
    assert "model.norm.weight, exp_avg: missing" in message
    assert "model.layers.0.self_attn.k_proj.weight, exp_avg: (5, 24), not (16, 24)" in message
    assert "momentum_buffer" in message

    assert run(titan.save(titan.state(model), "step-9"), tmp_path / "run", "--resume") == 1
    assert "holds a model only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(titan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert run(titan.save(titan.state(titan.model(tied=True))), tmp_path / "out") == 1
    assert "exists already" in capsys.readouterr().err
