# %% [markdown]
# A run in Python. Jupyter and VS Code read this file as cells; `python experiments/notebook.py` runs it.
# It needs a finished run: `make quickstart` leaves one.

# %%
import orchestrator

run = orchestrator.open_run("latest")
run

# %% Trials are frames with the columns of trials.parquet.
best = run.trials.sort_values("val_macro_f1", ascending=False)
print(best[["trial_id", "variant", "phase", "val_macro_f1", "epochs"]].head())

# %% What a setting does for the score, and how the trials learned.
run.plot.settings()

# %%
run.plot.curves()

# %% The members, and how far to believe them.
print(run.selection)
run.certificate

# %% Claims of the spec and their verdicts.
for claim in run.hypotheses:
    print(claim.claim, claim.verdict, claim.low, claim.high)

# %% How sure the members are of photos that they never saw in training.
oof = run.predictions.query("split == 'oof'")
oof = oof.assign(confidence=oof["probs"].map(max), right=oof["pred"] == oof["target"])
print(oof.groupby(oof["confidence"].round(1))["right"].agg(["mean", "size"]))
