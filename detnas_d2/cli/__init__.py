"""The command ``detnas``."""
