"""RDKit molecules to enriched SMILES and back."""

from __future__ import annotations

from molgen_pretrain.chem.enriched_text import EnrichedSmilesError, Point, read_enriched, write_enriched
from molgen_pretrain.chem.toolkit import Chem

# A canonical SMILES need not be canonical when it is read again; in practice one further round settles it.
_CANONICAL_ROUNDS = 5
_NO_PROPERTIES = Chem.PropertyPickleOptions.NoProps


def encode(mol: Chem.Mol, conformer_id: int = -1) -> tuple[str, str]:
    """Write one conformer of a molecule as `(canonical_smiles, embedded_smiles)`.

    Hydrogens are left out, save those that SMILES needs as atoms (`[2H]`, `[H]/N=C`). The canonical isomeric SMILES
    is one that RDKit returns unchanged when it reads and writes it again. `conformer_id` -1 is the first
    conformer. Raises EnrichedSmilesError where there is no such 3D conformer or no canonical SMILES, and
    AmbiguousAtomError for bare-atom radicals; both are UserErrors.
    """
    coordinates = _positions(mol, conformer_id)
    heavy = Chem.Mol(mol)
    heavy.RemoveAllConformers()
    for atom in heavy.GetAtoms():
        atom.SetIntProp("_source_index", atom.GetIdx())
    heavy = Chem.RemoveHs(heavy)
    ordered = [coordinates[atom.GetIntProp("_source_index")] for atom in heavy.GetAtoms()]
    for _ in range(_CANONICAL_ROUNDS):
        smiles = Chem.MolToSmiles(heavy)
        order = heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
        parsed = _parse(smiles)
        # Equivalent atoms have several valid orders; a molecule read from its own canonical text keeps that one,
        # so that encode(decode(text)) is the same text.
        if heavy.ToBinary(_NO_PROPERTIES) != parsed.ToBinary(_NO_PROPERTIES):
            ordered = [ordered[index] for index in order]
        if Chem.MolToSmiles(parsed) == smiles:
            return smiles, write_enriched(smiles, ordered)
        heavy = parsed
    raise EnrichedSmilesError(f"{smiles!r}: RDKit finds no stable canonical SMILES for this molecule")


def decode(embedded_smiles: str) -> Chem.Mol:
    """Read an enriched SMILES as a molecule with one 3D conformer, its atoms in the order of the text.

    Hydrogens stay implicit. Raises EnrichedSmilesError (a UserError) for malformed text, with the offset, and for
    SMILES that RDKit refuses.
    """
    smiles, coordinates = read_enriched(embedded_smiles)
    mol = _parse(smiles)
    conformer = Chem.Conformer(len(coordinates))
    conformer.Set3D(True)
    for index, point in enumerate(coordinates):
        conformer.SetAtomPosition(index, point)
    mol.AddConformer(conformer, assignId=True)
    return mol


def _positions(mol: Chem.Mol, conformer_id: int) -> list[Point]:
    known = [conformer.GetId() for conformer in mol.GetConformers()]
    if not known or conformer_id not in (-1, *known):
        raise EnrichedSmilesError(f"conformer_id={conformer_id}: the molecule has the conformers {known}")
    conformer = mol.GetConformer(conformer_id)
    if not conformer.Is3D():
        raise EnrichedSmilesError(f"conformer_id={conformer_id}: is a 2D drawing, a 3D conformer is needed")
    return [(x, y, z) for x, y, z in conformer.GetPositions().tolist()]


def _parse(smiles: str) -> Chem.Mol:
    parameters = Chem.SmilesParserParams()
    # A hydrogen that is an atom of the text has a position of its own: it must not be merged away.
    parameters.removeHs = False
    parameters.allowCXSMILES = False
    mol = Chem.MolFromSmiles(smiles, parameters)
    if mol is None:
        raise EnrichedSmilesError(f"{smiles!r}: RDKit does not accept this SMILES")
    return mol
