"""features:FILE.npz - your embeddings without images, as ``np.savez`` writes them: features [n, d] and labels [n].

    np.savez("birds.npz", features=x, labels=y)                       # floats; whole numbers from 0, or names
    everclip train data=features:birds.npz method=ridge scenario.tasks=5

Optional arrays: `test_features` [m, d] and `test_labels` [m] (else a fifth of each class in each domain is held out, by
a hash of the row's number); `classnames` [c], the classes in the order of whole-number labels; `text_features` [c, d],
class embeddings in the space of the features, for zero_shot and `method.prior=text`; `domains` [n] and `test_domains`
[m] for scenario.kind=domain-incremental. Rows are made unit length where image features are.

No model is trained or run: zero_shot, the closed forms, fecam and rail work, other methods need images. The file is
data: pickled objects in it are refused.
"""

from __future__ import annotations

from pathlib import Path

from everclip.data.formats import features
from everclip.data.formats.tables import Origin, Rows, dataset
from everclip.data.images import Dataset
from everclip.data.sources import Source
from everclip.errors import UserError

BARE = "{}"
"""The prompt whose embedding the file has: the name of a class."""


class FeatureFile(Source):
    """Features in a file."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        if not argument:
            raise UserError('data "features" needs a file: use data=features:FILE.npz')
        found = features.read(Path(argument))
        origin = Origin(
            f"features:{argument}",
            argument,
            kind,
            "write the domain of each row into the array domains",
            templates=() if found.text is None else (BARE,),
        )
        rows = Rows(found.labels, found.is_test, found.domains, found.names)
        return dataset(origin, found.store, rows)
