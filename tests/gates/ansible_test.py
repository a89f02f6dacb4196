# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-test needs to run with package registries alone.

It makes environments of its own, in ``~/.ansible/test``, and fetches ``get-pip.py`` from its authors' server for that.
Here it gets a home folder of its own, and in it a ``get-pip.py`` that has the same effect by way of the package index.
Two of them must not share a home folder: each would find the half-made environments of the other.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from gates.environments import CACHE, MODULE_PYTHONS, Environment, interpreter

GET_PIP = '''"""Installs the pip that ansible-test asks for into the Python that runs this."""
import os
import sys

wanted = [argument for argument in sys.argv[1:] if "==" in argument]
command = [{python!r}, "-m", "pip", "--python", sys.executable, "install", "--quiet", *wanted]
os.execv(command[0], command)
'''


def _home(environment: Environment) -> Path:
    """The home folder of ansible-test in ``environment``: with ``get-pip.py`` where it looks for that.

    Also with pip's configuration, as ansible-test hides pip's environment variables, and the home is not the user's.
    """
    home = CACHE / "homes" / environment.path.name
    source = (environment.site_packages / "ansible_test/_internal/python_requirements.py").read_text()
    for version in set(re.findall(r"\bpip='([\d.]+)'", source)):
        script = home / ".ansible/test/cache" / f"get_pip_{version.replace('.', '_')}.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(GET_PIP.format(python=sys.executable))
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(re.findall(r"^(?:[a-z]+|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    configuration = home / ".config/pip/pip.conf"
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    return home


def variables(environment: Environment) -> dict[str, str]:
    """Environment variables: the programs of ``environment`` first, then each Python that modules may run on."""
    bases = [base for version in MODULE_PYTHONS if (base := interpreter(version))]
    paths = [str(environment.bin), *(str(base.parent) for base in bases), "/usr/local/bin", "/usr/bin", "/bin"]
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "VIRTUAL_"))
    }
    return {**kept, "HOME": str(_home(environment)), "PATH": os.pathsep.join(paths), "LC_ALL": "C.UTF-8"}
