"""The embedded base model: its tokenizer is the original's, its template adds nothing."""

from __future__ import annotations

import random

import pytest
from llama_cpp import Llama
from transformers import AutoTokenizer

from medalign.artifacts import StepError, read_jsonl
from medalign.build_base import TEMPLATE, embedded_gguf, gguf_fields
from medalign.check_education import EDUCATION

PIECES = [
    "hypertension", " the", "β-blocker", "µg/dL", "37.5 °C", "10⁹/L", "naïve", "Sjögren", "Ménière",
    "Guillain–Barré", "2,000", "0.05", "1234567890", "\n", "\n\n", "\t", "  ", "   ", "\r\n", "’s",
    "don't", "I'll", "日本語", "🫀", "👩‍⚕️", "Δ", "α", "Ω", "≥", "±", "½", "mm\u2009Hg", "\u00a0",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "**Note**:", "COVID-19",
    "SpO2", "HbA1c", "T4/T3", "e\u0301", "É", "ﬁ", "_", "__", "...", "…", "(", ")", "#", "a",
]  # fmt: skip


def varied_strings() -> list[str]:
    """600 strings: each piece, random joints of pieces, and the education set itself."""
    shuffle = random.Random(0)
    joined = ["".join(shuffle.choices(PIECES, k=shuffle.randint(2, 12))) for _ in range(300)]
    rows = [r for s in ("train", "test") for r in read_jsonl(EDUCATION / f"{s}.jsonl")]
    return PIECES + joined + [r["prompt"] for r in rows] + [r["answer"] for r in rows[::4]]


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def original():
    return Llama(str(embedded_gguf()), vocab_only=True, verbose=False)


@pytest.fixture(scope="module")
def converted(base_gguf):
    return Llama(str(base_gguf), vocab_only=True, verbose=False)


def test_token_ids_equal_the_original_ggufs(tokenizer, original):
    strings = varied_strings()
    assert len(strings) > 500
    for text in strings:
        theirs = original.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.encode(text, add_special_tokens=False) == theirs, repr(text)


def test_token_ids_survive_the_way_back_to_gguf(tokenizer, converted):
    for text in varied_strings():
        theirs = converted.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.encode(text, add_special_tokens=False) == theirs, repr(text)


def test_decoding_gives_the_text_back(tokenizer):
    for text in varied_strings():
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


def test_special_tokens_are_the_chat_formats(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_template_adds_no_system_prompt_of_its_own(tokenizer):
    chat = [{"role": "user", "content": "What is edema?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nWhat is edema?<|im_end|>\n<|im_start|>assistant\n"


def test_gguf_carries_our_template_and_a_pre_tokenizer_llama_cpp_knows(converted):
    assert converted.metadata["tokenizer.chat_template"].strip() == TEMPLATE.read_text().strip()
    assert converted.metadata["tokenizer.ggml.model"] == "gpt2"
    assert converted.metadata["tokenizer.ggml.pre"] == "smollm"


def test_a_truncated_gguf_is_one_clear_error(tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(embedded_gguf().read_bytes()[:4000])
    with pytest.raises(StepError, match=r"cut\.gguf: not a whole GGUF"):
        gguf_fields(cut)
