"""End-to-end parity: run the released programs of three papers on experiments of cl-bench, and compare results."""
