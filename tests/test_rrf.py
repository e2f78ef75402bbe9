"""RRF files: other forms of the same rows, and what is reported of damaged ones."""

import gzip
import json
import re
import shutil
from collections import Counter
from contextlib import nullcontext

import pytest

import configs
from configs import UserError
from support import rrf
from support.cache import read_release
from support.codes import read_codes
from tests.conftest import build, graph_of
from tests.small_releases import (
    ANAT,
    BASE,
    DISO,
    TYPES,
    conso,
    damage,
    pack_in_parts,
    rel,
    rewrite,
    same,
    state_rows,
    types,
    write,
    write_texts,
)  # fmt: skip

# ---------------------------------------------------------------- the same rows in another form


FORMS = {
    "parts": pack_in_parts,
    "gz": lambda path, whole: (path.unlink(), path.with_name(path.name + ".gz").write_bytes(gzip.compress(whole))),
    "windows": lambda path, whole: path.write_bytes(whole.replace(b"\n", b"\r\n")),
    "empty lines": lambda path, whole: path.write_bytes(whole.replace(b"\n", b"\n\n")),
    "no last line end": lambda path, whole: path.write_bytes(whole.rstrip(b"\n")),
}


@pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)
def test_the_same_release_in_another_form(release, tmp_path, change):
    assert same(graph_of(rewrite(tmp_path, release, change), "fr"), graph_of(release, "fr"))


def test_blocks_change_nothing(release, tmp_path, monkeypatch):
    """Rows that lie across blocks, blocks without a line end, and the row numbers of errors."""
    few = rewrite(tmp_path / "few", release, lambda path, b: path.write_bytes(b[: b.rindex(b"\n", 0, 40_000) + 1]))
    for folder, block in ((few, 50), (few, 997), (release, 10_000)):
        whole = graph_of(folder)
        with monkeypatch.context() as m:
            m.setattr(rrf, "BLOCK_SIZE", block)
            assert same(graph_of(folder), whole)
    monkeypatch.setattr(rrf, "BLOCK_SIZE", 10_000)
    broken = rewrite(tmp_path, release, lambda path, whole: None)
    for n in (400, 99, 2000):  # the first one is named, whichever thread finds its own first
        damage(broken, "MRREL", lambda lines, n=n: b"\n".join([*lines[:n], b"x" + lines[n], *lines[n + 1 :]]))
        if n == 400:
            monkeypatch.setattr(rrf, "BLOCK_SIZE", 5000)
    with pytest.raises(UserError, match="MRREL.RRF, row 100, column CUI1: 'xC.*' is not C and 7 digits"):
        graph_of(broken)


# ---------------------------------------------------------------- files that are damaged, or are no RRF files


def drop_field(lines):
    return b"\n".join([*lines[:99], lines[99].replace(b"|", b"", 1), *lines[100:]])


def bad_byte(lines):
    return b"\n".join([*lines[:99], b"\xe9" + lines[99][1:], *lines[100:]])


def cut(lines):
    whole = b"\n".join(lines)
    return whole[: len(whole) - 9]


def bad_cui(lines):
    return b"\n".join([*lines[:99], b"X" + lines[99][1:], *lines[100:]])


@pytest.mark.parametrize("name", ["MRCONSO", "MRREL", "MRSTY"])
@pytest.mark.parametrize("change, message", [
    (drop_field, r"row 100: \d+ columns instead of \d+"),
    (cut, r"row \d+: \d+ columns instead of \d+, and the file ends in the middle"),
    (bad_byte, r"row 100, column CUI1?: byte 0xe9 is not UTF-8"),
    (bad_cui, r"row 100, column CUI1?: 'X\d+' is not C and 7 digits"),
    (lambda lines: b"", "there is no row in it"),
    (lambda lines: b"\n\n", "there is no row in it"),
])  # fmt: skip
def test_damage_is_reported_with_file_row_and_column(release, tmp_path, name, change, message):
    shutil.copytree(release / "META", tmp_path / "META")
    damage(tmp_path, name, change)
    with pytest.raises(UserError, match=rf"{name}\.RRF.*{message}"):
        graph_of(tmp_path)


