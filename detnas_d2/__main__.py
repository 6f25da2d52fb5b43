"""``python -m detnas_d2``: the command ``detnas``."""

from detnas_d2.cli.main import entry

if __name__ == "__main__":
    entry()
