"""`helm test`: does Katib know our algorithms, with this release's image? Arguments: as of `retune katib register`."""

import sys

from retune.engines.katib import registration
from retune.engines.katib.api import Api

namespace, image, *account = sys.argv[1:]
found = Api(namespace, patience=60).config_map(registration.CONFIG_MAP)
text = found["data"][registration.KEY] if found else sys.exit(f"{namespace} has no {registration.CONFIG_MAP}")
if registration.registered(text, registration.entries(image, *account)) != text:
    sys.exit(f"{namespace}/{registration.CONFIG_MAP} does not have our algorithms with the image {image}")
print(f"Katib has our algorithms with the image {image}")
