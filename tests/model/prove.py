"""``make model``: asks spin everything, and shows what it found.

    python -m tests.model.prove [NAME ...]

With names of variants: those alone, each with the trace that made it fail. The status is 0 only
if all that must hold does, and all that must fail does, for the reason it must.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.model.variants import BROKEN, HOLDING, PRINTED, Variant
from tests.support.promela import CheckError, Found

JOBS = 2
GROUPS = {
    "Algorithm 1, as the paper prints it, must fail:": PRINTED,
    "The mended rules must hold:": HOLDING,
    "The mended rules less one must fail:": BROKEN,
}


def run(variants: Iterable[Variant]) -> Iterator[tuple[Variant, Found | CheckError]]:
    """Check them, :data:`JOBS` at a time; in their order."""

    def one(variant: Variant) -> Found | CheckError:
        try:
            return variant.check()
        except CheckError as error:
            return error

    variants = list(variants)
    with ThreadPoolExecutor(JOBS) as pool:
        yield from zip(variants, pool.map(one, variants), strict=True)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show(variant: Variant, found: Found | CheckError, *, traces: bool) -> bool:
    """Show one answer; whether it is the right one."""
    if isinstance(found, CheckError):
        tell(f"  {variant.name:18} NOT CHECKED: {found}")
        return False
    objection = variant.objection(found)
    verdict = objection or ("holds" if found.failure is None else "fails, as it must")
    tell(
        f"  {variant.name:18} {found.states:>9} states {found.seconds:6.1f} s  "
        f"{verdict}: {variant.about}"
    )
    if found.failure and (objection or traces):
        for line in (*found.trace, f"not true: {found.failure}"):
            tell(f"      {line}")
    return objection is None


def main(names: list[str]) -> int:
    known = {variant.name for group in GROUPS.values() for variant in group}
    if unknown := set(names) - known:
        tell(
            f"no such variant: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}"
        )
        return 2
    states = wrong = 0
    for title, group in GROUPS.items():
        wanted = [variant for variant in group if not names or variant.name in names]
        if wanted:
            tell(title)
        for variant, found in run(wanted):
            wrong += not show(variant, found, traces=bool(names))
            states += 0 if isinstance(found, CheckError) else found.states
    tell(f"{states} states explored; {wrong or 'no'} answers are not as they must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
