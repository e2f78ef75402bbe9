"""Refuses `pip install`: the commands are files of this folder, and a package of them would hold configs/ alone."""

import sys

sys.exit("kgi is not installed but run from its folder: 'make setup' there, or 'pip install -r requirements.txt'")
