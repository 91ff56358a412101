"""From SMILES to conformers and dataset lines.

Three-dimensional embedding is ETKDGv3 (Wang, Witek, Landrum, Riniker, J. Chem. Inf. Model. 2020, 60, 2044), relaxation
is MMFF94 (Halgren, J. Comput. Chem. 1996, 17, 490), both as RDKit implements them.
"""

from __future__ import annotations

import json

from molgen_pretrain.chem.enriched import encode
from molgen_pretrain.chem.toolkit import AllChem, Chem
from molgen_pretrain.errors import UserError

# Conformers whose MMFF energies are nearer than this (kcal/mol) are one minimum found twice, or its mirror image.
_SAME_ENERGY = 0.02
_MAX_MMFF_ITERATIONS = 2000


class ConformerError(UserError):
    """A molecule for which no conformer could be made; the message says which step failed."""


def molecule_key(smiles: str) -> str:
    """Canonical SMILES without stereo marks: the same for all stereoisomers, the unit of a train/valid split.

    Raises UserError where RDKit refuses the SMILES.
    """
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise UserError(f"{smiles!r}: RDKit does not accept this SMILES")
    return Chem.MolToSmiles(mol, isomericSmiles=False)


def embed_conformers(smiles: str, count: int, seed: int) -> Chem.Mol:
    """Make up to `count` relaxed conformers of one stereoisomer, hydrogens included, lowest energy first.

    Stereocentres that the SMILES leaves open are taken from the first embedding, so that all conformers are of the
    same isomer. Fewer than `count` remain where embeddings relax into the same minimum. The result depends on
    the arguments and the RDKit build only. Raises ConformerError where nothing can be embedded or relaxed.
    """
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise ConformerError(f"{smiles!r}: RDKit does not accept this SMILES")
    mol = Chem.AddHs(mol)
    parameters = AllChem.ETKDGv3()
    parameters.randomSeed = seed
    parameters.numThreads = 1
    if AllChem.EmbedMolecule(mol, parameters) < 0:
        raise ConformerError(f"{smiles!r}: no 3D embedding found")
    Chem.AssignStereochemistryFrom3D(mol)
    if not AllChem.EmbedMultipleConfs(mol, count, parameters):
        raise ConformerError(f"{smiles!r}: no 3D embedding of the isomer found first")
    if not AllChem.MMFFHasAllMoleculeParams(mol):
        raise ConformerError(f"{smiles!r}: MMFF94 has no parameters for this molecule")
    outcome = AllChem.MMFFOptimizeMoleculeConfs(mol, numThreads=1, maxIters=_MAX_MMFF_ITERATIONS)
    return _distinct_minima(mol, outcome, smiles)


def dataset_lines(mol: Chem.Mol) -> list[str]:
    """One JSON line per conformer, with the keys `canonical_smiles` and `embedded_smiles`.

    The stereo marks of each line are read off its own coordinates. Raises EnrichedSmilesError as `encode` does.
    """
    lines = []
    for conformer in mol.GetConformers():
        single = Chem.Mol(mol, confId=conformer.GetId())
        Chem.AssignStereochemistryFrom3D(single, conformer.GetId())
        canonical, embedded = encode(single, conformer.GetId())
        record = {"canonical_smiles": canonical, "embedded_smiles": embedded}
        lines.append(json.dumps(record, separators=(",", ":")))
    return lines


def _distinct_minima(mol: Chem.Mol, outcome: list[tuple[int, float]], smiles: str) -> Chem.Mol:
    """Keep the converged conformers (`outcome`: not-converged flag and energy of each) of different energy."""
    conformers = [Chem.Conformer(conformer) for conformer in mol.GetConformers()]
    converged = [(energy, index) for index, (unconverged, energy) in enumerate(outcome) if unconverged == 0]
    if not converged:
        raise ConformerError(f"{smiles!r}: MMFF94 did not converge for any conformer")
    mol.RemoveAllConformers()
    last_energy = float("-inf")
    for energy, index in sorted(converged):
        if energy - last_energy > _SAME_ENERGY:
            mol.AddConformer(conformers[index], assignId=True)
            last_energy = energy
    return mol
