"Run the grpo job, in this process or as a rank of `accelerate launch`; see --help."

import sys

from r1nb.jobs import script

if __name__ == "__main__":
    sys.exit(script("grpo"))
