"""The tables and figures of papers, with our numbers next to the published ones."""
