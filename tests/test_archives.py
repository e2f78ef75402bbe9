"""A release as it was downloaded: each layout gives the graph of the plain folder, each damage one clear line."""

import gzip
import io
import json
import random
import struct
import zipfile
from contextlib import suppress

import pytest

import configs
from beyond import export
from configs import UserError
from support import archives, rrf
from support.archives import find_rrf
from support.cache import describe_source
from support.codes import read_codes
from tests.conftest import build, graph_of, run_command
from tests.small_releases import BASE, TYPES, conso, rel, same, write_texts

RELATED = [rel("C0000001", "PAR", "C0000002"), rel("C0000002", "CHD", "C0000001"), rel("C0000003", "AQ", "C0000001")]
ROWS = {
    "MRCONSO": [*BASE, conso("C0000001", "hépatite", ts="S", sab="MSH", aui="A0000007")],
    "MRREL": RELATED, "MRSTY": TYPES, "MRRANK": ["0001|SYN|PT|N|\n", "0002|MSH|PT|N|\n"],
}  # fmt: skip
FILES = {f"{name}.RRF": "".join(rows).encode() for name, rows in ROWS.items()}
FILES["MRFILES.RRF"] = "".join(f"{n}.RRF|t|c|18|{len(rows)}|1|\n" for n, rows in ROWS.items()).encode()
FILES["MRDOC.RRF"] = (
    b"RELEASE|umls.release.date|release_info|20251103|\nRELEASE|umls.release.name|release_info|2025AB|\n"
)
META = {f"2026AA/META/{name}": content for name, content in FILES.items()}
OTHERS = {  # names that must not matter
    "2026AA/README.txt": b"x", "2026AA/META/": b"", "2026AA/META/CHANGE/DELETEDCUI.RRF": b"C1|x|\n",
    "__MACOSX/2026AA/META/MRSTY.RRF": b"x", "2026AA/META/._MRSTY.RRF": b"x", "2026AA/META/MRXW_ENG.RRF.tmp": b"x",
}  # fmt: skip


def make_zip(path, members, method=zipfile.ZIP_DEFLATED):
    """A zip of {name: bytes}, or of pairs where a name stands twice."""
    with zipfile.ZipFile(path, "w", method) as z, suppress(UserWarning):
        for name, content in members.items() if isinstance(members, dict) else members:
            z.writestr(zipfile.ZipInfo(name), content, method)
    return path