def test_a_bad_atom_identifier_is_reported(tmp_path):
    rows = [*BASE, conso("C0000001", "x", aui="TX")]
    with pytest.raises(UserError, match="MRCONSO.RRF, row 4, column AUI: 'TX' is not A and 7 or 8 digits"):
        graph_of(write(tmp_path, rows, [rel("C0000001", "PAR", "C0000002")], TYPES))


def test_damaged_parts_are_named(release, tmp_path):
    broken = rewrite(tmp_path, release, pack_in_parts) / "META" / "MRREL.RRF.ab.gz"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"MRREL.RRF.ab.gz: cannot be read .*; copy or download it again"):
        graph_of(tmp_path)
    broken.write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"MRREL.RRF.ab.gz: cannot be read"):
        graph_of(tmp_path)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["MRSTY", "MRCONSO", "MRREL"])
def test_utf_16_is_reported(release, tmp_path, name, codec):
    folder = rewrite(tmp_path, release, lambda path, whole: None)
    path = folder / "META" / f"{name}.RRF"
    path.write_bytes(("\ufeff" + path.read_text(encoding="utf-8")).encode(codec))
    with pytest.raises(UserError, match=f"{name}.RRF: UTF-16, and an RRF file must be UTF-8; convert it with iconv"):
        graph_of(folder)


