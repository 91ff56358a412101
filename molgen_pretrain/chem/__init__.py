"""Molecules as text: enriched SMILES (text and coordinates) and the preparation of datasets.

Only `chem.enriched` and `chem.prepare` need RDKit; `chem.enriched_text` reads and writes the text alone.
"""

from __future__ import annotations

from molgen_pretrain.chem.enriched_text import (
    AmbiguousAtomError,
    EnrichedSmilesError,
    EnrichedText,
    read_enriched,
    truncate_coordinate,
    write_enriched,
)

__all__ = [
    "AmbiguousAtomError",
    "EnrichedSmilesError",
    "EnrichedText",
    "read_enriched",
    "truncate_coordinate",
    "write_enriched",
]
