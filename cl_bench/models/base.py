"""The base class of all models: features of an image, and a head on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cl_bench.models.exemplars import Exemplars
from cl_bench.models.growing import Growing
from cl_bench.models.statistics import ClassStatistics, Covariance
from cl_bench.models.vit import Execution, ViT


class FeatureModel(Growing):
    """A backbone with a head on its features: images [B, C, H, W] -> logits [B, num_classes].

    Subclasses override `features`, and use `vit`, the pass through the backbone, to change weights or to add prompts or
    adapters.

    Args:
        backbone: ViT without head.
        head: module from features [B, d] to logits [B, num_classes].

    Attributes:
        backbone: the ViT.
        vit: pass through the backbone.
        head: the trained head.
        statistics: Gaussians of each class's features; None without classifier alignment.
        aligned: the head that predicts if alignment must not change the trained one; None: `head` predicts.
        exemplars: images of past tasks; None: the method keeps none.
    """

    statistics: ClassStatistics | None
    aligned: nn.Linear | None
    exemplars: Exemplars | None

    def __init__(self, backbone: VisionTransformer, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.vit = ViT(backbone)
        self.head = head
        self.statistics = None
        self.aligned = None
        self.exemplars = None

    def keep_statistics(self, covariance: Covariance, aligned: bool) -> None:
        """Add class statistics for classifier alignment.

        Args:
            covariance: stored form of covariances, see `ClassStatistics`.
            aligned: whether to add a second head, `aligned`, a copy of the trained one.
        """
        assert isinstance(self.head, nn.Linear)
        self.statistics = ClassStatistics(self.head.in_features, covariance)
        self.aligned = copy.deepcopy(self.head) if aligned else None

    def keep_exemplars(self, megabytes: float) -> None:
        """Add an empty memory of exemplars.

        Args:
            megabytes: size of the memory, in MB of 10^6 bytes.
        """
        self.exemplars = Exemplars(megabytes)

    @property
    def _vits(self) -> list[ViT]:
        """Passes through all backbones inside the model: its own and, for example, that of a frozen copy."""
        inside = (module for module in self.modules() if isinstance(module, VisionTransformer))
        return [self.vit, *(ViT.of(backbone) for backbone in inside if backbone is not self.backbone)]

    def set_execution(self, execution: Execution) -> None:
        """Set the precision and path of all backbones inside the model; a new model runs them eagerly in fp32."""
        for vit in self._vits:
            vit.execution = execution

    def flops(self, run: Callable[[], object]) -> int:
        """Count the floating-point operations of a call, two per multiply-add, attention included.

        Args:
            run: called once without gradients, with all backbones inside the model on the eager fp32 path.
        """
        with ExitStack() as stack:
            for vit in self._vits:
                stack.enter_context(vit.plainly())
            stack.enter_context(torch.no_grad())
            counter = stack.enter_context(FlopCounterMode(display=False))
            run()
        return int(counter.get_total_flops())

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.parameters()).device

    def features(self, images: Tensor) -> Tensor:
        """Features [B, d] of images [B, C, H, W] for the head; by default the CLS features of the backbone."""
        return self.vit.features(images)

    def own_features(self, images: Tensor) -> Tensor:
        """Features [B, d] of images of the current task, for class statistics; by default those of `features`.

        A model whose features depend on a choice of task may use the known task here.
        """
        return self.features(images)

    @property
    def predicting_head(self) -> nn.Module:
        """The head that predicts: the aligned one if there is one."""
        return self.head if self.aligned is None else self.aligned

    def query(self, images: Tensor) -> Tensor | None:
        """Frozen features [B, d] of images that `forward` takes as its second argument; None: it takes none.

        They must never change: an evaluation computes them once per test image and run.
        """
        return None

    def merged(self) -> nn.Module:
        """A module that predicts like the model in its present state at a lower cost; by default the model itself."""
        return self

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] of features [B, d]: by `head` in training mode, otherwise by `predicting_head`."""
        return (self.head if self.training else self.predicting_head)(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))
