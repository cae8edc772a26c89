"""Training rows that hold a row of an evaluation: by wording, and by meaning.

Wording. An evaluation row is its passages: the question with its options, and, where it has them,
its context and its long answer. A passage is in a training row when its words are found there in
order (longest common subsequence near where three neighboring words match; options in any order)
up to a declared share, each word weighted by its rarity among all evaluations. So a changed word
costs its weight and no more, and "which of the following is true" weighs next to nothing.

Meaning. The cosine of the two questions' word vectors (scripts/semantic_duplicates.py).

n-gram overlap as in Brown et al. 2020 ("Language models are few-shot learners", app. C) finds where
to look; the weighting is what keeps short exam questions apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from medalign import convert_rows, semantic_duplicates, sources
from medalign.artifacts import StepError
from medalign.clean_text import clean
from medalign.near_duplicates import ngrams, word_hashes, words

N = 3  # words that must match side by side for a place to be looked at
COMMON = 30  # an n-gram of more evaluation rows than this does not make one a candidate
LIKELY = 0.2  # part of its n-grams that a passage must share to be looked at
CANDIDATES = 40  # passages that are looked at, of a training row
SHORT = 8  # words from which a context or a long answer is looked for
ALONE = 2  # times the least information that a question without its options must hold
LISTED = frozenset("abc")  # how a row of lettered options looks among its words


@dataclass
class Passage:
    """A piece of an evaluation row: its words, and each option's."""

    item: int
    kind: str
    words: list[str]
    options: list[list[str]] = field(default_factory=list)


@dataclass
class Item:
    """An evaluation row: where it stands and its question as it reads."""

    place: str
    question: str


@dataclass(frozen=True)
class Hit:
    """A training row's match with an evaluation row: how, and how much (0 to 1).

    over: whether it reaches the threshold; the others nearly do, for the report.
    """

    place: str
    method: str
    value: float
    question: str
    over: bool


def read_items(sets: Iterable[sources.Dataset]) -> tuple[list[Item], list[Passage]]:
    """All rows of the evaluations. StepError names a set that cannot be read whole."""
    items: list[Item] = []
    passages: list[Passage] = []
    for dataset in sets:
        c = sources.columns(dataset)
        before = len(items)
        for _, place, row in sources.rows(dataset):
            if isinstance(row, sources.Fault):
                raise StepError(f"{dataset.name}: {place}: {row.reason}: {row.evidence}")
            try:
                # Cleaned as training rows are, or their mended words would not be found.
                question = clean(str(row[str(c["question"])]))
                given = sources.take(row, c["options"]) if "options" in c else []
                options = [clean(o) for o in convert_rows.option_list(given)] if given else []
                given = row[str(c["context"])] if "context" in c else None
                context = clean(convert_rows.joined(given)) if given else ""
                answer = clean(str(row[str(c["answer"])] or "")) if "answer" in c else ""
            except KeyError as error:
                raise StepError(f"{dataset.name}: {place}: no column {error}") from error
            except convert_rows.Unusable as error:
                raise StepError(f"{dataset.name}: {place}: {error}") from error
            items.append(Item(f"{dataset.name}: {place}", question))
            here = len(items) - 1
            passages.append(Passage(here, "question", words(question), list(map(words, options))))
            for kind, text in (("context", context), ("answer", answer)):
                if len(words(text)) > SHORT:
                    passages.append(Passage(here, kind, words(text)))
        if len(items) == before:
            raise StepError(f"{dataset.name}: no rows to keep the mix apart from")
    return items, passages


