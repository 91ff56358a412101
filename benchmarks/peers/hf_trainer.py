"""The Hugging Face Trainer on the same model and data, in a process of its own: `hf_trainer.py SPEC`, a JSON object.

It does what a careful user would let it do: fused AdamW, sdpa attention, no evaluation, no saving, no reports, a
log row at the end. `padding`: each unit is a row, which the default collator for language modelling fills up to
the longest of its batch; otherwise rows are the packed sequences that our application trains on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from hf_model import new_model, packed_sequences, per_step, units
from step_clock import StepClock, print_result
from torch.utils.data import IterableDataset
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)


class InGivenOrder(IterableDataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class Watch(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


def arguments(spec: dict[str, Any], folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["batch"],
        bf16=spec["dtype"] == "bfloat16",
        optim="adamw_torch_fused",
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        dataloader_num_workers=spec["workers"],
        dataloader_pin_memory=spec["device"] == "cuda",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        torch_compile=spec["compile"],
        use_cpu=spec["device"] == "cpu",
    )


def main() -> None:
    spec = json.loads(sys.argv[1])
    clock = StepClock(spec["device"], spec["every"])
    if spec["units"]:
        rows = list(units(spec["units"], spec["seq_len"]))
        collate: Any = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(spec["tokenizer"]), mlm=False)
        tokens = [len(row["input_ids"]) for row in rows]
    else:
        rows, collate = list(packed_sequences(spec["packed"])), default_data_collator
        tokens = [int((row["labels"] != -100).sum()) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=new_model(spec["sizes"], spec["device"]),
            args=arguments(spec, folder),
            train_dataset=InGivenOrder(rows),
            data_collator=collate,
            callbacks=[Watch(clock)],
        )
        output = trainer.train()
    print_result({**clock.result(per_step(tokens, spec)), "loss": output.training_loss})


if __name__ == "__main__":
    main()
