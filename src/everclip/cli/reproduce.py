"""everclip reproduce: check everclip against numbers that others have published."""

from __future__ import annotations

from everclip.cli._options import Json
from everclip.cli._output import print_columns, print_json

MISSED = 3
"""Exit code of a number outside of its tolerance."""


def reproduce(name: str | None = None, *tokens: str, json: Json = False) -> int:
    """Train with published settings; say whether the published accuracy is reproduced; without a name, list them.

    Args:
        name: A name from the list. A stopped run continues, and a finished one is only read.
        tokens: KEY=VALUE settings that do not change the experiment: data, device, out, loader., cache., checkpoint.,
            train.precision.
    """
    from everclip import notebook
    from everclip.errors import UserError
    from everclip.runs import published

    if name is None:
        every = published.every().values()
        if json:
            print_json([vars(entry) for entry in every])
            return 0
        rows = []
        for entry in every:
            accuracies = ", ".join(f"{metric} {value:.2f}" for metric, value in entry.published.items())
            rows.append((entry.name, accuracies, f"{entry.tolerance:g}", entry.source))
        print_columns(rows, ("name", "published, %", "within", "source"))
        return 0
    entry = published.named(name)
    pairs = [token.partition("=") for token in tokens]
    if wrong := [token for token, (_, equals, _) in zip(tokens, pairs, strict=True) if not equals]:
        raise UserError(f'"{wrong[0]}" is not KEY=VALUE: use for example data=cifar100:FOLDER')
    settings = published.settings_of(entry, {key: value for key, _, value in pairs})
    run = notebook.train(entry.config, **settings)
    found = published.checks(entry, run.results)
    passed = all(check.passed for check in found)
    if json:
        print_json({"name": name, "run": str(run.path), "passed": passed, "checks": [vars(c) for c in found]})
        return 0 if passed else MISSED
    rows = []
    for check in found:
        numbers = f"{check.published:.2f}", f"{check.here:.2f}", f"{check.here - check.published:+.2f}"
        rows.append((check.metric, *numbers, "pass" if check.passed else "FAIL"))
    print_columns(rows, ("accuracy, %", "published", "here", "difference", f"within {entry.tolerance:g}"))
    print(f"{entry.source}, {entry.url}\n{run.path}")
    return 0 if passed else MISSED
