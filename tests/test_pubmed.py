"""The PubMed client against a local fake of E-utilities, with failures injected."""

from __future__ import annotations

import functools
import json
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from medalign import passages, pubmed, pubmed_records, retrieval
from medalign.artifacts import ROOT, StepError, read_jsonl

KEY = "0123456789abcdefKEY"
CLIENT = pubmed.Client
DOCTYPE = (
    '<?xml version="1.0" ?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st '
    'January 2025//EN" "https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n'
)
TEXT = "Sodium was held back in the <i>failing</i> heart. " + "More words stand here. " * 12
BOMB = '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;">]><PubmedArticleSet>&c;'
FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><PubmedArticleSet>&b;'
BOMB, FILE = BOMB + "</PubmedArticleSet>", FILE + "</PubmedArticleSet>"


def article(pmid: str, text: str = TEXT, kind: str = "Journal Article", date: str = "") -> str:
    abstract = f"<Abstract><AbstractText Label='RESULTS'>{text}</AbstractText>"
    abstract += "<CopyrightInformation>© A publisher.</CopyrightInformation></Abstract>"
    return (
        f"<PubmedArticle><MedlineCitation><PMID Version='1'>{pmid}</PMID><Article><Journal>"
        f"<JournalIssue><PubDate>{date or '<Year>2021</Year><Month>Jan</Month>'}</PubDate>"
        "</JournalIssue><Title>A journal</Title></Journal>"
        f"<ArticleTitle>Sodium in <i>heart</i> failure {pmid}.</ArticleTitle>"
        f"{abstract if text else ''}<PublicationTypeList><PublicationType>{kind}"
        "</PublicationType></PublicationTypeList></Article></MedlineCitation></PubmedArticle>"
    )


