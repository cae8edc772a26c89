"""Make a tiny Mistral to rehearse with: 2 layers, random weights, the real v0.3 tokenizer.

    python scripts/build_tiny_mistral.py --out build/models/tiny-mistral

Shaped so that all that holds for Mistral-7B-Instruct-v0.3 can be tried on a CPU but its
answers: the same architecture and vocabulary, dimensions that are multiples of 256 (so that
Q4_K_M quantizes as it does there), the SentencePiece model that mistral-common carries.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import shutil
import time
from pathlib import Path
from typing import Any

from medalign.artifacts import ROOT, manifest, run_step, write_json, written_whole

TOKENIZER = "mistral_instruct_tokenizer_240323.model.v3"
TEMPLATE = ROOT / "recipes/templates/mistral-v3.jinja"
SHAPE: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def order_merges(folder: Path) -> None:
    """Put the merges of tokenizer.json into the order of SentencePiece: by the piece's score.

    transformers 5.16.1 orders them by id, so that runs of spaces, whose score is the lowest,
    are merged first and leading spaces get other ids than in mistral-common and llama.cpp.
    """
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["merges"].sort(
        key=lambda pair: -pieces.get_score(pieces.piece_to_id("".join(pair)))
    )
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def build(out: Path) -> None:
    """Write the model folder: bf16 safetensors, tokenizer.model, tokenizer.json, manifest."""
    import torch
    from transformers import GenerationConfig, LlamaTokenizer, MistralConfig, MistralForCausalLM

    began = time.monotonic()
    torch.manual_seed(0)
    config = MistralConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    model = MistralForCausalLM(config)
    model.bfloat16()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    source = Path(str(importlib.resources.files("mistral_common") / "data" / TOKENIZER))
    with written_whole(out) as folder:
        model.save_pretrained(folder)
        shutil.copyfile(source, folder / "tokenizer.model")
        tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False)
        tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
        tokenizer.save_pretrained(folder)
        order_merges(folder)
        facts = manifest(
            "base",
            {"tokenizer": source, "template": TEMPLATE},
            began,
            weights="random",
            licence="Apache-2.0",
            parameters=model.num_parameters(),
        )
        write_json(folder / "manifest.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    build(out)
    print(f"{out}: random weights, the tokenizer of Mistral-7B-Instruct-v0.3")


if __name__ == "__main__":
    run_step(main)
