"""What a finished lr_optimizer study measured, in the windows in which its source and others describe it.

    python benchmarks/lr_optimizer.py [STUDY] > table.md      STUDY: lr_optimizer-short by default

Reads the study's journal in gan-sweep's home. `band`: 5th to 95th percentile of the logged discriminator accuracy over
the second half; `sd100`: standard deviation of its 100-step means there. Means over seeds; ± is their sd.
"""

from __future__ import annotations

import sys

import pandas as pd

from orchestrator import results
from orchestrator.home import StudyFiles
from orchestrator.status import load_definition, load_records
from trials.series import band, band_fraction, sd_of_means, window_mean

WINDOWS = ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.8, 1.0))


def main() -> None:
    files = StudyFiles.of(sys.argv[1] if len(sys.argv) > 1 else "lr_optimizer-short")
    study, records = load_definition(files), load_records(files)
    curves = results.curves(files, records.trials.values())
    windows, ends = [], []
    for arm in records.arms:
        for trial in arm.trials:
            series = {name.removeprefix("train/"): values for name, (_, values) in curves[trial.key].items()}
            for start, stop in WINDOWS:
                windows.append(
                    {
                        "arm": arm.label,
                        "window": f"{start:.0%}-{stop:.0%}",
                        **{
                            name: window_mean(series[name], start, stop)
                            for name in ("d_loss_mean", "g_loss", "d_acc", "real_score", "fake_score")
                        },
                    }
                )
            low, high = band(series["d_acc"])
            ends.append(
                {
                    "arm": arm.label,
                    "band low": low,
                    "band high": high,
                    "in 0.4-0.6": band_fraction(series["d_acc"], 0.4, 0.6, start=0.5),
                    "sd100": sd_of_means(series["d_acc"], 100 // study.train.log_every),
                    "eval/swd": trial.latest["eval/swd"],
                }
            )
    for rows, keys in ((windows, ["arm", "window"]), (ends, ["arm"])):
        frame = pd.DataFrame(rows).groupby(keys, sort=False)
        mean, sd = frame.mean(), frame.std()
        cells = mean.map("{:.3f}".format) + " ± " + sd.map("{:.3f}".format)
        print(_markdown(cells.reset_index()), end="\n\n")


def _markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    main()
