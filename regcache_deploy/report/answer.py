"""The first screen of the page: is the accuracy kept, is it faster, which file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..work.format import COUNTED, counted, difference_text, metric_title, value_text
from ..work.invocation import typed
from .contract import form_title
from .measured import accuracies, speeds
from .parts import Card, Section
from .verdict import COSINE_KEPT, MAX_DROP, kept_words


def answer(folder: Path, document: dict[str, Any]) -> Section:
    """Three cards, and the sizes of both files."""
    cards = [accuracy_card(document), speed_card(document), file_card(document)]
    sizes = document.get("file_mib")
    if sizes:
        smaller = sizes["fp32"] / sizes["int8"]
        cards.append(
            Card(
                "How large?",
                f"{sizes['int8']:.1f} MiB",
                f"The INT8 file, against {sizes['fp32']:.1f} MiB of weights in FP32: "
                f"{smaller:.1f} times smaller.",
                "good" if smaller > 1 else "bad",
            )
        )
    return Section("answer", "The answer", cards=cards)


def accuracy_card(document: dict[str, Any]) -> Card:
    """Whether the INT8 file keeps what FP32 scores, on the largest set that it was measured on."""
    question, found = "Accuracy kept?", accuracies(document)
    if not found or found[0].value is None:
        return Card(question, "not measured", "The run evaluated no quantized encoder.")
    lead, others = found[0], len(found) - 1
    assert lead.value is not None
    where = "in simulation" if lead.runtime == "simulation" else f"in {lead.runtime}"
    scored = f"{metric_title(lead.metric)} {value_text(lead.metric, lead.value)} {where}"
    if lead.metric not in COUNTED:
        kept = lead.value >= COSINE_KEPT
        return Card(
            question,
            "close" if kept else "not close",
            f"{scored} on {lead.n} images: fidelity to FP32, not accuracy.",
            "open" if kept else "bad",
        )
    if lead.pair is None or lead.reference is None:
        return Card(question, "not compared", f"{scored}; FP32 was not run.")
    budget, held_out = _budget(document), "held-out " * (lead.by != "regcache eval")
    detail = (
        f"{scored}, FP32 {value_text(lead.metric, lead.reference)}: "
        f"{difference_text(lead.metric, lead.pair)} points [95 %] on {lead.n} {held_out}images. "
        f"Budget: {budget:g} points."
    )
    if others:
        detail += f" {counted(others, 'other measurement')} below."
    words = kept_words(lead.pair, budget)
    if words == "probably":
        detail += " The interval does not exclude more."
    mood = {"yes": "good", "probably": "open"}.get(words, "bad")
    return Card(question, words, detail, mood)


def speed_card(document: dict[str, Any]) -> Card:
    """The ratio that was measured for this bundle, or how to measure it."""
    question, found = "Faster?", speeds(document)
    if not found:
        if not document.get("bundle"):
            return Card(question, "not measured", "A search leaves no file that could be timed.")
        return Card(
            question,
            "not measured",
            f"Run `{typed('regcache', 'bench', document['bundle'])}`, then this report again.",
        )
    lead = found[0]
    words, mood = "yes", "good"
    if lead.low < 1:
        words, mood = ("maybe", "open") if lead.high > 1 else ("no", "bad")
    half = "FP16" if lead.over == "FP16" else "float"
    interval = f"[{lead.low:.2f}, {lead.high:.2f}]"
    detail = (
        f"INT8 over the {half} file [95 %]: {lead.value:.2f} {interval}; {lead.where}. By {lead.by}"
    )
    if len(found) > 1:
        detail += f"; {counted(len(found) - 1, 'other measurement')} below"
    return Card(question, f"{words}, {lead.value:.2f}×", f"{detail}.", mood)


def file_card(document: dict[str, Any]) -> Card:
    """What to deploy: the decision of `regcache build`, or the bundle and how to decide."""
    question, found = "Deploy which file?", document.get("decision")
    if found:
        refused = [form_title(found, t["form"]) for t in found["tried"] if not t["keep"]]
        after = f" Refused before it: {', '.join(refused)}." if refused else ""
        proven = "" if found["proven"] else ", by the estimates only"
        why = "it keeps the contract" if found["kept"] != "float" else "no INT8 file keeps it"
        mood = "good" if found["proven"] and found["kept"] != "float" else "open"
        title = form_title(found, found["kept"])
        place = found.get("engine_file") or found["path"]
        return Card(question, title, f"{place}: {why}{proven}.{after}", mood)
    bundle = document.get("bundle")
    if not bundle:
        return Card(question, "none yet", "`regcache export` writes the bundle of this choice.")
    return Card(
        question,
        "not decided",
        f"The bundle is {bundle}. To decide under a budget of accuracy and speed: "
        f"`{typed('regcache', 'build', bundle)}`",
    )


def _budget(document: dict[str, Any]) -> float:
    found = document.get("decision")
    return float(found["contract"]["max_drop"]) if found else MAX_DROP
