"""End-to-end parity: the released programs of three papers on the experiments of cl-bench, and the comparison."""
