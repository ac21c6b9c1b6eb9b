# cl-bench in two commands:
#
#     docker build -t cl-bench .
#     docker run --rm -v "$PWD":/work cl-bench run --methods sdlora,coda
#
# Results and reports appear in the current folder. Torch's default build is several GB and runs with `--gpus all`, too; for
# the small build without CUDA, add `--build-arg PIP_EXTRA_INDEX_URL=ADDRESS`, the index of CPU builds on PyTorch's page.
FROM python:3.11-slim

RUN useradd --create-home bench

WORKDIR /opt/cl-bench
COPY . .

# The versions that the tests ran with.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_CONSTRAINT=/opt/cl-bench/constraints.txt PIP_NO_CACHE_DIR=1
RUN pip install -e .

USER bench
WORKDIR /work
ENTRYPOINT ["cl-bench"]
CMD ["--help"]
