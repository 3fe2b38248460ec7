"""The private folder of a submission's process: found again by its inode, whatever name it was moved to."""

import os
import shutil
from contextlib import suppress


def remove(folder: str, inode: int) -> None:
    """Remove the folder that `inode`, a descriptor of it, holds open, with all that is in it, and what now lies where
    it was made; closes the descriptor."""
    os.fchmod(inode, 0o700)
    with suppress(OSError), os.scandir(inode) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.name, ignore_errors=True, dir_fd=inode)
            else:
                with suppress(OSError):
                    os.unlink(entry.name, dir_fd=inode)
    with suppress(OSError):  # where there is no /proc, or somebody else removed it
        os.rmdir(os.readlink(f"/proc/self/fd/{inode}"))
    os.close(inode)
    shutil.rmtree(folder, ignore_errors=True)
