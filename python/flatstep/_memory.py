"""How much memory this process can still get."""

from pathlib import Path


def available_memory(proc="/proc", groups="/sys/fs/cgroup"):
    """Bytes that this process can still get without swapping: the system's estimate, or what its
    control group leaves, if that is less; None where neither can be read (not Linux)."""
    try:
        lines = Path(proc, "meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return None
    limits = [_left(folder) for folder in _own_groups(Path(proc), Path(groups))]
    return min([free, *(limit for limit in limits if limit is not None)])


def _own_groups(proc, root):
    """The folders of this process's memory control groups, up to the root, of version 2 or 1."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        own = top / path.lstrip("/")
        while own != top and top in own.parents:
            folders.append(own)
            own = own.parent
        folders.append(top)
    return folders


def _left(folder):
    """What a control group may still use, its pages of files that can be dropped included."""
    names = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
    for limit, usage in names.items():
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            statistics = (folder / "memory.stat").read_text().splitlines()
        except OSError:
            continue
        if most == "max":
            return None
        files = [line.split()[1] for line in statistics if line.startswith("inactive_file ")]
        return max(0, int(most) - used + int(files[0] if files else 0))
    return None
