"""`python -m eyeline_models`."""

from eyeline_models.cli import main

main()
