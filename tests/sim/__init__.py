# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulator of the vLLM model server: its HTTP surface, its scheduler, its prefix cache and its metrics, without a
model.

`engine`, `kvcache` and `tokens` know nothing of HTTP, sockets or the wall clock; `driver` runs an engine in real
time; `server` is the HTTP side. See README.md for the timing model and for what differs from vLLM.
"""

__version__ = "0.1.0"
