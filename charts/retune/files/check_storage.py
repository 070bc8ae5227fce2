"""`helm test`: can a step write to the storage, and read back what it wrote? Argument: a folder for the test."""

import sys

from retune import store

uri = store.join(sys.argv[1], "hello")
store.write(uri, b"hello")
found = store.read(uri)
store.remove(uri)
there = store.create(uri, b"1"), store.create(uri, b"2")
store.remove(uri)
if there != (True, False):
    sys.exit(f"created {uri} twice, and was told {there}")
if found != b"hello":
    sys.exit(f"wrote b'hello' to {uri}, but read {found!r}")
print(f"wrote, read and removed {uri}")
