"""What an operator does to a running system: `audit`, `erase` and `release`; `cli` are the commands."""
