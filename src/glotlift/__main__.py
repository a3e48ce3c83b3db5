"""`python -m glotlift`, which is also what `accelerate launch -m glotlift` runs."""

from glotlift.cli import main

main()
