"""Draw a sample data set: `python -m data_prep.sample --out DIR [--subject plants] [--seed 0]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.sample import plants, portrait_data_set


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    for side in (width, height):
        if not (side.isdecimal() and 48 <= int(side) <= 1024):
            raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, both from 48 to 1024")
    return int(width), int(height)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.sample",
        description="Draw sample photos: portraits in the contest's layout, or leaves of plants.",
    )
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument(
        "--subject", choices=("people", "plants"), default="people", help="(default people)"
    )
    parser.add_argument(
        "--people", type=int, default=96, help="train and eval together (default 96)"
    )
    parser.add_argument("--plants", type=int, default=48, help="(default 48)")
    parser.add_argument("--photos", type=int, default=5, help="of each plant (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size", type=_size, help="WIDTHxHEIGHT (default 192x256, of plants 160x160)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args(argv)
    try:
        if args.subject == "plants":
            size = args.size or (160, 160)
            plants.build(
                args.out,
                args.plants,
                n_photos=args.photos,
                seed=args.seed,
                size=size,
                jobs=args.jobs,
            )
        else:
            size = args.size or (192, 256)
            portrait_data_set.build(
                args.out, args.people, seed=args.seed, size=size, jobs=args.jobs
            )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
