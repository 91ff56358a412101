"""Mixtures: whose turn it is, what each source gives, and what survives a restart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.mixture import Source, Turns, weight_shares
from molgen_pretrain.data.position import SourcePosition
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

LINES = {"small": 90, "large": 700, "middle": 300}
WEIGHTS = {"small": 0.5, "large": 0.3, "middle": 1.7}
Make = Callable[..., JsonlTaggedPackedDataset]

weights = st.one_of(st.integers(1, 9), st.floats(1e-9, 1e9))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molgen_pretrain.data.plan.BLOCK_LINES", 256)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sources that share no text: each line holds its source and number as the SMILES."""
    root = tmp_path_factory.mktemp("mixture")
    for name, lines in LINES.items():
        rows = [{"canonical_smiles": f"{name}{n}", "embedded_smiles": "[C]<0>" * (1 + n % 6)} for n in range(lines)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: root / f"{name}.jsonl" for name in LINES}


@pytest.fixture
def make(folders: dict[str, Path], tokenizer: UnitTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(weights=..., **options)`: a mixture; `make.path` of a source's file."""

    def make_(weights: dict[str, float] = WEIGHTS, **options: object) -> JsonlTaggedPackedDataset:
        sources = [Source(name, [folders[name]], weight) for name, weight in weights.items()]
        defaults = {"seq_len": 128, "local_batch_size": 4, "min_emb_len": 1, "seed": 5, "sources": sources}
        cache = tmp_path_factory.getbasetemp() / "mixture-cache"
        return JsonlTaggedPackedDataset(**{**defaults, **options}, tokenizer=tokenizer, cache_dir=cache)

    return make_


def source_of(dataset: JsonlTaggedPackedDataset, unit: int) -> str:
    return Path(dataset.locate([unit])[0].rpartition(":")[0]).stem


def rows(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(units.tolist()) for batch in batches for units in batch.unit_ids]


@settings(max_examples=30, deadline=None)
@given(st.lists(weights, min_size=2, max_size=7), st.integers(0, 3000))
def test_turns_are_in_proportion_over_every_prefix_and_window(values: list[float], start: int) -> None:
    shares = weight_shares([float(value) for value in values])
    assert sum(shares) == 1
    most = 1 - Fraction(1, 2 * len(values) - 2)
    turns = np.array(Turns(shares, [0] * len(values)).take(4000))
    had = np.cumsum(turns[:, None] == np.arange(len(values)), axis=0)
    for number in (1, 2, 37, start + 1, 4000):  # exactly
        ahead = [int(count) - number * share for count, share in zip(had[number - 1], shares, strict=True)]
        assert max(map(abs, ahead)) <= most
    errors = had - np.arange(1, 4001)[:, None] * np.array([float(share) for share in shares])
    assert np.abs(errors).max() <= float(most) + 1e-9
    assert np.abs(errors[start:] - errors[start]).max() < 2


def test_turns_are_pinned_and_a_function_of_those_before() -> None:
    """Pinned: if these change, every mixture that is under way resumes on other data."""
    shares = weight_shares([0.7, 0.2, 0.1])
    assert shares == [Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)]
    turns = Turns(shares, [0, 0, 0]).take(20)
    assert "".join("abc"[turn] for turn in turns) == "aabaacaabaaabaacaaba"
    had = Counter(turns[:13])
    assert Turns(shares, [had[0], had[1], had[2]]).take(7) == turns[13:]


def test_sequences_come_in_proportion_and_each_source_in_its_own_epochs(make: Make) -> None:
    dataset = make()
    sequences = rows(list(islice(dataset, 500)))
    names = [{source_of(dataset, unit) for unit in sequence} for sequence in sequences]
    assert all(len(found) == 1 for found in names)
    drawn = Counter(found.pop() for found in names)
    for name, weight in WEIGHTS.items():
        assert abs(drawn[name] - 2000 * weight / 2.5) < 1
    first = 0
    for lines in LINES.values():
        units = [unit - first for sequence in sequences for unit in sequence if first <= unit < first + lines]
        for epoch in range(len(units) // lines):
            assert sorted(units[epoch * lines : (epoch + 1) * lines]) == list(range(lines))
        first += lines


def test_sources_of_one_size_have_orders_of_their_own(make: Make, folders: dict[str, Path]) -> None:
    twins = [Source("a", [folders["small"]], 1.0), Source("b", [folders["small"]], 1.0)]
    sequences = rows(list(islice(make(sources=twins), 10)))
    units = [unit for sequence in sequences for unit in sequence]
    assert [unit for unit in units if unit < 90] != [unit - 90 for unit in units if unit >= 90]


@pytest.mark.parametrize(("world", "local", "workers"), [(1, 12, 1), (3, 4, 0), (2, 3, 2)])
def test_same_global_batches_for_any_split(make: Make, world: int, local: int, workers: int) -> None:
    accumulation = 12 // (world * local)
    expected = rows(list(islice(make(local_batch_size=12), 40)))
    ranks = [
        make(local_batch_size=local, rank=rank, world_size=world, accumulation_steps=accumulation)
        for rank in range(world)
    ]
    batches = [list(islice(build_loader(rank, num_workers=workers), 40 * accumulation)) for rank in ranks]
    assert rows([batch for together in zip(*batches, strict=True) for batch in together]) == expected


def test_resume_continues_exactly_also_with_another_batch_size(make: Make) -> None:
    whole = list(islice(make(), 300))
    for stop in (1, 77, 199):
        dataset = make()
        dataset.start_at(json.loads(json.dumps(whole[stop - 1].position.state_dict())))
        resumed = list(islice(dataset, 30))
        assert rows(resumed) == rows(whole[stop : stop + 30])
        assert [batch.position for batch in resumed] == [batch.position for batch in whole[stop : stop + 30]]
        assert [batch.source_epochs for batch in resumed] == [b.source_epochs for b in whole[stop : stop + 30]]
        other = make(local_batch_size=6)
        other.start_at(whole[stop - 1].position)
        assert rows(list(islice(other, 20))) == rows(whole[stop : stop + 30])


def test_new_weights_and_sources_hold_from_the_resume_on(make: Make) -> None:
    before = list(islice(make(), 100))[-1].position
    changed = make({"middle": 0.1, "small": 0.9, "large": 1.0})
    changed.start_at(before)
    names = [source_of(changed, sequence[0]) for sequence in rows(list(islice(changed, 50)))]
    drawn = Counter(names)
    assert (drawn["middle"], drawn["small"], drawn["large"]) == (10, 90, 100)
    # Each goes on where it stood; a source that is gone is forgotten, a new one begins at its beginning.
    fewer = make({"middle": 1.0, "small": 1.0})
    fewer.start_at(before)
    after = next(iter(fewer)).position
    assert after.sources.keys() == {"middle", "small"}
    assert after.sources["small"].epoch == before.sources["small"].epoch > 0
    more = make()
    more.start_at(after)
    assert list(islice(more, 5))[-1].position.sources["large"] == SourcePosition(offset=2, sequences=2)


def test_epochs_are_those_of_all_lines_and_of_each_source(make: Make) -> None:
    batches = list(islice(make(), 200))
    last = batches[-1]
    passed = {name: last.source_epochs[name] * lines for name, lines in LINES.items()}
    assert last.epoch == pytest.approx(sum(passed.values()) / sum(LINES.values()))
    assert last.source_epochs["small"] > 1 > last.source_epochs["large"]
    assert [batch.epoch for batch in batches] == sorted(batch.epoch for batch in batches)


def test_summary_of_a_mixture(make: Make) -> None:
    summary = make().summary()
    assert (summary.files, summary.lines, summary.units) == (3, 1090, 1090)
    assert summary.tokens == sum(source.summary.tokens for source in summary.sources)
    large = summary.describe_sources()[1]
    assert large.startswith("large: 12 % of the sequences; 1 file")
    assert large.endswith(f"{0.12e9 / summary.sources[1].summary.tokens:.3g} epochs per 1,000 M tokens trained")


def test_the_order_fingerprint_covers_weights_names_and_files(make: Make) -> None:
    base = make().order_fingerprint
    assert make({name: 2 * weight for name, weight in WEIGHTS.items()}).order_fingerprint == base
    assert make({**WEIGHTS, "small": 0.6}).order_fingerprint != base
    assert make({"small": 0.5, "large": 0.3}).order_fingerprint != base


def test_one_source_is_the_plain_case(make: Make, folders: dict[str, Path]) -> None:
    single, plain = make({"large": 0.3}), make(sources=(), paths=folders["large"])
    assert single.order_fingerprint == plain.order_fingerprint
    batch = next(iter(single))
    assert batch.position.state_dict() == {"epoch": 0, "block": 0, "offset": 4, "sequences": 4}
    assert batch.source_epochs == {}
    assert single.summary().sources == ()


@pytest.mark.parametrize(
    ("weights", "options", "rule"),
    [
        (WEIGHTS, {"infinite": False}, "data.infinite=false: a mixture"),
        ({"small": 0.0, "large": 1.0}, {}, "weight=0.0: must be a positive, finite number"),
        ({"small": float("nan"), "large": 1.0}, {}, "weight=nan"),
        ({"small": float("inf"), "large": 1.0}, {}, "weight=inf"),
        (WEIGHTS, {"overflow": "drop", "seq_len": 17}, "data.sources 'middle': no usable line"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(
    make: Make, weights: dict[str, float], options: dict[str, object], rule: str
) -> None:
    with pytest.raises(UserError) as caught:
        make(weights, **options)
    assert rule in str(caught.value)


def test_names_must_be_given_and_differ(make: Make, folders: dict[str, Path]) -> None:
    for names in (("a", "a"), ("a", "")):
        with pytest.raises(UserError, match=r"data\.sources: the names are"):
            make(sources=[Source(name, [folders["small"]], 1.0) for name in names])


def test_a_mixture_does_not_go_on_from_a_single_source(make: Make) -> None:
    mixture, single = make(), make({"large": 1.0})
    with pytest.raises(UserError, match="a single source cannot be continued with a mixture of small, large, middle"):
        mixture.start_at(next(iter(single)).position)
    with pytest.raises(UserError, match="a mixture of small, large, middle cannot be continued with a single source"):
        single.start_at(next(iter(mixture)).position.state_dict())
    for state in ({"sources": 3}, {"sources": {"small": {"epoch": 0}}}):
        with pytest.raises(UserError, match="data position"):
            mixture.start_at(state)
