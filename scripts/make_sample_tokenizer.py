"""Train the bundled byte-level BPE tokenizer on the bundled sample.

    python scripts/make_sample_tokenizer.py

Text is first split so that a token never straddles the grammar of a unit: a digit is one token (as in Qwen3's
tokenizer, so that every coordinate has the same shape), an atom of the SMILES is one token, and in the
conformer an atom takes `<` and the sign of x with it, a comma the sign that follows. Merges happen only
inside these pieces, so the vocabulary ends far below its limit.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

logger = logging.getLogger("make_sample_tokenizer")

SAMPLE = Path(__file__).resolve().parents[1] / "molgen_pretrain" / "sample"
SEPARATOR = "<|endoftext|>"
TAGS = ("[SMILES]", "[/SMILES]", "[CONFORMER]", "[/CONFORMER]")
MAX_VOCABULARY = 1024
MIN_FREQUENCY = 10
CONFIG = {
    "clean_up_tokenization_spaces": False,
    "eos_token": SEPARATOR,
    "model_max_length": 131072,
    "pad_token": SEPARATOR,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
PIECES = (
    r"[0-9]",
    r"\[[^\[\]]+\](?:<-?)?",  # bracket atom, in a conformer with the opening of its position
    r"Cl|Br|[A-Za-z]",  # bare atom
    r",-?",
    r">[^0-9\[\],.A-Za-z]*",  # end of a position, and the bonds and branches up to the next atom or ring digit
    r"[^0-9\[\],.A-Za-z<>]+",
    r".",
)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--output", type=Path, default=SAMPLE / "tokenizer")
    arguments = parser.parse_args()

    records = list(read_records(arguments.sample / "train"))
    tokenizer = train([text for record in records for text in record])
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.output / "tokenizer.json"))
    write_json(arguments.output / "tokenizer_config.json", CONFIG)
    write_json(arguments.output / "special_tokens_map.json", {"eos_token": SEPARATOR, "pad_token": SEPARATOR})
    report(tokenizer, [unit_text(*record) for record in records])


def read_records(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            yield record["canonical_smiles"], record["embedded_smiles"]


def unit_text(canonical: str, embedded: str) -> str:
    opening, closing, conformer_opening, conformer_closing = TAGS
    return f"{opening}{canonical}{closing}{conformer_opening}{embedded}{conformer_closing}"


def train(texts: list[str]) -> Tokenizer:
    """Learn the merges from what stands between the tags, then add the tags as whole tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(TAGS),
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(SEPARATOR, special=True, normalized=False)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not special, so that decoding with skip_special_tokens keeps them.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def report(tokenizer: Tokenizer, units: list[str]) -> None:
    lengths = sorted(len(encoding.ids) for encoding in tokenizer.encode_batch(units))
    logger.info(
        "vocabulary %d; %d units, %d tokens: mean %.1f, median %d, max %d per unit",
        tokenizer.get_vocab_size(),
        len(lengths),
        sum(lengths),
        sum(lengths) / len(lengths),
        lengths[len(lengths) // 2],
        lengths[-1],
    )


if __name__ == "__main__":
    main()