def test_a_packed_release_is_named(tmp_path):
    with pytest.raises(UserError, match="MRSTY.RRF is neither in .* give the folder or zip of a UMLS release"):
        graph_of(tmp_path)
    (tmp_path / "umls-2022AB-full.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="MRSTY.RRF is neither in .* unpack .*/umls-2022AB-full.tar first"):
        graph_of(tmp_path)


def test_a_long_field_is_shortened_in_the_message(tmp_path):
    rows = [*BASE, conso("C0000001", "a" * 99, aui="B" * 99)]
    with pytest.raises(UserError, match=r"row 4, column AUI: 'B{40}'\.\.\. is not A and 7 or 8 digits"):
        graph_of(write(tmp_path, rows, [rel("C0000001", "PAR", "C0000002")], TYPES))


def test_an_empty_cui_is_reported(tmp_path):
    folder = write(tmp_path, BASE, [rel("C0000001", "PAR", "C0000002")], [f"|{DISO}|AT1||\n", *TYPES])
    with pytest.raises(UserError, match="MRSTY.RRF, row 1, column CUI: '' is not C and 7 digits"):
        graph_of(folder)


@pytest.mark.parametrize("n_empty", [0, 1, 2])
def test_rows_of_mrrel_that_leave_out_a_cui(tmp_path, n_empty):
    """As MetamorphoSys's input does in the rows after the first: up to 1 % are said."""
    rows = RELATED + [rel("C0000001", "RO", "C0000002")] * (98 - n_empty)
    rows[1:1] = [rel("", "PAR", "C0000002"), rel("C0000001", "PAR", "")][:n_empty]
    folder, said = write(tmp_path, BASE, rows, TYPES), []
    s = configs.Data(skip_bad_rows=True)
    if n_empty == 2:
        message = "MRREL.RRF: 2 of 100 rows have no CUI1 or no CUI2; this MRREL is the input of MetamorphoSys: make a"
        with pytest.raises(UserError, match=message):
            read_release(folder, ["en"], s, tmp_path / "cache", said.append)
    else:
        read_release(folder, ["en"], s, tmp_path / "cache", said.append)
        assert "MRREL: 2 relations" + " (1 rows without CUI1 or CUI2)" * n_empty in said


@pytest.mark.parametrize("n_good", [3, 4])
def test_a_file_of_other_columns_is_no_rrf_file(tmp_path, monkeypatch, n_good):
    """More than 10,000 rows (here 3) of a block, and over half of it, with a wrong number of columns."""
    monkeypatch.setattr(rrf, "MAX_BAD_ROWS", 3)
    rows = BASE[:1] * n_good
    rows[1:1] = [b"|" * 9 + b"\n"] * 4
    path, skipped = tmp_path / "MRCONSO.RRF", Counter()
    path.write_bytes(b"".join(row if isinstance(row, bytes) else row.encode() for row in rows))
    for counter in (None, skipped):
        message = "row 2: 9 columns instead of 18, and most rows after it are wrong too; this is not an RRF file"
        expected = message if n_good == 3 else "row 2: 9 columns instead of 18; repair" * (counter is None)
        with pytest.raises(UserError, match=expected) if expected else nullcontext():
            list(rrf.read_rrf(tmp_path, "MRCONSO", lambda rows: None, counter))
    assert skipped == ({} if n_good == 3 else {"MRCONSO.RRF": 4})


def test_a_row_with_two_faults_counts_once(tmp_path):
    folder, skipped = write(tmp_path, [], [rel("C1", "PAR", "C2"), rel("C0000001", "PAR", "C0000002")], []), Counter()
    blocks = rrf.read_rrf(folder, "MRREL", lambda rows: (rows.parse_cui("CUI1"), rows.parse_cui("CUI2")), skipped)
    assert len(list(blocks)) == 1 and skipped == {"MRREL.RRF": 1}


RELATED = [rel("C0000001", "PAR", "C0000002"), rel("C0000002", "CHD", "C0000001")]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["MRCONSO", "MRREL", "MRSTY", "MRRANK"])
def test_a_file_that_was_cut_at_the_end_of_a_row(tmp_path, capsys, name, form):
    """MRFILES.RRF states the rows of each file, whatever form the file has now."""
    folder = write(tmp_path, BASE, RELATED, TYPES, ["0001|SYN|PT|N|\n", "0002|SYN|SY|N|\n"])
    path, skipped = folder / f"{name}.RRF", Counter()
    whole, n_rows = path.read_bytes(), path.read_bytes().count(b"\n")
    state_rows(folder)
    form(path, whole)
    assert sum(rrf.read_rrf(folder, name, lambda rows: len(rows.start))) == n_rows
    path.touch()
    form(path, whole[: whole[:-1].rindex(b"\n") + 1])
    message = f"{name}.RRF.*: {n_rows - 1} rows, and MRFILES.RRF beside it states {n_rows}"
    with pytest.raises(UserError, match=f"{message}: copy the file again; .* remove MRFILES.RRF"):
        list(rrf.read_rrf(folder, name, lambda rows: None))
    assert capsys.readouterr().err == ""
    assert sum(rrf.read_rrf(folder, name, lambda rows: len(rows.start), skipped)) == n_rows - 1
    assert skipped == {f"{name}.RRF": 1} and re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["MRCONSO", "MRREL", "MRSTY", "MRRANK"])
def test_no_build_of_a_file_that_was_cut(tmp_path, name):
    """Without MRFILES.RRF nobody can know, and the graph is that of --skip_bad_rows."""
    folder = write(tmp_path, BASE, RELATED, TYPES, ["0001|SYN|PT|N|\n", "0002|SYN|SY|N|\n"])
    state_rows(folder)
    damage(folder, name, lambda lines: b"\n".join([*lines[:-2], b""]), meta="")
    with pytest.raises(UserError, match=f"{name}.RRF: . rows, and MRFILES.RRF beside it states ."):
        graph_of(folder)
    left = graph_of(folder, skip_bad_rows=True)
    (folder / "MRFILES.RRF").unlink()
    assert same(graph_of(folder), left)


