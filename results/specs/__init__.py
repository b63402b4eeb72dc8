"""One file per table of the papers: its rows, its columns, its published numbers."""
