from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from molgen_pretrain.data import mapped
from molgen_pretrain.data.mapped import MappedArray

TYPE = np.dtype("<i4")


@pytest.mark.parametrize("lookups", [0, 1, 20, 3000])
@pytest.mark.parametrize("slice_bytes", [1 << 20, 4096])
def test_take_is_indexing(lookups: int, slice_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_SLICE_BYTES", slice_bytes)
    numbers = np.random.default_rng(0).integers(0, 1 << 31, 10_007).astype(TYPE)
    (tmp_path / "numbers").write_bytes(numbers.tobytes())
    array = MappedArray(tmp_path / "numbers", TYPE, len(numbers))
    indices = np.random.default_rng(1).integers(0, len(numbers), lookups)
    assert np.array_equal(array.take(indices), numbers[indices])
    array.release()
    assert np.array_equal(array.array, numbers)
    with pytest.raises(IndexError):
        array.take(np.append(indices, len(numbers)))


def test_an_empty_file_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    array = MappedArray(tmp_path / "none", TYPE, 0)
    assert array.take(np.empty(0, dtype=np.int64)).shape == (0,)
    array.release()


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssFile:")[2].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_lookups_leave_little_resident(tmp_path: Path) -> None:
    numbers = np.zeros(100_000_000, dtype=TYPE)  # 400 MB
    with (tmp_path / "numbers").open("wb") as file:
        numbers.tofile(file)
    array = MappedArray(tmp_path / "numbers", TYPE, len(numbers))
    before = resident_mib()
    random = np.random.default_rng(0)
    for lookups in (65536, 5000, *[10] * 500):
        array.take(random.integers(0, len(numbers), lookups))
        assert resident_mib() - before < 40
    array.array[::1024].sum()
    assert resident_mib() - before > 300, "the measure sees a mapping that is resident"
    array.release()
    assert resident_mib() - before < 40