def test_ids_of_a_file_that_was_cut(tmp_path):
    folder = write(tmp_path, [conso("C0000001", "x", sab="MSH"), *BASE], [], [])
    state_rows(folder)
    assert read_codes(folder, ["MSH"]) == [("MSH", "X", "C0000001")]
    damage(folder, "MRCONSO", lambda lines: b"\n".join(lines[:2]), meta="")
    with pytest.raises(UserError, match="MRCONSO.RRF: 2 rows, and MRFILES.RRF beside it states 4"):
        read_codes(folder, ["MSH"])


@pytest.mark.parametrize("rows", ["2", "4", "many", "", "9" * 5000, "-1", "3|1|\nMRCONSO.RRF|t|c|18|8"])
def test_what_mrfiles_says_beside_that(tmp_path, capsys, rows):
    """More rows than are stated are said. A number that is none states nothing, nor does a file in another folder."""
    folder = write(tmp_path / "META", BASE, RELATED, TYPES).parent
    (tmp_path / "META" / "MRFILES.RRF").write_text(f"MRCONSO.RRF|title|CUI|18|{rows}|1|\n")
    if rows == "4":
        (tmp_path / "META" / "MRFILES.RRF").rename(tmp_path / "MRFILES.RRF")
    graph_of(folder)
    said = f"{folder}/META/MRCONSO.RRF: 3 rows, and MRFILES.RRF beside it states 2\n"
    assert capsys.readouterr().err == (said if rows == "2" else "")


@pytest.mark.parametrize("row, place", [
    (conso("C123", "x", lat="GER"), "MRCONSO.RRF, row 4, column CUI: 'C123'"),
    (conso("D0000001", "x", suppress="O"), "MRCONSO.RRF, row 4, column CUI: 'D0000001'"),
    (conso("", "x", sab="OTHER"), "MRCONSO.RRF, row 4, column CUI: ''"),
    (conso("C0000001", "x", lat="GER", aui="A1"), "MRCONSO.RRF, row 4, column AUI: 'A1'"),
    (conso("C0000001", "x", suppress="E", aui=""), "MRCONSO.RRF, row 4, column AUI: ''"),
    (conso("C0000009", "x", aui="A123456789"), "MRCONSO.RRF, row 4, column AUI: 'A123456789'"),
    (rel("C0000001", "RO", "C000001"), "MRREL.RRF, row 3, column CUI2: 'C000001'"),
    (rel("X0000001", "PAR", "C0000001", suppress="Y"), "MRREL.RRF, row 3, column CUI1: 'X0000001'"),
    (types(("C0000001", "TX47|B2|x"))[0], "MRSTY.RRF, row 4, column TUI: 'TX47'"),
])  # fmt: skip
def test_identifiers_are_checked_in_rows_that_are_not_used_too(tmp_path, row, place):
    """A row of another language, source or relation, suppressed, or of a concept that is not kept."""
    file = place.split(".")[0]
    more = {name: [row] if name == file else [] for name in ("MRCONSO", "MRREL", "MRSTY")}
    folder = write(tmp_path, BASE + more["MRCONSO"], RELATED + more["MRREL"], TYPES + more["MRSTY"])
    with pytest.raises(UserError, match=place):
        graph_of(folder)
    if "CUI: " in place:
        with pytest.raises(UserError, match=place):
            read_codes(folder, ["SYN"])


# ---------------------------------------------------------------- rows that are left out


