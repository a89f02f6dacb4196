# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a small model for llama.cpp: a program for its environment, `python gguf_model.py FILE`.

It is a Llama of four layers with random weights, always the same ones, and a vocabulary of single characters. It says
printable characters only and never comes to an end by itself, so that `max_tokens` says how long a request takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
from gguf import GGUFWriter, TokenType

SEED = 7
LAYERS, WIDTH, INNER, HEADS, CONTEXT = 4, 256, 1024, 4, 8192
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_SPECIAL = (("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL))
_NEVER = -40.0


def vocabulary() -> list[tuple[str, TokenType]]:
    """Special tokens, a token for each byte, and one for each printable character; `▁` is the blank."""
    single = [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    printable = [("▁" if code == 32 else chr(code), TokenType.NORMAL) for code in range(32, 127)]
    return [*_SPECIAL, *single, *printable]


def write(path: Path) -> None:
    """Write the model."""
    tokens = vocabulary()
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weights in _weights(len(tokens)).items():
        writer.add_tensor(f"{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(tokens: int) -> dict[str, numpy.ndarray]:
    random = numpy.random.default_rng(SEED)

    def matrix(rows: int, columns: int) -> numpy.ndarray:
        return random.normal(0.0, 0.05, (rows, columns)).astype(numpy.float32)

    ones = numpy.ones(WIDTH, numpy.float32)
    embedding, output = matrix(tokens, WIDTH), matrix(tokens, WIDTH)
    # The first figure of each vector is the same large one, by which no special token and no byte is ever likely.
    embedding[:, 0] = 10.0
    output[:, 0] = 0.0
    output[: len(_SPECIAL) + 256, 0] = _NEVER
    found = {"token_embd": embedding, "output_norm": ones, "output": output}
    for layer in range(LAYERS):
        block = {
            "attn_norm": ones,
            "ffn_norm": ones,
            **{f"attn_{each}": matrix(WIDTH, WIDTH) for each in ("q", "k", "v", "output")},
            "ffn_gate": matrix(INNER, WIDTH),
            "ffn_up": matrix(INNER, WIDTH),
            "ffn_down": matrix(WIDTH, INNER),
        }
        found |= {f"blk.{layer}.{name}": weights for name, weights in block.items()}
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
