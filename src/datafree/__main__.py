"""`python -m datafree` is the command `datafree`."""

from datafree.cli.main import main

main()
