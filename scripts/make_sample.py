"""Make the bundled sample: conformers of well-known molecules and of molecules recombined from their fragments.

    python scripts/make_sample.py

writes train/, valid/ and README.md under molgen_pretrain/sample. The same RDKit build writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

import rdkit

from molgen_pretrain.chem.prepare import ConformerError, dataset_lines, embed_conformers, molecule_key
from molgen_pretrain.chem.recombine import brics_fragments, is_drug_like, recombine

logger = logging.getLogger("make_sample")

SEED = 20240
CONFORMERS_PER_MOLECULE = 3
DERIVED_MOLECULES = 1800
TRAIN_SHARDS = 2
VALID_FRACTION = 0.06
SAMPLE = Path(__file__).resolve().parents[1] / "molgen_pretrain" / "sample"

README = """# Bundled sample

{train_lines} training and {valid_lines} validation conformers of {molecules} molecules: {known} well-known ones and
{derived} recombined from their BRICS fragments, filtered by size, logP, flexibility and QED. A line is a JSON
object with `canonical_smiles` and `embedded_smiles` (enriched SMILES: `molgen_pretrain/chem/enriched_text.py`).

- Made by `python scripts/make_sample.py` (RDKit {rdkit}, ETKDGv3 then MMFF94, seed {seed}, up to {conformers}
  conformers per molecule, hydrogens left out of the text). The script holds the SMILES of the well-known
  molecules, written for this project; no table of SMILES was copied. Where a SMILES leaves stereocentres
  open, the embedding chose them.
- Split by molecule (SMILES without stereo marks): {valid_molecules} molecules are in `valid` only.
- `tokenizer/` is made from these files by `python scripts/make_sample_tokenizer.py`.
- Licence: Apache-2.0, as the project.

