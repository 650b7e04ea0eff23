"""Compare our deal of groups to folds with scikit-learn's StratifiedGroupKFold, on the contest's 2,700 people.

python -m tests.data_prep.fold_balance
"""

import time

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from data_prep.split import deal_folds

STRATA = (549, 410, 83, 732, 817, 109)  # people: male <30, 30-59, >=60; female the same
N_SEEDS = 10


def main():
    person = np.repeat(np.arange(sum(STRATA)), 7)
    stratum = np.repeat(np.arange(6), STRATA)[person]
    codes = np.stack([stratum // 3, stratum % 3], axis=1)
    groups = [f"{one:06}" for one in person]
    ours_name, theirs_name = "dealt round-robin", "StratifiedGroupKFold"
    for n_folds in (3, 5, 10):
        for name in (ours_name, theirs_name):
            worst, sizes, took = [], [], []
            for seed in range(N_SEEDS):
                began = time.perf_counter()
                if name == ours_name:
                    fold = deal_folds(groups, codes, n_folds, seed=seed)
                else:
                    fold = np.empty(len(person), np.int64)
                    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
                    for at, (_, held) in enumerate(splitter.split(person, stratum, person)):
                        fold[held] = at
                took.append(time.perf_counter() - began)
                table = np.zeros((6, n_folds))
                np.add.at(table, (stratum[::7], fold[::7]), 1)
                worst.append(np.abs(table - np.array(STRATA)[:, None] / n_folds).max())
                sizes.append(np.ptp(table.sum(0)))
            print(
                f"{n_folds:2} folds  {name:<22} people of a stratum off the ideal, worst: {max(worst):.2f}; "
                f"people per fold, largest minus smallest: {max(sizes):.0f}; {np.median(took):.2f} s"
            )


if __name__ == "__main__":
    main()