def test_malformed_rows_can_be_left_out(release, tmp_path, capsys):
    """The graph is then that of a release without these rows; they are counted and the first five shown."""
    wrong = {
        "MRCONSO": [
            b"C0000001|ENG",
            b"\xe9" * 30,
            b"C12|ENG|P|L|PF|S|Y|A0000001||||S|T|X|t|0|N||",
            b"|ENG|P|L|PF|S|Y|A0000001||||S|T|X|t|0|N||",
        ],
        "MRSTY": [b"C0000001|T047|B|x|y||z", b"X0000001|T047|B|x|y||", b"C0000001|DISO|B|x|y||", b"|" * 7],
        "MRREL": [b"C0000001||CUI|PAR|D0000001||CUI||R1||S|S|||N||"] * 9,
    }

    def damaged(path, whole):
        lines = whole.split(b"\n")
        for k, row in enumerate(wrong.get(path.stem, [])):
            lines.insert(40 * (k + 1), row)
        path.write_bytes(b"\n".join(lines))

    folder = rewrite(tmp_path, release, damaged)
    for name in ("MRSTY", "MRCONSO", "MRREL"):
        with pytest.raises(UserError, match=rf"{name}.RRF, row 41.*\(--skip_bad_rows leaves such rows out\)"):
            graph_of(folder)
        shutil.copy(folder / "META" / f"{name}.RRF", tmp_path / name)
        shutil.copy(release / "META" / f"{name}.RRF", folder / "META")
    for name in ("MRSTY", "MRCONSO", "MRREL"):
        shutil.copy(tmp_path / name, folder / "META" / f"{name}.RRF")
    assert same(graph_of(folder, skip_bad_rows=True), graph_of(release))
    message = capsys.readouterr().err
    assert message.count("MRSTY.RRF, row") == 4 and message.count("MRREL.RRF, row") == 5 and "row 41" in message
    out = build(folder, tmp_path / "en", skip_bad_rows=True, e3c="none", text=str(write_texts(tmp_path)))
    kept = {"MRCONSO.RRF": 4, "MRSTY.RRF": 4, "MRREL.RRF": 9}
    for _ in range(2):  # also where the tables are those of the build before
        assert json.loads((out / "manifest.json").read_text())["malformed_rows_left_out"] == kept
        build(folder, out, skip_bad_rows=True, e3c="none", text=str(write_texts(tmp_path)))


def test_concepts_of_the_nci_metathesaurus_are_left_out(release, tmp_path, capsys):
    """CL and digits is another numbering: such rows are no error, in any file and column, and counted once each."""
    rows = {
        "MRCONSO": [conso(cui, "x", lat="ENG") for cui in ("CL105989", "CL1", "CL12345678")],
        "MRSTY": types(("CL105989", DISO), ("CL000001", ANAT)),
        "MRREL": [rel("CL105989", "PAR", "CL105990"), rel("CL105989", "RO", "C0000001")],
    }
    rows["MRREL"] += [rel("C0000001", "PAR", "CL105989"), rel("CL105989", "PAR", "C0000001")]

    def more(path, whole):
        lines = "".join(rows.get(path.stem, [])).encode()
        cut = whole.index(b"\n") + 1
        path.write_bytes(whole[:cut] + lines + whole[cut:])

    folder = rewrite(tmp_path, release, more)
    assert same(graph_of(folder), graph_of(release))
    kept = {"MRCONSO.RRF": 3, "MRSTY.RRF": 2, "MRREL.RRF": 4}
    for _ in range(2):  # also where the tables are those of the build before
        out = build(folder, tmp_path / "en", e3c="none", text=str(write_texts(tmp_path)))
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["nci_rows_left_out"], manifest["malformed_rows_left_out"]) == (kept, {})
        message = capsys.readouterr().out
        for line in ("rows of NCI Metathesaurus concepts (CL...) left out: MRSTY.RRF 2, MRCONSO.RRF 3, MRREL.RRF 4",
                     "MRREL.RRF: 4 rows left out, of concepts"):  # fmt: skip
            assert line in message
    for cui in ("CL", "CLX", "CL123456789", "CL12 ", "XL105989"):
        rows = [rel("CL105989", "PAR", cui)]
        with pytest.raises(UserError, match=f"MRREL.RRF, row 1, column CUI2: '{cui}' is not C and 7 digits"):
            graph_of(write(tmp_path / "bad", BASE, rows, TYPES))
