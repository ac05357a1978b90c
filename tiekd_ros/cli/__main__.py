"""`python -m tiekd_ros.cli`: the `tiekd` command."""

from tiekd_ros.cli.main import main

if __name__ == "__main__":
    main()
