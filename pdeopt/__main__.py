"""``python -m pdeopt`` is the same as ``pdeopt``."""

from pdeopt.cli import main

if __name__ == "__main__":
    main()
