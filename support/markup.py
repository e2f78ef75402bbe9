"""XML of corpora, read with the standard library; entities that a file defines itself are refused."""

from xml.etree import ElementTree

from configs import UserError
from support.files import read_utf8


def parse_xml(path, form):
    """The root Element of a file (or .gz) of XML in UTF-8. form: what it should be, for messages. Raises: UserError."""
    text = read_utf8(path)
    if "<!ENTITY" in text:  # a few lines of them can expand to gigabytes
        raise UserError(f"{path}: it defines entities of XML, which {form} does not need; remove them")
    try:
        return ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as e:
        raise UserError(f"{path}: not {form}: {e}") from None
