"""The static site of `cl-bench report --site`: a leaderboard from several results folders and published numbers."""