Good for trying out the program and for tests. It is too small and too narrow to train a useful model.
"""

# Pairs of name and SMILES.
WELL_KNOWN = r"""
aspirin CC(=O)Oc1ccccc1C(=O)O  paracetamol CC(=O)Nc1ccc(O)cc1  ibuprofen CC(C)Cc1ccc(C(C)C(=O)O)cc1
naproxen COc1ccc2cc([C@H](C)C(=O)O)ccc2c1  ketoprofen CC(C(=O)O)c1cccc(C(=O)c2ccccc2)c1
flurbiprofen CC(C(=O)O)c1ccc(-c2ccccc2)c(F)c1  diclofenac OC(=O)Cc1ccccc1Nc1c(Cl)cccc1Cl
mefenamic-acid Cc1cccc(Nc2ccccc2C(=O)O)c1C  indomethacin COc1ccc2c(c1)c(CC(=O)O)c(C)n2C(=O)c1ccc(Cl)cc1
celecoxib Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1
rofecoxib CS(=O)(=O)c1ccc(C2=C(c3ccccc3)C(=O)OC2)cc1  piroxicam CN1C(C(=O)Nc2ccccn2)=C(O)c2ccccc2S1(=O)=O
meloxicam Cc1cnc(NC(=O)C2=C(O)c3ccccc3S(=O)(=O)N2C)s1  phenylbutazone CCCCC1C(=O)N(c2ccccc2)N(c2ccccc2)C1=O
antipyrine Cc1cc(=O)n(-c2ccccc2)n1C  salicylamide NC(=O)c1ccccc1O  caffeine Cn1c(=O)c2c(ncn2C)n(C)c1=O
theophylline Cn1c(=O)c2[nH]cnc2n(C)c1=O  theobromine Cn1cnc2c1c(=O)[nH]c(=O)n2C
pentoxifylline CC(=O)CCCCn1c(=O)c2c(ncn2C)n(C)c1=O  nicotine CN1CCC[C@H]1c1cccnc1
cotinine CN1C(=O)CC[C@H]1c1cccnc1  anabasine c1cncc([C@@H]2CCCCN2)c1  nicotinamide NC(=O)c1cccnc1
isoniazid NNC(=O)c1ccncc1  pyrazinamide NC(=O)c1cnccn1  lidocaine CCN(CC)CC(=O)Nc1c(C)cccc1C
procaine CCN(CC)CCOC(=O)c1ccc(N)cc1  procainamide CCN(CC)CCNC(=O)c1ccc(N)cc1  benzocaine CCOC(=O)c1ccc(N)cc1
tetracaine CCCCNc1ccc(C(=O)OCCN(C)C)cc1  bupivacaine CCCCN1CCCCC1C(=O)Nc1c(C)cccc1C
mepivacaine CN1CCCCC1C(=O)Nc1c(C)cccc1C  prilocaine CCCNC(C)C(=O)Nc1ccccc1C
articaine CCCNC(C)C(=O)Nc1c(C)csc1C(=O)OC  diazepam CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21
oxazepam O=C1Nc2ccc(Cl)cc2C(c2ccccc2)=NC1O  temazepam CN1C(=O)C(O)N=C(c2ccccc2)c2cc(Cl)ccc21
lorazepam O=C1Nc2ccc(Cl)cc2C(c2ccccc2Cl)=NC1O  clonazepam O=C1CN=C(c2ccccc2Cl)c2cc([N+](=O)[O-])ccc2N1
alprazolam Cc1nnc2n1-c1ccc(Cl)cc1C(c1ccccc1)=NC2  midazolam Cc1ncc2n1-c1ccc(Cl)cc1C(c1ccccc1F)=NC2
phenobarbital CCC1(c2ccccc2)C(=O)NC(=O)NC1=O  pentobarbital CCCC(C)C1(CC)C(=O)NC(=O)NC1=O
phenytoin O=C1NC(=O)C(c2ccccc2)(c2ccccc2)N1  carbamazepine NC(=O)N1c2ccccc2C=Cc2ccccc21
lamotrigine Nc1nnc(-c2cccc(Cl)c2Cl)c(N)n1  levetiracetam CC[C@@H](C(N)=O)N1CCCC1=O  piracetam NC(=O)CN1CCCC1=O
gabapentin NCC1(CC(=O)O)CCCCC1  pregabalin CC(C)C[C@H](CN)CC(=O)O  ethosuximide CCC1(C)CC(=O)NC1=O
valproic-acid CCCC(CCC)C(=O)O  primidone CCC1(c2ccccc2)C(=O)NCNC1=O  zonisamide NS(=O)(=O)Cc1noc2ccccc12
amitriptyline CN(C)CCC=C1c2ccccc2CCc2ccccc21  imipramine CN(C)CCCN1c2ccccc2CCc2ccccc21
clomipramine CN(C)CCCN1c2ccccc2CCc2ccc(Cl)cc21  fluoxetine CNCCC(Oc1ccc(C(F)(F)F)cc1)c1ccccc1
paroxetine Fc1ccc([C@@H]2CCNC[C@H]2COc2ccc3c(c2)OCO3)cc1
sertraline CN[C@H]1CC[C@@H](c2ccc(Cl)c(Cl)c2)c2ccccc21  citalopram CN(C)CCCC1(c2ccc(F)cc2)OCc2cc(C#N)ccc21
venlafaxine COc1ccc(C(CN(C)C)C2(O)CCCCC2)cc1  bupropion CC(NC(C)(C)C)C(=O)c1cccc(Cl)c1
duloxetine CNCC[C@H](Oc1cccc2ccccc12)c1cccs1  mirtazapine CN1CCN2c3ncccc3Cc3ccccc3C2C1
trazodone O=c1n(CCCN2CCN(c3cccc(Cl)c3)CC2)nc2ccccn12  moclobemide O=C(NCCN1CCOCC1)c1ccc(Cl)cc1
chlorpromazine CN(C)CCCN1c2ccccc2Sc2ccc(Cl)cc21  promethazine CC(CN1c2ccccc2Sc2ccccc21)N(C)C
haloperidol O=C(CCCN1CCC(O)(c2ccc(Cl)cc2)CC1)c1ccc(F)cc1  clozapine CN1CCN(C2=Nc3cc(Cl)ccc3Nc3ccccc32)CC1
olanzapine Cc1cc2c(s1)Nc1ccccc1N=C2N1CCN(C)CC1  quetiapine OCCOCCN1CCN(C2=Nc3ccccc3Sc3ccccc32)CC1
sulpiride CCN1CCCC1CNC(=O)c1cc(S(N)(=O)=O)ccc1OC  metoclopramide CCN(CC)CCNC(=O)c1cc(Cl)c(N)cc1OC
ondansetron Cc1nccn1CC1CCc2c(c3ccccc3n2C)C1=O  diphenhydramine CN(C)CCOC(c1ccccc1)c1ccccc1
cetirizine OC(=O)COCCN1CCN(C(c2ccccc2)c2ccc(Cl)cc2)CC1
loratadine CCOC(=O)N1CCC(=C2c3ccc(Cl)cc3CCc3cccnc32)CC1  chlorpheniramine CN(C)CCC(c1ccc(Cl)cc1)c1ccccn1
cyclizine CN1CCN(C(c2ccccc2)c2ccccc2)CC1  cimetidine CNC(=NC#N)NCCSCc1nc[nH]c1C
ranitidine CNC(=C[N+](=O)[O-])NCCSCc1ccc(CN(C)C)o1  omeprazole COc1ccc2[nH]c(S(=O)Cc3ncc(C)c(OC)c3C)nc2c1
lansoprazole Cc1c(OCC(F)(F)F)ccnc1CS(=O)c1nc2ccccc2[nH]1  atenolol CC(C)NCC(O)COc1ccc(CC(N)=O)cc1
propranolol CC(C)NCC(O)COc1cccc2ccccc12  metoprolol COCCc1ccc(OCC(O)CNC(C)C)cc1
bisoprolol CC(C)NCC(O)COc1ccc(COCCOC(C)C)cc1  timolol CC(C)(C)NC[C@H](O)COc1nsnc1N1CCOCC1
pindolol CC(C)NCC(O)COc1cccc2[nH]ccc12  sotalol CC(C)NCC(O)c1ccc(NS(C)(=O)=O)cc1
salbutamol CC(C)(C)NCC(O)c1ccc(O)c(CO)c1  terbutaline CC(C)(C)NCC(O)c1cc(O)cc(O)c1
epinephrine CNC[C@H](O)c1ccc(O)c(O)c1  dopamine NCCc1ccc(O)c(O)c1  levodopa N[C@@H](Cc1ccc(O)c(O)c1)C(=O)O
serotonin NCCc1c[nH]c2ccc(O)cc12  melatonin COc1ccc2[nH]cc(CCNC(C)=O)c2c1
tryptophan N[C@@H](Cc1c[nH]c2ccccc12)C(=O)O  phenylalanine N[C@@H](Cc1ccccc1)C(=O)O
histidine N[C@@H](Cc1c[nH]cn1)C(=O)O  captopril C[C@H](CS)C(=O)N1CCC[C@H]1C(=O)O
enalapril CCOC(=O)[C@H](CCc1ccccc1)N[C@@H](C)C(=O)N1CCC[C@H]1C(=O)O
losartan CCCCc1nc(Cl)c(CO)n1Cc1ccc(-c2ccccc2-c2nnn[nH]2)cc1
nifedipine COC(=O)C1=C(C)NC(C)=C(C(=O)OC)C1c1ccccc1[N+](=O)[O-]
amlodipine CCOC(=O)C1=C(COCCN)NC(C)=C(C(=O)OC)C1c1ccccc1Cl  clonidine Clc1cccc(Cl)c1NC1=NCCN1
hydralazine NNc1nncc2ccccc12  prazosin COc1cc2nc(N3CCN(C(=O)c4ccco4)CC3)nc(N)c2cc1OC
hydrochlorothiazide NS(=O)(=O)c1cc2c(cc1Cl)NCNS2(=O)=O  furosemide NS(=O)(=O)c1cc(C(=O)O)c(NCc2ccco2)cc1Cl
acetazolamide CC(=O)Nc1nnc(S(N)(=O)=O)s1  chlorthalidone NS(=O)(=O)c1cc(C2(O)NC(=O)c3ccccc32)ccc1Cl
warfarin CC(=O)CC(c1ccccc1)c1c(O)c2ccccc2oc1=O  coumarin O=c1ccc2ccccc2o1
clopidogrel COC(=O)[C@H](c1ccccc1Cl)N1CCc2sccc2C1  tolbutamide CCCCNC(=O)NS(=O)(=O)c1ccc(C)cc1
chlorpropamide CCCNC(=O)NS(=O)(=O)c1ccc(Cl)cc1  metformin CN(C)C(=N)NC(=N)N
pioglitazone CCc1ccc(CCOc2ccc(CC3SC(=O)NC3=O)cc2)nc1  rosiglitazone CN(CCOc1ccc(CC2SC(=O)NC2=O)cc1)c1ccccn1
sitagliptin N[C@@H](CC(=O)N1CCn2c(nnc2C(F)(F)F)C1)Cc1cc(F)c(F)cc1F
gemfibrozil Cc1ccc(C)c(OCCCC(C)(C)C(=O)O)c1  fenofibrate CC(C)OC(=O)C(C)(C)Oc1ccc(C(=O)c2ccc(Cl)cc2)cc1
clofibrate CCOC(=O)C(C)(C)Oc1ccc(Cl)cc1
lovastatin CC[C@H](C)C(=O)O[C@H]1C[C@@H](C)C=C2C=C[C@H](C)[C@H](CC[C@@H]3C[C@@H](O)CC(=O)O3)[C@H]21
sulfamethoxazole Cc1cc(NS(=O)(=O)c2ccc(N)cc2)no1  sulfadiazine Nc1ccc(S(=O)(=O)Nc2ncccn2)cc1
sulfathiazole Nc1ccc(S(=O)(=O)Nc2nccs2)cc1  sulfamethazine Cc1cc(C)nc(NS(=O)(=O)c2ccc(N)cc2)n1
trimethoprim COc1cc(Cc2cnc(N)nc2N)cc(OC)c1OC  pyrimethamine CCc1nc(N)nc(N)c1-c1ccc(Cl)cc1
dapsone Nc1ccc(S(=O)(=O)c2ccc(N)cc2)cc1  ciprofloxacin O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O
norfloxacin CCn1cc(C(=O)O)c(=O)c2cc(F)c(N3CCNCC3)cc21  nalidixic-acid CCn1cc(C(=O)O)c(=O)c2ccc(C)nc21
metronidazole Cc1ncc([N+](=O)[O-])n1CCO  tinidazole CCS(=O)(=O)CCn1c([N+](=O)[O-])cnc1C
chloramphenicol O=C(N[C@H](CO)[C@H](O)c1ccc([N+](=O)[O-])cc1)C(Cl)Cl
penicillin-G CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O
amoxicillin CC1(C)S[C@@H]2[C@H](NC(=O)[C@H](N)c3ccc(O)cc3)C(=O)N2[C@H]1C(=O)O
cephalexin CC1=C(C(=O)O)N2C(=O)[C@@H](NC(=O)[C@H](N)c3ccccc3)[C@H]2SC1
linezolid CC(=O)NC[C@H]1CN(c2ccc(N3CCOCC3)c(F)c2)C(=O)O1
nitrofurantoin O=C1CN(N=Cc2ccc([N+](=O)[O-])o2)C(=O)N1  fluconazole OC(Cn1cncn1)(Cn1cncn1)c1ccc(F)cc1F
voriconazole C[C@@H](c1ncncc1F)[C@](O)(Cn1cncn1)c1ccc(F)cc1F
clotrimazole Clc1ccccc1C(c1ccccc1)(c1ccccc1)n1ccnc1  miconazole Clc1ccc(COC(Cn2ccnc2)c2ccc(Cl)cc2Cl)c(Cl)c1
terbinafine CN(C/C=C/C#CC(C)(C)C)Cc1cccc2ccccc12
griseofulvin COC1=CC(=O)C[C@@H](C)[C@]12Oc1c(Cl)c(OC)cc(OC)c1C2=O  acyclovir Nc1nc2c(ncn2COCCO)c(=O)[nH]1
zidovudine Cc1cn([C@H]2C[C@H](N=[N+]=[N-])[C@@H](CO)O2)c(=O)[nH]c1=O
lamivudine Nc1ccn([C@@H]2CS[C@H](CO)O2)c(=O)n1  nevirapine Cc1ccnc2c1NC(=O)c1cccnc1N2C1CC1
efavirenz O=C1Nc2ccc(Cl)cc2[C@@](C#CC2CC2)(C(F)(F)F)O1
oseltamivir CCOC(=O)C1=C[C@@H](OC(CC)CC)[C@H](NC(C)=O)[C@@H](N)C1  amantadine NC12CC3CC(CC(C3)C1)C2
memantine CC12CC3CC(C)(C1)CC(N)(C3)C2  chloroquine CCN(CC)CCCC(C)Nc1ccnc2cc(Cl)ccc12
primaquine COc1cc(NC(C)CCCN)c2ncccc2c1  quinine COc1ccc2nccc([C@@H](O)[C@@H]3C[C@@H]4CCN3C[C@@H]4C=C)c2c1
mefloquine OC(C1CCCCN1)c1cc(C(F)(F)F)nc2c(C(F)(F)F)cccc12
artemisinin C[C@@H]1CC[C@H]2[C@@H](C)C(=O)O[C@@H]3O[C@@]4(C)CC[C@@H]1[C@@]23OO4
praziquantel O=C(C1CCCCC1)N1CC(=O)N2CCc3ccccc3C2C1  albendazole CCCSc1ccc2nc(NC(=O)OC)[nH]c2c1
mebendazole COC(=O)Nc1nc2cc(C(=O)c3ccccc3)ccc2[nH]1  levamisole c1ccc([C@H]2CN3CCSC3=N2)cc1
codeine COc1ccc2c3c1O[C@H]1[C@@H](O)C=C[C@H]4[C@@H](C2)N(C)CC[C@]314
naloxone C=CCN1CC[C@]23c4c5ccc(O)c4O[C@H]2C(=O)CC[C@@]3(O)[C@H]1C5  tramadol COc1cccc(C2(O)CCCCC2CN(C)C)c1
dextromethorphan COc1ccc2c(c1)[C@]13CCCC[C@@H]1[C@H](C2)N(C)CC3  atropine CN1C2CCC1CC(OC(=O)C(CO)c1ccccc1)C2
scopolamine CN1C2CC(OC(=O)C(CO)c3ccccc3)CC1C1OC12  physostigmine CNC(=O)Oc1ccc2c(c1)C1(C)CCN(C)C1N2C
galantamine COc1ccc2c3c1O[C@H]1C[C@@H](O)C=C[C@@]31CCN(C)C2
donepezil COc1cc2c(cc1OC)C(=O)C(CC1CCN(Cc3ccccc3)CC1)C2  rivastigmine CCN(C)C(=O)Oc1cccc([C@H](C)N(C)C)c1
tacrine Nc1c2c(nc3ccccc13)CCCC2  selegiline C#CCN(C)[C@H](C)Cc1ccccc1
sumatriptan CNS(=O)(=O)Cc1ccc2[nH]cc(CCN(C)C)c2c1  zolmitriptan CN(C)CCc1c[nH]c2ccc(C[C@H]3COC(=O)N3)cc12
riluzole Nc1nc2ccc(OC(F)(F)F)cc2s1  baclofen NCC(CC(=O)O)c1ccc(Cl)cc1  methocarbamol COc1ccccc1OCC(O)COC(N)=O
carisoprodol CCCC(C)(COC(N)=O)COC(=O)NC(C)C  zolpidem Cc1ccc(-c2nc3ccc(C)cn3c2CC(=O)N(C)C)cc1
zaleplon CCN(C(C)=O)c1cccc(-c2ccnc3c(C#N)cnn23)c1  buspirone O=C1CC2(CCCC2)CC(=O)N1CCCCN1CCN(c2ncccn2)CC1
modafinil NC(=O)CS(=O)C(c1ccccc1)c1ccccc1  methylphenidate COC(=O)C(c1ccccc1)C1CCCCN1
testosterone C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]43C)[C@@H]1CC[C@@H]2O
progesterone CC(=O)[C@H]1CC[C@H]2[C@@H]3CCC4=CC(=O)CC[C@]4(C)[C@H]3CC[C@]12C
estradiol C[C@]12CC[C@@H]3c4ccc(O)cc4CC[C@H]3[C@@H]1CC[C@@H]2O
estrone C[C@]12CC[C@@H]3c4ccc(O)cc4CC[C@H]3[C@@H]1CCC2=O
hydrocortisone C[C@]12C[C@H](O)[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]43C)[C@@H]1CC[C@]2(O)C(=O)CO
dexamethasone C[C@@H]1C[C@H]2[C@@H]3CCC4=CC(=O)C=C[C@]4(C)[C@@]3(F)[C@@H](O)C[C@]2(C)[C@@]1(O)C(=O)CO
tamoxifen CC/C(=C(\c1ccccc1)c1ccc(OCCN(C)C)cc1)c1ccccc1
diethylstilbestrol CC/C(=C(/CC)c1ccc(O)cc1)c1ccc(O)cc1  flutamide CC(C)C(=O)Nc1ccc([N+](=O)[O-])c(C(F)(F)F)c1
bicalutamide CC(O)(CS(=O)(=O)c1ccc(F)cc1)C(=O)Nc1ccc(C#N)c(C(F)(F)F)c1
anastrozole CC(C)(C#N)c1cc(Cn2cncn2)cc(C(C)(C)C#N)c1  letrozole N#Cc1ccc(C(c2ccc(C#N)cc2)n2cncn2)cc1
gemcitabine Nc1ccn([C@@H]2O[C@H](CO)[C@@H](O)C2(F)F)c(=O)n1
cytarabine Nc1ccn([C@@H]2O[C@H](CO)[C@@H](O)[C@@H]2O)c(=O)n1
azathioprine Cn1cnc([N+](=O)[O-])c1Sc1ncnc2[nH]cnc12  allopurinol O=c1[nH]cnc2[nH]ncc12
adenosine Nc1ncnc2c1ncn2[C@@H]1O[C@H](CO)[C@@H](O)[C@H]1O
uridine O=c1ccn([C@@H]2O[C@H](CO)[C@@H](O)[C@H]2O)c(=O)[nH]1
thymidine Cc1cn([C@H]2C[C@H](O)[C@@H](CO)O2)c(=O)[nH]c1=O  cyclophosphamide O=P1(N(CCCl)CCCl)NCCCO1
temozolomide Cn1nnc2c(C(N)=O)ncn2c1=O  gefitinib COc1cc2ncnc(Nc3ccc(F)c(Cl)c3)c2cc1OCCCN1CCOCC1
erlotinib C#Cc1cccc(Nc2ncnc3cc(OCCOC)c(OCCOC)cc23)c1
tofacitinib C[C@@H]1CCN(C(=O)CC#N)C[C@@H]1N(C)c1ncnc2[nH]ccc12
ruxolitinib N#CC[C@H](C1CCCC1)n1cc(-c2ncnc3[nH]ccc23)cn1  leflunomide Cc1oncc1C(=O)Nc1ccc(C(F)(F)F)cc1
thalidomide O=C1CCC(N2C(=O)c3ccccc3C2=O)C(=O)N1  lenalidomide Nc1cccc2c1CN(C1CCC(=O)NC1=O)C2=O
febuxostat CC(C)COc1ccc(-c2nc(C)c(C(=O)O)s2)cc1C#N  probenecid CCCN(CCC)S(=O)(=O)c1ccc(C(=O)O)cc1
guaifenesin COc1ccccc1OCC(O)CO  ambroxol Nc1c(Br)cc(Br)cc1CNC1CCC(O)CC1
bromhexine CN(Cc1cc(Br)cc(Br)c1N)C1CCCCC1  vanillin COc1cc(C=O)ccc1O
capsaicin COc1cc(CNC(=O)CCCC/C=C/C(C)C)ccc1O  curcumin COc1cc(/C=C/C(=O)CC(=O)/C=C/c2ccc(O)c(OC)c2)ccc1O
resveratrol Oc1ccc(/C=C/c2cc(O)cc(O)c2)cc1  quercetin O=c1c(O)c(-c2ccc(O)c(O)c2)oc2cc(O)cc(O)c12
genistein O=c1c(-c2ccc(O)cc2)coc2cc(O)cc(O)c12  naringenin O=C1C[C@@H](c2ccc(O)cc2)Oc2cc(O)cc(O)c21
catechin Oc1cc(O)c2c(c1)O[C@H](c1ccc(O)c(O)c1)[C@@H](O)C2  caffeic-acid OC(=O)/C=C/c1ccc(O)c(O)c1
ferulic-acid COc1cc(/C=C/C(=O)O)ccc1O  psoralen O=c1ccc2cc3ccoc3cc2o1
menthol C[C@@H]1CC[C@@H](C(C)C)[C@H](O)C1  camphor CC1(C)C2CCC1(C)C(=O)C2  carvone C=C(C)C1CC=C(C)C(=O)C1
thymol Cc1ccc(C(C)C)c(O)c1  eugenol C=CCc1ccc(O)c(OC)c1  geraniol CC(C)=CCC/C(C)=C/CO
papaverine COc1ccc(Cc2nccc3cc(OC)c(OC)cc23)cc1OC  harmine COc1ccc2c(c1)[nH]c1c(C)nccc12
yohimbine COC(=O)[C@H]1[C@@H](O)CC[C@H]2CN3CCc4c([nH]c5ccccc45)[C@@H]3C[C@@H]21  arecoline COC(=O)C1=CCCN(C)C1
pilocarpine CC[C@@H]1C(=O)OC[C@@H]1Cc1cncn1C
colchicine COc1cc2c(c(OC)c1OC)-c1ccc(OC)c(=O)cc1[C@@H](NC(C)=O)CC2
ascorbic-acid OC[C@H](O)[C@H]1OC(=O)C(O)=C1O  pyridoxine Cc1ncc(CO)c(CO)c1O
biotin OC(=O)CCCC[C@@H]1SC[C@@H]2NC(=O)N[C@H]12  pantothenic-acid CC(C)(CO)[C@@H](O)C(=O)NCCC(=O)O
lipoic-acid OC(=O)CCCC[C@@H]1CCSS1  menadione CC1=CC(=O)c2ccccc2C1=O
arbutin OC[C@H]1O[C@@H](Oc2ccc(O)cc2)[C@H](O)[C@@H](O)[C@@H]1O
aspartame COC(=O)[C@H](Cc1ccccc1)NC(=O)[C@@H](N)CC(=O)O  saccharin O=C1NS(=O)(=O)c2ccccc21
DEET CCN(CC)C(=O)c1cccc(C)c1  atrazine CCNc1nc(Cl)nc(NC(C)C)n1  carbaryl CNC(=O)Oc1cccc2ccccc12
imidacloprid O=[N+]([O-])NC1=NCCN1Cc1ccc(Cl)nc1  diuron CN(C)C(=O)Nc1ccc(Cl)c(Cl)c1
2-pyridylpiperazine c1ccc(N2CCNCC2)nc1  N-phenylmorpholine c1ccc(N2CCOCC2)cc1
2-phenyl-1,3,4-oxadiazole c1ccc(-c2nnco2)cc1  3-methyl-5-phenylisoxazole Cc1cc(-c2ccccc2)on1
1-phenylpyrazole c1ccc(-n2cccn2)cc1  4-phenylpyridine c1ccc(-c2ccncc2)cc1
2-phenylimidazole c1ccc(-c2ncc[nH]2)cc1  2-phenylbenzoxazole c1ccc(-c2nc3ccccc3o2)cc1
N-methyltetrahydroisoquinoline CN1CCc2ccccc2C1  cyclopropyl-phenyl-ketone O=C(c1ccccc1)C1CC1
N-cyclobutylbenzamide O=C(NC1CCC1)c1ccccc1  N-(oxetan-3-yl)benzamide O=C(NC1COC1)c1ccccc1
4-iodoanisole COc1ccc(I)cc1  3-bromobenzamide NC(=O)c1cccc(Br)c1
2-thiophenecarboxanilide O=C(Nc1ccccc1)c1cccs1  indole-3-carboxamide NC(=O)c1c[nH]c2ccccc12
N-benzylpyrrolidin-2-one O=C1CCCN1Cc1ccccc1  tetrahydropyran-4-carboxanilide O=C(Nc1ccccc1)C1CCOCC1
2-phenylthiazole c1ccc(-c2nccs2)cc1  2-phenylpyrimidine c1ccc(-c2ncccn2)cc1
3-phenylpyridazine c1ccc(-c2cccnn2)cc1  4-methyl-1-tosylpiperazine Cc1ccc(S(=O)(=O)N2CCN(C)CC2)cc1
N-isopropylbenzenesulfonamide CC(C)NS(=O)(=O)c1ccccc1  triethyl-phosphate CCOP(=O)(OCC)OCC
"""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SAMPLE)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()

    known = {molecule_key(smiles): smiles for smiles in WELL_KNOWN.split()[1::2]}
    molecules = known | derived_molecules(known)
    # The order by hash is a shuffle that does not depend on how the molecules were found.
    keys = sorted(molecules, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    with Pool(arguments.processes) as pool:
        lines_of = dict(zip(keys, pool.map(make_lines, [molecules[key] for key in keys], chunksize=8), strict=True))
    kept = [key for key in keys if lines_of[key]]
    valid_count = round(len(kept) * VALID_FRACTION)
    valid = [line for key in kept[:valid_count] for line in lines_of[key]]
    train = [line for key in kept[valid_count:] for line in lines_of[key]]

    write_lines(arguments.output / "valid" / "valid_0.jsonl", valid)
    for shard in range(TRAIN_SHARDS):
        begin, end = (len(train) * edge // TRAIN_SHARDS for edge in (shard, shard + 1))
        write_lines(arguments.output / "train" / f"train_{shard}.jsonl", train[begin:end])
    known_kept = sum(key in known for key in kept)
    readme = README.format(
        train_lines=len(train),
        valid_lines=len(valid),
        molecules=len(kept),
        known=known_kept,
        derived=len(kept) - known_kept,
        valid_molecules=valid_count,
        rdkit=rdkit.__version__,
        seed=SEED,
        conformers=CONFORMERS_PER_MOLECULE,
    )
    (arguments.output / "README.md").write_text(readme)
    logger.info("%s", Counter(len(lines) for lines in lines_of.values()))


def derived_molecules(known: dict[str, str]) -> dict[str, str]:
    """DERIVED_MOLECULES new drug-like molecules, none of them among the known ones, by molecule key."""
    fresh: dict[str, str] = {}
    for smiles in recombine(brics_fragments(known.values()), SEED):
        key = molecule_key(smiles)
        if key not in known and key not in fresh and is_drug_like(smiles, 12, 26, 0.5):
            fresh[key] = smiles
        if len(fresh) == DERIVED_MOLECULES:
            break
    return fresh


def make_lines(smiles: str) -> list[str]:
    try:
        return dataset_lines(embed_conformers(smiles, CONFORMERS_PER_MOLECULE, SEED))
    except ConformerError as error:
        logger.warning("left out: %s", error)
        return []


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    logger.info("%s: %d lines, %d bytes", path, len(lines), path.stat().st_size)


if __name__ == "__main__":
    main()
