"""Merging a QLoRA adapter: into which base, made how, and what is refused."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from medalign.artifacts import StepError
from medalign.merge_adapter import merge, merge_recipe, scaled
from medalign.trained_base import (
    DTYPES,
    WAYS,
    fetch,
    linear_weights,
    nf4_and_back,
    qlora_merge,
    write_as_trained,
)

SIZE = dict(hidden_size=256, intermediate_size=320, num_hidden_layers=2, vocab_size=320)
SIZE |= dict(num_attention_heads=4, num_key_value_heads=2)
QLORA = {"adapter": "qlora", "load_in_4bit": True}


def weights(folder) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def changed(before, after) -> set[str]:
    """The names of the tensors of two model folders that differ."""
    one, other = weights(before), weights(after)
    assert set(one) == set(other)
    assert all(one[name].dtype == other[name].dtype for name in one)
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture(scope="module", params=["mistral", "llama-tied"])
def tiny(request, tmp_path_factory):
    """A random model of two layers in bf16, in several shards; lm_head its own or tied."""
    torch.manual_seed(0)
    if request.param == "mistral":
        model = MistralForCausalLM(MistralConfig(**SIZE))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True))
    folder = tmp_path_factory.mktemp(request.param)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="500KB")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.model").write_text("pieces")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_the_base_as_trained_is_what_transformers_quantizes_to(tiny, tmp_path, dtype, double_quant):
    """Tensor by tensor against the model that a training would have loaded."""
    import bitsandbytes as bnb

    write_as_trained(
        tiny,
        tmp_path / "base",
        {**QLORA, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": double_quant}},
        DTYPES[dtype],
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny,
        dtype=DTYPES[dtype],
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=DTYPES[dtype],
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_quant_storage=torch.bfloat16,
        ),
    )
    written = weights(tmp_path / "base")
    quantized = 0
    for name, parameter in model.named_parameters():
        value, wanted = parameter.data, written[name].to(DTYPES[dtype])
        if isinstance(parameter, bnb.nn.Params4bit):
            value = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)
            value, wanted = value.to(torch.bfloat16), written[name]  # as the base is stored
            quantized += 1
        assert torch.equal(value, wanted), name
    assert quantized == 14  # seven linear layers in each of the two
    assert len(written) == len(list(model.parameters()))


def test_only_the_linear_layers_go_through_nf4(tiny, tmp_path):
    write_as_trained(tiny, tmp_path / "base", QLORA, torch.bfloat16)
    names = changed(tiny, tmp_path / "base")
    assert names == linear_weights(tiny) == {n for n in weights(tiny) if "_proj." in n}
    before, after = weights(tiny), weights(tmp_path / "base")
    for name in names:
        off = (after[name].float() - before[name].float()).norm() / before[name].float().norm()
        assert 0.05 < off < 0.15  # NF4 of normal weights in blocks of 64
        assert len(after[name].flatten()[:64].unique()) <= 16
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "base" / name).read_bytes() == (tiny / name).read_bytes()


def test_a_second_time_through_nf4_changes_little(tiny):
    weight = next(iter(weights(tiny).values()))
    once = nf4_and_back(weight, torch.bfloat16)
    twice = nf4_and_back(once, torch.bfloat16)
    assert (twice - once).float().norm() < 0.05 * (weight - once).float().norm()


def test_each_way_gives_axolotl_a_folder_and_an_adapter_kind(tiny, tmp_path):
    config = {**QLORA, "base_model": "someone/base", "revision_of_model": "v1", "lora_r": 8}
    plans = {way: merge_recipe(config, tiny, tmp_path, way, "bf16") for way in WAYS}
    plain = {"adapter": "lora", "load_in_4bit": False, "lora_r": 8}
    assert plans["as_trained"] == {**plain, "base_model": str(tmp_path / "base")}
    assert plans["unquantized"] == {**plain, "base_model": str(tiny)}
    assert plans["every_matrix"] == {**QLORA, "lora_r": 8, "base_model": str(tiny)}


def test_without_qlora_nothing_is_quantized(tiny, tmp_path):
    config = {"adapter": "lora", "base_model": str(tiny), "qlora_merge": "as_trained"}
    assert qlora_merge(config) is None
    assert merge_recipe(config, tiny, tmp_path, None, "bf16") == config
    assert not (tmp_path / "base").exists()


def test_a_scaled_adapter_changes_the_weights_so_many_times_as_much(tmp_path):
    adapter = tmp_path / "adapter"
    (adapter / "checkpoint-1").mkdir(parents=True)
    pair = {"q.lora_A.weight": torch.randn(2, 8), "q.lora_B.weight": torch.randn(8, 2)}
    save_file(pair, adapter / "adapter_model.safetensors")
    copy = scaled(adapter, 0.5, tmp_path / "work")
    half = load_file(copy / "adapter_model.safetensors")
    product, halved = (t["q.lora_B.weight"] @ t["q.lora_A.weight"] for t in (pair, half))
    assert torch.allclose(halved, product / 2)
    assert not (copy / "checkpoint-1").exists()
    save_file({**pair, "lm_head.weight": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    (tmp_path / "other").mkdir()
    with pytest.raises(StepError, match="only a plain LoRA"):
        scaled(adapter, 0.5, tmp_path / "other")


def test_the_key_decides_and_a_typo_is_named():
    assert qlora_merge(QLORA) == "as_trained"
    assert qlora_merge({**QLORA, "qlora_merge": "unquantized"}) == "unquantized"
    with pytest.raises(StepError, match=r"qlora_merge: 'legacy' is none of as_trained"):
        qlora_merge({**QLORA, "qlora_merge": "legacy"})


def test_axolotl_knows_the_key_and_its_words():
    from pydantic import ValidationError

    from medalign.axolotl_plugin import MedAlignArgs, MedAlignPlugin

    assert MedAlignPlugin().get_input_args() == "medalign.axolotl_plugin.MedAlignArgs"
    assert MedAlignArgs(qlora_merge="unquantized").qlora_merge == "unquantized"
    assert MedAlignArgs().qlora_merge is None
    with pytest.raises(ValidationError, match="qlora_merge"):
        MedAlignArgs(qlora_merge="legacy")


def test_a_base_with_code_of_its_own_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(StepError, match="runs code of its own"):
        fetch({"base_model": str(tmp_path)})


def test_a_base_without_safetensors_is_refused(tmp_path):
    with pytest.raises(StepError, match=r"has no config\.json"):
        fetch({"base_model": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(StepError, match=r"has no model\*\.safetensors"):
        fetch({"base_model": str(tmp_path)})


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StepError, match="lacks model-00002-of-00002"):
        fetch({"base_model": str(tmp_path)})


def test_a_hub_id_is_its_snapshot_without_the_second_copy_of_the_weights(tiny, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch({"base_model": "someone/base", "revision_of_model": "v1"}) == tiny
    assert (asked["name"], asked["revision"]) == ("someone/base", "v1")

    def wanted(name):
        return any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    files = ["model-00001-of-00003.safetensors", "config.json", "tokenizer.model"]
    assert all(map(wanted, [*files, "generation_config.json", "tokenizer.json"]))
    assert not any(map(wanted, ["consolidated.safetensors", "pytorch_model.bin", "code.py"]))


def test_a_hub_id_that_cannot_be_fetched_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StepError, match="someone/not-there is no folder and the hub"):
        fetch({"base_model": "someone/not-there"})
    with pytest.raises(StepError, match="build/models/not-there is no folder"):
        fetch({"base_model": "build/models/not-there"})


def test_settings_that_are_not_reproduced_are_refused(tiny, tmp_path):
    config = {**QLORA, "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}}
    with pytest.raises(StepError, match="bnb_4bit_quant_type"):
        write_as_trained(tiny, tmp_path / "base", config, torch.bfloat16)


def test_a_base_quantized_already_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {}}))
    with pytest.raises(StepError, match="quantized already"):
        write_as_trained(tmp_path, tmp_path / "base", QLORA, torch.bfloat16)


def adapter_of(base, folder):
    """A QLoRA adapter for `base` as training leaves it, whose update is zero."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder)
    config = {
        **QLORA,
        "base_model": str(base),
        "plugins": ["medalign.axolotl_plugin.MedAlignPlugin"],
        "qlora_merge": "as_trained",
        "chat_template": "jinja",
        "chat_template_jinja": "recipes/templates/smollm2.jinja",
        "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
        "output_dir": str(folder),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.001,
        "bf16": "auto",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    (folder / "manifest.json").write_text(json.dumps({"name": "tiny", "dtype": "bf16"}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_axolotl_merges_into(tiny, tmp_path, way):
    """The real merge of an adapter that changes nothing: what differs went through NF4."""
    adapter = adapter_of(tiny, tmp_path / "adapter")
    facts = merge(adapter, tmp_path / "merged", way)
    linear = linear_weights(tiny)
    matrices = {name for name, tensor in weights(tiny).items() if tensor.ndim == 2}
    wanted = {"as_trained": linear, "unquantized": set(), "every_matrix": matrices}
    assert changed(tiny, tmp_path / "merged") == wanted[way]
    assert facts["qlora_merge"] == way and facts["base"] == {"id": str(tiny), "revision": None}
    assert (tmp_path / "merged/tokenizer.model").read_text() == "pieces"
    assert not (tmp_path / "merging.partial").exists()
