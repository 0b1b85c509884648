"""domainfolder:PATH - your images in domain and class folders: DOMAIN/CLASS/*.jpg, or train/DOMAIN/CLASS and
test/DOMAIN/CLASS.

Without a test part, a fifth of each class in each domain is held out, by a hash of the file's name. The domains are
learned in alphabetical order unless `scenario.order` lists them. `classnames.txt` and `templates.txt` override.
"""

from __future__ import annotations

from pathlib import Path

from everclip.data.formats.folders import (
    ADDITION,
    checked_root,
    dataset,
    image_files,
    parts,
    split_of,
    subfolders,
)
from everclip.data.formats.tables import check_domains
from everclip.data.images import Dataset
from everclip.data.sources import Source
from everclip.errors import UserError

LAYOUT = "DOMAIN/CLASS/*.jpg"


class DomainFolder(Source):
    """Pictures in folders of their domains and classes."""

    def load(self, argument: str | None, kind: str) -> Dataset:
        root = checked_root(argument, "domainfolder", LAYOUT)
        train, test = parts(root)
        domains = subfolders(root / train)
        found: list[tuple[str, str, str, bool]] = []
        for domain in domains:
            before = len(found)
            for folder in subfolders(root / train / domain):
                files = image_files(root, f"{train}{domain}/{folder}")
                is_test = split_of(files) if test is None else dict.fromkeys(files, False)
                found += [(key, domain, folder, is_test[key]) for key in files]
            if len(found) == before:
                raise UserError(
                    f"{root / train / domain} has no CLASS folders of images: use them, or imagefolder:{root}"
                )
        if test:
            _check_tested(root, test, domains)
        for domain in domains if test else []:
            for folder in subfolders(root / f"{test}{domain}"):
                files = image_files(root, f"{test}{domain}/{folder}")
                found += [(key, domain, folder, True) for key in files]
        if kind == "domain-incremental":
            check_domains(str(root), [domain for _, domain, *_ in found], [is_test for *_, is_test in found])
        parts_ = [train] if test is None else [train, test]
        places = [f"{part}{domain}" for part in parts_ for domain in ("", *domains)]
        least = 1 if kind == ADDITION else 2
        return dataset(f"domainfolder:{argument}", root, found, domains, places, test is None, least)


def _check_tested(root: Path, test: str, domains: list[str]) -> None:
    """Refuse a domain that is in one part only: what is learned is tested, and the other way round."""
    tested = subfolders(root / test)
    for domain in sorted({*domains} ^ {*tested}):
        there, lacking = (test, "train/") if domain in tested else ("train/", test)
        raise UserError(f'domain "{domain}" of {root} is in {there} but not in {lacking}: add or remove it')
