"""Builds the parts of HTML pages: safe text, tables, word diffs, and the style sheet.

The report, the data card and the page of Sim-RL's completions use it. It does not know what the values are. Colours come
from the style sheet, so that they follow light, dark and print. svg_charts.py draws the charts.
"""

import difflib
import html
import re

SERIES_COLOURS = 5  # the colours c0 to c4 in STYLE
_MAX_TEXT_CHARACTERS = 4000  # shown of one model text; this also bounds the time that a diff takes
# C0 and C1 controls, text direction, lone surrogates, noncharacters: shown by number, never passed on
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def escape_html(value: object) -> str:
    """`value` as HTML text or attribute: escaped, and valid UTF-8 even if it holds lone surrogates."""
    return html.escape(visible(str(value)))


def escape_markdown(value: object) -> str:
    """`value` as literal text of one line of Markdown, also inside a table's cell."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(visible(" ".join(str(value).split())), quote=False))


def visible(raw: str) -> str:
    """`raw` with every character that could hide, reorder or break text spelled out, as in <U+202E>."""
    return _UNSAFE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", raw)


def table(caption: str, head: str, body: str, *, label: str) -> str:
    """A table that scrolls sideways inside its own box; `head` and `body` are HTML, `caption` and `label` are text."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape_html(label)}" tabindex="0"><table>'
        f"<caption>{escape_html(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def swatch(colour: int) -> str:
    """The small square that ties a name to its colour in the charts."""
    return f'<i class="key c{colour % SERIES_COLOURS}"></i>'


