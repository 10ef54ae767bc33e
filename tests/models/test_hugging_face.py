"""Networks of transformers from a folder: configuration and safetensors, never pickles."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateurs import models
from secateurs.errors import DataError
from secateurs.models.external import optional

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="the extra hf is not there")
TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip


def made(kind: str, **config: Any) -> Any:
    """A small network of this kind, with fixed weights."""
    transformers = optional("transformers", "A test", "hf")
    torch.manual_seed(0)
    network = getattr(transformers, kind)
    return network(network.config_class(**TINY, **config)).eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    made("BertForSequenceClassification", vocab_size=30, max_position_embeddings=12, num_labels=3).save_pretrained(
        folder
    )
    return folder


def test_tokens(bert: Path) -> None:
    loaded = models.load(f"hf:{bert}?length=6")
    example = loaded.example(2)
    assert {name: tuple(x.shape) for name, x in example.items()} == {"input_ids": (2, 6), "attention_mask": (2, 6)}
    assert loaded.classes == 3
    assert not loaded.random
    same = made("BertForSequenceClassification", vocab_size=30, max_position_embeddings=12, num_labels=3)
    with torch.no_grad():
        assert torch.equal(loaded.module(**example).logits, same(**example).logits)
    again = models.rebuild(json.loads(json.dumps(loaded.source)))
    with torch.no_grad():
        assert torch.equal(again.module(**example).logits, loaded.module(**example).logits)
    assert models.load(f"hf:{bert}").input_shape == (12,)


def test_images_with_their_preprocessing(tmp_path: Path) -> None:
    made("ViTForImageClassification", image_size=16, patch_size=8, num_labels=5).save_pretrained(tmp_path)
    assert not models.load(f"hf:{tmp_path}").pixels_told
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "rescale_factor": 1 / 255})
    )
    loaded = models.load(f"hf:{tmp_path}")
    assert loaded.input_shape == (3, 16, 16)
    assert loaded.classes == 5
    assert loaded.pixels_told
    assert (loaded.mean, loaded.std, loaded.scale) == ((0.5,) * 3, (0.25,) * 3, pytest.approx(255))


def test_a_decoder_in_half_precision_has_no_cache(tmp_path: Path) -> None:
    network = made("LlamaForCausalLM", vocab_size=30, max_position_embeddings=12, num_key_value_heads=1)
    network.half().save_pretrained(tmp_path)
    loaded = models.load(f"hf:{tmp_path}")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert any("stored in float16" in note for note in loaded.notes)
    assert any("without a cache" in note for note in loaded.notes)
    assert loaded.module(**loaded.example()).past_key_values is None


def test_what_the_file_lacks_is_told(bert: Path) -> None:
    loaded = models.load(f"hf:{bert}?kind=BertForMaskedLM")
    assert any("so random: cls." in note for note in loaded.notes)


def test_a_configuration_alone_is_random_and_pickles_are_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    loaded = models.load(f"hf:{tmp_path}")
    assert loaded.random
    assert "random" in loaded.notes[0]
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match=r"as pickles only .pytorch_model.bin.*save_pretrained"):
        models.load(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:{}?size=64", "takes no images"),
        ("hf:{}?colour=red", "has no option 'colour'. There are length, kind, revision"),
        ("hf:{}?kind=NoSuchNetwork", "has no network 'NoSuchNetwork'"),
        ("hf:{}/nowhere", "has no readable configuration"),
    ],
)
def test_wrong_texts(text: str, message: str, bert: Path) -> None:
    with pytest.raises(DataError, match=message):
        models.load(text.format(bert))


def test_own_code_is_not_run(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="from its own folder, which is not run"):
        models.load(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()
