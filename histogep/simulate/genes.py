"""The genes of the simulated study: positions, programmes, copy number and gene sets.

Symbols and positions are those of the data set that infercnvpy carries (Tirosh et al., 2016:
9,450 genes, build hg19). It comes from brain, so lineage markers of other tissues that it lacks
are added from `EXTRA_GENES_MB`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.inputs.genome import assign_arms, order_chromosomes
from histogep.simulate.cohort import formulas, stream

#: Copy-number factors of expression: a gain of about one copy, a loss of one of two.
GAIN, LOSS = 1.55, 0.5
#: Arms of clone A and of clone B; the first two of each are shared, so come before the split.
ARMS = {
    "A": {"1q": GAIN, "16q": LOSS, "16p": GAIN, "20q": GAIN, "11q": LOSS, "3p": LOSS},
    "B": {"1q": GAIN, "16q": LOSS, "8q": GAIN, "17q": GAIN, "17p": LOSS, "5q": LOSS},
}

#: Start on hg19, rounded to 0.1 Mb, of genes that the bundled data set lacks.
EXTRA_GENES_MB = {
    "chr1": "CDC20 43.8, TIE1 43.8, TACSTD2 59.0, CD2 117.3, CTSK 150.8, MUC1 155.2, FCRLA 161.7, "
    "ELF3 202.0, CR2 207.6",
    "chr2": "RRM2 10.3, EPCAM 47.6, CD8A 87.0, CD8B 87.0, MARCO 119.7, FAP 163.0, COL3A1 189.8, "
    "CD28 204.6, CTLA4 204.7, PDCD1 242.8",
    "chr3": "CIDEC 9.9, CXCR6 46.0, TIGIT 114.0, ADIPOQ 186.6",
    "chr4": "KDR 56.0, JCHAIN 71.5, CXCL9 76.9, CXCL10 76.9, CXCL11 77.0, CXCL13 78.4, EMCN 101.3, "
    "BANK1 102.7",
    "chr5": "GZMK 54.3, GZMA 54.4, CCNB1 68.5, MZB1 138.7, PDGFRB 149.5",
    "chr6": "VEGFA 43.7, ESR1 152.0",
    "chr7": "AGR2 16.8, CLDN3 73.2, CLDN4 73.2, COL1A2 94.0, LEP 127.9",
    "chr8": "BLK 11.4, IDO1 39.8, FABP4 82.4",
    "chr9": "CD274 5.5, PDCD1LG2 5.5, AQP7 33.4, CA9 35.7, EGFL7 139.6",
    "chr10": "GATA3 8.1, PRF1 72.4, RBP4 95.4, MKI67 129.9",
    "chr11": "ADM 10.3, MS4A1 60.2, CD5 60.9, PGR 100.9, POU2AF1 111.2, CD3D 118.2, CD3E 118.2, "
    "CD3G 118.2, ESAM 124.6, ROBO4 124.8",
    "chr12": "VWF 6.1, LAG3 6.9, CD163 7.6, KRT7 52.6, KRT8 53.3, KRT18 53.3, IFNG 68.5, DCN 91.5, "
    "LUM 91.5",
    "chr13": "POSTN 38.1",
    "chr14": "GZMB 25.1, GZMH 25.1, FOXA1 38.1",
    "chr15": "PLIN1 90.2",
    "chr16": "CD19 28.9, CDH5 66.4, CDH1 68.8",
    "chr17": "ERBB2 37.8, GRB7 37.9, TOP2A 38.5, KRT19 39.7, COL1A1 48.3, CD79B 62.0, PECAM1 62.4, "
    "BIRC5 76.2",
    "chr18": "CIDEA 12.3",
    "chr19": "CFD 0.9, PLIN4 4.5, CCNE1 30.3, CD22 35.8, CD79A 42.4, LIPE 42.9, NKG7 51.9",
    "chr20": "MYBL2 42.3, UBE2C 44.4, AURKA 54.9",
    "chr21": "TFF3 43.7, TFF1 43.8",
    "chr22": "CLDN5 19.5",
    "chrX": "FOXP3 49.1",
}

#: Programme: `states`, expression in each tissue state relative to its lowest (the states are
#: those of `histogep.simulate.counts.STATES`; the two nuisance programmes have none and follow a
#: smooth field instead, whatever the tissue); `genes`, known members; `share`, of all counts, that
#: each gene has on average where the programme is highest; `size`, to which other genes fill it up.
PROGRAMMES: dict[str, dict[str, Any]] = {
    "hazard": {
        "states": {"tumour_b": 9.0},
        "genes": "MKI67 TOP2A ERBB2 GRB7 CCNB1 CDC20 BIRC5 UBE2C AURKA MYBL2 FOXM1 CCNE1 PLK1 RRM2 "
        "TYMS STARD3 EZH2 MCM2",
        "share": 0.0005,
        "size": 24,
    },
    "clone_a": {
        "states": {"tumour_a": 9.0},
        "genes": "ESR1 PGR TFF1 TFF3 AGR2 GATA3 FOXA1 XBP1 CA12 SLC39A6",
        "share": 0.0005,
        "size": 22,
    },
    "tumour": {
        "states": {"tumour_a": 8.0, "tumour_b": 8.0},
        "genes": "EPCAM KRT7 KRT8 KRT18 KRT19 CDH1 MUC1 CLDN3 CLDN4 ELF3 TACSTD2 SPINT2",
        "share": 0.0004,
        "size": 26,
    },
    "stroma": {
        "states": {"stroma": 9.0, "endothelial": 3.0, "fat": 1.5},
        "genes": "COL1A1 COL1A2 COL3A1 DCN LUM POSTN FAP PDGFRB PDGFRA CTSK FN1 MMP2 ACTA2 CALD1 "
        "SERPINF1",
        "share": 0.0007,
        "size": 28,
    },
    "response": {
        "states": {"t_cell": 16.0, "b_cell": 2.0},
        "genes": "CD2 CD3D CD3E CD3G CD8A CD8B CD5 CD28 GZMA GZMB GZMH GZMK PRF1 NKG7 IFNG CXCL9 "
        "CXCL10 CXCL11 CXCL13 CCL5 IDO1 LAG3 PDCD1 CD274 PDCD1LG2 CTLA4 TIGIT FOXP3 CXCR6 CD27",
        "share": 0.0035,
        "size": 30,
    },
    "b_cell": {
        "states": {"b_cell": 20.0},
        "genes": "MS4A1 CD19 CD79A CD79B CD22 BANK1 BLK FCRLA POU2AF1 MZB1 JCHAIN CR2",
        "share": 0.0035,
        "size": 14,
    },
    "fat": {
        "states": {"fat": 25.0},
        "genes": "ADIPOQ PLIN1 PLIN4 FABP4 LEP CIDEC CIDEA CFD GPD1 LIPE LPL AQP7 RBP4 CD36",
        "share": 0.0016,
        "size": 20,
    },
    "endothelial": {
        "states": {"endothelial": 18.0},
        "genes": "PECAM1 VWF CDH5 KDR CLDN5 ESAM PLVAP EMCN TIE1 ROBO4 EGFL7",
        "share": 0.002,
        "size": 14,
    },
    "hypoxia": {
        "states": {},
        "genes": "VEGFA CA9 ADM NDRG1 PGK1 ENO1 ALDOA P4HA1 PDK1 HK2 BNIP3 LDHA SLC2A3 EGLN3",
        "share": 0.00035,
        "size": 16,
    },
    "stress": {
        "states": {},
        "genes": "FOS FOSB JUN JUNB EGR1 IER2 DUSP1 ATF3 ZFP36 NR4A1 HSPA1A HSPA1B DNAJB1 HSPH1",
        "share": 0.00035,
        "size": 15,
    },
}
#: Programmes that neither the hazard nor the response depends on. (Not `tumour`: the lymphocytes
#: that the response depends on dilute it.)
IRRELEVANT = ("stroma", "fat", "endothelial", "hypoxia", "stress")
_N_MIXED_SETS, _N_BACKGROUND_SETS = 8, 10
_MIXED_PER_PROGRAMME, _MIXED_BACKGROUND = 4, 4
_BACKGROUND_SET_SIZE = 22


def bundled_positions() -> pd.DataFrame:
    """Return the positions of the bundled genes and of `EXTRA_GENES_MB`, in genome order.

    Returns
    -------
    DataFrame
        gene (unique symbol), chromosome ("chr1".."chrX"), start and end (base pairs, hg19).
    """
    import infercnvpy

    bundled = infercnvpy.datasets.oligodendroglioma().var
    table = bundled[["chromosome", "start", "end"]].reset_index(names="gene")
    table["chromosome"] = table["chromosome"].astype(str)
    table = table[table["chromosome"] != "chrY"]
    table = pd.concat([table, extra_positions()]).drop_duplicates("gene")
    rank = {name: i for i, name in enumerate(order_chromosomes(table["chromosome"]))}
    order = np.lexsort((table["gene"], table["start"], table["chromosome"].map(rank)))
    return table.iloc[order].reset_index(drop=True)


def extra_positions() -> pd.DataFrame:
    """Return gene, chromosome, start and end (a nominal 10 kb on) of the added markers."""
    rows = [
        (gene, chromosome, round(float(start_mb) * 1e6))
        for chromosome, genes in EXTRA_GENES_MB.items()
        for gene, start_mb in (item.split() for item in genes.split(","))
    ]
    table = pd.DataFrame(rows, columns=["gene", "chromosome", "start"])
    return table.assign(end=table["start"] + 10_000)


def plant_truth(positions: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Return all that is planted in a simulated study.

    Genes that fill a programme up to its size, and those of the background sets, lie on arms that
    no clone gains or loses, so that nothing but their own programme moves them.

    Parameters
    ----------
    positions
        gene, chromosome, start, end.
    seed
        Seed of the study.

    Returns
    -------
    dict
        seed; arms: {clone: {arm: factor}}; programmes: {name: {states, share, genes}}; gene_sets:
        {name: genes}; irrelevant: names of the sets that no outcome depends on; outcome: the
        coefficients of `histogep.simulate.cohort.formulas`.
    """
    genes = positions["gene"].to_numpy(dtype=object)
    arms = assign_arms(positions)
    rng = stream(seed, "truth")
    altered = sorted({arm for clone in ARMS.values() for arm in clone})
    if missing := sorted(set(altered) - set(arms)):
        raise InputError(f"no gene lies on the arms {', '.join(missing)} of the planted clones")
    members = {name: programme["genes"].split() for name, programme in PROGRAMMES.items()}
    taken = {gene for names in members.values() for gene in names}
    if absent := sorted(taken - set(genes)):
        raise InputError(f"the gene positions lack planted genes: {', '.join(absent)}")
    excluded = ("RPL", "RPS", "MT-")
    neutral = [
        gene
        for gene, arm in zip(genes, arms, strict=True)
        if arm not in altered and gene not in taken and not gene.startswith(excluded)
    ]
    pool = iter(rng.permutation(np.array(neutral, dtype=object)).tolist())
    programmes = {}
    for name, programme in PROGRAMMES.items():
        short = max(0, programme["size"] - len(members[name]))
        chosen = members[name] + [next(pool) for _ in range(short)]
        programmes[name] = {
            "states": programme["states"],
            "share": programme["share"],
            "genes": chosen,
        }

    gene_sets = {
        "PLANTED_HAZARD": programmes["hazard"]["genes"],
        "PLANTED_RESPONSE": programmes["response"]["genes"],
        "PLANTED_TUMOUR": programmes["tumour"]["genes"],
        "PLANTED_STROMA": programmes["stroma"]["genes"],
    }
    irrelevant = []
    for number in range(1, _N_MIXED_SETS + _N_BACKGROUND_SETS + 1):
        if number <= _N_MIXED_SETS:
            chosen = [
                gene
                for name in IRRELEVANT
                for gene in rng.choice(
                    np.array(programmes[name]["genes"], dtype=object),
                    _MIXED_PER_PROGRAMME,
                    replace=False,
                )
            ] + [next(pool) for _ in range(_MIXED_BACKGROUND)]
        else:
            chosen = [next(pool) for _ in range(_BACKGROUND_SET_SIZE)]
        irrelevant.append(f"PLANTED_IRRELEVANT_{number:02d}")
        gene_sets[irrelevant[-1]] = chosen
    return {
        "seed": seed,
        "arms": {clone: dict(factors) for clone, factors in ARMS.items()},
        "programmes": programmes,
        "gene_sets": gene_sets,
        "irrelevant": irrelevant,
        "outcome": formulas(),
    }


def format_gmt(truth: dict[str, Any]) -> str:
    """Return the planted gene sets as the text of a GMT file."""
    lines = []
    for name, genes in truth["gene_sets"].items():
        kind = "no outcome depends on it" if name in truth["irrelevant"] else "planted"
        lines.append("\t".join([name, f"simulated: {kind}", *genes]))
    return "\n".join(lines) + "\n"
