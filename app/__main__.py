"""`python -m app` is `nurseries`."""

from app.cli import main

main()
