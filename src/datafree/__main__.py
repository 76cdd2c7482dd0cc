"""`python -m datafree` is the command `datafree`."""

from datafree.cli import main

main()
