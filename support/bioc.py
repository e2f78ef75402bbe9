"""BioC, JSON or XML: a collection in one shape, that of JSON, and its Documents.

documents = load_collection("Train.BioC.XML")                [{"id": .., "passages": [..], "annotations": [..]}, ...]
"""

import json
from operator import index

from configs import UserError
from support.files import read_utf8
from support.labels import align_entities, is_same_text
from support.markup import parse_xml
from support.texts import replace_surrogates

MAX_CHARACTERS = 10**7  # of a document: a passage with a larger offset is an error


# ---------------------------------------------------------------- a file -> its documents


def load_collection(path):
    """The documents of a file (or .gz) of BioC, JSON or XML, as dicts in the shape of its JSON.

    A document is {id, passages, annotations}, a passage {offset, text, sentences, annotations}, a sentence the same,
    and an annotation {text, infons, locations: [{offset, length}]}. All of these keys are there. Text, ids and the
    values of infons are strings without halves of surrogate pairs.

    Raises: UserError for another file.
    """
    text = read_utf8(path)
    try:
        documents = xml_documents(path) if text.lstrip()[:1] == "<" else json.loads(text)["documents"]
        return [
            {
                "id": replace_surrogates(str(document.get("id", ""))),
                "passages": [clean_part(passage) for passage in document["passages"]],
                "annotations": clean_annotations(document),
            }
            for document in documents
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: not a collection of BioC ({type(e).__name__}: {e})") from None


def clean_part(part):
    """A passage or sentence of a file with all its keys."""
    sentences = [clean_part(sentence) for sentence in part.get("sentences") or ()]
    text = replace_surrogates(part.get("text") or "")
    return {"offset": part.get("offset"), "text": text, "sentences": sentences, "annotations": clean_annotations(part)}


def clean_annotations(part):
    """The annotations of a document, passage or sentence of a file, with all their keys."""
    return [
        {
            "text": replace_surrogates(a["text"]),
            "infons": {k: replace_surrogates(str(x)) for k, x in a.get("infons", {}).items() if type(x) in (str, int)},
            "locations": [{key: index(x[key]) for key in ("offset", "length")} for x in a.get("locations") or ()],
        }
        for a in part.get("annotations") or ()
    ]


def xml_documents(path):
    """The documents of a file of XML as JSON has them. Raises: UserError or ValueError for another form."""
    root = parse_xml(path, "a collection of BioC")
    if root.tag != "collection":
        raise ValueError(f"XML of <{root.tag}>")
    return [xml_node(document) for document in root.findall("document")]


def xml_node(element):
    """An element of XML and those in it as JSON has them; keys that it lacks are not there."""
    node = {key: element.findtext(key) for key in ("id", "text") if element.find(key) is not None}
    node["infons"] = {infon.get("key", ""): infon.text or "" for infon in element.findall("infon")}
    node["locations"] = [{key: int(x.get(key)) for key in ("offset", "length")} for x in element.findall("location")]
    if element.find("offset") is not None:
        node["offset"] = int(element.findtext("offset"))
    for name in ("passage", "sentence", "annotation"):
        node[f"{name}s"] = [xml_node(child) for child in element.findall(name)]
    return node


# ---------------------------------------------------------------- a document


def text_parts(document):
    """Yields the parts of a document that have its text: passages, or the sentences of a passage without text."""
    for passage in document["passages"]:
        yield from [passage] if passage["text"] else passage["sentences"] or [passage]


def document_text(document, where):
    """The text of a document, each part at its own offset. where: begins the message. Raises: UserError."""
    text = ""
    for part in text_parts(document):
        if type(part["offset"]) is not int or not 0 <= part["offset"] <= MAX_CHARACTERS:
            raise UserError(f"{where}: no passage can begin at {part['offset']}")
        text = text.ljust(part["offset"], "\n") + part["text"]
    return text


def all_annotations(document):
    """The annotations of a document, those of its passages, and those of their sentences."""
    sentences = [sentence for passage in document["passages"] for sentence in passage["sentences"]]
    return [a for part in (document, *document["passages"], *sentences) for a in part["annotations"]]


def annotated_texts(path):
    """Yields (id, text, [(annotation, its spans)]) of the documents of a file.

    Annotations are those of documents, passages and sentences. Raises: UserError if their words are not at their place.
    """
    for document in load_collection(path):
        where, found = f"{path}, document {document['id']}", []
        text = document_text(document, where)
        for a in all_annotations(document):
            spans = tuple((x["offset"], x["offset"] + x["length"]) for x in a["locations"])
            if not all(0 <= a <= b <= len(text) for a, b in spans):
                what = f"{a['text'][:40]!r} at {spans}"
                raise UserError(f"{where}: {what} is not within the text of {len(text):,} characters")
            if not is_same_text(words := " ".join(text[a:b] for a, b in spans), a["text"]):
                raise UserError(f"{where}: {spans} is {words[:40]!r}, not {a['text'][:40]!r}")
            found.append((a, spans))
        yield document["id"], text, found


def read_bioc(path, types, issues):
    """A file of BioC -> a list of Documents."""
    documents = []
    for name, text, annotations in annotated_texts(path):
        for a, _ in annotations:
            if not a["infons"].get("type"):
                raise UserError(f"{path}, document {name}: the annotation {a['text'][:40]!r} has no type")
        entities = [(a["infons"]["type"], spans) for a, spans in annotations]
        documents.append(align_entities(name, text, entities, types, issues))
    return documents