class Evaluations:
    """All evaluation rows, indexed by their n-grams, with the rarity of their words."""

    def __init__(
        self,
        items: list[Item],
        passages: list[Passage],
        coverage: float,
        least_information: float,
        similarity: float,
        margin: float = 0.0,
    ) -> None:
        """margin: how far below `coverage` and, a fifth of it, `similarity` hits are still told."""
        self.items, self.passages = items, passages
        self.coverage, self.least, self.similarity = coverage, least_information, similarity
        self.told = coverage - margin, similarity - margin / 5
        self.exact = {" ".join(words(item.question)): n for n, item in enumerate(items)}
        self.exact.pop("", None)
        occurs = Counter(
            w for p in passages for w in {*p.words, *(w for o in p.options for w in o)}
        )
        self.unknown = float(np.log(len(passages) + 1))
        self.weight = {w: float(np.log((len(passages) + 1) / n)) for w, n in occurs.items()}
        of: dict[int, list[int]] = defaultdict(list)
        flat = [p.words + [w for o in p.options for w in o] for p in passages]
        for number, hashes in enumerate(word_hashes(flat)):
            for gram in set(ngrams(hashes, N).tolist()):
                of[gram].append(number)
        self.index = {gram: found for gram, found in of.items() if len(found) <= COMMON}
        self.grams = np.array(sorted(self.index), dtype=np.uint64)
        self.number = {w: i for i, w in enumerate(self.weight)}
        self.nats = np.array(list(self.weight.values()))
        # Of each passage, the question and then all of it: words, weights, the least to be there.
        self.wanted = []
        for passage, text in zip(passages, flat, strict=True):
            both = [self.numbers(part) for part in (passage.words, text)]
            weights = [self.nats[part] for part in both]
            least = [self.told[0] * float(weight.sum()) for weight in weights]
            self.wanted.append(list(zip(both, weights, least, strict=True)))
        vectors = semantic_duplicates.vectors([item.question for item in items])
        self.center = vectors.mean(0)
        self.vectors = semantic_duplicates.centered(vectors, self.center)

    def information(self, text: Iterable[str]) -> float:
        """Weight of words, in nats."""
        return sum(self.weight.get(w, self.unknown) for w in text)

    def candidates(self, hashes: NDArray[np.uint64]) -> list[int]:
        """Passages that share enough rare n-grams with a text to be looked at, best first."""
        grams = ngrams(hashes, N)
        at = np.searchsorted(self.grams, grams)
        at[at == len(self.grams)] = 0
        shared = np.unique(grams[self.grams[at] == grams]) if len(self.grams) else grams[:0]
        count = Counter(number for gram in shared.tolist() for number in self.index[gram])
        share = {n: k / max(1, len(self.passages[n].words) - N) for n, k in count.items()}
        likely = [number for number, part in share.items() if part >= LIKELY]
        return sorted(likely, key=lambda number: (-share[number], number))[:CANDIDATES]

    def numbers(self, text: Iterable[str]) -> NDArray[np.int32]:
        """Words of the evaluations by number; others are left out."""
        return np.array([self.number[w] for w in text if w in self.number], dtype=np.int32)

    def possible(self, number: int, there: NDArray[np.bool_]) -> bool:
        """Whether a text has enough of a passage's words, in whatever order.

        there [words of the evaluations]: which of them the text has.
        """
        return any(w @ there[words] >= least for words, w, least in self.wanted[number])

    def found(self, passage: Passage, text: list[str], there: set[str]) -> tuple[float, float]:
        """(covered share of a passage's weight, covered weight in nats) in a text's words.

        there: the text's words as a set.
        """
        total = self.information(passage.words)
        got = self.in_order(passage.words, text)
        if not passage.options:
            return got / max(total, 1e-9), got
        with_options, whole = got, total
        for option in passage.options:
            weight = self.information(option)
            whole += weight
            with_options += self.in_order(option, text) if weight else 0.0
        both = (with_options / max(whole, 1e-9), with_options)
        # The question alone is enough if it says much, and no other options are there instead.
        others = (
            got / max(total, 1e-9) < 0.95 and LISTED.issubset(there) and both[0] < self.coverage
        )
        if total < ALONE * self.least or others:
            return both
        return max((got / max(total, 1e-9), got), both, key=lambda x: (x[1] >= self.least, x[0]))

    def in_order(self, wanted: list[str], text: list[str]) -> float:
        """Weight of the wanted words that a text has in their order and near each other."""
        if not wanted or not text:
            return 0.0
        window = self._window(wanted, text)
        blocks = LCSseq.opcodes(wanted, window)
        return sum(
            self.information(wanted[b.src_start : b.src_end]) for b in blocks if b.tag == "equal"
        )

    def _window(self, wanted: list[str], text: list[str]) -> list[str]:
        """The stretch of a text, twice as long as what is wanted, with most of its weight."""
        length = 2 * len(wanted) + 4
        if len(text) <= length:
            return text
        of = {w: self.information([w]) for w in wanted}
        known = np.cumsum([0.0, *(of.get(w, 0.0) for w in text)])
        best = int(np.argmax(known[length:] - known[:-length]))
        return text[best : best + length]

    def by_wording(self, turns: list[str], hashes: NDArray[np.uint64]) -> Hit | None:
        """The evaluation passage that a row's turns hold, or None."""
        if not (candidates := self.candidates(hashes)):
            return None
        split = [words(turn) for turn in turns]
        text = [w for turn in split for w in turn]
        there = set(text)
        has = np.zeros(len(self.nats), dtype=bool)
        has[self.numbers(there)] = True
        best: tuple[float, Passage] | None = None
        for number in candidates:
            if not self.possible(number, has):
                continue
            passage = self.passages[number]
            share, weight = self.found(passage, text, there)
            covered = share if weight >= self.least else 0.0
            if passage.kind == "question":
                covered = max(covered, *(self.whole_turn(passage, turn) for turn in split))
            if covered >= self.told[0] and (best is None or covered > best[0]):
                best = covered, passage
        if best is None:
            return None
        value, passage = best
        item = self.items[passage.item]
        over = value >= self.coverage
        return Hit(
            item.place, f"wording of the {passage.kind}", round(value, 3), item.question, over
        )

    def by_identity(self, turns: list[str]) -> Hit | None:
        """The evaluation question that is one of a row's turns, however short, or None."""
        for turn in turns:
            number = self.exact.get(" ".join(words(turn)))
            if number is not None:
                item = self.items[number]
                return Hit(item.place, "the question itself", 1.0, item.question, True)
        return None

    def whole_turn(self, passage: Passage, turn: list[str]) -> float:
        """How much a question and a whole turn are the same, by weight both ways."""
        if not 0.5 * len(turn) <= len(passage.words) <= 2 * len(turn):
            return 0.0
        got = self.in_order(passage.words, turn)
        if got < self.least / 3:
            return 0.0
        return got / max(self.information(passage.words), self.information(turn), 1e-9)

    def by_meaning(self, questions: list[str]) -> list[Hit | None]:
        """For each question the evaluation row of nearest meaning, if near enough."""
        found: list[Hit | None] = [None] * len(questions)
        rows = semantic_duplicates.vectors(questions)
        rows = semantic_duplicates.centered(rows, self.center)
        for pairs, cosine in semantic_duplicates.alike(rows, self.vectors, self.told[1]):
            for (row, number), value in zip(pairs.tolist(), cosine.tolist(), strict=True):
                value, before = round(value, 4), found[row]
                if before is None or value > before.value:
                    item, over = self.items[number], value >= self.similarity
                    method = "meaning of the question"
                    found[row] = Hit(item.place, method, value, item.question, over)
        return found

    def hits(self, rows: list[dict[str, Any]]) -> list[Hit | None]:
        """For each conversation the evaluation row it holds, or None; with a margin, nearly holds.

        A hit that reaches its threshold goes before one that does not, then the higher value.
        """
        said = [[m["content"] for m in r["messages"] if m["role"] != "system"] for r in rows]
        hashes = word_hashes([words("\n".join(turns)) for turns in said])
        asked = [(n, turn) for n, turns in enumerate(said) for turn in turns[::2]]
        meant: list[list[Hit]] = [[] for _ in rows]
        for (n, _), hit in zip(asked, self.by_meaning([turn for _, turn in asked]), strict=True):
            if hit is not None:
                meant[n].append(hit)
        found = []
        for turns, of, meaning in zip(said, hashes, meant, strict=True):
            hits = [self.by_identity(turns), self.by_wording(turns, of), *meaning]
            best = (hit for hit in hits if hit is not None)
            found.append(max(best, key=lambda hit: (hit.over, hit.value), default=None))
        return found