class Fake(ThreadingHTTPServer):
    """E-utilities with `known` PMIDs. answers: what to say instead, in turn: (status, body, …)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.known = [str(i) for i in range(1001, 1008)]
        self.answers: list[tuple] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.articles: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        asked = {name: values[0] for name, values in parse_qs(body).items()}
        self.server.seen.append((self.path, self.requestline, asked))
        if self.server.answers:
            status, text, *headers = self.server.answers.pop(0)
            return self.say(status, text, dict(headers))
        if self.path.endswith("esearch.fcgi"):
            start, size = int(asked["retstart"]), int(asked["retmax"])
            ids = "".join(f"<Id>{i}</Id>" for i in self.server.known[start : start + size])
            count = len(self.server.known)
            found = f"<Count>{count}</Count><IdList>{ids}</IdList>"
            return self.say(200, f"<eSearchResult>{found}</eSearchResult>")
        found = "".join(self.server.articles.get(i, article(i)) for i in asked["id"].split(","))
        return self.say(200, f"{DOCTYPE}<PubmedArticleSet>{found}</PubmedArticleSet>")

    def say(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", pubmed.KEY, "NCBI_EMAIL"):
        monkeypatch.delenv(name, raising=False)
    with Fake() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Clock:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def client(fake: Fake, clock: Clock | None = None, key: str = "", **changed) -> pubmed.Client:
    chosen = {**passages.settings().pubmed, "url": fake.url, **changed}
    clock = clock or Clock()
    settings = pubmed.PubMedSettings(**chosen)
    return pubmed.Client(settings, email="a@b.org", key=key, sleep=clock.sleep, clock=clock)


def run(fake: Fake, monkeypatch, out, *arguments: str) -> None:
    clock = Clock()
    timed = functools.partial(CLIENT, sleep=clock.sleep, clock=clock)
    monkeypatch.setattr(pubmed, "Client", timed)
    command = ["pubmed.py", "--query", "sodium", "--url", fake.url, "--out", str(out), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    pubmed.main()


def test_search_pages_and_fetch_batches(fake):
    asking = client(fake, page=3, batch=2)
    kept, dropped, counts = pubmed.gather(asking, "sodium", 5)
    assert [row["pmid"] for row in kept] == ["1001", "1002", "1003", "1004", "1005"]
    assert counts == {"found": 7, "asked": 5, "kept": 5} and not dropped
    asked = [fields for _, _, fields in fake.seen]
    assert [(a.get("retstart"), a.get("retmax")) for a in asked[:2]] == [("0", "3"), ("3", "2")]
    assert [a["id"] for a in asked[2:]] == ["1001,1002", "1003,1004", "1005"]
    assert all((a["tool"], a["email"], a["db"]) == ("medalign", "a@b.org", "pubmed") for a in asked)


def test_a_record_is_read_as_a_passage(fake):
    kept, _, _ = pubmed.gather(client(fake), "sodium", 1)
    read = passages.Passage(**kept[0])
    assert (read.id, read.journal, read.year) == ("PMID 1001", "A journal", 2021)
    assert read.title == "Sodium in heart failure 1001."
    assert read.text.startswith("RESULTS: Sodium was held back in the failing heart.")
    assert read.copyright == "© A publisher." and read.source == "PubMed abstract"


def test_what_cannot_be_cited_is_dropped_and_counted(fake):
    fake.articles = {
        "1001": article("1001", text=""),
        "1002": article("1002", text="Too short."),
        "1003": article("1003", kind="Retracted Publication"),
        "1004": article("77"),
        "1005": "<PubmedBookArticle><BookDocument/></PubmedBookArticle>",
        "1006": article("1006", date="<MedlineDate>1998 Dec-1999 Jan</MedlineDate>"),
        "1007": article("1007", date="<Season>Spring</Season>"),
    }
    kept, dropped, counts = pubmed.gather(client(fake), "sodium", 9)
    assert [(row["pmid"], row.get("year")) for row in kept] == [("1006", 1998), ("1007", None)]
    reasons = {row["pmid"]: row["reason"] for row in dropped}
    assert reasons["1001"] == "no abstract" and reasons["1002"] == "abstract too short"
    assert reasons["1003"] == "retracted" and reasons["77"] == "not asked for, or twice"
    assert reasons["1004"] == reasons["1005"] == "no article came back"
    assert counts["kept"] + len(dropped) == 8 and counts["retracted"] == 1


@pytest.mark.parametrize(
    "failure",
    [
        (429, '{"error":"API rate limit exceeded"}', ("retry-after", "7")),
        (503, "busy"),
        (200, "<eSearchResult><Count>7</Cou"),
        (200, ""),
        (200, '{"error": "no XML"}'),
        (200, "x", ("content-encoding", "gzip")),
    ],
)
def test_what_may_pass_is_asked_again(fake, failure):
    clock = Clock()
    fake.answers = [failure]
    assert client(fake, clock).search("sodium", 2) == (["1001", "1002"], 7)
    assert len(fake.seen) == 2 and fake.seen[0] == fake.seen[1]
    assert max(clock.slept) >= (7 if failure[0] == 429 else 1)


def test_what_does_not_pass_ends_in_one_line_with_the_next_step(fake):
    fake.answers = [(500, "")] * 9
    with pytest.raises(StepError, match=r"esearch: status 500, 3 times; run the same again later"):
        client(fake, attempts=3).search("sodium", 1)
    assert len(fake.seen) == 3


def test_a_long_wait_is_not_waited_for(fake):
    fake.answers = [(429, "", ("retry-after", "3600"))]
    with pytest.raises(StepError, match="asks to wait 3600 s"):
        client(fake).search("sodium", 1)
    assert len(fake.seen) == 1


def test_a_server_that_is_away_is_told(fake):
    away = client(fake, url="http://127.0.0.1:1", attempts=2)
    with pytest.raises(StepError, match="ConnectError, 2 times"):
        away.search("sodium", 1)


@pytest.mark.parametrize("bomb", [BOMB, FILE])
def test_entities_are_refused_and_not_asked_again(fake, bomb):
    fake.answers = [(200, bomb)]
    with pytest.raises(StepError, match="declares XML entities"):
        client(fake).fetch(["1001"])
    assert len(fake.seen) == 1


def test_entities_do_not_hide_in_another_encoding():
    body = BOMB.encode("utf-16")
    with pytest.raises((StepError, pubmed.etree.XMLSyntaxError)):
        pubmed_records.root(body)


def test_an_endless_answer_is_cut_off(fake):
    fake.answers = [(200, "<a>" + "x" * 300_000)]
    with pytest.raises(StepError, match=r"more than 0.1 MiB; lower pubmed\.batch"):
        client(fake, max_answer_mib=0.1).fetch(["1001"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("<eSearchResult><ERROR>Empty term</ERROR></eSearchResult>", "Empty term; look at"),
        ("<eSearchResult><IdList/></eSearchResult>", "without Count"),
        ("<html/>", "not a search result"),
        ("<eSearchResult><Count>0</Count><IdList/></eSearchResult>", "finds nothing for 'sodium'"),
    ],
)
def test_an_empty_or_wrong_search_is_told(fake, answer, message):
    fake.answers = [(200, answer)]
    with pytest.raises(StepError, match=message):
        pubmed.gather(client(fake), "sodium", 5)


def test_records_that_are_none_are_told(fake):
    fake.answers = [(200, "<eFetchResult><ERROR>ID list is empty</ERROR></eFetchResult>")]
    with pytest.raises(StepError, match="<eFetchResult>, not records"):
        pubmed_records.passages(client(fake).fetch(["1"]), ["1"], 1)


@pytest.mark.parametrize(("key", "rate"), [("", 3), (KEY, 10)])
def test_requests_keep_ncbis_distance(fake, key, rate):
    clock = Clock()
    pubmed.gather(client(fake, clock, key, batch=1), "sodium", 7)
    assert len(fake.seen) == 8
    assert clock.now == pytest.approx(7 / rate)


def test_the_key_goes_along_only_where_set_and_is_never_shown(
    fake, monkeypatch, tmp_path, capsys, caplog
):
    caplog.set_level(logging.DEBUG)
    run(fake, monkeypatch, tmp_path / "a.jsonl")
    assert all("api_key" not in fields and "email" not in fields for _, _, fields in fake.seen)
    fake.seen.clear()
    monkeypatch.setenv(pubmed.KEY, KEY)
    run(fake, monkeypatch, tmp_path / "b.jsonl", "--email", "a@b.org")
    assert all(fields["api_key"] == KEY for _, _, fields in fake.seen)
    assert all(KEY not in line for _, line, _ in fake.seen)
    fake.answers = [(400, json.dumps({"error": "API key invalid", "api-key": KEY}))]
    with pytest.raises(
        StepError, match=r"status 400, not retried; is NCBI_API_KEY right\?"
    ) as told:
        run(fake, monkeypatch, tmp_path / "c.jsonl")
    shown = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert KEY not in shown.out + shown.err + caplog.text + str(told.value) + written
    assert not (tmp_path / "c.jsonl").exists()


def test_what_is_written_is_searched_and_cited_by_pmid(fake, monkeypatch, tmp_path, capsys):
    fake.articles = {"1002": article("1002", text="")}
    out = tmp_path / "pubmed.jsonl"
    run(fake, monkeypatch, out, "--max", "3")
    assert [row["id"] for row in read_jsonl(out)] == ["PMID 1001", "PMID 1003"]
    rejected = [{"pmid": "1002", "reason": "no abstract"}]
    assert read_jsonl(tmp_path / "pubmed.rejected.jsonl") == rejected
    made = json.loads((tmp_path / "pubmed.manifest.json").read_text())
    assert made["counts"]["no abstract"] == 1 and "copyrighted" in made["licence"]
    assert "copyrighted" in capsys.readouterr().out
    assert len(retrieval.load(out).passages) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max", "0"], "--max is 1 to 9999"),
        (["--max", "10000"], "--max is 1 to 9999"),
        (["--query", " "], "--query says nothing"),
        (
            ["--out", str(ROOT / "data/retrieval/x.jsonl")],
            "choose a place below build/",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_asked(
    fake, monkeypatch, tmp_path, arguments, message
):
    with pytest.raises(StepError, match=message):
        run(fake, monkeypatch, tmp_path / "x.jsonl", *arguments)
    assert not fake.seen
