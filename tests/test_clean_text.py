"""Cleaning takes out what is not medicine and leaves what is."""

from collections import Counter

import pytest

from medalign.clean_text import clean


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<p>Fever &amp; <b>chills</b></p>", "Fever & chills"),
        ("one<br/>two", "one\ntwo"),
        ("pH <7.2 and HCO3 > 15", "pH <7.2 and HCO3 > 15"),
        ("pO2 < 60 <i>and</i> pCO2 > 50", "pO2 < 60 and pCO2 > 50"),
        ("schÃ¶n", "schön"),
        ("soft\u00adhyphen and\u00a0space", "softhyphen and space"),
        ("What is (are) Gout ?", "What is (are) Gout?"),
        ("a\n\n\n\nb  c", "a\n\nb c"),
        ("na\u0308ive", "näive"),
        ("bell\x07 here", "bell here"),
    ],
)
def test_form(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Give 5mcg now", "Give 5 mcg now"),
        ("Give 5 μg now", "Give 5 mcg now"),
        ("glucose 90 mg/dl", "glucose 90 mg/dL"),
        ("hemoglobin 12 gm%", "hemoglobin 12 g/dL"),
        ("sodium 140 meq/l", "sodium 140 mEq/L"),
        ("120/80 mmHg", "120/80 mm Hg"),
        ("500 ml of saline", "500 mL of saline"),
        ("platelets 150000/cumm", "platelets 150000/mcL"),
        ("38.5 deg C", "38.5 °C"),
        ("grams stain", "grams stain"),
        ("5 G tubes", "5 G tubes"),
    ],
)
def test_units(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "A 20 y/o man c/o pain, h/o asthma",
            "A 20 year-old man complains of pain, history of asthma",
        ),
        ("The renal aery and the hea", "The renal artery and the heart"),
        ("Hypeension is common", "Hypertension is common"),
        ("MS, PT and RA stay", "MS, PT and RA stay"),
        ("the aerial view", "the aerial view"),
        ("TX N0 M0, HX, SHO", "TX N0 M0, HX, SHO"),
    ],
)
def test_words(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Rest helps. For more information, see the CDC website. Drink.", "Rest helps. Drink."),
        ("See www.cdc.gov/flu for it", "See for it"),
        (
            "Ans. is FRC (Ref: Ganong 25/e p629, 24/e p629). It is balanced.",
            "Ans. is FRC. It is balanced.",
        ),
        ("Take rest. Hope this helps you.\nRegards, Dr", "Take rest."),
        ("As regards dose, do not exceed 4 g a day.", "As regards dose, do not exceed 4 g a day."),
        ("HCM is inherited.", "HCM is inherited."),
        (
            "Potassium 4.1 (reference range 3.5-5.0 mEq/L)",
            "Potassium 4.1 (reference range 3.5-5.0 mEq/L)",
        ),
        ("Gel from a website may be fake.", "Gel from a website may be fake."),
    ],
)
def test_boilerplate(text, wanted):
    assert clean(text) == wanted


def test_changes_are_counted_and_nothing_changes_twice():
    changes = Counter()
    once = clean("c/o pain, 5 mgs, see www.x.org", changes)
    assert changes["word"] == 1 and changes["unit"] == 1 and changes["web address"] == 1
    assert clean(once) == once
