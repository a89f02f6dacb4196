# SPDX-License-Identifier: GPL-3.0-or-later
"""A Llama of two small layers, made on the spot: engines can serve it, and nothing has to be downloaded.

What it writes is random, though the same every time. Its tokenizer has a token for each byte, so that a text has as
many tokens as bytes. The files are those of a Hugging Face folder; nothing but the standard library writes them.
"""

from __future__ import annotations

import json
import random
import struct
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

LAYERS = 2
WIDTH = 128
HEADS = 4
HEAD_WIDTH = 32
INNER = 256
CONTEXT = 8192
"""Tokens of prompt and answer together that it can be asked for."""
BEGIN, END, TURN = "<|begin|>", "<|end|>", "<|turn|>"
SPECIAL = (BEGIN, END, TURN)
VOCABULARY = 256 + 64
"""One for each byte, the special ones, and some that never occur: engines like round numbers."""
RANK = 8
"""Of an adapter."""
TEMPLATE = (
    f"{{{{ '{BEGIN}' }}}}"
    f"{{% for message in messages %}}{TURN}{{{{ message['role'] }}}}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)
Shapes = Mapping[str, tuple[int, ...]]


def model(folder: Path) -> Path:
    """Write the model into a folder, which is made; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _config())
    _write(folder / "generation_config.json", {"bos_token_id": 256, "eos_token_id": 257})
    _write(folder / "tokenizer.json", _tokenizer())
    _write(folder / "tokenizer_config.json", _tokenizer_config())
    _weights(folder / "model.safetensors", _shapes(), seed=1)
    return folder


def adapter(folder: Path, seed: int) -> Path:
    """Write a LoRA adapter of the model into a folder, which is made; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = ("q_proj", "v_proj")
    config = {
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
    }
    _write(folder / "adapter_config.json", config)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes[f"{name}.lora_A.weight"] = (RANK, WIDTH)
            shapes[f"{name}.lora_B.weight"] = (HEADS * HEAD_WIDTH, RANK)
    _weights(folder / "adapter_model.safetensors", shapes, seed)
    return folder


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "max_position_embeddings": CONTEXT,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
    }


def _tokenizer() -> dict[str, object]:
    added = [
        {
            "id": 256 + number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, text in enumerate(SPECIAL)
    ]
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": bytewise,
        "post_processor": None,
        "decoder": bytewise,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(_letters())},
            "merges": [],
        },
    }


def _letters() -> Iterator[str]:
    """The letter that stands for each byte in vocabularies of this kind, as GPT-2 has them."""
    moved = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            yield chr(byte)
        else:
            yield chr(256 + moved)
            moved += 1


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }


def _shapes() -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for each in ("q_proj", "k_proj", "v_proj"):
            shapes[f"{name}.self_attn.{each}.weight"] = (HEADS * HEAD_WIDTH, WIDTH)
        shapes[f"{name}.self_attn.o_proj.weight"] = (WIDTH, HEADS * HEAD_WIDTH)
        shapes[f"{name}.mlp.gate_proj.weight"] = (INNER, WIDTH)
        shapes[f"{name}.mlp.up_proj.weight"] = (INNER, WIDTH)
        shapes[f"{name}.mlp.down_proj.weight"] = (WIDTH, INNER)
        shapes[f"{name}.input_layernorm.weight"] = (WIDTH,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (WIDTH,)
    shapes["model.norm.weight"] = (WIDTH,)
    shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    return shapes


def _weights(path: Path, shapes: Shapes, seed: int) -> None:
    """A safetensors file: the length of its head (8 bytes, little-endian), the head in JSON, the numbers."""
    dice = random.Random(seed)
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, shape in shapes.items():
        if len(shape) == 1:
            numbers = array("f", [1.0]) * shape[0]
        else:
            numbers = array("f", (dice.gauss(0.0, 0.05) for _ in range(shape[0] * shape[1])))
        begin = len(body)
        body += struct.pack(f"<{len(numbers)}f", *numbers)
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(body)]}
    written = json.dumps(head).encode()
    written += b" " * (-len(written) % 8)
    path.write_bytes(struct.pack("<Q", len(written)) + written + body)


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")