def zip_bytes(members, method=zipfile.ZIP_DEFLATED):
    made = io.BytesIO()
    make_zip(made, members, method)
    return made.getvalue()


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def cut(files, end=".gz", n=3):
    """Files of RRF as parts, cut within rows."""
    change = gzip.compress if end else bytes
    return {
        f"{name}.a{'abc'[k]}{end}": change(content[k * len(content) // n : (k + 1) * len(content) // n])
        for name, content in files.items()
        for k in range(n)
    }


def nlm_files(folder="2021AA/META/"):
    """{name: bytes} of two .nlm files; the second one has MRREL."""
    parts = cut({folder + name: content for name, content in FILES.items() if name not in ("MRSTY.RRF", "MRFILES.RRF")})
    one = {name: content for name, content in parts.items() if "MRREL" not in name}
    one[f"{folder}MRSTY.RRF.gz"] = gzip.compress(FILES["MRSTY.RRF"])
    two = {name: content for name, content in parts.items() if "MRREL" in name}
    return {
        "2021aa-1-meta.nlm": zip_bytes(one),
        "2021aa-2-meta.nlm": zip_bytes(two),
        "mmsys.zip": zip_bytes({"a": b""}),
    }


class Pipe(io.RawIOBase):
    """A file that can only be written to, as `zip - x | cat > y` has it: sizes stand after the members."""

    def __init__(self, path):
        self.file = open(path, "wb")

    def writable(self):
        return True

    def write(self, content):
        return self.file.write(content)

    def close(self):
        self.file.close()
        super().close()


def zip_to_a_pipe(folder):
    with Pipe(folder / "x.zip") as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in META.items():
            z.writestr(name, content)
    return folder / "x.zip"


def zip64(folder):
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in META.items():
            with z.open(name, "w", force_zip64=True) as f:
                f.write(content)
    return folder / "x.zip"


def renamed(change):
    return {change(name): content for name, content in META.items()}


def without(files, *names):
    return {name: content for name, content in files.items() if not name.endswith(names)}


def renamed_nlm(folder):
    return {folder + name: content for name, content in nlm_files().items()}


def with_a_compressed_zip(folder):
    path = make_zip(folder / "2021AA-full.zip", without(renamed_nlm("2021AA-full/"), "mmsys.zip"), zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as z:
        z.writestr("2021AA-full/mmsys.zip", nlm_files()["mmsys.zip"] * 9)
    return path


UMLS_ZIP = "umls-2026AA-metathesaurus-full.zip"
LAYOUTS = {
    "folder": lambda d: write_files(d, FILES),
    "META": lambda d: write_files(d, renamed(lambda name: name[7:])),
    "folder with the release": lambda d: write_files(d, META | without(OTHERS, "/")),
    "zip": lambda d: make_zip(d / UMLS_ZIP, META | OTHERS),
    "zip in a folder": lambda d: make_zip(d / UMLS_ZIP, META).parent,
    "META beside a zip": lambda d: (
        make_zip(write_files(d, META) / "2026AA" / UMLS_ZIP, {"META/MRREL.RRF": b"x"}).parent
    ),
    "stored zip": lambda d: make_zip(d / UMLS_ZIP, META, zipfile.ZIP_STORED),
    "bzip2": lambda d: make_zip(d / "x.zip", META, zipfile.ZIP_BZIP2),
    "lzma": lambda d: make_zip(d / "x.ZIP", META, zipfile.ZIP_LZMA),
    "zip64": zip64,
    "zip to a pipe": zip_to_a_pipe,
    "NCI zip": lambda d: make_zip(d / "Metathesaurus.RRF.zip", renamed(lambda name: name[7:])),
    "files at the root of a zip": lambda d: make_zip(d / "x.zip", FILES),
    "backslashes": lambda d: make_zip(d / "x.zip", renamed(lambda name: name.replace("/", "\\"))),
    "absolute": lambda d: make_zip(d / "x.zip", renamed(lambda name: "/" + name)),
    "dots": lambda d: make_zip(d / "x.zip", renamed(lambda name: "../../" + name)),
    "lower case": lambda d: make_zip(d / "x.zip", renamed(str.lower)),
    "lower case on disk": lambda d: write_files(d, {name.lower(): content for name, content in FILES.items()}),
    "byte order mark": lambda d: make_zip(d / "x.zip", {n: b"\xef\xbb\xbf" + content for n, content in META.items()}),
    "byte order mark on disk": lambda d: write_files(d, {n: b"\xef\xbb\xbf" + x for n, x in FILES.items()}),
    "Windows": lambda d: make_zip(d / "x.zip", {n: x.replace(b"\n", b"\r\n") for n, x in META.items()}),
    "parts": lambda d: write_files(d, cut(FILES, "")),
    ".gz parts": lambda d: write_files(d, cut(FILES)),
    "parts after gunzip -k": lambda d: write_files(d, cut(FILES) | cut(FILES, "")),
    "parts in a zip": lambda d: make_zip(d / "x.zip", cut(META, "")),
    ".gz parts in a zip": lambda d: make_zip(d / "x.zip", cut(META)),
    ".gz in a zip": lambda d: make_zip(d / "x.zip", {f"{n}.gz": gzip.compress(x) for n, x in META.items()}),
    "folder of .nlm": lambda d: write_files(d, nlm_files()),
    ".nlm stored in a zip": lambda d: make_zip(d / "2021AA-full.zip", renamed_nlm("2021AA-full/"), zipfile.ZIP_STORED),
    "with another zip that is compressed": with_a_compressed_zip,
    "the same in a folder": lambda d: make_zip(d / "2021AA-full.zip", renamed_nlm(""), zipfile.ZIP_STORED).parent,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return graph_of(write_files(tmp_path_factory.mktemp("plain"), FILES))


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_gives_the_graph_of_the_plain_folder(tmp_path, plain, make, capsys):
    place = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert same(graph_of(place), plain) and capsys.readouterr().err == ""
    assert read_codes(place, ["MSH"]) == [("MSH", "X", "C0000001")]
    assert sorted(tmp_path.rglob("*")) == before


def test_parts_say_what_they_are(tmp_path):
    def sizes(place):
        return [(str(p), p.n_bytes, p.crc) for p in find_rrf(place, "MRSTY")]

    content = FILES["MRSTY.RRF"]
    place, crc = make_zip(tmp_path / "X.zip", META), zipfile.crc32(content)
    assert sizes(place) == [(f"{place}: 2026AA/META/MRSTY.RRF", len(content), crc)]
    outer = make_zip(tmp_path / "Y.zip", renamed_nlm("a/"), zipfile.ZIP_STORED)
    shown = f"{outer}: a/2021aa-1-meta.nlm: 2021AA/META/MRSTY.RRF.gz"
    assert [name for name, *_ in sizes(outer)] == [shown]
    folder = write_files(tmp_path / "z", FILES)
    assert sizes(folder) == [(f"{folder}/MRSTY.RRF", len(content), None)]


def test_the_data_set_of_a_folder_a_zip_and_nlm_files_is_the_same(release, tmp_path):
    files = {f"2022AB/META/{path.name}": path.read_bytes() for path in (release / "META").iterdir()}
    parts = cut(files)
    places = {
        "folder": (release, []),
        "zip": (make_zip(tmp_path / UMLS_ZIP, files), [UMLS_ZIP]),
        "nlm": (tmp_path / "nlm", ["1.nlm", "2.NLM"]),
    }
    (tmp_path / "nlm").mkdir()
    for name, which in (("1.nlm", False), ("2.NLM", True)):
        make_zip(tmp_path / "nlm" / name, {n: x for n, x in parts.items() if ("MRREL" in n) == which})
    text, built = str(write_texts(tmp_path)), {}
    for name, (place, shown) in places.items():
        out = build(place, tmp_path / name / "en", e3c="none", text=text)
        built[name] = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".arrow"}
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["release"], manifest["archives"]) == ("2022AB" if shown else "", shown)
        if name != "nlm":
            assert manifest["source_bytes"] == {path.rpartition("/")[2]: len(x) for path, x in files.items()}
    assert len(built["folder"]) == 2 and built["zip"] == built["folder"] == built["nlm"]


@pytest.mark.parametrize("rows, name", [
    (FILES["MRDOC.RRF"], "2025AB"),
    (b"RELEASE|umls.release.name|release_info|\x1b[31mX|\n", "[31mX"),
    (b"no such row\n", "2026AA"),
    (None, "2026AA"),
])  # fmt: skip
def test_the_name_of_a_release(tmp_path, rows, name):
    members = {n: x for n, x in META.items() if "MRDOC" not in n}
    place = make_zip(tmp_path / "x.zip", members | ({"2026AA/META/MRDOC.RRF": rows} if rows else {}))
    assert archives.describe_release(place) == {"release": name, "archives": ["x.zip"]}


def test_tables_are_read_again_if_a_member_changes(tmp_path):
    """The CRC tells, though size and time are those of the archive before."""
    sources = []
    for row in (RELATED[0], RELATED[0].replace("PAR", "CHD")):
        place = make_zip(tmp_path / "x.zip", META | {"2026AA/META/MRREL.RRF": row.encode()}, zipfile.ZIP_STORED)
        sources.append(describe_source(place, configs.Data(), tmp_path))
        sources[-1]["disk_files"] = None
    assert sources[0] != sources[1] == describe_source(place, configs.Data(), tmp_path) | {"disk_files": None}


def test_programs_take_a_zip(tmp_path, capsys, monkeypatch):
    """MRCONSO alone, as in umls-...-mrconso.zip, is enough for ids; the zip is no place for the output."""
    place = make_zip(tmp_path / "umls-2026AA-mrconso.zip", {"MRCONSO.RRF": FILES["MRCONSO.RRF"]})
    run_command(export, "ids", place, "--out", tmp_path / "ids.tsv")
    assert (tmp_path / "ids.tsv").read_text() == "id\tcui\nX\tC0000001\n"
    with pytest.raises(UserError, match="is the input"):
        run_command(export, "ids", place, "--out", place)
    with pytest.raises(UserError, match=r"mrconso.zip holds only MRCONSO: MRSTY, MRREL must be there too"):
        graph_of(place)


# ---------------------------------------------------------------- hostile archives


def set_in_directory(path, offset, form, value, name=b"META/MRSTY.RRF"):
    """Overwrites a field of a member's entry in the directory of a zip, and what stands for it in its local header."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name))
    struct.pack_into(form, content, entry + offset, value)
    if offset in (8, 10):  # flags, method
        local = struct.unpack_from("<I", content, entry + 42)[0]
        struct.pack_into(form, content, local + offset - 2, value)
    path.write_bytes(content)
    return path


def with_bytes(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


def flip(content, name=b"META/MRREL.RRF"):
    at = content.index(name) + len(name) + 20
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def release_zip(d, method=zipfile.ZIP_DEFLATED, **members):
    """The zip of META, with other content of some tables."""
    return make_zip(d / "x.zip", META | {f"2026AA/META/{n}.RRF": x for n, x in members.items()}, method)


MRSTY, MRREL = "x.zip: 2026AA/META/MRSTY.RRF", "x.zip: 2026AA/META/MRREL.RRF"
SIZE = len(FILES["MRSTY.RRF"])
INFLATES = "inflates to more than 100 times its size; this is no file of a release"
HOSTILE = {
    "not a zip": (lambda d: with_bytes(d / "x.zip", lambda _: b"no") if (d / "x.zip").touch() is None else 0,
                  "x.zip: this is not a zip, or its end is missing; give the folder or zip of a UMLS release"),
    "an empty file": (lambda d: [(d / "x.zip").touch(), d / "x.zip"][1], "x.zip: this is not a zip"),
    "an empty zip": (lambda d: make_zip(d / "x.zip", {}), "x.zip: no MRSTY.RRF in this zip; give the folder or zip"),
    "a zip of something else": (lambda d: make_zip(d / "x.zip", {"a.txt": b""}), "x.zip: no MRSTY.RRF in this zip"),
    "the same in a folder": (lambda d: make_zip(d / "x.zip", {"a.txt": b""}).parent, "MRSTY.RRF is neither in"),
    "a text": (lambda d: write_texts(d), "texts.txt: this is not a zip"),
    "a table": (lambda d: write_files(d, FILES) / "MRSTY.RRF", "MRSTY.RRF holds only MRSTY: MRCONSO, MRREL must be"),
    "cut": (lambda d: with_bytes(release_zip(d), lambda x: x[: len(x) * 2 // 3]), "this is not a zip, or its end is"),
    "cut at the front": (lambda d: with_bytes(release_zip(d), lambda x: x[500:]), "x.zip.* cannot be read"),
    "encrypted": (lambda d: set_in_directory(release_zip(d), 8, "<H", 1),
                  f"{MRSTY}: it is encrypted; unpack the archive with its password"),
    "strongly encrypted": (lambda d: set_in_directory(release_zip(d), 8, "<H", 0x41), "strong encryption"),
    "Deflate64": (lambda d: set_in_directory(release_zip(d), 10, "<H", 9),
                  rf"{MRSTY}: cannot be read \(.*compression.*\); unpack it with another program"),
    "a method that nobody knows": (lambda d: set_in_directory(release_zip(d), 10, "<H", 77), "compression"),
    "a flipped byte": (lambda d: with_bytes(release_zip(d), flip), f"{MRREL}: cannot be read .*; copy or download"),
    "a flipped byte, stored": (lambda d: with_bytes(release_zip(d, zipfile.ZIP_STORED), flip),
                               f"{MRREL}: cannot be read .*Bad CRC-32|{MRREL}, row 1"),
    "a size too small": (lambda d: set_in_directory(release_zip(d), 24, "<I", SIZE - 9), f"{MRSTY}.*(Bad CRC|row 3)"),
    "a size too large": (lambda d: set_in_directory(release_zip(d), 24, "<I", SIZE + 9),
                         f"{MRSTY}: {SIZE} bytes instead of the stated {SIZE + 9}; copy or download it again"),
    "zeros said to be more": (lambda d: set_in_directory(release_zip(d, MRSTY=bytes(1 << 21)), 20, "<I", 1 << 30),
                              f"{MRSTY} {INFLATES}"),
    "another CRC": (lambda d: set_in_directory(release_zip(d), 16, "<I", 5), f"{MRSTY}: cannot be read .*Bad CRC-32"),
    "a local header elsewhere": (lambda d: set_in_directory(release_zip(d), 42, "<I", 7), "x.zip.* cannot be read"),
    "an offset beyond the end": (lambda d: set_in_directory(release_zip(d), 42, "<I", 1 << 31), "cannot be read"),
    "a name that is not UTF-8": (lambda d: with_bytes(make_zip(d / "x.zip", META | {"é": b""}),
                                                      lambda x: x.replace("é".encode(), b"\xe9\xff")),
                                 r"x.zip: cannot be read \(.*utf-8.*; copy or download it again"),
    "zeros": (lambda d: release_zip(d, MRSTY=bytes(1 << 21)), f"{MRSTY} {INFLATES}"),
    "line ends": (lambda d: release_zip(d, MRCONSO=b"\n" * (1 << 21)), f"MRCONSO.RRF {INFLATES}"),
    "pipes": (lambda d: release_zip(d, MRREL=b"|\n" * (1 << 20)), f"{MRREL} {INFLATES}"),
    "pipes in a bzip2": (lambda d: release_zip(d, zipfile.ZIP_BZIP2, MRREL=b"|\n" * (1 << 20)), f"{MRREL} {INFLATES}"),
    "fewer pipes": (lambda d: release_zip(d, MRREL=b"|\n" * 20_000), f"{MRREL}, row 1: 1 columns .* not an RRF file"),
    "a .gz of zeros": (lambda d: write_files(d, without(FILES, "MRREL.RRF")
                                             | {"MRREL.RRF.gz": gzip.compress(bytes(1 << 22))}),
                       f"MRREL.RRF.gz {INFLATES}"),
    "a .gz of zeros in a zip": (lambda d: make_zip(d / "x.zip", without(META, "MRREL.RRF")
                                                   | {"2026AA/META/MRREL.RRF.gz": gzip.compress(bytes(1 << 22))}),
                                f"{MRREL}.gz {INFLATES}"),
    "a .gz that is packed twice": (lambda d: make_zip(d / "x.zip", without(META, "MRREL.RRF") | {
        "2026AA/META/MRREL.RRF.gz": gzip.compress(bytes(1 << 26), 1)}), f"{MRREL}.gz {INFLATES}"),
    "a .gz that was cut": (lambda d: make_zip(d / "x.zip", without(META, "MRREL.RRF") | {
        "2026AA/META/MRREL.RRF.gz": gzip.compress(FILES["MRREL.RRF"])[:-12]}), f"{MRREL}.gz: cannot be read"),
    "a .gz that is none": (lambda d: make_zip(d / "x.zip", without(META, "MRREL.RRF") | {
        "2026AA/META/MRREL.RRF.gz": b"C1|x|"}), rf"{MRREL}.gz: cannot be read \(Not a gzipped file"),
    "a member that is there twice": (lambda d: make_zip(d / "x.zip", [*META.items(), *list(META.items())[:1]]),
                                     r"MRCONSO.RRF is there twice \(.*MRCONSO.RRF\); remove one of them"),
    "one that differs in case": (lambda d: make_zip(d / "x.zip", META | {"2026AA/META/mrsty.rrf": b""}),
                                 "mrsty.rrf is there twice"),
    "two releases in a zip": (lambda d: make_zip(d / "x.zip", META | renamed(lambda n: n.replace("2026AA", "2025AB"))),
                              r"holds several releases \(.*x.zip: 2025AB; .*x.zip: 2026AA\); give one by its path"),
    "two zips in a folder": (lambda d: make_zip(make_zip(d / "2025AB.zip", META).parent / "2026AA.zip", META).parent,
                             r"holds several releases \(.*2025AB.zip: 2026AA; .*2026AA.zip: 2026AA\); give one by"),
    "two folders": (lambda d: write_files(d, META | renamed(lambda n: n.replace("2026AA", "2025AB"))),
                    r"holds several releases \(.*: 2025AB; .*: 2026AA\); give one by its path"),
    "two releases of .nlm": (lambda d: write_files(d, nlm_files()
                                                   | {f"x{n}": x for n, x in nlm_files("2020AB/META/").items()}),
                             r"holds several releases \(.*: 2020AB; .*: 2021AA\)"),
    "an .nlm file twice": (lambda d: write_files(d, nlm_files() | {"1 (1).nlm": nlm_files()["2021aa-1-meta.nlm"]}),
                           r"MRCONSO.RRF.aa.gz is there twice \(.*MRCONSO.RRF.aa.gz\)"),
    "one of two .nlm files": (lambda d: write_files(d, {"1.nlm": nlm_files()["2021aa-1-meta.nlm"]}),
                              "holds only MRCONSO, MRSTY: MRREL must be there too; umls-...-metathesaurus-full"),
    "compressed .nlm": (lambda d: make_zip(d / "2021AA-full.zip", nlm_files()),
                        "2021AA-full.zip: 2021aa-1-meta.nlm is compressed in it; unpack the outer zip"),
    "an .nlm that is none": (lambda d: make_zip(d / "2021AA-full.zip", {"1.nlm": b"x"}, zipfile.ZIP_STORED),
                             "2021AA-full.zip: 1.nlm: this is not a zip"),
    "an encrypted .nlm": (lambda d: set_in_directory(make_zip(d / "x.zip", nlm_files(), zipfile.ZIP_STORED),
                                                     8, "<H", 1, b"2021aa-1-meta.nlm"), "1-meta.nlm: it is encry"),
    "directories with the names of files": (lambda d: make_zip(d / "x.zip", {f"{n}/": b"" for n in META}),
                                            "x.zip: no MRSTY.RRF in this zip"),
    "a part missing in the middle": (lambda d: make_zip(d / "x.zip", without(cut(META), "MRREL.RRF.ab.gz")),
                                     "MRREL.RRF.aa.gz: part ab is missing, of aa ac; copy or download the parts"),
    "the first part missing": (lambda d: write_files(d, without(cut(FILES, ""), "MRREL.RRF.aa")), "part aa is missing"),
    "the last part missing": (lambda d: make_zip(d / "x.zip", without(cut(META), "MRREL.RRF.ac.gz")),
                              r"MRREL.RRF.aa.gz \(and the parts after it\): 2 rows, and MRFILES.RRF .* states 3"),
    "rows missing": (lambda d: release_zip(d, MRREL=RELATED[0].encode()), f"{MRREL}: 1 rows, and MRFILES.RRF .* 3"),
    "control characters": (lambda d: make_zip(d / "x.zip", {f"a\x1b[31m\u202e\n{'b' * 999}/{n}": b"x" for n in FILES}),
                           "x.zip: b+/MRSTY.RRF, row 1: 0 columns"),
    "RxNorm": (lambda d: make_zip(d / "x.zip", {"rrf/RXNCONSO.RRF": b"x", "prescribe/rrf/RXNCONSO.RRF": b"x"}),
               "x.zip is RxNorm, which has no CUIs; take a UMLS release, which has RXNORM among its sources"),
    "UTF-16": (lambda d: release_zip(d, MRSTY="\ufeff".encode("utf-16-le")), f"{MRSTY}: UTF-16"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives_end_in_one_line(tmp_path, monkeypatch, make, message):
    monkeypatch.setattr(archives, "MIN_LIMIT", 1 << 20)
    (tmp_path / "in").mkdir()
    place, text = make(tmp_path / "in"), str(write_texts(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    for option in (False, True) if "row" not in message and "rows" not in message else (False,):
        with pytest.raises(UserError, match=message) as error:
            build(place, tmp_path / "data" / "en", e3c="none", text=text, skip_bad_rows=option)
        assert str(error.value).isprintable() and len(str(error.value)) < 600
        assert sorted(tmp_path.rglob("*")) == before


def test_the_limit_of_what_inflates_is_exact(tmp_path, monkeypatch):
    """A member may inflate to 100 times its size or to MIN_LIMIT, whichever is more."""
    content = b"C0000001|T047|B|x|AT1||\n" * 4000
    place = release_zip(tmp_path, MRSTY=content)
    (part,) = find_rrf(place, "MRSTY")
    assert len(content) > 100 * part.n_packed  # so that MIN_LIMIT counts
    for limit, fails in ((len(content), False), (len(content) - 1, True)):
        monkeypatch.setattr(archives, "MIN_LIMIT", limit)
        if fails:
            with pytest.raises(UserError, match=INFLATES):
                find_rrf(place, "MRSTY")
        else:
            assert len(archives.read_whole(find_rrf(place, "MRSTY"))) == len(content)


def test_any_flipped_bytes_are_a_clear_line_or_change_nothing(tmp_path):
    """Of thousands of damaged archives, each gives the rows of the whole one or a UserError."""
    rng, tables = random.Random(0), list(rrf.COLUMNS)
    wholes = [
        release_zip(tmp_path).read_bytes(),
        make_zip(tmp_path / "y.zip", nlm_files(), zipfile.ZIP_STORED).read_bytes(),
        zip64(tmp_path).read_bytes(),
    ]
    refused, place = 0, tmp_path / "z.zip"

    def read():
        return [archives.read_whole(find_rrf(place, name)) for name in tables if find_rrf(place, name)]

    for n in range(600):
        content = bytearray(wholes[n % 3])
        start = rng.choice([0, max(0, len(content) - 900)])  # many in the directory, which is last
        for _ in range(rng.choice([1, 1, 4])):
            content[rng.randrange(start, len(content))] = rng.randrange(256)
        place.write_bytes(content[: rng.choice([len(content)] * 9 + [rng.randrange(len(content))])])
        try:
            found = read()
            # A table can be another or gone, and lack its last parts, as names have no CRC. Its bytes have one.
            assert all(any(whole.startswith(table) for whole in FILES.values()) for table in found)
        except UserError as e:
            refused += 1
            assert str(e).isprintable()
    assert 200 < refused < 600
