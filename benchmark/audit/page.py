"""An audit as one HTML page: nothing beside it is needed, nothing outside is asked for, no script runs.

Whatever comes from the network, its files or its images is escaped; pictures are data URIs, and the content-security
policy allows these and the one style sheet, by its digest.
"""

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from benchmark.audit.findings import Audit

SHOWN = 6  # columns of pictures
WORDS = {
    "fooled": "can be fooled",
    "in part": "can be fooled in part",
    "moved": "was not fooled as the attack meant to, but its maps moved",
    "not fooled": "was not fooled",
    "not attacked": "was not attacked",
    "not attacked itself": "was attacked through others alone",
    "attack refused": "was not fooled, but an attack on it by gradient could not be made",
    "refused": "cannot explain this network",
    "says nothing": "cannot be told: chance alone counts as fooled",
}
WAYS = {"head_shift": "head shift", "gradient": "gradient", "gentle": "gradient, gentle", "": ""}
LEGEND = (
    "Head shift: one vector added to the weights of every class, which changes no probability; gradient: fine-tuning, "
    "gentle at a tenth of the rate. Location: maps go to the border; top_k: what was brightest goes dark; center_mass: "
    "the centre of the map moves away. By chance: how many maps of the honest network would count as fooled. Maps "
    "alike: the lowest rank correlation with the honest maps under any attack within the budget."
)
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --bad: #b3261e; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff9a92; --good: #7fd6a0; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h1, h3, p, li, figcaption { overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; } .note { opacity: .8; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.fooled, .part { color: var(--bad); font-weight: 600; } .kept { color: var(--good); font-weight: 600; }
.maps { display: grid; grid-template-columns: 7rem repeat(6, 1fr); gap: .3rem; font-size: .8rem; }
.maps > span { align-self: center; overflow-wrap: anywhere; }
img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; display: block; }
img.photo { image-rendering: auto; object-fit: cover; }
.glance { display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem; margin: 0 0 1rem; max-width: 24rem; }
.glance { font-size: .8rem; } .glance figcaption { grid-column: 1 / -1; } section { clear: both; }
@media (min-width: 50rem) { .glance { float: right; width: 24rem; margin-left: 1.5rem; } }
@media (max-width: 40rem) { .maps { grid-template-columns: repeat(6, 1fr); } .maps > span { grid-column: 1 / -1; } }
dt { font-weight: 600; } dd { margin: 0 0 .4rem; overflow-wrap: anywhere; }
.wide:focus-visible { outline: 3px solid var(--bad); }
@media print {
  :root { color-scheme: light; --bad: #b3261e; --good: #1b6e3c; }
  body { max-width: none; padding: 0; } h2, h3 { break-after: avoid; } tr, .maps, .glance { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 7pt; } th, td, td.n { white-space: normal; padding: .2rem .3rem; }
}
"""


def page(audit: Audit) -> str:
    """The whole document."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = f"Audit of {audit.about['model']}"
    body = [_lead(audit), _interpreters(audit), _pictures(audit), _attacks(audit), _gate(audit), _how(audit)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(part for part in body if part) + "\n</main>\n</body>\n</html>\n"
    )


def sentences(audit: Audit) -> list[str]:
    """What was found, in words, one interpreter a line."""
    doubt, labelled = str(audit.about.get("doubt") or ""), bool(audit.about["labelled"])
    found = [_sentence(row, labelled) for row in audit.rows("interpreters")]
    return [*([doubt] if doubt else []), *found, _witness(audit)]


def _sentence(row: Mapping[str, Any], labelled: bool) -> str:
    text = f"{row['interpreter']} {WORDS.get(row['verdict'], row['verdict'])}"
    if row["verdict"] == "refused":
        return f"{text}: {row['reason']}"
    if not _known(row.get("fsr")):
        return f"{text}."
    share = f"{100 * row['fsr']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}] of its maps"
    by = f"by {WAYS[row['way']]}" + (f" aimed at {row['attacked']}" if row["attacked"] != row["interpreter"] else "")
    lost = f"at {row['drop']:.1f} " + ("points of top-1" if labelled else "% of the decisions changed")
    cost = "no probability changes" if row["way"] == "head_shift" else lost
    if row["verdict"] == "moved":
        text = f"{text} (rank correlation with the honest ones {row['alike']:.2f})"
    free = row["way"] != "head_shift" and _known(row["free"]) and row["free"] > 0.05
    also = f"; {100 * row['free']:.0f} % beyond chance by a head shift alone, for free" if free else ""
    return f"{text}: {share} ({row['fooling']}, {by}, {cost}; by chance {100 * row['chance']:.0f} %{also})."


def _witness(audit: Audit) -> str:
    if not audit.ended:
        return "No witness is named: the audit was broken off, and the attacks that were to come could move any maps."
    if audit.witness is None:
        return "No interpreter is a good witness: the maps of each were fooled or moved, or it was not attacked."
    row = next(row for row in audit.rows("interpreters") if row["interpreter"] == audit.witness)
    doubt = {"passed": "", "not passed": ", but the gate does not vouch for it"}.get(
        row["gate"], "; the gate was not asked"
    )
    return (
        f"The best witness is {audit.witness}: its maps moved least (rank correlation with the honest ones at least "
        f"{row['alike']:.2f}){doubt}."
    )


def _lead(audit: Audit) -> str:
    *found, witness = sentences(audit)
    items = "".join(f"<li>{escape(sentence).replace(' %', '&nbsp;%')}</li>" for sentence in found)
    about = audit.about
    own = "targets are the network's predictions, and a drop is the share of them that changed"
    right = f"{100 * audit.top1:.1f} % of them right" if about["labelled"] else own
    return (
        f'<p class="lead">{escape(witness)}</p>\n{_glance(audit)}<ul>{items}</ul>\n'
        f'<p class="note">All numbers are of {about["held"]} '
        f"held-out images ({escape(right)}); attacks were trained on {about['attacked']} others. Intervals are 95 %, "
        "over images, and have no width where all agree, which says little of few. That these attacks failed does not "
        "show that a better one would.</p>"
    )


def _interpreters(audit: Audit) -> str:
    head = ("interpreter", "verdict", "fooled maps", "by chance", "beyond it, for free", "worst attack", "drop, points",
            "maps alike", "gate")  # fmt: skip
    rows = []
    for row in audit.rows("interpreters"):
        kind = {"fooled": "fooled", "in part": "part", "moved": "part", "not fooled": "kept"}.get(row["verdict"], "")
        worst = f"{row['fooling']}, {WAYS[row['way']]} of {row['attacked']}" if _known(row.get("fsr")) else ""
        rows.append([
            _cell(row["interpreter"]), f'<td class="{kind}">{escape(str(row["verdict"]))}</td>',
            _number(_share(row, "fsr")), _number(_percent(row.get("chance"))),
            _number(_percent(row.get("free"))), _cell(worst),
            _number(_interval(row, "drop")), _number(_plain(row.get("alike"))),
            _cell(row["gate"] if _known(row["gate"]) else ""),
        ])  # fmt: skip
    note = f'<p class="note">{escape(LEGEND)}</p>'
    return _section("Who can be fooled, within the budget", _table(head, rows) + note)


def _pictured(audit: Audit) -> list[tuple[dict[str, Any], dict[str, list[str]]]]:
    """The interpreters that were attacked, with what was seen: pictures by their label."""
    found = []
    for row in audit.rows("interpreters"):
        honest = audit.arrays.get(f"honest.{row['interpreter']}")
        if honest is not None and _known(row.get("fooling")):
            place = f"{row['fooling']}.{row['way']}.{row['attacked']}.{row['interpreter']}"
            maps = {"honest map": _maps(honest), "fooled map": _maps(audit.arrays.get(place))}
            found.append((row, {"image": _photos(audit.arrays.get("shown")), **maps}))
    return found


def _told(row: Mapping[str, Any]) -> str:
    return f"{row['interpreter']}: {row['fooling']}, {WAYS[row['way']]} of {row['attacked']}"


def _glance(audit: Audit) -> str:
    """The first held-out image, not chosen, with both maps of an interpreter that was fooled, where there is one."""
    whole = [(row, uris) for row, uris in _pictured(audit) if all(uris.values())]
    if not whole:
        return ""
    worst = ["fooled", "in part", "moved"]
    row, uris = min(whole, key=lambda one: worst.index(v) if (v := one[0]["verdict"]) in worst else len(worst))
    cells = "".join(f"<span>{_picture(label, label, uris[label][0])}{escape(label)}</span>" for label in uris)
    return f'<figure class="glance">{cells}<figcaption>{escape(_told(row))}</figcaption></figure>\n'


def _pictures(audit: Audit) -> str:
    parts = []
    for row, uris in _pictured(audit):
        cells = "".join(_line(label, uris[label]) for label in uris)
        parts.append(f'<h3>{escape(_told(row))}</h3>\n<div class="maps">{cells}</div>')
    note = '<p class="note">The first held-out images, not chosen; each map from its least (dark) to its largest.</p>'
    return _section("What a fooled map looks like", note + "\n".join(parts)) if parts else ""


def _attacks(audit: Audit) -> str:
    head = ("fooling", "attack", "aimed at", "seen by", "fooled maps", "by chance", "maps alike", "drop, points",
            "same decision", "steps", "")  # fmt: skip
    rows = []
    for row in audit.rows("attacks"):
        done = row["status"] == "done"
        state = "" if done and row["within"] else "over budget" if done else f"{row['status']}: {row['reason'] or ''}"
        if done and row["converged"] is not True and row["steps"] < row["wanted"]:
            state = f"{state} cut short by the time".strip()
        steps = f"{row['steps']:.0f} of {row['wanted']:.0f}" if done else ""
        rows.append([
            _cell(row["fooling"]), _cell(WAYS.get(row["way"], "")), _cell(row["attacked"]), _cell(row["evaluated"]),
            _number(_share(row, "fsr")), _number(_percent(row["chance"])), _number(_plain(row["alike"])),
            _number(_interval(row, "drop")), _number(_percent(row["agreement"])), _number(steps), _cell(state),
        ])  # fmt: skip
    return _section("Every attack, seen by every interpreter", _table(head, rows)) if rows else ""


def _gate(audit: Audit) -> str:
    asked = [row for row in audit.rows("interpreters") if _known(row["gate"])]
    rows = [[_cell(row["interpreter"]), _cell(row["gate"]), _cell(row["reason"])] for row in asked]
    note = (
        '<p class="note">Does a map depend on the weights and on the class, does the label\'s score fall where it '
        "points more than where controls do, and does it stay where only the order of the classes changes?</p>"
    )
    if not rows:
        return _section("The gate", "<p>It was not asked: there was no time left.</p>")
    return _section("What the gate says of each on these images", note + _table(("interpreter", "gate", "why"), rows))


def _how(audit: Audit) -> str:
    about, settings = audit.about, audit.settings
    kept = "kept apart by the folder" if about.get("parted") else "drawn at random"
    listed = {
        "network": about["model"],
        "weights": about["weights"],
        "images": f"{about['data']}: {about['attacked']} attacked, {about['held']} held out, {kept}; no two alike",
        "labels": "as given" if about["labelled"] else "none: the network's own predictions",
        "preprocessing": about["preprocess"],
        "budget": f"{settings['budget']:g} points of top-1; {settings['minutes']:g} minutes",
        "seed": settings["seed"],
        "on": f"{about['device']}; " + ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "process": about.get("process", "the caller's own"),
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in listed.items())
    return _section("How it was made", f"<dl>{items}</dl>")


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    table = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _cell(value: Any) -> str:
    return f"<td>{escape('' if value is None else str(value))}</td>"


def _number(text: str) -> str:
    return f'<td class="n">{escape(text)}</td>'


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> str:
    return f"{value:.2f}" if _known(value) else ""


def _percent(value: Any) -> str:
    return f"{100 * value:.0f} %" if _known(value) else ""


def _share(row: Mapping[str, Any], name: str) -> str:
    ends = f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]" if _known(row.get("low")) else ""
    return f"{100 * row[name]:.0f} %{ends}" if _known(row.get(name)) else ""


