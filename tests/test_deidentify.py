"""Persons are taken out of dialogues; ages, doses and diseases stay."""

from collections import Counter

import pytest

from medalign.deidentify import deidentify


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Call 212-555-0143 today", "Call [phone] today"),
        ("Write to jo.bloggs@example.com", "Write to [email]"),
        ("Seen on 01/10/09 for pain", "Seen on [date] for pain"),
        ("I saw him on January tenth two thousand nine", "I saw him on [date]"),
        ("It began March 3, 2019.", "It began [date]."),
        ("MRN 4837261", "[id]"),
        ("She lives at 12 Oak Tree Lane now", "She lives at [address] now"),
        ("Dr. Miller saw her", "Dr. [name] saw her"),
        ("Doctor: My name is Anna Bell.", "Doctor: My name is [name]."),
        ("Mr. O'Brien, Dr. McDonald and Dr. Núñez", "Mr. [name], Dr. [name] and Dr. [name]"),
        ("Ms. Mary Ann Jones and Mr. Young", "Ms. [name] and Mr. [name]"),
        ("Hi, my name is priya sharma", "Hi, my name is [name]"),
        ("I'm Anna Bell.", "I'm [name]."),
        ("Nurse Jones came", "Nurse [name] came"),
        ("She lives at 12 March Street", "She lives at [address]"),
    ],
)
def test_what_points_to_a_person_goes(text, wanted):
    assert deidentify([text], Counter()) == [wanted]


@pytest.mark.parametrize(
    "text",
    [
        "She is 59 years old and takes lisinopril 20 mg daily",
        "You may 10 minutes later march on",
        "Blood pressure 120/80, pulse 72, T4-T5 level",
        "The white blood cell count will fall",
        "Hi there, how are you?",
        "Hello, My chest hurts, and my head",
        "[doctor] hi , can you tell me ? can you ?",
        "Father is a 70-year-old man; father is well",
        "[doctor] i miss them . we miss them",
        "Doctor: How long has it hurt?",
        "Gave 500 to 1000 mL over 24 hours",
        "Apgar 9 and 10, Parkinson disease, Crohn's disease",
    ],
)
def test_medicine_stays(text):
    assert deidentify([text], Counter()) == [text]


def test_a_name_once_introduced_is_found_everywhere_in_the_row():
    dialogue = (
        "[doctor] hi , brian . how are you ?\n[patient] fine .\n"
        "[doctor] so , brian is a 58 year old male"
    )
    note = "Brian White is a 58-year-old man. Mr. White has a low white cell count. Brian is well."
    changes = Counter()
    spoken, written = deidentify([dialogue, note], changes)
    assert "brian" not in spoken.lower() and "Brian" not in written
    assert written == (
        "[name] is a 58-year-old man. Mr. [name] has a low white cell count. [name] is well."
    )
    assert changes["PERSON"] == 5


@pytest.mark.parametrize(
    ("note", "spoken", "wanted"),
    [
        ("Betty Hill is a 53 y.o. female.", "next is betty hill , uh", "next is [name] , uh"),
        ("Kyle Lee is a pleasant 46-year-old male.", "[patient] hi kyle", "[patient] hi [name]"),
        ("Katherine Lopez is a 22-month-old female.", "katherine , she was", "[name] , she was"),
        ("Mister Rath has a cold.", "Hello Mister Rath!", "Hello Mister [name]!"),
    ],
)
def test_the_note_tells_whose_name_it_is(note, spoken, wanted):
    left, right = deidentify([spoken, note], Counter())
    assert left == wanted
    assert "[name]" in right


def test_a_name_that_is_a_word_leaves_the_word():
    text = "Dr. Sharp saw her. The pain is sharp."
    assert deidentify([text], Counter()) == ["Dr. [name] saw her. The pain is sharp."]
