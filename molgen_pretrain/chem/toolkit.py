"""The one import of RDKit, so that its absence has one clear message."""

from __future__ import annotations

from molgen_pretrain.errors import UserError

try:
    from rdkit import Chem
    from rdkit.Chem import BRICS, QED, AllChem, Crippen, Descriptors, rdMolDescriptors
except ImportError as error:
    raise UserError("RDKit is missing: install it with pip install 'molgen-pretrain[chem]'") from error

__all__ = ["BRICS", "QED", "AllChem", "Chem", "Crippen", "Descriptors", "rdMolDescriptors"]
