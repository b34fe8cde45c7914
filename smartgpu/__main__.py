"""python -m smartgpu"""

import sys

from smartgpu.cli import main

sys.exit(main())
