"""``python -m edgecv``: for launchers that want a module, such as ``accelerate launch -m``."""

from edgecv.cli.app import main

if __name__ == "__main__":
    main()
