"""Scores put medicine above chat, and whole rows above broken ones."""

import pytest

from medalign.score_rows import is_clinical, quality, scores

QUESTION = "What are the symptoms of pulmonary embolism?"
ANSWER = (
    "Sudden shortness of breath, chest pain and a fast pulse; a clot blocks an artery of the lung."
)


def test_medicine_is_relevant_and_talk_is_not():
    assert scores(QUESTION, ANSWER)["relevance"] >= 0.8
    talk = scores(
        "Which film should we watch on Friday evening?",
        "The new one with the robots was great fun.",
    )
    assert talk["relevance"] < 0.15


@pytest.mark.parametrize(
    "word", ["hypertension", "nephritis", "amoxicillin", "kidneys", "biopsies", "tachycardia"]
)
def test_clinical_words(word):
    assert is_clinical(word)


@pytest.mark.parametrize("word", ["table", "website", "friday", "robot", "redirect"])
def test_other_words(word):
    assert not is_clinical(word)


@pytest.mark.parametrize(
    ("question", "answer", "feature"),
    [
        (QUESTION, "pain " * 60, "variety"),
        (QUESTION, "SUDDEN SHORTNESS OF BREATH. CHEST PAIN.", "case"),
        (QUESTION, "1234 5678 %%%% 90/90 ==== 12-12-12 ++++", "letters"),
        (
            QUESTION,
            "The clot blocks an artery of the lung, and then the pulse is fast and the",
            "finished",
        ),
        (QUESTION, "The clot blocks an artery of the lung and...", "complete"),
        ("What is seen in the image shown below?", ANSWER, "complete"),
    ],
)
def test_each_fault_lowers_its_feature(question, answer, feature):
    assert quality(question, answer)[feature] < 0.7 < quality(QUESTION, ANSWER)[feature]


def test_a_short_answer_is_whole():
    assert (
        scores("Which organ makes insulin?\n\nA. Liver\nB. Pancreas", "**Answer**: B. Pancreas")[
            "quality"
        ]
        > 0.9
    )
