"""SD-LoRA in a plain Avalanche script: Avalanche's stream, metrics and loggers, then cl-bench's own counts."""

from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin

from cl_bench import streams
from cl_bench.experiment import ImageTransforms, Limits
from cl_bench.methods.sdlora import SDLoRA
from cl_bench.streams.scenarios import build
from cl_bench.training.strategy import ContinualStrategy

views = ImageTransforms(size=32, crop_scale=(0.6, 1.0), mean=(0.5,), std=(0.5,))
limits = Limits(tasks=3, train_per_class=10, test_per_class=10)
stream = build(streams.find("icons-tune").source(), 10, "permutation:1993", views, limits)
metrics = [accuracy_metrics(experience=True, stream=True), forgetting_metrics(experience=True, stream=True)]
strategy = ContinualStrategy(
    plugins=[SDLoRA(rank=4, epochs=3, batch_size=20)],
    backbone="vit_tiny_patch8_32.icons",
    num_classes=40,
    evaluator=EvaluationPlugin(*metrics, loggers=[InteractiveLogger()]),
)
for experience in stream.train:
    strategy.train(experience)
    results = strategy.eval(stream.test)
counts = strategy.count_matrix(stream.test)
print("Avalanche:", results["Top1_Acc_Stream/eval_phase/test_stream"])
print("cl-bench: ", sum(hits or 0 for hits in counts.correct) / sum(counts.total))
