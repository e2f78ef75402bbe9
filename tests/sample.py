"""A synthetic release in the layout of the UMLS, with E3C-like documents and an IOB corpus.

    python tests/sample.py demo/sample --concepts 3000 --documents 600
      -> META/{MRCONSO,MRREL,MRSTY,MRRANK}.RRF, E3C/data_collection/..., ner/{en,fr,es}/{train,test}.txt

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


def write_corpus(folder, terms, n_train, n_test, seed=2):
    """ner/<lang>/{train,test}.txt in E3C's IOB layout. The test part speaks of other organs than the
    training part and uses synonyms too, so that who has read about them before has the better of it."""
    for lang in LANGS:
        rng = random.Random(f"{seed} {lang}")
        place = Path(folder, "ner", lang)
        place.mkdir(parents=True, exist_ok=True)
        for part, n, organs in (("train", n_train, SITES[::2]), ("test", n_test, SITES[1::2])):
            names = names_of(terms, lang, organs, synonyms=part == "test")
            blocks = ["".join(f"{w} {t}\n" for w, t in sentence(rng, lang, names)) for _ in range(n)]
            (place / f"{part}.txt").write_text("\n".join(blocks) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--concepts", type=int, default=3000)
    parser.add_argument("--documents", type=int, default=600, help="per language")
    parser.add_argument(
        "--sentences", type=int, default=160, help="of the IOB corpus, training part; three times as many to test"
    )
    args = parser.parse_args()
    terms = write_release(args.folder, args.concepts)
    write_documents(args.folder, terms, args.documents)
    write_corpus(args.folder, terms, args.sentences, 3 * args.sentences)
    print(
        f"{args.folder}: {args.concepts:,} concepts, {args.documents:,} documents a language, {4 * args.sentences:,} IOB sentences a language"
    )
