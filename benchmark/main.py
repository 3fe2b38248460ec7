"""The console script `foolbench`: what the command needs is imported within reach of its end (`benchmark.ending`)."""

from typing import Any

from benchmark import ending


def main() -> None:
    ending.run(_command)


def _command() -> Any:
    from benchmark import cli

    return cli.app(prog_name="foolbench", standalone_mode=False)


if __name__ == "__main__":  # python -m benchmark.main, where the script is not on the path
    main()
