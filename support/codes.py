"""The codes that the sources of a UMLS release give concepts: SNOMEDCT_US 22298006, ICD10CM I21.9, MSH D009203."""

from collections import defaultdict

import numpy as np

from configs import UserError
from support import rrf
from support.rrf import prefix8
from support.sources import unknown_source


def read_codes(umls, sources, all_needed=True):
    """The codes of sources in rows of MRCONSO with SUPPRESS=N: sorted [(SAB, CODE, CUI)], each once.

    NOCODE is no code. Codes have single blanks.

    Args: sources: their names (SAB), exactly as written there. all_needed: a source without a row is an error.
    Raises: UserError, also if there is no code at all.
    """

    def parse_block(rows):
        cui, sab = rows.parse_cui("CUI"), rows.strings("SAB").dictionary_encode()
        names = sab.dictionary.to_pylist()
        has_source = np.array([name in sources for name in names], bool)[sab.indices]
        keep = (cui >= 0) & has_source & (rows.prefix8("SUPPRESS") == prefix8("N"))
        fields = [rows.filter(keep).strings(column).to_pylist() for column in ("SAB", "CODE")]
        codes = {(s, " ".join(code.split()), f"C{number:07d}") for s, code, number in zip(*fields, cui[keep].tolist())}
        return {x for x in codes if x[1] not in ("", "NOCODE")}, {*names}

    rrf.check_files(umls, "MRCONSO")
    codes, known = (set().union(*found) for found in zip(*rrf.read_rrf(umls, "MRCONSO", parse_block)))
    if all_needed and (unknown := [source for source in sources if source not in known]):
        raise unknown_source(umls, unknown[0], known)
    if not codes:
        advice = "take the full release, or a subset of MetamorphoSys with these sources"
        raise UserError(f"{umls}: MRCONSO.RRF has no code of the sources {' '.join(sources)}; {advice}")
    return sorted(codes)


def id_of_code(source, code):
    """SAB:CODE, or the code alone if it begins so by itself (GO:0005634)."""
    return code if code.startswith(f"{source}:") else f"{source}:{code}"


def codes_of_concepts(umls, sources):
    """{CUI: {SAB: [its codes, sorted]}} of the concepts with a code of these sources. Raises: UserError."""
    out = defaultdict(lambda: defaultdict(list))
    for source, code, cui in read_codes(umls, sources):
        out[cui][source].append(code)
    return {cui: dict(codes) for cui, codes in out.items()}
