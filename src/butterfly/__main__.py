"""`python -m butterfly` is the command `butterfly`."""

from butterfly.cli.main import main

if __name__ == "__main__":
    main()
