"""Sets of small test problems on which the optimisers are compared, by their names in the S2MPJ collection."""

PUBLISHED_ITERATIONS: dict[str, int | None] = {
    "HS6": 9, "BT5": 5, "BT9": 10, "HS28": 1, "BT10": 7, "HIMMELBA": 1, "BT12": 9, "HS40": 3, "BT3": 1, "BT6": 8,
    "BT11": 7, "HS7": 10, "GENHS28": 1, "HS51": 1, "BOOTH": 1, "HS52": 1, "HS47": 15, "WAYSEA1NE": 7, "HS48": 1,
    "HS50": 8, "RSNBRNE": 11, "CUBENE": 4, "HS77": 8, "MWRIGHT": 7, "ZANGWIL3": 1, "BA-L1SP": 4, "HS78": 4, "HS56": 5,
    "HELIXNE": 8, "HS42": 4, "HS79": 4, "ORTHREGB": 42, "HS100LNP": 8, "GOTTFR": None, "WAYSEA2NE": 10,
    "DENSCHNFNE": 4, "HIMMELBC": 5, "PRICE4NE": None, "INTEQNE": 2, "MANCINONE": 4, "BT2": 11,
}  # fmt: skip
"""Outer iterations that the authors' stored results count (randomised Kaczmarz, KKT norm 1e-4); None: failed."""

PUBLISHED_SET = tuple(PUBLISHED_ITERATIONS)
"""The problems of the publication of AdaSketch-Newton that the collection holds, in the publication's order: 41 of 47.

They have equality constraints only; 15 are systems of equations without objective.
"""

PUBLISHED_ARGUMENTS: dict[str, tuple[float, ...]] = {"MANCINONE": (100.0,)}
"""Parameters of the problems that the publication does not solve at the collection's default size.

With them all sizes and all first KKT norms agree with the authors' stored results to the digits that are compared.
"""

PUBLISHED_BUT_ABSENT = ("SINVALNE", "TRIGON1NE", "HIMMELBE", "MOREBVNE", "DENSCHNCNE", "BA-L1")
"""The six problems of the publication that the collection does not hold."""

EQUALITY_SET = (
    "BT1", "BT10", "BT11", "BT12", "BT2", "BT3", "BT4", "BT5", "BT6", "BT7", "BT8", "BT9", "BYRDSPHR", "DIXCHLNG",
    "EIGENA2", "EIGENACO", "EIGENB2", "EIGENBCO", "ELEC", "FLT", "GENHS28", "HS100LNP", "HS26", "HS27", "HS28",
    "HS39", "HS40", "HS42", "HS46", "HS47", "HS48", "HS49", "HS50", "HS51", "HS52", "HS56", "HS6", "HS61", "HS7",
    "HS77", "HS78", "HS79", "HS9", "LUKVLE1", "LUKVLE10", "LUKVLE11", "LUKVLE12", "LUKVLE13", "LUKVLE14", "LUKVLE15",
    "LUKVLE16", "LUKVLE17", "LUKVLE18", "LUKVLE2", "LUKVLE3", "LUKVLE4", "LUKVLE4C", "LUKVLE6", "LUKVLE7", "LUKVLE8",
    "LUKVLE9", "LUKVLI4", "MARATOS", "MSS1", "MWRIGHT", "ORTHRDM2", "ORTHRDS2", "ORTHREGA", "ORTHREGB", "ORTHREGC",
    "ORTHREGD", "ORTHRGDM", "ORTHRGDS", "S316m322", "SPINOP", "STREGNE",
)  # fmt: skip
"""All problems of the collection with an objective, equality constraints, no inequalities and no bounds: 76.

It is `s2mpj_names("equalities", objective=True)`, at default sizes, kept here so that results stay comparable.
"""
