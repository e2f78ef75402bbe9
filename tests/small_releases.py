"""Releases of a few rows, written by hand, and changed copies of the synthetic one."""

import gzip
import shutil

from beyond.dictionaries import make_dictionary, read_pairs


def conso(cui, text, lat="ENG", ts="P", stt="PF", ispref="Y", aui="A0000001", suppress="N", sab="SYN", tty="PT"):
    """A row of MRCONSO."""
    return f"{cui}|{lat}|{ts}|L1|{stt}|S1|{ispref}|{aui}||||{sab}|{tty}|X|{text}|0|{suppress}||\n"


def rel(cui1, rel, cui2, suppress="N", rela=""):
    """A row of MRREL."""
    return f"{cui1}||CUI|{rel}|{cui2}||CUI|{rela}|R1||SYN|SYN|||{suppress}||\n"


def write(folder, mrconso, mrrel, mrsty, mrrank=()):
    """A release folder with the given rows; a file without rows is not written."""
    folder.mkdir(exist_ok=True)
    for name, rows in (("MRCONSO", mrconso), ("MRREL", mrrel), ("MRSTY", mrsty), ("MRRANK", mrrank)):
        if rows:
            (folder / f"{name}.RRF").write_text("".join(rows), encoding="utf-8")
    return folder


def types(*pairs):
    """Rows of MRSTY from pairs (CUI, "TUI|STN|name")."""
    return [f"{cui}|{semantic}|AT1||\n" for cui, semantic in pairs]


def triples(g):
    """The set of triples of a graph: (CUI of h, name of r, CUI of t)."""
    return {(f"C{g.cui[h]:07d}", g.relations[r], f"C{g.cui[t]:07d}") for h, r, t in zip(g.h, g.r, g.t)}


def preferred(g):
    """{CUI: preferred term} of a graph."""
    return {f"C{c:07d}": g.terms[i].as_py() for c, i in zip(g.cui, g.first_term[:-1].tolist())}


DISO, ANAT = "T047|B2.2.1.2.1|Disease or Syndrome", "T023|A1.2.3.1|Body Part"
BASE = [conso("C0000001", "hepatitis"), conso("C0000002", "liver disease"), conso("C0000003", "liver")]
TYPES = types(("C0000001", DISO), ("C0000002", DISO), ("C0000003", ANAT))


def same(a, b):
    """Whether two graphs are equal in all of their tables."""
    arrays = all((getattr(a, k) == getattr(b, k)).all() for k in ("cui", "group", "first_term", "keys", "counts"))
    return arrays and a.terms.equals(b.terms) and (a.groups, a.lang) == (b.groups, b.lang)


def rewrite(folder, release, change):
    """A copy of the release whose files went through change(path, bytes)."""
    shutil.copytree(release / "META", folder / "META")
    for path in (folder / "META").iterdir():
        change(path, path.read_bytes())
    return folder


def pack_in_parts(path, whole):
    """Replaces a file by three .gz parts of it."""
    path.unlink()
    for k in range(3):  # cut within rows, as `split` does
        part = whole[k * len(whole) // 3 : (k + 1) * len(whole) // 3]
        path.with_name(f"{path.name}.a{'abc'[k]}.gz").write_bytes(gzip.compress(part))


def state_rows(folder):
    """Writes MRFILES.RRF into a folder, with the number of rows of each file there."""
    rows = {path.name: path.read_bytes().count(b"\n") for path in sorted(folder.glob("*.RRF"))}
    lines = [f"{name}|title|CUI,LAT|18|{n}|1|\n" for name, n in ({"MRCOLS.RRF": 7} | rows).items()]
    (folder / "MRFILES.RRF").write_text("".join(lines))


def damage(folder, name, change, meta="META"):
    """Replaces META/NAME.RRF by change(its lines)."""
    path = folder / meta / f"{name}.RRF"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(change(lines))


def write_texts(folder):
    """A file of sixty short texts, for a build without E3C."""
    path = folder / "texts.txt"
    path.write_text("".join(f"the liver of patient {i} was normal\n" for i in range(60)))
    return path


def read_dictionary(path):
    """The Dictionary of a file of lines id TAB name, as beyond.link makes it."""
    return make_dictionary(*read_pairs(path, "id TAB name"))
