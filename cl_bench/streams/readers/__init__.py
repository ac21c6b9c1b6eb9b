"""Readers: list the images of a data set from the folders, archives and lists in which it is distributed."""

from cl_bench.streams.readers.arrays import cifar_pickles, idx_files
from cl_bench.streams.readers.class_trees import TINY_FILES, class_folders, class_trees, cub_lists, tiny_imagenet
from cl_bench.streams.readers.domains import domain_folders, own_domain_folders
from cl_bench.streams.readers.layouts import UnknownLayout, first_of

__all__ = [
    "TINY_FILES", "UnknownLayout", "cifar_pickles", "class_folders", "class_trees", "cub_lists", "domain_folders",
    "first_of", "idx_files", "own_domain_folders", "tiny_imagenet",
]  # fmt: skip