def legend(names: list[str]) -> str:
    """Names with their colours, in the order of the series."""
    items = "".join(f"<span>{swatch(i)}{escape_html(name)}</span>" for i, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def truncate(raw: str) -> str:
    """`raw`; if it is too long to show, its end is replaced by the number of missing characters."""
    missing = len(raw) - _MAX_TEXT_CHARACTERS
    return raw if missing <= 0 else f"{raw[:_MAX_TEXT_CHARACTERS]} … ({missing:,} more characters)"


def word_diff(expected: str, predicted: str) -> tuple[str, str]:
    """Both texts as HTML blocks, the words that only one of them has in a <mark>."""
    expected_words, predicted_words = (re.findall(r"\w+|\s+|[^\w\s]", visible(raw)) for raw in (expected, predicted))
    same = difflib.SequenceMatcher(None, expected_words, predicted_words).get_matching_blocks()
    left = _marked(expected_words, [(block.a, block.size) for block in same], "missing")
    right = _marked(predicted_words, [(block.b, block.size) for block in same], "extra")
    return _block(left), _block(right)


def _marked(words: list[str], same: list[tuple[int, int]], tone: str) -> str:
    """The words as HTML, those outside the `same` stretches (start, length) marked."""
    body, at = "", 0
    for start, length in same:
        changed = "".join(words[at:start])
        body += f'<mark class="{tone}">{escape_html(changed)}</mark>' if changed.strip() else escape_html(changed)
        body += escape_html("".join(words[start : start + length]))
        at = start + length
    return body


def _block(body: str) -> str:
    return f"<pre>{body}</pre>" if body else '<p class="none">nothing</p>'


STYLE = """
:root{--bg:#fcfbf9;--paper:#fff;--ink:#1f2328;--muted:#5f6771;--rule:#e4e1db;--good:#1a7048;--bad:#b3341f;
--s0:#737b88;--s1:#2f6fb3;--s2:#c25a17;--s3:#7a5aa8;--s4:#3b8a80;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14171b;--paper:#1a1e23;--ink:#e4e7ea;--muted:#9aa3ae;
--rule:#2d333b;--good:#63c393;--bad:#f0806c;--s0:#9aa4b1;--s1:#6cabea;--s2:#f0935a;--s3:#b79be0;--s4:#6cc3b8}}
.c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}.c4{--c:var(--s4)}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem clamp(1rem,4vw,3rem) 4rem;max-width:74rem;background:var(--bg);color:var(--ink);
font:1rem/1.55 var(--sans);font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
h1{margin:.1em 0 .35em;font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.15;letter-spacing:-.02em;text-wrap:balance;
overflow-wrap:anywhere}
h2{margin:0 0 1rem;font-size:1.25rem;letter-spacing:-.01em}
h3{margin:1.5rem 0 .5rem;font-size:.95rem;overflow-wrap:anywhere}
section{margin-top:2.25rem;padding-top:1.5rem;border-top:1px solid var(--rule)}
.eyebrow,.note,figcaption,caption,small,nav,.legend{color:var(--muted);font-size:.83rem}
.eyebrow,.note{margin:0;overflow-wrap:anywhere}
.lede{margin:0;overflow-wrap:anywhere;max-width:46rem;font-size:1.1rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1.25rem}
a{color:inherit;text-underline-offset:.2em;text-decoration-color:var(--rule)}a:hover{text-decoration-color:currentColor}
:focus-visible{outline:2px solid var(--s1);outline-offset:2px}
details{margin-top:.75rem}summary{cursor:pointer;color:var(--muted);font-size:.83rem}details .grid{margin-top:1rem}
.note+.cards,.note+.grid{margin-top:1rem}.grid+.scroll{margin-top:1.5rem}
.cards,.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,15.5rem),1fr))}
.grid{gap:1.5rem 2rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}.grid.wide svg{max-width:34rem}
.card{padding:1rem 1.15rem 1.05rem;background:var(--paper);border:1px solid var(--rule);border-radius:.5rem}
.card h3{margin:0;font-weight:500}.card svg{margin-top:.9rem}
.big{margin:.05em 0 .1em;font-size:2.1rem;font-weight:600;line-height:1.2;letter-spacing:-.03em}
figure{margin:0;min-width:0}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;margin-bottom:.35rem}
figcaption b,caption b{color:var(--ink);font-weight:600}
.solo{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1rem 2.5rem}.solo svg{flex:1 1 21rem;max-width:31rem}
.solo figcaption{flex:1 1 14rem;max-width:24rem;margin:0;font-size:.9rem}
svg{display:block;width:100%;height:auto;font:12px var(--sans);fill:var(--ink);overflow:visible}
svg .small{font-size:11px;fill:var(--muted)}svg .end{text-anchor:end}svg .middle{text-anchor:middle}
svg .rule{fill:none;stroke:var(--rule)}svg .axis{stroke:var(--muted);stroke-width:.8}
svg .line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}svg .c0 .line{stroke-dasharray:5 3}
svg .whisker{stroke:var(--c);stroke-width:2.5;stroke-linecap:round;opacity:.55}
svg .error{stroke:var(--ink);stroke-width:1.5;opacity:.6}
svg .dot,svg .bar,svg .series{fill:var(--c)}svg .series{font-weight:600}svg .band{fill:var(--c);opacity:.13}
.key{display:inline-block;width:.7em;height:.7em;margin-right:.45em;border-radius:2px;background:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:0 0 1rem}
.scroll{overflow-x:auto;position:relative}.scroll+.scroll{margin-top:1.75rem}
table{width:100%;border-collapse:collapse;font-size:.92rem}
caption{padding-bottom:.6rem;text-align:left}
th,td{padding:.5rem .6rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule)}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:500;font-size:.83rem;white-space:nowrap}
td{white-space:nowrap}td small{display:block}
tbody th,.left{text-align:left;font-weight:500;white-space:normal}
code,pre{font:.82rem/1.5 var(--mono)}code{overflow-wrap:anywhere}
.good{color:var(--good)}.bad{color:var(--bad)}.muted{color:var(--muted)}
.confusion td{width:34%}.confusion :is(td,th):nth-child(n+2){padding:.5rem .7rem}
.right,.wrong{background:color-mix(in srgb,var(--t) calc(var(--share)*.3),transparent)}
.right{--t:var(--good)}.wrong{--t:var(--bad)}
.failure{margin-top:1rem;padding:1rem 1.15rem;background:var(--paper);border:1px solid var(--rule);border-radius:.5rem}
blockquote{margin:.4rem 0 .2rem;white-space:pre-wrap;overflow-wrap:anywhere}
.pair{display:grid;gap:.25rem 1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.pair h3{margin:.6rem 0 .25rem;color:var(--muted);font-size:.83rem;font-weight:500}
pre{margin:0;padding:.65rem .8rem;background:var(--bg);border-radius:.35rem;white-space:pre-wrap;overflow-wrap:anywhere}
mark{color:inherit;border-radius:2px;background:color-mix(in srgb,var(--t) 18%,transparent);
text-decoration:underline;text-decoration-color:var(--t);text-underline-offset:.22em}
.missing{--t:var(--good)}.extra{--t:var(--bad);text-decoration-style:wavy}
.none{margin:0;padding:.65rem 0;color:var(--muted);font-size:.83rem;font-style:italic}
@media (max-width:30rem){body{padding-top:1.5rem}th,td{padding:.45rem .4rem}table{font-size:.86rem}
td small{white-space:normal}}
@media print{body{max-width:none;padding:0;font-size:9.5pt;background:none}nav{display:none}.scroll{overflow:visible}
.cards{grid-template-columns:1fr 1fr}.grid{grid-template-columns:repeat(3,1fr)}
.grid.wide,.pair{grid-template-columns:1fr 1fr}.solo svg{flex-basis:18rem}
.card,figure,tr,.failure,.confusion{break-inside:avoid}
h2,h3,caption,thead,.legend,.note{break-after:avoid}tbody tr:first-child{break-before:avoid}
.card,.failure,pre,mark,.key,td{print-color-adjust:exact;-webkit-print-color-adjust:exact}@page{margin:16mm}}
"""
