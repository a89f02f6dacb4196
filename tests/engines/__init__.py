# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoint picker against inference engines that really run, or whose own code prints their metrics page.

Everything here runs on the CPU, without a container and without a model from elsewhere: `make engines`. Each engine has
an environment of its own (`environment`), a module that starts it, and a file of tests.
"""
