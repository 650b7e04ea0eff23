"""A network of containers on this machine, each in namespaces of its own, from the files of one image.

A container has its own network, processes, host name and copy of the image's files, and runs as the
image's user. Its end is that of a machine: when its first process is killed, so are all others, and its
files are gone.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import psutil

BRIDGE = "rv-bridge"
HOST = "10.77.0.1"
"""The address of this machine on the bridge; the servers beside the cluster listen there."""
_BITS = 24
_SCRIPT = """\
set -e
hostname {name}
mount -t overlay overlay -o lowerdir={files},upperdir={upper},workdir={work} {root}
mount -t proc proc {root}/proc
mount --rbind /sys {root}/sys
mount -t tmpfs -o mode=755 tmpfs {root}/dev
for device in null zero full random urandom tty; do
    touch {root}/dev/$device
    mount --bind /dev/$device {root}/dev/$device
done
ln -s /proc/self/fd {root}/dev/fd
mkdir {root}/dev/shm
mount -t tmpfs -o size=1g tmpfs {root}/dev/shm
exec chroot --userspec={user}:{user} {root} /usr/bin/env -i {variables} \
    /bin/sh -c 'cd {folder}; "$@" & wait $!' sh {command}
"""
"""What the first process of a container does; as the last step it waits, and collects orphans."""


def _ip(*words, check=True):
    return subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=check)


class Network:
    """A bridge of this machine, and a network namespace for each host name."""

    def __init__(self):
        self.hosts = {}  # name -> address
        self.close()  # what an earlier one left
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HOST}/{_BITS}", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")

    def add(self, name):
        """Make the namespace of a host, and return its address."""
        if name in self.hosts:
            return self.hosts[name]
        address = f"10.77.0.{10 + len(self.hosts)}"
        space = f"rv-{name}"
        _ip("netns", "add", space)
        _ip("link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", f"v-{name}", "master", BRIDGE, "up")
        _ip("-n", space, "addr", "add", f"{address}/{_BITS}", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        # Ray asks for the way to the internet to learn its own address
        _ip("-n", space, "route", "add", "default", "via", HOST)
        self.hosts[name] = address
        return address

    def close(self):
        """Remove the bridge and all namespaces of hosts."""
        for line in _ip("netns", "list").stdout.splitlines():
            space = line.split()[0]
            if space.startswith("rv-"):
                _ip("netns", "delete", space, check=False)
        _ip("link", "delete", BRIDGE, check=False)
        self.hosts.clear()


class Container:
    """A process of an image in namespaces of its own, and all that it starts."""

    def __init__(self, image, network, folder, name, command, *, variables=(), files=(), log=None):
        """Start it.

        Args:
            image: whose files and variables it has.
            network: that has its host, or gets it.
            folder: for its copy of the files; it is emptied.
            name: of the host.
            command: words.
            variables: more than the image's.
            files: path inside -> text or bytes; only the image's user can read them.
            log: file that gets what it prints; by default one beside `folder`.
        """
        self.name = name
        self.address = network.add(name)
        self.folder = Path(folder)
        self.log = Path(log or self.folder.with_suffix(".log"))
        self._began = self.log.stat().st_size if self.log.exists() else 0
        shutil.rmtree(self.folder, ignore_errors=True)
        places = {part: self.folder / part for part in ("upper", "work", "root")}
        for place in places.values():
            place.mkdir(parents=True)
        user = int(image.user)
        hosts = "".join(f"{address} {host}\n" for host, address in network.hosts.items())
        self._write("/etc/hosts", f"127.0.0.1 localhost\n{hosts}", 0, 0o644)
        for path, content in dict(files).items():
            self._write(path, content, user, 0o600)
        variables = {"HOME": "/home/runner", "USER": "runner", **image.variables, **dict(variables)}
        script = _SCRIPT.format(
            name=name,
            files=image.files,
            **places,
            user=user,
            variables=" ".join(shlex.quote(f"{key}={value}") for key, value in variables.items()),
            folder="/app",
            command=shlex.join(map(str, command)),
        )
        spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork"]
        with self.log.open("ab") as output:
            self.process = psutil.Popen(
                ["ip", "netns", "exec", f"rv-{name}", "unshare", *spaces, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _write(self, path, content, user, mode):
        place = self.folder / "upper" / path.lstrip("/")
        parents = [parent for parent in place.parents if self.folder / "upper" in parent.parents]
        for parent in reversed(parents):
            if not parent.exists():
                parent.mkdir()
                os.chown(parent, user, user)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        place.chmod(mode)
        os.chown(place, user, user)

    @property
    def has_ended(self):
        return self.process.poll() is not None

    def printed(self):
        """Return what this container has printed."""
        with self.log.open("rb") as file:
            file.seek(self._began)
            return file.read().decode(errors="replace")

    def processes(self, *words):
        """Return its processes whose command lines contain one of these words; all without words."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in self.process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    is_dead = process.status() == psutil.STATUS_ZOMBIE
                    if not is_dead and (not words or any(word in line for word in words)):
                        found.append(process)
        return found

    def wait(self, limit_s):
        """Return the exit code of its command; None if it has not ended in time."""
        try:
            return self.process.wait(limit_s)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            return None

    def kill(self):
        """End it as a machine ends that loses its power; its files are gone too."""
        # the child is the first process of its namespace: with it, the kernel kills all others
        with contextlib.suppress(psutil.Error):
            for process in self.process.children():
                process.kill()
        with contextlib.suppress(psutil.Error):
            self.process.wait(30)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.folder)
            if not self.folder.exists():
                return
            time.sleep(0.2)
