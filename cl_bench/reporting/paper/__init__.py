"""The tables and figures of papers, with the published numbers beside ours."""
