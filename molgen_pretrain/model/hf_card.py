"""The model card of an export: what it was trained on, how far, and how to use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import molgen_pretrain


def model_card(
    *,
    run_name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    parameters: int,
    dtype: str,
) -> str:
    """README.md of an export, in Markdown.

    `config` is the run's resolved config as its config.yaml has it, `state` the checkpoint's state.json, `rows` those
    of metrics.jsonl (later steps are left out). Of paths only the end is told: a card goes where the folders of the
    machine that trained are nobody's business.
    """
    progress = state["progress"]
    step = progress["step"]
    data, training = config["data"], config["training"]
    facts = {
        "data": _data(data),
        "tokenizer": _end_of(data["tokenizer"]),
        "sequence length, tokens": f"{training['seq_len']:,}",
        "steps": f"{step:,} of {training['steps']:,}",
        "tokens trained on": f"{progress['tokens']:,}",
        "schedule": _schedule(state["schedule"]),
        "weights began as": _beginning(config["init"]),
        "parameters": f"{parameters:,}, {dtype}",
        **_losses(rows, step),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return _CARD.format(run_name=run_name, step=step, table=table, version=molgen_pretrain.__version__)


_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- qwen3
- chemistry
- molecules
---

# {run_name}, step {step}

A Qwen3 that writes 3D molecules as text: a SMILES, then a conformer of it in enriched SMILES, every atom followed by
its coordinates. Trained with molgen-pretrain {version}.

| | |
|---|---|
{table}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
ids = model.generate(**tokenizer("[SMILES]CCO[/SMILES][CONFORMER]", return_tensors="pt"), max_new_tokens=200)
print(tokenizer.decode(ids[0]))
```
"""


def _data(data: Mapping[str, Any]) -> str:
    sources = data.get("sources") or []
    if sources:
        return ", ".join(f"{_end_of(source['path'])} (weight {source['weight']:g})" for source in sources)
    return _end_of(data["train_path"])


def _end_of(path: Any) -> str:
    """The last two names of a path, or of each of a list of paths."""
    return ", ".join(map(_end_of, path)) if isinstance(path, list) else "/".join(Path(path).parts[-2:])


def _schedule(schedule: Mapping[str, Any]) -> str:
    given = {name: value for name, value in schedule.items() if name != "schedule" and value is not None}
    settings = ", ".join(f"{name}={value}" for name, value in given.items())
    return f"{schedule['schedule']}: {settings}"


def _beginning(init: Mapping[str, Any]) -> str:
    source = init.get("from")
    return init["mode"] if source is None else f"{init['mode']} from {_end_of(source)}"


def _losses(rows: Iterable[Mapping[str, Any]], step: int) -> dict[str, str]:
    """The last loss of each kind up to a step."""
    last = {row["kind"]: row for row in rows if row["step"] <= step and "loss" in row}
    return {f"{kind} loss": f"{row['loss']:.4f} (step {row['step']:,})" for kind, row in last.items()}
