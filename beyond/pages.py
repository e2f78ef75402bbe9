"""The web page of tagged texts: one file that needs no other, each entity highlighted in its text."""

import html
import os
from pathlib import Path

from support.labels import SCHEMES
from support.texts import replace_surrogates

PAGE = rb"(?s)<!DOCTYPE html>.{,200}<title>Entities</title>"  # how ours are recognised; see check_output
PAGE_CHARACTERS = 5_000_000  # text on a web page: browsers become slow with more

STYLE = """
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.9 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }
.legend { position: sticky; top: 0; max-height: 40vh; overflow: auto; padding: .6rem 0; background: #fff;
  border-bottom: 1px solid #ddd; display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; }
.legend label { padding: 0 .4rem; border-radius: .3rem; font-size: .9rem; overflow-wrap: anywhere; }
.legend input { margin: 0 .3rem 0 0; vertical-align: middle; }
.note, h2 { font-size: .8rem; color: #666; }
.note, .score { width: 100%; }
h2 { margin: 1.2rem 0 0; font-weight: normal; }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { padding: .15rem .3rem; border-radius: .3rem; color: inherit; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
mark small { margin-left: .35rem; font-size: .7rem; font-weight: 600; color: #444; user-select: none; }
mark.off { padding: 0; background: none; }
.off small, [hidden] { display: none; }
"""

SLIDER = """<label class="score" hidden><input type="range" min="0" max="1" step="0.01" value="0">
score <output></output></label>"""

# Without it the page shows all entities, and no controls.
SCRIPT = """
const marks = document.querySelectorAll("mark"), boxes = document.querySelectorAll("[type=checkbox]");
const slider = document.querySelector("[type=range]"), shown = document.querySelector("output");
function update() {
  const on = new Set([...boxes].filter(box => box.checked).map(box => box.value));
  let n = 0;
  for (const mark of marks) {
    const off = !on.has(mark.classList[0]) || mark.dataset.score < +slider.value;
    mark.classList.toggle("off", off);
    n += !off;
  }
  shown.value = `${(+slider.value).toFixed(2)} or more: ${n.toLocaleString("en")} shown`;
}
for (const control of document.querySelectorAll("[hidden]")) control.hidden = false;
document.querySelector(".legend").addEventListener("input", update);
update();
"""


def types_of(labels):
    """{type: its number} of a tagger's labels, B- and the like left out."""
    kinds = dict.fromkeys(label[2:] if label[:2] in SCHEMES else label for label in labels if label != "O")
    return {kind: i for i, kind in enumerate(kinds)}


def format_block(document, types):
    """A document as HTML, each entity in a <mark> with its type behind it and its score as a tooltip."""
    parts, end = [], 0
    for entity in document.entities:
        words, kind = html.escape(document.text[entity.start : entity.end]), html.escape(entity.type)
        parts.append(html.escape(document.text[end : entity.start]))
        attributes = f'class="t{types[entity.type]}" data-score="{entity.score}" title="{kind}, score {entity.score}"'
        parts.append(f"<mark {attributes}>{words}<small>{kind}</small></mark>")
        end = entity.end
    parts.append(html.escape(document.text[end:]))
    return f"<h2>{html.escape(str(document.id))}</h2>\n<p>{''.join(parts)}</p>\n"


def format_page(tally, types, model):
    """One page that needs no other file: a legend with counts, whose entries hide a type, then the documents.

    Args: types: as types_of gives them. model: the folder of the tagger.
    """
    # Hues a golden angle apart: neighbours differ, however many types there are.
    colours = "".join(f".t{i} {{ background: hsl({round(50 + 137.5 * i) % 360} 80% 86%); }}\n" for i in types.values())
    legend = "".join(
        f'<label class="t{i}"><input type="checkbox" value="t{i}" checked hidden>'
        f"{html.escape(kind)} {tally.entities[kind]:,}</label>\n"
        for kind, i in types.items()
        if tally.entities[kind]
    )
    n, n_entities = tally.n_documents, tally.entities.total()
    shown = f"the first {len(tally.page):,} of " if len(tally.page) < n else ""
    note = f"{shown}{n:,} documents, {n_entities:,} entities, tagged by {tagger_name(model)}"
    return (
        '<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>Entities</title>\n<style>{STYLE}{colours}</style>\n</head>\n<body>\n<h1>Entities</h1>\n"
        f'<div class="legend">\n<span class="note">{html.escape(note)}</span>\n{SLIDER}\n{legend}</div>\n'
        f"{''.join(tally.page)}<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def tagger_name(tagger):
    """The name of a tagger's folder to show; of RESULTS/model it is that of RESULTS and of the folder around it."""
    path = Path(os.path.abspath(tagger))
    return replace_surrogates("/".join(path.parts[-3:-1]) if path.name == "model" else path.name)
