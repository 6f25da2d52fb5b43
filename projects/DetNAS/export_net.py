#!/usr/bin/env python
"""Write a trained network as TorchScript or ONNX, by tracing."""

from detnas_d2.command import run_command


def main(argv: list[str] | None = None) -> None:
    from detnas_d2.programs import export

    export.main(argv)


if __name__ == "__main__":
    run_command(main)
