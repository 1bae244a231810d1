"""Placeholder tokens: where they stand, what they start from, and that nothing but their rows ever changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_pipeline, tiny_text_encoder
from torch import nn

from motion_lora.base.tokens import _ExtendedTable, _replace_child, check_length, initial_tokens, with_tokens
from motion_lora.core.absorber import Absorber, PlaceholderTokens
from motion_lora.core.errors import ClipError, LoRAFileError, SettingsError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.phrases import missing_phrases, shared_phrases, split_phrases, substitute


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(levels=2)


# Words in captions --------------------------------------------------------------------------------------------------


def test_phrases():
    assert split_phrases(" red  circle, sand ,,") == ("red circle", "sand")
    assert split_phrases("") == ()
    assert missing_phrases("A Red circle over sand", "red circle, snow, san") == ("snow", "san")


@pytest.mark.parametrize(
    ("caption", "appearance", "limit", "expected"),
    [
        ("a red circle moving left over sand", "a red circle over sand", 4, "red circle, sand"),
        ("a red circle moving left over sand", "a red circle over sand", 1, "red circle"),
        ("A man, in red, is skating", "a man, in red", 4, "man, red"),
        ("the moving sand", "a circle", 4, ""),
    ],
)
def test_shared_phrases(caption, appearance, limit, expected):
    assert shared_phrases(caption, appearance, limit) == expected


def test_tokens_stand_where_the_words_stood():
    tokens = ("<1>", "<2>", "<3>")
    assert substitute("a red circle over sand", tokens, "red circle") == "a <1> <2> <3> over sand"
    assert substitute("a Red  circle over sand", tokens[:2], "red circle, sand") == "a <1> over <2>"
    assert substitute("a red circle over sand", tokens, "sand, red circle") == "a <3> over <1> <2>"
    assert substitute("a man with a look", ("<look-1>", "<look-2>"), "man, look") == "a <look-1> with a <look-2>"
    assert substitute("red circle, red", tokens[:2], "red, red circle") == "<2>, <1>"
    assert substitute("sand on sandy sand", (r"<\1>",), "sand") == r"<\1> on sandy <\1>"


def test_words_that_are_not_in_the_caption_are_named():
    with pytest.raises(ClipError, match=r"'blue square' are not in the caption 'a red circle'"):
        substitute("a red circle", ("<1>", "<2>"), "circle, blue square")
    with pytest.raises(ClipError, match="1 tokens for the 2 phrases"):
        substitute("a red circle", ("<1>",), "circle, red")
    with pytest.raises(ClipError, match="no words to absorb"):
        substitute("a red circle", ("<1>",), " ")


# Rows ---------------------------------------------------------------------------------------------------------------


def rows_of(pipeline, *words: str) -> torch.Tensor:
    table = pipeline.text_encoder.get_input_embeddings().weight
    return table[[pipeline.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in words]]


def test_rows_start_at_the_words(pipeline):
    red, circle, sand = rows_of(pipeline, "red", "circle", "sand")
    two = initial_tokens(pipeline, ["red circle"], 2)
    assert torch.equal(two.rows, torch.stack([red, circle]))
    one = initial_tokens(pipeline, ["red circle"], 1)
    assert torch.allclose(one.rows, ((red + circle) / 2)[None])
    four = initial_tokens(pipeline, ["red circle, sand"], 4)
    assert torch.equal(four.rows, torch.stack([red, circle, sand, sand]))
    assert four.words == ("red circle, sand",) * 4 and len(set(four.names)) == 4


def test_clips_of_different_looks_have_tokens_of_their_own(pipeline):
    tokens = initial_tokens(pipeline, ["red circle", "blue square", "red circle"], 2)
    assert len(tokens.names) == 4
    assert tokens.names_for("red circle") == tokens.names[:2]
    assert tokens.names_for("blue square") == tokens.names[2:]
    assert tokens.names_for("something else") == tokens.names


def test_four_tokens_of_the_real_width_are_4096_numbers(pipeline):
    wide = replace(pipeline, text_encoder=tiny_text_encoder(width=1024))
    assert initial_tokens(wide, ["red circle"], 4).rows.numel() == 4_096


def test_untrained_tokens_say_what_the_words_said(pipeline):
    tokens = initial_tokens(pipeline, ["red circle"], 2)
    taught, _ = with_tokens(pipeline, tokens)
    prompt = substitute("a red circle over sand", tokens.names, "red circle")
    assert len(taught.tokenizer(prompt)["input_ids"]) == len(pipeline.tokenizer("a red circle over sand")["input_ids"])
    assert torch.equal(taught.encode_prompt([prompt]), pipeline.encode_prompt(["a red circle over sand"]))


def test_the_base_learns_no_word(pipeline):
    before = {name: weight.clone() for name, weight in pipeline.text_encoder.state_dict().items()}
    vocabulary, modules = len(pipeline.tokenizer), dict(pipeline.text_encoder.named_modules())
    tokens = initial_tokens(pipeline, ["red circle"], 2)
    taught, rows = with_tokens(pipeline, tokens)
    with torch.no_grad():
        rows.add_(1.0)
    assert taught.encode_prompt(["a <look-1> <look-2>"]).isfinite().all()
    assert len(pipeline.tokenizer) == vocabulary and "<look-1>" not in pipeline.tokenizer.get_vocab()
    assert dict(pipeline.text_encoder.named_modules()) == modules
    after = pipeline.text_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # other captions are read as ever
    assert torch.equal(taught.encode_prompt(["a blue square"]), pipeline.encode_prompt(["a blue square"]))
    assert torch.equal(tokens.rows, initial_tokens(pipeline, ["red circle"], 2).rows), "training works on a copy"


def test_only_the_new_rows_get_a_gradient(pipeline):
    tokens = initial_tokens(pipeline, ["red circle"], 3)
    taught, rows = with_tokens(pipeline, tokens)
    rows.requires_grad_(True)
    taught.encode_prompt(["a <look-1> over <look-3>"], gradients=True).square().sum().backward()
    assert rows.grad is not None and rows.grad.dtype is torch.float32
    assert rows.grad[0].any() and rows.grad[2].any() and not rows.grad[1].any()
    others = [weight for weight in taught.text_encoder.parameters() if weight is not rows]
    assert not any(weight.requires_grad for weight in others)
    assert all(weight.grad is None for weight in pipeline.text_encoder.parameters())


def test_the_layout_of_transformers_4():
    """There the table is at text_model.embeddings.token_embedding; it is found wherever it is."""
    inner, outer = nn.Module(), nn.Module()
    inner.embeddings, outer.text_model = nn.Module(), inner
    inner.embeddings.token_embedding = table = nn.Embedding(5, 3)
    rows = nn.Parameter(torch.full((2, 3), 7.0))
    _replace_child(outer, table, _ExtendedTable(table, rows, first=5))
    found = outer.text_model.embeddings.token_embedding(torch.tensor([[1, 6, 5]]))
    assert torch.equal(found, torch.stack([table.weight[1], rows[1], rows[0]])[None])


def test_what_does_not_fit_is_refused(pipeline):
    with pytest.raises(LoRAFileError, match=r"rows \(2, 768\), where tiny needs \(2, 32\)"):
        with_tokens(pipeline, PlaceholderTokens(("<1>", "<2>"), torch.zeros(2, 768)))
    with pytest.raises(LoRAFileError, match="another text encoder"):
        with_tokens(pipeline, PlaceholderTokens(("<1>", "<2>"), torch.zeros(3, 32)))
    with pytest.raises(SettingsError, match="rename the tokens"):
        with_tokens(pipeline, PlaceholderTokens(("red</w>",), torch.zeros(1, 32)))
    check_length(pipeline, "a red circle")
    with pytest.raises(ClipError, match=r"has 22 tokens and tiny reads 16"):
        check_length(pipeline, "a " * 20)


def test_fingerprints_see_every_part():
    tokens = PlaceholderTokens(("<1>",), torch.zeros(1, 4))
    lora = LoRA({"m": LoRALayer(torch.ones(1, 2), torch.ones(2, 1))})
    kinds = [
        Absorber(),
        Absorber(spatial=lora),
        Absorber(tokens=tokens),
        Absorber(lora, tokens),
        Absorber(tokens=replace(tokens, rows=torch.ones(1, 4))),
        Absorber(tokens=replace(tokens, names=("<2>",))),
        Absorber(weights={"w": torch.zeros(2)}),
        Absorber(weights={"w": torch.ones(2)}),
    ]
    assert len({absorber.fingerprint() for absorber in kinds}) == len(kinds)
    assert Absorber(lora, tokens, {"k": "v"}).fingerprint() == Absorber(lora, tokens).fingerprint()
