"The job notebook of generate, in this process or as a rank of `accelerate launch`. --help says more."

import sys

from r1nb.jobs import script

if __name__ == "__main__":
    sys.exit(script("generate"))
