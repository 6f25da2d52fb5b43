"""Files, locks, errors and processes: what every package uses."""
