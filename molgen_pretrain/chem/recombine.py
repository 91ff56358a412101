"""New drug-like molecules from the fragments of known ones.

Bonds are cut, and open ends joined, by the BRICS rules (Degen, Wegscheid-Gerlach, Zaliani, Rarey, ChemMedChem 2008,
3, 1503), whose labelled ends say which pieces chemists do join.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from molgen_pretrain.chem.toolkit import BRICS, QED, Chem, Crippen, Descriptors, rdMolDescriptors

_ELEMENTS = frozenset({"C", "N", "O", "S", "F", "Cl", "Br", "I", "P"})
_MAX_JOINS = 6

# (label, label) of open ends that may be bonded; "7a" and "7b", the ends of a double bond, are both label 7.
_COMPATIBLE = frozenset(
    pair
    for rules in BRICS.reactionDefs
    for first, second, _ in rules
    for pair in (
        (int(first.rstrip("ab")), int(second.rstrip("ab"))),
        (int(second.rstrip("ab")), int(first.rstrip("ab"))),
    )
)


def brics_fragments(smiles: Iterable[str]) -> list[str]:
    """BRICS fragments of molecules, without stereo marks and each as often as it occurs, sorted.

    The open ends are dummy atoms whose isotope is the BRICS label: `[1*]C(C)=O`.
    """
    found: list[str] = []
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        Chem.RemoveStereochemistry(mol)
        found += Chem.MolToSmiles(BRICS.BreakBRICSBonds(mol)).split(".")
    return sorted(fragment for fragment in found if "*" in fragment)


def recombine(fragments: list[str], seed: int) -> Iterator[str]:
    """Endless canonical SMILES of molecules joined from random fragments; repeats are possible.

    A fragment that is frequent in the list is frequent in the molecules. The sequence is a pure function of the
    arguments (for one RDKit version).
    """
    rng = random.Random(seed)
    pool = [Chem.MolFromSmiles(fragment) for fragment in fragments]
    caps = [fragment for fragment in pool if len(_open_ends(fragment)) == 1]
    while True:
        mol = rng.choice(pool)
        for join in range(_MAX_JOINS):
            ends = _open_ends(mol)
            if not ends:
                yield Chem.MolToSmiles(mol)
                break
            # The first partner may branch on; later ones close an end, so that growth stops.
            mol = _join(mol, rng.choice(ends), rng.choice(caps if join else pool), rng)
            if mol is None:
                break


def is_drug_like(smiles: str, min_heavy_atoms: int, max_heavy_atoms: int, min_qed: float) -> bool:
    """Whether a molecule is neutral, of common elements, and within bounds of size, logP, flexibility and QED.

    QED is Bickerton et al., Nature Chemistry 2012, 4, 90.
    """
    mol = Chem.MolFromSmiles(smiles)
    if mol is None or not min_heavy_atoms <= mol.GetNumHeavyAtoms() <= max_heavy_atoms:
        return False
    if any(atom.GetSymbol() not in _ELEMENTS or atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        return False
    return bool(
        Chem.GetFormalCharge(mol) == 0
        and 120.0 <= Descriptors.MolWt(mol) <= 450.0
        and rdMolDescriptors.CalcNumRotatableBonds(mol) <= 8
        and -1.0 <= Crippen.MolLogP(mol) <= 5.0
        and QED.qed(mol) >= min_qed
    )


def _open_ends(mol: Chem.Mol) -> list[int]:
    return [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]


def _join(mol: Chem.Mol, end: int, partner: Chem.Mol, rng: random.Random) -> Chem.Mol | None:
    """Bond the open end `end` of `mol` to a compatible end of `partner`; None where there is none."""
    label = mol.GetAtomWithIdx(end).GetIsotope()
    fitting = [
        index for index in _open_ends(partner) if (label, partner.GetAtomWithIdx(index).GetIsotope()) in _COMPATIBLE
    ]
    if not fitting:
        return None
    other_end = rng.choice(fitting) + mol.GetNumAtoms()
    joined = Chem.RWMol(Chem.CombineMols(mol, partner))
    (bond,) = joined.GetAtomWithIdx(end).GetBonds()
    (other_bond,) = joined.GetAtomWithIdx(other_end).GetBonds()
    joined.AddBond(bond.GetOtherAtomIdx(end), other_bond.GetOtherAtomIdx(other_end), bond.GetBondType())
    for index in sorted((end, other_end), reverse=True):
        joined.RemoveAtom(index)
    Chem.SanitizeMol(joined)
    return joined.GetMol()
