"""`archipelago validate`: simulated beside closed forms; exit code 1 if one is off."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.table import number, table
from experiments.validate.closed_forms import Check, checks


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a row does not hold."""
    argparse.ArgumentParser("archipelago validate", description=__doc__).parse_args(argv)
    found = checks()
    print(table([_row(check) for check in found]))
    return 0 if all(check.holds for check in found) else 1


def _row(check: Check) -> dict[str, str]:
    return {
        "quantity": check.name,
        "closed form (s)": number(check.closed_form, 4),
        "simulated (s)": number(check.simulated, 4),
        "deviation": f"{check.deviation:+.1e}",
        "holds": "yes" if check.holds else "NO",
    }


if __name__ == "__main__":
    sys.exit(main())
