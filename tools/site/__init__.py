"""What `make docs` generates while mkdocs builds the site: reference pages, and pages of files outside docs/."""
