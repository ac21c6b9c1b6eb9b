"""The model that every method with a head builds on: features of an image, and a head on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cl_bench.models.growing import Growing
from cl_bench.models.statistics import ClassStatistics, Covariance
from cl_bench.models.vit import Execution, ViT


class FeatureModel(Growing):
    """A backbone, features of each image made with it, and a head on them: [B, C, H, W] -> logits [B, num_classes].

    `vit` is the pass through the backbone, in which a method may change weights and put in prompts or adapters.

    With classifier alignment it also keeps statistics of each class's features. If the trained head is to go on from
    where it was, there is a second one, `aligned`: it predicts, `head` is trained.
    """

    statistics: ClassStatistics | None
    aligned: nn.Linear | None

    def __init__(self, backbone: VisionTransformer, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.vit = ViT(backbone)
        self.head = head
        self.statistics = None
        self.aligned = None

    def keep_statistics(self, covariance: Covariance, aligned: bool) -> None:
        """Make room for class statistics and, if `aligned`, for the second head."""
        assert isinstance(self.head, nn.Linear)
        self.statistics = ClassStatistics(self.head.in_features, covariance)
        self.aligned = copy.deepcopy(self.head) if aligned else None

    @property
    def _vits(self) -> list[ViT]:
        """The passes through all backbones inside: its own, and for example that of a frozen copy."""
        inside = (module for module in self.modules() if isinstance(module, VisionTransformer))
        return [self.vit, *(ViT.of(backbone) for backbone in inside if backbone is not self.backbone)]

    def set_execution(self, execution: Execution) -> None:
        """Set how all backbones inside are run from now on; at first it is eager fp32."""
        for vit in self._vits:
            vit.execution = execution

    def flops(self, run: Callable[[], object]) -> int:
        """Floating-point operations of what is run with the backbones inside, without gradients: two per multiply-add,
        attention included."""
        with ExitStack() as stack:
            for vit in self._vits:
                stack.enter_context(vit.plainly())
            stack.enter_context(torch.no_grad())
            counter = stack.enter_context(FlopCounterMode(display=False))
            run()
        return int(counter.get_total_flops())

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.parameters()).device

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, [B, d]: here the CLS features of the backbone."""
        return self.vit.features(images)

    def own_features(self, images: Tensor) -> Tensor:
        """The same for images that are known to be the current task's: what class statistics are made of."""
        return self.features(images)

    @property
    def predicting_head(self) -> nn.Module:
        """The aligned head, if there is one."""
        return self.head if self.aligned is None else self.aligned

    def query(self, images: Tensor) -> Tensor | None:
        """A frozen feature [B, d] from which a prediction starts: the second argument of `forward`, computed once per
        test image and run. None: there is none."""
        return None

    def merged(self) -> nn.Module:
        """What predicts the same, as the model is now, for less: here the model itself."""
        return self

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features: by the trained head while it is trained, else by the predicting one."""
        return (self.head if self.training else self.predicting_head)(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))
