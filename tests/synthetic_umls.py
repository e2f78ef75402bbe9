"""A synthetic release in the layout of the UMLS, with E3C-like documents and an IOB corpus.

    python tests/synthetic_umls.py demo/sample --concepts 3000 --documents 600
      -> META/{MRCONSO,MRREL,MRSTY,MRRANK}.RRF, E3C/data_collection/..., ner/{en,fr,es}/{train,test}.txt
    python tests/synthetic_umls.py FOLDER --full 1
      -> a release with as many rows as 2022AB (3.3 GB, under a minute), to measure on

Nothing of it is medicine. Terms are composed of site x process x qualifier, and everything follows from
the composition: a qualified disorder is a child of the plain one, a part of an organ is narrower than the
organ, a disorder may be qualified as its process allows. So the four tasks can be learnt from the strings,
also for pairs never seen, and the documents speak of the same terms. The warts of real releases are there:
quotes, accents, suppressed rows, other relations and sources, several types per concept, missing rows.
Any number of concepts, written as they are made; the same arguments give the same bytes.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LANGS = {"en": ("ENG", "English"), "fr": ("FRE", "French"), "es": ("SPA", "Spanish")}

# (en, fr, es), each a noun and the same noun after "of"
SITES = [
    tuple(tuple(form.split("/")) for form in row.split(", "))
    for row in """liver/of the liver, foie/du foie, hígado/del hígado
kidney/of the kidney, rein/du rein, riñón/del riñón
lung/of the lung, poumon/du poumon, pulmón/del pulmón
heart/of the heart, cœur/du cœur, corazón/del corazón
stomach/of the stomach, estomac/de l'estomac, estómago/del estómago
brain/of the brain, cerveau/du cerveau, cerebro/del cerebro
bladder/of the bladder, vessie/de la vessie, vejiga/de la vejiga
spleen/of the spleen, rate/de la rate, bazo/del bazo
pancreas/of the pancreas, pancréas/du pancréas, páncreas/del páncreas
skin/of the skin, peau/de la peau, piel/de la piel
thyroid/of the thyroid, thyroïde/de la thyroïde, tiroides/del tiroides
larynx/of the larynx, larynx/du larynx, laringe/de la laringe
esophagus/of the esophagus, œsophage/de l'œsophage, esófago/del esófago
colon/of the colon, côlon/du côlon, colon/del colon
prostate/of the prostate, prostate/de la prostate, próstata/de la próstata
uterus/of the uterus, utérus/de l'utérus, útero/del útero
ovary/of the ovary, ovaire/de l'ovaire, ovario/del ovario
retina/of the retina, rétine/de la rétine, retina/de la retina
tongue/of the tongue, langue/de la langue, lengua/de la lengua
knee/of the knee, genou/du genou, rodilla/de la rodilla
shoulder/of the shoulder, épaule/de l'épaule, hombro/del hombro
hip/of the hip, hanche/de la hanche, cadera/de la cadera
aorta/of the aorta, aorte/de l'aorte, aorta/de la aorta
trachea/of the trachea, trachée/de la trachée, tráquea/de la tráquea""".splitlines()
]
REGIONS = [
    tuple(tuple(form.split("/")) for form in row.split(", "))
    for row in """upper part/of the upper part, partie supérieure/de la partie supérieure, parte superior/de la parte superior
