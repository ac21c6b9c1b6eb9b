# cl-bench on a CPU, in two commands:
#
#     docker build -t cl-bench .
#     docker run --rm -v "$PWD":/work cl-bench run --methods sdlora,coda
#
# Results and reports appear in the current folder. For a GPU, build with `--build-arg TORCH_INDEX=` (torch's default build,
# several GB) and run with `--gpus all`.
FROM python:3.11-slim

RUN useradd --create-home bench

WORKDIR /opt/cl-bench
COPY . .

# The versions that the tests ran with, and torch's build for the CPU.
ARG TORCH_INDEX
ENV PIP_CONSTRAINT=/opt/cl-bench/constraints.txt PIP_EXTRA_INDEX_URL=${TORCH_INDEX} PIP_NO_CACHE_DIR=1
RUN pip install -e .

USER bench
WORKDIR /work
ENTRYPOINT ["cl-bench"]
CMD ["--help"]
