"""The methods: one file each, the maths of one paper and nothing else."""
