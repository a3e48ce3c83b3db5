"""Tasks: what is asked, in every language."""
