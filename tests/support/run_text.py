"""``python -m tests.support.run_text TEXT``: run a program that is given as text, as ``python -c`` does.

The fork server runs modules, and a fork has imported what each new interpreter would import for a second.
"""

import sys

if __name__ == "__main__":
    exec(compile(sys.argv[1], "<text>", "exec"), {"__name__": "__main__"})