def _interval(row: Mapping[str, Any], name: str) -> str:
    ends = [row.get(f"{name}_{end}") for end in ("low", "high")]
    return f"{row[name]:.1f} [{ends[0]:.1f}, {ends[1]:.1f}]" if _known(row.get(name)) else ""


def _line(label: str, uris: list[str]) -> str:
    """One row of the grid, which has SHOWN columns of pictures."""
    images = "".join(_picture(label, f"{label} {i}", uri) for i, uri in enumerate(uris, 1))
    missing = "<i></i>" * (SHOWN - len(uris))
    return f"<span>{escape(label)}</span>{images}{missing}"


def _picture(label: str, alt: str, uri: str) -> str:
    kind = ' class="photo"' if label == "image" else ""
    return f'<img{kind} alt="{escape(alt)}" src="{uri}">'


def _maps(maps: Any) -> list[str]:
    """(m, h, w) -> a picture of each, from its least to its largest value; grey where a map is not finite."""
    from matplotlib import colormaps

    if not isinstance(maps, np.ndarray) or maps.ndim != 3 or not 0 < len(maps) <= SHOWN:
        return []
    colours, found = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8), []
    for map_ in np.asarray(maps, np.float64):
        low, high = map_.min(), map_.max()
        levels = (map_ - low) / (high - low) if high > low else np.zeros_like(map_)
        pixels = colours[(np.nan_to_num(levels) * 255).round().astype(np.uint8)]
        found.append(_png(pixels if np.isfinite(map_).all() else np.full_like(pixels, 128)))
    return found


def _photos(images: Any) -> list[str]:
    """(m, 3, H, W) bytes -> a picture of each, at most 160 pixels wide."""
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != 3:
        return []
    return [_png(image.transpose(1, 2, 0), 160) for image in images[:SHOWN]]


def _png(pixels: np.ndarray, most: int = 256) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
