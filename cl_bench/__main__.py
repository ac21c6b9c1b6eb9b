"""`python -m cl_bench`, the same as `cl-bench`."""

from cl_bench.cli import main

if __name__ == "__main__":
    main()
