"""Worker processes: a crash, a hang or a leak of a runtime or a decoder ends in a process of its own.

owner ── starts a worker, talks with it, ends it
entry ── where every worker begins: it dies with its owner, then runs the function it was started for
channel ── lines of JSON over a socket, errors included
memory ── pages that owner and worker both map
"""
