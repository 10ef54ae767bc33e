"""``python -m secateurs``."""

from secateurs.cli.app import main

main()
