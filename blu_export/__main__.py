"""``python -m blu_export`` is ``blu``."""

from blu_export.cli.main import main

if __name__ == "__main__":
    main()
