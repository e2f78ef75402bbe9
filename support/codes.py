"""The codes that the sources of a UMLS release give concepts: SNOMEDCT_US 22298006, ICD10CM I21.9, MSH D009203."""

import difflib
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import UserError
from support import rrf
from support.rrf import prefix8


def read_codes(umls, sources, all_needed=True):
    """The codes of sources in rows of MRCONSO with SUPPRESS=N: sorted [(SAB, CODE, CUI)], each once.

    NOCODE is no code. Codes have single blanks.

    Args: sources: their names (SAB), exactly as written there. all_needed: a source without a row is an error.
    Raises: UserError, also if there is no code at all.
    """
    names = pa.array(sources, pa.string())

    def parse_block(rows):
        cui, sab = rows.parse_cui("CUI"), rows.strings("SAB").dictionary_encode()
        has_source = np.array(pc.is_in(sab.dictionary, value_set=names), bool)[sab.indices]
        keep = (cui >= 0) & has_source & (rows.prefix8("SUPPRESS") == prefix8("N"))
        fields = [rows.filter(keep).strings(column).to_pylist() for column in ("SAB", "CODE")]
        codes = {(s, " ".join(code.split()), f"C{number:07d}") for s, code, number in zip(*fields, cui[keep].tolist())}
        return {x for x in codes if x[1] not in ("", "NOCODE")}, {*sab.dictionary.to_pylist()}

    rrf.check_files(umls, "MRCONSO")
    codes, known = (set().union(*found) for found in zip(*rrf.read_rrf(umls, "MRCONSO", parse_block)))
    if all_needed and (unknown := [source for source in sources if source not in known]):
        raise UserError(
            f"{umls}: MRCONSO.RRF has no row of the source {unknown[0]}; {similar_sources(unknown[0], known)}"
        )
    if not codes:
        advice = "take the full release, or a subset of MetamorphoSys with these sources"
        raise UserError(f"{umls}: MRCONSO.RRF has no code of the sources {' '.join(sources)}; {advice}")
    return sorted(codes)


def similar_sources(name, known):
    """The names most like an unknown one, or some that are there, for the error message."""
    known = sorted(known)
    if near := difflib.get_close_matches(name.upper(), known, 3):
        return f"did you mean {' or '.join(near)}?"
    return f"it has {' '.join(known[:20])}" + " ..." * (len(known) > 20)


def codes_of_concepts(umls, sources):
    """{CUI: {SAB: [its codes, sorted]}} of the concepts with a code of these sources. Raises: UserError."""
    out = defaultdict(lambda: defaultdict(list))
    for source, code, cui in read_codes(umls, sources):
        out[cui][source].append(code)
    return {cui: dict(codes) for cui, codes in out.items()}