lower part/of the lower part, partie inférieure/de la partie inférieure, parte inferior/de la parte inferior
left side/of the left side, côté gauche/du côté gauche, lado izquierdo/del lado izquierdo
right side/of the right side, côté droit/du côté droit, lado derecho/del lado derecho
anterior wall/of the anterior wall, paroi antérieure/de la paroi antérieure, pared anterior/de la pared anterior
posterior wall/of the posterior wall, paroi postérieure/de la paroi postérieure, pared posterior/de la pared posterior""".splitlines()
]
# qualifier class -> qualifiers in (en, fr, es); fr and es follow the noun as "de forme ...", "de forma ..."
QUALIFIERS = {
    "course": [("acute", "aiguë", "aguda"), ("chronic", "chronique", "crónica"), ("recurrent", "récidivante", "recurrente")],
    "growth": [("benign", "bénigne", "benigna"), ("malignant", "maligne", "maligna"), ("metastatic", "métastatique", "metastásica")],
    "injury": [("traumatic", "traumatique", "traumática"), ("open", "ouverte", "abierta"), ("closed", "fermée", "cerrada")],
    "degree": [("mild", "légère", "leve"), ("moderate", "modérée", "moderada"), ("severe", "sévère", "grave")],
    "approach": [("laparoscopic", "cœlioscopique", "laparoscópica"), ("percutaneous", "percutanée", "percutánea"), ("robotic", "robotisée", "robótica")],
}  # fmt: skip
# process: semantic type, classes of qualifiers it allows, name and synonym in (en, fr, es)
PROCESSES = [
    (tui, allowed.split("+"), *(tuple(name.split("/")) for name in names.split(", ")))
    for tui, allowed, names in [
        ("T047", "course+degree", "inflammation/phlogosis, inflammation/phlogose, inflamación/flogosis"),
        ("T047", "course", "infection/sepsis, infection/infection septique, infección/sepsis"),
        ("T047", "course+degree", "ulcer/ulceration, ulcère/ulcération, úlcera/ulceración"),
        ("T047", "course", "abscess/purulent collection, abcès/collection purulente, absceso/colección purulenta"),
        ("T191", "growth", "tumor/neoplasm, tumeur/néoplasme, tumor/neoplasia"),
        ("T191", "growth", "cyst/cystic mass, kyste/masse kystique, quiste/masa quística"),
        ("T037", "injury", "laceration/tear, lacération/déchirure, laceración/desgarro"),
        ("T037", "injury+degree", "contusion/bruise, contusion/meurtrissure, contusión/magulladura"),
        ("T046", "degree", "atrophy/wasting, atrophie/amyotrophie, atrofia/atrofia marcada"),
        ("T046", "degree+course", "fibrosis/scarring, fibrose/sclérose, fibrosis/esclerosis"),
        ("T061", "approach", "resection/excision, résection/exérèse, resección/escisión"),
        ("T060", "approach", "biopsy/tissue sampling, biopsie/prélèvement, biopsia/toma de muestra"),
        ("T061", "approach", "drainage/evacuation, drainage/évacuation, drenaje/evacuación"),
    ]
]
STN = {
    "T047": ("B2.2.1.2.1", "Disease or Syndrome"), "T191": ("B2.2.1.2.1.2", "Neoplastic Process"),
    "T037": ("B2.3", "Injury or Poisoning"), "T046": ("B2.2.1.2", "Pathologic Function"),
    "T061": ("B1.3.1.3", "Therapeutic or Preventive Procedure"), "T060": ("B1.3.1.2", "Diagnostic Procedure"),
    "T023": ("A1.2.3.1", "Body Part, Organ, or Organ Component"), "T080": ("A2.1.4", "Qualitative Concept"),
    "T033": ("A2.2", "Finding"), "T083": ("A2.1.5.4", "Geographic Area"),
}  # fmt: skip
INVERSE = {
    "PAR": "CHD",
    "CHD": "PAR",
    "RB": "RN",
    "RN": "RB",
    "AQ": "QB",
    "QB": "AQ",
    "SY": "SY",
    "RO": "RO",
    "SIB": "SIB",
}


def sites():
    """Endless: (names, "of" forms, index of the whole or None), organs before their parts."""
    for site in SITES:
        yield [s[0] for s in site], [s[1] for s in site], None
    for n in itertools.count():
        regions = REGIONS[n] if n < len(REGIONS) else None
        for i, site in enumerate(SITES):
            k = n - len(REGIONS) + 1
            part = regions or (
                (f"segment {k}", f"of segment {k}"),
                (f"segment {k}", f"du segment {k}"),
                (f"segmento {k}", f"del segmento {k}"),
            )
            yield [f"{p[0]} {s[1]}" for p, s in zip(part, site)], [f"{p[1]} {s[1]}" for p, s in zip(part, site)], i


def concepts():
    """Endless (index, type, names per language, [(relation of THIS concept to another, its index)])."""
    number = itertools.count()
    qualifier, process, organ = {}, {}, []
    for group in QUALIFIERS.values():
        for q in group:
            qualifier[q] = next(number)
            yield qualifier[q], "T080", [[q[0]], [f"forme {q[1]}"], [f"forma {q[2]}"]], []
    for p in PROCESSES:
        process[p[2]] = next(number)
        yield process[p[2]], p[0], [list(names) for names in p[2:]], []
    for names, of, whole in sites():
        here = next(number)
        if whole is None:
            organ.append((here, {}))
        yield here, "T023", [[n] for n in names], [("RN", organ[whole][0])] if whole is not None else []
        for tui, allowed, *words in PROCESSES:
            plain = next(number)
            name = [[f"{w} {of[i]}" for w in words[i]] for i in range(3)]
            name[0].append(f"{names[0]} {words[0][0]}")
            links = [("CHD", process[words[0]])]
            if whole is None:
                organ[-1][1][words[0]] = plain
            else:
                links.append(("CHD", organ[whole][1][words[0]]))
            links += [("QB", qualifier[q]) for group in allowed for q in QUALIFIERS[group]]
            links.append(("RO", here))
            yield plain, tui, name, links
            for q in QUALIFIERS[allowed[0]]:
                qualified = [
                    [f"{q[0]} {n}" for n in name[0]],
                    [f"{n} de forme {q[1]}" for n in name[1]],
                    [f"{n} de forma {q[2]}" for n in name[2]],
                ]
                yield next(number), tui, qualified, [("CHD", plain)]


def write_release(folder, n, seed=0):
    """META/*.RRF with n concepts; returns [(type, names per language)] of the first 5,000 for the texts."""
    meta = Path(folder, "META")
    meta.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    files = {
        name: open(meta / f"{name}.RRF", "w", encoding="utf-8", newline="\n")
        for name in ("MRCONSO", "MRREL", "MRSTY", "MRRANK")
    }
    atoms, relations, types = itertools.count(1), itertools.count(1), itertools.count(1)
    kept = []

    def cui(i):
        return f"C{9_000_001 + i:07d}"

    def atom(c, lat, ts, stt, ispref, tty, text, suppress="N", sab="SYN"):
        a = next(atoms)
        code = f"D{c[1:]}"
        files["MRCONSO"].write(
            f"{c}|{lat}|{ts}|L{a:07d}|{stt}|S{a:07d}|{ispref}|A{a:08d}||{code}||{sab}|{tty}|{code}|{text}|0|{suppress}||\n"
        )

    def relate(c1, rel, c2, sab="SYN", suppress="N"):
        for a, r, b in ((c1, rel, c2), (c2, INVERSE[rel], c1)):
            files["MRREL"].write(f"{a}||CUI|{r}|{b}||CUI||R{next(relations):08d}||{sab}|{sab}|||{suppress}||\n")

    def semantic(c, tui):
        stn, name = STN[tui]
        files["MRSTY"].write(f"{c}|{tui}|{stn}|{name}|AT{next(types):08d}||\n")

    for i, tui, names, links in itertools.islice(concepts(), n):
        c = cui(i)
        wart = rng.random()
        for (lang, (lat, _)), strings in zip(LANGS.items(), names):
            if lang != "en" and i > 60 and rng.random() < 0.1:
                continue  # not every concept has a name in every language
            # one in 50: no atom is marked preferred, so that the fall-back order decides
            marked = rng.random() >= 0.02
            for k, text in enumerate(strings):
                ts, stt, ispref = ("P", "PF", "Y") if k == 0 and marked else ("S", "PF", "Y")
                atom(c, lat, ts, stt, ispref, "SY" if k else "PT", text)
            if wart < 0.03:
                atom(c, lat, "P", "PF", "N", "OP", f"{strings[0]} (obsolete)", suppress="O")
            if wart > 0.97:
                atom(c, lat, "S", "VO", "N", "SY", f'{strings[0]} "NOS"')
            if 0.5 < wart < 0.52:
                atom(c, lat, "S", "PF", "N", "AB", strings[0][:3].upper(), suppress="Y")
            if len(strings) > 1:
                relate(c, "SY", c)
        if not 0.70 < wart < 0.705:  # a few concepts have no semantic type at all
            semantic(c, tui)
        if 0.6 < wart < 0.63:
            semantic(c, "T033")
        for rel, other in links:
            # REL is the relation of the SECOND concept to the first
            relate(cui(other), rel, c)
            if wart < 0.2:
                relate(cui(other), rel, c, sab="DUP")
        if 0.3 < wart < 0.32:
            relate(c, "SIB", cui(max(0, i - 7)))
            relate(c, "PAR", cui(max(0, i - 9)), suppress="O")
            relate(c, "RB", f"C{8_000_000 + i:07d}")  # a concept that is in no other file
            files["MRREL"].write(f"{c}||CUI|RO|||CUI||R{next(relations):08d}||SYN|SYN|||N||\n")
        if len(kept) < 5000:
            kept.append((tui, names))
    country = f"C{7_000_000:07d}"  # a type that the configs do not keep
    atom(country, "ENG", "P", "PF", "Y", "PT", "France")
    semantic(country, "T083")
    for rank, (sab, tty) in enumerate(itertools.product(("DUP", "SYN"), ("OP", "AB", "SY", "PT")), 1):
        files["MRRANK"].write(f"{rank:04d}|{sab}|{tty}|N|\n")
    for f in files.values():
        f.close()
    return kept


SENTENCES = {
    "en": """The patient, a @ year old woman, was admitted with DISO.
Imaging of the ANAT showed DISO.
There was no sign of DISO or of DISO.
PROC was performed @ days later without complication.
The family history includes DISO.
Examination of the ANAT was normal.
PROC confirmed DISO, and treatment was started at once.
At @ months the patient had no complaint and went back to work.""",
    "fr": """La patiente, âgée de @ ans, a été admise pour DISO.
L'imagerie (ANAT) montrait DISO.
Il n'y avait pas de signe de DISO ni de DISO.
On a réalisé PROC après @ jours, sans complication.
Dans les antécédents familiaux on note DISO.
L'examen clinique (ANAT) était normal.
PROC a confirmé DISO, et le traitement a débuté aussitôt.
À @ mois la patiente allait bien et avait repris son travail.""",
    "es": """La paciente, de @ años, ingresó por DISO.
La imagen (ANAT) mostró DISO.
No había signos de DISO ni de DISO.
Se realizó PROC a los @ días, sin complicaciones.
Entre los antecedentes familiares consta DISO.
La exploración física (ANAT) fue normal.
PROC confirmó DISO y se inició el tratamiento enseguida.
A los @ meses la paciente estaba bien y volvió al trabajo.""",
}
GROUP = {"T047": "DISO", "T191": "DISO", "T037": "DISO", "T046": "DISO", "T061": "PROC", "T060": "PROC", "T023": "ANAT"}


def sentence(rng, lang, names):
    """One sentence as [(word, tag)], its terms drawn from names {group: [strings]}."""
    out = []
    for piece in rng.choice(SENTENCES[lang].splitlines()).replace("@", str(rng.randint(2, 90))).split():
        word = piece.strip("(),.")
        before, after = piece.split(word, 1) if word else (piece, "")
        out += [(c, "O") for c in before]
        if word in names:
            words = rng.choice(names[word]).replace("'", "' ").split()
            out += [(w, ("I-" if k else "B-") + word) for k, w in enumerate(words)]
        else:
            out.append((word, "O"))
        out += [(c, "O") for c in after]
    return out


def text_of(tokens):
    text = " ".join(word for word, _ in tokens).replace("' ", "'").replace("( ", "(")
    for mark in ".,)":
        text = text.replace(f" {mark}", mark)
    return text


def names_of(terms, lang, organs=SITES, synonyms=True):
    """{group: [names]} of the terms that speak of one of the organs."""
    column, names = list(LANGS).index(lang), {}
    words = tuple(form for site in organs for form in site[column])
    for tui, strings in terms:
        if tui in GROUP and strings[column][0].endswith(words) or any(f"{w} " in strings[column][0] for w in words):
            names.setdefault(GROUP[tui], []).extend(strings[column] if synonyms else strings[column][:1])
    return names


def write_documents(folder, terms, n, seed=1):
    """E3C/data_collection/<Language>/layer3/*.json: n documents per language, and a few odd files."""
    for lang, (_, name) in LANGS.items():
        rng = random.Random(f"{seed} {lang}")
        place = Path(folder, "E3C", "data_collection", name, "layer3")
        place.mkdir(parents=True, exist_ok=True)
        names = names_of(terms, lang)
        for i in range(n):
            text = " ".join(text_of(sentence(rng, lang, names)) for _ in range(rng.randint(3, 12)))
            file = place / f"{lang.upper()}{100_000 + i}.json"
            file.write_text(
                json.dumps({"id": file.stem, "language": lang, "text": text}, ensure_ascii=False), encoding="utf-8"
            )
            if i % 40 == 0:  # twins under another prefix, as in the French part of E3C
                file.with_name(f"XX{100_000 + i}.json").write_text(json.dumps({"text": text}), encoding="utf-8-sig")
        (place / "ZZ1.json").write_text('{"id": "ZZ1"}', encoding="utf-8")
        (place / "ZZ2.json").write_text("not json", encoding="utf-8")
        (place / "ZZ3.json").write_text('{"text": " \\ud83d "}', encoding="utf-8")  # half a character
        (place / "ZZ4.json").write_text("[" * 100_000, encoding="utf-8")


def write_corpus(folder, terms, n_train, n_test, seed=2):
    """ner/<lang>/{train,test}.txt in E3C's IOB layout. The test part speaks of other organs than the
    training part and uses synonyms too, so that who has read about them before has the better of it.
    ner/<lang>.txt has the sentences of the test part as they would be in a text, one a line."""
    for lang in LANGS:
        rng = random.Random(f"{seed} {lang}")
        place = Path(folder, "ner", lang)
        place.mkdir(parents=True, exist_ok=True)
        for part, n, organs in (("train", n_train, SITES[::2]), ("test", n_test, SITES[1::2])):
            names = names_of(terms, lang, organs, synonyms=part == "test")
            sentences = [sentence(rng, lang, names) for _ in range(n)]
            blocks = ["".join(f"{w} {t}\n" for w, t in tokens) for tokens in sentences]
            (place / f"{part}.txt").write_text("\n".join(blocks) + "\n", encoding="utf-8")
        place.with_name(f"{lang}.txt").write_text("\n".join(map(text_of, sentences)) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- a release as large as 2022AB

ROWS, CUIS, RELATIONS = 8_751_471, 3_711_072, 25_369_590  # appendix A.1 of the paper
TABLE_7 = {"ENG": (3_912_195, 2_245_468, 17_121_829), "FRE": (202_963, 171_060, 669_006), "SPA": (303_978, 118_061, 437_578)}  # fmt: skip
TYPES = "T047 T191 T033 T037 T046 T184 T109 T121 T116 T123 T061 T060 T059 T023 T028 T080".split()  # kept
LEFT_OUT = "T002 T015 T012 T083".split()
SOURCES = "SNOMEDCT_US MSH NCI LNC RXNORM ICD10CM MDR CHV OMIM FMA GO HPO MTH".split()


def write_full(folder, scale=1.0, seed=0, block=200_000):
    """META/*.RRF with the counts of 2022AB that the paper gives (times scale), and its 9,779 documents of
    English text. The names are random words of Zipf's frequencies, the degrees follow a power law; there is
    nothing to be learnt from it. Written block by block, so that memory does not grow with the scale. (Neighbours
    are of one semantic type, by the thousand: below a scale of 0.05 there are but few types.)
    """
    rng = np.random.default_rng(seed)
    meta = Path(folder, "META")
    meta.mkdir(parents=True, exist_ok=True)
    n_rows, n_cuis, n_relations = (round(scale * n) for n in (ROWS, CUIS, RELATIONS))
    sizes = {lat: [round(scale * n) for n in row] for lat, row in TABLE_7.items()}
    kept = sizes["ENG"][1]
    # Concepts with a French name are every 13th, with a Spanish one every 19th; all have an English one.
    stride = {lat: kept // size[1] for lat, size in sizes.items()}
    terms = {}  # names of each concept: one, and the rest dealt out by a skewed law
    for lat, (n_terms, n, _) in sizes.items():
        terms[lat] = np.zeros(n_cuis, np.int32)
        more = (rng.random(n_terms - n) ** 2 * n).astype(np.int64)
        terms[lat][np.arange(n) * stride[lat]] = 1 + np.bincount(more, minlength=n)
    terms["ENG"][kept:] = 1

    words = vocabulary(rng, 200_000)
    atom = row = 0  # counted on
    others = n_rows - sum(int(t.sum()) for t in terms.values())
    with open(meta / "MRCONSO.RRF", "wb") as conso, open(meta / "MRSTY.RRF", "wb") as types:
        for low in range(0, n_cuis, block):
            i = np.arange(low, min(low + block, n_cuis))
            of, lat, first = [], [], []
            for name, n in terms.items():
                of.append(np.repeat(i, n[i]))
                lat.append(np.full(len(of[-1]), name, object))
                first.append(np.diff(of[-1], prepend=-1) > 0)
            # What the build must leave out: other languages, suppressed rows, strings of another source.
            extra = others * int(i[-1] + 1) // n_cuis - others * low // n_cuis
            of.append(rng.choice(i, extra))
            kind = rng.choice(["POR", "GER", "ITA", "suppressed", "again"], extra, p=[0.3, 0.2, 0.1, 0.25, 0.15])
            lat.append(np.where(np.isin(kind, ["suppressed", "again"]), "ENG", kind).astype(object))
            first.append(np.zeros(extra, bool))
            suppress = np.concatenate([np.zeros(len(np.concatenate(of)) - extra, bool), kind == "suppressed"])
            of, lat, first = np.concatenate(of), np.concatenate(lat), np.concatenate(first)
            text = names(rng, words, len(of))
            english = np.flatnonzero(first & (lat == "ENG"))  # one a concept, in their order
            repeated = len(of) - extra + np.flatnonzero(kind == "again")
            which = np.arange(len(of))
            which[repeated] = english[of[repeated] - low]
            cui, number, atom = numbers("C", 2 * of, 7), atom + np.arange(len(of)), atom + len(of)
            source = pa.array(SOURCES).take(pa.array(rng.integers(0, len(SOURCES), len(of)) ** 2 // len(SOURCES)))
            order = np.argsort(of, kind="stable")
            columns = [
                cui, pa.array(lat), pa.array(np.where(first, "P", "S")), numbers("L", number, 8), pa.array(np.where(which % 3 == 1, "VO", "PF")),
                numbers("S", number, 8), pa.array(np.where(first, "Y", "N")), numbers("A", number, 8), "", numbers("", number, 7), "",
                source, pa.array(np.where(first, "PT", "SY")), numbers("", number, 7), text.take(pa.array(which)), "0",
                pa.array(np.where(suppress, "O", "N")), "",
            ]  # fmt: skip
            write_rows(conso, columns, order)
            tui = np.where(i < kept, np.array(TYPES)[type_of(i)], np.array(LEFT_OUT)[i % len(LEFT_OUT)])
            cui, number = numbers("C", 2 * i, 7), numbers("AT", i, 8)
            write_rows(
                types, [cui, pa.array(tui), pa.array(["A1.2.3." + t[1] for t in tui]), "a semantic type", number, ""]
            )
            write_rows(
                types,
                [cui, "T033", "A2.2.1.1.1.1", "Finding", number, ""],
                np.flatnonzero((i < kept) & (rng.random(len(i)) < 0.05)),
            )

    synonyms = np.flatnonzero((terms["ENG"] > 1) & (np.arange(n_cuis) % 2 == 0))
    pairs = {lat: (size[2] - int((terms[lat][synonyms] > 1).sum())) // 2 for lat, size in sizes.items()}
    pairs["ENG"] -= pairs["FRE"] + pairs["SPA"]
    rest = n_relations - 2 * sum(pairs.values()) - len(synonyms)
    blocks = -(-n_relations // (4 * block))
    with open(meta / "MRREL.RRF", "wb") as file:
        for b in range(blocks):
            h, t = [], []
            for lat, n in pairs.items():
                low, high = n * b // blocks, n * (b + 1) // blocks
                members, s = sizes[lat][1], stride[lat]
                a = np.arange(low, high) * members // n * s
                z = (rng.random(high - low) ** 3 * members).astype(np.int64) * s
                near = rng.random(len(z)) < 0.7  # most relations stay within a semantic type
                z = np.where(near, (z >> 16 << 16) + (type_of(a) << 12) + (z & 4095), z) % (members * s)
                z = z // s * s
                if lat == "ENG":  # not between two concepts of another language
                    z += (z % stride["FRE"] == 0) | (z % stride["SPA"] == 0)
                    z += (z % stride["FRE"] == 0) | (z % stride["SPA"] == 0)
                h.append(a)
                t.append(z % (members * s))
            h, t = np.concatenate(h), np.concatenate(t)
            # In which the four pairs of relations come by the pair, so that no pair has two of them
            r = rng.choice(4, len(h), p=[0.45, 0.3, 0.2, 0.05])
            own = synonyms[len(synonyms) * b // blocks : len(synonyms) * (b + 1) // blocks]
            n = len(h)
            cui1, cui2 = np.concatenate([h, t, own]), np.concatenate([t, h, own])
            there, back = np.array(["PAR", "RB", "AQ", "SY"])[r], np.array(["CHD", "RN", "QB", "SY"])[r]
            rel = np.concatenate([there, back, np.full(len(own), "SY")])
            # What the build must leave out: the same from another source, other relations, suppressed rows
            of = rng.integers(0, n, rest * (b + 1) // blocks - rest * b // blocks)
            kind = rng.choice(["again", "RO", "SIB", "O", "unkept"], len(of), p=[0.35, 0.3, 0.2, 0.07, 0.08])
            away = (cui2[of] + np.where(kind == "again", 0, 1 + of % 999)) % kept
            cui1 = np.concatenate([cui1, cui1[of]]) * 2
            cui2 = np.concatenate([cui2, np.where(kind == "unkept", kept + of % max(1, n_cuis - kept), away)]) * 2
            suppress = np.concatenate([np.full(len(rel), "N"), np.where(kind == "O", "O", "N")])
            rel = np.concatenate([rel, np.where((kind == "RO") | (kind == "SIB"), kind, rel[of])])
            number, row = row + np.arange(len(rel)), row + len(rel)
            source = pa.array(SOURCES).take(pa.array(number * 7919 % len(SOURCES)))
            order = np.argsort(cui1, kind="stable")
            columns = [
                numbers("C", cui1, 7), numbers("A", cui1 * 3, 8), "SCUI", pa.array(rel), numbers("C", cui2, 7), numbers("A", cui2 * 3, 8), "SCUI",
                "", numbers("R", number, 9), "", source, source, "", "", pa.array(suppress), "",
            ]  # fmt: skip
            write_rows(file, columns, order)
    ranks = [f"{k:04d}|{sab}|{tty}|N|\n" for k, (sab, tty) in enumerate(itertools.product(SOURCES, ("SY", "PT")), 1)]
    (meta / "MRRANK.RRF").write_text("".join(ranks))

    place = Path(folder, "E3C", "data_collection", "English", "layer3")
    place.mkdir(parents=True, exist_ok=True)
    for k, text in enumerate(names(rng, words, max(30, round(scale * 9779)), mean=5.1).to_pylist()):
        (place / f"EN{100_000 + k}.json").write_text(json.dumps({"text": text + "."}))


def type_of(i):
    return (i >> 12) % len(TYPES)


def vocabulary(rng, n):
    """n pseudo-words, the more frequent ones shorter; some with accents, digits, hyphens or brackets."""
    syllables = "ba be car cho dia der dys ec em fi gas hem hy in is ka lar leu li ma myo ne no o os pa phle pro re ro sis ta the ti tomy tri ul ur vas xy ó é è ñ 1 2 3-".split()  # fmt: skip
    words, few, more = {}, rng.integers(0, len(syllables), (3 * n, 6)).tolist(), rng.integers(0, 5, 3 * n).tolist()
    for pieces, length in zip(few, more):
        text = "".join(syllables[k] for k in pieces[: 2 + min(length, len(words) // 500)])
        words[text if length or len(words) < 500 else f"({text}),"] = None
    return pa.array(list(words)[:n])


def names(rng, words, n, mean=1.2):
    """n strings of one to sixty words (log-normal: mean 4.2); `mean` of the logarithm."""
    length = np.clip(np.exp(rng.normal(mean, 0.7, n)).round().astype(np.int32), 1, 60 if mean < 2 else 4000)
    word = (len(words) ** rng.random(length.sum())).astype(np.int64) - 1
    starts = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(starts, words.take(pa.array(word))), " ")


def numbers(prefix, n, width):
    """Arrow strings: prefix and a number of `width` digits."""
    chars = np.empty((len(n), len(prefix) + width), np.uint8)
    chars[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    for k in range(width):
        n, chars[:, chars.shape[1] - 1 - k] = n // 10, n % 10 + 48
    ends = np.arange(len(chars) + 1, dtype=np.int32) * chars.shape[1]
    return pa.StringArray.from_buffers(len(chars), pa.py_buffer(ends), pa.py_buffer(chars))


def write_rows(file, columns, order=None):
    """RRF rows from columns of strings (a plain string: the same in each row), in the given order."""
    rows = pc.binary_join_element_wise(*columns, "\n", "|")
    rows = rows if order is None else rows.take(pa.array(order))
    if len(rows):
        first, last = rows.offset, rows.offset + len(rows)
        ends = np.frombuffer(rows.buffers()[1], np.int32)
        file.write(memoryview(rows.buffers()[2])[ends[first] : ends[last]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--full", type=float, metavar="SCALE", help="instead: the counts of 2022AB times SCALE")
    parser.add_argument("--concepts", type=int, default=3000)
    parser.add_argument("--documents", type=int, default=600, help="per language")
    parser.add_argument(
        "--sentences", type=int, default=160, help="of the IOB corpus, training part; three times as many to test"
    )
    args = parser.parse_args()
    if args.full:
        write_full(args.folder, args.full)
        print(f"{args.folder}: {round(args.full * CUIS):,} concepts, {round(args.full * RELATIONS):,} relations")
    else:
        terms = write_release(args.folder, args.concepts)
        write_documents(args.folder, terms, args.documents)
        write_corpus(args.folder, terms, args.sentences, 3 * args.sentences)
        print(
            f"{args.folder}: {args.concepts:,} concepts, {args.documents:,} documents a language, "
            f"{4 * args.sentences:,} IOB sentences a language"
        )
