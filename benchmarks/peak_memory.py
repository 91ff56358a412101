"""Peak memory of training with Qwen3's 151,936 rows at seq_len 2048: the application beside the Hugging Face Trainer.

    python benchmarks/peak_memory.py [--only 512x8-bf16 ...] [--steps 2]

The largest resident set of a fresh process that trains the same model on the same packed sequences: whole, and above
what its imports alone take. With so many rows the logits decide: 151,936 of 4 bytes for each position, kept several
times by a plain loss. Also the loss and its gradients, in float32 and the application's default way, beside
transformers' own loss with the same weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.application import TRAINING_ONLY, Workplace, finished
from harness.equal_data import peer_sizes, write_packed
from harness.peer_process import Work, lacks, run_peer
from harness.report import Report, add_results_option

from molgen_pretrain.config.compose import compose_run

ROWS, SEQ_LEN = 151_936, 2048
TARGET, TOLERANCE = 0.4, 1e-5
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
SIZES = {
    "256x4": {**HEADS, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768},
    "512x8": {**HEADS, "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536},
}


@dataclass(frozen=True)
class Case:
    size: str
    dtype: str
    batch: int


# As many sequences as the plain loss gets into 20 GiB.
CASES = {
    "512x8-bf16": Case("512x8", "bfloat16", 2),
    "512x8-fp32": Case("512x8", "float32", 2),
    "256x4-bf16": Case("256x4", "bfloat16", 4),
}
# What a run imports, and the memory that this alone takes.
IMPORTS = (
    "import molgen_pretrain.training.runner; from molgen_pretrain.metrics.memory import peak_resident_bytes; "
    "print(peak_resident_bytes() / 2**30)"
)


def main() -> None:
    options = parse_arguments()
    if options.difference:
        print(json.dumps(difference()))
        return
    report = Report("peak_memory", f"Peak memory at {ROWS:,} rows, seq_len {options.seq_len}", options.results)
    absent = lacks(sys.executable, "accelerate")
    with tempfile.TemporaryDirectory(prefix="molgen-peak-memory-") as folder:
        workplace = Workplace(Path(folder), options.threads)
        imports = float(finished([sys.executable, "-c", IMPORTS], workplace.environment()))
        rows = [row for name in options.only for row in measure(name, workplace, options, imports, absent)]
        report.table(("", "peak, GiB", "of the Trainer's", "above imports, GiB", "of the Trainer's", "target"), rows)
        loss, gradient = json.loads(
            finished([sys.executable, __file__, "--difference"], workplace.environment()).splitlines()[-1]
        )
    report.add(
        f"Against transformers' own loss in float32, {ROWS:,} rows, same weights and batch: loss {loss:.1e}, worst "
        f"gradient {gradient:.1e} of its largest element (target: at most {TOLERANCE:g})."
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=SEQ_LEN)
    parser.add_argument("--threads", type=int, help="default: every usable core")
    parser.add_argument("--difference", action="store_true", help=argparse.SUPPRESS)
    add_results_option(parser)
    return parser.parse_args()


def measure(
    name: str, workplace: Workplace, options: argparse.Namespace, imports: float, absent: str | None
) -> list[tuple[object, ...]]:
    """The rows of one case."""
    case = CASES[name]
    settings = overrides(case, workplace, options)
    cfg = compose_run(settings)
    print(f"{name}: ours", file=sys.stderr, flush=True)
    ours = workplace.train(name, settings)[-1]["memory_gib"]
    title = (f"**{case.size}, {case.dtype}, batch {case.batch} x {options.seq_len}**", "", "", "", "", "")
    if absent:
        return [
            title,
            ("ours", f"{ours:.2f}", "", f"{ours - imports:.2f}", "", ""),
            (f"HF Trainer: {absent}", *[""] * 5),
        ]
    print(f"{name}: HF Trainer", file=sys.stderr, flush=True)
    packed = write_packed(workplace.folder / f"{name}.safetensors", settings, options.steps)
    work = Work(
        sizes=peer_sizes(cfg),
        dtype=case.dtype,
        batch=case.batch,
        seq_len=options.seq_len,
        steps=options.steps,
        every=1,
        packed=str(packed),
    )
    peer = run_peer("hf_trainer", work, workplace)
    above, peer_above = ours - imports, peer.memory_gib - peer.imports_gib
    return [
        title,
        (
            "ours",
            f"{ours:.2f}",
            f"{ours / peer.memory_gib:.2f}",
            f"{above:.2f}",
            f"{above / peer_above:.2f}",
            f"<= {TARGET}",
        ),
        ("HF Trainer", f"{peer.memory_gib:.2f}", "", f"{peer_above:.2f}", "", ""),
    ]


def overrides(case: Case, workplace: Workplace, options: argparse.Namespace) -> list[str]:
    return [
        *TRAINING_ONLY,
        *(f"model.{key}={value}" for key, value in SIZES[case.size].items()),
        f"data.embedding_rows={ROWS}",
        f"training.seq_len={options.seq_len}",
        f"training.local_batch_size={case.batch}",
        f"training.steps={options.steps}",
        f"training.dtype={case.dtype}",
        "scheduler=constant",
        "metrics.log_freq=1",
        f"paths.cache={workplace.folder / 'cache'}",
    ]


def difference() -> tuple[float, float]:
    """Of the loss, relative; and of the worst gradient, of its largest element."""
    import torch
    from transformers import Qwen3ForCausalLM

    from molgen_pretrain.config.preflight import preflight
    from molgen_pretrain.config.validate import parallel_degrees
    from molgen_pretrain.model.qwen3 import materialize
    from molgen_pretrain.training.build import build_meta_model

    cfg = compose_run(
        [*(f"model.{key}={value}" for key, value in SIZES["256x4"].items()), f"data.embedding_rows={ROWS}"]
    )
    model, _ = build_meta_model(cfg, preflight(cfg), parallel_degrees(cfg, 1))
    materialize(model, device=torch.device("cpu"), seed=0)
    plain = Qwen3ForCausalLM(model.config)
    plain.model.embed_tokens.padding_idx = None
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(0, ROWS, (2, 257), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids % 7 == 0, -100, ids)  # some positions are not trained
    trained = (labels[:, 1:] != -100).sum()
    loss = model(ids[:, :-1].contiguous(), labels[:, 1:].contiguous()).total / trained
    loss.backward()
    logits = plain(input_ids=ids[:, :-1], use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    gradients = dict(plain.named_parameters())
    worst = max(
        float((p.grad - gradients[name].grad).abs().max() / gradients[name].grad.abs().max())
        for name, p in model.named_parameters()
    )
    return float((loss - expected).detach().abs() / expected.detach()), worst


if __name__ == "__main__":
    main()
