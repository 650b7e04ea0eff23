"""`make gpu-check`: all that only a GPU can show, in one table; on a CPU the rows that can run do."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.gpu.check import CARD, CPU, FAILED, SHORT, Setting, facts, judge, line, to_json

LIMIT_S = 450.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="the name of a row; may be repeated")
    parser.add_argument("--short", action="store_true", help="leave out what takes long")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    # how the check calls itself
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from tests.gpu.rows import ROWS, train_when_told

    if args.train:
        device, folder, number = args.train
        train_when_told(_setting_on(device), folder, number)
        return 0
    if args.measure:
        name, device = args.measure
        (row,) = (row for row in ROWS if row.name == name)
        print(json.dumps(asdict(row.measure(_setting_on(device)))))
        return 0
    import torch

    setting = CARD if torch.cuda.is_available() else CPU
    if not setting.is_cuda:
        torch.set_num_threads(1)
    known = facts(setting)
    print(", ".join(f"{name} {value}" for name, value in known.items()), flush=True)
    began = time.perf_counter()
    results = []
    for row in ROWS:
        if args.only and row.name not in args.only:
            continue
        if args.short and not row.short:
            continue
        left_s = args.limit_s - (time.perf_counter() - began)
        results.append(judge(row, setting, time_left_s=left_s))
        print(line(results[-1]), flush=True)
        args.out.write_text(to_json(known, results))  # a table that is cut short is of use too
        if setting.is_cuda:
            torch.cuda.empty_cache()
    n_bad = sum(result.verdict in {FAILED, SHORT} for result in results)
    print(f"{len(results)} rows, {n_bad} of them failed or fall short; {args.out}")
    return 1 if n_bad else 0


def _setting_on(device: str) -> Setting:
    return CARD if device.startswith("cuda") else CPU


if __name__ == "__main__":
    sys.exit(main())
