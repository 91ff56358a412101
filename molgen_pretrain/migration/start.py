"""What a run starts from: model, initial weights, tokenizer, data. Several old keys decide on each together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from molgen_pretrain.config.store import conf_dir
from molgen_pretrain.migration.keys import KEYS, Kind
from molgen_pretrain.migration.ledger import Ledger

Places = Mapping[str, str | None]

# Of each list the first key that the file gives decides.
_TRAIN_PATHS = ("molgen_data.train_path_key", "training.dataset_path")
_TOKENIZERS = ("molgen_run.tokenizer_tag", "molgen_data.tokenizer_key", "model.hf_assets_path")
_WEIGHTS_OF_TITAN = ("checkpoint.initial_load_path", "model.hf_assets_path")
_WEIGHTS = {
    "scratch": (),
    "hf_pretrain": ("molgen_run.base_model_tag", *_WEIGHTS_OF_TITAN),
    "resume": ("molgen_run.resume_run_path_tag",),
}
# These name an entry of a section, which they need not spell.
_SECTIONS = {"molgen_data.train_path_key": "data", "molgen_data.tokenizer_key": "tokenizers"}


def translate_start(ledger: Ledger) -> None:
    """Choose model, data and init, and give them the old file's values."""
    # All of them, so that an alias that leads nowhere is found also where another key decides.
    places = {name: ledger.place(name, _SECTIONS.get(name)) for name, key in KEYS.items() if key.kind is Kind.PLACE}
    _model(ledger)
    _data(ledger, places)
    _tokenizer(ledger, places)
    _weights(ledger, places)
    ledger.drop("the tokenizer is data.tokenizer, the weights are init.from", "model.hf_assets_path")
    ledger.carry("job.dump_folder", "paths.runs", places["job.dump_folder"])


def _model(ledger: Ledger) -> None:
    sizes = {_flavor(path.stem): path.stem for path in sorted((conf_dir() / "model").glob("qwen3_*b.yaml"))}
    legal = f"legal: {', '.join(sizes)}; for another size write conf/model/NAME.yaml and choose model=NAME"
    name, flavor = ledger.value("model.name"), ledger.value("model.flavor")
    if name is not None and "qwen3" not in name.lower():
        ledger.fail("model.name", "only Qwen3 is built here")
    if flavor is None:
        if "model.flavor" not in ledger.broken:
            ledger.fail("model.flavor", f"is missing, so that nothing says which model to build; {legal}")
    elif flavor.upper() not in sizes:
        ledger.fail("model.flavor", f"no such size here; {legal}")
    else:
        ledger.choose("model", sizes[flavor.upper()], "model.name", "model.flavor")


def _flavor(choice: str) -> str:
    """`qwen3_0_6b` was the flavor `0.6B`."""
    return choice.removeprefix("qwen3_").upper().replace("_", ".")


def _first(places: Places, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if places[key] is not None), None)


def _carry_equal(ledger: Ledger, places: Places, keys: Sequence[str], new: str) -> None:
    """The first of the keys that is given becomes the setting, and so does every other one that says the same."""
    decides = _first(places, keys)
    for key in keys:
        if decides is not None and places[key] == places[decides]:
            ledger.carry(key, new, places[key])


def _data(ledger: Ledger, places: Places) -> None:
    ledger.choices["data"] = "conformers"
    decides = _first(places, _TRAIN_PATHS)
    if decides is None:
        ledger.note("no training data are named: data.train_path stays ${paths.conformers_train}, from MOLGEN_TRAIN")
    else:
        _carry_equal(ledger, places, _TRAIN_PATHS, "data.train_path")
        ledger.drop(f"{decides} decides", *_TRAIN_PATHS)

    valid, length = places["validation.dataset_path"], ledger.value("validation.seq_len")
    ledger.carry("validation.dataset_path", "data.valid_path", valid)
    if ledger.value("validation.enable") and valid is None:
        ledger.note("no validation data are named: data.valid_path stays ${paths.conformers_valid}, from MOLGEN_VALID")
    if length not in (None, ledger.value("training.seq_len")):
        ledger.note(f"validation.seq_len={length}: validation packs sequences of training.seq_len tokens here")
    ledger.drop("validation packs sequences of training.seq_len tokens", "validation.seq_len")


def _tokenizer(ledger: Ledger, places: Places) -> None:
    decides = _first(places, _TOKENIZERS)
    if decides is None:
        ledger.note("no tokenizer is named: data.tokenizer stays ${paths.tokenizer}, from MOLGEN_TOKENIZER")
        return
    ledger.carry(decides, "data.tokenizer", places[decides])
    ledger.drop(f"{decides} decides", *_TOKENIZERS[:2])


def _weights(ledger: Ledger, places: Places) -> None:
    """molgen_run.init_mode decides; in a file without it TorchTitan's own checkpoint.initial_load_* do."""
    mode = ledger.value("molgen_run.init_mode")
    if mode is None:
        mode = _weights_of_titan(ledger, places)
    else:
        ledger.choose("init", mode, "molgen_run.init_mode")
        _weights_from(ledger, places, "molgen_run.init_mode", _WEIGHTS[mode])
        ledger.drop(f"not read with init_mode={mode}", "molgen_run.base_model_tag", "molgen_run.resume_run_path_tag")
        ledger.drop(
            "init_mode decides: resume takes everything (init.model_only=true: the weights alone)",
            *(f"checkpoint.initial_load_{name}" for name in ("path", "in_hf", "model_only")),
        )
    if mode == "resume":
        ledger.note(
            "init.from has to be a run or step directory of this program. To make one of a TorchTitan checkpoint: "
            "python -m molgen_pretrain.tools.import_titan STEP_DIR OUT --resume"
        )


def _weights_from(ledger: Ledger, places: Places, switch: str, keys: Sequence[str]) -> None:
    """`switch` is the key that asks for weights, `keys` are those that may name them."""
    if keys and _first(places, keys) is None and not ledger.broken.intersection(keys):
        ledger.fail(switch, f"needs {keys[0]}, which names what to start from")
    _carry_equal(ledger, places, keys, "init.from")


def _weights_of_titan(ledger: Ledger, places: Places) -> str:
    path, is_hf = places["checkpoint.initial_load_path"], ledger.value("checkpoint.initial_load_in_hf")
    mode = "hf_pretrain" if is_hf else "resume" if path else "scratch"
    ledger.choose("init", mode, "checkpoint.initial_load_in_hf")
    if is_hf:
        _weights_from(ledger, places, "checkpoint.initial_load_in_hf", _WEIGHTS_OF_TITAN)
    elif path:
        ledger.carry("checkpoint.initial_load_path", "init.from", path)
        takes_all = ledger.value("checkpoint.initial_load_model_only") is False  # weights alone was the old default
        ledger.carry("checkpoint.initial_load_model_only", "init.model_only", not takes_all)
    ledger.drop("there is no molgen_run.init_mode", "molgen_run.base_model_tag", "molgen_run.resume_run_path_tag")
    ledger.drop(f"with init={mode} the weights alone are loaded, or none", "checkpoint.initial_load_model_only")
    return mode
