"""Real architectures from timm and torchvision with random weights, at a small legal input, for ten classes.

Needs the extra ``zoo``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateurs.models.external import optional

CONVOLUTIONAL = (
    "resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "res2net50_26w_4s", "resnetv2_50", "densenet121",
    "vgg11_bn", "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
    "efficientnet_b0", "tf_efficientnetv2_b0", "regnetx_002", "regnety_002", "repvgg_a0", "convnext_atto",
    "ghostnet_100", "repghostnet_050", "dla34", "nf_resnet26", "cspresnet50", "darknet53", "mobileone_s0",
    "legacy_xception", "resnest14d", "tinynet_e", "rexnet_100", "ese_vovnet19b_dw", "lcnet_050", "mnasnet_100",
    "fbnetc_100", "skresnet18", "selecsls42b", "gcresnet33ts", "repvit_m1", "hgnet_tiny", "starnet_s1",
    "ecaresnet26t", "mixnet_s", "fasternet_t0", "convmixer_768_32", "inception_v3", "hrnet_w18_small",
    "torchvision:shufflenet_v2_x1_0", "torchvision:googlenet", "torchvision:squeezenet1_1",
    "torchvision:fcn_resnet50", "torchvision:lraspp_mobilenet_v3_large", "torchvision:resnet18_fpn",
)  # fmt: skip
"""Networks of convolutions, gates and pooling."""

OTHER = (
    "fastvit_t8", "poolformer_s12", "efficientvit_b0", "mambaout_femto", "mobilevit_xxs", "edgenext_xx_small",
    "pvt_v2_b0", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224",
    "coatnet_0_224", "levit_128s", "mixer_s32_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "tiny_vit_5m_224",
    "botnet26t_256", "hiera_tiny_224",
)  # fmt: skip
"""Networks with attention or token mixing, and hybrids."""

ZOO = (*CONVOLUTIONAL, *OTHER)

_RESIZED = {
    "vit_tiny_patch16_224": 64, "deit_tiny_distilled_patch16_224": 64, "swin_tiny_patch4_window7_224": 112,
    "mixer_s32_224": 64, "cait_xxs24_224": 64, "coatnet_0_224": 96, "hiera_tiny_224": 64,
}  # fmt: skip
"""Networks built for a smaller image (their tables follow the size)."""

_SIZES = {
    "levit_128s": 224, "tiny_vit_5m_224": 224, "botnet26t_256": 256, "xcit_nano_12_p16_224": 64, "inception_v3": 96,
    "mobilevit_xxs": 64, "efficientvit_b0": 64,
}  # fmt: skip
"""Image sizes of the others; 64 where nothing stands here."""


@dataclass(frozen=True)
class Entry:
    """A network, its example [2, 3, size, size] and whether it is purely convolutional."""

    name: str
    model: nn.Module
    example: torch.Tensor
    convolutional: bool


def build(name: str, seed: int = 0, batch: int = 1) -> Entry:
    """The network of the list by name, in evaluation mode, weights drawn from ``seed``."""
    torch.manual_seed(seed)
    family, _, leaf = name.rpartition(":")
    size = _RESIZED.get(leaf, _SIZES.get(leaf, 64))
    model = _torchvision(leaf) if family else _timm(leaf)
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn(batch, 3, size, size, generator=generator)
    return Entry(name, model.eval(), example, name in CONVOLUTIONAL)


def _timm(name: str) -> nn.Module:
    timm = optional("timm", f"Network {name}", "zoo")
    resized: dict[str, Any] = {"img_size": _RESIZED[name]} if name in _RESIZED else {}
    return timm.create_model(name, pretrained=False, num_classes=10, **resized)  # type: ignore[no-any-return]


def _torchvision(name: str) -> nn.Module:
    torchvision = optional("torchvision", f"Network {name}", "zoo")
    if name == "resnet18_fpn":
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)  # type: ignore[no-any-return]
    models = torchvision.models
    factory = getattr(models, name, None) or getattr(models.segmentation, name)
    extra: dict[str, Any] = {}
    if name == "googlenet":
        extra = {"aux_logits": False, "init_weights": False}
    if name in ("fcn_resnet50", "lraspp_mobilenet_v3_large"):
        extra = {"weights_backbone": None}
    return factory(weights=None, num_classes=10, **extra)  # type: ignore[no-any-return]
