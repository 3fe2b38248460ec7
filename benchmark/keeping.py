"""The commands `foolbench store`: look through the whole folder of a store, and put it in order.

A run verifies what it reads; these verify every byte of every entry, also of suites that nobody runs any more.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import typer
from tqdm.auto import tqdm

from attacks.errors import UserError
from benchmark.options import STORE, StoreOption
from benchmark.store import RECEIPT, Store, Unsealed, receipt_of, refusal, sealed, verified, write_atomic

KEY = re.compile("[0-9a-f]{64}")
app = typer.Typer(help="Look through a store: verify, sweep, seal.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def verify(store: StoreOption = STORE) -> None:
    """Read every file of a store, print what does not fit its receipt, and exit with 1 where there is any."""
    found = damages(there(store))
    bad = [error for _, error in found if error]
    for error in bad:
        typer.echo(str(error))
    typer.echo(f"{store}: {len(found)} entries, {len(bad)} damaged")
    if bad:
        raise SystemExit(1)


@app.command()
def sweep(store: StoreOption = STORE) -> None:
    """Remove damaged entries, and what killed runs left half made; say which. The next run makes them again. Entries of
    an older version stay."""
    found, older, removed = damages(there(store)), 0, 0
    for folder, error in found:
        if isinstance(error, Unsealed):
            older += 1
        elif error:
            typer.echo(f"removing {error}")
            remove(store, folder)
            removed += 1
    leftovers = Store(store).sweep()
    for leftover in leftovers:
        typer.echo(f"removed {leftover}, which a killed run left half made")
    for kept in sorted(store.glob("unfinished/*")):
        typer.echo(f"kept {kept}, from which the next run goes on")
    typer.echo(f"{store}: {len(found)} entries, {removed} removed; {len(leftovers)} half made, removed")
    if older:
        typer.echo(
            f"{older} entries of an older version, whose receipts list no files: foolbench store seal, or delete"
        )


@app.command()
def seal(store: StoreOption = STORE) -> None:
    """Vouch for the entries of an older version, whose receipts list no files: they are listed as they are now."""
    older = [folder for folder, error in damages(there(store)) if isinstance(error, Unsealed)]
    for folder in older:
        receipt = json.loads((folder / RECEIPT).read_bytes())
        write_atomic(folder / RECEIPT, sealed(receipt, folder).encode())
    typer.echo(f"{store}: {len(older)} entries sealed as they are")


def damages(store: Path) -> list[tuple[Path, UserError | None]]:
    """Every entry, and what is wrong with it. A bar on stderr where that takes over two seconds."""
    folders = sorted(_entries(store))
    return [(folder, damage(folder)) for folder in tqdm(folders, "verify", unit="entry", delay=2, leave=False)]


def damage(folder: Path) -> UserError | None:
    """What is wrong with an entry: the first that is found, None where there is nothing."""
    try:
        for name in receipt_of(folder)["files"]:
            verified(folder / name)
    except FileNotFoundError:
        return refusal(folder, "it has no receipt") if folder.is_dir() else None  # else it was removed meanwhile
    except OSError as error:
        return refusal(folder, str(error.strerror or error))
    except UserError as error:
        return error
    return None


def remove(store: Path, folder: Path) -> None:
    """In one step for others: what is half removed is no entry. One that is gone already is no error."""
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=store) as away, suppress(FileNotFoundError):
        folder.rename(Path(away) / folder.name)


def _entries(store: Path) -> Iterator[Path]:
    for kind in store.iterdir():
        if kind.is_dir() and not kind.name.startswith("tmp-"):
            yield from (folder for folder in kind.iterdir() if KEY.fullmatch(folder.name))


def there(store: Path) -> Path:
    """The folder, if it is one. Raises `UserError`."""
    if not store.is_dir():
        raise UserError(f"no store {store}: foolbench run makes it (or name it with --store)")
    return store
