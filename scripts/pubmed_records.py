"""PubMed's XML read: ids of a search, and records as passages. No entities, no network.

Documents come from outside: one that declares entities is refused before it is parsed, external
DTDs are not loaded. The elements are those of NLM's PubMed DTD.
"""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

from medalign.artifacts import StepError
from medalign.passages import Passage

Row = dict[str, Any]


def root(body: bytes) -> etree._Element:
    """The root of an XML document. StepError if it declares entities, lxml's error if cut."""
    # Read as UTF-8 whatever it says of itself: no declaration hides in another encoding.
    if b"<!ENTITY" in body:
        raise StepError(
            "the answer declares XML entities, which PubMed does not; is the url right?"
        )
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    return etree.fromstring(body, parser)


def words(element: etree._Element | None) -> str:
    """All text of an element, markup such as <i> left out, spaces single."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def ids(found: etree._Element) -> tuple[list[str], int]:
    """PMIDs of an esearch answer and the count of all. StepError if it tells of an error."""
    error = found.findtext("ERROR")
    if found.tag != "eSearchResult" or error:
        raise StepError(f"esearch: {(error or 'not a search result')[:200]}; look at the query")
    count = (found.findtext("Count") or "").strip()
    if not count.isdigit():
        raise StepError("esearch: an answer without Count; run the same again")
    listed = [(e.text or "").strip() for e in found.iterfind("IdList/Id")]
    return [name for name in listed if re.fullmatch(r"[1-9][0-9]{0,8}", name)], int(count)


def year(article: etree._Element) -> int | None:
    """The year of the journal's issue, or of what MedlineDate says ("1998 Dec-1999 Jan")."""
    date = article.find("Journal/JournalIssue/PubDate")
    said = "" if date is None else date.findtext("Year") or date.findtext("MedlineDate") or ""
    found = re.search(r"\b(1[89]|20)\d\d\b", said)
    return int(found[0]) if found else None


def abstract(article: etree._Element) -> str:
    """The abstract, the labels of its parts kept ("METHODS: …")."""
    parts = []
    for part in article.iterfind("Abstract/AbstractText"):
        label, text = part.get("Label"), words(part)
        if text:
            parts.append(f"{label}: {text}" if label else text)
    return " ".join(parts)


def record(entry: etree._Element, min_words: int) -> tuple[Row | None, str, str]:
    """A PubmedArticle as a passage row (None: dropped), its PMID and why it was dropped."""
    citation = entry.find("MedlineCitation")
    article = None if citation is None else citation.find("Article")
    pmid = "" if citation is None else words(citation.find("PMID"))
    if citation is None or article is None or not re.fullmatch(r"[1-9][0-9]{0,8}", pmid):
        return None, pmid, "no article with a PMID"
    kinds = {words(e) for e in article.iterfind("PublicationTypeList/PublicationType")}
    if "Retracted Publication" in kinds:
        return None, pmid, "retracted"
    text, title = abstract(article), words(article.find("ArticleTitle"))
    if not title or not text:
        return None, pmid, "no abstract" if title else "no title"
    if len(text.split()) < min_words:
        return None, pmid, "abstract too short"
    row = Passage(
        id=f"PMID {pmid}", title=title, text=text, source="PubMed abstract", pmid=pmid,
        journal=words(article.find("Journal/Title")) or None, year=year(article),
        copyright=words(article.find("Abstract/CopyrightInformation")) or None,
    )  # fmt: skip
    return row.model_dump(exclude_none=True, exclude_defaults=True), pmid, ""


def passages(
    found: etree._Element, asked: list[str], min_words: int
) -> tuple[list[Row], list[Row]]:
    """Passages of an efetch answer, and what is dropped: {"pmid", "reason"}.

    Only ids that were asked for count, each once; one that does not come back is listed too.
    """
    if found.tag != "PubmedArticleSet":
        raise StepError(f"efetch: a <{found.tag}>, not records of PubMed; run the same again")
    kept, dropped, seen = [], [], set()
    for entry in found.iterchildren("PubmedArticle"):
        row, pmid, reason = record(entry, min_words)
        if pmid in seen or (pmid and pmid not in asked):
            reason, row = "not asked for, or twice", None
        seen.add(pmid)
        if row is not None:
            kept.append(row)
        else:
            dropped.append({"pmid": pmid, "reason": reason})
    missing = [pmid for pmid in asked if pmid not in seen]
    return kept, dropped + [{"pmid": pmid, "reason": "no article came back"} for pmid in missing]
